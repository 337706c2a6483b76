"""Recording: the environment's own steps, of a policy or of a training run."""

import json

import gymnasium as gym
import numpy as np
import pytest
from toy_envs import Scripted, mark_of, register_toy_envs

from trebi_gym.datasets import load, save
from trebi_gym.datasets.generation.collect import collect, first_seed
from trebi_gym.datasets.generation.generate import generate
from trebi_gym.datasets.generation.policies import RandomPolicy
from trebi_gym.datasets.generation.step_recorder import StepRecorder
from trebi_gym.datasets.generation.training_run import record_training
from trebi_gym.errors import DatasetError, EnvironmentContractError

register_toy_envs()
SAC = {"learning_starts": 100, "batch_size": 16, "policy_kwargs": {"net_arch": [8]}}


def assert_equal(first, second):
    for name in ("observations", "actions", "rewards", "costs", "lengths", "terminated", "truncated"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)


def assert_aligned(dataset):
    """Every number of a LedgerEnv's row tells the row's own step and action."""
    for episode in dataset:
        steps = np.arange(len(episode))
        np.testing.assert_allclose(episode.costs, 2.0 + episode.actions[:, 0], rtol=1e-6)
        np.testing.assert_allclose(episode.rewards, 10.0 * steps + episode.actions[:, 0], rtol=1e-5)
        np.testing.assert_allclose(episode.observations[:, 0], np.arange(len(episode) + 1))
        np.testing.assert_allclose(episode.observations[1:, 1], episode.actions[:, 0])
        assert len(set(episode.observations[:, 2])) == 1


@pytest.mark.parametrize("env_id", ["Ledger-v0", "LedgerEarly-v0"])
def test_row_t_of_a_recorded_policy_holds_the_cost_that_action_t_caused(env_id):
    assert_aligned(collect(env_id, Scripted(), steps=30, seed=5, n_envs=3))


@pytest.mark.parametrize("env_id", ["Ledger-v0", "LedgerEarly-v0"])
def test_row_t_of_a_recorded_training_run_holds_the_cost_that_action_t_caused(env_id):
    dataset = record_training(env_id, steps=120, seed=0, hyperparameters=SAC).dataset
    assert_aligned(dataset)
    assert len({round(float(a), 6) for a in dataset.actions[:, 0]}) > 50


def test_episodes_are_kept_in_the_order_in_which_they_started_so_short_ones_are_not_preferred():
    dataset = collect("LedgerEarly-v0", Scripted(), steps=40, seed=7, n_envs=6)
    marks = [float(episode.observations[0, 2]) for episode in dataset]
    np.testing.assert_allclose(
        marks, [mark_of(first_seed(7) + index) for index in range(len(dataset))], rtol=1e-6
    )
    assert dataset.n_steps >= 40
    assert dataset.n_steps - len(dataset[-1]) < 40


def test_ends_by_the_task_are_terminals_and_ends_by_the_time_limit_are_timeouts():
    early = collect("LedgerEarly-v0", Scripted(), steps=10, seed=0)
    limited = collect("Ledger-v0", Scripted(), steps=10, seed=0)
    assert early.terminated.all()
    assert not early.truncated.any()
    assert limited.truncated.all()
    assert not limited.terminated.any()
    assert limited.lengths.tolist() == [5, 5]


def test_uniform_actions_fill_the_whole_action_space():
    dataset = generate("SafePendulum-v0", "random", steps=400, seed=1)
    assert dataset.n_steps == 400
    assert np.abs(dataset.actions).max() > 1.9
    assert abs(dataset.actions.mean()) < 0.2
    assert dataset.metadata["name"] == "SafePendulum-random-v0"
    assert dataset.metadata["algorithm"] == "uniform actions"


def test_the_same_seed_records_the_same_steps_and_another_seed_others():
    first = generate("SafePendulum-v0", "random", steps=200, seed=1)
    assert_equal(first, generate("SafePendulum-v0", "random", steps=200, seed=1))
    assert not np.array_equal(first.actions, generate("SafePendulum-v0", "random", steps=200, seed=2).actions)


def test_a_medium_replay_holds_the_steps_of_the_training_run_and_is_the_same_under_one_seed():
    counted = []
    first = generate(
        "SafePendulum-v0", "medium-replay", steps=400, seed=3, hyperparameters=SAC, progress=counted.append
    )
    assert first.lengths.tolist() == [200, 200]
    assert first.truncated.all()
    assert np.abs(first.actions).max() > 1.5
    assert sum(counted) == 400
    assert first.metadata["algorithm"] == "stable_baselines3.SAC"
    assert first.metadata["training_steps"] == 400
    assert first.metadata["hyperparameters"]["learning_starts"] == 100
    assert "dropped_steps" not in first.metadata
    assert_equal(first, generate("SafePendulum-v0", "medium-replay", steps=400, seed=3, hyperparameters=SAC))


@pytest.mark.parametrize("datatype", ["medium", "expert"])
def test_rollouts_of_a_trained_policy_are_recorded_and_are_the_same_under_one_seed(datatype):
    def make():
        return generate("Ledger-v0", datatype, steps=20, seed=0, training_steps=200, hyperparameters=SAC)

    dataset = make()
    assert_aligned(dataset)
    assert dataset.n_steps == 20
    step = dataset.metadata["policy_step"]
    assert step == 200 if datatype == "expert" else 0 < step <= 200
    assert_equal(dataset, make())


def test_the_rest_of_an_episode_that_training_broke_off_is_dropped_and_counted():
    dataset = record_training("Ledger-v0", steps=113, seed=0, hyperparameters=SAC).dataset
    assert dataset.n_steps == 110
    assert dataset.metadata["dropped_steps"] == 3


def test_a_training_run_too_short_for_one_episode_is_refused():
    with pytest.raises(DatasetError, match="no finished episode"):
        record_training("Ledger-v0", steps=3, seed=0, hyperparameters=SAC)


def test_the_recorder_keeps_the_action_that_was_executed_and_forgets_a_broken_off_episode():
    recorder = StepRecorder(gym.make("Ledger-v0"))
    recorder.reset(seed=0)
    recorder.step(np.array([0.1], np.float32))
    assert recorder.unfinished_steps == 1
    recorder.reset(seed=1)
    action = np.zeros(1, np.float32)
    for value in (1.75, -0.5, 0.25, 2.0, -2.0):
        action[0] = value  # the same array again, as many policies hand out
        recorder.step(action)
    (episode,) = recorder.episodes
    assert episode.actions.tolist() == [[1.75], [-0.5], [0.25], [2.0], [-2.0]]
    assert episode.truncated
    assert not episode.terminated
    assert recorder.unfinished_steps == 0


def test_an_environment_without_cost_is_refused_with_the_remedy():
    with pytest.raises(EnvironmentContractError, match=r"no \"cost\" .*CostWrapper"):
        collect("LedgerFree-v0", Scripted(), steps=5, seed=0)
    with pytest.raises(EnvironmentContractError, match=r"no \"cost\" .*CostWrapper"):
        record_training("LedgerFree-v0", steps=20, seed=0, hyperparameters=SAC)


def test_an_environment_that_was_registered_with_a_class_can_be_recorded_too(tmp_path):
    dataset = collect("LedgerCallable-v0", Scripted(), steps=5, seed=0)
    assert dataset.metadata["env_id"] == "LedgerCallable-v0"
    save(dataset, tmp_path / "a.hdf5")
    assert load(tmp_path / "a.hdf5").metadata["env_spec"] is None


def test_metadata_of_a_run_with_functions_among_its_hyperparameters_go_into_json():
    record = record_training(
        "Ledger-v0", steps=10, seed=0, hyperparameters={**SAC, "learning_rate": lambda left: 1e-3 * left}
    )
    document = json.loads(json.dumps(dict(record.dataset.metadata)))
    assert "lambda" in document["hyperparameters"]["learning_rate"]


@pytest.mark.parametrize("steps", [0, -5])
def test_a_number_of_steps_that_is_not_positive_is_refused(steps):
    with pytest.raises(DatasetError, match=f"steps must be a whole number of at least 1; got {steps}"):
        generate("Ledger-v0", "random", steps=steps, seed=0)
    with pytest.raises(DatasetError, match="steps must be a whole number of at least 1"):
        collect("Ledger-v0", Scripted(), steps=steps, seed=0)


def test_an_unknown_kind_of_data_is_refused():
    with pytest.raises(DatasetError, match="datatype must be one of"):
        generate("Ledger-v0", "best", steps=5, seed=0)


def test_uniform_actions_need_a_bounded_action_space():
    with pytest.raises(DatasetError, match="bounded Box action space"):
        RandomPolicy(gym.spaces.Box(-np.inf, np.inf, (2,)), seed=0)
    with pytest.raises(DatasetError, match="bounded Box action space"):
        RandomPolicy(gym.spaces.Discrete(3), seed=0)


def test_what_was_recorded_can_be_saved_and_loaded(tmp_path):
    dataset = collect("Ledger-v0", Scripted(), steps=10, seed=0)
    save(dataset, tmp_path / "a.hdf5")
    assert_equal(load(tmp_path / "a.hdf5"), dataset)
    assert dict(load(tmp_path / "a.hdf5").metadata) == dict(dataset.metadata)


def test_the_recorder_refuses_a_cost_that_is_no_number_at_the_step_where_it_comes():
    class Priceless(gym.Wrapper):
        def step(self, action):
            observation, reward, terminated, truncated, info = self.env.step(action)
            return observation, reward, terminated, truncated, {**info, "cost": None}

    recorder = StepRecorder(Priceless(gym.make("Ledger-v0")))
    recorder.reset(seed=0)
    with pytest.raises(
        EnvironmentContractError, match=r'info\["cost"\] must give one number a step; got None'
    ):
        recorder.step(np.zeros(1, np.float32))
