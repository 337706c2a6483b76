"""What single choices do on SafePendulum: ranking, budget rule, and critics that know the steps left.

They are those of the preset ``fast`` as it was before it had an outcome critic, which ranks by neither of the two ways that
are compared and does not work with the constant budget rule: ``BASE`` says how that was.

Every cell (a variant and a training seed) is written when it is done, and not run again with the same arguments.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from trebi_gym.agents import NetworkConfig, TREBIAgent, TREBIConfig
from trebi_gym.agents.agent_state import with_data
from trebi_gym.agents.models import described, parts_of
from trebi_gym.agents.presets import preset
from trebi_gym.commands.common import run
from trebi_gym.datasets import EpisodeDataset, load
from trebi_gym.evaluation.evaluate import evaluate_budgets
from trebi_gym.evaluation.records import EpisodeRecord, Evaluation, bootstrap_interval
from trebi_gym.rollout import BudgetChange

DATASET = "SafePendulum-medium-replay-v0"
BASE = preset("fast").replace(
    outcome_critic=None,
    outcome_training=None,
    planner={
        "sampler": "ddim",
        "sampler_steps": 5,
        "retry_steps": None,
        "candidates": 64,
        "ranking": "rescored",
        "budget_rule": "remaining",
        "margin": 0.05,
    },
)
"""What the variants differ from, each in one thing."""
BLIND = "time-blind cost critic"
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "stale ranking": {"planner": {"ranking": "original"}},
    "constant budget rule": {"planner": {"budget_rule": "constant"}},
    BLIND: {
        "cost_critic": NetworkConfig(BASE.cost_critic.name, {**BASE.cost_critic.options, "steps_left": False})
    },
}
LATE = 150
"""Costs from this step of 200 on are told apart."""


@dataclass(frozen=True)
class Arguments:
    """Compare single choices of the preset fast, as it was before it had an outcome critic."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Of training."""
    budgets: tuple[float, ...] = (12.0, 24.0, 36.0, 48.0, 60.0)
    """What an episode may cost."""
    episodes: int = 20
    """For each budget and training seed."""
    first_seed: int = 30_000
    """Of the environments; used for nothing else."""
    total_steps: int | None = None
    """Optimiser steps of the three models together; default: the configuration's."""
    output: Path = Path("runs/choices")
    """Folder of agents and cells."""


def main(arguments: Arguments) -> None:
    """Learn, evaluate, and print one table a variant."""
    configs = {name: BASE.replace(**changes) for name, changes in VARIANTS.items()}
    dataset = load(DATASET)
    arguments.output.mkdir(parents=True, exist_ok=True)
    for seed in arguments.seeds:
        for name, config in configs.items():
            cell = _cell(name, config, dataset, seed, arguments)
            if cell.is_file():
                continue
            found = evaluate_budgets(
                _agent(config, dataset, seed, arguments),
                "SafePendulum-v0",
                budgets=list(arguments.budgets),
                episodes=arguments.episodes,
                seed=arguments.first_seed,
                # a change that changes nothing: from its step on the costs are counted apart
                schedule=[BudgetChange(LATE, factor=1.0)],
                progress_bar=True,
            )
            found.save(cell)
        _true_scores(_agent(BASE, dataset, seed, arguments), dataset, seed, arguments)
    for name, config in configs.items():
        cells = [_cell(name, config, dataset, seed, arguments) for seed in arguments.seeds]
        print(f"\n{name}\n{_table([Evaluation.from_json(cell.read_text()) for cell in cells])}")


def _mark(*things: Any) -> str:
    """Return a short hash of plain JSON data."""
    return hashlib.sha256(json.dumps(things, sort_keys=True).encode()).hexdigest()[:10]


def _cell(name: str, config: TREBIConfig, dataset: EpisodeDataset, seed: int, arguments: Arguments) -> Path:
    """Return the file of a cell, whose name tells everything that it depends on."""
    runs = [arguments.total_steps, arguments.episodes, arguments.first_seed, arguments.budgets]
    mark = _mark(config.to_dict(), described(dataset), runs)
    return arguments.output / f"{name.replace(' ', '-')}-{seed}-{mark}.json"


def _agent(config: TREBIConfig, dataset: EpisodeDataset, seed: int, arguments: Arguments) -> TREBIAgent:
    """Learn, or load what has been learned from the same data in the same way, and let it plan as configured."""
    learned = config.to_dict()
    # of the planner, this alone is noted when the agent learns
    learned["planner"] = learned["planner"]["budget_factor"]
    mark = _mark(learned, described(dataset), arguments.total_steps)
    blind = config.cost_critic != BASE.cost_critic
    path = arguments.output / f"{'blind' if blind else 'default'}-agent-{seed}-{mark}.zip"
    if path.is_file():
        agent = TREBIAgent.load(path)
    else:
        if blind:
            agent = _blind(config, dataset, seed, arguments)
        else:
            agent = TREBIAgent(config=config, seed=seed).learn(dataset, total_steps=arguments.total_steps)
        agent.save(path)
    return agent.set_planner(**dataclasses.asdict(config.planner))


def _blind(config: TREBIConfig, dataset: EpisodeDataset, seed: int, arguments: Arguments) -> TREBIAgent:
    """Return an agent of which the cost critic alone is learned, as long as that of the default, whose others it has."""
    default = _agent(BASE, dataset, seed, arguments)
    models = {name: default.models[name] for name in ("diffusion", "reward_critic")}
    state = with_data(dataclasses.replace(default.state, config=config, task=None, models={}), dataset)
    agent = TREBIAgent.from_state(dataclasses.replace(state, models=models))
    steps = {part: config.training_of(part).steps for part in parts_of(config)}
    total = arguments.total_steps
    # as learn() shares them
    share = None if total is None else max(1, round(total * steps["cost_critic"] / sum(steps.values())))
    return agent.learn_cost_critic(dataset, total_steps=share)


def _true_scores(agent: TREBIAgent, dataset: EpisodeDataset, seed: int, arguments: Arguments) -> None:
    """Print what the plan that each ranking chooses is predicted to earn and cost once it is finished."""
    generator = np.random.default_rng(seed)
    rows = generator.integers(len(dataset.observations), size=200)
    budgets = generator.choice(arguments.budgets, size=200)
    plans = []
    for ranking in ("rescored", "original"):
        agent.set_planner(ranking=ranking)
        agent.set_random_seed(seed)  # the same noise, and so the same candidates
        plans.append(agent.plan(dataset.observations[rows], budgets))
    agent.set_planner(ranking="rescored")
    finished, stale = plans
    picked = [
        int(np.flatnonzero((finished.actions[index] == stale.actions[index, 0]).all(axis=(1, 2)))[0])
        for index in range(len(rows))
    ]
    everyone = np.arange(len(rows))
    worse = finished.rewards[:, 0] - finished.rewards[everyone, picked]
    excess = finished.costs[everyone, picked] - finished.budgets
    error = stale.rewards[:, 0] - finished.rewards[everyone, picked]
    print(
        f"seed {seed}, 200 decisions: the stale ranking takes another plan in {np.mean(np.array(picked) != 0):.0%}; "
        f"its plan is truly predicted to earn {-worse.mean():.3f} more (at worst {worse.max():.3f} less); "
        f"{np.mean((excess > 0) & finished.feasible[:, 0]):.1%} of its plans break a budget that another plan keeps; "
        f"what it ranked by differs from the true score by {np.abs(error).mean():.3f}"
    )


def _table(cells: list[Evaluation]) -> str:
    lines = [
        f"{'budget':>6}  {'return [95%]':<24}{'cost [95%]':<24}{'over':<6}{'worst':<7}last 50 steps' cost [95%]"
    ]
    records: list[EpisodeRecord] = [record for cell in cells for record in cell.records]
    joined = Evaluation(tuple(records))
    for summary in joined.summaries:
        late = np.array(
            [record.cost_after_change for record in records if record.budget == summary.budget],
            dtype=np.float64,
        )
        low, high = bootstrap_interval(late)
        lines.append(
            f"{summary.budget:>6g}  {_interval(summary.return_mean, summary.return_interval, 1):<24}"
            f"{_interval(summary.cost_mean, summary.cost_interval, 2):<24}{summary.share_over:<6.2f}"
            f"{summary.worst_excess:<7.2f}{_interval(float(late.mean()), (low, high), 2)}"
        )
    return "\n".join(lines)


def _interval(mean: float, interval: tuple[float, float], digits: int) -> str:
    return f"{mean:.{digits}f} [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"


if __name__ == "__main__":
    run(lambda: main(tyro.cli(Arguments)))
