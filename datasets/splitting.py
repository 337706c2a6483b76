"""From flat steps to episodes: where one ends, and what is known of its last observation."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from trebi_gym.checks import is_whole
from trebi_gym.datasets.arrays import check_finite, given_away
from trebi_gym.errors import DatasetError

Array = npt.NDArray[Any]

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
