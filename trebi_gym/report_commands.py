"""The commands that tell how far an agent can be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from trebi_gym.errors import ConfigError
from trebi_gym.files import check_writable
from trebi_gym.terminal import resolve_env

T = TypeVar("T")
Positional = Annotated[T, tyro.conf.Positional]


def critics(
    agent: Positional[Path],
    dataset: str,
    windows: int = 8_192,
    env: str | None = None,
    budgets: tuple[float, ...] = (),
    episodes: int = 10,
    seed: int = 0,
    output: Path | None = None,
    device: str = "auto",
) -> None:
    """Tell how far off the critics are: on held-out episodes and, with budgets, on the agent's own.

    Args:
        agent: the agent's file.
        dataset: a data set's name or file, of episodes that the agent did not learn from.
        windows: to draw from them.
        env: the environment of the agent's own episodes; default: the one that the data came from.
        budgets: run episodes under these budgets, and compare what plans predict with what the rest of an episode costs.
        episodes: for each budget.
        seed: of the draws, and of the first episode.
        output: folder for critics.json, critics.csv, critics.png and closed_loop.png.
        device: auto, cpu, cuda, ...
    """
    from trebi_gym.agents import TREBIAgent
    from trebi_gym.critics import report_critics
    from trebi_gym.critics_plots import plot_closed_loop, plot_critics
    from trebi_gym.datasets import load

    if env is not None and not budgets:
        raise ConfigError("--env is for episodes, which need --budgets")
    if output is not None:
        check_writable(output / "critics.json")
    loaded = TREBIAgent.load(agent, device=device)
    report = report_critics(
        loaded,
        load(dataset),
        windows=windows,
        env_id=(env or resolve_env(loaded)) if budgets else None,
        budgets=budgets,
        episodes=episodes,
        seed=seed,
    )
    print(report.table())
    if output is not None:
        report.save(output)
        plot_critics(report, output / "critics.png", title=agent.name)
        if report.points:
            plot_closed_loop(report, output / "closed_loop.png", title=agent.name)
        print(f"written to {output}")
