"""Stable-Baselines3's checker, evaluation, monitors and callbacks on our environments and agents."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
from contracts import our_env_ids
from stable_baselines3.common.callbacks import (
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    LogEveryNTimesteps,
    ProgressBarCallback,
)
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor, load_results
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from trebi_gym import BudgetWrapper
from trebi_gym.agents import TREBIAgent
from trebi_gym.errors import ConfigError

TASK = "ShortPendulum-v0"


@pytest.fixture(autouse=True)
def short_tasks():
    from toy_envs import register_toy_envs

    register_toy_envs()


def budgeted():
    return BudgetWrapper(gym.make(TASK), 5.0, observe=True)


@pytest.mark.parametrize("env_id", our_env_ids())
def test_the_checker_accepts_every_environment(env_id):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it advises to scale actions to [-1, 1]
        with gym.make(env_id) as env:
            check_env(env, skip_render_check=True)


def test_evaluate_policy_evaluates_an_agent_whose_budget_is_observed(tiny_agent):
    rewards, lengths = evaluate_policy(
        tiny_agent, Monitor(budgeted()), n_eval_episodes=2, return_episode_rewards=True
    )
    assert lengths == [6, 6]
    assert np.isfinite(rewards).all()


@pytest.mark.parametrize("kind", [DummyVecEnv, SubprocVecEnv])
def test_evaluate_policy_evaluates_an_agent_in_vector_environments(kind, tiny_agent):
    options = {"wrapper_class": BudgetWrapper, "wrapper_kwargs": {"budget": 5.0, "observe": True}}
    envs = make_vec_env("SafePendulum-v0", 2, vec_env_cls=kind, seed=0, **options)
    mean, _ = evaluate_policy(tiny_agent, envs, n_eval_episodes=2)
    envs.close()
    assert np.isfinite(mean)


def test_a_monitor_writes_the_costs_beside_the_rewards(tmp_path):
    pytest.importorskip("pandas")
    env = Monitor(gym.make(TASK), str(tmp_path / "log"), info_keywords=("cost",))
    env.reset(seed=0)
    ended = False
    while not ended:
        *_, terminated, truncated, _ = env.step(env.action_space.sample())
        ended = terminated or truncated
    env.close()
    table = load_results(str(tmp_path))
    assert table["l"].tolist() == [6]
    assert np.isfinite(table["cost"]).all()


def learned(tiny_config, shipped_dataset, callback, env=None):
    agent = TREBIAgent(env, config=tiny_config, seed=0, device="cpu")
    return agent.learn(shipped_dataset, total_steps=20, callback=callback, progress_bar=False)


def test_the_progress_bar_callback_counts_optimiser_steps(tiny_config, shipped_dataset):
    pytest.importorskip("rich")
    callback = ProgressBarCallback()
    learned(tiny_config, shipped_dataset, callback)
    assert callback.pbar.n == 20


def test_the_evaluation_callback_is_refused_before_learning_begins(tmp_path, tiny_config, shipped_dataset):
    # an agent acts once all its models are learned
    envs = make_vec_env(budgeted, 1, seed=0)
    callback = EvalCallback(envs, n_eval_episodes=1, eval_freq=20, log_path=str(tmp_path), verbose=0)
    with pytest.raises(ConfigError, match="EvalCallback cannot be used while learning"):
        learned(tiny_config, shipped_dataset, callback, env=envs)


def test_the_logging_callback_logs_at_its_own_pace(tmp_path, tiny_config, shipped_dataset):
    agent = TREBIAgent(config=tiny_config, seed=0, device="cpu")
    agent.set_logger(configure(str(tmp_path), ["csv"]))
    agent.learn(
        shipped_dataset, total_steps=20, callback=LogEveryNTimesteps(5), log_interval=1000, progress_bar=False
    )
    assert len((tmp_path / "progress.csv").read_text().splitlines()) > 3


def test_the_checkpoint_callback_saves_agents_that_load(tmp_path, tiny_config, shipped_dataset):
    envs = VecNormalize(make_vec_env(lambda: gym.make(TASK), 1, seed=0))
    callback = CheckpointCallback(10, str(tmp_path), save_vecnormalize=True)
    learned(tiny_config, shipped_dataset, CallbackList([callback]), env=envs)
    saved = sorted(tmp_path.glob("*_steps.zip"))
    assert [path.name.split("_")[-2] for path in saved] == ["10", "20"]
    for path in saved:
        TREBIAgent.load(path, device="cpu")
    assert list(tmp_path.glob("*vecnormalize*.pkl"))
