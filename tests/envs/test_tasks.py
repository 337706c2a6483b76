"""SafePendulum-v0 and SafeReacher-v0: the recorded steps, the interfaces' checkers, seeds and specs."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env as check_gymnasium_env
from safetensors.numpy import load_file
from stable_baselines3.common.env_checker import check_env as check_sb3_env

import trebi_gym
from trebi_gym.costs import REACHER_GOAL
from trebi_gym.envs.pendulum import SafePendulumEnv

DATA = Path(__file__).parent.parent / "data"
IDS = ["SafePendulum-v0", "SafeReacher-v0"]
LENGTHS = {"SafePendulum-v0": 200, "SafeReacher-v0": 50}


def episode(env, seed, steps=30):
    """Return the numbers of the first steps of an episode under seeded uniform actions."""
    env.action_space.seed(seed)
    observation, info = env.reset(seed=seed)
    rows = [np.append(np.ravel(observation), np.ravel(info["cost"]))]
    for _ in range(steps):
        observation, reward, _, _, info = env.step(env.action_space.sample())
        rows.append(np.concatenate([np.ravel(observation), np.ravel(reward), np.ravel(info["cost"])]))
    return rows


def assert_same_numbers(first, second):
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_pendulum_steps_agree_with_the_recorded_ones():
    data = load_file(DATA / "safe_pendulum.safetensors")
    env = gym.make("SafePendulum-v0", max_episode_steps=-1)
    pendulum = env.unwrapped
    assert isinstance(pendulum, SafePendulumEnv)
    env.reset(seed=0)
    found = {key: [] for key in ("next_observation", "reward", "next_state")}
    for row in range(len(data["action"])):
        pendulum.state = (float(data["theta"][row]), float(data["theta_dot"][row]))
        observation, reward, terminated, truncated, _ = env.step(data["action"][row])
        assert not terminated
        assert not truncated
        found["next_observation"].append(observation)
        found["reward"].append(reward)
        found["next_state"].append(pendulum.state)
    for key, values in found.items():
        np.testing.assert_allclose(values, data[key], rtol=0, atol=1e-14, err_msg=key)


def test_pendulum_charges_the_state_before_the_step():
    env = gym.make("SafePendulum-v0")
    env.reset(seed=0)
    costs = []
    angles = []
    for _ in range(100):
        angles.append(np.rad2deg(env.unwrapped.state[0]))
        costs.append(env.step(np.array([2.0 if env.unwrapped.state[1] > 0 else -2.0], np.float32))[4]["cost"])
    wrapped = (np.array(angles) + 180.0) % 360.0 - 180.0
    expected = np.maximum(0.0, (50.0 - np.abs(25.0 - wrapped)) / 50.0)
    assert max(costs) > 0.5
    np.testing.assert_allclose(costs, expected, atol=1e-12)


def test_pendulum_torque_saturates_at_an_action_of_one():
    nexts = []
    for action in (1.0, 2.0):
        env = SafePendulumEnv()
        env.reset(seed=0)
        env.step(np.array([action], np.float32))
        nexts.append(env.state)
    assert nexts[0] == nexts[1]


def test_pendulum_says_that_it_must_be_reset_first_and_what_shape_an_action_has():
    env = SafePendulumEnv()
    with pytest.raises(gym.error.ResetNeeded, match="reset"):
        env.step(np.zeros(1, np.float32))
    env.reset()
    with pytest.raises(ValueError, match=r"shape \(1,\); got shape \(2,\)"):
        env.step(np.zeros(2, np.float32))


def test_reacher_episodes_agree_with_the_recorded_ones():
    data = load_file(DATA / "safe_reacher.safetensors")
    env = gym.make("SafeReacher-v0")
    for k in range(6):
        env.reset(seed=0)
        env.unwrapped.set_state(data[f"ep{k}.qpos0"], data[f"ep{k}.qvel0"])
        found = {"obs": [], "rew": [], "cost": []}
        for action in data[f"ep{k}.act"]:
            observation, reward, _, truncated, info = env.step(action.astype(np.float32))
            found["obs"].append(observation)
            found["rew"].append(reward)
            found["cost"].append(info["cost"])
        assert truncated
        # exact with the simulator that recorded them; rounding leaves room for another build of it
        np.testing.assert_allclose(found["obs"], data[f"ep{k}.obs"][1:], rtol=0, atol=1e-9)
        np.testing.assert_allclose(found["rew"], data[f"ep{k}.rew"], rtol=0, atol=1e-9)
        np.testing.assert_allclose(found["cost"], data[f"ep{k}.cost"], rtol=0, atol=1e-7)


def test_reacher_rewards_follow_from_the_recorded_fingertips_alone():
    data = load_file(DATA / "safe_reacher.safetensors")
    env = gym.make("SafeReacher-v0").unwrapped
    env.reset(seed=0)
    for k in range(6):
        distance = np.linalg.norm(data[f"ep{k}.tip"][:-1] - REACHER_GOAL, axis=1)
        effort = np.square(data[f"ep{k}.act"].astype(np.float32)).sum(axis=1)
        np.testing.assert_allclose(-distance - effort, data[f"ep{k}.rew"], rtol=0, atol=1e-12)
    # and the environment uses that very formula, on its own fingertip before the step
    action = np.array([0.3, -0.7], np.float32)
    expected = -np.linalg.norm(env.data.body("fingertip").xpos - REACHER_GOAL) - np.square(action).sum()
    assert env.step(action)[1] == pytest.approx(expected, abs=1e-12)


def test_starts_lie_within_the_stated_ranges_and_fill_them():
    pendulum, reacher = gym.make("SafePendulum-v0"), gym.make("SafeReacher-v0")
    starts, qpos, qvel = [], [], []
    for seed in range(200):
        pendulum.reset(seed=seed)
        starts.append(pendulum.unwrapped.state)
        reacher.reset(seed=seed)
        qpos.append(reacher.unwrapped.data.qpos.copy())
        qvel.append(reacher.unwrapped.data.qvel.copy())
    for values, half_width in (
        (np.array(starts) - [np.pi, 0.0], [0.2, 0.1]),
        (np.array(qpos)[:, :2], [0.1, 0.1]),
        (np.array(qvel)[:, :2], [0.005, 0.005]),
    ):
        highest = np.abs(values).max(axis=0)
        assert np.all(highest <= half_width)
        assert np.all(highest > 0.9 * np.array(half_width))
    assert np.all(np.array(qpos)[:, 2:] == 1.0)
    assert np.all(np.array(qvel)[:, 2:] == 0.0)


@pytest.mark.parametrize("env_id", IDS)
def test_gymnasium_accepts_the_environment(env_id):
    with warnings.catch_warnings():
        # advice on spaces, not faults: SafePendulum's torque is +-2, SafeReacher's observation unbounded
        warnings.simplefilter("ignore", UserWarning)
        check_gymnasium_env(gym.make(env_id).unwrapped, skip_render_check=True)
        check_gymnasium_env(gym.make(env_id, disable_env_checker=True), skip_render_check=True)


@pytest.mark.parametrize("env_id", IDS)
def test_stable_baselines3_accepts_the_environment(env_id):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        check_sb3_env(gym.make(env_id))


@pytest.mark.parametrize("env_id", IDS)
def test_one_seed_gives_one_episode_and_another_seed_another(env_id):
    first, again, other = (episode(gym.make(env_id), seed) for seed in (3, 3, 4))
    assert_same_numbers(first, again)
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("env_id", IDS)
def test_vector_environments_are_deterministic_and_equal_their_single_ones(env_id):
    def make():
        return gym.make_vec(env_id, num_envs=3, vectorization_mode="sync")

    assert_same_numbers(episode(make(), 5), episode(make(), 5))
    vector, singles = make(), [gym.make(env_id) for _ in range(3)]
    observations, infos = vector.reset(seed=5)
    for index, env in enumerate(singles):
        np.testing.assert_array_equal(observations[index], env.reset(seed=5 + index)[0])
    assert infos["cost"].tolist() == [0.0, 0.0, 0.0]
    vector.action_space.seed(0)
    for _ in range(20):
        actions = vector.action_space.sample()
        observations, rewards, _, _, infos = vector.step(actions)
        for index, env in enumerate(singles):
            observation, reward, _, _, info = env.step(actions[index])
            np.testing.assert_array_equal(observations[index], observation)
            assert rewards[index] == reward
            assert infos["cost"][index] == info["cost"]


@pytest.mark.parametrize("env_id", IDS)
def test_an_episode_is_truncated_at_its_length_and_every_step_has_a_float_cost(env_id):
    env = gym.make(env_id)
    env.action_space.seed(0)
    _, info = env.reset(seed=0)
    assert info["cost"] == 0.0
    assert type(info["cost"]) is float
    for step in range(1, LENGTHS[env_id] + 1):
        _, _, terminated, truncated, info = env.step(env.action_space.sample())
        assert type(info["cost"]) is float
        assert not terminated
        assert truncated == (step == LENGTHS[env_id])


@pytest.mark.parametrize("env_id", IDS)
def test_a_spec_written_as_json_rebuilds_the_environment(env_id):
    env = gym.make(env_id)
    text = env.spec.to_json()
    json.loads(text)
    rebuilt = gym.make(EnvSpec.from_json(text))
    assert str(rebuilt) == str(env)
    assert_same_numbers(episode(rebuilt, 1), episode(env, 1))


def test_registering_again_changes_nothing_and_warns_of_nothing():
    before = {env_id: gym.spec(env_id) for env_id in IDS}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trebi_gym.register_envs()
    assert all(gym.spec(env_id) is spec for env_id, spec in before.items())


def run_python(code):
    return subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_an_environment_is_made_by_its_module_prefix_without_an_import():
    result = run_python(
        "import gymnasium as gym; env = gym.make('trebi_gym:SafeReacher-v0'); print(env.reset(seed=0)[1])"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "{'cost': 0.0}"


def test_importing_the_package_loads_neither_mujoco_nor_torch():
    result = run_python(
        "import sys, trebi_gym; print([m for m in ('mujoco', 'torch', 'PIL') if m in sys.modules])"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"
