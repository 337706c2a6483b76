"""DSRL's HDF5 (arXiv 2306.09303): flat arrays of steps, with the cost of each step as it was recorded.

The keys are ``observations, next_observations, actions, rewards, costs, terminals, timeouts``; an episode ends at
``terminals | timeouts``. A log of one's own that has these keys is one, also without ``next_observations``.
"""

from __future__ import annotations

from pathlib import Path

from trebi_gym.datasets.episode import EpisodeDataset, check_steps
from trebi_gym.datasets.sources.base import Reading
from trebi_gym.datasets.sources.hdf5 import (
    KEYS,
    REPEATED,
    end_at_jumps,
    flat_arrays,
    following_observations,
    foreign_metadata,
    read_flat,
    read_metadata,
    top_keys,
    write_flat,
)
from trebi_gym.datasets.sources.native_hdf5 import METADATA as NATIVE
from trebi_gym.errors import DatasetError

METADATA = "trebi_gym_dsrl"
"""An attribute that we add for ourselves; files of others have none."""


class DSRL:
    """Flat steps with costs."""

    def recognises(self, path: Path) -> bool:
        """Whether ``path`` is an HDF5 file with a flat array of costs, and not our own."""
        found = top_keys(path)
        return found is not None and "costs" in found[0] and NATIVE not in found[1]

    def read(self, path: Path, reading: Reading) -> EpisodeDataset:
        """Read and validate.

        Raises:
            DatasetError: keys are missing, or what they hold does not fit.
        """
        arrays = read_flat(path, [key for key in KEYS if key != "next_observations"], ["next_observations"])
        metadata = read_metadata(path, METADATA)
        try:
            arrays = check_steps(arrays)
            notes = end_at_jumps(arrays, path)
            if "next_observations" not in arrays:
                notes.append(REPEATED)
                arrays["next_observations"] = following_observations(arrays)
            if reading.cost is not None:
                arrays["costs"] = reading.costs(
                    arrays["observations"], arrays["actions"], arrays["next_observations"], {}
                )
            metadata = foreign_metadata(metadata, path, reading, notes)
            return EpisodeDataset.from_steps(**arrays, metadata=metadata)
        except DatasetError as error:
            raise DatasetError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error

    def write(self, dataset: EpisodeDataset, path: Path) -> None:
        """Write compressed, to a temporary name that is then moved into place.

        Raises:
            DatasetError: the metadata are not plain JSON.
        """
        write_flat(path, flat_arrays(dataset), dataset.metadata, METADATA)
