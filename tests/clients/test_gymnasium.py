"""Gymnasium's own checker, wrappers and vector environments on our environments and agents."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
from contracts import our_env_ids
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import RecordEpisodeStatistics, RecordVideo

from trebi_gym import Budget, BudgetWrapper
from trebi_gym.rollout import rollout

TASK = "SafePendulum-v0"


@pytest.mark.parametrize("env_id", our_env_ids())
def test_gymnasiums_checker_accepts_every_environment(env_id):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of infinite bounds, which are true
        with gym.make(env_id) as env:
            check_env(env.unwrapped, skip_render_check=True)


def test_gymnasiums_checker_accepts_a_budget_that_is_observed():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(BudgetWrapper(gym.make(TASK), 10.0, observe=True), skip_render_check=True)


def test_record_video_films_an_episode_of_an_agent(tmp_path, tiny_agent):
    env = RecordVideo(gym.make("ShortPendulum-v0", render_mode="rgb_array"), str(tmp_path))
    observation, _ = env.reset(seed=0)
    state, ended = None, False
    while not ended:
        action, state = tiny_agent.predict(observation, state, budget=5.0)
        observation, _, terminated, truncated, _ = env.step(action)
        ended = terminated or truncated
    env.close()
    (film,) = tmp_path.glob("*.mp4")
    assert film.stat().st_size > 0


def test_record_episode_statistics_counts_what_rollout_counts(tiny_agent):
    env = RecordEpisodeStatistics(gym.make("ShortPendulum-v0"))
    observation, _ = env.reset(seed=3)
    state, earned, ended = None, 0.0, False
    while not ended:
        action, state = tiny_agent.predict(observation, state, budget=5.0, deterministic=True)
        observation, reward, terminated, truncated, info = env.step(action)
        earned += reward
        ended = terminated or truncated
    assert info["episode"]["l"] == 6
    assert info["episode"]["r"] == pytest.approx(earned, rel=1e-5)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_both_kinds_of_vector_environments_give_the_costs_of_single_ones(kind, tiny_agent):
    def episodes(envs):
        costs = np.zeros(3)
        for step in rollout(tiny_agent, envs, budgets=[Budget(5.0)] * 3, seed=[7, 8, 9], deterministic=True):
            costs[step.episode[step.active]] += step.costs[step.active]
        envs.close()
        return costs

    mode = {"autoreset_mode": gym.vector.AutoresetMode.DISABLED}
    single = episodes(gym.make_vec("ShortPendulum-v0", 1, vectorization_mode="sync", vector_kwargs=mode))
    many = episodes(gym.make_vec("ShortPendulum-v0", 3, vectorization_mode=kind, vector_kwargs=mode))
    np.testing.assert_allclose(many, single, rtol=1e-6)


@pytest.fixture(autouse=True)
def short_tasks():
    from toy_envs import register_toy_envs

    register_toy_envs()
