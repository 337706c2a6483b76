"""The outcome critic: what it learns, how plans are ranked by it, and agents that have none."""

import json
import zipfile

import numpy as np
import pytest
import torch

from scripts.bench.run import random_dataset
from trebi_gym import Budget
from trebi_gym.agents import TREBIAgent, TREBIConfig
from trebi_gym.agents.models import OUTCOME, make_windows, parts_of
from trebi_gym.agents.networks.outcome import OutcomeCritic, outcome_loss
from trebi_gym.agents.planning.budgets import geometric_sum
from trebi_gym.agents.presets import PRESETS
from trebi_gym.errors import ConfigError

SEEN = np.array([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.5]])


def make_critic(**options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return OutcomeCritic(
            4, 2, **({"width": 32, "blocks": 1, "episode_length": 10, "cost_scale": 2.0} | options)
        )


def learned(steps, costs_of, rewards_of):
    """A critic that was fitted to what functions of (windows, generator) say."""
    critic = make_critic()
    draw = torch.Generator().manual_seed(1)
    optimiser = torch.optim.Adam(critic.parameters(), lr=3e-3)
    for _ in range(steps):
        x = torch.randn(256, 4, 2, generator=draw)
        costs = costs_of(x, draw)
        quantiles, rewards = outcome_loss(critic, x, torch.full((256,), 5.0), costs, rewards_of(x, costs))
        optimiser.zero_grad()
        (quantiles + rewards).backward()
        optimiser.step()
    return critic.eval()


def test_quantiles_ascend_and_those_between_are_interpolated():
    critic, x, left = make_critic(levels=(0.1, 0.5, 0.9)), torch.randn(7, 4, 2), torch.full((7,), 3.0)
    costs = critic.costs(x, left)
    assert costs.shape == (7, 3)
    assert (costs.diff(dim=1) > 0).all()
    torch.testing.assert_close(critic.quantile(x, left, 0.9), costs[:, 2])
    torch.testing.assert_close(
        critic.quantile(x, left, 0.6), costs[:, 1] + 0.25 * (costs[:, 2] - costs[:, 1])
    )
    for level in (0.05, 0.95):
        with pytest.raises(ValueError, match=r"the level must lie within 0.1 to 0.9; got"):
            critic.quantile(x, left, level)


@pytest.mark.parametrize("levels", [(), (0.5, 0.5), (0.0, 0.5), (0.5, 1.0)])
def test_levels_that_are_no_quantiles_are_refused(levels):
    with pytest.raises(ValueError, match="levels must ascend within"):
        make_critic(levels=levels)


def test_it_learns_how_costs_are_spread_and_what_is_earned_at_a_cost():
    # a window tells where the cost lies, chance how far off it is; more cost earns more
    critic = learned(
        600,
        lambda x, draw: 5.0 + x[:, 0, 0] + 4.0 * torch.rand(len(x), generator=draw),
        lambda x, costs: 2.0 * costs + x[:, 1, 1],
    )
    x, left = torch.randn(200, 4, 2, generator=torch.Generator().manual_seed(2)), torch.full((200,), 5.0)
    with torch.no_grad():
        for level in (0.1, 0.5, 0.9):
            off = critic.quantile(x, left, level) - (5.0 + x[:, 0, 0] + 4.0 * level)
            assert off.abs().mean() < 0.35, level
        for asked in (5.0, 9.0):
            costs = x[:, 0, 0] + asked
            off = critic.rewards(x, left, costs) - (2.0 * costs + x[:, 1, 1])
            assert off.abs().mean() < 0.6, asked


def test_what_is_earned_is_told_for_the_budget_as_far_as_episodes_spend_it():
    critic = make_critic()
    x, left = torch.randn(6, 4, 2), torch.full((6,), 5.0)
    with torch.no_grad():
        known = critic.costs(x, left)
        for budget, spent in (
            (-torch.inf, known[:, 0]),
            (torch.inf, known[:, -1]),
            (known[:, 2].clone(), known[:, 2]),
        ):
            rewards, costs = critic.judge(x, left, torch.as_tensor(budget).expand(6), 0.1)
            torch.testing.assert_close(rewards, critic.rewards(x, left, spent))
            torch.testing.assert_close(costs, critic.quantile(x, left, 0.1))


def test_its_sums_are_undiscounted_and_reach_to_the_last_step(shipped_dataset, tiny_config, tiny_agent):
    windows = make_windows(shipped_dataset, tiny_config, tiny_agent.task, part=OUTCOME)
    first = torch.nonzero(windows.steps_left == windows.steps_left.max())[:, 0]
    np.testing.assert_allclose(windows[first].cost_to_go, shipped_dataset.episode_costs, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(
        windows[first].return_to_go, shipped_dataset.episode_returns, rtol=1e-4, atol=1e-3
    )


def test_the_plan_with_the_most_reward_within_the_budget_is_first_by_its_word(tiny_agent):
    plan = tiny_agent.plan(SEEN, budget=20.0)
    critic = tiny_agent.models[OUTCOME]
    task, length = tiny_agent.task, tiny_agent.task.episode_length
    rows = np.concatenate(
        [task.actions.normalize(plan.actions), task.observations.normalize(plan.observations)], axis=-1
    )
    x = torch.as_tensor(rows, dtype=torch.float32).flatten(0, 1)
    left = torch.full((len(x),), float(length))
    level = tiny_agent.config.planner.cost_level
    kept_back = 1.0 - tiny_agent.config.planner.margin
    with torch.no_grad():
        costs = critic.quantile(x, left, level)
        lowest, *_, highest = critic.costs(x, left).T
        rewards = critic.rewards(x, left, torch.full_like(left, 20.0 * kept_back).clamp(lowest, highest))
    factor = geometric_sum(tiny_agent.config.cost_discount, float(length)) / length
    np.testing.assert_allclose(plan.costs.ravel(), (costs * factor).numpy(), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(plan.rewards.ravel(), rewards.numpy(), rtol=1e-3, atol=1e-2)
    for rewards_of, kept in zip(plan.rewards, plan.feasible, strict=True):
        assert (np.diff(rewards_of[kept]) <= 0).all()
        assert not kept[np.argmin(kept) :].any() or kept.all()


def test_discounted_budgets_are_held_against_the_discounted_critic(tiny_agent):
    discount = tiny_agent.config.cost_discount
    changed = TREBIAgent.from_state(tiny_agent.state, device="cpu")

    def predicted(ranking, budget):
        changed.set_planner(ranking=ranking)
        changed.set_random_seed(3)
        action, state = changed.predict(SEEN, budget=budget)
        return np.concatenate([action, state.costs[:, None], state.rewards[:, None]], axis=1)

    plain, both = [Budget(20.0)] * 2, [Budget(20.0, discount), Budget(20.0)]
    by_outcome, by_guide = predicted("outcome", plain), predicted("rescored", plain)
    assert (by_outcome[:, 1:] != by_guide[:, 1:]).all()
    np.testing.assert_array_equal(predicted("outcome", both)[1], by_outcome[1])
    np.testing.assert_array_equal(predicted("outcome", both)[0], predicted("rescored", both)[0])


def test_the_papers_presets_have_none_and_cannot_rank_by_it():
    assert OUTCOME in parts_of(PRESETS["fast"])
    for name in ("toy_safe_env", "locomotion"):
        assert OUTCOME not in parts_of(PRESETS[name])
        with pytest.raises(ConfigError, match="needs an outcome critic"):
            PRESETS[name].replace(planner={"ranking": "outcome", "budget_rule": "remaining"})
        agent = TREBIAgent(config=PRESETS[name], device="cpu", seed=0)
        with pytest.raises(ConfigError, match="has no outcome_critic; fast has one"):
            agent.learn_outcome_critic(random_dataset("pendulum"), progress_bar=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"outcome_critic": None}, "needs an outcome critic"),
        ({"outcome_critic": {"name": "rnn"}}, "outcome_critic must be one of mlp, budget; got 'rnn'"),
        ({"outcome_critic": 3}, "outcome_critic must be a NetworkConfig; got 3"),
        ({"planner": {"cost_level": 1.0}}, r"cost_level must lie in \(0, 1\)"),
        ({"planner": {"budget_rule": "constant"}}, 'needs budget_rule="remaining"'),
    ],
)
def test_what_cannot_work_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        TREBIConfig().replace(**changes)


def test_a_level_that_was_not_learned_is_refused_before_anything_is_planned(tiny_agent):
    agent = TREBIAgent(
        (tiny_agent.observation_space, tiny_agent.action_space), tiny_agent.config, device="cpu", seed=0
    )
    with pytest.raises(
        ConfigError, match=r"cost_level is 0.99, but the outcome critic learns .* 0.05 to 0.95"
    ):
        agent.set_planner(cost_level=0.99)


def test_a_plan_is_what_a_decision_is_made_of_for_discounted_budgets_too(tiny_agent):
    for budget in (Budget(20.0, tiny_agent.config.cost_discount), Budget(20.0)):
        tiny_agent.set_random_seed(5)
        _, state = tiny_agent.predict(SEEN, budget=[budget, budget])
        tiny_agent.set_random_seed(5)
        plan = tiny_agent.plan(SEEN, budget=[budget, budget])
        np.testing.assert_array_equal(plan.costs[:, 0], state.costs)
        np.testing.assert_array_equal(plan.rewards[:, 0], state.rewards)


def test_a_file_from_before_there_was_one_is_an_agent_without(tiny_agent, shipped_dataset, tmp_path):
    config = tiny_agent.config.replace(planner={"ranking": "rescored"}, outcome_critic=None)
    agent = TREBIAgent(config=config, device="cpu", seed=0).learn(shipped_dataset, 3, progress_bar=False)
    new, old = agent.save(tmp_path / "new"), tmp_path / "old.zip"
    with zipfile.ZipFile(new) as source, zipfile.ZipFile(old, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith(".json"):
                description = json.loads(content)
                del description["config"]["outcome_critic"], description["config"]["planner"]["cost_level"]
                content = json.dumps(description).encode()
            target.writestr(name, content)
    loaded = TREBIAgent.load(old, device="cpu")
    assert loaded.config == config
    for made in (loaded, agent):
        made.set_random_seed(4)
    np.testing.assert_array_equal(loaded.predict(SEEN, budget=9.0)[0], agent.predict(SEEN, budget=9.0)[0])
