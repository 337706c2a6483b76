"""Fitting the models one after the other, with Stable-Baselines3's callbacks, a log and a progress bar."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    ConvertCallback,
    EvalCallback,
    StopTrainingOnMaxEpisodes,
)
from tqdm import tqdm

from trebi_gym.agents.config import TrainingConfig, TREBIConfig
from trebi_gym.agents.losses import make_loss
from trebi_gym.agents.models import OUTCOME, PARTS, check_horizon, make_model, make_windows
from trebi_gym.agents.training import Fit, FitMetrics
from trebi_gym.checks import is_whole
from trebi_gym.datasets import EpisodeDataset
from trebi_gym.errors import ConfigError, DatasetError, shown

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
    metrics: FitMetrics | None = None  # of the last optimiser step
    speed: float = 0.0  # optimiser steps a second


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
    parts: Sequence[str],
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
    share_steps({part: config.training_of(part) for part in parts}, total_steps)
    check_horizon(dataset, config)
    for item in _all_callbacks(_hooks(callback)):
        for kind, reason in _IMPOSSIBLE.items():
            if isinstance(item, kind):
                raise ConfigError(f"{type(item).__name__} cannot be used while learning: {reason}")


def run_parts(
    agent: TREBIAgent,
    parts: Sequence[str],
    dataset: EpisodeDataset,
    total_steps: int | None,
    callback: MaybeCallback,
    log_interval: int | None,
    progress_bar: bool,
) -> None:
    """Fit ``parts`` in turn, and put each into ``agent.models`` when it is done; goes on with ``agent.run``.

    Raises:
        ConfigError: ``total_steps`` is not what the resumed run began with.
        DatasetError: the loss is no longer finite.
    """
    assert agent.task is not None
    configs = {part: agent.config.training_of(part) for part in parts}
    steps = agent.run.steps if agent.run else share_steps(configs, total_steps)
    if agent.run and total_steps is not None and sum(steps.values()) != total_steps:
        raise ConfigError(
            f"the run to resume was begun with {sum(steps.values())} steps, not {total_steps}; leave total_steps away"
        )
    total = sum(steps[part] for part in parts)
    agent.learning_env = LearningEnv(agent.get_env())
    try:
        hooks = _hooks(callback)
        hooks.init_callback(agent)  # type: ignore[arg-type]
        hooks.on_training_start({"self": agent, "dataset": dataset, "total_timesteps": total}, {})
        _fit_parts(agent, parts, dataset, steps, configs, hooks, log_interval, progress_bar)
        hooks.on_training_end()
    finally:
        agent.learning_env = None


def _fit_parts(
    agent: TREBIAgent,
    parts: Sequence[str],
    dataset: EpisodeDataset,
    steps: dict[str, int],
    configs: dict[str, TrainingConfig],
    hooks: BaseCallback,
    log_interval: int | None,
    progress_bar: bool,
) -> None:
    """Fit those of ``parts`` that are not there yet, until all are, or a callback ends learning."""
    assert agent.task is not None
    total, windows = sum(steps[part] for part in parts), None
    with tqdm(total=total, initial=agent.num_timesteps, disable=not progress_bar, unit="step") as bar:
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


def _fit_part(
    agent: TREBIAgent,
    part: str,
    parts: tuple[str, ...],
    steps: dict[str, int],
    config: TrainingConfig,
    windows: Any,
    hooks: BaseCallback,
    log_interval: int | None,
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
    run = agent.run = Run(parts=parts, steps=steps, part=part, fit=fit)
    before = sum(steps[other] for other in parts[: parts.index(part)])
    started, first = time.monotonic(), fit.step
    going = True
    for metrics in fit.run(steps[part]):
        agent.num_timesteps = before + metrics.step
        bar.update()
        run.metrics, run.speed = metrics, (metrics.step - first) / max(time.monotonic() - started, 1e-9)
        last = metrics.step == steps[part]
        if last or (log_interval is not None and metrics.step % log_interval == 0):
            if not bool(metrics.loss.isfinite()):
                raise DatasetError(
                    f"learning {part} failed: its loss is {metrics.loss.item()} at step {metrics.step}; the data hold "
                    f"numbers that are too large, or the learning rate of {config.learning_rate} is"
                )
            if log_interval is not None:
                write_log(agent)
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


def write_log(agent: TREBIAgent) -> None:
    """Record what the last optimiser step measured, and write the log."""
    run = agent.run
    if run is not None and run.metrics is not None:
        agent.logger.record(f"{run.part}/loss", run.metrics.loss.item())
        for name, value in run.metrics.extra.items():
            agent.logger.record(f"{run.part}/{name}", value.item())
        agent.logger.record(f"{run.part}/step", run.metrics.step)
        agent.logger.record("time/steps_per_second", run.speed)
    agent.logger.dump(agent.num_timesteps)


def share_steps(configs: dict[str, TrainingConfig], total_steps: int | None) -> dict[str, int]:
    """Return the optimiser steps of each model: ``total_steps`` in all, in the proportion of the configuration's.

    Whole parts first, at least one each; what is missing goes to those with the largest remainder, the earlier first, and
    what is too much, because every model takes one, is taken from those with the most steps.
    """
    if total_steps is None:
        return {part: config.steps for part, config in configs.items()}
    if not is_whole(total_steps) or total_steps < len(configs):
        raise ConfigError(
            f"total_steps must be a whole number of at least {len(configs)}, one for each model; got {shown(total_steps)}"
        )
    total, whole = int(total_steps), sum(config.steps for config in configs.values())
    # exact: in units of 1 / whole
    due = {part: total * config.steps for part, config in configs.items()}
    steps = {part: max(1, share // whole) for part, share in due.items()}
    while sum(steps.values()) < total:
        steps[max(steps, key=lambda part: due[part] - steps[part] * whole)] += 1
    while sum(steps.values()) > total:
        steps[max(steps, key=lambda part: steps[part])] -= 1
    return steps


def _hooks(callback: MaybeCallback) -> BaseCallback:
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
    "trebi_gym.evaluation.evaluate_budgets(agent, env_id, budgets=[...])",
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
