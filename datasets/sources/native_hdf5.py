"""Our own HDF5: the flat keys of a DSRL file, with the metadata as one JSON attribute.

Every step is a row of ``observations, next_observations, actions, rewards, costs, terminals, timeouts``; an episode
ends at ``terminals | timeouts``. Any reader of DSRL files reads these.
"""

from __future__ import annotations

from pathlib import Path

from trebi_gym.datasets.episode import EpisodeDataset
from trebi_gym.datasets.sources.base import Reading
from trebi_gym.datasets.sources.hdf5 import (
    KEYS,
    flat_arrays,
    is_damaged,
    read_flat,
    read_metadata,
    top_keys,
    write_flat,
)
from trebi_gym.errors import DatasetError

METADATA = "trebi_gym"


class NativeHDF5:
    """The format that ``save`` writes."""

    def recognises(self, path: Path) -> bool:
        """Whether ``path`` has our attribute, or is an HDF5 file that is cut short, which ``read`` then says."""
        found = top_keys(path)
        return is_damaged(path) if found is None else METADATA in found[1]

    def read(self, path: Path, reading: Reading) -> EpisodeDataset:
        """Read and validate.

        Raises:
            DatasetError: the file is cut short, keys are missing, or what they hold does not fit.
        """
        arrays = read_flat(path, [key for key in KEYS if not (key == "costs" and reading.cost is not None)])
        metadata = read_metadata(path, METADATA)
        try:
            if reading.cost is not None:
                arrays["costs"] = reading.costs(
                    arrays["observations"], arrays["actions"], arrays["next_observations"], {}
                )
            return EpisodeDataset.from_steps(**arrays, metadata=metadata)
        except DatasetError as error:
            raise DatasetError(f"{path}: {error}") from error

    def write(self, dataset: EpisodeDataset, path: Path) -> None:
        """Write compressed, to a temporary name that is then moved into place.

        Raises:
            DatasetError: the metadata are not plain JSON.
        """
        write_flat(path, flat_arrays(dataset), dataset.metadata, METADATA)
