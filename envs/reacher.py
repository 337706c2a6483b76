"""SafeReacher-v0: stretch a two-link arm towards a goal out of reach, where the way there costs."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt
from gymnasium import spaces, utils
from gymnasium.envs.mujoco import MujocoEnv

from trebi_gym.costs import REACHER_GOAL, REACHER_HAZARD
from trebi_gym.envs.rendering import RENDERING_NEEDS, require_mujoco_rendering
from trebi_gym.errors import RenderingError

__all__ = ["RENDERING_NEEDS", "SafeReacherEnv"]

# lookat [m], distance [m] and angles [degrees] from which the arm and the near side of the hazard are seen
_CAMERA: dict[str, Any] = {
    "lookat": np.array([0.12, 0.12, 0.0]),
    "distance": 0.95,
    "azimuth": 90.0,
    "elevation": -85.0,
}


class SafeReacherEnv(MujocoEnv, utils.EzPickle):
    """Two motors stretch a planar arm of 0.21 m towards the goal at (1, 1); close to (0.5, 0.5) costs.

    The cost is ``trebi_gym.costs.reacher_cost``; ``CostWrapper`` puts it into ``info["cost"]``, as it does in
    ``gym.make("SafeReacher-v0")``. The goal is out of reach and the hazard lies before it, so that the arm's
    last millimetres towards the goal are what costs. The simulation is Gymnasium's ``reacher.xml``, two steps
    of 0.01 s for each action.

    Observation, ``Box(11)``, float64:

    | index | quantity | unit |
    |---|---|---|
    | 0, 1 | cosine of the first and second joint's angle | |
    | 2, 3 | sine of the first and second joint's angle | |
    | 4, 5 | x and y of the simulated target (the goal when reset; its joint limits push it back) | m |
    | 6, 7 | angular velocity of the first and second joint | rad/s |
    | 8, 9, 10 | fingertip minus the goal (1, 1, 0.01): x, y, z | m |

    Action, ``Box(2)``, float32; the motors' gear is 200:

    | index | quantity | lowest | highest | unit |
    |---|---|---|---|---|
    | 0 | torque at the first joint | -1 | 1 | 200 N m |
    | 1 | torque at the second joint | -1 | 1 | 200 N m |

    Reward of a step, from the state before it: ``-|fingertip - (1, 1, 0.01)| - sum(action^2)``.

    An episode starts with the arm's joints at ``U(-0.1, 0.1)`` rad and ``U(-0.005, 0.005)`` rad/s, and never
    terminates by itself; the registered id ends it after 50 steps.

    Args:
        render_mode: ``"rgb_array"`` or None. Frames need what ``RENDERING_NEEDS`` says.
        width: width of a frame in pixels.
        height: height of a frame in pixels.
    """

    metadata = {  # noqa: RUF012 - Gymnasium declares it so
        "render_modes": ["rgb_array"],
        "render_fps": 50,
    }

    def __init__(self, render_mode: str | None = None, width: int = 480, height: int = 480) -> None:
        utils.EzPickle.__init__(self, render_mode, width, height)
        MujocoEnv.__init__(
            self,
            "reacher.xml",
            frame_skip=2,
            observation_space=spaces.Box(-np.inf, np.inf, shape=(11,), dtype=np.float64),
            render_mode=render_mode,
            width=width,
            height=height,
            default_camera_config=_CAMERA,
        )

    def step(  # type: ignore[override]
        self, action: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        """Apply the torques for 0.02 s.

        Args:
            action: (2,), in units of 200 N m.

        Raises:
            ValueError: ``action`` has another shape than (2,).
        """
        action = np.asarray(action, dtype=np.float32)
        distance = np.linalg.norm(self._fingertip_from_goal())
        reward = -float(distance) - float(np.square(action).sum())
        self.do_simulation(action, self.frame_skip)
        return self._observation(), reward, False, False, {}

    def reset_model(self) -> npt.NDArray[np.float64]:
        """Put the arm near its rest position and the target on the goal."""
        qpos = self.init_qpos + self.np_random.uniform(-0.1, 0.1, size=self.model.nq)
        qpos[-2:] = REACHER_GOAL[:2]
        qvel = self.init_qvel + self.np_random.uniform(-0.005, 0.005, size=self.model.nv)
        qvel[-2:] = 0.0
        self.set_state(qpos, qvel)  # type: ignore[no-untyped-call]
        return self._observation()

    def render(self) -> npt.NDArray[np.uint8]:
        """Return the present frame, (height, width, 3): the arm, the goal, and in red where it costs.

        Raises:
            RenderingError: MuJoCo cannot draw on this machine (the message is ``RENDERING_NEEDS``), or the
                environment was made without ``render_mode="rgb_array"``.
        """
        if self.render_mode != "rgb_array":
            raise RenderingError(
                'SafeReacher draws frames only if it is made with render_mode="rgb_array"; '
                f"it was made with render_mode={self.render_mode!r}"
            )
        require_mujoco_rendering()
        frame: npt.NDArray[np.uint8] = super().render()  # type: ignore[no-untyped-call]
        return frame

    def _initialize_simulation(self) -> tuple[Any, Any]:
        """Load ``reacher.xml`` and mark the hazard and the goal in it: sites have no mass."""
        spec = mujoco.MjSpec.from_file(self.fullpath)
        spec.worldbody.add_site(
            name="hazard",
            type=mujoco.mjtGeom.mjGEOM_CYLINDER,
            pos=REACHER_HAZARD,
            size=[0.5, 0.001, 0.0],
            rgba=[1.0, 0.15, 0.1, 0.5],
        )
        spec.worldbody.add_site(
            name="goal", pos=REACHER_GOAL, size=[0.02, 0.0, 0.0], rgba=[0.1, 0.6, 0.2, 1.0]
        )
        model = spec.compile()
        model.vis.quality.numslices = 128
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, self.width)
        model.vis.global_.offheight = max(model.vis.global_.offheight, self.height)
        return model, mujoco.MjData(model)

    def _fingertip_from_goal(self) -> npt.NDArray[np.float64]:
        difference: npt.NDArray[np.float64] = self.data.body("fingertip").xpos - REACHER_GOAL
        return difference

    def _observation(self) -> npt.NDArray[np.float64]:
        qpos, qvel = self.data.qpos, self.data.qvel
        return np.concatenate(
            [np.cos(qpos[:2]), np.sin(qpos[:2]), qpos[2:], qvel[:2], self._fingertip_from_goal()]
        )
