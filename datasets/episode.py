"""Logged episodes: validated once, immutable afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from trebi_gym.datasets.arrays import check_finite, frozen
from trebi_gym.datasets.splitting import check_steps, split
from trebi_gym.errors import DatasetError

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Episode:
    """One episode of L steps: row t is what was seen, done, earned and paid at step t."""

    observations: Array  # (L + 1, O), the last one after the last step
    actions: Array  # (L, A)
    rewards: Array  # (L,)
    costs: Array  # (L,): row t is the cost that action t caused
    terminated: bool  # ended by the task itself
    truncated: bool  # ended by a time limit

    def __len__(self) -> int:
        return len(self.rewards)

    def __repr__(self) -> str:
        end = "terminated" if self.terminated else "truncated"
        return (
            f"Episode({len(self)} steps, return {self.rewards.sum():.4g}, cost {self.costs.sum():.4g}, {end})"
        )


@dataclass(frozen=True, eq=False)
class EpisodeDataset:
    """E finished episodes of S steps in all, kept one behind the other in flat, read-only arrays.

    Args:
        observations: (S + E, O): every episode's L + 1 observations.
        actions: (S, A).
        rewards: (S,).
        costs: (S,): row t is the cost that action t caused.
        lengths: (E,) steps of every episode, at least 1.
        terminated: (E,) ended by the task itself.
        truncated: (E,) ended by a time limit.
        metadata: where the data come from; plain JSON.

    Raises:
        DatasetError: shapes or lengths that do not fit, NaN or infinite values, no episode.
    """

    observations: Array
    actions: Array
    rewards: Array
    costs: Array
    lengths: npt.NDArray[np.int64]
    terminated: npt.NDArray[np.bool_]
    truncated: npt.NDArray[np.bool_]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("observations", "actions", "rewards", "costs"):
            array = np.asarray(getattr(self, name))
            if array.dtype.kind in "iub":
                # float32 holds whole numbers to 2**24
                exact = array.size == 0 or np.abs(array, dtype=np.float64).max() <= 2**24
                array = array.astype(np.float32 if exact else np.float64)
            elif array.dtype.kind == "f" and array.dtype.itemsize > 8:
                array = array.astype(np.float64)
            object.__setattr__(self, name, frozen(array))
        object.__setattr__(self, "lengths", frozen(np.asarray(self.lengths, dtype=np.int64)))
        object.__setattr__(self, "terminated", frozen(np.asarray(self.terminated, dtype=np.bool_)))
        object.__setattr__(self, "truncated", frozen(np.asarray(self.truncated, dtype=np.bool_)))
        self._validate()

    def _validate(self) -> None:
        episodes = len(self.lengths)
        if episodes == 0:
            raise DatasetError("the data hold no finished episode: no step is marked as terminal or timeout")
        if self.lengths.min() < 1:
            raise DatasetError(
                f"episode {self.lengths.argmin()} has no step; every episode needs at least one"
            )
        steps = int(self.lengths.sum())
        for name, dimensions in (("observations", 2), ("actions", 2), ("rewards", 1), ("costs", 1)):
            array: Array = getattr(self, name)
            rows = steps + episodes if name == "observations" else steps
            if array.ndim != dimensions or len(array) != rows or 0 in array.shape:
                shape = f"({rows}, n)" if dimensions == 2 else f"({rows},)"
                raise DatasetError(
                    f"{name} must have shape {shape} for {steps} steps in {episodes} episodes; found {array.shape}"
                )
            check_finite(name, array)
        length = self.metadata.get("episode_length")
        if length is not None and (not isinstance(length, int) or isinstance(length, bool) or length < 1):
            raise DatasetError(f"episode_length in the metadata must be a number of steps; found {length!r}")
        for name in ("terminated", "truncated"):
            if getattr(self, name).shape != (episodes,):
                raise DatasetError(f"{name} must have shape ({episodes},); found {getattr(self, name).shape}")

    @classmethod
    def from_steps(
        cls,
        *,
        observations: Array,
        next_observations: Array | None,
        actions: Array,
        rewards: Array,
        costs: Array,
        terminals: Array,
        timeouts: Array,
        metadata: Mapping[str, Any] | None = None,
    ) -> EpisodeDataset:
        """Split S flat steps into episodes: one ends wherever ``terminals`` or ``timeouts`` is set.

        Steps behind the last end belong to an unfinished episode and are left out;
        ``metadata["dropped_steps"]`` counts them. Without next observations (None) the one after an episode's last
        step is not known, and that of the last step is repeated.

        Raises:
            DatasetError: lengths that differ, NaN or infinite values, no finished episode, or a next observation
                that is not the following step's observation although the episode goes on.
        """
        given = {
            "observations": observations,
            "actions": actions,
            "rewards": rewards,
            "costs": costs,
            "terminals": terminals,
            "timeouts": timeouts,
        }
        if next_observations is not None:
            given["next_observations"] = next_observations
        return cls(**split(check_steps(given), metadata or {}))

    @classmethod
    def from_episodes(
        cls, episodes: Iterable[Episode], metadata: Mapping[str, Any] | None = None
    ) -> EpisodeDataset:
        """Join single episodes.

        Raises:
            DatasetError: no episode, or arrays that do not fit together.
        """
        items = list(episodes)
        if not items:
            raise DatasetError("the data hold no finished episode")
        for index, episode in enumerate(items):
            n, o, a, c = (
                len(x) for x in (episode.rewards, episode.observations, episode.actions, episode.costs)
            )
            if (o, a, c) != (n + 1, n, n):
                raise DatasetError(
                    f"episode {index} has {n} rewards and so needs {n + 1} observations, {n} actions and {n} costs; "
                    f"found {o}, {a} and {c}"
                )
        try:
            return cls(
                observations=np.concatenate([episode.observations for episode in items]),
                actions=np.concatenate([episode.actions for episode in items]),
                rewards=np.concatenate([episode.rewards for episode in items]),
                costs=np.concatenate([episode.costs for episode in items]),
                lengths=np.array([len(episode) for episode in items]),
                terminated=np.array([episode.terminated for episode in items]),
                truncated=np.array([episode.truncated for episode in items]),
                metadata=dict(metadata or {}),
            )
        except ValueError as error:
            if isinstance(error, DatasetError):
                raise
            raise DatasetError(
                f"the episodes must have the same observation and action sizes: {error}"
            ) from error

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Episode:
        if not -len(self) <= index < len(self):
            raise IndexError(f"episode {index} of {len(self)}")
        index %= len(self)
        start, length = int(self.starts[index]), int(self.lengths[index])
        rows = slice(start, start + length)
        return Episode(
            observations=self.observations[start + index : start + index + length + 1],
            actions=self.actions[rows],
            rewards=self.rewards[rows],
            costs=self.costs[rows],
            terminated=bool(self.terminated[index]),
            truncated=bool(self.truncated[index]),
        )

    def __iter__(self) -> Iterator[Episode]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        name = self.metadata.get("name", "EpisodeDataset")
        returns, costs = self.episode_returns, self.episode_costs
        return (
            f"<{name}: {len(self)} episodes, {self.n_steps} steps, "
            f"observations ({self.observation_size},), actions ({self.action_size},), "
            f"return {returns.min():.4g} to {returns.max():.4g}, cost {costs.min():.4g} to {costs.max():.4g}>"
        )

    @property
    def n_steps(self) -> int:
        """S, the number of steps."""
        return len(self.rewards)

    @property
    def observation_size(self) -> int:
        """O, the numbers in an observation."""
        return int(self.observations.shape[1])

    @property
    def action_size(self) -> int:
        """A, the numbers in an action."""
        return int(self.actions.shape[1])

    @property
    def starts(self) -> npt.NDArray[np.int64]:
        """(E,) the first row of every episode in ``actions``, ``rewards`` and ``costs``."""
        starts: npt.NDArray[np.int64] = np.cumsum(self.lengths) - self.lengths
        return starts

    @property
    def observation_rows(self) -> npt.NDArray[np.int64]:
        """(S,) where in ``observations`` each step's own observation lies."""
        rows: npt.NDArray[np.int64] = np.arange(self.n_steps) + np.repeat(np.arange(len(self)), self.lengths)
        return rows

    @property
    def episode_returns(self) -> npt.NDArray[np.float64]:
        """(E,) sum of rewards of every episode."""
        return np.add.reduceat(self.rewards.astype(np.float64), self.starts)

    @property
    def episode_costs(self) -> npt.NDArray[np.float64]:
        """(E,) sum of costs of every episode."""
        return np.add.reduceat(self.costs.astype(np.float64), self.starts)

    @property
    def episode_length(self) -> int:
        """The task's time limit as far as known: from the metadata, else the longest episode."""
        return int(self.metadata.get("episode_length") or self.lengths.max())

    def select(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> EpisodeDataset:
        """Return the data set of these episodes only."""
        return EpisodeDataset.from_episodes((self[int(index)] for index in indices), self.metadata)

    def split(self, share: float, seed: int = 0) -> tuple[EpisodeDataset, EpisodeDataset]:
        """Return two data sets: one to learn from, and a random share of the episodes that is held out.

        Both note the split in ``metadata["split"]``; the same share and seed give the same episodes.

        Raises:
            DatasetError: the share leaves one of them without an episode.
        """
        count = round(share * len(self)) if 0 < share < 1 else 0
        if not 0 < count < len(self):
            raise DatasetError(
                f"a share of {share} of {len(self)} episodes leaves one part empty; each needs at least one"
            )
        order = np.random.default_rng(seed).permutation(len(self))
        parts = {"held out": np.sort(order[:count]), "learned": np.sort(order[count:])}
        held, learned = (
            EpisodeDataset.from_episodes(
                (self[int(index)] for index in indices),
                {**self.metadata, "split": {"part": part, "share": share, "seed": seed, "of": len(self)}},
            )
            for part, indices in parts.items()
        )
        return learned, held
