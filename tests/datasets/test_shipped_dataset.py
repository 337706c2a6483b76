"""The data set that ships: what it promises, and that its numbers are those of the environment."""

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec

from trebi_gym.costs import pendulum_cost
from trebi_gym.datasets import resolve
from trebi_gym.datasets.recipes import RECIPES, dataset_name, maximum_budget, recipe_for_env
from trebi_gym.errors import DatasetError

NAME = "SafePendulum-medium-replay-v0"


def test_it_is_small_enough_to_ship():
    assert resolve(NAME).stat().st_size < 1_000_000


def test_it_holds_a_hundred_episodes_that_the_time_limit_ended(shipped_dataset):
    assert shipped_dataset.lengths.tolist() == [200] * 100
    assert shipped_dataset.truncated.all()
    assert not shipped_dataset.terminated.any()


def test_its_metadata_say_where_it_comes_from(shipped_dataset):
    metadata = shipped_dataset.metadata
    assert metadata["name"] == NAME
    assert metadata["algorithm"] == "stable_baselines3.SAC"
    assert metadata["hyperparameters"]["learning_rate"] == 1e-3
    assert metadata["hyperparameters"]["batch_size"] == 256
    assert metadata["training_steps"] == 20_000
    assert metadata["datatype"] == "medium-replay"
    assert metadata["episode_length"] == 200
    assert isinstance(metadata["seed"], int)
    assert {"python", "torch", "gymnasium", "stable-baselines3", "numpy"} <= set(metadata["versions"])


def test_its_environment_spec_rebuilds_the_environment_with_its_cost(shipped_dataset):
    env = gym.make(EnvSpec.from_json(shipped_dataset.metadata["env_spec"]))
    env.reset(seed=0)
    _, _, _, _, info = env.step(env.action_space.sample())
    assert env.spec.max_episode_steps == 200
    assert isinstance(info["cost"], float)


def test_its_statistics_are_those_of_its_arrays(shipped_dataset):
    statistics = shipped_dataset.metadata["statistics"]
    assert statistics["episodes"] == len(shipped_dataset)
    assert statistics["steps"] == shipped_dataset.n_steps
    for key, values in (
        ("returns", shipped_dataset.episode_returns),
        ("costs", shipped_dataset.episode_costs),
    ):
        expected = {"mean": values.mean(), "min": values.min(), "max": values.max()}
        assert statistics[key] == pytest.approx(expected, rel=1e-6)


def test_its_actions_are_the_executed_ones_and_not_rescaled_to_one(shipped_dataset):
    actions = shipped_dataset.actions
    assert np.mean(np.abs(actions) > 1.0) > 0.05
    assert np.abs(actions).max() <= 2.0


def test_its_rewards_costs_and_next_observations_are_those_of_the_environments_own_step(shipped_dataset):
    env = gym.make("SafePendulum-v0", max_episode_steps=-1)
    env.reset(seed=0)
    for number in (0, 37, 99):
        episode = shipped_dataset[number]
        for t in range(0, 200, 3):
            cosine, sine, speed = episode.observations[t].astype(np.float64)
            state = (float(np.arctan2(sine, cosine)), float(speed))
            env.unwrapped.state = state
            observation, reward, _, _, _ = env.unwrapped.step(episode.actions[t])
            cost = pendulum_cost(episode.observations[t], episode.actions[t], observation, {})
            np.testing.assert_allclose(observation, episode.observations[t + 1], atol=2e-5)
            np.testing.assert_allclose(reward, episode.rewards[t], atol=2e-5)
            np.testing.assert_allclose(cost, episode.costs[t], atol=2e-5)


def test_its_budgets_are_the_published_ones(shipped_dataset):
    assert maximum_budget(shipped_dataset).value == 60.0
    recipe = RECIPES[NAME]
    assert (recipe.maximum_budget, recipe.budget_factor, recipe.episode_length) == (60.0, 0.336, 200)
    reacher = RECIPES["SafeReacher-medium-replay-v0"]
    assert (reacher.maximum_budget, reacher.budget_factor, reacher.episode_length) == (14.29, 0.728, 50)
    assert recipe_for_env("SafePendulum-v0") is recipe
    assert recipe_for_env("Nothing-v0") is None


def test_data_without_a_published_budget_get_one_from_their_own_costs(shipped_dataset):
    part = shipped_dataset.select(range(20))
    unnamed = dataclasses.replace(part, metadata={})
    found = maximum_budget(unnamed)
    assert found.value == pytest.approx(np.quantile(part.episode_costs, 0.9))
    assert "quantile" in found.rule


def test_names_of_data_sets_put_the_kind_before_the_version():
    assert dataset_name("SafePendulum-v0", "medium-replay") == NAME
    assert dataset_name("My/Env-v12", "random") == "My/Env-random-v12"
    assert dataset_name("Unversioned", "expert") == "Unversioned-expert"
    with pytest.raises(DatasetError, match="datatype must be one of random, medium-replay, medium, expert"):
        dataset_name("SafePendulum-v0", "best")
