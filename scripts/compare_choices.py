"""What single choices of the default preset do on SafePendulum: ranking, budget rule, and critics that know the steps left.

Every cell (a variant and a training seed) is written when it is done, and not run again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from trebi_gym.agents import NetworkConfig, TREBIAgent
from trebi_gym.agents.presets import preset
from trebi_gym.datasets import load
from trebi_gym.evaluation import evaluate_budgets
from trebi_gym.records import EpisodeRecord, Evaluation, bootstrap_interval
from trebi_gym.rollout import BudgetChange
from trebi_gym.terminal import run

DATASET = "SafePendulum-medium-replay-v0"
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "stale ranking": {"ranking": "original"},
    "constant budget rule": {"budget_rule": "constant"},
    "time-blind cost critic": {},
}
LATE = 150
"""Costs from this step of 200 on are told apart."""


@dataclass(frozen=True)
class Arguments:
    """Compare single choices of the default preset."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Of training."""
    budgets: tuple[float, ...] = (12.0, 24.0, 36.0, 48.0, 60.0)
    """What an episode may cost."""
    episodes: int = 20
    """For each budget and training seed."""
    first_seed: int = 30_000
    """Of the environments; used for nothing else."""
    total_steps: int | None = None
    """Optimiser steps of the three models together; default: the preset's."""
    output: Path = Path("runs/choices")
    """Folder of agents and cells."""


def main(arguments: Arguments) -> None:
    """Learn, evaluate, and print one table a variant."""
    dataset = load(DATASET)
    arguments.output.mkdir(parents=True, exist_ok=True)
    for seed in arguments.seeds:
        agent, blind = _agents(dataset, seed, arguments)
        for name, changes in VARIANTS.items():
            cell = arguments.output / f"{name.replace(' ', '-')}-{seed}.json"
            if cell.is_file():
                continue
            chosen = blind if name.startswith("time-blind") else agent
            before = chosen.config.planner
            chosen.set_planner(**changes)
            found = evaluate_budgets(
                chosen,
                "SafePendulum-v0",
                budgets=list(arguments.budgets),
                episodes=arguments.episodes,
                seed=arguments.first_seed,
                # a change that changes nothing: from its step on the costs are counted apart
                schedule=[BudgetChange(LATE, factor=1.0)],
                progress_bar=True,
            )
            chosen.set_planner(**{key: getattr(before, key) for key in changes})
            found.save(cell)
        _true_scores(agent, dataset, seed, arguments)
    for name in VARIANTS:
        cells = [arguments.output / f"{name.replace(' ', '-')}-{seed}.json" for seed in arguments.seeds]
        print(f"\n{name}\n{_table([Evaluation.from_json(cell.read_text()) for cell in cells])}")


def _agents(dataset: Any, seed: int, arguments: Arguments) -> tuple[TREBIAgent, TREBIAgent]:
    path = arguments.output / f"default-{seed}.zip"
    if path.is_file():
        agent = TREBIAgent.load(path)
    else:
        agent = TREBIAgent(seed=seed).learn(dataset, total_steps=arguments.total_steps)
        agent.save(path)
    path = arguments.output / f"blind-{seed}.zip"
    if path.is_file():
        return agent, TREBIAgent.load(path)
    config = preset("fast")
    options = {**config.cost_critic.options, "steps_left": False}
    blind = TREBIAgent(
        config=config.replace(cost_critic=NetworkConfig(config.cost_critic.name, options)), seed=seed
    )
    blind.task = agent.task
    blind.models |= {part: agent.models[part] for part in ("diffusion", "reward_critic")}
    steps = None if arguments.total_steps is None else arguments.total_steps // 4
    blind.learn_cost_critic(dataset, total_steps=steps)
    blind.save(path)
    return agent, blind


def _true_scores(agent: TREBIAgent, dataset: Any, seed: int, arguments: Arguments) -> None:
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
