"""The models of an agent: built from its configuration, and the losses they learn by."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from trebi_gym.agents.config import NetworkConfig, TREBIConfig
from trebi_gym.agents.diffusion.denoising import (
    critic_loss,
    denoising_loss,
    loss_weights,
    pin_first_observation,
)
from trebi_gym.agents.diffusion.schedule import NoiseSchedule
from trebi_gym.agents.marks import episode_marks
from trebi_gym.agents.networks import make_critic, make_denoiser, make_outcome_critic
from trebi_gym.agents.networks.budget import BudgetCritic, Segment, budget_loss
from trebi_gym.agents.networks.outcome import OutcomeCritic, outcome_loss
from trebi_gym.agents.training import Loss
from trebi_gym.datasets import AffineNormalizer, EpisodeDataset, TrajectoryWindows
from trebi_gym.datasets.normalizers import NORMALIZERS
from trebi_gym.datasets.recipes import maximum_budget, published_recipe
from trebi_gym.datasets.windows import Window
from trebi_gym.errors import ConfigError

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

CONDITION_DROPOUT = 0.1
"""Share of windows that a denoiser with a condition sees without it."""

SEGMENTS, LONGEST_SEGMENT = 2, 64
"""Stretches of episodes for each window of a batch, from which a budget critic learns, and the most steps of one."""

OVERSPENDING = 5.0
"""What a cost beyond the budget takes away, in units of what the data earn for one."""

OUTCOME_EARLY_ENDS = 0.5
"""Share of windows that an outcome critic sees with fewer steps left: it scores plans to the last step of an episode."""


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
        for name in ("episode_length", "cost_scale", "budget_factor"):
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
            stacklevel=4,
        )
        others |= dict.fromkeys(parts, now)
    return kept | ({"parts": others} if others else {})


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
        except (TypeError, ValueError) as error:
            raise ConfigError(f"the network {network.name!r} for {part} cannot be built: {error}") from error


def make_loss(part: str, config: TREBIConfig, task: Task, windows: TrajectoryWindows) -> Loss:
    """Return the loss of one of an agent's models on batches of its windows."""
    judged = config.outcome_critic is not None and config.outcome_critic.name == "budget"
    kinds: dict[str, Any] = {"diffusion": _DenoisingLoss, OUTCOME: _BudgetLoss if judged else _OutcomeLoss}
    loss: Loss = kinds.get(part, _CriticLoss)(part, config, task, windows)
    return loss


class _WindowLoss:
    """Draws windows, noise levels and noise; the losses of the parts derive from it."""

    def __init__(self, part: str, config: TREBIConfig, task: Task, windows: TrajectoryWindows) -> None:
        self._config, self._task, self._windows, self._part = config, task, windows, part
        self._schedule = NoiseSchedule.cosine(config.diffusion_steps).to(windows.device)
        self._batch_size = config.training_of(part).batch_size
        size = task.action_size + task.observation_size
        self._weights = loss_weights(config.horizon, task.action_size, size, config.first_action_weight).to(
            windows.device
        )

    def _uniform(self, generator: torch.Generator) -> torch.Tensor:
        return torch.rand(self._batch_size, generator=generator, device=self._windows.device)

    def _levels(self, x0: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        device, steps = x0.device, self._config.diffusion_steps
        t = torch.randint(steps, (self._batch_size,), generator=generator, device=device)
        return t, torch.randn(x0.shape, generator=generator, device=device)

    def _index(self, generator: torch.Generator) -> torch.Tensor:
        count, device = len(self._windows), self._windows.device
        return torch.randint(count, (self._batch_size,), generator=generator, device=device)

    def _drawn(self, generator: torch.Generator, early_ends: float) -> Window:
        """Draw windows, this share of which ends at a random earlier step."""
        index = self._index(generator)
        window = self._windows[index]
        if early_ends <= 0:
            return window
        shortened = self._uniform(generator) < early_ends
        steps = (self._uniform(generator) * window.steps_left).ceil().clamp(min=1)
        return self._windows.ending_after(index, torch.where(shortened, steps, window.steps_left))

    def _pin_to(self, x0: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        first, size = x0[:, 0, self._task.action_size :], self._task.action_size
        return lambda x: pin_first_observation(x, first, size)


class _DenoisingLoss(_WindowLoss):
    def draw(self, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        window = self._windows[self._index(generator)]
        t, noise = self._levels(window.trajectory, generator)
        if not self._config.denoiser.options.get("condition"):
            return window.trajectory, t, noise
        dropped = self._uniform(generator) < CONDITION_DROPOUT
        condition = torch.where(dropped, torch.nan, window.cost_to_go / self._task.cost_scale)
        return window.trajectory, t, noise, condition

    def __call__(
        self, model: nn.Module, *drawn: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        x0, t, noise, *condition = drawn

        def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            clean: torch.Tensor = model(x, t, *condition)
            return clean

        value, first_action = denoising_loss(
            denoise,
            self._schedule,
            x0,
            t,
            noise,
            self._pin_to(x0),
            self._weights,
            action_dim=self._task.action_size,
        )
        return value, {"first_action_loss": first_action.detach()}


class _CriticLoss(_WindowLoss):
    def draw(self, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        window = self._drawn(generator, self._config.early_ends)
        target = window.return_to_go if self._part == "reward_critic" else window.cost_to_go
        return window.trajectory, *self._levels(window.trajectory, generator), target, window.steps_left

    def __call__(
        self, model: nn.Module, *drawn: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        x0, t, noise, target, left = drawn
        quantile = self._config.cost_quantile if self._part == "cost_critic" else None
        pin = self._pin_to(x0)
        return critic_loss(model, self._schedule, x0, t, noise, target, pin, left, quantile), {}


class _OutcomeLoss(_WindowLoss):
    def draw(self, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        window = self._drawn(generator, OUTCOME_EARLY_ENDS)
        return window.trajectory, window.steps_left, window.cost_to_go, window.return_to_go

    def __call__(
        self, model: nn.Module, *drawn: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        cost, reward = outcome_loss(cast(OutcomeCritic, model), *drawn)
        return cost + reward, {"cost_loss": cost.detach(), "reward_loss": reward.detach()}


class _BudgetLoss(_WindowLoss):
    """Draws stretches of episodes, each with a budget and a number of steps left of its own, and windows for the steps."""

    def __init__(self, part: str, config: TREBIConfig, task: Task, windows: TrajectoryWindows) -> None:
        super().__init__(part, config, task, windows)
        greatest = max(float(windows.cost_to_go.max()), 1e-6)
        self._budgets = (-0.15 * greatest, greatest)

    def prepare(self, model: nn.Module) -> None:
        """Fit what the critic does not learn."""
        rewards, costs = self._windows.step_sums()
        cast(BudgetCritic, model).set_scales(rewards, costs, self._budgets, OVERSPENDING)

    def draw(self, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        index = self._index(generator)[: max(1, self._batch_size // 8)]
        window = self._windows[index]
        return (*self._segment(generator), window.trajectory, *self._windows.steps_of(index))

    def _segment(self, generator: torch.Generator) -> Segment:
        device, count = self._windows.device, SEGMENTS * self._batch_size
        rows = torch.randint(self._windows.n_rows, (count,), generator=generator, device=device)
        share, budgets, steps = torch.rand((3, count), generator=generator, device=device)
        left = 1 + (share * self._task.episode_length).floor().clamp(max=self._task.episode_length - 1)
        room, terminated = self._windows.room(rows)
        # behind a time limit nothing is logged: a stretch must end before it, unless no step is left there
        most = room - (~terminated).to(room.dtype)
        left = torch.where(most < 1, 1.0, left)
        length = (1 + (steps * LONGEST_SEGMENT).floor()).clamp(max=LONGEST_SEGMENT)
        length = torch.minimum(torch.minimum(length, left), most.clamp(min=1).to(left.dtype)).long()
        start, end, reward, cost = self._windows.stretch(rows, length)
        size = self._task.action_size
        return Segment(
            start=start[:, size:],
            budget=self._budgets[0] + (self._budgets[1] - self._budgets[0]) * budgets,
            left=left,
            reward=reward,
            cost=cost,
            steps=length.to(left.dtype),
            end=end[:, size:],
            over=terminated & (length == room),
        )

    def __call__(
        self, model: nn.Module, *drawn: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        critic = cast(BudgetCritic, model)
        *segment, x, rewards, costs = drawn
        critic.follow()
        value, least = budget_loss(critic, Segment(*segment))
        told = torch.stack([rewards, costs], dim=2)[:, :-1]
        step = ((critic.steps(x) - told) / critic.step_scale).square().mean()
        return value + least + step, {
            "value_loss": value.detach(),
            "least_loss": least.detach(),
            "step_loss": step.detach(),
        }
