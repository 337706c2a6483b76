"""Decisions and updates a second of the presets, against the textbook way in the same run, and what bounds them."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trebi_gym.agents import TREBIAgent
from trebi_gym.agents.config import TREBIConfig
from trebi_gym.agents.models import make_loss, make_model, make_windows, parts_of
from trebi_gym.agents.presets import PRESETS, preset
from trebi_gym.agents.spaces import resolve_device
from trebi_gym.agents.training import Fit
from trebi_gym.datasets import EpisodeDataset
from trebi_gym.files import replacing
from trebi_gym.measuring import Timing, count_operations, peak_memory, peak_rate, time_in_turns
from trebi_gym.records import format_table
from trebi_gym.textbook import textbook_decision, textbook_updates

TEXTBOOK = "textbook"
SIZES = {"pendulum": (3, 1, 200), "hopper": (11, 3, 1000)}
"""Observations, actions and steps of an episode."""
PAPER_OF = {"pendulum": "toy_safe_env", "hopper": "locomotion"}
"""The paper's preset for each of them; the textbook way takes its networks, sampler and candidates."""


@dataclass(frozen=True)
class Measurement:
    """One measured thing."""

    what: str  # "decision", or "<part> update"
    who: str  # a preset, or "textbook"
    size: str  # a name in SIZES
    environments: int  # planned for at once; 0 for an update
    setting: str  # what is not as in the preset, or which plans break their budget
    windows: int  # of an update; 0 for a decision
    seconds: Timing | None  # of one call; None where it was left out
    operations: int | None  # floating-point operations of one call
    floor: float | None  # seconds that these take at the rate of a large matrix product
    memory: int | None  # bytes that the call needs at its peak
    note: str = ""

    @property
    def each(self) -> float | None:
        """Seconds for each environment's decision, or for the update."""
        return None if self.seconds is None else self.seconds.median / max(self.environments, 1)


@dataclass(frozen=True)
class _Job:
    """What is to be measured."""

    measurement: Measurement
    call: Callable[[], object]
    brief: Callable[[], object] | None = None  # a shorter call with the same peak of memory


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

    Weights and observations are random: they do not change how much is computed, with one exception, which is measured at
    both ends: where no plan is over its budget, the paper's planner needs no gradient of the cost.

    Args:
        presets: what to compare.
        environments: how many to plan for at once.
        seconds: about how long each thing is repeated, after one call that does not count; at least three times.
        longest: calls that are expected to take more seconds than this are left out, and said to be.
        scaling: also tell how ``fast`` grows with candidates, horizon and denoising steps.
        device: auto, cpu, cuda, ...

    Returns:
        The machine, and a list of ``Measurement``.
    """
    where = resolve_device(device)
    rate = peak_rate(where)
    measured: list[Measurement] = []
    for size in SIZES:
        dataset = random_dataset(size)
        decisions = list(_decisions(size, dataset, presets, environments, longest, where))
        measured += _measure(decisions, seconds, rate, where)
        measured += _measure(list(_updates(size, dataset, presets, where)), seconds / 4, rate, where)
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
    """Return an agent with initial weights, whose cost critic expects a cost of about 1 for every plan."""
    agent = TREBIAgent(config=config, seed=0, device=device)
    agent.learn(dataset, total_steps=len(parts_of(agent.config)), progress_bar=False)
    last = [m for m in agent.models["cost_critic"].modules() if isinstance(m, torch.nn.Linear)][-1]
    with torch.no_grad():
        last.weight.mul_(1e-3)
        last.bias.fill_(1.0)
    return agent


def _decisions(
    size: str,
    dataset: EpisodeDataset,
    presets: Sequence[str],
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
    one = _seconds_of(partial(decide, dataset.observations[0], 0.0)) if len(environments) > 1 else 0.0
    for name in presets:
        convolved = PRESETS[name].denoiser.name != "mlp"
        if convolved and name != paper:
            continue
        agent = untrained(name, dataset, device)
        for count in environments:
            seen = np.tile(dataset.observations[:1], (count, 1))
            # with the budget of 0 every plan is over it, see untrained()
            for budget, which in ((0.0, "every plan over its budget"), (1e6, "no plan over its budget")):
                if not convolved and budget == 0:
                    continue
                row = _row("decision", name, size, count, which if convolved else "")
                expected = one * count if convolved else 0.0
                if expected > longest:
                    note = f"left out: about {expected:.0f} s a call (--longest)"
                    row = dataclasses.replace(row, note=note)
                brief = None
                if convolved:
                    # one denoising step, guided as every other: the peak of memory is that of all
                    short = untrained(name, dataset, device)
                    short.set_planner(sampler="ddim", sampler_steps=1, guide_stop=0)
                    brief = partial(short.predict, seen, budget=budget)
                yield _Job(row, partial(agent.predict, seen, budget=budget), brief)


def _updates(
    size: str, dataset: EpisodeDataset, presets: Sequence[str], device: torch.device
) -> Iterator[_Job]:
    paper = PAPER_OF[size]
    for who in (TEXTBOOK, *(name for name in presets if name in (paper, "fast"))):
        config = preset(paper if who == TEXTBOOK else who)
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
    for setting, change, count in changes:
        agent = untrained(preset("fast").replace(**change), dataset, device)
        seen = np.tile(dataset.observations[:1], (count, 1))
        row = _row("decision, scaling", "fast", "hopper", count, setting)
        yield _Job(row, partial(agent.predict, seen, budget=1e6))


def _row(what: str, who: str, size: str, environments: int, setting: str, windows: int = 0) -> Measurement:
    return Measurement(what, who, size, environments, setting, windows, None, None, None, None)


def _seconds_of(call: Callable[[], object]) -> float:
    return time_in_turns({"once": call}, seconds=0.0, device=torch.device("cpu"))["once"].fastest


def _measure(jobs: Sequence[_Job], seconds: float, rate: float, device: torch.device) -> list[Measurement]:
    calls = {str(index): job.call for index, job in enumerate(jobs) if not job.measurement.note}
    timings = time_in_turns(calls, seconds=seconds, device=device)
    found = []
    for index, job in enumerate(jobs):
        timing = timings.get(str(index))
        operations = None if timing is None else count_operations(job.call)
        found.append(
            dataclasses.replace(
                job.measurement,
                seconds=timing,
                operations=operations,
                floor=None if operations is None else operations / rate,
                memory=peak_memory(job.brief or job.call, device),
            )
        )
    return found


def report(document: dict[str, Any]) -> str:
    """Return a table for people, with ratios of medians against the textbook way."""
    measured: Sequence[Measurement] = document["measurements"]
    textbook = {(m.what, m.size): m.each for m in measured if m.who == TEXTBOOK}
    rows = []
    for m in measured:
        base = textbook.get((m.what.removesuffix(", scaling"), m.size))
        rows.append(
            (
                m.what,
                m.size,
                m.who,
                str(m.environments or ""),
                m.setting if m.seconds is not None else f"{m.setting}; {m.note}",
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
        "times faster than textbook",
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
