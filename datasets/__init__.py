"""Data sets of logged episodes: ``load_dataset`` them by name or path, ``save_dataset`` them."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from trebi_gym.checks import is_whole
from trebi_gym.costs import CostFunction, resolve_cost
from trebi_gym.datasets.episode import Episode, EpisodeDataset
from trebi_gym.datasets.normalizers import AffineNormalizer
from trebi_gym.datasets.recipes import RECIPES, how_to_get, places, recipe_for_file
from trebi_gym.datasets.sources import SOURCES, Reading
from trebi_gym.datasets.windows import TrajectoryWindows, Window
from trebi_gym.errors import DatasetError

__all__ = [
    "AffineNormalizer",
    "Episode",
    "EpisodeDataset",
    "TrajectoryWindows",
    "Window",
    "load",
    "load_dataset",
    "resolve",
    "save",
    "save_dataset",
]


def load_dataset(
    name_or_path: str | os.PathLike[str],
    *,
    cost: CostFunction | str | None = None,
    name: str | None = None,
    episode_length: int | None = None,
) -> EpisodeDataset:
    """Read a data set by its name or from a file or folder, and validate it once.

    Args:
        name_or_path: a file or folder, or a name such as ``SafePendulum-medium-replay-v0``.
        cost: a cost function, or its ``"module:name"``, that takes the place of the stored costs.
        name: the known name of what the file holds, such as ``hopper-medium-v2``, where its own does not say so.
        episode_length: the task's time limit in steps, in the place of what the file or the name tells.

    Raises:
        DatasetError: nothing is found there, or what is found is not a usable data set; the message says what is wrong.
        EnvironmentContractError: no such cost function.
    """
    if name is not None and name not in RECIPES:
        raise DatasetError(f"name must be one of the known data sets {', '.join(RECIPES)}; got {name!r}")
    if episode_length is not None and not (is_whole(episode_length) and episode_length >= 1):
        raise DatasetError(f"episode_length must be a number of steps, at least 1; got {episode_length!r}")
    path = resolve(name_or_path)
    reading = Reading(
        cost=None if cost is None else resolve_cost(cost),
        episode_length=episode_length,
        recipe=RECIPES[name] if name is not None else recipe_for_file(path),
    )
    for source in SOURCES.values():
        if source.recognises(path):
            return _told(source.read(path, reading), path, cost, episode_length)
    if path.is_dir():
        raise DatasetError(
            f"{path} is a folder but no Minari data set; give the data set's file or Minari folder"
        )
    raise DatasetError(
        f"{path} ({path.stat().st_size} bytes) is not a data set in a known format ({', '.join(SOURCES)}); "
        "it is no readable HDF5 file with arrays such as observations, actions, rewards, costs"
    )


def _told(
    dataset: EpisodeDataset, path: Path, cost: CostFunction | str | None, episode_length: int | None
) -> EpisodeDataset:
    """Note in the metadata what the caller of ``load_dataset`` said."""
    told: dict[str, Any] = {}
    if cost is not None:
        # what is published for the data set, such as its budgets, does not hold for other costs
        told["replaced_cost"] = cost if isinstance(cost, str) else getattr(cost, "__qualname__", repr(cost))
    if episode_length is not None:
        longest = int(dataset.lengths.max())
        if longest > episode_length:
            raise DatasetError(
                f"{path}: an episode has {longest} steps, more than the given episode_length of {episode_length}"
            )
        told["episode_length"] = int(episode_length)
    return replace(dataset, metadata={**dataset.metadata, **told}) if told else dataset


def resolve(name_or_path: str | os.PathLike[str]) -> Path:
    """Return the file or folder that a name or path stands for.

    Raises:
        DatasetError: there is none; the message lists where it was looked for and the commands that get or build it.
    """
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise DatasetError(f"a data set is given by its name or file; got {name_or_path!r}")
    path = Path(name_or_path)
    # a folder that only happens to be called like a data set does not hide it
    if _exists(path) and (path.is_file() or any(source.recognises(path) for source in SOURCES.values())):
        return path
    name = str(name_or_path)
    looked = places(name)
    found = next((place for place in looked if _exists(place)), None)
    if found is not None:
        return found
    if _exists(path):
        return path
    listed = "\n  ".join(map(str, (path, *looked)))
    raise DatasetError(f"no data set {name!r}; looked for\n  {listed}\n{how_to_get(name)}")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long for a file
        return False


def save_dataset(
    dataset: EpisodeDataset, path: str | os.PathLike[str], *, format: str = "native_hdf5"
) -> None:
    """Write a data set; the file appears only when it is complete.

    Raises:
        DatasetError: the format is not known.
    """
    if format not in SOURCES:
        raise DatasetError(f"format must be one of {', '.join(SOURCES)}; got {format!r}")
    SOURCES[format].write(dataset, Path(path))


load, save = load_dataset, save_dataset
"""Short names of the two."""
