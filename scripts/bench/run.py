"""Decisions and updates a second of the presets, against the textbook way in the same run, as rows, table and JSON."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from scripts.bench.measure import Timing, count_operations, peak_memory, peak_rate, time_in_turns, time_once
from scripts.bench.reference import textbook_decision, textbook_updates
from trebi_gym.agents import TREBIAgent
from trebi_gym.agents.config import TREBIConfig
from trebi_gym.agents.models import OUTCOME, make_model, make_windows, parts_of
from trebi_gym.agents.networks import BudgetCritic, OutcomeCritic
from trebi_gym.agents.networks.cuda_graphs import computing_directly
from trebi_gym.agents.presets import preset
from trebi_gym.agents.spaces import resolve_device
from trebi_gym.agents.training.losses import make_loss
from trebi_gym.agents.training.trainer import Fit
from trebi_gym.datasets import EpisodeDataset
from trebi_gym.evaluation.records import format_table
from trebi_gym.files import replacing

TEXTBOOK = "textbook"


@dataclass(frozen=True)
class Measurement:
    """One measured thing."""

    what: str  # "decision", "decision, scaling", or "<part> update"
    who: str  # a preset, or "textbook"
    size: str  # a name in SIZES
    environments: int  # planned for at once; 0 for an update
    setting: str  # what is not as in the preset, or which plans break their budget
    windows: int  # of an update; 0 for a decision
    seconds: Timing | None  # of one call; None where it was left out
    operations: int | None  # floating-point operations of one call
    floor: float | None  # seconds that these take at the rate of a large product; None for bfloat16
    memory: int | None  # bytes that the call needs at its peak
    note: str = ""

    @property
    def each(self) -> float | None:
        """Seconds for each environment's decision, or for the update."""
        return None if self.seconds is None else self.seconds.median / max(self.environments, 1)


def report(document: dict[str, Any]) -> str:
    """Return a table for people, with ratios of medians against the textbook way, called for one environment at a time.

    Rows of ``decision, scaling`` have none: the textbook way was not timed in turns with them.
    """
    measured: Sequence[Measurement] = document["measurements"]
    textbook = {(m.what, m.size): m.each for m in measured if m.who == TEXTBOOK}
    rows = []
    for m in measured:
        base = textbook.get((m.what, m.size))
        rows.append(
            (
                m.what,
                m.size,
                m.who,
                str(m.environments or ""),
                "; ".join(text for text in (m.setting, m.note) if text),
                "" if m.seconds is None else f"{1000 * m.seconds.median:.2f}",
                ""
                if m.seconds is None
                else f"{1000 * m.seconds.fastest:.2f} to {1000 * m.seconds.slowest:.2f}",
                "" if not m.each else f"{1 / m.each:.1f}",
                "" if not m.each or not m.windows else f"{m.windows / m.each:.0f}",
                "" if not m.each or base is None else f"{base / m.each:.2f}",
                "" if m.floor is None else f"{1000 * m.floor:.2f}",
                "" if m.memory is None else f"{m.memory / 1e6:.0f}",
            )
        )
    header = (
        "what",
        "size",
        "who",
        "at once",
        "setting",
        "median ms",
        "range ms",
        "a second",
        "windows a second",
        "times faster than textbook (one at once)",
        "floor ms",
        "memory MB",
    )
    machine = document["gpu"] or f"{document['machine']}, {document['threads']} threads"
    rate = f"a large float32 product: {document['operations_a_second'] / 1e9:.0f} GFLOP/s"
    return f"{machine}, torch {document['torch']}; {rate}\n{format_table(header, rows)}"


def save(document: dict[str, Any], path: Path) -> None:
    """Write what was measured as JSON."""
    plain = document | {"measurements": [dataclasses.asdict(m) for m in document["measurements"]]}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(plain, indent=2))


SIZES = {"pendulum": (3, 1, 200), "hopper": (11, 3, 1000)}
"""Observations, actions and steps of an episode."""
PAPER_OF = {"pendulum": "toy_safe_env", "hopper": "locomotion"}
"""The paper's preset for each of them; the textbook way takes its networks, sampler and candidates."""


@dataclass(frozen=True)
class _Job:
    """What is to be measured."""

    measurement: Measurement
    call: Callable[[], object]
    brief: Callable[[], object] | None = None  # a shorter call with the same peak of memory
    float32: bool = True  # whether that is what it computes in, so that the rate of float32 bounds it


def benchmark(
    presets: Sequence[str] = ("fast", "toy_safe_env", "locomotion"),
    environments: Sequence[int] = (1, 16, 64),
    *,
    seconds: float = 20.0,
    longest: float = 60.0,
    scaling: bool = True,
    device: str = "auto",
) -> dict[str, Any]:
    """Time decisions and updates of every preset in turns with the textbook way.

    Weights and observations are random: they do not change how much is computed, but for how many plans are over their
    budget. Where that matters both ends are measured: where none is, the paper's planner needs no gradient of the cost;
    where all are, a preset with ``retry_steps`` searches a second time.

    Args:
        presets: what to compare; the paper's are measured at the size that they are for.
        environments: how many to plan for at once.
        seconds: about how long each thing is repeated, after one call that does not count; at least three times.
        longest: decisions of presets that are expected to take more seconds than this, as many times one environment's
            as there are environments, are left out, and said to be; the textbook way never is.
        scaling: also tell how one search of ``fast`` grows with candidates, horizon and denoising steps.
        device: auto, cpu, cuda, ...

    Returns:
        The machine, and a list of ``Measurement``.

    Raises:
        ConfigError: there is no such preset or device.
    """
    configs = {config.preset: config for config in map(preset, presets)}
    where = resolve_device(device)
    rate = peak_rate(where)
    measured: list[Measurement] = []
    for size in SIZES:
        dataset = random_dataset(size)
        decisions = list(_decisions(size, dataset, configs, environments, longest, where))
        measured += _measure(decisions, seconds, rate, where)
        measured += _measure(list(_updates(size, dataset, configs, where)), seconds / 4, rate, where)
    if scaling:
        measured += _measure(list(_scaling(where)), seconds / 10, rate, where)
    return {
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": str(where),
        "gpu": torch.cuda.get_device_name(where) if where.type == "cuda" else None,
        "operations_a_second": rate,
        "measurements": measured,
    }


def random_dataset(size: str, episodes: int = 4) -> EpisodeDataset:
    """Return random episodes with the shapes of one of the SIZES."""
    observations, actions, length = SIZES[size]
    draw = np.random.default_rng(0)
    steps = episodes * length
    return EpisodeDataset(
        draw.normal(size=(steps + episodes, observations)).astype(np.float32),
        draw.uniform(-1, 1, size=(steps, actions)).astype(np.float32),
        draw.normal(size=steps).astype(np.float32),
        draw.uniform(size=steps).astype(np.float32),
        np.full(episodes, length),
        np.zeros(episodes, dtype=np.bool_),
        np.ones(episodes, dtype=np.bool_),
        {"episode_length": length},
    )


def untrained(config: TREBIConfig | str, dataset: EpisodeDataset, device: torch.device | str) -> TREBIAgent:
    """Return an agent with initial weights, whose critics expect every plan to cost about 1, so that 0 is too little."""
    agent = TREBIAgent(config=config, seed=0, device=device)
    agent.learn(dataset, total_steps=len(parts_of(agent.config)), progress_bar=False)
    last = [m for m in agent.models["cost_critic"].modules() if isinstance(m, torch.nn.Linear)][-1]
    with torch.no_grad():
        last.weight.mul_(1e-3)
        last.bias.fill_(1.0)
        outcome = agent.models.get(OUTCOME)
        if isinstance(outcome, BudgetCritic):
            step, least = (cast(torch.nn.Linear, net[-1]) for net in (outcome.step, outcome.least_net))
            step.weight.mul_(1e-3)
            step.bias[1], outcome.step_scale[1] = 0.0, 1e-3
            outcome.step_centre[1] = 1 / outcome.judged_steps
            least.weight.mul_(1e-6)
            least.bias.zero_()
        elif isinstance(outcome, OutcomeCritic):
            outcome.cost_leave.weight.mul_(1e-3 / outcome.cost_scale)
            outcome.cost_leave.bias[0] = 1 / outcome.cost_scale
            outcome.cost_leave.bias[1:] = -20.0  # between one quantile and the next there is next to nothing
    return agent


def _measured_at(size: str, configs: Mapping[str, TREBIConfig]) -> dict[str, TREBIConfig]:
    """Return those that are measured at a size: the paper's preset for it, and all that do not convolve."""
    return {name: c for name, c in configs.items() if not _convolves(c) or name == PAPER_OF[size]}


def _convolves(config: TREBIConfig) -> bool:
    return config.denoiser.name != "mlp"


def _ends(config: TREBIConfig) -> tuple[tuple[float, str], ...]:
    """Return budgets, and what plans of ``untrained`` agents do to them; one where that does not change what is computed."""
    again = config.planner.retry_steps is not None
    if not _convolves(config) and not again:
        return ((1e6, ""),)
    every = "every plan over its budget" + (", so a second search" if again else "")
    return ((0.0, every), (1e6, "no plan over its budget"))


def _decisions(
    size: str,
    dataset: EpisodeDataset,
    configs: Mapping[str, TREBIConfig],
    environments: Sequence[int],
    longest: float,
    device: torch.device,
) -> Iterator[_Job]:
    paper = PAPER_OF[size]
    agent = untrained(paper, dataset, device)
    assert agent.task is not None
    generator = torch.Generator(device=device).manual_seed(0)
    decide = textbook_decision(agent.models, agent.config, agent.task, generator)
    row = _row("decision", TEXTBOOK, size, 1, f"networks, sampler and candidates of {paper}")
    yield _Job(row, partial(decide, dataset.observations[0], 0.0))
    for name, config in _measured_at(size, configs).items():
        agent = untrained(config, dataset, device)
        one = _seconds_of(partial(agent.predict, dataset.observations[:1], budget=0.0), device)
        for count in environments:
            seen = np.tile(dataset.observations[:1], (count, 1))
            for budget, which in _ends(config):
                row = _row("decision", name, size, count, which)
                if one * count > longest:
                    note = f"left out: about {one * count:.3g} s a call (--longest)"
                    row = dataclasses.replace(row, note=note)
                brief = None
                if _convolves(config):
                    # one denoising step, guided as every other: the peak of memory is that of all
                    short = untrained(config, dataset, device)
                    short.set_planner(sampler="ddim", sampler_steps=1, retry_steps=None, guide_stop=0)
                    brief = partial(short.predict, seen, budget=budget)
                yield _Job(row, partial(agent.predict, seen, budget=budget), brief)


def _updates(
    size: str, dataset: EpisodeDataset, configs: Mapping[str, TREBIConfig], device: torch.device
) -> Iterator[_Job]:
    for who, config in {TEXTBOOK: preset(PAPER_OF[size]), **_measured_at(size, configs)}.items():
        agent = untrained(config, dataset, device)
        assert agent.task is not None
        for part in parts_of(config):
            windows = make_windows(dataset, config, agent.task, "cpu" if who == TEXTBOOK else device, part)
            training = dataclasses.replace(config.training_of(part), steps=10**9)
            model = make_model(part, config, agent.task, 0).to(device)
            if who == TEXTBOOK:
                updates: Iterator[Any] = textbook_updates(model, part, windows, config, agent.task)
            else:
                generator = torch.Generator(device=device).manual_seed(0)
                loss = make_loss(part, config, agent.task, windows)
                updates = Fit(model, loss, training, generator).run()
            row = _row(f"{part} update", who, size, 0, "", training.batch_size * training.accumulation)
            yield _Job(row, partial(next, updates))


def _scaling(device: torch.device) -> Iterator[_Job]:
    dataset = random_dataset("hopper")
    changes: list[tuple[str, dict[str, Any], int]] = [
        *((f"{n} candidates", {"planner": {"candidates": n}}, 1) for n in (16, 64, 256)),
        *((f"horizon {h}", {"horizon": h}, 1) for h in (8, 32, 128)),
        *((f"{s} denoising steps", {"planner": {"sampler_steps": s}}, 1) for s in (1, 2, 5, 10, 20)),
        *((f"{e} environments", {}, e) for e in (1, 4, 16, 64)),
        *((f"{e} environments, bfloat16", {"planner": {"precision": "bfloat16"}}, e) for e in (1, 16, 64)),
    ]
    base = preset("fast").replace(planner={"retry_steps": None})
    for setting, change, count in changes:
        agent = untrained(base.replace(**change), dataset, device)
        seen = np.tile(dataset.observations[:1], (count, 1))
        row = _row("decision, scaling", "fast", "hopper", count, setting)
        float32 = agent.config.planner.precision == "float32"
        yield _Job(row, partial(agent.predict, seen, budget=1e6), float32=float32)


def _row(what: str, who: str, size: str, environments: int, setting: str, windows: int = 0) -> Measurement:
    return Measurement(what, who, size, environments, setting, windows, None, None, None, None)


def _seconds_of(call: Callable[[], object], device: torch.device) -> float:
    call()
    return time_once(call, device)


def _measure(jobs: Sequence[_Job], seconds: float, rate: float, device: torch.device) -> list[Measurement]:
    calls = {str(index): job.call for index, job in enumerate(jobs) if not job.measurement.note}
    timings = time_in_turns(calls, seconds=seconds, device=device)
    found = []
    for index, job in enumerate(jobs):
        timing = timings.get(str(index))
        brief = job.brief or (None if timing is None else job.call)
        with computing_directly():
            operations = None if timing is None else count_operations(job.call)
            memory = None if brief is None else peak_memory(brief, device)
        found.append(
            dataclasses.replace(
                job.measurement,
                seconds=timing,
                operations=operations,
                floor=None if operations is None or not job.float32 else operations / rate,
                memory=memory,
            )
        )
    return found
