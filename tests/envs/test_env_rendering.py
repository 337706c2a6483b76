"""Frames: SafePendulum draws anywhere; SafeReacher draws, or says in one sentence what it needs.

SafeReacher is drawn in another interpreter, since MuJoCo without OpenGL can abort the one that it runs in.
"""

import os
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest

from trebi_gym.envs.pendulum import SafePendulumEnv, draw_pendulum
from trebi_gym.envs.rendering import RENDERING_NEEDS
from trebi_gym.errors import RenderingError

DRAW = """
import gymnasium as gym
import trebi_gym
from trebi_gym.errors import RenderingError

env = gym.make("{env_id}", render_mode="rgb_array")
env.reset(seed=0)
env.step(env.action_space.sample())
try:
    frame = env.render()
except RenderingError as error:
    print("REFUSED", error)
else:
    print("DRAWN", frame.shape, frame.dtype, int(frame.max()) - int(frame.min()) > 50)
env.close()
"""


def draw(env_id, *, display=True, **variables):
    environment = {**os.environ, **variables}
    if not display:
        for name in ("DISPLAY", "WAYLAND_DISPLAY"):
            environment.pop(name, None)
    result = subprocess.run(
        [sys.executable, "-c", DRAW.format(env_id=env_id)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_pendulum_draws_without_a_display():
    assert draw("SafePendulum-v0", display=False) == "DRAWN (500, 500, 3) uint8 True"


def test_reacher_draws_or_says_what_it_needs():
    assert draw("SafeReacher-v0") in {f"REFUSED {RENDERING_NEEDS}", "DRAWN (480, 480, 3) uint8 True"}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere GLFW needs no display")
def test_reacher_without_opengl_says_what_it_needs_in_one_sentence():
    assert draw("SafeReacher-v0", display=False, MUJOCO_GL="glfw") == f"REFUSED {RENDERING_NEEDS}"
    assert RENDERING_NEEDS.count(". ") == 0
    assert RENDERING_NEEDS.endswith(".")


def red_share(frame):
    """Return the share of pixels in which red stands out."""
    frame = frame.astype(int)
    return np.mean((frame[..., 0] - frame[..., 1] > 15) & (frame[..., 0] - frame[..., 2] > 15))


def test_the_frame_shows_the_pole_where_it_is_and_the_hazard_where_it_costs():
    hanging, leaning = (draw_pendulum(theta, 0.0).astype(int) for theta in (np.pi, np.pi / 2))
    # the pole's blue is below the pivot when hanging, left of it at 90 degrees counter-clockwise
    assert hanging[380, 250, 2] > hanging[380, 250, 0] + 20
    assert leaning[250, 120, 2] > leaning[250, 120, 0] + 20
    assert hanging[250, 120].tolist() == [255, 255, 255]
    # 25 degrees to the left is the deepest red; 100 degrees to the left and 50 to the right are free
    for degrees, red in ((25, True), (-10, True), (100, False), (-50, False)):
        radians = np.deg2rad(degrees)
        row, column = round(250 - 150 * np.cos(radians)), round(250 - 150 * np.sin(radians))
        assert (hanging[row, column, 0] > hanging[row, column, 1] + 5) == red
    assert 0.05 < red_share(hanging) < 0.25


def test_the_frame_shows_the_torque_and_its_direction():
    none, left, right = (draw_pendulum(np.pi, torque).astype(int) for torque in (0.0, 2.0, -2.0))
    changed_left = np.abs(left - none).sum(axis=-1) > 0
    changed_right = np.abs(right - none).sum(axis=-1) > 0
    assert changed_left[:, :240].sum() > 500 > changed_left[:, 260:].sum()
    assert changed_right[:, 260:].sum() > 500 > changed_right[:, :240].sum()


def test_a_frame_belongs_to_the_caller():
    env = SafePendulumEnv(render_mode="rgb_array")
    env.reset(seed=0)
    frame = env.render()
    expected = frame.copy()
    frame[:] = 0
    np.testing.assert_array_equal(env.render(), expected)


def test_rendering_before_the_first_reset_is_refused():
    with pytest.raises(gym.error.ResetNeeded, match=r"reset\(\)"):
        SafePendulumEnv(render_mode="rgb_array").render()


@pytest.mark.parametrize("env_id", ["SafePendulum-v0", "SafeReacher-v0"])
def test_rendering_without_a_render_mode_is_refused(env_id):
    env = gym.make(env_id, disable_env_checker=True)
    env.reset(seed=0)
    with pytest.raises(RenderingError, match='render_mode="rgb_array"'):
        env.render()
