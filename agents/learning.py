"""Fitting the models one after the other, with Stable-Baselines3's callbacks, a log and a progress bar."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from tqdm import tqdm

from trebi_gym.agents.config import TrainingConfig
from trebi_gym.agents.losses import make_loss
from trebi_gym.agents.models import OUTCOME, PARTS, make_model, make_windows
from trebi_gym.agents.training import Fit, FitMetrics
from trebi_gym.datasets import EpisodeDataset
from trebi_gym.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from trebi_gym.agents.trebi import TREBIAgent

MaybeCallback = BaseCallback | list[BaseCallback] | Callable[[dict[str, Any], dict[str, Any]], bool] | None


@dataclass
class Run:
    """A ``learn`` that has not ended yet: what must be known to go on with it."""

    parts: tuple[str, ...]  # that it is to fit
    steps: dict[str, int]  # optimiser steps of each
    part: str  # being fitted
    fit: Fit | None = None  # None right after loading, until learning goes on
    state: dict[str, torch.Tensor] | None = None  # of the fit, as loaded


def run_parts(
    agent: TREBIAgent,
    parts: Sequence[str],
    dataset: EpisodeDataset,
    total_steps: int | None,
    callback: MaybeCallback,
    log_interval: int,
    progress_bar: bool,
) -> None:
    """Fit ``parts`` in turn, and put each into ``agent.models`` when it is done; goes on with ``agent.run``.

    Raises:
        ConfigError: ``total_steps`` or ``log_interval`` is too small, or not what the resumed run began with.
        DatasetError: the loss is no longer finite.
    """
    if log_interval < 1:
        raise ConfigError(f"log_interval must be at least 1; got {log_interval}")
    assert agent.task is not None
    configs = {part: agent.config.training_of(part) for part in parts}
    steps = agent.run.steps if agent.run else _share(configs, total_steps)
    if agent.run and total_steps is not None and steps != _share(configs, total_steps):
        raise ConfigError(
            f"the run to resume was begun with {sum(steps.values())} steps, not {total_steps}; leave total_steps away"
        )
    hooks = _callback(agent, callback)
    hooks.on_training_start({"self": agent, "dataset": dataset}, {})
    done, windows = agent.num_timesteps, None
    with tqdm(
        total=sum(steps[part] for part in parts), initial=done, disable=not progress_bar, unit="step"
    ) as bar:
        for part in parts:
            if part in agent.models:
                continue
            bar.set_description(part)
            if windows is None or part == OUTCOME:  # whose sums are others
                windows = make_windows(dataset, agent.config, agent.task, agent.device, part)
            if not _fit_part(
                agent, part, tuple(parts), steps, configs[part], windows, hooks, log_interval, bar
            ):
                break
        else:
            agent.run = None
    hooks.on_training_end()


def _fit_part(
    agent: TREBIAgent,
    part: str,
    parts: tuple[str, ...],
    steps: dict[str, int],
    config: TrainingConfig,
    windows: Any,
    hooks: BaseCallback,
    log_interval: int,
    bar: Any,
) -> bool:
    """Fit one model; returns whether learning goes on."""
    assert agent.task is not None
    # each model has its own streams, so that learning one alone gives the same weights as learning all
    seed = _stream(agent.seed, part)
    model = make_model(part, agent.config, agent.task, seed).to(agent.device)
    generator = torch.Generator(device=agent.device).manual_seed(seed)
    loss = make_loss(part, agent.config, agent.task, windows)
    prepare = getattr(loss, "prepare", None)
    if prepare is not None:
        prepare(model)
    fit = Fit(model, loss, config, generator)
    if agent.run is not None and agent.run.part == part and agent.run.state is not None:
        fit.restore(agent.run.state)
    agent.run = Run(parts=parts, steps=steps, part=part, fit=fit)
    before = sum(steps[other] for other in parts[: parts.index(part)])
    started, first = time.monotonic(), fit.step
    going = True
    for metrics in fit.run(steps[part]):
        agent.num_timesteps = before + metrics.step
        bar.update()
        if metrics.step % log_interval == 0 or metrics.step == steps[part]:
            speed = (metrics.step - first) / max(time.monotonic() - started, 1e-9)
            if not bool(metrics.loss.isfinite()):
                raise DatasetError(
                    f"learning {part} failed: its loss is {metrics.loss.item()} at step {metrics.step}; the data hold "
                    f"numbers that are too large, or the learning rate of {config.learning_rate} is"
                )
            _log(agent, part, metrics, speed)
            bar.set_postfix(loss=f"{metrics.loss.item():.4g}", refresh=False)
        going = hooks.on_step()
        if not going:
            break
    agent.models[part] = fit.averaged
    return going


def _stream(seed: int, part: str) -> int:
    """Return the seed of one model's weights and batches."""
    if part in PARTS:
        return seed * len(PARTS) + PARTS.index(part)
    return int(np.random.SeedSequence([seed, len(PARTS)]).generate_state(1, np.uint64)[0] >> 1)


def _log(agent: TREBIAgent, part: str, metrics: FitMetrics, speed: float) -> None:
    agent.logger.record(f"{part}/loss", metrics.loss.item())
    for name, value in metrics.extra.items():
        agent.logger.record(f"{part}/{name}", value.item())
    agent.logger.record(f"{part}/step", metrics.step)
    agent.logger.record("time/steps_per_second", speed)
    agent.logger.dump(agent.num_timesteps)


def _share(configs: dict[str, TrainingConfig], total_steps: int | None) -> dict[str, int]:
    if total_steps is None:
        return {part: config.steps for part, config in configs.items()}
    if isinstance(total_steps, bool) or not isinstance(total_steps, int) or total_steps < len(configs):
        raise ConfigError(
            f"total_steps must be at least {len(configs)}, one for each model; got {total_steps!r}"
        )
    whole = sum(config.steps for config in configs.values())
    return {part: max(1, round(total_steps * config.steps / whole)) for part, config in configs.items()}


def _callback(agent: TREBIAgent, callback: MaybeCallback) -> BaseCallback:
    if callback is None:
        hooks: BaseCallback = CallbackList([])
    elif isinstance(callback, BaseCallback):
        hooks = callback
    elif isinstance(callback, list):
        hooks = CallbackList(callback)
    else:
        hooks = ConvertCallback(callback)
    hooks.init_callback(agent)  # type: ignore[arg-type]
    return hooks
