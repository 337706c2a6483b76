"""How every named data set is built, and the budgets that are published for it.

Numbers are those of TREBI's experiments (arXiv 2306.00603): the largest budget of a data set, undiscounted and in the
paper's discounted units, and the factor by which its code turned one into the other.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trebi_gym.datasets.episode import EpisodeDataset
from trebi_gym.errors import DatasetError

DATATYPES = ("random", "medium-replay", "medium", "expert", "medium-expert")

D4RL_URL = "http://rail.eecs.berkeley.edu/datasets/offline_rl/gym_mujoco_v2/"


@dataclass(frozen=True)
class Recipe:
    """A named data set: its task, how it is built, and its published budgets."""

    name: str
    env_id: str
    datatype: str
    steps: int
    episode_length: int
    maximum_budget: float  # undiscounted cost of an episode at ratio 1
    discounted_maximum: float  # the paper's discounted cost of an episode at ratio 1
    budget_factor: float  # discounted budget = budget_factor * undiscounted budget
    preset: str  # the paper's preset for it
    cost: str  # "module:name" of the task's cost function
    dt: float | None = None  # seconds of a step, where costs are derived from positions
    hyperparameters: dict[str, Any] = field(default_factory=dict)  # of Stable-Baselines3's SAC

    @property
    def url(self) -> str | None:
        """Where D4RL publishes the file; None for a data set that is only built."""
        return None if self.dt is None else D4RL_URL + self.d4rl_file

    @property
    def d4rl_file(self) -> str:
        """The file's name in D4RL's own folder: ``hopper_medium_replay-v2.hdf5``."""
        stem, _, version = self.name.rpartition("-")
        return f"{stem.replace('-', '_')}-{version}.hdf5"


def _toy(task: str, steps: int, episode_length: int, *budgets: float) -> Recipe:
    maximum, discounted, factor = budgets
    return Recipe(
        name=f"Safe{task}-medium-replay-v0",
        env_id=f"Safe{task}-v0",
        datatype="medium-replay",
        steps=steps,
        episode_length=episode_length,
        maximum_budget=maximum,
        discounted_maximum=discounted,
        budget_factor=factor,
        preset="toy_safe_env",
        cost=f"trebi_gym.costs:{task.lower()}_cost",
        hyperparameters={"learning_rate": 1e-3},
    )


def _locomotion(
    task: str, dt: float, datatype: str, steps: int, maximum: float, discounted: float, factor: float
) -> Recipe:
    return Recipe(
        name=f"{task.lower()}-{datatype}-v2",
        env_id=f"Safe{task}-v0",
        datatype=datatype,
        steps=steps,
        episode_length=1000,
        maximum_budget=maximum,
        discounted_maximum=discounted,
        budget_factor=factor,
        preset="locomotion",
        cost="trebi_gym.costs:velocity_cost",
        dt=dt,
    )


_RECIPES = (
    _toy("Pendulum", 20_000, 200, 60.0, 16.70, 0.336),
    _toy("Reacher", 200_000, 50, 14.29, 10.84, 0.728),
    _locomotion("Hopper", 0.008, "medium", 1_000_000, 1800.0, 129.940, 129 / 1878),
    _locomotion("Hopper", 0.008, "medium-replay", 402_000, 2000.0, 139.884, 139 / 2040),
    _locomotion("Hopper", 0.008, "medium-expert", 2_000_000, 2600.0, 168.918, 168 / 2617),
    _locomotion("Walker2d", 0.008, "medium", 1_000_000, 2600.0, 159.512, 163 / 2665),
    _locomotion("Walker2d", 0.008, "medium-replay", 302_000, 2000.0, 160.251, 147 / 2185),
    _locomotion("Walker2d", 0.008, "medium-expert", 2_000_000, 4000.0, 234.076, 234 / 3945),
    _locomotion("HalfCheetah", 0.05, "medium", 1_000_000, 5400.0, 414.008, 421 / 5456),
    _locomotion("HalfCheetah", 0.05, "medium-replay", 202_000, 4800.0, 384.375, 365 / 4883),
    _locomotion("HalfCheetah", 0.05, "medium-expert", 2_000_000, 10000.0, 730.746, 710 / 11080),
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


def known_name(name_or_path: str | os.PathLike[str]) -> str | None:
    """Return which of the named data sets a name, or a file called by its name, stands for; None for any other."""
    recipe = RECIPES.get(str(name_or_path)) or recipe_for_file(Path(name_or_path))
    return None if recipe is None else recipe.name


def recipe_for_file(path: Path) -> Recipe | None:
    """Return the recipe of a file or folder that is called by its name, ours or D4RL's."""
    return next(
        (recipe for recipe in RECIPES.values() if path.name in (*_own_names(recipe.name), recipe.d4rl_file)),
        None,
    )


def published_recipe(dataset: EpisodeDataset) -> Recipe | None:
    """Return the recipe whose published numbers hold for a data set: that of its name, unless its costs were replaced."""
    if dataset.metadata.get("replaced_cost") is not None:
        return None
    return RECIPES.get(str(dataset.metadata.get("name", "")))


@dataclass(frozen=True)
class MaximumBudget:
    """The budget at ratio 1 of a data set, and where it comes from."""

    value: float
    rule: str


def maximum_budget(dataset: EpisodeDataset) -> MaximumBudget:
    """Return the published budget at ratio 1, or one derived from the data's own costs.

    The rule for data without a published one: the 0.9 quantile of the episodes' costs, so that most of the behaviour
    that the data show can be had at ratio 1 and a single wild episode does not set the scale. Where nine episodes in
    ten cost nothing, so that the quantile is 0, the greatest cost of an episode.
    """
    recipe = published_recipe(dataset)
    if recipe is not None:
        return MaximumBudget(recipe.maximum_budget, f"published for {recipe.name}")
    quantile = float(np.quantile(dataset.episode_costs, 0.9))
    if quantile > 0:
        return MaximumBudget(quantile, "0.9 quantile of the data set's episode costs")
    return MaximumBudget(
        float(dataset.episode_costs.max()), "greatest cost of an episode: nine in ten cost nothing"
    )


def places(name: str) -> list[Path]:
    """Return where a named data set is looked for, in order.

    What ships; the user's data folder; D4RL's own folder (``D4RL_DATASET_DIR``); Minari's (``MINARI_DATASETS_PATH``).
    """
    recipe = RECIPES.get(name)
    published = [recipe.d4rl_file] if recipe is not None and recipe.url else []
    found = [shipped_folder() / f"{name}.hdf5"]
    for folder, candidates in (
        (user_data_folder, [*_own_names(name), *published]),
        (d4rl_folder, published),
        (minari_folder, [name]),
    ):
        if candidates:
            with contextlib.suppress(
                DatasetError
            ):  # without a home folder only what is set can be looked into
                found += [folder() / candidate for candidate in candidates]
    return found


def how_to_get(name: str) -> str:
    """Return the commands that download or build a named data set, or the names that are known."""
    recipe = RECIPES.get(name)
    if recipe is None:
        return f"known names: {', '.join(RECIPES)}"
    folder = user_data_folder()
    build = (
        f"trebi generate --dataset {recipe.env_id} --datatype {recipe.datatype} --total-step {recipe.steps}"
    )
    if recipe.url is None:
        return f"build it with\n  {build}"
    return (
        f"download it with\n  curl -L --create-dirs -o {folder / recipe.d4rl_file} {recipe.url}\n"
        f"or build one of the same kind with\n  {build} --output {folder / name}.hdf5"
    )


def shipped_folder() -> Path:
    """Return the folder of the data sets that ship."""
    return Path(__file__).parent / "data"


def user_data_folder() -> Path:
    """Return the folder for built data sets: ``TREBI_DATA``, else the user's data directory."""
    if os.environ.get("TREBI_DATA"):
        return _folder("TREBI_DATA", "")
    return _folder("XDG_DATA_HOME", "~/.local/share") / "trebi-gym"


def d4rl_folder() -> Path:
    """Return the folder into which D4RL downloads: ``D4RL_DATASET_DIR``, else ``~/.d4rl/datasets``."""
    return _folder("D4RL_DATASET_DIR", "~/.d4rl/datasets")


def minari_folder() -> Path:
    """Return the folder of Minari's data sets: ``MINARI_DATASETS_PATH``, else ``~/.minari/datasets``."""
    return _folder("MINARI_DATASETS_PATH", "~/.minari/datasets")


def _folder(variable: str, default: str) -> Path:
    """Return the folder that a variable of the environment names, else the default.

    Raises:
        DatasetError: it lies in the home folder, and this user has none.
    """
    chosen = os.environ.get(variable) or default
    try:
        return Path(chosen).expanduser()
    except RuntimeError as error:
        raise DatasetError(
            f"the folder {chosen} lies in the home folder, and this user has none; set {variable} to another folder"
        ) from error


def _own_names(name: str) -> tuple[str, str]:
    return f"{name}.hdf5", name
