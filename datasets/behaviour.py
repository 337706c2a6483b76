"""Policies whose behaviour is recorded: uniform actions, and Stable-Baselines3's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from trebi_gym.budget import Budget
from trebi_gym.checks import check_seed
from trebi_gym.errors import DatasetError

Array = npt.NDArray[Any]


class RandomPolicy:
    """Draws every action uniformly from a bounded action space.

    Raises:
        DatasetError: the action space is not bounded, or no Box.
    """

    def __init__(self, action_space: gym.Space[Any], seed: int) -> None:
        if not isinstance(action_space, gym.spaces.Box) or not action_space.is_bounded():
            raise DatasetError(f"uniform actions need a bounded Box action space; got {action_space}")
        self._space = action_space
        self.description = {"algorithm": "uniform actions"}
        self.set_random_seed(seed)

    def set_random_seed(self, seed: int) -> None:
        """Seed what is drawn from here on."""
        self._generator = np.random.default_rng(check_seed(seed, error=DatasetError))

    def predict(
        self,
        observation: Array,
        state: Any = None,
        episode_start: Array | None = None,
        deterministic: bool = False,
        *,
        budget: Sequence[Budget],
    ) -> tuple[Array, Any]:
        """Return (E, A) uniform actions."""
        shape = (len(observation), *self._space.shape)
        actions = self._generator.uniform(self._space.low, self._space.high, size=shape)
        return actions.astype(self._space.dtype), state


class StableBaselinesPolicy:
    """A Stable-Baselines3 policy, which knows of no budget.

    Args:
        model: a model of Stable-Baselines3, or one of its policies.
        noise: standard deviation of Gaussian noise on every action, in units of half the action range; the noisy action
            is clipped to the action space, and it is this action that is executed.
        normalize: maps raw observations (E, O) to those that the policy was trained on.
        deterministic: whether to take the most likely action instead of drawing one; None leaves it to the caller.
        description: what a data set's metadata say of the policy; plain JSON.

    Raises:
        DatasetError: the noise is negative, or the action space has no bounds to measure it by.
    """

    def __init__(
        self,
        model: Any,
        *,
        noise: float = 0.0,
        normalize: Callable[[Array], Array] | None = None,
        deterministic: bool | None = None,
        description: dict[str, Any] | None = None,
    ) -> None:
        if not 0 <= noise < np.inf:
            raise DatasetError(f"noise must be at least 0, in units of half the action range; got {noise}")
        # a copy that shares the weights: it is put into evaluation mode once, where predict would walk through all of
        # its modules at every step
        self._policy = copy.copy(getattr(model, "policy", model))
        self._policy.set_training_mode(False)
        self._policy.set_training_mode = _nothing
        actor = getattr(self._policy, "actor", self._policy)
        self._draws_matrices = bool(getattr(actor, "use_sde", False))
        self._normalize, self._deterministic = normalize, deterministic
        space = self._policy.action_space
        if noise and not space.is_bounded():
            raise DatasetError(f"noise is measured by the action range, and this one has no bounds: {space}")
        self._space = space
        self._spread = noise * (space.high - space.low) / 2 if noise else None
        self.description = description or {}
        self.set_random_seed(0)

    def set_random_seed(self, seed: int) -> None:
        """Seed the noise; what a stochastic policy draws comes from torch's own generator."""
        self._generator = np.random.default_rng(check_seed(seed, error=DatasetError))

    def predict(
        self,
        observation: Array,
        state: Any = None,
        episode_start: Array | None = None,
        deterministic: bool = False,
        *,
        budget: Sequence[Budget],
    ) -> tuple[Array, Any]:
        """Return (E, A) actions within the action space."""
        if self._deterministic is not None:
            deterministic = self._deterministic
        if self._draws_matrices and not deterministic and (episode_start is None or np.any(episode_start)):
            # state-dependent exploration: drawn anew whenever an episode begins, one matrix an environment
            self._policy.reset_noise(len(observation))
        seen = observation if self._normalize is None else self._normalize(observation)
        actions, state = self._policy.predict(
            seen, state=state, episode_start=episode_start, deterministic=deterministic
        )
        if self._spread is not None:
            noisy = actions + self._spread * self._generator.standard_normal(actions.shape)
            actions = np.clip(noisy, self._space.low, self._space.high).astype(self._space.dtype)
        return actions, state


def _nothing(_: bool) -> None:
    """Leave the mode as it is."""
