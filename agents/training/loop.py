"""Learning the models of an agent one after the other: shared steps, a run that can be saved, callbacks and the log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    ConvertCallback,
    EvalCallback,
    StopTrainingOnMaxEpisodes,
)
from stable_baselines3.common.logger import Logger
from torch import nn

from trebi_gym.agents.config import TrainingConfig, TREBIConfig
from trebi_gym.agents.models import OUTCOME, PARTS, Task, check_horizon, make_model, make_windows
from trebi_gym.agents.training.losses import make_loss
from trebi_gym.agents.training.trainer import Fit, FitMetrics
from trebi_gym.checks import is_whole
from trebi_gym.datasets import EpisodeDataset
from trebi_gym.errors import ConfigError, DatasetError, shown

MaybeCallback = BaseCallback | list[BaseCallback] | Callable[[dict[str, Any], dict[str, Any]], bool] | None


@dataclass(frozen=True)
class SavedRun:
    """A learning run that has not ended, as it is kept in an agent's file."""

    names: tuple[str, ...]
    """The models that it learns."""
    steps: Mapping[str, int]
    """Optimiser steps of each."""
    name: str
    """The model that is being learned."""
    num_timesteps: int
    """Optimiser steps that were taken, of all models together."""
    tensors: Mapping[str, torch.Tensor]
    """The trainer's state."""


class LearningRun:
    """Learns an agent's models, one after the other; iterating takes one optimiser step at a time.

    Each model has its own random streams, so that a model that is learned alone has the same weights as one that is
    learned with the others.

    Args:
        names: of the models, in the order in which they are learned.
        steps: optimiser steps of each.
        config: of the agent.
        task: what the models must know of the data.
        dataset: the episodes.
        seed: of weights and batches.
        device: of the models.
        finished: models of these names that are learned already.
        saved: the run to go on with, whose model ``name`` was being learned; None begins anew.
    """

    def __init__(
        self,
        names: Sequence[str],
        steps: Mapping[str, int],
        config: TREBIConfig,
        task: Task,
        dataset: EpisodeDataset,
        *,
        seed: int,
        device: torch.device,
        finished: Mapping[str, nn.Module] | None = None,
        saved: SavedRun | None = None,
    ) -> None:
        self.names, self.steps = tuple(names), dict(steps)
        self.models: dict[str, nn.Module] = dict(finished or {})
        self.num_timesteps = 0 if saved is None else saved.num_timesteps
        self.name: str | None = None if saved is None else saved.name
        self.metrics: FitMetrics | None = None
        self.steps_per_second = 0.0
        self._config, self._task, self._dataset = config, task, dataset
        self._seed, self._device, self._saved = seed, device, saved
        self._trainer: Fit | None = None

    @property
    def total(self) -> int:
        """Optimiser steps of all models together."""
        return sum(self.steps[name] for name in self.names)

    def __iter__(self) -> Iterator[FitMetrics]:
        """Take optimiser steps until all models are learned; ``models`` holds the finished ones.

        Where iterating is broken off, ``models`` also holds the one that was being learned, as it was then.

        Raises:
            DatasetError: the loss is no longer finite; found out wherever ``check_loss`` is called.
        """
        windows = None
        for name in self.names:
            if name in self.models:
                continue
            if windows is None or name == OUTCOME:  # whose sums are others
                windows = make_windows(self._dataset, self._config, self._task, self._device, name)
            seed = _stream(self._seed, name)
            model = make_model(name, self._config, self._task, seed).to(self._device)
            loss = make_loss(name, self._config, self._task, windows)
            prepare = getattr(loss, "prepare", None)
            if prepare is not None:
                prepare(model)
            generator = torch.Generator(device=self._device).manual_seed(seed)
            trainer = Fit(model, loss, self._config.training_of(name), generator)
            if self._saved is not None and self._saved.name == name and self._saved.tensors:
                trainer.restore(self._saved.tensors)
            self.name, self._trainer = name, trainer
            before = sum(self.steps[other] for other in self.names[: self.names.index(name)])
            started, first = time.monotonic(), trainer.step
            try:
                for metrics in trainer.run(self.steps[name]):
                    self.num_timesteps = before + metrics.step
                    self.metrics = metrics
                    self.steps_per_second = (metrics.step - first) / max(time.monotonic() - started, 1e-9)
                    yield metrics
            finally:
                self.models[name] = trainer.averaged

    def is_last_of_model(self) -> bool:
        """Return whether the last optimiser step was the last one of its model."""
        return (
            self.metrics is not None and self.name is not None and self.metrics.step == self.steps[self.name]
        )

    def check_loss(self) -> float:
        """Return the last step's loss.

        Raises:
            DatasetError: it is not finite.
        """
        assert self.metrics is not None
        assert self.name is not None
        loss = float(self.metrics.loss.item())
        if not np.isfinite(loss):
            raise DatasetError(
                f"learning {self.name} failed: its loss is {loss} at step {self.metrics.step}; the data hold numbers that "
                f"are too large, or the learning rate of {self._config.training_of(self.name).learning_rate} is"
            )
        return loss

    def record(self, logger: Logger) -> None:
        """Record what the last optimiser step measured."""
        if self.metrics is None:
            return
        logger.record(f"{self.name}/loss", self.metrics.loss.item())
        for name, value in self.metrics.extra.items():
            logger.record(f"{self.name}/{name}", value.item())
        logger.record(f"{self.name}/step", self.metrics.step)
        logger.record("time/steps_per_second", self.steps_per_second)

    def save(self) -> SavedRun:
        """Return what is needed to go on with the run later."""
        tensors = (
            self._trainer.state() if self._trainer is not None else self._saved.tensors if self._saved else {}
        )
        assert self.name is not None
        return SavedRun(self.names, self.steps, self.name, self.num_timesteps, tensors)


class LearningEnv:
    """What callbacks take for the environment while learning: one step at a time, and else that of the agent, if any.

    Learning steps no environment, so a vector environment does not make one optimiser step several.
    """

    num_envs = 1

    def __init__(self, env: Any) -> None:
        self._env = env

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or self._env is None:
            raise AttributeError(f"learning from logged episodes has no environment, so no {name}")
        return getattr(self._env, name)


def check_request(
    config: TREBIConfig,
    names: Sequence[str],
    dataset: EpisodeDataset,
    total_steps: int | None,
    callback: MaybeCallback,
    log_interval: int | None,
) -> None:
    """Raise where learning cannot work as it is asked for, before anything that was learned is given up.

    Raises:
        ConfigError: ``total_steps`` or ``log_interval`` is too small, or a callback cannot work here.
        DatasetError: the episodes are shorter than a plan.
    """
    if log_interval is not None and (not is_whole(log_interval) or log_interval < 1):
        raise ConfigError(f"log_interval must be at least 1, or None; got {shown(log_interval)}")
    share_steps({name: config.training_of(name) for name in names}, total_steps)
    check_horizon(dataset, config)
    for item in _all_callbacks(one_callback(callback)):
        for kind, reason in _IMPOSSIBLE.items():
            if isinstance(item, kind):
                raise ConfigError(f"{type(item).__name__} cannot be used while learning: {reason}")


def share_steps(configs: Mapping[str, TrainingConfig], total_steps: int | None) -> dict[str, int]:
    """Return the optimiser steps of each model: ``total_steps`` in all, in the proportion of the configuration's.

    Whole numbers first, at least one each; what is missing goes to those with the largest remainder, the earlier first,
    and what is too much, because every model takes one, is taken from those with the most steps.

    Raises:
        ConfigError: ``total_steps`` is less than one for each model.
    """
    if total_steps is None:
        return {name: config.steps for name, config in configs.items()}
    if not is_whole(total_steps) or total_steps < len(configs):
        raise ConfigError(
            f"total_steps must be a whole number of at least {len(configs)}, one for each model; got {shown(total_steps)}"
        )
    total, whole = int(total_steps), sum(config.steps for config in configs.values())
    # exact: in units of 1 / whole
    due = {name: total * config.steps for name, config in configs.items()}
    steps = {name: max(1, share // whole) for name, share in due.items()}
    while sum(steps.values()) < total:
        steps[max(steps, key=lambda name: due[name] - steps[name] * whole)] += 1
    while sum(steps.values()) > total:
        steps[max(steps, key=lambda name: steps[name])] -= 1
    return steps


def one_callback(callback: MaybeCallback) -> BaseCallback:
    """Return what is given as one callback.

    Raises:
        ConfigError: it is none.
    """
    if callback is None:
        return CallbackList([])
    if isinstance(callback, BaseCallback):
        return callback
    if isinstance(callback, list) and all(isinstance(item, BaseCallback) for item in callback):
        return CallbackList(callback)
    if callable(callback):
        return ConvertCallback(callback)
    raise ConfigError(
        f"callback must be a BaseCallback of Stable-Baselines3, a list of such, or a function; got {callback!r}"
    )


_IMPOSSIBLE: dict[type[BaseCallback], str] = {
    EvalCallback: "the agent acts once all its models are learned, not before; evaluate it after learn, for example by "
    "trebi_gym.evaluate_budgets(agent, env_id, budgets=[...])",
    StopTrainingOnMaxEpisodes: "learning from logged episodes ends none; give learn total_steps",
}
"""Callbacks of Stable-Baselines3 that need what is not there while learning, and what to do instead."""


def _all_callbacks(hooks: BaseCallback) -> Iterator[BaseCallback]:
    """Yield a callback, and those that it calls."""
    yield hooks
    inner = [*getattr(hooks, "callbacks", ()), getattr(hooks, "callback", None)]
    for item in inner:
        if isinstance(item, BaseCallback):
            yield from _all_callbacks(item)


def _stream(seed: int, name: str) -> int:
    """Return the seed of one model's weights and batches."""
    if name in PARTS:
        return seed * len(PARTS) + PARTS.index(name)
    return int(np.random.SeedSequence([seed, len(PARTS)]).generate_state(1, np.uint64)[0] >> 1)
