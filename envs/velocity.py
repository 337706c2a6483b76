"""SafeHopper-v0, SafeWalker2d-v0, SafeHalfCheetah-v0: Gymnasium's MuJoCo runners, where speed costs.

The dynamics, observations, rewards and ends are Gymnasium's own, of version v5 or, on request, v4. The cost of a step is
``trebi_gym.costs.velocity_cost``, |x_velocity| in m/s during that step; the registered ids put it into ``info["cost"]``
and end an episode after 1000 steps.

| id | observation | action | seconds a step | the task ends it |
|---|---|---|---|---|
| SafeHopper-v0 | 11: height [m], 4 angles [rad], 6 velocities [m/s, rad/s] | 3 torques in [-1, 1] | 0.008 | fallen |
| SafeWalker2d-v0 | 17: height [m], 7 angles [rad], 9 velocities [m/s, rad/s] | 6 torques in [-1, 1] | 0.008 | fallen |
| SafeHalfCheetah-v0 | 17: height [m], 7 angles [rad], 9 velocities [m/s, rad/s] | 6 torques in [-1, 1] | 0.05 | never |

The position along x is not observed. Every other keyword argument of Gymnasium's environments (``render_mode``, ``width``,
``reset_noise_scale``, ...) is passed on by ``gym.make``.
"""

from __future__ import annotations

import logging
from typing import Any

import gymnasium as gym
import mujoco
from gymnasium.envs.mujoco import (
    half_cheetah_v4,
    half_cheetah_v5,
    hopper_v4,
    hopper_v5,
    walker2d_v4,
    walker2d_v5,
)

from trebi_gym.envs.rendering import require_mujoco_rendering
from trebi_gym.errors import ConfigError

_logger = logging.getLogger(__name__)


class _Runner:
    """What all of them do beside Gymnasium's own: load quietly, and say what drawing needs."""

    def _initialize_simulation(self) -> Any:
        # MuJoCo 4 would append a remark on Gymnasium's model to MUJOCO_LOG.TXT in the present folder at every load
        before = mujoco.get_mju_user_warning()
        mujoco.set_mju_user_warning(lambda message: _logger.debug("MuJoCo: %s", message))
        try:
            return super()._initialize_simulation()  # type: ignore[misc]
        finally:
            mujoco.set_mju_user_warning(before)

    def render(self) -> Any:
        """Return the frame of ``render_mode``, after asking whether MuJoCo can draw here.

        Without OpenGL it may abort the interpreter.

        Raises:
            RenderingError: MuJoCo cannot draw on this machine; the message says what it needs.
        """
        if getattr(self, "render_mode", None) is not None:
            require_mujoco_rendering()
        return super().render()  # type: ignore[misc]


class HopperV5(_Runner, hopper_v5.HopperEnv):
    """One leg that hops forward; see the module's table."""


class HopperV4(_Runner, hopper_v4.HopperEnv):
    """As ``HopperV5``, in Gymnasium's version v4."""


class Walker2dV5(_Runner, walker2d_v5.Walker2dEnv):
    """Two legs that walk forward; see the module's table."""


class Walker2dV4(_Runner, walker2d_v4.Walker2dEnv):
    """As ``Walker2dV5``, in Gymnasium's version v4."""


class HalfCheetahV5(_Runner, half_cheetah_v5.HalfCheetahEnv):
    """A cheetah in the plane that runs forward; see the module's table."""


class HalfCheetahV4(_Runner, half_cheetah_v4.HalfCheetahEnv):
    """As ``HalfCheetahV5``, in Gymnasium's version v4."""


def make_hopper(mujoco_version: str = "v5", **kwargs: Any) -> gym.Env[Any, Any]:
    """Make the environment of SafeHopper-v0, still without its cost.

    Raises:
        ConfigError: there is no such version.
    """
    return _make({"v4": HopperV4, "v5": HopperV5}, mujoco_version, kwargs)


def make_walker2d(mujoco_version: str = "v5", **kwargs: Any) -> gym.Env[Any, Any]:
    """Make the environment of SafeWalker2d-v0, still without its cost.

    Raises:
        ConfigError: there is no such version.
    """
    return _make({"v4": Walker2dV4, "v5": Walker2dV5}, mujoco_version, kwargs)


def make_half_cheetah(mujoco_version: str = "v5", **kwargs: Any) -> gym.Env[Any, Any]:
    """Make the environment of SafeHalfCheetah-v0, still without its cost.

    Raises:
        ConfigError: there is no such version.
    """
    return _make({"v4": HalfCheetahV4, "v5": HalfCheetahV5}, mujoco_version, kwargs)


def _make(versions: dict[str, Any], chosen: str, kwargs: dict[str, Any]) -> gym.Env[Any, Any]:
    if chosen not in versions:
        raise ConfigError(f"mujoco_version must be one of {', '.join(versions)}; got {chosen!r}")
    env: gym.Env[Any, Any] = versions[chosen](**kwargs)
    return env
