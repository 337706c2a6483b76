"""Behaviour cloning within a budget: it learns from the right episodes, does as they did, and says what is wrong."""

import dataclasses

import numpy as np
import pytest

from trebi_gym.agents.baselines.cloning import TRAINING, BudgetCloning, within_budget
from trebi_gym.datasets import Episode, EpisodeDataset
from trebi_gym.errors import BudgetError, DatasetError, NotLearnedError, ObservationError

SHORT = dataclasses.replace(TRAINING, steps=300, batch_size=64)


def two_ways(seed=0):
    """Cheap episodes act ``0.5 x0``, dear ones ``-0.5 x0``; 20 of each, 10 steps, cost 1 or 3 a step."""
    rng = np.random.default_rng(seed)
    episodes = []
    for index in range(40):
        dear = index % 2
        observations = rng.normal(size=(11, 2)).astype(np.float32)
        actions = (-0.5 if dear else 0.5) * observations[:-1, :1]
        costs = np.full(10, 3.0 if dear else 1.0)
        episodes.append(Episode(observations, actions, np.ones(10), costs, False, True))
    return EpisodeDataset.from_episodes(episodes, {"name": "two ways"})


def test_episodes_within_the_budget_are_those_that_cost_at_most_that():
    dataset = two_ways()
    assert within_budget(dataset, 10.0).tolist() == list(range(0, 40, 2))
    assert within_budget(dataset, 9.99).tolist() == []
    assert len(within_budget(dataset, 30.0)) == 40


def test_a_budget_of_sums_that_only_rounding_is_above_is_kept():
    costs = np.full(10, 0.1)  # adds up to 0.9999999999999999 or a little more than 1
    episode = Episode(np.zeros((11, 2)), np.zeros((10, 1)), np.ones(10), costs * (1 + 1e-12), False, True)
    assert len(within_budget(EpisodeDataset.from_episodes([episode]), 1.0)) == 1


def test_what_was_done_within_the_budget_is_done_and_what_was_done_beyond_is_not():
    policy = BudgetCloning(10.0, training=SHORT).learn(two_ways())
    assert policy.episodes == 20
    observations = np.array([[1.0, 0.3], [-1.0, 0.2], [0.4, -1.0]])
    actions, state = policy.predict(observations)
    assert state is None
    assert actions.shape == (3, 1) and actions.dtype == np.float32
    np.testing.assert_allclose(actions[:, 0], 0.5 * observations[:, 0], atol=0.08)
    single, _ = policy.predict(observations[0])
    np.testing.assert_allclose(single, actions[0], atol=1e-5)


def test_with_every_episode_it_does_what_lies_between():
    policy = BudgetCloning(30.0, training=SHORT).learn(two_ways())
    actions, _ = policy.predict(np.array([[1.0, 0.0]]))
    assert abs(actions[0, 0]) < 0.25


def test_equal_seeds_give_equal_policies_and_other_seeds_others():
    observation = np.array([[0.7, -0.1]])
    found = [
        BudgetCloning(10.0, seed=seed, training=SHORT).learn(two_ways()).predict(observation)[0]
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


def test_actions_stay_within_the_action_space():
    dataset = two_ways()
    policy = BudgetCloning(10.0, training=SHORT).learn(dataset)
    actions, _ = policy.predict(np.array([[50.0, 0.0], [-50.0, 0.0]]))
    assert actions.max() <= dataset.actions.max() and actions.min() >= dataset.actions.min()


def test_no_episode_within_the_budget_is_an_error_that_names_the_cheapest():
    with pytest.raises(DatasetError, match=r"no episode of two ways costs at most 5, the cheapest costs 10"):
        BudgetCloning(5.0, training=SHORT).learn(two_ways())


def test_what_cannot_be_asked_is_refused():
    with pytest.raises(BudgetError, match="at least 0"):
        BudgetCloning(-1.0)
    with pytest.raises(NotLearnedError, match="call learn"):
        BudgetCloning(1.0).predict(np.zeros(2))
    policy = BudgetCloning(10.0, training=dataclasses.replace(SHORT, steps=1)).learn(two_ways())
    with pytest.raises(ObservationError, match=r"\(2,\).*got \(4, 3\)"):
        policy.predict(np.zeros((4, 3)))
    with pytest.raises(ObservationError, match=r"observation\[0, 1\] is nan"):
        policy.predict(np.array([0.0, np.nan]))
    assert policy.predict(np.zeros(2))[0].shape == (1,)
