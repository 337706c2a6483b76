"""Environments of other shapes, made to step as Gymnasium's do."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from trebi_gym.costs import finite_cost
from trebi_gym.errors import EnvironmentContractError

Info = dict[str, Any]


class SafetyGymnasiumAdapter(gym.Env[Any, Any]):
    """Turns Safety-Gymnasium's step of six values into Gymnasium's five, with the cost in ``info["cost"]``.

    It goes by the environment's shape alone, so that nothing of Safety-Gymnasium, nor the Gymnasium that it was made
    for, has to be installed beside ours: ``step`` returns ``(observation, reward, cost, terminated, truncated, info)``.

    Args:
        env: the environment; its observation and action spaces are boxes: ``low``, ``high``, ``shape``, ``dtype``.
        render_mode: what ``env`` was made with, if it does not say so itself.

    Attributes:
        max_episode_steps: the longest episode, in steps, as ``env.max_episode_steps`` or ``env.spec`` tells, else None;
            ``BudgetWrapper(observe=True)`` counts down from it. ``env.spec`` itself is not taken over: what it makes
            steps with six values.

    Raises:
        EnvironmentContractError: a space is no box, or ``step`` or ``reset`` is missing.
    """

    def __init__(self, env: Any, render_mode: str | None = None) -> None:
        missing = [
            name for name in ("reset", "step", "observation_space", "action_space") if not hasattr(env, name)
        ]
        if missing:
            raise EnvironmentContractError(
                f"{type(env).__name__} is no environment: it lacks {', '.join(missing)}"
            )
        self._env = env
        self.observation_space = _box(env.observation_space, "observation")
        self.action_space = _box(env.action_space, "action")
        self.render_mode = render_mode or getattr(env, "render_mode", None)
        self.max_episode_steps: int | None = getattr(env, "max_episode_steps", None) or getattr(
            getattr(env, "spec", None), "max_episode_steps", None
        )
        self.metadata = dict(getattr(env, "metadata", None) or {"render_modes": []})

    @property
    def adapted(self) -> Any:
        """The environment behind the adapter."""
        return self._env

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Any, Info]:
        """Begin an episode; nothing has been done, so ``info["cost"]`` is 0.0.

        Raises:
            EnvironmentContractError: the environment returned something else than an observation and an info.
        """
        super().reset(seed=seed)
        found = self._env.reset(seed=seed, options=options)
        if not (isinstance(found, tuple) and len(found) == 2):
            raise EnvironmentContractError(
                f"reset must return (observation, info); {type(self._env).__name__} returned {_shape(found)}"
            )
        observation, info = found
        _check_info(info, "reset")
        return self._observation(observation), {**info, "cost": 0.0}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, Info]:
        """Take a step.

        Raises:
            EnvironmentContractError: the environment returned other than six values, or a cost that is not one finite
                number.
        """
        found = self._env.step(action)
        if not (isinstance(found, tuple) and len(found) == 6):
            remedy = "; it steps as Gymnasium does: use CostWrapper(env, cost)" if _length(found) == 5 else ""
            raise EnvironmentContractError(
                "step must return (observation, reward, cost, terminated, truncated, info); "
                f"{type(self._env).__name__} returned {_shape(found)}{remedy}"
            )
        observation, reward, cost, terminated, truncated, info = found
        charged = finite_cost(cost, source="the environment's third value")
        earned = finite_cost(reward, source="the environment's second value, the reward,")
        _check_info(info, "step")
        return (
            self._observation(observation),
            earned,
            bool(terminated),
            bool(truncated),
            {**info, "cost": charged},
        )

    def render(self) -> Any:
        """Return what the environment draws."""
        return self._env.render()

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    def _observation(self, observation: Any) -> Any:
        array = np.asarray(observation, dtype=self.observation_space.dtype)
        if array.shape != self.observation_space.shape:
            raise EnvironmentContractError(
                f"observations must have the space's shape {self.observation_space.shape}; "
                f"{type(self._env).__name__} returned {array.shape}"
            )
        return array


def _box(space: Any, name: str) -> spaces.Box:
    """Return a box of ours with the same bounds; the given one may come from another Gymnasium."""
    missing = [part for part in ("low", "high", "shape", "dtype") if getattr(space, part, None) is None]
    if missing:
        raise EnvironmentContractError(
            f"the {name} space must be a Box; got {space!r}, which lacks {', '.join(missing)}: flatten it first, "
            "for example with the environment's own flattening wrapper"
        )
    dtype = np.dtype(space.dtype)
    low, high = (np.broadcast_to(np.asarray(bound, dtype), space.shape) for bound in (space.low, space.high))
    return spaces.Box(low, high, dtype=dtype.type)


def _check_info(info: Any, of: str) -> None:
    if not isinstance(info, dict):
        raise EnvironmentContractError(f"the info of {of} must be a dict; got {info!r}")


def _length(found: Any) -> int | None:
    return len(found) if isinstance(found, tuple) else None


def _shape(found: Any) -> str:
    return type(found).__name__ if _length(found) is None else f"{len(found)} values"
