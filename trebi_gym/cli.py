"""The command ``trebi``: parse, call, save. Each command is a function; its docstring is its help."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from trebi_gym.data_commands import convert, info
from trebi_gym.errors import ConfigError
from trebi_gym.files import check_writable
from trebi_gym.generating import generate
from trebi_gym.learning_commands import calibrate, import_agent, learn, learn_part
from trebi_gym.report_commands import critics
from trebi_gym.terminal import (
    parse_change,
    resolve_env,
    resolve_maximum,
    run,
)

T = TypeVar("T")
Positional = Annotated[T, tyro.conf.Positional]


def evaluate(
    agent: Positional[Path],
    env: str | None = None,
    ratios: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 1.0),
    budgets: tuple[float, ...] | None = None,
    maximum: float | None = None,
    episodes: int = 20,
    seed: int = 0,
    change: tuple[str, ...] = (),
    schedule: str | None = None,
    risk: float | None = None,
    uncalibrated: bool = False,
    n_envs: int | None = None,
    asynchronous: Annotated[bool, tyro.conf.arg(name="async")] = False,
    output: Path | None = None,
    device: str = "auto",
) -> None:
    """Run an agent under several budgets and tell whether it keeps them.

    Args:
        agent: the agent's file.
        env: the environment's id; default: the one that the data came from.
        ratios: budgets as shares of the maximum.
        budgets: budgets as they are, instead of ratios.
        maximum: the budget at ratio 1; default: that of the data set that the agent learned from.
        episodes: for each budget, all with the same seeds.
        seed: of the first episode.
        change: changes in mid-episode, as STEP:REMAINING, for example 100:6.
        schedule: changes that every episode draws for itself: drop, drops, raise, walk or late, with options as in
            drop:share=0.2,step=100, drops:times=3, walk:size=0.2,every=20.
        risk: the chance of an episode over its budget, one that the agent is calibrated for; default: the agent's own.
        uncalibrated: leave the agent's calibration aside.
        n_envs: environments at once; default: all episodes, 100 at the most and as many as memory allows.
        asynchronous: run every environment in a process of its own, for heavy ones; the result is the same.
        output: folder for evaluation.json, evaluation.csv and evaluation.png.
        device: auto, cpu, cuda, ...
    """
    from trebi_gym.agents import TREBIAgent
    from trebi_gym.evaluation import evaluate_budgets
    from trebi_gym.plots import plot_budgets
    from trebi_gym.schedules import parse_schedule

    if schedule is not None and change:
        raise ConfigError("give --change or --schedule, not both")
    moving = [parse_change(text) for text in change] if schedule is None else parse_schedule(schedule)
    if output is not None:
        check_writable(output / "evaluation.json")
    loaded = _at_risk(TREBIAgent.load(agent, device=device), risk, uncalibrated)
    chosen = (
        budgets
        if budgets is not None
        else tuple(ratio * resolve_maximum(loaded, maximum) for ratio in ratios)
    )
    result = evaluate_budgets(
        loaded,
        env or resolve_env(loaded),
        budgets=chosen,
        episodes=episodes,
        n_envs=n_envs,
        asynchronous=asynchronous,
        seed=seed,
        schedule=moving,
        progress_bar=True,
    )
    print(result.table())
    print(f"{result.metadata['milliseconds_per_decision']:.1f} ms a decision")
    if output is not None:
        for ending in (".json", ".csv"):
            result.save(output / f"evaluation{ending}")
        print(f"written to {output}/evaluation.json and .csv")
        plot_budgets(result, output / "evaluation.png", title=f"{env or resolve_env(loaded)}: {agent.name}")
        print(f"written to {output}/evaluation.png")


def record(
    agent: Positional[Path],
    budget: float,
    output: Path = Path("rollout.mp4"),
    env: str | None = None,
    seed: int = 0,
    change: tuple[str, ...] = (),
    risk: float | None = None,
    uncalibrated: bool = False,
    device: str = "auto",
) -> None:
    """Write a video of one episode, with the remaining budget drawn in.

    Args:
        agent: the agent's file.
        budget: what the episode may cost.
        output: the video, an mp4.
        env: the environment's id; default: the one that the data came from.
        seed: of the episode.
        change: changes in mid-episode, as STEP:REMAINING, for example 100:6.
        risk: the chance of an episode over its budget, one that the agent is calibrated for; default: the agent's own.
        uncalibrated: leave the agent's calibration aside.
        device: auto, cpu, cuda, ...
    """
    from trebi_gym.agents import TREBIAgent
    from trebi_gym.video import record_video

    check_writable(output)
    loaded = _at_risk(TREBIAgent.load(agent, device=device), risk, uncalibrated)
    schedule = [parse_change(text) for text in change]
    result = record_video(
        loaded, env or resolve_env(loaded), output, budget=budget, seed=seed, schedule=schedule
    )
    kept = "kept" if result.kept else "broken"
    print(
        f"{result.path}: {result.frames} frames, return {result.episode_return:.1f}, "
        f"cost {result.cost:.2f} of budget {result.budget:g}, {kept}"
    )


def _at_risk(agent: Any, risk: float | None, uncalibrated: bool) -> Any:
    if risk is not None and uncalibrated:
        raise ConfigError("give --risk or --uncalibrated, not both")
    if uncalibrated or risk is not None:
        agent.set_risk(risk)
    return agent


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
    from trebi_gym.demo import run_demo

    if episodes < 1:
        raise ConfigError(f"--episodes must be at least 1; got {episodes}")
    check_writable(output / "agent.zip")
    run_demo(output, seed=seed, episodes=episodes, total_steps=total_steps)


def bench(
    presets: tuple[str, ...] = ("fast", "toy_safe_env", "locomotion"),
    environments: tuple[int, ...] = (1, 16, 64),
    seconds: float = 20.0,
    longest: float = 60.0,
    scaling: bool = True,
    output: Path | None = None,
    device: str = "auto",
) -> None:
    """Time decisions and updates of the presets, in turns with the textbook way to compute the paper's.

    Args:
        presets: what to compare.
        environments: how many to plan for at once.
        seconds: about how long each thing is repeated.
        longest: leave out decisions of presets that are expected to take more seconds a call than this.
        scaling: also tell how the time of fast grows with candidates, horizon, denoising steps and environments.
        output: a JSON file for the figures.
        device: auto, cpu, cuda, ...
    """
    from trebi_gym.agents.presets import preset
    from trebi_gym.bench_report import report, save
    from trebi_gym.benchmark import benchmark

    if not environments or min(environments) < 1:
        raise ConfigError(f"--environments must be numbers of at least 1; got {environments}")
    if not seconds > 0 or not longest > 0:
        raise ConfigError(f"--seconds and --longest must be positive; got {seconds} and {longest}")
    for name in presets:
        preset(name)
    if output is not None:
        check_writable(output)
    document = benchmark(
        presets, environments, seconds=seconds, longest=longest, scaling=scaling, device=device
    )
    print(report(document))
    if output is not None:
        save(document, output)
        print(f"written to {output}")


COMMANDS: dict[str, Callable[..., None]] = {
    "generate": generate,
    "learn": learn,
    "learn-part": learn_part,
    "import": import_agent,
    "calibrate": calibrate,
    "evaluate": evaluate,
    "record": record,
    "critics": critics,
    "info": info,
    "convert": convert,
    "bench": bench,
    "demo": demo,
}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; an expected error is one line, without a traceback."""
    run(
        lambda: tyro.extras.subcommand_cli_from_dict(
            COMMANDS, prog="trebi", args=arguments, description=__doc__
        )
    )
