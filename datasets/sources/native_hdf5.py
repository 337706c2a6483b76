"""Our own HDF5: the flat keys of a DSRL file, with the metadata as one JSON attribute.

Every step is a row of ``observations, next_observations, actions, rewards, costs, terminals, timeouts``; an episode
ends at ``terminals | timeouts``. Any reader of DSRL files reads these.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from trebi_gym.datasets.episode import EpisodeDataset
from trebi_gym.datasets.sources.base import Reading
from trebi_gym.errors import DatasetError
from trebi_gym.files import replacing

Array = npt.NDArray[Any]

KEYS = ("observations", "next_observations", "actions", "rewards", "costs", "terminals", "timeouts")
METADATA = "trebi_gym"
HDF5_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError)
"""What h5py raises for a file that is damaged, depending on where."""
MOST_BYTES_UNSTORED = 1 << 30
"""An array that claims more than this, and more than compression can explain, is refused before memory is taken."""
MOST_COMPRESSION = 1_100
"""Deflate shrinks nothing further."""


class NativeHDF5:
    """The format that ``save`` writes."""

    def recognises(self, path: Path) -> bool:
        """Whether ``path`` is an HDF5 file with flat step arrays, or one that is cut short, which ``read`` then says."""
        if not path.is_file() or not h5py.is_hdf5(path):
            return False
        try:
            with h5py.File(path, "r") as file:
                return METADATA in file.attrs or any(key in file for key in KEYS)
        except HDF5_ERRORS:
            return True

    def read(self, path: Path, reading: Reading) -> EpisodeDataset:
        """Read and validate.

        Raises:
            DatasetError: the file is cut short, keys are missing, or what they hold does not fit.
        """
        cost = reading.cost
        needed = [key for key in KEYS if not (key == "costs" and cost is not None)]
        try:
            with h5py.File(path, "r") as file:
                missing = [key for key in needed if not isinstance(file.get(key), h5py.Dataset)]
                if missing:
                    raise DatasetError(
                        f"{path} lacks {', '.join(missing)}; a data set needs {', '.join(needed)}; "
                        f"found {', '.join(map(str, file)) or 'nothing'}"
                    )
                arrays: dict[str, Array] = {key: _array(file[key], path) for key in needed}
                metadata = _metadata(file.attrs.get(METADATA), path)
        except DatasetError:
            raise
        except (*HDF5_ERRORS, MemoryError) as error:
            raise DatasetError(f"{path} cannot be read as HDF5, perhaps it is cut short: {error}") from error
        if cost is not None:
            arrays["costs"] = np.asarray(
                cost(arrays["observations"], arrays["actions"], arrays["next_observations"], {})
            )
        try:
            return EpisodeDataset.from_steps(**arrays, metadata=metadata)
        except DatasetError as error:
            raise DatasetError(f"{path}: {error}") from error

    def write(self, dataset: EpisodeDataset, path: Path) -> None:
        """Write compressed, to a temporary name that is then moved into place.

        Raises:
            DatasetError: the metadata are not plain JSON.
        """
        rows = dataset.observation_rows
        ends = dataset.starts + dataset.lengths - 1
        terminals = np.zeros(dataset.n_steps, dtype=np.bool_)
        timeouts = np.zeros(dataset.n_steps, dtype=np.bool_)
        terminals[ends] = dataset.terminated
        # every episode must end somewhere: one that neither flag ends is closed as a timeout
        timeouts[ends] = dataset.truncated | ~dataset.terminated
        arrays: dict[str, Array] = {
            "observations": dataset.observations[rows],
            "next_observations": dataset.observations[rows + 1],
            "actions": dataset.actions,
            "rewards": dataset.rewards,
            "costs": dataset.costs,
            "terminals": terminals,
            "timeouts": timeouts,
        }
        try:
            metadata = json.dumps(dict(dataset.metadata), sort_keys=True)
        except (TypeError, ValueError) as error:
            raise DatasetError(f"the metadata of a data set must be plain JSON: {error}") from error
        with replacing(path) as temporary, h5py.File(temporary, "w") as file:
            for key, array in arrays.items():
                file.create_dataset(key, data=array, compression="gzip", compression_opts=9, shuffle=True)
            file.attrs[METADATA] = metadata


def _array(stored: h5py.Dataset, path: Path) -> Array:
    size = stored.size or 0
    claimed = size * stored.dtype.itemsize
    if claimed > MOST_BYTES_UNSTORED and claimed > MOST_COMPRESSION * stored.id.get_storage_size():
        raise DatasetError(
            f"{path}: {stored.name} claims {stored.shape} numbers but stores {stored.id.get_storage_size()} bytes"
        )
    array: Array = np.asarray(stored[()])
    return array


def _metadata(stored: Any, path: Path) -> dict[str, Any]:
    if stored is None:
        return {}
    try:
        metadata = json.loads(stored)
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{path}: its attribute {METADATA!r} is not JSON: {error}") from error
    if not isinstance(metadata, dict):
        raise DatasetError(f"{path}: its attribute {METADATA!r} must hold a JSON object; found {metadata!r}")
    return metadata
