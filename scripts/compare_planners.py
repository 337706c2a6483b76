"""What other samplers, networks and ways to plan do to the default preset: return, cost and broken budgets, cell by cell.

Planners that hold back differently much are compared at equal cost: for each of them the script also tells what it earns
once it plans for as much as keeps the budget in four of five episodes, as a calibration at risk 0.2 would let it.

Every cell (a variant, a training seed) is written when it is done, and not run again with the same arguments; agents are
shared by the variants that only plan differently.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from scripts.bench.measure import time_in_turns
from trebi_gym.agents import NetworkConfig, TREBIAgent
from trebi_gym.agents.config import TREBIConfig
from trebi_gym.agents.models import described
from trebi_gym.agents.presets import preset
from trebi_gym.commands.common import learn_with_checkpoints, partial_file, run
from trebi_gym.datasets import EpisodeDataset, load
from trebi_gym.datasets.recipes import maximum_budget
from trebi_gym.errors import ConfigError
from trebi_gym.evaluation.evaluate import evaluate_budgets
from trebi_gym.evaluation.records import EpisodeRecord, Evaluation, format_table

KEPT = 0.8
"""Share of the episodes that are to keep the budget where variants are compared at equal cost."""


@dataclass(frozen=True)
class Variant:
    """What differs from the preset: in what is learned, and in how it plans."""

    config: dict[str, Any] = field(default_factory=dict)
    planner: dict[str, Any] = field(default_factory=dict)


def _sampled(sampler: str, steps: int | None, again: int | None, **others: Any) -> Variant:
    """Return a variant with everything said that tells how plans are denoised, whatever the preset says."""
    return Variant(planner={"sampler": sampler, "sampler_steps": steps, "retry_steps": again, **others})


# few steps are followed by a second search with five where no plan keeps the budget, as in the preset
VARIANTS: dict[str, Variant] = {
    "as it is": Variant(),
    "no second search": Variant(planner={"retry_steps": None}),
    "DDIM 2": _sampled("ddim", 2, 5),
    "DDIM 3": _sampled("ddim", 3, 5),
    "DDIM 5": _sampled("ddim", 5, None),
    "DDIM 10": _sampled("ddim", 10, None),
    "DPM-Solver++ 3": _sampled("dpm_solver", 3, 5),
    "DPM-Solver++ 5": _sampled("dpm_solver", 5, None),
    "DDPM 20": _sampled("ddpm", None, None),
    "2 moves a step": Variant(planner={"guide_moves": 2}),
    "DDIM 3, 2 moves a step": _sampled("ddim", 3, 5, guide_moves=2),
    "selection only": Variant(planner={"guide_moves": 0}),
    "selection only, 256 candidates": Variant(planner={"guide_moves": 0, "candidates": 256}),
    "16 candidates": Variant(planner={"candidates": 16}),
    "32 candidates": Variant(planner={"candidates": 32}),
    "64 candidates": Variant(planner={"candidates": 64}),
    "128 candidates": Variant(planner={"candidates": 128}),
    "a plan for 2 steps": Variant(planner={"control_interval": 2}),
    "a plan for 4 steps": Variant(planner={"control_interval": 4}),
    "bfloat16": Variant(planner={"precision": "bfloat16"}),
    "width 128": Variant({"denoiser": NetworkConfig("mlp", {"width": 128, "blocks": 3, "condition": True})}),
    "width 512": Variant({"denoiser": NetworkConfig("mlp", {"width": 512, "blocks": 3, "condition": True})}),
    "horizon 16": Variant({"horizon": 16}),
    "small U-Net": Variant(
        {"denoiser": NetworkConfig("temporal_unet", {"dim": 16, "dim_mults": [1, 2, 4], "condition": True})}
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
    planned_ratios: tuple[float, ...] = (0.1, 0.25, 0.4, 0.6, 0.8, 1.0, 1.2)
    """What is planned for where variants are compared at equal cost, as such shares."""
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
    """Learn, run, and print one line a variant.

    Raises:
        ConfigError: a variant that there is not, or one that does not work with the preset; nothing has been learned then.
    """
    unknown = sorted(set(arguments.variants) - set(VARIANTS))
    if unknown:
        raise ConfigError(f"there is no variant {', '.join(unknown)}; there are {', '.join(VARIANTS)}")
    if not arguments.variants or not arguments.seeds:
        raise ConfigError("there is nothing to compare: give at least one of --variants and of --seeds")
    dataset = load(arguments.dataset)
    configs = {name: configure(name, arguments.preset, dataset) for name in arguments.variants}
    arguments.output.mkdir(parents=True, exist_ok=True)
    if arguments.time:
        print(_times(dataset, configs, arguments))
        return
    for name, config in configs.items():
        for seed in arguments.seeds:
            cell = _cell(name, config, dataset, seed, arguments)
            if cell.is_file():
                continue
            found = evaluate_budgets(
                _agent(config, dataset, seed, arguments),
                str(dataset.metadata["env_id"]),
                budgets=_shares(dataset, (*arguments.ratios, *arguments.planned_ratios)),
                episodes=arguments.episodes,
                seed=arguments.first_seed,
            )
            found.save(cell)
            print(f"{name}, training seed {seed}: done", flush=True)
    print(_table(dataset, configs, arguments))


def configure(name: str, of_preset: str, dataset: EpisodeDataset) -> TREBIConfig:
    """Return the configuration of a variant.

    Raises:
        ConfigError: the variant does not work with this preset.
    """
    variant = VARIANTS[name]
    base = preset(of_preset, str(dataset.metadata.get("name")))
    try:
        return base.replace(**variant.config, planner=variant.planner)
    except ConfigError as error:
        raise ConfigError(
            f"the variant {name!r} does not work with the preset {of_preset}: {error}"
        ) from error


def _shares(dataset: EpisodeDataset, ratios: Sequence[float]) -> list[float]:
    return [ratio * maximum_budget(dataset).value for ratio in ratios]


def _mark(*things: Any) -> str:
    """Return a short hash of plain JSON data."""
    return hashlib.sha256(json.dumps(things, sort_keys=True).encode()).hexdigest()[:10]


def _agent(config: TREBIConfig, dataset: EpisodeDataset, seed: int, arguments: Arguments) -> TREBIAgent:
    """Learn, or load what has been learned from the same data in the same way, and let it plan as configured."""
    learned = config.to_dict()
    # of the planner, this alone is noted when the agent learns
    learned["planner"] = learned["planner"]["budget_factor"]
    path = arguments.output / f"agent-{_mark(learned, described(dataset), arguments.total_steps)}-{seed}.zip"
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
    return agent.set_planner(**dataclasses.asdict(config.planner))


def _cell(name: str, config: TREBIConfig, dataset: EpisodeDataset, seed: int, arguments: Arguments) -> Path:
    """Return the file of a cell, whose name tells everything that it depends on."""
    words = "".join(letter if letter.isalnum() else "-" for letter in name)
    budgets = _shares(dataset, (*arguments.ratios, *arguments.planned_ratios))
    runs = [arguments.total_steps, arguments.episodes, arguments.first_seed, budgets]
    return arguments.output / f"{words}-{seed}-{_mark(config.to_dict(), described(dataset), runs)}.json"


def _table(dataset: EpisodeDataset, configs: dict[str, TREBIConfig], arguments: Arguments) -> str:
    budgets, planned = _shares(dataset, arguments.ratios), _shares(dataset, arguments.planned_ratios)
    rows = []
    for name, config in configs.items():
        cells = [_cell(name, config, dataset, seed, arguments) for seed in arguments.seeds]
        found = [Evaluation.from_json(cell.read_text()) for cell in cells]
        records = tuple(record for one in found for record in one.records if record.budget in budgets)
        summaries = Evaluation(records).summaries
        # an agent at a time, as each is calibrated
        kept = np.mean([returns_at_kept_budgets(one.records, planned, budgets) for one in found], axis=0)
        rows.append(
            (
                name,
                " ".join(f"{s.return_mean:.1f}" for s in summaries),
                " ".join(f"{s.cost_mean:.1f}" for s in summaries),
                " ".join(f"{s.share_over:.2f}" for s in summaries),
                f"{np.mean([s.return_mean for s in summaries]):.2f}",
                f"{np.mean([not record.kept for record in records]):.3f}",
                " ".join("-" if math.isnan(value) else f"{value:.1f}" for value in kept),
                "-" if np.isnan(kept).any() else f"{kept.mean():.2f}",
                str(len(records)),
            )
        )
    header = "variant", "return", "cost", "over", "mean return", "over in all"
    header_kept = "return at kept budget", "its mean", "episodes"
    told = f"budgets {' '.join(f'{budget:g}' for budget in budgets)}; each kept by a share of {KEPT:g} of the episodes, or -"
    return f"{told}\n" + format_table((*header, *header_kept), rows)


def returns_at_kept_budgets(
    records: Sequence[EpisodeRecord], planned: Sequence[float], budgets: Sequence[float]
) -> list[float]:
    """Return what one agent earns under budgets when it plans for as much as keeps them in a share KEPT of its episodes.

    The cost that this share of a planned budget's episodes keeps, made monotone by a running maximum, is held against the
    budget; the mean return is interpolated to where they meet.

    Args:
        records: episodes of all the planned budgets, and maybe of others.
        planned: budgets that were planned for, in undiscounted cost.
        budgets: that are to be kept, in the same units.

    Returns:
        Mean returns, one for each budget; NaN where not even the smallest planned budget keeps it.

    Raises:
        ConfigError: a planned budget has no episodes.
    """
    chosen = [[record for record in records if record.budget == value] for value in sorted(set(planned))]
    if not all(chosen):
        raise ConfigError(f"there must be episodes of every planned budget; got none of one of {planned}")
    costs = np.maximum.accumulate(
        [np.quantile([record.cost for record in some], KEPT, method="inverted_cdf") for some in chosen]
    )
    returns = np.array([np.mean([record.episode_return for record in some]) for some in chosen])
    found = []
    for budget in budgets:
        last = int(np.searchsorted(costs, budget, side="right")) - 1
        if last < 0:
            found.append(math.nan)
        elif last == len(costs) - 1:
            found.append(float(returns[last]))
        else:
            share = (budget - costs[last]) / (costs[last + 1] - costs[last])
            found.append(float(returns[last] + share * (returns[last + 1] - returns[last])))
    return found


def _times(dataset: EpisodeDataset, configs: dict[str, TREBIConfig], arguments: Arguments) -> str:
    """Return what a step takes under the greatest budget, and where no plan keeps it, so that some search once more."""
    agents = {
        name: _agent(config, dataset, arguments.seeds[0], arguments) for name, config in configs.items()
    }
    ends = {"the greatest budget": maximum_budget(dataset).value, "no budget": 0.0}
    calls = {}
    for name, agent in agents.items():
        for end, budget in ends.items():

            def decide(agent: TREBIAgent = agent, budget: float = budget) -> None:
                state = None
                for _ in range(agent.config.planner.control_interval):
                    _, state = agent.predict(dataset.observations[0], state, budget=budget)

            calls[f"{name}|{end}"] = decide
    timings = time_in_turns(calls, seconds=3.0, device=next(iter(agents.values())).device)
    rows = []
    for name, agent in agents.items():
        a_step = 1000 / agent.config.planner.control_interval
        found = [timings[f"{name}|{end}"] for end in ends]
        rows.append(
            (
                name,
                *(f"{a_step * value:.2f}" for timing in found for value in (timing.median, timing.fastest)),
            )
        )
    header = [f"{end}: {what}" for end in ends for what in ("median ms a step", "fastest")]
    return format_table(("variant", *header), rows)


if __name__ == "__main__":
    run(lambda: main(tyro.cli(Arguments)))
