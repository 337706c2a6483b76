"""What a file format offers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from trebi_gym.costs import CostFunction
from trebi_gym.datasets.episode import EpisodeDataset
from trebi_gym.datasets.recipes import Recipe
from trebi_gym.errors import DatasetError, EnvironmentContractError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Reading:
    """What a reader is told beside the file: whatever the format itself does not say."""

    cost: CostFunction | None = None
    """Takes the place of stored costs; called once with all steps: (S, O), (S, A), (S, O), info of (S, ...) arrays."""
    episode_length: int | None = None
    """The task's time limit, in steps; where ends are not marked, episodes are cut there."""
    recipe: Recipe | None = None
    """The named data set that the file is taken to be."""

    def costs(
        self, observations: Array, actions: Array, next_observations: Array, infos: Mapping[str, Array]
    ) -> Array:
        """Return what ``cost`` says of recorded steps, (S,); see ``replaced_costs``."""
        assert self.cost is not None
        return replaced_costs(self.cost, observations, actions, next_observations, infos)

    @property
    def time_limit(self) -> int | None:
        """The time limit that was given, else the recipe's."""
        if self.episode_length is not None:
            return self.episode_length
        return None if self.recipe is None else self.recipe.episode_length


def replaced_costs(
    function: CostFunction,
    observations: Array,
    actions: Array,
    next_observations: Array,
    infos: Mapping[str, Array],
) -> Array:
    """Return what a cost function says of recorded steps, all at once.

    Args:
        function: the cost function.
        observations: (S, O).
        actions: (S, A).
        next_observations: (S, O).
        infos: arrays of (S, ...).

    Returns:
        (S,) costs, at least float32.

    Raises:
        DatasetError: the function failed, or did not return one finite number for each step.
        EnvironmentContractError: the function's own, such as that an info is missing.
    """
    name = getattr(function, "__qualname__", repr(function))
    advice = (
        f"it is called once with all {len(observations)} recorded steps, so it must allow for leading axes, for example "
        "np.where(next_observation[..., 1] > 0, 1.0, 0.0) instead of 1.0 if next_observation[1] > 0 else 0.0"
    )
    try:
        costs = np.asarray(function(observations, actions, next_observations, infos))
    except EnvironmentContractError:
        raise
    except Exception as error:
        raise DatasetError(
            f"the cost function {name} failed ({type(error).__name__}: {error}): {advice}"
        ) from error
    if costs.shape != (len(observations),) or costs.dtype.kind not in "fiub":
        raise DatasetError(
            f"the cost function {name} must return one number for each step, shape ({len(observations)},); it returned "
            f"{costs.dtype} of shape {costs.shape}: {advice}"
        )
    wrong = np.flatnonzero(~np.isfinite(costs))
    if len(wrong):
        raise DatasetError(
            f"the cost function {name} returned {costs[wrong[0]]} for step {wrong[0]}, and {len(wrong)} of {len(costs)} "
            "values that are not finite; a cost must be a finite number"
        )
    return costs.astype(np.result_type(costs.dtype, np.float32), copy=False)


class Source(Protocol):
    """A file format, recognised by its content."""

    def recognises(self, path: Path) -> bool:
        """Whether ``path`` is of this format; never raises for a readable file."""
        ...

    def read(self, path: Path, reading: Reading) -> EpisodeDataset:
        """Read and validate."""
        ...

    def write(self, dataset: EpisodeDataset, path: Path) -> None:
        """Write so that ``read`` gives the same numbers back; a crash leaves no half file."""
        ...
