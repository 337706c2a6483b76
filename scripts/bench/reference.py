"""The textbook way to plan and to train, as a yardstick for speed: eager PyTorch, nothing shared, captured or left out.

It computes what the paper's presets compute (arXiv 2306.00603), the way one would write it down from the paper:
every row embeds its own denoising step, the critics are differentiated one after the other at every one of the 20 x 2 guided
moves, gradients that do not count are multiplied by zero, and windows are picked one by one by a ``DataLoader``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from trebi_gym.agents.config import TREBIConfig
from trebi_gym.agents.diffusion.denoising import (
    critic_loss,
    denoising_loss,
    loss_weights,
    pin_first_observation,
    posterior,
)
from trebi_gym.agents.diffusion.schedule import NoiseSchedule
from trebi_gym.agents.models import Task
from trebi_gym.datasets import TrajectoryWindows


def textbook_decision(
    models: Mapping[str, nn.Module], config: TREBIConfig, task: Task, generator: torch.Generator
) -> Callable[[npt.NDArray[np.float32], float], npt.NDArray[np.float32]]:
    """Return (observation (O,), budget in the critic's units) -> action (A,), planned the textbook way.

    Args:
        models: the denoiser and the critics, by the names of ``PARTS``.
        config: the paper's: its sampler, guidance and candidates are used.
        task: the normalisers.
        generator: of the noise; the same generator gives ``BudgetGuidedPlanner``'s plans.
    """
    planner = config.planner
    device = next(models["diffusion"].parameters()).device
    schedule = NoiseSchedule.cosine(config.diffusion_steps).to(device)
    size = task.action_size + task.observation_size

    def decide(observation: npt.NDArray[np.float32], budget: float) -> npt.NDArray[np.float32]:
        start = torch.as_tensor(task.observations.normalize(observation), dtype=torch.float32, device=device)
        shape = (planner.candidates, config.horizon, size)

        def pin(x: Tensor) -> Tensor:
            return pin_first_observation(x, start, task.action_size)

        x = pin(torch.randn(shape, generator=generator, device=device))
        for step in reversed(range(schedule.n_steps)):
            t = torch.full((planner.candidates,), step, device=device)
            for _ in range(planner.guide_moves):
                _, to_reward = _differentiate(models["reward_critic"], x, t)
                costs, to_cost = _differentiate(models["cost_critic"], x, t)
                over = (costs > budget).float()
                if planner.guide_type == 0:
                    over = over * ((costs - budget) / budget).clamp(0, 1).exp()
                direction = to_reward - planner.cost_weight * over[:, None, None] * to_cost
                direction[t < planner.guide_stop] = 0
                variance = schedule.posterior_log_variance_clipped[t][:, None, None].exp()
                x = pin(x + planner.guide_scale * variance * direction)
            with torch.no_grad():
                mean, log_variance = posterior(schedule, models["diffusion"](x, t), x, t)
                noise = torch.randn(shape, generator=generator, device=device)
                noise[t == 0] = 0
                x = pin(mean + (0.5 * log_variance).exp() * noise)
        with torch.no_grad():
            t = torch.zeros(planner.candidates, dtype=torch.long, device=device)
            rewards, costs = (models[part](x, t) for part in ("reward_critic", "cost_critic"))
        within = costs <= budget
        values = torch.where(within, rewards, -torch.inf) if bool(within.any()) else -costs
        action = x[int(values.argmax()), 0, : task.action_size].cpu().numpy()
        return np.asarray(task.actions.unnormalize(action), dtype=np.float32)

    return decide


def _differentiate(critic: nn.Module, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    value = critic(x, t)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), gradient


class _Items(Dataset[tuple[Tensor, Tensor]]):
    """Windows one by one, on the CPU."""

    def __init__(self, windows: TrajectoryWindows, part: str) -> None:
        self._windows, self._part = windows, part

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        window = self._windows[index]
        return window.trajectory, window.return_to_go if self._part == "reward_critic" else window.cost_to_go


def textbook_updates(
    model: nn.Module, part: str, windows: TrajectoryWindows, config: TREBIConfig, task: Task
) -> Iterator[Tensor]:
    """Take the paper's optimiser steps the textbook way, without end, and yield each one's loss.

    Args:
        model: the network, on the device that is to train it.
        part: which of ``PARTS`` it is.
        windows: of the data, on the CPU.
        config: the paper's: batch size, accumulation, learning rate and averaging are used.
        task: the sizes of actions and observations.
    """
    training = config.training_of(part)
    device = next(model.parameters()).device
    schedule = NoiseSchedule.cosine(config.diffusion_steps).to(device)
    weights = loss_weights(
        config.horizon, task.action_size, task.action_size + task.observation_size, config.first_action_weight
    ).to(device)
    batches = _endless(DataLoader(_Items(windows, part), batch_size=training.batch_size, shuffle=True))
    optimizer = torch.optim.Adam(model.parameters(), lr=training.learning_rate)
    average = copy.deepcopy(model)
    step = 0
    while True:
        total = torch.zeros((), device=device)
        for _ in range(training.accumulation):
            x0, target = (tensor.to(device) for tensor in next(batches))

            def pin(x: Tensor, x0: Tensor = x0) -> Tensor:
                return pin_first_observation(x, x0[:, 0, task.action_size :], task.action_size)

            t = torch.randint(config.diffusion_steps, (len(x0),), device=device)
            noise = torch.randn_like(x0)
            if part == "diffusion":
                loss, _ = denoising_loss(
                    model, schedule, x0, t, noise, pin, weights, action_dim=task.action_size
                )
            else:
                loss = critic_loss(model, schedule, x0, t, noise, target, pin)
            (loss / training.accumulation).backward()  # type: ignore[no-untyped-call]
            total = total + loss.detach() / training.accumulation
        optimizer.step()
        optimizer.zero_grad()
        if step % training.ema_every == 0:
            for kept, current in zip(average.parameters(), model.parameters(), strict=True):
                decay = 0.0 if step < training.ema_start else training.ema_decay
                kept.data = kept.data * decay + current.data * (1 - decay)
        step += 1
        yield total


def _endless(loader: DataLoader[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from loader
