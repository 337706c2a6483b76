"""SafePendulum-v0: swing a pendulum up and hold it, where some of the angles cost."""

from __future__ import annotations

import functools
import math
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from PIL import Image, ImageDraw

from trebi_gym.costs import pendulum_cost
from trebi_gym.errors import RenderingError

GRAVITY = 10.0  # m/s^2
MASS = 1.0  # kg
LENGTH = 1.0  # m
TIME_STEP = 0.05  # s
MAX_SPEED = 8.0  # rad/s
MAX_TORQUE = 2.0  # N m
TORQUE_PER_ACTION = 2.0  # N m


class SafePendulumEnv(gym.Env[npt.NDArray[np.float64], npt.NDArray[np.float32]]):
    """A motor at the pivot swings a pendulum up from hanging; leaning between -25 and 75 degrees costs.

    The cost is ``trebi_gym.costs.pendulum_cost``; ``CostWrapper`` puts it into ``info["cost"]``, as it does
    in ``gym.make("SafePendulum-v0")``. Balancing upright costs 0.5 a step. The motor can also hold the
    pendulum at about -20 degrees, which costs nearly nothing: how much to pay is what the budget decides.

    Observation, ``Box(3)``, float64; theta is the angle from upright, counter-clockwise:

    | index | quantity | lowest | highest | unit |
    |---|---|---|---|---|
    | 0 | cos(theta) | -1 | 1 | |
    | 1 | sin(theta) | -1 | 1 | |
    | 2 | theta_dot, the angular velocity | -8 | 8 | rad/s |

    Action, ``Box(1)``, float32:

    | index | quantity | lowest | highest | unit |
    |---|---|---|---|---|
    | 0 | half of the torque at the pivot: it is doubled and then clipped to 2 N m | -2 | 2 | 2 N m |

    Reward of a step, from the state before it and the clipped torque u:
    ``(17 - (theta^2 + 0.1 theta_dot^2 + 0.001 u^2)) / 17``, theta wrapped to [-pi, pi).

    An episode starts near hanging, ``theta = pi + U(-0.2, 0.2)`` and ``theta_dot = U(-0.1, 0.1)``, and never
    terminates by itself; the registered id ends it after 200 steps.

    Attributes:
        state: (theta, theta_dot) in rad and rad/s, theta not wrapped; assign to it to start from elsewhere.

    Args:
        render_mode: ``"rgb_array"`` or None. Frames are drawn without a display or a GPU.
    """

    metadata = {  # noqa: RUF012 - Gymnasium declares it so
        "render_modes": ["rgb_array"],
        "render_fps": round(1 / TIME_STEP),
    }

    def __init__(self, render_mode: str | None = None) -> None:
        high = np.array([1.0, 1.0, MAX_SPEED])
        self.observation_space = spaces.Box(-high, high, dtype=np.float64)
        self.action_space = spaces.Box(-MAX_TORQUE, MAX_TORQUE, shape=(1,), dtype=np.float32)
        self.render_mode = render_mode
        self.state: tuple[float, float] | None = None
        self._torque = 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float64], dict[str, Any]]:
        """Start an episode near hanging.

        Args:
            seed: the seed of the starts from here on; None goes on with the present generator.
            options: unused.
        """
        super().reset(seed=seed)
        theta, theta_dot = self.np_random.uniform([-0.2, -0.1], [0.2, 0.1])
        self.state = (math.pi + float(theta), float(theta_dot))
        self._torque = 0.0
        return self._observation(), {}

    def step(
        self, action: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        """Apply the torque for 0.05 s.

        Args:
            action: (1,), in units of 2 N m.

        Raises:
            ResetNeeded: no episode has been started.
            ValueError: ``action`` has another shape than (1,).
        """
        theta, theta_dot = self._started_state()
        action = np.asarray(action)
        if action.shape != (1,):
            raise ValueError(f"an action of SafePendulum has shape (1,); got shape {action.shape}")
        # a torque is float32 like the action, and so are its products; all else is float64
        torque = np.clip(np.float32(TORQUE_PER_ACTION) * np.float32(action[0]), -MAX_TORQUE, MAX_TORQUE)
        angle = (theta + math.pi) % (2 * math.pi) - math.pi
        effort = float(np.float32(0.001) * (torque * torque))
        reward = (17.0 - (angle**2 + 0.1 * theta_dot**2 + effort)) / 17.0

        gravity_pull = -3.0 * GRAVITY / (2.0 * LENGTH) * math.sin(theta + math.pi)
        acceleration = gravity_pull + float(np.float32(3.0 / (MASS * LENGTH**2)) * torque)
        next_theta_dot = theta_dot + acceleration * TIME_STEP
        # the angle moves by the speed before it is limited, as in the task's definition
        next_theta = theta + next_theta_dot * TIME_STEP
        self.state = (next_theta, min(max(next_theta_dot, -MAX_SPEED), MAX_SPEED))
        self._torque = float(torque)
        return self._observation(), reward, False, False, {}

    def render(self) -> npt.NDArray[np.uint8]:
        """Return the present frame, (500, 500, 3): the pole, the torque, and the angles that cost in red.

        Raises:
            RenderingError: the environment was made without ``render_mode="rgb_array"``.
            ResetNeeded: no episode has been started.
        """
        if self.render_mode != "rgb_array":
            raise RenderingError(
                'SafePendulum draws frames only if it is made with render_mode="rgb_array"; '
                f"it was made with render_mode={self.render_mode!r}"
            )
        theta, _ = self._started_state()
        return draw_pendulum(theta, self._torque)

    def _observation(self) -> npt.NDArray[np.float64]:
        theta, theta_dot = self._started_state()
        return np.array([math.cos(theta), math.sin(theta), theta_dot])

    def _started_state(self) -> tuple[float, float]:
        if self.state is None:
            raise gym.error.ResetNeeded(
                "SafePendulum has no state yet: call reset() before step() or render()"
            )
        return self.state


FRAME_SIZE = 500  # pixels
_SCALE = 2  # drawn larger, then reduced, for smooth edges
_CENTRE = FRAME_SIZE * _SCALE / 2
_POLE = 190 * _SCALE


def draw_pendulum(theta: float, torque: float) -> npt.NDArray[np.uint8]:
    """Draw the pendulum.

    Args:
        theta: the angle from upright, counter-clockwise, in rad.
        torque: the torque of the last step in N m, counter-clockwise; drawn as an arc with a head.

    Returns:
        (500, 500, 3) frame.
    """
    image = _background().copy()
    draw = ImageDraw.Draw(image)
    tip = _point(theta, _POLE)
    width = 26 * _SCALE
    draw.line([(_CENTRE, _CENTRE), tip], fill=(70, 96, 140), width=width)
    for x, y in ((_CENTRE, _CENTRE), tip):
        draw.ellipse(_box(x, y, width / 2), fill=(70, 96, 140))
    draw.ellipse(_box(*tip, width / 4), fill=(214, 222, 235))
    draw.ellipse(_box(_CENTRE, _CENTRE, 7 * _SCALE), fill=(25, 25, 25))
    if abs(torque) > 0.01 * MAX_TORQUE:
        _draw_torque(draw, torque)
    return np.asarray(image.resize((FRAME_SIZE, FRAME_SIZE), Image.Resampling.LANCZOS)).copy()


@functools.cache
def _background() -> Image.Image:
    """Draw what never changes: each degree in a red as deep as its cost, and the pole's circle."""
    image = Image.new("RGB", (FRAME_SIZE * _SCALE, FRAME_SIZE * _SCALE), (255, 255, 255))
    draw = ImageDraw.Draw(image)
    radius = _POLE + 26 * _SCALE
    none = np.zeros(0)
    for degree in np.arange(-180.0, 180.0):
        middle = math.radians(degree + 0.5)
        observation = np.array([math.cos(middle), math.sin(middle), 0.0])
        cost = float(pendulum_cost(observation, none, observation, {}))
        if cost > 0:
            # Pillow counts clockwise from three o'clock, we counter-clockwise from twelve
            shade = (255, round(238 - 120 * cost), round(232 - 130 * cost))
            draw.pieslice(_box(_CENTRE, _CENTRE, radius), -90 - degree - 1, -90 - degree + 0.2, fill=shade)
    draw.ellipse(_box(_CENTRE, _CENTRE, radius), outline=(205, 205, 205), width=_SCALE)
    return image


def _draw_torque(draw: ImageDraw.ImageDraw, torque: float) -> None:
    """Draw an arc around the pivot from straight above, 120 degrees long at the largest torque."""
    colour = (230, 126, 34)
    radius = 62 * _SCALE
    sweep = 120.0 * torque / MAX_TORQUE
    start, end = sorted((-90.0, -90.0 - sweep))
    draw.arc(_box(_CENTRE, _CENTRE, radius), start, end, fill=colour, width=7 * _SCALE)
    middle = radius - 3.5 * _SCALE
    ahead = math.radians(sweep + math.copysign(15.0, torque))
    at = math.radians(sweep)
    head = [_point(at, middle - 11 * _SCALE), _point(at, middle + 11 * _SCALE), _point(ahead, middle)]
    draw.polygon(head, fill=colour)


def _point(theta: float, radius: float) -> tuple[float, float]:
    """Return the pixel at ``radius`` from the pivot, ``theta`` counter-clockwise from straight up."""
    return _CENTRE - radius * math.sin(theta), _CENTRE - radius * math.cos(theta)


def _box(x: float, y: float, radius: float) -> tuple[float, float, float, float]:
    return x - radius, y - radius, x + radius, y + radius
