"""Reading and writing flat arrays in HDF5, as every format of one file does."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from trebi_gym.datasets.episode import EpisodeDataset, given_away, jumps
from trebi_gym.datasets.sources.base import Reading
from trebi_gym.errors import DatasetError
from trebi_gym.files import check_regular, replacing

Array = npt.NDArray[Any]

KEYS = ("observations", "next_observations", "actions", "rewards", "costs", "terminals", "timeouts")
HDF5_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError)
"""What h5py raises for a file that is damaged, depending on where."""
UNSTORED_BYTES = 1 << 29
"""So much may the arrays of a file claim, whatever its size."""
COMPRESSION = 50
"""And so many times its size; recorded episodes shrink to between a half and a twentieth."""

_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def open_guarded(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file that may be a stranger's, for ``member`` to look into.

    Raises:
        DatasetError: it is no regular file.
    """
    check_regular(path, DatasetError)
    with h5py.File(path, "r") as file:
        yield file


def member(group: h5py.Group, key: str) -> h5py.Dataset | h5py.Group | None:
    """Return what a group holds under a name, or under several that ``/`` joins; None where there is nothing.

    HDF5 can make one file read others: by external and soft links, by arrays that are stored elsewhere, and by virtual
    arrays. None of these is followed or opened.

    Raises:
        DatasetError: there is such a thing on the way.
    """
    first, _, rest = key.partition("/")
    where = f"{group.file.filename}: {group.name.rstrip('/')}/{first}"
    try:
        link = group.get(first, getlink=True)
    except KeyError:
        return None
    if link is None:
        return None
    if not isinstance(link, h5py.HardLink):
        raise DatasetError(
            f"{where} is a link to somewhere else, which is not followed; give a file that holds its arrays itself"
        )
    found = group[first]
    if isinstance(found, h5py.Dataset):
        _check_stored_here(found, where)
    elif not isinstance(found, h5py.Group):
        raise DatasetError(f"{where} is neither an array nor a group")
    if not rest:
        return found
    return member(found, rest) if isinstance(found, h5py.Group) else None


def _check_stored_here(array: h5py.Dataset, where: str) -> None:
    layout = array.id.get_create_plist()
    if layout.get_layout() == h5py.h5d.VIRTUAL or layout.get_external_count() > 0:
        raise DatasetError(
            f"{where} is put together from other files, which are not read; give a file that holds it itself"
        )


def check_file(path: Path) -> None:
    """Look through an HDF5 file that another library will read.

    Raises:
        DatasetError: it leads to other files, its arrays claim more than it can hold, or it cannot be read.
    """
    seen: set[int] = set()

    def visit(group: h5py.Group, bound: _Bound) -> None:
        for key in group:
            found = member(group, key)
            assert found is not None
            address = h5py.h5o.get_info(found.id).addr
            if address in seen:
                continue  # a second name of the same thing
            seen.add(address)
            if isinstance(found, h5py.Group):
                visit(found, bound)
            else:
                bound.add(found)

    with _readable(path), open_guarded(path) as file:
        visit(file, _Bound(path))


class _Bound:
    """How many bytes may be read of one file: arrays can claim more than the file holds, and memory would be taken."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._most = UNSTORED_BYTES + COMPRESSION * path.stat().st_size
        self._claimed = 0

    def add(self, array: h5py.Dataset) -> None:
        """Count an array.

        Raises:
            DatasetError: all together claim more than the file can hold.
        """
        self._claimed += int(array.size or 0) * max(array.dtype.itemsize, 1)
        if self._claimed > self._most:
            raise DatasetError(
                f"{self._path}: its arrays claim {self._claimed} bytes and more ({array.name}: {array.shape} of "
                f"{array.dtype}), the file has {self._path.stat().st_size}; it is damaged, or was made to exhaust the memory"
            )


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what h5py raises for a damaged file into one error.

    Raises:
        DatasetError: in its place.
    """
    try:
        yield
    except DatasetError:
        raise
    except (*HDF5_ERRORS, MemoryError, RecursionError) as error:
        raise DatasetError(f"{path} cannot be read as HDF5, perhaps it is cut short: {error}") from error


def top_keys(path: Path) -> tuple[set[str], set[str]] | None:
    """Return the names of a file's members and of its attributes; None where it is not HDF5 or cannot be opened."""
    if not path.is_file() or not h5py.is_hdf5(path):
        return None
    try:
        with open_guarded(path) as file:
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
    needed, optional, bound = list(needed), list(optional), _Bound(path)
    with _readable(path), open_guarded(path) as file:
        found = {key: member(file, key) for key in (*needed, *optional)}
        missing = [key for key in needed if not isinstance(found[key], h5py.Dataset)]
        if missing:
            raise DatasetError(
                f"{path} lacks {', '.join(missing)}; a data set needs {', '.join(needed)}; "
                f"found {', '.join(map(str, file)) or 'nothing'}"
            )
        groups = [key for key in optional if isinstance(found[key], h5py.Group)]
        if groups:
            raise DatasetError(f"{path}: {groups[0]} must be an array of one number a step; found a group")
        group = None if folder is None else member(file, folder)
        if isinstance(group, h5py.Group):
            found |= {f"{folder}/{key}": member(group, key) for key in group}
        arrays = {key: array for key, array in found.items() if isinstance(array, h5py.Dataset)}
        for key, array in arrays.items():
            if array.dtype.kind not in "fiub":
                raise DatasetError(f"{path}: {key} must hold numbers; found {array.dtype}")
            bound.add(array)
        return {key: given_away(np.asarray(array[()])) for key, array in arrays.items()}


def read_metadata(path: Path, attribute: str) -> dict[str, Any]:
    """Return the metadata in one JSON attribute; empty where there is none.

    Raises:
        DatasetError: it is not a JSON object.
    """
    with _readable(path), open_guarded(path) as file:
        stored = file.attrs.get(attribute)
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
    with replacing(path) as temporary:
        # made in memory and written by Python: where the disk is full, HDF5 ends the process
        with h5py.File(temporary.name, "w", driver="core", backing_store=False) as file:
            for key, array in arrays.items():
                file.create_dataset(key, data=array, compression="gzip", compression_opts=9, shuffle=True)
            file.attrs[attribute] = document
            file.flush()
            image = file.id.get_file_image()
        temporary.write_bytes(image)


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
