"""Minari's data sets: a folder with ``data/metadata.json`` and the episodes in HDF5, Arrow or Parquet.

An episode of L steps has L + 1 observations. ``infos/cost`` has L + 1 values where Minari's collector recorded it, the
first at reset, so that the cost of step t is value t + 1; files by others may have L, one a step.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from trebi_gym.datasets.episode import Episode, EpisodeDataset
from trebi_gym.datasets.recipes import minari_folder
from trebi_gym.datasets.sources.base import Reading
from trebi_gym.datasets.sources.hdf5 import HDF5_ERRORS, check_file, json_text
from trebi_gym.datasets.spaces import registered_spaces
from trebi_gym.errors import DatasetError, EnvironmentContractError, StorageError
from trebi_gym.files import check_regular, check_room, read_json, replacing_folder

Array = npt.NDArray[Any]

METADATA = "trebi_gym"
"""A key that we add to ``metadata.json`` for ourselves."""
REMEDIES = {"arrow": "trebi-gym[arrow]", "parquet": "trebi-gym[arrow]"}
PROBLEMS = (
    *HDF5_ERRORS,
    ArithmeticError,
    AssertionError,
    AttributeError,
    IndexError,
    RecursionError,
    gym.error.Error,
)
"""What Minari raises for a data set that is damaged, depending on where."""


class Minari:
    """Folders that ``minari.load_dataset`` reads."""

    def recognises(self, path: Path) -> bool:
        """Whether ``path`` is a Minari data set's folder, its ``data`` folder, or a file in that."""
        return _data_folder(path) is not None

    def read(self, path: Path, reading: Reading) -> EpisodeDataset:
        """Read and validate. An episode that neither flag ends counts as ended by the time limit.

        Raises:
            DatasetError: the folder is damaged, its spaces are no boxes of one dimension, or there are no costs.
        """
        # absolute: Minari joins a relative path to itself
        folder = _data_folder(path.absolute())
        assert folder is not None
        description = _description(folder)
        try:
            return _read(folder, description, reading)
        except (DatasetError, EnvironmentContractError) as error:
            raise DatasetError(f"{path}: {error}") from error
        except ImportError as error:
            remedy = REMEDIES.get(str(description.get("data_format")), "minari")
            raise DatasetError(f"{path} needs another package: pip install '{remedy}' ({error})") from error
        except (*PROBLEMS, MemoryError) as error:
            raise DatasetError(
                f"{path} cannot be read as a Minari data set, perhaps it is damaged: {error}"
            ) from error

    def write(self, dataset: EpisodeDataset, path: Path) -> None:
        """Write a folder in HDF5, under a temporary name that is then moved into place.

        Below Minari's own folder the id is the path from there, so that ``minari.load_dataset`` finds it; elsewhere
        it is the folder's name.

        Raises:
            DatasetError: the id is none that Minari takes, something is there already, or the metadata are not plain
                JSON.
        """
        from minari.dataset.minari_dataset import DATASET_ID_RE

        target = path.absolute()
        root = minari_folder().absolute()
        name = target.relative_to(root).as_posix() if target.is_relative_to(root) else target.name
        if DATASET_ID_RE.fullmatch(name) is None:
            raise DatasetError(
                f"{name!r} is no id of a Minari data set; it is written NAMESPACE/NAME-v0, of letters, digits, - and _"
            )
        if target.exists():
            raise DatasetError(f"{target} exists already; delete it, or choose another place")
        json_text(dataset.metadata)
        try:
            # HDF5 ends badly where the disk is full
            check_room(target, sum(array.nbytes for array in _arrays(dataset)))
            with replacing_folder(target) as temporary:
                _write(dataset, temporary / "data", name)
        except RuntimeError as error:  # what h5py raises where the disk is full
            raise StorageError(
                f"{target} could not be written: {error}; free space or choose another place"
            ) from error


def _arrays(dataset: EpisodeDataset) -> tuple[Array, ...]:
    return dataset.observations, dataset.actions, dataset.rewards, dataset.costs


def _data_folder(path: Path) -> Path | None:
    folder = path.parent if path.is_file() and path.suffix == ".hdf5" else path
    for candidate in (folder / "data", folder) if path.is_dir() else (folder,):
        if (candidate / "metadata.json").is_file() and (path.is_dir() or path.name == "main_data.hdf5"):
            return candidate
    return None


def _description(folder: Path) -> dict[str, Any]:
    _check_inside(folder)
    found = read_json(folder / "metadata.json", "the description of a Minari data set", DatasetError)
    # without the spaces Minari would make the environment that the file names, and so run what a stranger chose
    needed = ("observation_space", "action_space", "data_format", "total_episodes")
    missing = [key for key in needed if key not in found] if isinstance(found, dict) else list(needed)
    if missing:
        raise DatasetError(f"{folder / 'metadata.json'} lacks {', '.join(missing)}")
    return dict(found)


def _check_inside(folder: Path) -> None:
    """Raise unless all files of a data set lie in its folder and hold their numbers themselves.

    Raises:
        DatasetError: one is a link to elsewhere, a pipe or a device, or leads to other files.
    """
    inside = os.path.realpath(folder)
    for path in sorted(folder.rglob("*")):
        if not Path(os.path.realpath(path)).is_relative_to(inside):
            raise DatasetError(
                f"{path} is a link that leaves the data set's folder; give a folder that holds its files"
            )
        if not path.is_dir():
            check_regular(path, DatasetError)
        if path.suffix in (".hdf5", ".h5"):
            check_file(path)


def _read(folder: Path, description: Mapping[str, Any], reading: Reading) -> EpisodeDataset:
    from minari.dataset.minari_storage import MinariStorage

    storage = MinariStorage.read(folder)
    for name, space in (("observation", storage.observation_space), ("action", storage.action_space)):
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
            raise DatasetError(
                f"its {name}s are {space}; a Box of one dimension is needed: flatten them and write the data set anew"
            )
    ours = description.get(METADATA)
    metadata: dict[str, Any] = dict(ours) if isinstance(ours, dict) else _foreign(description, folder)
    episodes = [
        _episode(found, reading) for found in storage.get_episodes(range(int(description["total_episodes"])))
    ]
    if reading.recipe is not None:
        metadata.setdefault("env_id", reading.recipe.env_id)
    return EpisodeDataset.from_episodes(episodes, metadata)


def _episode(found: Mapping[str, Any], reading: Reading) -> Episode:
    rewards = np.asarray(found["rewards"])
    steps = len(rewards)
    where = f"episode {found['id']}"
    observations, actions = np.asarray(found["observations"]), np.asarray(found["actions"])
    if observations.shape[:1] != (steps + 1,) or actions.shape[:1] != (steps,):
        raise DatasetError(
            f"{where} has {steps} rewards and so needs {steps + 1} observations and {steps} actions; "
            f"found {len(observations)} and {len(actions)}"
        )
    infos = _by_step(found.get("infos") or {}, steps)
    if reading.cost is not None:
        costs = reading.costs(observations[:-1], actions, observations[1:], infos)
    elif "cost" in infos:
        costs = infos["cost"]
    else:
        stored = (found.get("infos") or {}).get("cost")
        reason = "it has no infos/cost" if stored is None else f"its infos/cost has shape {np.shape(stored)}"
        raise DatasetError(
            f"{where} has no cost for each of its {steps} steps: {reason}; pass a cost function (cost=...), such as "
            f'cost="trebi_gym.costs:velocity_cost"; its infos are {", ".join(infos) or "empty"}'
        )
    terminated = bool(np.asarray(found["terminations"])[-1]) if steps else False
    return Episode(
        observations=observations,
        actions=actions,
        rewards=rewards,
        costs=costs.astype(np.result_type(costs.dtype, np.float32), copy=False),
        terminated=terminated,
        truncated=not terminated,
    )


def _by_step(infos: Mapping[str, Any], steps: int) -> dict[str, Array]:
    """Return what was recorded at every step; with L + 1 values the first is of the reset."""
    aligned = {}
    for key, value in infos.items():
        array = np.asarray(value) if not isinstance(value, Mapping) else np.empty(0)
        if array.ndim and len(array) in (steps, steps + 1) and array.dtype.kind in "fiub":
            aligned[key] = array[-steps:] if steps else array[:0]
    return aligned


def _foreign(description: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "name": str(description.get("dataset_id", folder.parent.name)),
        "algorithm": str(description.get("algorithm_name", "not recorded")),
    }
    specification = description.get("env_spec")
    if isinstance(specification, str):
        metadata["env_spec"] = specification
        try:
            found = json.loads(specification)
            metadata["env_id"] = str(found["id"])
            if isinstance(found.get("max_episode_steps"), int):
                metadata["episode_length"] = found["max_episode_steps"]
        except (ValueError, KeyError, TypeError):
            metadata["notes"] = ["the environment's specification in it cannot be read"]
    return metadata


def _write(dataset: EpisodeDataset, folder: Path, name: str) -> None:
    from importlib.metadata import version

    from minari.data_collector.episode_buffer import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    observation_space, action_space = _spaces(dataset)
    specification = dataset.metadata.get("env_spec")
    storage = MinariStorage.new(
        folder,
        observation_space=observation_space,
        action_space=action_space,
        env_spec=_spec(specification),
        data_format="hdf5",
    )
    storage.update_metadata(
        {
            "dataset_id": name,
            "minari_version": version("minari"),
            "algorithm_name": str(dataset.metadata.get("algorithm", "not recorded")),
            METADATA: dict(dataset.metadata),
        }
    )
    storage.update_episodes(
        EpisodeBuffer(
            observations=episode.observations,
            actions=episode.actions,
            rewards=episode.rewards,
            terminations=_at_end(len(episode), episode.terminated),
            truncations=_at_end(len(episode), not episode.terminated),
            infos={"cost": np.concatenate([np.zeros(1, episode.costs.dtype), episode.costs])},
        )
        for episode in dataset
    )


def _at_end(steps: int, value: bool) -> Array:
    flags = np.zeros(steps, dtype=np.bool_)
    flags[-1] = value
    return flags


def _spaces(dataset: EpisodeDataset) -> tuple[gym.spaces.Box, gym.spaces.Box]:
    """Return the spaces of the registered environment, else such as hold the data."""
    found = registered_spaces(dataset.metadata.get("env_id"))
    if found is not None:
        seen, acts = found
        sizes = [(dataset.observation_size,), (dataset.action_size,)]
        if (
            isinstance(seen, gym.spaces.Box)
            and isinstance(acts, gym.spaces.Box)
            and [seen.shape, acts.shape] == sizes
        ):
            return seen, acts
    bound = float(np.abs(dataset.actions).max())
    return (
        gym.spaces.Box(-np.inf, np.inf, (dataset.observation_size,), dataset.observations.dtype.type),
        gym.spaces.Box(-bound, bound, (dataset.action_size,), dataset.actions.dtype.type),
    )


def _spec(specification: Any) -> gym.envs.registration.EnvSpec | None:
    if not isinstance(specification, str):
        return None
    try:
        return gym.envs.registration.EnvSpec.from_json(specification)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
