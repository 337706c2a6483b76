"""The losses by which an agent's models learn: what each draws of the data, and what it computes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn

from trebi_gym.agents.config import TREBIConfig
from trebi_gym.agents.diffusion.denoising import (
    critic_loss,
    denoising_loss,
    loss_weights,
    pin_first_observation,
)
from trebi_gym.agents.diffusion.schedule import NoiseSchedule
from trebi_gym.agents.models import OUTCOME, Task
from trebi_gym.agents.networks.budget_critic import BudgetCritic, Segment, budget_loss, step_losses
from trebi_gym.agents.networks.outcome import OutcomeCritic, outcome_loss
from trebi_gym.agents.training.trainer import Loss
from trebi_gym.datasets import TrajectoryWindows
from trebi_gym.datasets.windows import Window

CONDITION_DROPOUT = 0.1
"""Share of windows that a denoiser with a condition sees without it."""

SEGMENTS, LONGEST_SEGMENT = 2, 64
"""Stretches of episodes for each window of a batch, from which a budget critic learns, and the most steps of one."""

OVERSPENDING = 5.0
"""What a cost beyond the budget takes away, in units of what the data earn for one."""

OUTCOME_EARLY_ENDS = 0.5
"""Share of windows that an outcome critic sees with fewer steps left: it scores plans to the last step of an episode."""


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
        rows, size = self._windows.rows, self._task.action_size
        room, ended = self._windows.room(torch.arange(len(rows), device=rows.device))
        after = self._windows.after
        moves = (after - rows[:, size:])[room > 1]
        cast(BudgetCritic, model).set_moves(rows, after, moves, bool(ended.any()))

    def follow(self, model: nn.Module) -> None:
        """Move what the critic learns towards a step on; called before every update, and not recorded with it."""
        cast(BudgetCritic, model).follow()

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
        *segment, x, after, rewards, costs, inside, ended = drawn
        value, least = budget_loss(critic, Segment(*segment))
        step, move, ending = step_losses(
            critic, x, after, torch.stack([rewards, costs], dim=2), inside, ended
        )
        return value + least + step + move + ending, {
            "value_loss": value.detach(),
            "least_loss": least.detach(),
            "step_loss": step.detach(),
            "move_loss": move.detach(),
        }
