"""From nothing to an agent that keeps its budget: what ``make demo`` runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from trebi_gym.errors import ConfigError
from trebi_gym.files import check_writable
from trebi_gym.rollout import BudgetChange

if TYPE_CHECKING:
    from trebi_gym.evaluation.records import Evaluation

DATASET = "SafePendulum-medium-replay-v0"
RATIOS = (0.2, 0.4, 0.6, 0.8, 1.0)
DROP = BudgetChange(step=100, remaining=12.0)
EVALUATION_SEED = 20_000
"""Seeds from here on were used for no choice in this package."""


def demo(
    output: Path = Path("runs/demo"), seed: int = 0, episodes: int = 20, total_steps: int | None = None
) -> None:
    """Learn from the data set that ships, evaluate five budgets and a drop in mid-episode, write plot and video.

    Args:
        output: folder for everything that is made.
        seed: of learning and evaluation.
        episodes: for each budget.
        total_steps: optimiser steps, fewer for a quick look; default: the preset's.
    """
    from trebi_gym.agents import TREBIAgent
    from trebi_gym.datasets import load
    from trebi_gym.datasets.recipes import maximum_budget
    from trebi_gym.evaluation.evaluate import evaluate_budgets
    from trebi_gym.evaluation.plots import plot_budgets
    from trebi_gym.evaluation.video import record_video

    if episodes < 1:
        raise ConfigError(f"--episodes must be at least 1; got {episodes}")
    check_writable(output / "agent.zip")
    started = time.monotonic()
    dataset = load(DATASET)
    env_id = str(dataset.metadata["env_id"])
    maximum = maximum_budget(dataset)
    print(f"1/4  the data: {dataset}\n     maximum budget {maximum.value:g}, {maximum.rule}\n")

    print("2/4  learning the models from these episodes, without touching the environment")
    agent = TREBIAgent(config="fast", seed=seed, device="cpu", tensorboard_log=output / "log")
    agent.learn(dataset, total_steps=total_steps)
    file = agent.save(output / "agent.zip")
    learned = time.monotonic()
    print(f"     {learned - started:.0f} s; the agent is {file} ({file.stat().st_size / 1e6:.1f} MB)\n")

    print(f"3/4  acting: {episodes} episodes for each of {len(RATIOS)} budgets, all with the same seeds")
    budgets = [ratio * maximum.value for ratio in RATIOS]
    result = evaluate_budgets(
        agent, env_id, budgets=budgets, episodes=episodes, seed=EVALUATION_SEED + seed, progress_bar=True
    )
    print(result.table())
    print(_verdict(result))
    print(
        f"\n     the budget drops: {maximum.value:g} at the start, {DROP.remaining:g} left from step {DROP.step} on"
    )
    drop = evaluate_budgets(
        agent,
        env_id,
        budgets=[maximum.value],
        episodes=episodes,
        seed=EVALUATION_SEED + seed,
        schedule=[DROP],
        progress_bar=True,
    )
    rest = [record.cost_after_change for record in drop.records if record.cost_after_change is not None]
    kept = sum(record.kept for record in drop.records)
    print(
        f"     after the drop the rest cost {sum(rest) / len(rest):.2f} on average, at most {max(rest):.2f}; "
        f"{kept} of {len(drop.records)} episodes kept the new budget"
    )
    for name, evaluation in (("evaluation", result), ("drop", drop)):
        for ending in (".json", ".csv"):
            evaluation.save(output / f"{name}{ending}")
    acted = time.monotonic()
    print(f"     {acted - learned:.0f} s, {result.metadata['milliseconds_per_decision']:.1f} ms a decision\n")

    print("4/4  a plot and a film")
    plot_budgets(result, output / "budgets.png", title=f"{DATASET}, preset fast")
    film = record_video(
        agent, env_id, output / "drop.mp4", budget=maximum.value, seed=EVALUATION_SEED + seed, schedule=[DROP]
    )
    print(
        f"     {output / 'budgets.png'}\n     {film.path} ({film.frames} frames, {time.monotonic() - acted:.0f} s)\n"
    )
    print(f"Done in {time.monotonic() - started:.0f} s. Everything is in {output}/. To try next:")
    print(
        f"  trebi record {file} --budget 12 --output {output}/careful.mp4\n"
        f"  trebi evaluate {file} --budgets 5 18 33 --episodes 5\n"
        f"  trebi info {DATASET}\n"
        "  trebi generate --dataset SafeReacher-v0 --datatype medium-replay --total-step 200000\n"
        "  your own environment and data: see README.md"
    )


def _verdict(result: Evaluation) -> str:
    summaries = result.summaries
    within = sum(summary.cost_mean <= summary.budget for summary in summaries)
    over = sum(not record.kept for record in result.records)
    return (
        f"     mean cost within the budget at {within} of {len(summaries)} budgets; "
        f"{over} of {len(result.records)} single episodes over it"
    )
