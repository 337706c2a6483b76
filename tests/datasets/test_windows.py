"""Windows of H steps: what they hold, where they may start, and what is still to come at their first step."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trebi_gym.datasets import AffineNormalizer, EpisodeDataset, TrajectoryWindows
from trebi_gym.datasets.windows import discounted_to_go
from trebi_gym.errors import DatasetError

OBSERVATIONS = AffineNormalizer(np.array([1.0, 2.0]), np.array([2.0, 4.0]))
ACTIONS = AffineNormalizer(np.array([0.5]), np.array([0.25]))


def make_dataset(lengths, terminated=None, limit=None, seed=0):
    rng = np.random.default_rng(seed)
    steps, ended = sum(lengths), np.array(terminated or [False] * len(lengths))
    return EpisodeDataset(
        observations=rng.normal(size=(steps + len(lengths), 2)).astype(np.float32),
        actions=rng.normal(size=(steps, 1)).astype(np.float32),
        rewards=rng.normal(size=steps).astype(np.float32),
        costs=rng.uniform(size=steps).astype(np.float32),
        lengths=np.array(lengths),
        terminated=ended,
        truncated=~ended,
        metadata={} if limit is None else {"episode_length": limit},
    )


def make_windows(dataset, horizon, discount=0.9, **options):
    return TrajectoryWindows(dataset, horizon, OBSERVATIONS, ACTIONS, discount, **options)


def starts_of(lengths, horizon, limit):
    return [
        (episode, first)
        for episode, length in enumerate(lengths)
        for first in range(min(length - 1, limit - horizon) + 1)
    ]


def naive_to_go(values, discount):
    return [sum(discount ** (i - t) * values[i] for i in range(t, len(values))) for t in range(len(values))]


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    discount=st.sampled_from([1.0, 0.99, 0.5]),
    seed=st.integers(0, 100),
)
def test_what_is_to_go_agrees_with_a_plain_loop(lengths, discount, seed):
    values = np.random.default_rng(seed).normal(size=sum(lengths))
    found = discounted_to_go(values, np.array(lengths), discount)
    expected = []
    for part in np.split(values, np.cumsum(lengths)[:-1]):
        expected += naive_to_go(part, discount)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    horizon=st.integers(1, 6),
    spare=st.integers(0, 3),
)
def test_every_window_holds_its_rows_its_padding_and_what_is_to_go(lengths, horizon, spare):
    limit = max([*lengths, horizon]) + spare
    dataset = make_dataset(lengths, limit=limit)
    windows = make_windows(dataset, horizon, discount=0.9, cost_discount=0.7)
    expected = starts_of(lengths, horizon, limit)
    assert len(windows) == len(expected)
    padding = np.concatenate([ACTIONS.normalize(np.zeros(1)), OBSERVATIONS.normalize(np.zeros(2))])
    for index, (number, first) in enumerate(expected):
        episode, window = dataset[number], windows[index]
        for row in range(horizon):
            t = first + row
            if t < len(episode):
                raw = np.concatenate(
                    [ACTIONS.normalize(episode.actions[t]), OBSERVATIONS.normalize(episode.observations[t])]
                )
            else:
                raw = padding
            np.testing.assert_allclose(window.trajectory[row], raw, rtol=1e-5, atol=1e-6)
        rewards = episode.rewards.astype(np.float64)[first:]
        costs = episode.costs.astype(np.float64)[first:]
        np.testing.assert_allclose(window.return_to_go, naive_to_go(rewards, 0.9)[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(window.cost_to_go, naive_to_go(costs, 0.7)[0], rtol=1e-4, atol=1e-5)
        assert window.steps_left == limit - first


def test_the_last_starts_of_an_episode_of_full_length_are_left_out():
    assert len(make_windows(make_dataset([10], limit=10), 4)) == 7


def test_an_episode_that_ended_early_starts_windows_up_to_its_last_step():
    assert len(make_windows(make_dataset([3], limit=10), 4)) == 3


def test_a_batch_of_indices_gives_the_same_windows_as_one_by_one():
    windows = make_windows(make_dataset([5, 3, 7]), 4)
    batch = windows[torch.arange(len(windows))]
    assert batch.trajectory.shape == (len(windows), 4, 3)
    for index in range(len(windows)):
        assert torch.equal(batch.trajectory[index], windows[index].trajectory)
        assert batch.cost_to_go[index] == windows[index].cost_to_go


def test_a_termination_penalty_is_added_where_the_task_ended_the_episode_and_only_there():
    dataset = make_dataset([3, 3], terminated=[True, False], limit=3)
    plain = make_windows(dataset, 1, discount=0.5)
    fined = make_windows(dataset, 1, discount=0.5, termination_reward=-100.0, termination_cost=40.0)
    every = torch.arange(6)
    rewards = fined[every].return_to_go - plain[every].return_to_go
    costs = fined[every].cost_to_go - plain[every].cost_to_go
    np.testing.assert_allclose(rewards, [-25, -50, -100, 0, 0, 0], atol=1e-4)
    np.testing.assert_allclose(costs, [10, 20, 40, 0, 0, 0], atol=1e-4)


def test_a_penalty_never_accumulates_and_never_reaches_the_stored_arrays():
    dataset = make_dataset([3, 4], terminated=[True, True])
    rewards, costs = dataset.rewards.copy(), dataset.costs.copy()
    options = {"termination_reward": -100.0, "termination_cost": 100.0}
    first, second = make_windows(dataset, 2, **options), make_windows(dataset, 2, **options)
    assert torch.equal(first[0].cost_to_go, second[0].cost_to_go)
    assert torch.equal(first[0].cost_to_go, first[0].cost_to_go)
    assert torch.equal(first[0].return_to_go, second[0].return_to_go)
    np.testing.assert_array_equal(dataset.rewards, rewards)
    np.testing.assert_array_equal(dataset.costs, costs)


def test_a_window_reads_the_cost_that_its_own_first_action_caused():
    dataset = make_dataset([6], limit=6)
    windows = make_windows(dataset, 2, discount=1.0)
    for t in range(4):
        difference = windows[t].cost_to_go - windows[t + 1].cost_to_go
        np.testing.assert_allclose(difference, dataset.costs[t], atol=1e-5)


def test_a_horizon_longer_than_every_episode_is_refused_with_the_longest_possible():
    with pytest.raises(DatasetError, match=r"the horizon is 8 steps, .* at most 5; take longer episodes"):
        make_windows(make_dataset([5, 3]), 8)


def test_the_costs_to_go_and_the_steps_left_of_all_windows_are_those_of_the_single_ones():
    windows = make_windows(make_dataset([5, 3], limit=9), 2)
    every = windows[torch.arange(len(windows))]
    assert torch.equal(windows.cost_to_go, every.cost_to_go)
    assert torch.equal(windows.steps_left, every.steps_left)


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4), seed=st.integers(0, 100))
def test_a_window_whose_episode_is_cut_short_has_the_sums_of_the_steps_before_the_cut(lengths, seed):
    dataset = make_dataset(lengths, limit=9, seed=seed)
    windows = make_windows(dataset, 1, discount=0.9, cost_discount=0.7)
    every = torch.arange(len(windows))
    steps = torch.from_numpy(np.random.default_rng(seed).integers(1, 10, len(windows))).float()
    found = windows.ending_after(every, steps)
    assert torch.equal(found.trajectory, windows[every].trajectory)
    assert torch.equal(found.steps_left, steps)
    for index, (number, first) in enumerate(starts_of(lengths, 1, 9)):
        stop = first + int(steps[index])
        rewards = dataset[number].rewards.astype(np.float64)[first:stop]
        costs = dataset[number].costs.astype(np.float64)[first:stop]
        np.testing.assert_allclose(found.return_to_go[index], naive_to_go(rewards, 0.9)[0], atol=1e-5)
        np.testing.assert_allclose(found.cost_to_go[index], naive_to_go(costs, 0.7)[0], atol=1e-5)
