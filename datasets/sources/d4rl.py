"""D4RL's HDF5 (arXiv 2004.07219): flat arrays of steps without costs, and ``infos/*`` recorded before each step.

Costs come, in this order, from a given cost function, from ``infos/cost`` (row t: what action t caused), or from the
positions in ``infos/qpos`` and the cost function of the task that the file's name stands for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trebi_gym.costs import resolve_cost
from trebi_gym.datasets.episode import EpisodeDataset, check_steps, timeouts_by_length
from trebi_gym.datasets.sources.base import Reading, replaced_costs
from trebi_gym.datasets.sources.hdf5 import (
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
from trebi_gym.errors import DatasetError, EnvironmentContractError

Array = npt.NDArray[Any]

NEEDED = ("observations", "actions", "rewards", "terminals")
OPTIONAL = ("next_observations", "timeouts")
METADATA = "trebi_gym_d4rl"
"""An attribute that we add for ourselves; files of others have none."""


def departing_velocity(
    positions: Array, ends: npt.NDArray[np.int64], dt: float, velocities: Array | None = None
) -> npt.NDArray[np.float64]:
    """Return (S,) the velocity during each step, ``(x_{t+1} - x_t) / dt``, from positions before each step.

    The position after an episode's last step is not in the file: that step gets the velocity of the step before, never
    the way to the next episode's start. Where an episode has one step only, it gets ``velocities``, or 0.

    Args:
        positions: (S,) x before each step, in metres.
        ends: (E,) the last step of each episode.
        dt: seconds of a step.
        velocities: (S,) the velocity before each step, in m/s, if known.
    """
    result = np.zeros(len(positions), dtype=np.float64)
    result[:-1] = np.diff(positions.astype(np.float64)) / dt
    single = np.diff(ends, prepend=-1) == 1
    result[ends[~single]] = result[ends[~single] - 1]
    result[ends[single]] = 0.0 if velocities is None else velocities[ends[single]]
    return result


class D4RL:
    """Flat steps without costs."""

    def recognises(self, path: Path) -> bool:
        """Whether ``path`` is an HDF5 file with flat observations or actions, no costs, and not our own."""
        found = top_keys(path)
        if found is None or NATIVE in found[1] or "costs" in found[0]:
            return False
        return bool({"observations", "actions", "rewards"} & found[0])

    def read(self, path: Path, reading: Reading) -> EpisodeDataset:
        """Read and validate.

        Raises:
            DatasetError: keys are missing, what they hold does not fit, or neither ends nor costs can be told.
        """
        arrays = read_flat(path, NEEDED, OPTIONAL, folder="infos")
        infos = {key: arrays.pop(key) for key in list(arrays) if key.startswith("infos/")}
        metadata = read_metadata(path, METADATA)
        try:
            arrays = check_steps(arrays)
            unmarked = "timeouts" not in arrays
            if unmarked:
                arrays["timeouts"] = _no_timeouts(arrays, reading)
            notes = end_at_jumps(arrays, path, expected=reading.time_limit if unmarked else None)
            if unmarked and reading.time_limit is not None:
                ends = arrays["terminals"].astype(np.bool_) | arrays["timeouts"].astype(np.bool_)
                arrays["timeouts"] = arrays["timeouts"] | timeouts_by_length(ends, reading.time_limit)
            if "next_observations" not in arrays:
                notes.append(REPEATED)
                arrays["next_observations"] = following_observations(arrays)
            arrays["costs"] = _costs(
                arrays, {key.removeprefix("infos/"): value for key, value in infos.items()}, reading
            )
            metadata = foreign_metadata(metadata, path, reading, notes)
            return EpisodeDataset.from_steps(**arrays, metadata=metadata)
        except (DatasetError, EnvironmentContractError) as error:
            raise DatasetError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error

    def write(self, dataset: EpisodeDataset, path: Path) -> None:
        """Write compressed, with the costs as ``infos/cost``, to a temporary name that is then moved into place.

        Raises:
            DatasetError: the metadata are not plain JSON.
        """
        arrays = flat_arrays(dataset)
        arrays["infos/cost"] = arrays.pop("costs")
        write_flat(path, arrays, dataset.metadata, METADATA)


def _no_timeouts(arrays: dict[str, Array], reading: Reading) -> npt.NDArray[np.bool_]:
    """Return (S,) False, where ends can be told by the time limit or by next observations that jump.

    Raises:
        DatasetError: by neither.
    """
    if reading.time_limit is not None or "next_observations" in arrays:
        return np.zeros(len(arrays["terminals"]), dtype=np.bool_)
    raise DatasetError(
        "it has neither timeouts nor next_observations, so that an episode's end by a time limit cannot be told; pass "
        'episode_length=..., or the known name of what it holds, such as name="hopper-medium-v2"'
    )


def _costs(arrays: dict[str, Array], infos: dict[str, Array], reading: Reading) -> Array:
    steps = len(arrays["rewards"])
    wrong = {key: value.shape for key, value in infos.items() if value.shape[:1] != (steps,)}
    if wrong:
        raise DatasetError(f"every array in infos must hold {steps} steps, as rewards do; found {wrong}")
    recipe = reading.recipe
    if "x_velocity" not in infos and "qpos" in infos and recipe is not None and recipe.dt is not None:
        ends = np.flatnonzero(arrays["terminals"].astype(np.bool_) | arrays["timeouts"].astype(np.bool_))
        positions, velocities = (_first_column(infos.get(key)) for key in ("qpos", "qvel"))
        assert positions is not None
        infos = {**infos, "x_velocity": departing_velocity(positions, ends, recipe.dt, velocities)}
    function = reading.cost
    if function is None and "cost" in infos:
        return infos["cost"]
    if function is None and recipe is not None and "x_velocity" in infos:
        function = resolve_cost(recipe.cost)
    if function is None:
        raise DatasetError(
            "it holds no costs, and none can be derived: pass a cost function (cost=...), or the known name of what it "
            'holds (name="hopper-medium-v2", which needs infos/qpos), or add costs, an array of what each step cost; '
            f"found {', '.join([*arrays, *(f'infos/{key}' for key in infos)])}"
        )
    costs = replaced_costs(
        function, arrays["observations"], arrays["actions"], arrays["next_observations"], infos
    )
    return costs.astype(np.result_type(arrays["rewards"].dtype, np.float32), copy=False)


def _first_column(array: Array | None) -> Array | None:
    if array is None:
        return None
    if array.ndim not in (1, 2) or array.shape[-1] == 0 or array.dtype.kind not in "fiu":
        raise DatasetError(
            f"infos/qpos and infos/qvel must hold numbers of shape (S, n); found {array.shape} of {array.dtype}"
        )
    return array if array.ndim == 1 else array[:, 0]
