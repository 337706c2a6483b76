"""What a data set's metadata say of where it comes from."""

from __future__ import annotations

import dataclasses
import importlib
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from trebi_gym.datasets.episode import EpisodeDataset
from trebi_gym.datasets.generation.algorithms import defaults
from trebi_gym.errors import DatasetError


def find_spec(env_id: str) -> gym.envs.registration.EnvSpec:
    """Return the specification of ``Name-v0`` or ``module:Name-v0``, importing the module that registers it.

    Raises:
        DatasetError: there is no such environment.
    """
    module, _, name = env_id.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        return gym.spec(name)
    except (ImportError, gym.error.Error) as error:
        raise DatasetError(
            f"there is no environment {env_id!r}: {error}; for one of your own, write module:{name or 'Name-v0'}, "
            "where importing the module registers it"
        ) from error


def describe_env(env_id: str) -> dict[str, Any]:
    """Return what a data set's metadata say of the environment: id, specification, time limit, versions."""
    spec = find_spec(env_id)
    try:
        specification: str | None = spec.to_json()
    except (TypeError, ValueError):  # registered with a class or another object that JSON cannot name
        specification = None
    packages = ("trebi-gym", "gymnasium", "mujoco", "stable-baselines3", "torch", "numpy")
    return {
        "env_id": env_id,
        "env_spec": specification,
        "episode_length": spec.max_episode_steps,
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in packages},
    }


def describe_training(model: Any, algo: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return what a data set's metadata say of the algorithm: its name and the hyperparameters it ran with."""
    used = {**defaults(algo), **given}
    return {
        "algorithm": f"stable_baselines3.{algo.upper()}",
        "training_steps": int(model.num_timesteps),
        "hyperparameters": {
            **{key: plain(value) for key, value in used.items()},
            "given": {key: plain(value) for key, value in given.items()},
        },
    }


def plain(value: Any) -> Any:
    """Return JSON data as they are, tuples as lists, and anything else as its ``repr``."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return repr(value)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def with_metadata(dataset: EpisodeDataset, extra: dict[str, Any]) -> EpisodeDataset:
    """Return the same episodes with more metadata."""
    return dataclasses.replace(dataset, metadata={**dataset.metadata, **extra})


def statistics(dataset: EpisodeDataset) -> dict[str, Any]:
    """Return the numbers of episodes and steps, and mean, least and greatest return and cost of an episode."""

    def summary(values: npt.NDArray[np.float64]) -> dict[str, float]:
        return {"mean": float(values.mean()), "min": float(values.min()), "max": float(values.max())}

    return {
        "episodes": len(dataset),
        "steps": dataset.n_steps,
        "returns": summary(dataset.episode_returns),
        "costs": summary(dataset.episode_costs),
    }


def with_statistics(dataset: EpisodeDataset) -> EpisodeDataset:
    """Return the same episodes with numbers, returns and costs of episodes in the metadata."""
    return with_metadata(dataset, {"statistics": statistics(dataset)})
