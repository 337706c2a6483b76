"""Reading and writing flat arrays in HDF5, as every format of one file does."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from trebi_gym.datasets.episode import EpisodeDataset
from trebi_gym.datasets.sources.base import Reading
from trebi_gym.datasets.splitting import jumps
from trebi_gym.errors import DatasetError
from trebi_gym.files import replacing

Array = npt.NDArray[Any]

KEYS = ("observations", "next_observations", "actions", "rewards", "costs", "terminals", "timeouts")
HDF5_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError)
"""What h5py raises for a file that is damaged, depending on where."""
MOST_BYTES_UNSTORED = 1 << 30
"""An array that claims more than this, and more than compression can explain, is refused before memory is taken."""
MOST_COMPRESSION = 1_100
"""Deflate shrinks nothing further."""

_logger = logging.getLogger(__name__)


def top_keys(path: Path) -> tuple[set[str], set[str]] | None:
    """Return the names of a file's members and of its attributes; None where it is not HDF5 or cannot be opened."""
    if not path.is_file() or not h5py.is_hdf5(path):
        return None
    try:
        with h5py.File(path, "r") as file:
            return set(map(str, file)), set(map(str, file.attrs))
    except HDF5_ERRORS:
        return None


def is_damaged(path: Path) -> bool:
    """Whether a file begins as HDF5 does but cannot be opened: cut short, most often."""
    return path.is_file() and bool(h5py.is_hdf5(path)) and top_keys(path) is None


def read_flat(
    path: Path, needed: Iterable[str], optional: Iterable[str] = (), folder: str | None = None
) -> dict[str, Array]:
    """Read flat arrays of steps.

    Args:
        path: the file.
        needed: keys that must be there.
        optional: keys that are read where they are.
        folder: a group of which every array is read too, as ``folder/name``.

    Raises:
        DatasetError: the file is cut short or damaged, or keys are missing.
    """
    needed = list(needed)
    try:
        with h5py.File(path, "r") as file:
            missing = [key for key in needed if not isinstance(file.get(key), h5py.Dataset)]
            if missing:
                raise DatasetError(
                    f"{path} lacks {', '.join(missing)}; a data set needs {', '.join(needed)}; "
                    f"found {', '.join(map(str, file)) or 'nothing'}"
                )
            there = [key for key in optional if isinstance(file.get(key), h5py.Dataset)]
            if folder is not None and isinstance(file.get(folder), h5py.Group):
                group = file[folder]
                there += [f"{folder}/{key}" for key in group if isinstance(group[key], h5py.Dataset)]
            return {key: _array(file[key], path) for key in (*needed, *there)}
    except DatasetError:
        raise
    except (*HDF5_ERRORS, MemoryError) as error:
        raise DatasetError(f"{path} cannot be read as HDF5, perhaps it is cut short: {error}") from error


def read_metadata(path: Path, attribute: str) -> dict[str, Any]:
    """Return the metadata in one JSON attribute; empty where there is none.

    Raises:
        DatasetError: it is not a JSON object.
    """
    try:
        with h5py.File(path, "r") as file:
            stored = file.attrs.get(attribute)
    except HDF5_ERRORS as error:
        raise DatasetError(f"{path} cannot be read as HDF5, perhaps it is cut short: {error}") from error
    if stored is None:
        return {}
    try:
        metadata = json.loads(stored)
    except (TypeError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: its attribute {attribute!r} is not JSON: {error}") from error
    if not isinstance(metadata, dict):
        raise DatasetError(f"{path}: its attribute {attribute!r} must hold a JSON object; found {metadata!r}")
    return metadata


def write_flat(path: Path, arrays: Mapping[str, Array], metadata: Mapping[str, Any], attribute: str) -> None:
    """Write compressed arrays and one JSON attribute, to a temporary name that is then moved into place.

    Raises:
        DatasetError: the metadata are not plain JSON.
    """
    document = json_text(metadata)
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        for key, array in arrays.items():
            file.create_dataset(key, data=array, compression="gzip", compression_opts=9, shuffle=True)
        file.attrs[attribute] = document


def json_text(metadata: Mapping[str, Any]) -> str:
    """Return metadata as JSON.

    Raises:
        DatasetError: they are not plain JSON.
    """
    try:
        return json.dumps(dict(metadata), sort_keys=True)
    except (TypeError, ValueError) as error:
        raise DatasetError(f"the metadata of a data set must be plain JSON: {error}") from error


def flat_arrays(dataset: EpisodeDataset) -> dict[str, Array]:
    """Return a data set's episodes as flat arrays (S, ...) under the keys of ``KEYS``."""
    rows = dataset.observation_rows
    ends = dataset.starts + dataset.lengths - 1
    terminals = np.zeros(dataset.n_steps, dtype=np.bool_)
    timeouts = np.zeros(dataset.n_steps, dtype=np.bool_)
    terminals[ends] = dataset.terminated
    # every episode must end somewhere: one that neither flag ends is closed as a timeout
    timeouts[ends] = dataset.truncated | ~dataset.terminated
    return {
        "observations": dataset.observations[rows],
        "next_observations": dataset.observations[rows + 1],
        "actions": dataset.actions,
        "rewards": dataset.rewards,
        "costs": dataset.costs,
        "terminals": terminals,
        "timeouts": timeouts,
    }


def following_observations(arrays: Mapping[str, Array]) -> Array:
    """Return (S, O) the observation after each step, where a file has none: after an episode's last step, the last one."""
    observations = arrays["observations"]
    following: Array = np.concatenate([observations[1:], observations[-1:]])
    ends = np.flatnonzero(arrays["terminals"].astype(np.bool_) | arrays["timeouts"].astype(np.bool_))
    following[ends] = observations[ends]
    return following


REPEATED = "the observation after an episode's last step is not in the file: the last one is repeated"


def end_at_jumps(arrays: dict[str, Array], path: Path, *, expected: int | None = None) -> list[str]:
    """Mark a timeout wherever the next observation is not the following step's; return a note about how many.

    Files of others have such places: episodes that were put one after the other without their ends. An episode of
    ``expected`` steps, the time limit of a file without marks, is not worth a note.

    Raises:
        DatasetError: so many that the next observations cannot be what their name says.
    """
    if "next_observations" not in arrays:
        return []
    ends = arrays["terminals"].astype(np.bool_) | arrays["timeouts"].astype(np.bool_)
    found = jumps(arrays["observations"], arrays["next_observations"], ends)
    if not len(found):
        return []
    if len(found) > len(ends) / 2:
        raise DatasetError(
            f"{path}: next_observations differ from the following step's observations at {len(found)} of {len(ends)} "
            "steps, so they are not what their name says, or the steps are not in order"
        )
    timeouts = arrays["timeouts"].astype(np.bool_)
    timeouts[found] = True
    arrays["timeouts"] = timeouts
    if expected is not None:
        every = np.flatnonzero(ends | timeouts)
        steps = np.diff(every, prepend=-1)
        found = found[steps[np.searchsorted(every, found)] % expected != 0]
        if not len(found):
            return []
    note = f"{len(found)} episodes end where next_observations jump although no end is marked, first at step {found[0]}"
    _logger.warning("%s: %s", path, note)
    return [note]


def foreign_metadata(
    stored: Mapping[str, Any], path: Path, reading: Reading, notes: list[str]
) -> dict[str, Any]:
    """Return the metadata of a file that may be another's: what is stored, else what its name and the reading tell."""
    recipe = reading.recipe
    known: dict[str, Any] = {"name": path.stem if recipe is None else recipe.name}
    if recipe is not None:
        known["env_id"] = recipe.env_id
    if reading.time_limit is not None:
        known["episode_length"] = reading.time_limit
    metadata = {**known, **stored}
    if notes:
        before = metadata.get("notes")
        metadata["notes"] = [*(before if isinstance(before, list) else []), *notes]
    return metadata


def _array(stored: h5py.Dataset, path: Path) -> Array:
    size = stored.size or 0
    claimed = size * stored.dtype.itemsize
    if claimed > MOST_BYTES_UNSTORED and claimed > MOST_COMPRESSION * stored.id.get_storage_size():
        raise DatasetError(
            f"{path}: {stored.name} claims {stored.shape} numbers but stores {stored.id.get_storage_size()} bytes"
        )
    if stored.is_virtual:
        raise DatasetError(
            f"{path}: {stored.name} is put together from other files, which may be missing; give a file that holds it"
        )
    array: Array = np.asarray(stored[()])
    return array
