"""The original's stages: which configuration they take, and how planning counts budgets."""

import numpy as np
import pytest
from changed import changed
from toy_envs import register_toy_envs

from trebi_gym.agents import TREBIAgent
from trebi_gym.agents.planning.policies import OriginalAccounting
from trebi_gym.commands.paper_stages import PlanArguments, _accounting, agent_folder, stage_config
from trebi_gym.errors import ConfigError
from trebi_gym.evaluation.evaluate import evaluate_budgets

register_toy_envs()
PENDULUM = "SafePendulum-medium-replay-v0"


@pytest.fixture
def agent(tiny_agent, tmp_path):
    tiny_agent.save(tmp_path / "agent.zip")
    return TREBIAgent.load(tmp_path / "agent.zip")


def test_a_stage_takes_the_papers_preset_of_its_data_set_unless_told_otherwise(tmp_path):
    assert stage_config(PENDULUM, None).preset == "toy_safe_env"
    cheetah = stage_config("x/halfcheetah_medium-v2.hdf5", None)
    assert (cheetah.preset, cheetah.horizon) == ("locomotion", 4)
    assert stage_config(PENDULUM, "config.fast").preset == "fast"
    assert agent_folder(tmp_path, PENDULUM, None) == tmp_path / PENDULUM / "toy_safe_env"
    # wherever the data lie, the models are below logbase
    for place in ("/else/where/pend-v0", "../pend-v0", "else/pend-v0.hdf5"):
        assert agent_folder(tmp_path, place, "config.fast") == tmp_path / "pend-v0" / "fast"
    with pytest.raises(
        ConfigError, match=r"the paper has no preset for mine\.hdf5; pass --config, one of config\.fast"
    ):
        stage_config("mine.hdf5", None)
    assert stage_config("mine.hdf5", "config.locomotion").horizon == 32


def test_fast_is_scored_undiscounted_against_the_undiscounted_maximum(agent):
    policy, discount, maximum = _accounting(agent, PlanArguments(PENDULUM))
    assert policy is agent
    assert (discount, maximum) == (1.0, 60.0)


def test_the_constant_rule_counts_as_the_original_does(agent):
    agent.set_planner(budget_rule="constant", ranking="rescored")
    policy, discount, maximum = _accounting(agent, PlanArguments(PENDULUM))
    assert isinstance(policy, OriginalAccounting)
    assert (discount, maximum) == (1.0, 60.0)


def test_locomotion_is_scored_discounted_against_the_discounted_maximum(agent):
    agent = changed(agent, config=agent.config.replace(preset="locomotion"))
    policy, discount, maximum = _accounting(agent, PlanArguments("hopper-medium-v2"))
    assert policy is agent
    assert (discount, maximum) == (agent.config.cost_discount, 129.940)
    _, discount, _ = _accounting(agent, PlanArguments("hopper-medium-v2", test_cost_with_discount=False))
    assert discount == 1.0
    with pytest.raises(
        ConfigError, match=r"no discounted maximum budget is published for mine\.hdf5; pass --maximum"
    ):
        _accounting(agent, PlanArguments("mine.hdf5"))
    assert _accounting(agent, PlanArguments("mine.hdf5", maximum=7.0))[2] == 7.0


def test_the_originals_accounting_gives_the_agent_budgets_in_its_critics_units(agent):
    agent.set_planner(budget_rule="constant", ranking="rescored")
    policy, *_ = _accounting(agent, PlanArguments(PENDULUM))
    found = evaluate_budgets(policy, "ShortPendulum-v0", budgets=[5.0, 20.0], episodes=2, seed=0)
    assert [record.budget for record in found.records] == [5.0, 5.0, 20.0, 20.0], (
        "budgets and costs stay undiscounted"
    )
    assert np.isfinite([record.cost for record in found.records]).all()
