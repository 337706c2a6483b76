"""The default preset against the paper's networks, losses and sampler on SafePendulum, on the same environment seeds.

The paper's sampler takes seconds a decision on a CPU: every episode is a cell of its own, written when it is done and not
run again, and learning goes on where it was interrupted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from trebi_gym.agents import TREBIAgent, TREBIConfig
from trebi_gym.agents.presets import preset
from trebi_gym.datasets.recipes import RECIPES
from trebi_gym.evaluation import evaluate_episodes
from trebi_gym.records import EpisodeRecord, Evaluation, bootstrap_interval, format_table
from trebi_gym.result_plan import reduced_paper
from trebi_gym.terminal import learn_with_checkpoints, partial_file, run

DATASET = "SafePendulum-medium-replay-v0"


@dataclass(frozen=True)
class Arguments:
    """Compare the default preset with the paper's."""

    ratios: tuple[float, ...] = (0.2, 0.6, 1.0)
    """Budgets, as shares of the published maximum of 60."""
    episodes: int = 6
    """For each budget."""
    first_seed: int = 40_000
    """Of the environments; used for nothing else."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the default preset's training; the paper's is trained once, with seed 0."""
    diffusion_updates: int = 20_000
    """Of the paper's trajectory model, of 64 windows; published are 200,000."""
    critic_updates: int = 12_000
    """Of each of its critics, of 64 windows; published are 200,000."""
    candidates: int = 64
    """Of the paper's planner; published are 128."""
    output: Path = Path("runs/paper")
    """Folder of agents and cells."""


def main(arguments: Arguments) -> None:
    """Learn, run, and print how they compare."""
    arguments.output.mkdir(parents=True, exist_ok=True)
    paper = reduced_paper(arguments.diffusion_updates, arguments.critic_updates, arguments.candidates)
    agents = {"paper": _learned(arguments, "paper", paper, 0)}
    agents |= {
        f"fast-{seed}": _learned(arguments, f"fast-{seed}", preset("fast"), seed) for seed in arguments.seeds
    }
    records: dict[str, list[EpisodeRecord]] = {name: [] for name in agents}
    for index in range(arguments.episodes):
        for ratio in arguments.ratios:
            for name, agent in agents.items():
                records[name].append(_cell(arguments, name, agent, ratio, arguments.first_seed + index))
        print(_report(records), flush=True)


def _learned(arguments: Arguments, name: str, config: TREBIConfig, seed: int) -> TREBIAgent:
    path = arguments.output / f"{name}.zip"
    if not path.is_file():
        agent = TREBIAgent(config=config, seed=seed)
        resume = partial_file(path).is_file()
        learn_with_checkpoints(
            agent, agent.learn, DATASET, path, total_steps=None, every=1_000, resume=resume, overwrite=False
        )
    return TREBIAgent.load(path)


def _cell(arguments: Arguments, name: str, agent: TREBIAgent, ratio: float, seed: int) -> EpisodeRecord:
    path = arguments.output / f"{name}-{ratio:g}-{seed}.json"
    if not path.is_file():
        budget = ratio * RECIPES[DATASET].maximum_budget
        evaluate_episodes(agent, "SafePendulum-v0", budgets=[budget], seeds=[seed], seed=seed).save(path)
    (record,) = Evaluation.from_json(path.read_text()).records
    return record


def _report(records: dict[str, list[EpisodeRecord]]) -> str:
    rows = []
    for name, found in records.items():
        for summary in Evaluation(tuple(found)).summaries:
            rows.append(
                (
                    name,
                    f"{summary.budget:g}",
                    f"{summary.return_mean:.1f}",
                    f"{summary.cost_mean:.1f}",
                    f"{summary.share_over:.2f}",
                    f"{summary.worst_excess:.1f}",
                )
            )
    table = format_table(("who", "budget", "return", "cost", "over", "worst excess"), rows)
    theirs = np.array([record.episode_return for record in records["paper"]])
    ours = [[r.episode_return for r in found] for name, found in records.items() if name != "paper"]
    relative = (np.mean(ours, axis=0) - theirs) / theirs
    low, high = bootstrap_interval(relative)
    over = {name: np.mean([not record.kept for record in found]) for name, found in records.items()}
    return (
        f"{table}\nreturn against the paper's, paired, {len(theirs)} episodes: {relative.mean():+.1%} [{low:+.1%}, "
        f"{high:+.1%}]; share over: {', '.join(f'{name} {share:.2f}' for name, share in over.items())}"
    )


if __name__ == "__main__":
    run(lambda: main(tyro.cli(Arguments)))
