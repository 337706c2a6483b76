"""The models of an agent, built from its configuration."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from trebi_gym.agents.calibration.fingerprints import episode_marks
from trebi_gym.agents.config import LONGEST_EPISODE, NetworkConfig, TREBIConfig
from trebi_gym.agents.networks import make_critic, make_denoiser, make_outcome_critic
from trebi_gym.checks import is_whole
from trebi_gym.datasets import AffineNormalizer, EpisodeDataset, TrajectoryWindows
from trebi_gym.datasets.normalizers import NORMALIZERS
from trebi_gym.datasets.recipes import maximum_budget, published_recipe
from trebi_gym.errors import ConfigError, DatasetError

PARTS = ("diffusion", "reward_critic", "cost_critic")
"""The paper's three models, in the order in which ``learn`` fits them."""

OUTCOME = "outcome_critic"
"""The model that ``fast`` has beside them."""

EVERY_PART = (*PARTS, OUTCOME)

LEARNERS = {
    "diffusion": ("learn_diffusion()", "scripts/train.py"),
    "reward_critic": ("learn_reward_critic()", "scripts/train_values.py"),
    "cost_critic": ("learn_cost_critic()", "scripts/train_cost_values.py"),
    OUTCOME: ("learn_outcome_critic()", "scripts/train_outcomes.py"),
}
"""Which method and which script learn each of them."""


def parts_of(config: TREBIConfig) -> tuple[str, ...]:
    """Return the models that an agent of this configuration has, in the order in which ``learn`` fits them."""
    return PARTS if config.outcome_critic is None else EVERY_PART


@dataclass(frozen=True)
class Task:
    """What the models must know of the data they were fitted to; stored with the agent."""

    observations: AffineNormalizer
    actions: AffineNormalizer
    episode_length: int
    cost_scale: float  # the greatest cost-to-go of any window in the data, in the cost critic's units
    budget_factor: float  # discounted cost per undiscounted cost, over the data's episodes

    def __post_init__(self) -> None:
        if not is_whole(self.episode_length) or not 1 <= self.episode_length <= LONGEST_EPISODE:
            raise ConfigError(
                f"episode_length must be a whole number from 1 to {LONGEST_EPISODE}; got {self.episode_length!r}"
            )
        for name in ("cost_scale", "budget_factor"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name} must be finite and positive; got {value}")

    @property
    def action_size(self) -> int:
        """A."""
        return len(self.actions.center)

    @property
    def observation_size(self) -> int:
        """O."""
        return len(self.observations.center)


def fit_task(dataset: EpisodeDataset, config: TREBIConfig, budget_factor: float | None) -> Task:
    """Fit the normalisers and read off what else planning needs."""
    fit = NORMALIZERS[config.normalizer]
    rows = dataset.observation_rows
    steps = np.concatenate([np.arange(length) for length in dataset.lengths])
    discounted = float((dataset.costs.astype(np.float64) * config.cost_discount**steps).sum())
    plain = float(dataset.costs.sum(dtype=np.float64))
    task = Task(
        observations=fit(dataset.observations[rows]),
        actions=fit(dataset.actions),
        episode_length=config.episode_length or max(dataset.episode_length, int(dataset.lengths.max())),
        cost_scale=1.0,
        budget_factor=budget_factor or (discounted / plain if plain > 0 else 1.0),
    )
    windows = make_windows(dataset, config, task)
    return dataclasses.replace(task, cost_scale=max(float(windows.cost_to_go.max()), 1e-6))


def budget_factor(dataset: EpisodeDataset, config: TREBIConfig) -> float | None:
    """Return the configured factor of ``budget_rule="constant"``, else the one published for the data set, if any."""
    recipe = published_recipe(dataset)
    return config.planner.budget_factor or (recipe.budget_factor if recipe else None)


def described(dataset: EpisodeDataset) -> dict[str, Any]:
    """Return what an agent keeps of the data that it learned from; plain JSON."""
    return {
        "name": dataset.metadata.get("name"),
        "env_id": dataset.metadata.get("env_id"),
        "episodes": len(dataset),
        "steps": dataset.n_steps,
        "maximum_budget": maximum_budget(dataset).value,
        "marks": episode_marks(dataset),
        **{key: dataset.metadata[key] for key in ("replaced_cost", "split") if dataset.metadata.get(key)},
    }


def noted(
    before: Mapping[str, Any], dataset: EpisodeDataset, parts: Sequence[str], whole: bool
) -> dict[str, Any]:
    """Return what an agent keeps of its data when it learns ``parts`` from a data set.

    Args:
        before: what it kept.
        dataset: that is learned from.
        parts: that learn.
        whole: whether it is the agent's data set from now on; if not, and it is another one, it is noted by the parts.
    """
    now = described(dataset)
    if whole:
        return now | {key: value for key, value in before.items() if key == "imported"}
    kept = dict(before)
    others = {part: data for part, data in kept.pop("parts", {}).items() if part not in parts}
    # an agent from before episodes were marked is not told that its data are others
    if any(before.get(key) != value for key, value in now.items() if key != "marks" or key in before):
        warnings.warn(
            f"{', '.join(parts)} will learn from {now['name']} ({now['episodes']} episodes, {now['steps']} steps), the "
            f"agent's normalisers and budgets are those of {before.get('name')} ({before.get('episodes')} episodes, "
            f"{before.get('steps')} steps)",
            UserWarning,
            stacklevel=6,  # through learn and its settings, to who calls it
        )
        others |= dict.fromkeys(parts, now)
    return kept | ({"parts": others} if others else {})


def check_horizon(dataset: EpisodeDataset, config: TREBIConfig) -> None:
    """Raise if no episode of the data set may be as long as a plan.

    Raises:
        DatasetError: none is; the message names the longest plan that the configuration and the data allow.
    """
    limit = max(dataset.episode_length, int(dataset.lengths.max()))
    if config.horizon <= limit:
        return
    said = f"a plan of this configuration has {config.horizon} steps, but an episode of this data set has at most {limit}"
    for horizon in range(limit, 0, -1):
        try:
            config.replace(horizon=horizon)
        except ConfigError as error:
            reason = str(error)
        else:
            raise DatasetError(
                f"{said}; plan {horizon}: config.replace(horizon={horizon}), or --horizon {horizon} of trebi learn and the "
                "training scripts"
            )
    raise DatasetError(
        f"{said}, and no shorter plan goes with preset {config.preset!r} ({reason}); take longer episodes or another preset"
    )


def make_windows(
    dataset: EpisodeDataset,
    config: TREBIConfig,
    task: Task,
    device: torch.device | str = "cpu",
    part: str | None = None,
) -> TrajectoryWindows:
    """Return the data set's windows as the models see them; the outcome critic's sums are undiscounted."""
    if part == OUTCOME:
        config = config.replace(discount=1.0, cost_discount=1.0)
    return TrajectoryWindows(
        dataset,
        config.horizon,
        task.observations,
        task.actions,
        config.discount,
        cost_discount=config.cost_discount,
        device=device,
        termination_reward=config.termination_reward,
        termination_cost=config.termination_cost,
    )


def make_model(part: str, config: TREBIConfig, task: Task, seed: int) -> nn.Module:
    """Build one of an agent's models with initial weights that only depend on the seed.

    Raises:
        ConfigError: the network refuses its options or sizes.
    """
    networks: dict[str, NetworkConfig | None] = {
        "diffusion": config.denoiser,
        "reward_critic": config.reward_critic,
        "cost_critic": config.cost_critic,
        OUTCOME: config.outcome_critic,
    }
    network = networks[part]
    if network is None:
        raise ConfigError(
            f"the configuration (preset {config.preset!r}) has no {part}; fast has one, see TREBIConfig.{part}"
        )
    options: dict[str, Any] = dict(network.options)
    if options.get("steps_left") or part == OUTCOME:
        options.setdefault("episode_length", task.episode_length)
    if part == OUTCOME:
        options.setdefault("cost_scale", task.cost_scale)
        if network.name == "budget":
            options.setdefault("action_dim", task.action_size)
    size = task.action_size + task.observation_size
    make = {"diffusion": make_denoiser, OUTCOME: make_outcome_critic}.get(part, make_critic)
    # initialisers draw from torch's global state, which is left as it was
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return make(network.name, horizon=config.horizon, transition_dim=size, **options)
        except (TypeError, ValueError, OverflowError) as error:
            raise ConfigError(f"the network {network.name!r} for {part} cannot be built: {error}") from error
