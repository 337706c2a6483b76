"""Decisions and updates a second: the preset ``fast`` against the paper's networks and sampler, in one run."""

from __future__ import annotations

import dataclasses
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from trebi_gym.agents import TREBIAgent
from trebi_gym.agents.models import PARTS, make_loss, make_model, make_windows
from trebi_gym.agents.training import Fit
from trebi_gym.datasets import EpisodeDataset, load
from trebi_gym.files import replacing
from trebi_gym.records import format_table

DATASET = "SafePendulum-medium-replay-v0"


@dataclass(frozen=True)
class Timing:
    """One measured thing; seconds are of one call."""

    what: str
    preset: str
    environments: int  # planned for at once; 0 for an optimiser step
    seconds: float  # median
    fastest: float
    slowest: float
    repeats: int

    @property
    def each(self) -> float:
        """Seconds for each environment's decision, or for the optimiser step."""
        return self.seconds / max(self.environments, 1)


def benchmark(
    presets: Sequence[str] = ("fast", "toy_safe_env"),
    environments: Sequence[int] = (1, 16, 64),
    *,
    seconds: float = 20.0,
    device: str = "auto",
) -> list[Timing]:
    """Time decisions and optimiser steps; weights are random, since they do not change what is computed.

    Args:
        presets: what to compare; those with the paper's networks are only timed for one environment.
        environments: how many to plan for at once.
        seconds: about how long each thing is repeated, after one call that does not count; at least three times.
        device: auto, cpu, cuda, ...
    """
    dataset = load(DATASET)
    timings: list[Timing] = []
    for preset in presets:
        agent = untrained(preset, dataset, device)
        assert agent.task is not None
        for count in environments if agent.config.denoiser.name == "mlp" else environments[:1]:
            observations = np.tile(dataset.observations[:1], (count, 1))
            decide = _synchronised(agent, partial(agent.predict, observations, budget=30.0))
            timings.append(_time(decide, "decision", preset, count, seconds))
        windows = make_windows(dataset, agent.config, agent.task, agent.device)
        for part in PARTS:
            generator = torch.Generator(device=agent.device).manual_seed(0)
            fit = Fit(
                make_model(part, agent.config, agent.task, 0).to(agent.device),
                make_loss(part, agent.config, agent.task, windows),
                dataclasses.replace(agent.config.training_of(part), steps=10**9),
                generator,
            )
            step = _synchronised(agent, partial(next, fit.run()))
            timings.append(_time(step, f"{part} step", preset, 0, seconds))
    return timings


def untrained(preset: str, dataset: EpisodeDataset, device: str) -> TREBIAgent:
    """Return an agent that plans with initial weights: one step of learning, thrown away."""
    agent = TREBIAgent(config=preset, seed=0, device=device)
    return agent.learn(dataset, total_steps=len(PARTS), progress_bar=False)


def report(timings: Sequence[Timing]) -> str:
    """Return a table for people, with ratios against the paper's preset."""
    paper = {t.what: t.each for t in timings if t.preset == "toy_safe_env"}
    rows = []
    for t in timings:
        ratio = f"{paper[t.what] / t.each:.1f}x" if t.what in paper else ""
        rows.append(
            (
                t.preset,
                t.what,
                str(t.environments or ""),
                f"{1000 * t.seconds:.2f}",
                f"{1000 * t.fastest:.2f} to {1000 * t.slowest:.2f}",
                f"{1 / t.each:.1f}",
                ratio,
                str(t.repeats),
            )
        )
    header = (
        "preset",
        "what",
        "at once",
        "median ms",
        "range ms",
        "a second",
        "faster than toy_safe_env",
        "repeats",
    )
    return format_table(header, rows)


def save(timings: Sequence[Timing], path: Path) -> None:
    """Write the timings and what they were measured on as JSON."""
    document = {
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "timings": [dataclasses.asdict(timing) for timing in timings],
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(document, indent=2))


def _synchronised(agent: TREBIAgent, call: Callable[[], object]) -> Callable[[], object]:
    if agent.device.type != "cuda":
        return call

    def waited() -> None:
        call()
        torch.cuda.synchronize(agent.device)

    return waited


def _time(call: Callable[[], object], what: str, preset: str, environments: int, seconds: float) -> Timing:
    call()
    times: list[float] = []
    while len(times) < 3 or (sum(times) < seconds and len(times) < 200):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return Timing(what, preset, environments, statistics.median(times), min(times), max(times), len(times))
