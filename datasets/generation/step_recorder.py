"""Keeping the steps that an environment takes, until its episodes end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from trebi_gym.costs import finite_cost
from trebi_gym.datasets.episode import Episode
from trebi_gym.errors import EnvironmentContractError
from trebi_gym.rollout import env_time_limit

Array = npt.NDArray[Any]


def check_spaces(env_id: str) -> tuple[gym.spaces.Box, gym.spaces.Box]:
    """Return an environment's observation and action space, which must be such that its steps can be recorded.

    Raises:
        EnvironmentContractError: one of them is no Box of one dimension, the environment has no time limit, or it needs a
            package that is not installed.
    """
    try:
        made = gym.make(env_id)
    except ImportError as error:
        raise EnvironmentContractError(f"the environment {env_id} cannot be made: {error}") from error
    with made as env:
        spaces = {"observation": env.observation_space, "action": env.action_space}
        limit = env_time_limit(env)
    if limit is None:
        raise EnvironmentContractError(
            f"{env_id} has no time limit, so an episode might never end; register it with max_episode_steps=..."
        )
    for name, space in spaces.items():
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
            raise EnvironmentContractError(
                f"a data set needs a Box {name} space of one dimension; {env_id} has {space}; wrap it first"
            )
    return spaces["observation"], spaces["action"]  # type: ignore[return-value]


class StepRecorder(gym.Wrapper[Any, Any, Any, Any]):
    """Keeps every episode that its environment finishes.

    ``ends[i]`` is how many steps the environment had taken when ``episodes[i]`` ended.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.episodes: list[Episode] = []
        self.ends: list[int] = []
        self._steps = 0
        self._running: Recording | None = None

    @property
    def unfinished_steps(self) -> int:
        """Steps of an episode that had not ended when the run did."""
        return len(self._running.rewards) if self._running else 0

    def go_on(self, episodes: Sequence[Episode], ends: Sequence[int], steps: int) -> None:
        """Begin where another recorder was after ``steps`` steps."""
        self.episodes, self.ends, self._steps = list(episodes), list(ends), steps

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; one that was broken off is forgotten."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._running = Recording(observation)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step and record.

        Raises:
            EnvironmentContractError: ``info["cost"]`` is missing, or is not one finite number.
        """
        observation, reward, terminated, truncated, info = self.env.step(action)
        if "cost" not in info:
            raise EnvironmentContractError(
                'the environment put no "cost" into a step\'s info; wrap it with trebi_gym.CostWrapper'
            )
        assert self._running is not None
        self._running.add(action, reward, finite_cost(info["cost"], source='info["cost"]'), observation)
        self._steps += 1
        if terminated or truncated:
            self.episodes.append(self._running.finish(terminated, truncated))
            self.ends.append(self._steps)
            self._running = None
        return observation, reward, terminated, truncated, info


@dataclass
class Recording:
    """One running episode, from its first observation (O,) on."""

    first: Array
    observations: list[Array] = field(default_factory=list)
    actions: list[Array] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.observations.append(np.array(self.first, dtype=np.float32))

    def add(self, action: Any, reward: Any, cost: Any, observation: Any) -> None:
        """Add a step: what was done, what it earned and cost, and what was seen after it."""
        self.actions.append(np.array(action, dtype=np.float32))
        self.rewards.append(float(reward))
        self.costs.append(float(cost))
        self.observations.append(np.array(observation, dtype=np.float32))

    def finish(self, terminated: bool, truncated: bool) -> Episode:
        """Return the episode that has ended."""
        return Episode(
            observations=np.stack(self.observations),
            actions=np.stack(self.actions),
            rewards=np.array(self.rewards, dtype=np.float32),
            costs=np.array(self.costs, dtype=np.float32),
            terminated=terminated,
            truncated=truncated and not terminated,
        )
