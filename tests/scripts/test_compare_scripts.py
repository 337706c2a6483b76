"""Scripts that compare variants: each is what its name says, and results belong to the arguments they were made with."""

import dataclasses
import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts.bench.measure import Timing
from trebi_gym.agents import NetworkConfig, TREBIAgent
from trebi_gym.agents.presets import PRESETS, preset
from trebi_gym.errors import ConfigError
from trebi_gym.evaluation.records import EpisodeRecord, Evaluation

SCRIPTS = Path(__file__).parents[2] / "scripts"
SAMPLERS = {"DDIM": "ddim", "DPM-Solver++": "dpm_solver", "DDPM": "ddpm"}


def load_script(name, monkeypatch):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def planners(monkeypatch):
    return load_script("compare_planners", monkeypatch)


@pytest.fixture
def choices(monkeypatch):
    return load_script("compare_choices", monkeypatch)


@pytest.fixture
def small_fast(monkeypatch):
    """The preset fast with small networks and few candidates."""
    critic = NetworkConfig("mlp", {"width": 16, "blocks": 1, "steps_left": True})
    config = preset("fast").replace(
        denoiser=NetworkConfig("mlp", {"width": 16, "blocks": 1, "condition": True}),
        reward_critic=critic,
        cost_critic=critic,
        outcome_critic=NetworkConfig("mlp", {"width": 16, "blocks": 1}),
        outcome_training=None,
        denoiser_training={"batch_size": 16},
        critic_training={"batch_size": 16},
        planner={"candidates": 4},
    )
    monkeypatch.setitem(PRESETS, "fast", config)
    return config


@pytest.fixture
def episodes(monkeypatch):
    """Episodes that take no time: (patch a script to run them, what was asked for)."""
    asked = []

    def evaluate(agent, env_id, *, budgets, episodes, seed, **others):
        asked.append((agent, tuple(budgets), episodes, seed))
        return Evaluation(
            tuple(
                EpisodeRecord(budget, seed + index, 10 + budget, 0.8 * budget, 200, 0.2 * budget, True)
                for budget in dict.fromkeys(budgets)
                for index in range(episodes)
            )
        )

    return (lambda script: monkeypatch.setattr(script, "evaluate_budgets", evaluate)), asked


def told_by(name):
    """Return what a variant's name says of its planner."""
    told = {}
    if found := re.match(r"(DDIM|DPM-Solver\+\+|DDPM) (\d+)", name):
        told["sampler"] = SAMPLERS[found[1]]
        told["sampler_steps"] = None if found[1] == "DDPM" else int(found[2])
    for pattern, key in (
        (r"(\d+) moves a step", "guide_moves"),
        (r"(\d+) candidates", "candidates"),
        (r"a plan for (\d+) steps", "control_interval"),
    ):
        if found := re.search(pattern, name):
            told[key] = int(found[1])
    if "no second search" in name:
        told["retry_steps"] = None
    if "selection only" in name:
        told["guide_moves"] = 0
    if "bfloat16" in name:
        told["precision"] = "bfloat16"
    return told


def test_every_variant_plans_as_its_name_says_and_otherwise_as_the_preset(planners, shipped_dataset):
    assert {"DDIM 5", "no second search", "64 candidates"} <= set(planners.VARIANTS)
    for name in planners.VARIANTS:
        base = dataclasses.asdict(preset("fast").planner)
        # even if the preset itself planned in another way
        for other in (base, base | {"sampler": "dpm_solver", "sampler_steps": 7, "retry_steps": None}):
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(PRESETS, "fast", PRESETS["fast"].replace(planner=other))
                planner = dataclasses.asdict(planners.configure(name, "fast", shipped_dataset).planner)
            told = told_by(name)
            for key, value in planner.items():
                if key == "retry_steps" and "sampler" in told:
                    few = told["sampler_steps"] is not None and told["sampler_steps"] < 5
                    assert value == (5 if few else None), name
                else:
                    assert value == told.get(key, other[key]), (name, key)


def test_the_preset_is_among_the_samplers_that_it_is_compared_with(planners, shipped_dataset):
    assert planners.configure("DDIM 3", "fast", shipped_dataset) == preset("fast")
    assert planners.configure("as it is", "fast", shipped_dataset) == preset("fast")


def test_other_networks_are_what_their_names_say(planners, shipped_dataset):
    for width in (128, 512):
        config = planners.configure(f"width {width}", "fast", shipped_dataset)
        assert config.denoiser.options["width"] == width
        assert config.planner == preset("fast").planner
    assert planners.configure("horizon 16", "fast", shipped_dataset).horizon == 16
    assert planners.configure("small U-Net", "fast", shipped_dataset).denoiser.name == "temporal_unet"


def test_a_variant_that_does_not_work_is_refused_before_anything_is_learned(planners, monkeypatch, tmp_path):
    wrong = planners.Variant(planner={"ranking": "original", "guide_moves": 0})
    monkeypatch.setattr(planners, "VARIANTS", {"as it is": planners.Variant(), "wrong": wrong})
    monkeypatch.setattr(planners, "_agent", lambda *arguments: pytest.fail("it has begun to learn"))
    arguments = planners.Arguments(variants=("as it is", "wrong"), output=tmp_path)
    with pytest.raises(ConfigError, match="the variant 'wrong' does not work with the preset fast"):
        planners.main(arguments)
    for variants, seeds in (((), (0,)), (("as it is",), ())):
        with pytest.raises(ConfigError, match="nothing to compare"):
            planners.main(dataclasses.replace(arguments, variants=variants, seeds=seeds))


def test_cells_and_agents_are_used_again_for_the_same_arguments_only(
    planners, small_fast, episodes, monkeypatch, tmp_path, capsys
):
    patch, asked = episodes
    patch(planners)
    arguments = planners.Arguments(
        variants=("as it is", "DDIM 5"), seeds=(0,), episodes=2, total_steps=4, output=tmp_path
    )
    planners.main(arguments)
    assert [agent.config.planner.sampler_steps for agent, *_ in asked] == [3, 5]
    assert len(list(tmp_path.glob("agent-*.zip"))) == 1
    planners.main(arguments)
    assert len(asked) == 2
    table = capsys.readouterr().out
    assert "return at kept budget" in table
    # at 0.8 of what is planned for a budget of 12 is kept with 15, which earns 25; 60 with 75, and 72 was the most
    assert "25.0 40.0 55.0 70.0 82.0" in table
    for changes in ({"episodes": 3}, {"first_seed": 7}, {"ratios": (0.3,)}, {"planned_ratios": (0.3, 0.5)}):
        before = len(asked)
        planners.main(dataclasses.replace(arguments, **changes))
        assert len(asked) == before + 2, changes
    assert len(list(tmp_path.glob("agent-*.zip"))) == 1
    planners.main(dataclasses.replace(arguments, total_steps=8))
    assert len(list(tmp_path.glob("agent-*.zip"))) == 2
    monkeypatch.setitem(PRESETS, "fast", small_fast.replace(planner={"margin": 0.1}))
    before = len(asked)
    planners.main(arguments)
    assert len(asked) == before + 2
    assert all(agent.config.planner.margin == 0.1 for agent, *_ in asked[before:])
    assert len(list(tmp_path.glob("agent-*.zip"))) == 2  # what is learned does not depend on it
    monkeypatch.setitem(PRESETS, "fast", small_fast.replace(discount=0.9))
    planners.main(arguments)
    assert len(list(tmp_path.glob("agent-*.zip"))) == 3


def records(costs, returns, planned=(10.0, 20.0, 30.0)):
    """Ten episodes of each planned budget; eight cost at most the given cost, two far more."""
    return [
        EpisodeRecord(budget, index, earned, cost if index < 8 else 100.0, 200, 0.0, True)
        for budget, cost, earned in zip(planned, costs, returns, strict=True)
        for index in range(10)
    ]


@pytest.mark.parametrize(
    ("costs", "expected"),
    [
        # below the cheapest, at it, half way to the next, and beyond the dearest
        ((5.0, 15.0, 25.0), {4.0: np.nan, 5.0: 1.0, 10.0: 1.5, 15.0: 2.0, 99.0: 4.0}),
        # a planned budget that cost more than the next: up to its cost neither may be planned for
        ((5.0, 25.0, 15.0), {15.0: 1.5, 24.9: 1.995, 25.0: 4.0}),
        ((5.0, 5.0, 5.0), {4.9: np.nan, 5.0: 4.0}),
    ],
)
def test_the_return_at_a_kept_budget_is_where_the_cost_that_most_episodes_keep_meets_it(
    planners, costs, expected
):
    found = planners.returns_at_kept_budgets(
        records(costs, (1.0, 2.0, 4.0)), (10.0, 20.0, 30.0), list(expected)
    )
    np.testing.assert_allclose(found, list(expected.values()))


def test_planned_budgets_without_episodes_are_told(planners):
    with pytest.raises(ConfigError, match="episodes of every planned budget"):
        planners.returns_at_kept_budgets(records((1.0, 2.0, 3.0), (1.0, 2.0, 3.0)), (10.0, 15.0), [1.0])


def test_times_are_those_of_a_step_also_where_the_preset_itself_executes_several_of_a_plan(
    planners, small_fast, monkeypatch, tmp_path, capsys
):
    monkeypatch.setitem(PRESETS, "fast", small_fast.replace(planner={"control_interval": 4}))
    asked, steps = [], []

    def predict(agent, observation, state, *, budget):
        steps.append(budget)
        return None, None

    def timed(calls, *, seconds, device):
        for call in calls.values():
            call()
        asked.append(device)
        return {name: Timing(0.008, 0.004, 0.1, 3) for name in calls}

    monkeypatch.setattr(planners, "time_in_turns", timed)
    monkeypatch.setattr(TREBIAgent, "predict", predict)
    planners.main(
        planners.Arguments(
            variants=("as it is", "a plan for 2 steps"),
            seeds=(0,),
            total_steps=4,
            time=True,
            output=tmp_path,
        )
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].split()[-4:] == ["2.00", "1.00", "2.00", "1.00"]
    assert lines[-1].split()[-4:] == ["4.00", "2.00", "4.00", "2.00"]
    assert steps == [60.0] * 4 + [0.0] * 4 + [60.0] * 2 + [0.0] * 2
    assert isinstance(asked[0], torch.device)


def test_choices_differ_from_the_default_in_exactly_one_thing(choices):
    def flat(config):
        data = config.to_dict()
        return {
            (key, inner): item
            for key, value in data.items()
            for inner, item in (value.items() if isinstance(value, dict) else [(None, value)])
        } | {("cost_critic", key): value for key, value in data["cost_critic"]["options"].items()}

    assert choices.BASE.planner.ranking == "rescored"
    assert choices.BASE.planner.retry_steps is None
    base = flat(choices.BASE)
    for name, changes in choices.VARIANTS.items():
        config = flat(choices.BASE.replace(**changes))
        assert set(config) == set(base)
        different = {key for key in base if config[key] != base[key]} - {("cost_critic", "options")}
        assert len(different) == (name != "default"), (name, different)


@pytest.fixture
def small_choices(choices, small_fast, monkeypatch):
    base = small_fast.replace(
        outcome_critic=None,
        planner={**dataclasses.asdict(choices.BASE.planner), "candidates": 4, "sampler_steps": 2},
    )
    monkeypatch.setattr(choices, "BASE", base)
    blind = NetworkConfig("mlp", {**base.cost_critic.options, "steps_left": False})
    monkeypatch.setitem(choices.VARIANTS, choices.BLIND, {"cost_critic": blind})
    return choices


def test_choices_are_learned_run_and_told(small_choices, tmp_path, capsys, recwarn):
    arguments = small_choices.Arguments(
        seeds=(0,), budgets=(24.0, 60.0), episodes=1, total_steps=8, output=tmp_path
    )
    small_choices.main(arguments)
    out = capsys.readouterr().out
    for name in small_choices.VARIANTS:
        assert f"\n{name}\n" in out
    assert "the stale ranking takes another plan" in out
    assert len(list(tmp_path.glob("*.json"))) == 4
    assert len(list(tmp_path.glob("*-agent-*.zip"))) == 2
    assert not [w for w in recwarn if "will learn from" in str(w.message)]


def test_results_of_choices_are_used_again_for_the_same_arguments_only(
    small_choices, episodes, tmp_path, monkeypatch
):
    patch, asked = episodes
    patch(small_choices)
    monkeypatch.setattr(small_choices, "_true_scores", lambda *arguments: None)
    monkeypatch.setattr(small_choices, "_table", lambda cells: "")
    arguments = small_choices.Arguments(
        seeds=(0,), budgets=(24.0,), episodes=1, total_steps=8, output=tmp_path
    )
    small_choices.main(arguments)
    agents = [agent for agent, *_ in asked]
    assert [agent.config.planner.ranking for agent in agents] == [
        "rescored",
        "original",
        "rescored",
        "rescored",
    ]
    assert [agent.config.planner.budget_rule for agent in agents][2] == "constant"
    assert [bool(agent.config.cost_critic.options["steps_left"]) for agent in agents] == [True] * 3 + [False]
    assert all(agent.learned_from["env_id"] == "SafePendulum-v0" for agent in agents)
    small_choices.main(arguments)
    assert len(asked) == 4
    for changes in ({"episodes": 2}, {"first_seed": 7}, {"budgets": (12.0,)}):
        before = len(asked)
        small_choices.main(dataclasses.replace(arguments, **changes))
        assert len(asked) == before + 4, changes
    assert len(list(tmp_path.glob("*-agent-*.zip"))) == 2
    small_choices.main(dataclasses.replace(arguments, total_steps=12))
    assert len(list(tmp_path.glob("*-agent-*.zip"))) == 4


@pytest.mark.parametrize("total_steps", [8, 11])
def test_a_cost_critic_learned_apart_is_learned_as_that_of_the_default(
    small_choices, shipped_dataset, tmp_path, total_steps
):
    arguments = small_choices.Arguments(total_steps=total_steps, output=tmp_path)
    default = small_choices._agent(small_choices.BASE, shipped_dataset, 0, arguments)
    apart = small_choices._blind(small_choices.BASE, shipped_dataset, 0, arguments)
    assert apart.learned_from == default.learned_from
    assert set(apart.models) == set(default.models)
    for part, model in default.models.items():
        for name, value in model.state_dict().items():
            torch.testing.assert_close(apart.models[part].state_dict()[name], value, rtol=0, atol=0)
