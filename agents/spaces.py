"""What an agent is made for: its spaces, its device, its seed, and whether a data set fits them."""

from __future__ import annotations

import logging
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.utils import get_device

from trebi_gym.checks import check_seed
from trebi_gym.datasets import EpisodeDataset
from trebi_gym.datasets.spaces import registered_spaces
from trebi_gym.errors import ConfigError, DatasetError, EnvironmentContractError

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]

BUDGET_KEYS = {"observation", "budget", "steps_left"}
"""The keys of what ``BudgetWrapper(observe=True)`` lets an agent observe. A Dict with others is refused."""


def resolve_device(device: torch.device | str) -> torch.device:
    """Return the device of this name; "auto" is a GPU where there is one.

    Raises:
        ConfigError: there is no such device on this machine.
    """
    try:
        asked = torch.device("cpu" if device == "auto" else device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"there is no device {device!r}; use auto, cpu, cuda, cuda:1, ...") from error
    # Stable-Baselines3 would quietly take the CPU
    if asked.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"device {str(device)!r} was asked for, but torch finds no GPU here; use auto or cpu"
        )
    return get_device(device)


def resolve_seed(seed: int | None) -> int:
    """Return the seed, or draw one for None.

    Raises:
        ConfigError: it is no whole number, or is out of range.
    """
    if seed is None:
        return int(np.random.SeedSequence().generate_state(1)[0])
    return check_seed(seed, below=2**32, error=ConfigError)


def agent_spaces(env_or_spaces: Any) -> tuple[gym.spaces.Box, gym.spaces.Box]:
    """Return the observation and action space of an environment, a vector environment, or a pair of spaces.

    Raises:
        EnvironmentContractError: they are not plain boxes, or actions are no floating-point numbers.
    """
    if isinstance(env_or_spaces, (tuple, list)) and len(env_or_spaces) == 2:
        observation_space, action_space = env_or_spaces
    else:
        # Gymnasium's vector environments keep the space of one environment beside that of all
        observation_space = getattr(env_or_spaces, "single_observation_space", None) or getattr(
            env_or_spaces, "observation_space", None
        )
        action_space = getattr(env_or_spaces, "single_action_space", None) or getattr(
            env_or_spaces, "action_space", None
        )
    if isinstance(observation_space, gym.spaces.Dict) and set(observation_space.spaces) == BUDGET_KEYS:
        observation_space = observation_space["observation"]
    if not isinstance(observation_space, gym.spaces.Box) or len(observation_space.shape) != 1:
        raise EnvironmentContractError(
            f"the observation space must be a Box of one dimension; got {observation_space}; make one of all that is "
            "observed, a goal too, with gymnasium.wrappers.FlattenObservation(env), below any BudgetWrapper"
        )
    if not isinstance(action_space, gym.spaces.Box) or len(action_space.shape) != 1:
        raise EnvironmentContractError(f"the action space must be a Box of one dimension; got {action_space}")
    if np.dtype(action_space.dtype).kind != "f":
        raise EnvironmentContractError(
            f"actions must be floating-point numbers; the action space {action_space} is of {action_space.dtype}, and "
            "plans do not keep to whole numbers: let the environment take a float Box and round by itself"
        )
    return observation_space, action_space


def spaces_of_dataset(dataset: EpisodeDataset) -> tuple[gym.spaces.Box, gym.spaces.Box]:
    """Return the spaces of the environment that the data set names, else boxes around its numbers."""
    found = registered_spaces(dataset.metadata.get("env_id"))
    if found is not None:
        return agent_spaces(found)
    logger.info("no environment tells the spaces; actions are bounded by those in the data")
    low, high = dataset.actions.min(axis=0), dataset.actions.max(axis=0)
    shape = (dataset.observation_size,)
    return (
        gym.spaces.Box(-np.inf, np.inf, shape, np.float64),
        gym.spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32),
    )


def check_dataset(
    dataset: EpisodeDataset, observation_space: gym.spaces.Box, action_space: gym.spaces.Box
) -> None:
    """Raise if a data set does not belong to these spaces.

    Raises:
        DatasetError: sizes differ, or actions lie outside the action space.
    """
    found = (dataset.observation_size, dataset.action_size)
    asked = (observation_space.shape[0], action_space.shape[0])
    if found != asked:
        raise DatasetError(
            f"the agent's spaces have {asked[0]} observation and {asked[1]} action dimensions; "
            f"the data set has {found[0]} and {found[1]}"
        )
    below, above = action_tolerances(action_space, dataset.actions.dtype)
    low, high = (np.asarray(side, dtype=np.float64) for side in (action_space.low, action_space.high))
    outside = (dataset.actions < low - below) | (dataset.actions > high + above)
    if outside.any():
        row, column = np.argwhere(outside)[0]
        raise DatasetError(
            f"actions[{row}, {column}] is {dataset.actions[row, column]}, outside the action space "
            f"[{action_space.low[column]}, {action_space.high[column]}]; record the actions that were executed"
        )


def action_tolerances(space: gym.spaces.Box, dtype: npt.DTypeLike) -> tuple[Array, Array]:
    """Return how far logged actions may lie below (A,) and above (A,) their space: as far as rounding takes them.

    Each side has the rounding of its own magnitude, and where both are finite that of the width, from which policies scale
    their actions to the space. A side that is infinite needs none.

    Args:
        space: of the actions.
        dtype: of the logged actions; those that were float32 once are rounded so, whatever holds them now.
    """
    precision = max(np.finfo(np.float32).eps, np.finfo(dtype).eps if np.dtype(dtype).kind == "f" else 0.0)
    low, high = (np.asarray(side, dtype=np.float64) for side in (space.low, space.high))
    with np.errstate(over="ignore", invalid="ignore"):
        width = np.where(np.isfinite(low) & np.isfinite(high), high - low, 0.0)
        below, above = (
            np.maximum(84 * precision * np.abs(side), 4 * precision * width) for side in (low, high)
        )
    return np.where(np.isfinite(low), below, 0.0), np.where(np.isfinite(high), above, 0.0)


def fit_actions(actions: Array, space: gym.spaces.Box) -> Array:
    """Return finite actions (..., A) as the nearest in an action space, in its own dtype, so that it contains them."""
    most = float(np.finfo(str(space.low.dtype)).max)
    # in its own dtype last: the nearest float32 to a bound in float64 may lie beyond it
    fitted: Array = np.clip(np.asarray(actions), -most, most).astype(space.low.dtype)
    return np.clip(fitted, space.low, space.high)
