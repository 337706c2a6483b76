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

from trebi_gym.envs.rendering import require_mujoco_rendering, require_mujoco_window
from trebi_gym.errors import ConfigError, RenderingError

_DEFAULT = "v5"

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
        """Return the frame of ``render_mode``, (height, width, 3) for ``"rgb_array"``; ``"human"`` shows it in a window.

        Raises:
            RenderingError: MuJoCo cannot draw on this machine, where Gymnasium alone may abort the interpreter, or
                cannot open a window, or the environment was made without ``render_mode``. The message says what is
                needed.
        """
        mode = getattr(self, "render_mode", None)
        if mode is None:
            raise RenderingError(
                f'{type(self).__name__} draws frames only if it is made with render_mode="rgb_array"; '
                "it was made with render_mode=None"
            )
        if mode == "human":
            require_mujoco_window()
        else:
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


class _Versions:
    """Makes a task in the version of Gymnasium's that is asked for, still without its cost.

    Attributes:
        metadata: from which ``gym.make`` learns the render modes, ``"rgb_array_list"`` and other derived ones among them.
    """

    def __init__(self, **versions: Any) -> None:
        self._versions = versions
        self.metadata: dict[str, Any] = versions[_DEFAULT].metadata

    def __call__(self, mujoco_version: str = _DEFAULT, **kwargs: Any) -> gym.Env[Any, Any]:
        """Return the environment, made with ``kwargs``.

        Raises:
            ConfigError: there is no such version.
        """
        if not isinstance(mujoco_version, str) or mujoco_version not in self._versions:
            raise ConfigError(
                f"mujoco_version must be one of {', '.join(self._versions)}; got {mujoco_version!r}"
            )
        env: gym.Env[Any, Any] = self._versions[mujoco_version](**kwargs)
        return env


make_hopper = _Versions(v4=HopperV4, v5=HopperV5)
make_walker2d = _Versions(v4=Walker2dV4, v5=Walker2dV5)
make_half_cheetah = _Versions(v4=HalfCheetahV4, v5=HalfCheetahV5)
