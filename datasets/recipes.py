"""How every named data set is built, and the budgets that are published for it.

Numbers are those of TREBI's experiments (arXiv 2306.00603): the largest budget of a data set, undiscounted and in the
paper's discounted units, and the factor by which its code turned one into the other.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trebi_gym.datasets.episode import EpisodeDataset
from trebi_gym.errors import DatasetError

DATATYPES = ("random", "medium-replay", "medium", "expert")


@dataclass(frozen=True)
class Recipe:
    """A named data set: its task, how it is built, and its published budgets."""

    name: str
    env_id: str
    datatype: str
    steps: int
    episode_length: int
    maximum_budget: float  # undiscounted cost of an episode at ratio 1
    budget_factor: float  # discounted budget = budget_factor * undiscounted budget
    preset: str  # the paper's preset for it
    hyperparameters: dict[str, Any] = field(default_factory=dict)  # of Stable-Baselines3's SAC


_RECIPES = (
    Recipe(
        name="SafePendulum-medium-replay-v0",
        env_id="SafePendulum-v0",
        datatype="medium-replay",
        steps=20_000,
        episode_length=200,
        maximum_budget=60.0,
        budget_factor=0.336,
        preset="toy_safe_env",
        hyperparameters={"learning_rate": 1e-3},
    ),
    Recipe(
        name="SafeReacher-medium-replay-v0",
        env_id="SafeReacher-v0",
        datatype="medium-replay",
        steps=200_000,
        episode_length=50,
        maximum_budget=14.29,
        budget_factor=0.728,
        preset="toy_safe_env",
        hyperparameters={"learning_rate": 1e-3},
    ),
)

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in _RECIPES}


def dataset_name(env_id: str, datatype: str) -> str:
    """Return the data set's name: ``SafePendulum-v0`` and ``medium-replay`` make ``SafePendulum-medium-replay-v0``.

    Raises:
        DatasetError: the datatype is none of those that can be built.
    """
    if datatype not in DATATYPES:
        raise DatasetError(f"datatype must be one of {', '.join(DATATYPES)}; got {datatype!r}")
    stem, dash, version = env_id.rpartition("-v")
    return f"{stem}-{datatype}-v{version}" if dash else f"{env_id}-{datatype}"


def recipe_for_env(env_id: str) -> Recipe | None:
    """Return the recipe whose hyperparameters fit this environment, if one is known."""
    return next((recipe for recipe in RECIPES.values() if recipe.env_id == env_id), None)


@dataclass(frozen=True)
class MaximumBudget:
    """The budget at ratio 1 of a data set, and where it comes from."""

    value: float
    rule: str


def maximum_budget(dataset: EpisodeDataset) -> MaximumBudget:
    """Return the published budget at ratio 1, or one derived from the data's own costs.

    The rule for data without a published one: the 0.9 quantile of the episodes' costs, so that most of the behaviour
    that the data show can be had at ratio 1 and a single wild episode does not set the scale.
    """
    recipe = RECIPES.get(str(dataset.metadata.get("name", "")))
    if recipe is not None:
        return MaximumBudget(recipe.maximum_budget, f"published for {recipe.name}")
    quantile = float(np.quantile(dataset.episode_costs, 0.9))
    return MaximumBudget(quantile, "0.9 quantile of the data set's episode costs")


def data_folders() -> list[Path]:
    """Return the folders where a named data set is looked for, in order: what ships, then the user's data folder."""
    return [Path(__file__).parent / "data", user_data_folder()]


def user_data_folder() -> Path:
    """Return the folder for built data sets: ``TREBI_DATA``, else the user's data directory."""
    chosen = os.environ.get("TREBI_DATA")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".local" / "share") / "trebi-gym"
