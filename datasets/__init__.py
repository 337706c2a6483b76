"""Data sets of logged episodes: ``load`` them by name or path, ``save`` them."""

from __future__ import annotations

import os
from pathlib import Path

from trebi_gym.costs import CostFunction
from trebi_gym.datasets.episode import Episode, EpisodeDataset
from trebi_gym.datasets.normalizers import AffineNormalizer
from trebi_gym.datasets.recipes import RECIPES, data_folders
from trebi_gym.datasets.sources import SOURCES
from trebi_gym.datasets.windows import TrajectoryWindows, Window
from trebi_gym.errors import DatasetError

__all__ = [
    "AffineNormalizer",
    "Episode",
    "EpisodeDataset",
    "TrajectoryWindows",
    "Window",
    "load",
    "resolve",
    "save",
]


def load(name_or_path: str | os.PathLike[str], *, cost: CostFunction | None = None) -> EpisodeDataset:
    """Read a data set by its name or from a file, and validate it once.

    Args:
        name_or_path: a file, or a name such as ``SafePendulum-medium-replay-v0``.
        cost: a cost function that takes the place of the stored costs.

    Raises:
        DatasetError: nothing is found there, or what is found is not a usable data set; the message says what is wrong.
    """
    path = resolve(name_or_path)
    for source in SOURCES.values():
        if source.recognises(path):
            return source.read(path, cost)
    size = path.stat().st_size
    raise DatasetError(
        f"{path} ({size} bytes) is not a data set in a known format ({', '.join(SOURCES)}); "
        "it is no readable HDF5 file with arrays such as observations, actions, rewards, costs"
    )


def resolve(name_or_path: str | os.PathLike[str]) -> Path:
    """Return the file that a name or path stands for.

    Raises:
        DatasetError: there is none; the message lists where it was looked for and the command that builds it.
    """
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise DatasetError(f"a data set is given by its name or file; got {name_or_path!r}")
    path = Path(name_or_path)
    if path.is_file():
        return path
    if path.is_dir():
        raise DatasetError(f"{path} is a folder; give the data set's file")
    name = str(name_or_path)
    looked = [folder / f"{name}.hdf5" for folder in data_folders()]
    for candidate in looked:
        if candidate.is_file():
            return candidate
    places = "\n  ".join(str(candidate) for candidate in (path, *looked))
    message = f"no data set {name!r}; looked for\n  {places}"
    recipe = RECIPES.get(name)
    if recipe is not None:
        message += (
            f"\nbuild it with\n  trebi generate --dataset {recipe.env_id} --datatype {recipe.datatype} "
            f"--total-step {recipe.steps}"
        )
    else:
        message += f"\nknown names: {', '.join(RECIPES)}"
    raise DatasetError(message)


def save(dataset: EpisodeDataset, path: str | os.PathLike[str], *, format: str = "native_hdf5") -> None:
    """Write a data set; the file appears only when it is complete.

    Raises:
        DatasetError: the format is not known.
    """
    if format not in SOURCES:
        raise DatasetError(f"format must be one of {', '.join(SOURCES)}; got {format!r}")
    SOURCES[format].write(dataset, Path(path))
