"""Logged episodes: validated once, immutable afterwards."""

from __future__ import annotations

import copy
import numbers
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from trebi_gym.checks import check_seed, is_whole
from trebi_gym.datasets.arrays import check_finite, frozen, given_away
from trebi_gym.datasets.splitting import check_steps, split
from trebi_gym.errors import DatasetError

Array = npt.NDArray[Any]


TAILS = {
    "unfinished_steps": "steps of an episode whose end was not recorded",
    "dropped_steps": "steps left out",
}
"""Metadata that say what became of steps after the last marked end."""


@dataclass(frozen=True, eq=False)
class Episode:
    """One episode of L steps: row t is what was seen, done, earned and paid at step t."""

    observations: Array  # (L + 1, O), the last one after the last step
    actions: Array  # (L, A)
    rewards: Array  # (L,)
    costs: Array  # (L,): row t is the cost that action t caused
    terminated: bool  # ended by the task itself
    truncated: bool  # ended by a time limit, or its recording stopped

    def __post_init__(self) -> None:
        for name in ("observations", "actions", "rewards", "costs"):
            view = np.asarray(getattr(self, name)).view()
            view.flags.writeable = False
            object.__setattr__(self, name, view)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(getattr(self, item.name) for item in fields(self))

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
        truncated: (E,) ended by a time limit, or its recording stopped.
        metadata: where the data come from; plain JSON.

    Arrays that somebody else could write to are copied, and so are the metadata: nothing changes a data set afterwards,
    copies of it and what comes out of a pickle included.

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
        object.__setattr__(self, "metadata", MappingProxyType(copy.deepcopy(dict(self.metadata))))
        object.__setattr__(self, "lengths", frozen(np.asarray(self.lengths, dtype=np.int64)))
        object.__setattr__(self, "terminated", frozen(np.asarray(self.terminated, dtype=np.bool_)))
        object.__setattr__(self, "truncated", frozen(np.asarray(self.truncated, dtype=np.bool_)))
        self._validate()

    def __reduce__(self) -> tuple[Any, ...]:
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return _restored, ({**values, "metadata": dict(self.metadata)},)

    def __copy__(self) -> EpisodeDataset:
        return self

    def __deepcopy__(self, memo: Any) -> EpisodeDataset:
        return self

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
        for name, least in (("episode_length", 1), *((name, 0) for name in TAILS)):
            number = self.metadata.get(name)
            if number is not None and (not is_whole(number) or number < least):
                raise DatasetError(f"{name} in the metadata must be a number of steps; found {number!r:.200}")
        for name in ("terminated", "truncated"):
            if getattr(self, name).shape != (episodes,):
                raise DatasetError(f"{name} must have shape ({episodes},); found {getattr(self, name).shape}")
        for name, sums in (("rewards", self.episode_returns), ("costs", self.episode_costs)):
            if not np.isfinite(sums).all():
                raise DatasetError(
                    f"the {name} of episode {int(np.argmax(~np.isfinite(sums)))} add up to more than a number can hold; "
                    "remove that episode or mend the recording"
                )

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

        Steps after the last end are kept as a truncated episode, with a warning; ``metadata["unfinished_steps"]`` counts
        them. Where they are more than ``metadata["episode_length"]`` they are left out, with a warning, and counted in
        ``metadata["dropped_steps"]``. Without next observations (None) the one after an episode's last step is not known,
        and that of the last step is repeated.

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
                observations=given_away(np.concatenate([episode.observations for episode in items])),
                actions=given_away(np.concatenate([episode.actions for episode in items])),
                rewards=given_away(np.concatenate([episode.rewards for episode in items])),
                costs=given_away(np.concatenate([episode.costs for episode in items])),
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

    @overload
    def __getitem__(self, index: int) -> Episode: ...

    @overload
    def __getitem__(self, index: slice) -> EpisodeDataset: ...

    def __getitem__(self, index: int | slice) -> Episode | EpisodeDataset:
        """Return one episode, or the data set of a slice of them.

        Raises:
            IndexError: there is no such episode.
            DatasetError: the index is no whole number, or the slice is empty.
        """
        if isinstance(index, slice):
            return self.select(range(len(self))[index])
        if not is_whole(index):
            raise DatasetError(
                f"an episode is chosen by a whole number, episodes by a slice; got {index!r}: for a mask or a list use "
                "select(...)"
            )
        if not -len(self) <= index < len(self):
            raise IndexError(f"episode {index} of {len(self)}")
        index = int(index) % len(self)
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
            f"return {returns.min():.4g} to {returns.max():.4g}, cost {costs.min():.4g} to {costs.max():.4g}"
            + "".join(
                f", {self.metadata[key]} {words}" for key, words in TAILS.items() if self.metadata.get(key)
            )
            + ">"
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
        return _sums(self.rewards, self.starts)

    @property
    def episode_costs(self) -> npt.NDArray[np.float64]:
        """(E,) sum of costs of every episode."""
        return _sums(self.costs, self.starts)

    @property
    def episode_length(self) -> int:
        """The task's time limit as far as known: from the metadata, else the longest episode."""
        return int(self.metadata.get("episode_length") or self.lengths.max())

    def select(self, chosen: Sequence[int] | Sequence[bool] | npt.NDArray[Any]) -> EpisodeDataset:
        """Return the data set of these episodes only.

        Args:
            chosen: a mask (E,) of booleans, or the numbers of episodes in any order.

        Raises:
            DatasetError: it is neither, a mask of another length, names an episode that is not there, or chooses none.
        """
        return EpisodeDataset.from_episodes((self[index] for index in self._chosen(chosen)), self.metadata)

    def _chosen(self, chosen: Any) -> list[int]:
        try:
            found = np.asarray(chosen)
        except ValueError:
            found = np.empty((0, 0))
        if found.ndim != 1 or (found.dtype.kind not in "iub" and found.size):
            raise DatasetError(
                f"episodes are chosen by a list of whole numbers or a mask of {len(self)} booleans; got {chosen!r:.200}"
            )
        if found.dtype.kind == "b":
            if len(found) != len(self):
                raise DatasetError(
                    f"a mask must hold {len(self)} booleans, one for each episode; got {len(found)}"
                )
            found = np.flatnonzero(found)
        outside = [int(index) for index in found if not -len(self) <= index < len(self)]
        if outside:
            raise DatasetError(f"there is no episode {outside[0]}: the data set has {len(self)}, from 0 on")
        if len(found) == 0:
            raise DatasetError("no episode is chosen; a data set needs at least one")
        return [int(index) for index in found]

    def split(self, share: float, seed: int = 0) -> tuple[EpisodeDataset, EpisodeDataset]:
        """Return two data sets: one to learn from, and a random share of the episodes that is held out.

        Both note the split in ``metadata["split"]``; the same share and seed give the same episodes.

        Raises:
            DatasetError: the share is no number, or leaves one of them without an episode; or the seed is none.
        """
        seed = check_seed(seed, error=DatasetError)
        given: Any = share
        if isinstance(given, bool) or not isinstance(given, numbers.Real):
            raise DatasetError(f"share must be a number between 0 and 1; got {share!r}")
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


def _restored(values: dict[str, Any]) -> EpisodeDataset:
    """Return the data set of a pickle, whose arrays nobody else holds."""
    arrays = {name: given_away(value) for name, value in values.items() if isinstance(value, np.ndarray)}
    return EpisodeDataset(**{**values, **arrays})


def _sums(values: Array, starts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the sum (E,) of each episode's values; infinite where it is too large for a number."""
    with np.errstate(over="ignore", invalid="ignore"):
        sums: npt.NDArray[np.float64] = np.add.reduceat(values.astype(np.float64), starts)
    return sums
