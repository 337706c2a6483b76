"""Logged episodes: checked once, immutable afterwards."""

from __future__ import annotations

import copy
import logging
import numbers
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from trebi_gym.checks import check_seed, is_whole
from trebi_gym.errors import DatasetError

Array = npt.NDArray[Any]


def check_finite(name: str, array: Array) -> None:
    """Raise if an array holds NaN or infinite values, naming the first.

    Raises:
        DatasetError: with the index of the first such value.
    """
    if array.dtype.kind not in "fiub":
        raise DatasetError(f"{name} must hold numbers; found {array.dtype}")
    finite = np.isfinite(array)
    if not finite.all():
        first = tuple(int(i) for i in np.unravel_index(int((~finite).argmax()), array.shape))
        index = ", ".join(map(str, first))
        raise DatasetError(
            f"{name}[{index}] is {array[first]}; {int((~finite).sum())} of {array.size} values are NaN or infinite: "
            "remove those episodes or mend the recording"
        )


def frozen(array: Array) -> Array:
    """Return the same numbers so that nobody can change them: a copy, unless the memory cannot be written to anyway."""
    if _is_writable(array):
        array = array.copy()
    view = array.view()
    view.flags.writeable = False
    if view.base is not None and isinstance(view.base, np.ndarray):
        view.base.flags.writeable = False
    return view


def given_away(array: Array) -> Array:
    """Return an array that nobody else holds as one that cannot be written to, so that ``frozen`` need not copy it."""
    array.flags.writeable = False
    return array


def _is_writable(array: Any) -> bool:
    """Return whether the array, or any array that it is a view of, can be written to."""
    while isinstance(array, np.ndarray):
        if array.flags.writeable:
            return True
        array = array.base
    return False


_logger = logging.getLogger(__name__)

MATRICES = ("observations", "next_observations", "actions")
CHUNK = 1 << 18
"""Rows that are compared at once, so that no second copy of large arrays is made."""


def check_steps(arrays: Mapping[str, Any]) -> dict[str, Array]:
    """Return flat arrays of S steps as they should be: equal lengths, right dimensions, finite.

    A column (S, 1) of numbers that should be (S,) is taken as such.

    Raises:
        DatasetError: lengths that differ, a wrong number of dimensions, NaN or infinite values, flags other than 0 and 1.
    """
    checked = {name: np.asarray(array) for name, array in arrays.items()}
    for name, array in checked.items():
        if name not in MATRICES and array.ndim == 2 and array.shape[1] == 1:
            checked[name] = array[:, 0]
    sizes = {name: array.shape[0] if array.ndim else 0 for name, array in checked.items()}
    if len(set(sizes.values())) > 1:
        raise DatasetError(f"all arrays must hold the same number of steps; found {sizes}")
    for name, array in checked.items():
        if array.ndim != (2 if name in MATRICES else 1):
            shape = "two dimensions (steps, features)" if name in MATRICES else "one dimension (steps,)"
            raise DatasetError(f"{name} must have {shape}; found {array.shape}")
        check_finite(name, array)
        if name in ("terminals", "timeouts") and not np.isin(array, (0, 1)).all():
            raise DatasetError(
                f"{name} must hold 0 and 1, or False and True; found {np.unique(array)[:5].tolist()}"
            )
    if "next_observations" in checked and checked["observations"].shape != checked["next_observations"].shape:
        raise DatasetError(
            "observations and next_observations must have the same shape; "
            f"found {checked['observations'].shape} and {checked['next_observations'].shape}"
        )
    return checked


def jumps(
    observations: Array, next_observations: Array, ends: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    """Return the steps at which no end is marked although the next observation is not the following step's.

    Numbers of different precision, such as float32 beside float64, are compared in the coarser one.

    Args:
        observations: (S, O).
        next_observations: (S, O).
        ends: (S,) steps that are marked as an episode's last.
    """
    found = []
    kinds = [observations.dtype, next_observations.dtype]
    both = all(kind.kind == "f" for kind in kinds)
    coarser = min(kinds, key=lambda kind: kind.itemsize) if both else np.result_type(*kinds)
    for first in range(0, len(ends) - 1, CHUNK):
        rows = slice(first, min(first + CHUNK, len(ends) - 1))
        following = slice(rows.start + 1, rows.stop + 1)
        with np.errstate(over="ignore"):  # what is too large for the coarser precision is infinite there
            after = next_observations[rows].astype(coarser, copy=False)
            before = observations[following].astype(coarser, copy=False)
        differs = (after != before).any(axis=1) & ~ends[rows]
        found.append(np.flatnonzero(differs) + first)
    return np.concatenate(found) if found else np.empty(0, dtype=np.int64)


def timeouts_by_length(ends: npt.NDArray[np.bool_], limit: int) -> npt.NDArray[np.bool_]:
    """Return (S,) the steps at which a time limit of ``limit`` steps ended an episode, counted from the end before.

    Args:
        ends: (S,) all ends that are known otherwise: by the task, or since the following step does not go on.
        limit: the longest episode, in steps.
    """
    known = np.flatnonzero(ends)
    rows = np.arange(len(ends))
    starts = np.concatenate([[0], known + 1])
    within = rows - starts[np.searchsorted(known, rows, side="left")]
    reached: npt.NDArray[np.bool_] = ((within + 1) % limit == 0) & ~ends
    return reached


def split(arrays: Mapping[str, Array], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of an ``EpisodeDataset``, from checked flat arrays.

    Steps after the last marked end are an episode whose recording stopped before its end. They are kept as a truncated
    episode, counted in ``metadata["unfinished_steps"]``. If they are more than the ``episode_length`` in the metadata they
    cannot be one episode: then they are left out, and ``metadata["dropped_steps"]`` counts them. Both are warned of.
    Without ``next_observations`` the observation after an episode's last step is not known, and that of the last step is
    repeated; nothing that is learned reads it.

    Raises:
        DatasetError: no finished episode, or a next observation that is not the following step's observation although
            the episode goes on.
    """
    terminal, timeout = (arrays[name].astype(np.bool_) for name in ("terminals", "timeouts"))
    marked = terminal | timeout
    ends = np.flatnonzero(marked)
    if len(ends) == 0:
        raise DatasetError(
            f"none of the {len(marked)} steps is marked in terminals or timeouts, "
            "so the data hold no finished episode; mark at least the last step of every episode"
        )
    information = dict(metadata)
    steps, tail = len(marked), len(marked) - 1 - int(ends[-1])
    limit = information.get("episode_length")
    if tail and is_whole(limit) and 1 <= limit < tail:
        steps -= tail
        information["dropped_steps"] = tail
        _logger.warning(
            "the last %d steps have no marked end and are more than an episode of %d steps: they are left out",
            tail,
            limit,
        )
    elif tail:
        ends = np.append(ends, steps - 1)
        information["unfinished_steps"] = tail
        _logger.warning("the last %d steps have no marked end: they are kept as a truncated episode", tail)
    lengths = np.diff(ends, prepend=-1)
    observations = arrays["observations"]
    following = arrays.get("next_observations")
    if following is not None:
        found = jumps(observations[:steps], following[:steps], marked[:steps])
        if len(found):
            row = int(found[0])
            raise DatasetError(
                f"next_observations[{row}] differs from observations[{row + 1}] although no episode ends at step "
                f"{row}; mark the end of every episode in terminals or timeouts"
            )
    # every step's observation, and behind every episode the one that its last step led to
    joined = np.empty((steps + len(ends), observations.shape[1]), observations.dtype)
    joined[np.arange(steps) + np.repeat(np.arange(len(ends)), lengths)] = observations[:steps]
    joined[ends + np.arange(len(ends)) + 1] = (observations if following is None else following)[ends]
    return {
        "observations": given_away(joined),
        "actions": arrays["actions"][:steps],
        "rewards": arrays["rewards"][:steps],
        "costs": arrays["costs"][:steps],
        "lengths": lengths,
        "terminated": terminal[ends],
        "truncated": ~terminal[ends],
        "metadata": information,
    }


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
