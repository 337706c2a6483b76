"""The budget critic: what it says of plans, and that dynamic programming finds what no logged episode did as a whole."""

import math

import numpy as np
import pytest
import torch

from scripts.bench.run import random_dataset, untrained
from trebi_gym.agents import TREBIAgent, TREBIConfig
from trebi_gym.agents.config import NetworkConfig, TrainingConfig
from trebi_gym.agents.models import OUTCOME, make_windows
from trebi_gym.agents.networks import BudgetCritic
from trebi_gym.agents.networks.budget_critic import Segment, budget_loss, step_losses
from trebi_gym.agents.planning.budgets import geometric_sum
from trebi_gym.agents.training import losses
from trebi_gym.agents.training.losses import LONGEST_SEGMENT, make_loss
from trebi_gym.datasets import EpisodeDataset
from trebi_gym.errors import ConfigError


def make_critic(**options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BudgetCritic(
            4, 3, **({"action_dim": 1, "width": 32, "episode_length": 10, "cost_scale": 2.0} | options)
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"action_dim": 3}, "0 < action_dim < 3; got 4 rows and action_dim 3"),
        ({"action_dim": 0}, "action_dim 0"),
        ({"width": 0}, "widths must be at least 1"),
        ({"step_width": 0}, "widths must be at least 1"),
        ({"expectile": 0.5}, r"must lie in \(0.5, 1\); got 0.5"),
        ({"expectile": 1.0}, r"must lie in \(0.5, 1\)"),
        ({"judged_steps": 0}, "judged_steps must be a whole number of at least 1; got 0"),
        ({"judged_steps": 2.5}, "judged_steps must be a whole number .* got 2.5"),
        ({"judged_steps": True}, "judged_steps must be a whole number .* got True"),
        ({"cost_scale": 0.0}, "scales must be positive"),
        ({"cost_scale": math.nan}, "scales must be positive"),
        ({"episode_length": 0}, "scales must be positive"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_critic(**options)


def test_a_plan_is_worth_what_its_actions_lead_to_and_what_follows_within_what_is_left():
    critic, x = make_critic(judged_steps=2).eval(), torch.randn(5, 4, 3)
    critic.penalty.fill_(7.0)
    critic.may_end.fill_(1.0)
    budgets, left = torch.full((5,), 3.0), torch.full((5,), 6.0)
    with torch.no_grad():
        rows, _, reached = critic.rolled(x[:, 0, 1:], x[:, :, :1])
        first, second = critic.steps(rows[:, :2], rows[:, 1:3, 1:]).unbind(dim=1)
        reward, cost = (first + reached[:, 1:2] * second).T
        earned, least = critic.judge(x, left, budgets)
        # what goes on has cost all of both steps
        rest = critic.value(rows[:, 2, 1:], budgets - (first + second)[:, 1], left - 2)
        alive = reached[:, 2]
        gone = -7.0 * (cost - budgets).clamp(min=0)
        torch.testing.assert_close(earned, reward + alive * rest + (1 - alive) * gone)
        torch.testing.assert_close(least, cost + alive * critic.least(rows[:, 2, 1:], left - 2).clamp(min=0))
        # with one step left only the first counts, and what is over the budget is paid for
        earned, least = critic.judge(x, torch.ones(5), torch.full((5,), -1.0))
        reward, cost = first.T
        torch.testing.assert_close(earned, reward - 7.0 * (1.0 + cost).clamp(min=0))
        torch.testing.assert_close(least, cost)
        # no limit is worth as much as more than any episode costs
        more, most = (
            critic.judge(x, left, torch.full((5,), 1e9)),
            critic.judge(x, left, torch.full((5,), math.inf)),
        )
        torch.testing.assert_close(more, most)
        # what a plan shows behind its first row counts for nothing: its actions may lead elsewhere
        shown = x.clone()
        shown[:, 1:, 1:] += 1.0
        torch.testing.assert_close(critic.judge(shown, left, budgets), critic.judge(x, left, budgets))


def test_the_targets_follow_slowly_and_are_not_learned_themselves():
    critic = make_critic()
    with torch.no_grad():
        critic.value_net[0].weight.add_(1.0)
    before = critic.value_target[0].weight.clone()
    critic.follow()
    torch.testing.assert_close(
        critic.value_target[0].weight, before + 0.01 * (critic.value_net[0].weight - before)
    )
    count = 8
    drawn = Segment(
        *(torch.randn(count, 2), torch.rand(count), torch.full((count,), 5.0)),
        *(torch.rand(count), torch.rand(count), torch.full((count,), 2.0)),
        *(torch.randn(count, 2), torch.zeros(count, dtype=torch.bool)),
    )
    value, least = budget_loss(critic, drawn)
    (value + least).backward()
    assert all(p.grad is None for p in (*critic.value_target.parameters(), *critic.least_target.parameters()))
    assert all(p.grad is not None for p in (*critic.value_net.parameters(), *critic.least_net.parameters()))


@pytest.fixture(scope="module")
def crossing():
    """Episodes of 8 steps on a line of places, in two halves that every episode goes through by chance.

    In the first half, and again in the second one, a dear way earns 2 and costs 1 a step, a cheap one earns 1 and costs
    nothing. Chance has it that logged episodes go the same way in both halves.
    """
    draw = np.random.default_rng(0)
    episodes, length = 200, 8
    dear = np.repeat(draw.integers(0, 2, size=episodes), length).astype(np.float32)
    place = np.tile(np.arange(length + 1), episodes) / length
    observations = np.stack([place, np.zeros_like(place)], axis=1).astype(np.float32)
    observations += 0.01 * draw.normal(size=observations.shape).astype(np.float32)
    return EpisodeDataset(
        observations,
        (2 * dear - 1)[:, None],
        1 + dear,
        dear.copy(),
        np.full(episodes, length),
        np.zeros(episodes, dtype=np.bool_),
        np.ones(episodes, dtype=np.bool_),
        {"episode_length": length},
    )


@pytest.fixture(scope="module")
def learned(crossing, tiny_config):
    config = tiny_config.replace(
        horizon=2,
        outcome_critic=NetworkConfig("budget", {"expectile": 0.9}),
        outcome_training=TrainingConfig(steps=1500, batch_size=128, learning_rate=3e-3),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "LONGEST_SEGMENT", 2)  # of 8 steps
        return TREBIAgent(config=config, device="cpu", seed=0).learn(crossing, progress_bar=False)


def test_halves_of_episodes_are_put_together_within_the_budget(learned):
    # logged episodes cost 0 or 8; a budget of 4 is best spent in either half, which none did
    critic, task = learned.models[OUTCOME], learned.task
    start = torch.as_tensor(task.observations.normalize(np.zeros((1, 2))), dtype=torch.float32)
    with torch.no_grad():
        found = {
            budget: float(critic.value(start, torch.tensor([budget]), torch.tensor([8.0])))
            for budget in (0.0, 4.0, 8.0, math.inf)
        }
        # logged episodes earn 8 or 16, at costs of 0 or 8; four dear steps and four cheap ones earn 12
        for budget, best in ((0.0, 8.0), (4.0, 12.0), (8.0, 16.0), (math.inf, 16.0)):
            assert found[budget] == pytest.approx(best, abs=1.8), budget
        assert found[0.0] + 2 < found[4.0] < found[8.0] - 2
        # what is overspent already is paid for
        gone = float(critic.value(start, torch.tensor([-1.0]), torch.tensor([8.0])))
        assert gone == pytest.approx(8.0 - float(critic.penalty), abs=1.5)
        assert float(critic.least(start, torch.tensor([8.0]))) == pytest.approx(0.0, abs=0.5)
        actions = torch.as_tensor(task.actions.normalize(np.array([[-1.0], [1.0]])), dtype=torch.float32)
        rows = torch.cat([actions, torch.zeros(2, 2)], dim=1)
        told = critic.steps(rows, torch.tensor([[0.5, 0.0], [0.5, 0.0]]))
        torch.testing.assert_close(told, torch.tensor([[1.0, 0.0], [2.0, 1.0]]), atol=0.2, rtol=0)


def test_stretches_end_within_the_episode_and_at_a_time_limit_only_with_the_last_step(crossing, learned):
    windows = make_windows(crossing, learned.config, learned.task, part=OUTCOME)
    loss = make_loss(OUTCOME, learned.config, learned.task, windows)
    drawn = loss.draw(torch.Generator().manual_seed(0))
    segment = Segment(*drawn[:8])
    assert len(segment.steps) > len(drawn[8])
    assert (segment.steps >= 1).all() and (segment.steps <= segment.left).all()
    assert (segment.left <= 8).all() and segment.steps.max() <= LONGEST_SEGMENT
    assert not segment.over.any()
    # every stretch goes one way: reward and cost are those of its steps
    dear = segment.cost > 0
    torch.testing.assert_close(segment.cost[dear], segment.steps[dear])
    torch.testing.assert_close(segment.reward, segment.steps + segment.cost)
    # behind the last step nothing is known, so nothing may be built on it
    padding = torch.as_tensor(learned.task.observations.normalize(np.zeros(2)), dtype=torch.float32)
    behind = (segment.end - padding).abs().sum(dim=1) < 1e-6
    assert (segment.steps[behind] == segment.left[behind]).all()


def test_an_episode_that_the_task_ended_earns_and_costs_no_more(shipped_dataset, tiny_config):
    ended = EpisodeDataset(
        np.array([[0.0], [1.0], [2.0], [3.0]] * 30, dtype=np.float32),
        np.zeros((90, 1), dtype=np.float32),
        np.ones(90, dtype=np.float32),
        np.ones(90, dtype=np.float32),
        np.full(30, 3),
        np.ones(30, dtype=np.bool_),
        np.zeros(30, dtype=np.bool_),
        {"episode_length": 10},
    )
    config = tiny_config.replace(
        horizon=2,
        outcome_critic=NetworkConfig("budget"),
        outcome_training=TrainingConfig(steps=2000, batch_size=64, learning_rate=3e-3),
    )
    agent = TREBIAgent(config=config, device="cpu", seed=0).learn(ended, progress_bar=False)
    critic = agent.models[OUTCOME]
    seen = torch.as_tensor(
        agent.task.observations.normalize(np.array([[0.0], [1.0], [2.0]])), dtype=torch.float32
    )
    with torch.no_grad():
        ten = torch.full((3,), 10.0)
        torch.testing.assert_close(
            critic.value(seen, 10 * torch.ones(3), ten), torch.tensor([3.0, 2.0, 1.0]), atol=0.5, rtol=0
        )
        torch.testing.assert_close(critic.least(seen, ten), torch.tensor([3.0, 2.0, 1.0]), atol=0.5, rtol=0)


def test_an_agent_plans_by_it_is_resumed_saved_and_judged_by_it_again(shipped_dataset, tiny_config, tmp_path):
    config = tiny_config.replace(
        outcome_critic=NetworkConfig("budget"), outcome_training=TrainingConfig(steps=20, batch_size=32)
    )
    whole = TREBIAgent(config=config, device="cpu", seed=0).learn(shipped_dataset, progress_bar=False)
    cut = TREBIAgent(config=config, device="cpu", seed=0)
    # the last model learns from update 80 on
    cut.learn(shipped_dataset, callback=lambda local, _: local["self"].num_timesteps < 90, progress_bar=False)
    assert cut.num_timesteps == 90
    again = TREBIAgent(config=config, device="cpu", seed=0)
    again.learn(shipped_dataset, progress_bar=False, resume_from=cut.save(tmp_path / "partial"))
    loaded = TREBIAgent.load(again.save(tmp_path / "whole"), device="cpu")
    for name, value in whole.models[OUTCOME].state_dict().items():
        assert torch.equal(loaded.models[OUTCOME].state_dict()[name], value), name
    seen = np.array([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.5]])
    plan = loaded.plan(seen, budget=20.0)
    task, length = loaded.task, loaded.task.episode_length
    rows = np.concatenate(
        [task.actions.normalize(plan.actions), task.observations.normalize(plan.observations)], axis=-1
    )
    x = torch.as_tensor(rows, dtype=torch.float32).flatten(0, 1)
    left = torch.full((len(x),), float(length))
    spent = (1.0 - config.planner.margin) * 20.0
    with torch.no_grad():
        rewards, costs = loaded.models[OUTCOME].judge(x, left, torch.full_like(left, spent))
    factor = geometric_sum(config.cost_discount, float(length)) / length
    np.testing.assert_allclose(plan.costs.ravel(), (costs * factor).numpy(), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(plan.rewards.ravel(), rewards.numpy(), rtol=1e-3, atol=1e-1)


def test_an_untrained_one_of_the_benchmark_expects_that_every_plan_costs_about_one(tiny_config):
    config = tiny_config.replace(outcome_critic=NetworkConfig("budget"))
    agent = untrained(config, random_dataset("pendulum"), "cpu")
    plan = agent.plan(np.zeros((1, 3)), budget=1e6)
    length = agent.task.episode_length
    costs = plan.costs * length / geometric_sum(config.cost_discount, float(length))
    np.testing.assert_allclose(costs, min(1.0, (config.horizon - 1) / 16), atol=0.1)
    assert plan.feasible.all() and not agent.plan(np.zeros((1, 3)), budget=0.0).feasible.any()


def test_files_from_before_it_could_learn_otherwise_are_read(tiny_config):
    data = tiny_config.to_dict()
    del data["outcome_training"]
    assert TREBIConfig.from_dict(data) == tiny_config


def test_options_that_it_has_not_are_refused(tiny_config, shipped_dataset):
    config = tiny_config.replace(outcome_critic={"name": "budget", "options": {"levels": [0.1]}})
    with pytest.raises(ConfigError, match="budget' takes no levels"):
        TREBIAgent(config=config, device="cpu", seed=0).learn(shipped_dataset, 4, progress_bar=False)


@pytest.fixture(scope="module")
def walker(tiny_config):
    """An agent that learned of episodes on a line, of steps drawn one by one, which the task ends beyond 0.45.

    Every step earns 1 and costs 1, the one that the task ends 5 more. Nothing is logged that holds one direction throughout.
    """
    draw = np.random.default_rng(0)
    observations, actions, lengths = [], [], []
    for _ in range(300):
        seen, chosen = [place := float(draw.uniform(-0.4, 0.4))], []
        while len(chosen) < 12 and abs(place) < 0.45:
            chosen.append(draw.uniform(-1.3, 1.3, size=1).clip(-1.0, 1.0))
            place += 0.1 * float(chosen[-1][0])
            seen.append(place)
        observations += seen
        actions += chosen
        lengths.append(len(chosen))
    ends = np.cumsum(np.array(lengths) + 1) - 1
    terminated = np.abs(np.array(observations)[ends]) >= 0.45
    assert 0.1 < terminated.mean() < 0.9
    told = np.ones(sum(lengths), dtype=np.float32)
    told[np.cumsum(lengths)[terminated] - 1] += 5.0
    dataset = EpisodeDataset(
        np.array(observations, dtype=np.float32)[:, None],
        np.array(actions, dtype=np.float32),
        told,
        told,
        np.array(lengths),
        terminated,
        ~terminated,
        {"episode_length": 12},
    )
    config = tiny_config.replace(
        outcome_critic=NetworkConfig("budget"),
        outcome_training=TrainingConfig(steps=1500, batch_size=128, learning_rate=3e-3),
    )
    return TREBIAgent(config=config, device="cpu", seed=0).learn(dataset, progress_bar=False)


def test_actions_lead_where_they_do_though_no_logged_episode_holds_them(walker):
    critic, task = walker.models[OUTCOME], walker.task
    start = torch.as_tensor(task.observations.normalize(np.zeros((3, 1))), dtype=torch.float32)
    held = np.array([1.0, 0.0, -1.0])
    actions = torch.as_tensor(task.actions.normalize(held[:, None]), dtype=torch.float32)
    with torch.no_grad():
        rows, _, reached = critic.rolled(start, actions[:, None].expand(-1, 5, -1))
        far, _, _ = critic.rolled(torch.tensor([[50.0]]), actions[:1, None].expand(-1, 5, -1))
    places = task.observations.unnormalize(rows[..., 1:].double().numpy())[..., 0]
    np.testing.assert_allclose(places, held[:, None] * 0.1 * np.arange(5), atol=0.05)
    assert (far[:, 1:, 1] <= critic.highest[1]).all()
    # the last of five steps to one side is the one that the task ends: four have led to 0.4
    torch.testing.assert_close(reached[:, :4], torch.ones(3, 4), atol=0.1, rtol=0)
    with torch.no_grad():
        _, _, reached = critic.rolled(start, actions[:, None].expand(-1, 6, -1))
    torch.testing.assert_close(reached[:, 5], torch.tensor([0.0, 1.0, 0.0]), atol=0.15, rtol=0)


def test_a_plan_that_ends_the_episode_earns_and_costs_what_it_does_until_then(walker):
    critic, task = walker.models[OUTCOME], walker.task
    held = torch.as_tensor(task.actions.normalize(np.array([[1.0], [0.0], [-1.0]])), dtype=torch.float32)
    start = torch.as_tensor(task.observations.normalize(np.zeros((3, 1))), dtype=torch.float32)
    x = torch.cat([held, start], dim=1)[:, None].expand(-1, 8, -1)
    with torch.no_grad():
        # the step that the task ends is known by what it leads to, and raw zeros are a place like any other
        rows, after, _ = critic.rolled(start, x[:, :5, :1])
        told = critic.steps(rows, after)
        torch.testing.assert_close(told[1], torch.ones(5, 2), atol=0.4, rtol=0)
        earned, least = critic.judge(x, torch.full((3,), 12.0), torch.full((3,), 50.0))
    # four steps and the last, which is 5 more, a jump that the model of a step blurs; or seven on the spot, and at best as
    # much again
    for sums in (earned, least):
        assert sums[[0, 2]].tolist() == pytest.approx([10.0, 10.0], abs=2.0)
    assert 10.0 < float(earned[1]) < 18.0


def test_what_lies_behind_a_step_is_the_next_one_and_behind_the_last_what_was_seen_at_the_end(
    crossing, learned
):
    windows = make_windows(crossing, learned.config, learned.task, part=OUTCOME)
    rows = torch.arange(windows.n_rows)
    room, _ = windows.room(rows)
    after = windows.after
    assert torch.equal(after[:-1][room[:-1] > 1], windows.rows[1:, 1:][room[:-1] > 1])
    finals = learned.task.observations.normalize(crossing.observations[np.cumsum(crossing.lengths + 1) - 1])
    np.testing.assert_allclose(after[room == 1].numpy(), finals, rtol=1e-5, atol=1e-5)


def test_the_models_of_a_step_learn_of_logged_steps_alone():
    critic, draw = make_critic(), torch.Generator().manual_seed(0)
    x, after, told = (torch.randn((6, 4, size), generator=draw) for size in (3, 2, 2))
    inside = torch.tensor([[True, True, False, False]] * 6)
    ended = torch.tensor([[False, True, False, False]] * 6)
    before = step_losses(critic, x, after, told, inside, ended)
    x[:, 2:], after[:, 2:], told[:, 2:] = 9.0, 9.0, 9.0
    torch.testing.assert_close(step_losses(critic, x, after, told, inside, ended), before)
    x[:, 1:] = 9.0
    assert all(
        new != old
        for new, old in zip(step_losses(critic, x, after, told, inside, ended), before, strict=True)
    )
    nothing = step_losses(critic, x, after, told, torch.zeros_like(inside), ended)
    assert [float(loss.detach()) for loss in nothing] == [0.0, 0.0, 0.0]


def test_a_horizon_of_one_step_is_refused_before_anything_is_learned(tiny_config):
    with pytest.raises(ConfigError, match="the horizon must be at least 2; got 1"):
        TREBIConfig(horizon=1)
    assert tiny_config.replace(horizon=1).horizon == 1  # the other kind reads a single row


def test_held_out_episodes_are_compared_with_the_critic_that_predicts_them(tiny_config, shipped_dataset):
    config = tiny_config.replace(
        outcome_critic=NetworkConfig("budget"), outcome_training=TrainingConfig(steps=20, batch_size=32)
    )
    kept, held_out = shipped_dataset.split(0.3)
    agent = TREBIAgent(config=config, device="cpu", seed=0).learn(kept, progress_bar=False)
    agent.calibrate(dataset=held_out, risk=0.2)
    by_budget = agent.calibration.excesses
    agent.set_planner(ranking="rescored")
    agent.calibrate(dataset=held_out, risk=0.2)
    assert agent.calibration.excesses == by_budget
