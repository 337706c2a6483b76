"""What other samplers, networks and ways to plan do to the default preset: return, cost and broken budgets, cell by cell.

Every cell (a variant, a training seed) is written when it is done, and not run again; agents are shared by the
variants that only plan differently.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from trebi_gym.agents import TREBIAgent
from trebi_gym.agents.presets import preset
from trebi_gym.datasets import load
from trebi_gym.datasets.recipes import maximum_budget
from trebi_gym.errors import ConfigError
from trebi_gym.evaluation import evaluate_budgets
from trebi_gym.measuring import time_in_turns
from trebi_gym.records import Evaluation, format_table
from trebi_gym.terminal import learn_with_checkpoints, partial_file, run


@dataclass(frozen=True)
class Variant:
    """What differs from the preset: in what is learned, and in how it plans."""

    config: dict[str, Any] = field(default_factory=dict)
    planner: dict[str, Any] = field(default_factory=dict)


def _network(name: str, **options: Any) -> dict[str, Any]:
    return {"name": name, "options": options}


VARIANTS: dict[str, Variant] = {
    "as it is": Variant(),
    "DDIM 2": Variant(planner={"sampler_steps": 2}),
    "DDIM 3": Variant(planner={"sampler_steps": 3}),
    "DDIM 10": Variant(planner={"sampler_steps": 10}),
    "DPM-Solver++ 3": Variant(planner={"sampler": "dpm_solver", "sampler_steps": 3}),
    "DPM-Solver++ 5": Variant(planner={"sampler": "dpm_solver"}),
    "DDPM 20": Variant(planner={"sampler": "ddpm", "sampler_steps": None}),
    "2 moves a step": Variant(planner={"guide_moves": 2}),
    "DDIM 3, 2 moves a step": Variant(planner={"sampler_steps": 3, "guide_moves": 2}),
    "selection only": Variant(planner={"guide_moves": 0}),
    "selection only, 256 candidates": Variant(planner={"guide_moves": 0, "candidates": 256}),
    "16 candidates": Variant(planner={"candidates": 16}),
    "32 candidates": Variant(planner={"candidates": 32}),
    "128 candidates": Variant(planner={"candidates": 128}),
    "a plan for 2 steps": Variant(planner={"control_interval": 2}),
    "a plan for 4 steps": Variant(planner={"control_interval": 4}),
    "bfloat16": Variant(planner={"precision": "bfloat16"}),
    "width 128": Variant({"denoiser": {"options": {"width": 128, "blocks": 3, "condition": True}}}),
    "width 512": Variant({"denoiser": {"options": {"width": 512, "blocks": 3, "condition": True}}}),
    "horizon 16": Variant({"horizon": 16}),
    "small U-Net": Variant(
        {"denoiser": _network("temporal_unet", dim=16, dim_mults=[1, 2, 4], condition=True)}
    ),
}


@dataclass(frozen=True)
class Arguments:
    """Compare ways to plan."""

    dataset: str = "SafePendulum-medium-replay-v0"
    """A data set's name."""
    preset: str = "fast"
    """What the variants differ from."""
    variants: tuple[str, ...] = tuple(VARIANTS)
    """Which."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of training."""
    ratios: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 1.0)
    """Budgets, as shares of the data set's maximum."""
    episodes: int = 10
    """For each budget and training seed."""
    first_seed: int = 5_000
    """Of the environments."""
    total_steps: int | None = None
    """Optimiser steps of the three models together; default: the preset's."""
    time: bool = False
    """Time decisions for one environment, all variants in turns, instead of running episodes."""
    output: Path = Path("runs/planners")
    """Folder of agents and cells."""


def main(arguments: Arguments) -> None:
    """Learn, run, and print one line a variant; unknown variants are refused."""
    unknown = sorted(set(arguments.variants) - set(VARIANTS))
    if unknown:
        raise ConfigError(f"there is no variant {', '.join(unknown)}; there are {', '.join(VARIANTS)}")
    dataset = load(arguments.dataset)
    arguments.output.mkdir(parents=True, exist_ok=True)
    if arguments.time:
        print(_times(dataset, arguments))
        return
    budgets = [ratio * maximum_budget(dataset).value for ratio in arguments.ratios]
    for name in arguments.variants:
        for seed in arguments.seeds:
            cell = _cell(arguments, name, seed)
            if cell.is_file():
                continue
            agent = _agent(dataset, name, seed, arguments)
            found = evaluate_budgets(
                agent,
                str(dataset.metadata["env_id"]),
                budgets=budgets,
                episodes=arguments.episodes,
                seed=arguments.first_seed,
            )
            found.save(cell)
            print(f"{name}, training seed {seed}: done", flush=True)
    print(_table(arguments, budgets))


def _agent(dataset: Any, name: str, seed: int, arguments: Arguments) -> TREBIAgent:
    variant = VARIANTS[name]
    config = preset(arguments.preset, str(dataset.metadata.get("name")))
    changes = {
        key: type(getattr(config, key))(**({"name": getattr(config, key).name} | value))
        if key == "denoiser"
        else value
        for key, value in variant.config.items()
    }
    config = config.replace(**changes)
    mark = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode()).hexdigest()[:10]
    path = arguments.output / f"agent-{mark}-{seed}.zip"
    if path.is_file():
        agent = TREBIAgent.load(path)
    else:
        agent = TREBIAgent(config=config, seed=seed)
        learn_with_checkpoints(
            agent,
            agent.learn,
            dataset,
            path,
            total_steps=arguments.total_steps,
            every=1_000,
            resume=partial_file(path).is_file(),
            overwrite=False,
        )
    return agent.set_planner(**variant.planner)


def _cell(arguments: Arguments, name: str, seed: int) -> Path:
    words = "".join(letter if letter.isalnum() else "-" for letter in name)
    return arguments.output / f"{words}-{seed}.json"


def _table(arguments: Arguments, budgets: list[float]) -> str:
    rows = []
    for name in arguments.variants:
        records = []
        for seed in arguments.seeds:
            cell = _cell(arguments, name, seed)
            if cell.is_file():
                records += Evaluation.from_json(cell.read_text()).records
        if not records:
            continue
        summaries = Evaluation(tuple(records)).summaries
        rows.append(
            (
                name,
                " ".join(f"{s.return_mean:.1f}" for s in summaries),
                " ".join(f"{s.cost_mean:.1f}" for s in summaries),
                " ".join(f"{s.share_over:.2f}" for s in summaries),
                f"{np.mean([s.return_mean for s in summaries]):.2f}",
                f"{np.mean([not record.kept for record in records]):.3f}",
                str(len(records)),
            )
        )
    header = ("variant", "return", "cost", "over", "mean return", "over in all", "episodes")
    return f"budgets {' '.join(f'{budget:g}' for budget in budgets)}\n" + format_table(header, rows)


def _times(dataset: Any, arguments: Arguments) -> str:
    calls = {}
    for name in arguments.variants:
        agent = _agent(dataset, name, arguments.seeds[0], arguments)
        every = agent.config.planner.control_interval

        def decide(agent: TREBIAgent = agent, every: int = every) -> None:
            state = None
            for _ in range(every):
                _, state = agent.predict(dataset.observations[0], state, budget=10.0)

        calls[name] = partial(decide)
    timings = time_in_turns(calls, seconds=3.0, device=torch.device("cpu"))
    rows = [
        (name, f"{1000 * t.median / agent_steps(name):.2f}", f"{1000 * t.fastest / agent_steps(name):.2f}")
        for name, t in timings.items()
    ]
    return format_table(("variant", "median ms a step", "fastest"), rows)


def agent_steps(name: str) -> int:
    """Return the steps that a variant executes of a plan."""
    return int(VARIANTS[name].planner.get("control_interval", 1))


if __name__ == "__main__":
    run(lambda: main(tyro.cli(Arguments)))
