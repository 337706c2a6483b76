"""The MuJoCo runners whose speed costs."""

import copy
import os
import re
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env as check_with_gymnasium
from stable_baselines3.common.env_checker import check_env as check_with_stable_baselines

from trebi_gym.envs.rendering import RENDERING_NEEDS, WINDOW_NEEDS
from trebi_gym.errors import ConfigError, RenderingError
from trebi_gym.rollout import make_envs

TASKS = {"SafeHopper-v0": "Hopper", "SafeWalker2d-v0": "Walker2d", "SafeHalfCheetah-v0": "HalfCheetah"}
BOTH = [(env_id, version) for env_id in TASKS for version in ("v4", "v5")]


@pytest.mark.parametrize(("env_id", "version"), BOTH)
def test_a_step_costs_the_distance_that_it_covers_by_its_duration(env_id, version):
    with gym.make(env_id, mujoco_version=version) as env:
        _, info = env.reset(seed=3)
        assert info["cost"] == 0.0
        env.action_space.seed(3)
        for _ in range(30):
            before = float(env.unwrapped.data.qpos[0])
            _, _, terminated, _, info = env.step(env.action_space.sample())
            covered = float(env.unwrapped.data.qpos[0]) - before
            assert info["cost"] == pytest.approx(abs(covered) / env.unwrapped.dt, abs=1e-9)
            assert info["cost"] == abs(info["x_velocity"])
            if terminated:
                break


@pytest.mark.parametrize(("env_id", "version"), BOTH)
@pytest.mark.filterwarnings("ignore:.*out of date")
def test_everything_but_the_cost_is_gymnasiums_own(env_id, version, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo logs there about the plain environments
    with gym.make(env_id, mujoco_version=version) as ours, gym.make(f"{TASKS[env_id]}-{version}") as theirs:
        np.testing.assert_array_equal(ours.reset(seed=5)[0], theirs.reset(seed=5)[0])
        assert ours.action_space == theirs.action_space
        assert ours.spec.max_episode_steps == theirs.spec.max_episode_steps == 1000
        theirs.action_space.seed(5)
        ended = False
        for _ in range(200):
            action = theirs.action_space.sample()
            got, expected = ours.step(action), theirs.step(action)
            np.testing.assert_array_equal(got[0], expected[0])
            assert got[1:4] == expected[1:4]
            if expected[2]:
                ended = True
                break
        assert ended == (env_id != "SafeHalfCheetah-v0"), "hopper and walker fall under random torques"


@pytest.mark.parametrize(("env_id", "version"), BOTH)
@pytest.mark.filterwarnings("ignore")
def test_both_checkers_accept_it(env_id, version):
    with gym.make(env_id, mujoco_version=version) as env:
        check_with_gymnasium(env.unwrapped, skip_render_check=True)
        check_with_stable_baselines(env)


@pytest.mark.parametrize(("env_id", "version"), BOTH)
def test_it_is_rebuilt_from_its_specs_json_in_the_same_version(env_id, version):
    with gym.make(env_id, mujoco_version=version, reset_noise_scale=0.02) as env:
        text = env.spec.to_json()
        first = env.reset(seed=1)[0]
        kind = type(env.unwrapped)
    with gym.make(EnvSpec.from_json(text)) as again:
        assert type(again.unwrapped) is kind
        np.testing.assert_array_equal(again.reset(seed=1)[0], first)
        assert "cost" in again.step(again.action_space.sample())[4]


def test_v5_is_the_default():
    with gym.make("SafeHopper-v0") as env:
        assert type(env.unwrapped).__name__ == "HopperV5"


@pytest.mark.parametrize("unknown", ["v3", 5, None, ["v4"]])
def test_an_unknown_version_is_refused_with_those_that_exist(unknown):
    with pytest.raises(ConfigError, match=f"must be one of v4, v5; got {re.escape(repr(unknown))}"):
        gym.make("SafeHopper-v0", mujoco_version=unknown)


def test_choosing_v4_on_purpose_does_not_warn(recwarn):
    gym.make("SafeHopper-v0", mujoco_version="v4").close()
    assert [str(warning.message) for warning in recwarn if "out of date" in str(warning.message)] == []


@pytest.mark.parametrize(("env_id", "version"), BOTH)
def test_a_copy_has_the_same_version_and_options(env_id, version):
    # copying goes the way of pickling
    with gym.make(env_id, mujoco_version=version, reset_noise_scale=0.25) as env:
        again = copy.deepcopy(env)
        assert type(again.unwrapped) is type(env.unwrapped)
        np.testing.assert_array_equal(again.reset(seed=2)[0], env.reset(seed=2)[0])
        action = env.action_space.sample()
        assert again.step(action)[4]["cost"] == env.step(action)[4]["cost"]


def test_making_one_leaves_no_log_in_the_present_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for env_id in TASKS:
        gym.make(env_id).close()
    assert list(tmp_path.iterdir()) == []


def test_many_at_once_each_report_their_own_cost():
    envs = make_envs("SafeHopper-v0", 3)
    envs.reset(seed=[1, 2, 3])
    infos = envs.step(envs.action_space.sample())[4]
    np.testing.assert_array_equal(infos["cost"], np.abs(infos["x_velocity"]))
    assert len(set(infos["cost"])) == 3
    envs.close()


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_gymnasiums_vector_environments_take_the_version(mode):
    envs = gym.make_vec("SafeHopper-v0", num_envs=2, vectorization_mode=mode, mujoco_version="v4")
    envs.reset(seed=[1, 2])
    costs = []
    for seed in (1, 2):
        with gym.make("SafeHopper-v0", mujoco_version="v4") as env:
            env.reset(seed=seed)
            costs.append(env.step(np.full(3, 0.5, np.float32))[4]["cost"])
    np.testing.assert_array_equal(envs.step(np.full((2, 3), 0.5, np.float32))[4]["cost"], costs)
    envs.close()


def in_another_interpreter(code, **variables):
    environment = {
        name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")
    }
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment | variables, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_importing_the_package_does_not_import_mujoco():
    assert in_another_interpreter("import sys, trebi_gym; print('mujoco' in sys.modules)") == "False"


def test_it_is_made_through_the_packages_name_without_an_import():
    code = "import gymnasium as gym; print(gym.make('trebi_gym:SafeHalfCheetah-v0').spec.id)"
    assert in_another_interpreter(code) == "SafeHalfCheetah-v0"


@pytest.mark.parametrize("env_id", TASKS)
def test_rendering_without_a_render_mode_is_refused(env_id):
    with gym.make(env_id, disable_env_checker=True) as env:
        env.reset(seed=0)
        with pytest.raises(RenderingError, match='made with render_mode="rgb_array"; it was made with'):
            env.render()


DRAW = """
import gymnasium as gym, trebi_gym
import numpy as np
from trebi_gym.errors import RenderingError
env = gym.make("SafeHopper-v0", render_mode="{mode}", mujoco_version="{version}", width=96, height=64)
try:
    env.reset(seed=0)
    env.step(env.action_space.sample())
    print(np.shape(env.render()))
except RenderingError as error:
    print(error)
env.close()
"""


@pytest.mark.parametrize("version", ["v4", "v5"])
def test_it_draws_or_says_what_it_needs(version):
    code = DRAW.format(version=version, mode="rgb_array")
    assert in_another_interpreter(code) in {RENDERING_NEEDS, "(64, 96, 3)"}


def test_it_draws_a_list_of_frames_or_says_what_it_needs():
    code = DRAW.format(version="v5", mode="rgb_array_list")
    assert in_another_interpreter(code) in {RENDERING_NEEDS, "(2, 64, 96, 3)"}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere GLFW needs no display")
@pytest.mark.parametrize(
    ("mode", "needs"),
    [("rgb_array", RENDERING_NEEDS), ("rgb_array_list", RENDERING_NEEDS), ("human", WINDOW_NEEDS)],
)
def test_without_opengl_or_a_display_it_says_what_it_needs_in_the_place_of_an_abort(mode, needs):
    assert in_another_interpreter(DRAW.format(version="v5", mode=mode), MUJOCO_GL="glfw") == needs
