"""Cost functions: one definition each, used online by ``CostWrapper`` and on recorded arrays.

Every function takes ``(observation, action, next_observation, info)`` with free leading axes and returns the
cost of that step, of shape ``observation.shape[:-1]``.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from trebi_gym.errors import EnvironmentContractError

Array = npt.NDArray[Any]

REACHER_GOAL = np.array([1.0, 1.0, 0.01])
REACHER_HAZARD = np.array([0.5, 0.5, 0.0])


class CostFunction(Protocol):
    """``(observation (..., O), action (..., A), next_observation (..., O), info) -> cost (...,)``."""

    def __call__(
        self, observation: Array, action: Array, next_observation: Array, info: Mapping[str, Any], /
    ) -> Any:
        """Return the cost that ``action`` caused."""
        ...


def pendulum_cost(
    observation: Array, action: Array, next_observation: Array, info: Mapping[str, Any]
) -> Array:
    """Cost of the state *before* the step: a triangle over -25 to 75 degrees, 1 at 25 degrees, 0.5 upright.

    Args:
        observation: (..., 3): cos(theta), sin(theta), theta_dot; theta = 0 upright.
        action: unused.
        next_observation: unused.
        info: unused.

    Returns:
        (...,) cost in [0, 1].
    """
    observation = np.asarray(observation)
    degrees = np.rad2deg(np.arctan2(observation[..., 1], observation[..., 0]))
    return np.maximum(0.0, (50.0 - np.abs(25.0 - degrees)) / 50.0)


def reacher_cost(
    observation: Array, action: Array, next_observation: Array, info: Mapping[str, Any]
) -> Array:
    """Cost of the state *after* the step: how deep the fingertip is in a ball of radius 0.5 around (0.5, 0.5, 0).

    Args:
        observation: unused.
        action: unused.
        next_observation: (..., 11), of which the last three are the fingertip minus the goal, in metres.
        info: unused.

    Returns:
        (...,) cost: ``100 (1 - 2 d)`` for a distance ``d < 0.5`` m to the ball's centre, else 0.
    """
    fingertip = np.asarray(next_observation)[..., -3:] + REACHER_GOAL
    distance = np.linalg.norm(fingertip - REACHER_HAZARD, axis=-1)
    return np.where(distance < 0.5, 100.0 * (1.0 - 2.0 * distance), 0.0)


def velocity_cost(
    observation: Array, action: Array, next_observation: Array, info: Mapping[str, Any]
) -> Array:
    """Cost of a step: the speed along x during it, ``|info["x_velocity"]|`` in m/s.

    Args:
        observation: unused.
        action: unused.
        next_observation: unused.
        info: ``"x_velocity"`` (...,): the distance that the step covered along x, by its duration.

    Returns:
        (...,) cost, at least 0.

    Raises:
        EnvironmentContractError: ``info`` has no ``"x_velocity"``, or one that holds no numbers.
    """
    if "x_velocity" not in info:
        raise EnvironmentContractError(
            f'velocity_cost needs info["x_velocity"] in m/s; info had {sorted(map(str, info)) or "nothing"}'
        )
    velocity = np.asarray(info["x_velocity"])
    if velocity.dtype.kind not in "fiu":
        raise EnvironmentContractError(
            f'velocity_cost needs numbers in info["x_velocity"], in m/s; got {velocity.dtype}: {info["x_velocity"]!r:.100}'
        )
    # as float64, since the least of a kind of integers has no positive counterpart in it
    speed: Array = np.abs(velocity, dtype=np.float64) if velocity.dtype.kind in "iu" else np.abs(velocity)
    return speed


def resolve_cost(cost: CostFunction | str) -> CostFunction:
    """Return the cost function itself, or the one that ``"module:name"`` names.

    Raises:
        EnvironmentContractError: the name has no such form, or nothing callable is found there.
    """
    if callable(cost):
        return cost
    module_name, colon, name = str(cost).partition(":")
    if not isinstance(cost, str) or not colon or not module_name or not name:
        raise EnvironmentContractError(
            f'cost must be a function or a string "module:name", such as "trebi_gym.costs:pendulum_cost"; got {cost!r}'
        )
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise EnvironmentContractError(f"cost {cost!r} was not found: {error}") from error
    if not callable(found):
        raise EnvironmentContractError(f"cost {cost!r} names {found!r}, which is not a function")
    function: CostFunction = found
    return function


def finite_cost(value: Any, *, source: str) -> float:
    """Return ``value`` as a float.

    Raises:
        EnvironmentContractError: it is not one finite number.
    """
    array = np.asarray(value)
    if array.shape != () or array.dtype.kind not in "fiub":
        raise EnvironmentContractError(
            f"{source} must give one number a step; got {value!r} "
            f"({type(value).__name__}, shape {array.shape})"
        )
    number = float(array)
    if not math.isfinite(number):
        raise EnvironmentContractError(f"{source} must give a finite number; got {number!r}")
    return number
