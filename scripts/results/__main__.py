"""The results page, made in parts that are kept: what ``make results`` runs, as ``python -m scripts.results.__main__``."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import tyro

from scripts.results.cells import cell_files, pack, unpack
from scripts.results.page import write_page
from scripts.results.plan import EPISODES, METHODS, SEED_STEP, SEEDS, TASKS, Request
from scripts.results.runner import Work
from trebi_gym.agents.spaces import resolve_device
from trebi_gym.checks import is_whole
from trebi_gym.commands.common import run
from trebi_gym.errors import ConfigError

STAGES = ("data", "learn", "calibrate", "evaluate", "schedules", "time", "page")


@dataclass(frozen=True)
class Arguments:
    """Measure what the results page shows, and write it. What is there already is kept; Ctrl-C loses the running cell."""

    tasks: tuple[str, ...] = tuple(TASKS)
    """Which tasks; different processes may be at work on different ones."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Which methods; the paper's in full size is left out where there is no GPU."""
    stages: tuple[str, ...] = STAGES
    """Which stages, of data, learn, calibrate, evaluate, schedules, time, page; they run in this order."""
    seeds: tuple[int, ...] = SEEDS
    """Which training seeds."""
    episodes: int = EPISODES
    """For each cell: a task, method, training seed and budget."""
    calibration_episodes: int | None = None
    """For each planned budget of a calibration; default: the task's, 100, and 60 of the cheetah."""
    decisions: int = 20
    """That are timed one by one."""
    datasets: tuple[str, ...] = ()
    """TASK=NAME_OR_FILE of other data than the task's own."""
    output: Path = Path("runs/results")
    """Folder of the cells."""
    agents: Path | None = None
    """Folder of the agents, default: agents in OUTPUT. Those that are there already are taken."""
    page: Path = Path("docs/results.md")
    """The page; pictures go to images beside it, and all its cells into one file, PAGE with -cells.json.gz for .md."""
    unpack: Path | None = None
    """First put the cells of such a file, which a page is written with, into OUTPUT, where they are not there already."""
    page_only: bool = False
    """Write the page from the cells that exist, and do nothing else."""
    redo: bool = False
    """Compute cells anew that belong to another agent, planner, data set or number of episodes; else they are refused."""
    device: str = "auto"
    """auto, cpu, cuda, ..."""


def main(arguments: Arguments) -> None:
    """Run the stages for one task after the other, then write the page.

    Raises:
        ConfigError: a flag cannot be followed, or a cell or an agent belongs to something else.
        DatasetError: the data cannot be used.
    """
    known: dict[str, Collection[object]] = {
        "tasks": TASKS,
        "methods": METHODS,
        "stages": STAGES,
        "seeds": SEEDS,
    }
    for name, words in known.items():
        unknown = [str(item) for item in getattr(arguments, name) if item not in words]
        if unknown:
            raise ConfigError(
                f"--{name}: there is no {', '.join(unknown)}; there are {', '.join(map(str, words))}"
            )
    for name in ("episodes", "calibration_episodes", "decisions"):
        value = getattr(arguments, name)
        if value is None:  # the task's own
            continue
        if not is_whole(value) or not 1 <= value <= SEED_STEP:
            raise ConfigError(f"--{name.replace('_', '-')} must lie in 1 to {SEED_STEP}; got {value}")
    sources = dict(item.partition("=")[::2] for item in arguments.datasets)
    foreign = [name for name, source in sources.items() if name not in TASKS or not source]
    if foreign:
        raise ConfigError(
            f"--datasets takes TASK=NAME_OR_FILE, of the tasks {', '.join(TASKS)}; got {', '.join(foreign)}"
        )
    if arguments.unpack is not None:
        print(f"{unpack(arguments.unpack, arguments.output)} cells unpacked into {arguments.output}")
    stages = ("page",) if arguments.page_only else arguments.stages
    for name in arguments.tasks if set(stages) != {"page"} else ():
        work = Work(
            name,
            Request(
                methods=tuple(key for key in METHODS if key in arguments.methods),
                seeds=arguments.seeds,
                episodes=arguments.episodes,
                calibration_episodes=arguments.calibration_episodes or TASKS[name].calibration_episodes,
                decisions=arguments.decisions,
                source=sources.get(name, TASKS[name].dataset),
                output=arguments.output,
                agents=arguments.agents or arguments.output / "agents",
                redo=arguments.redo,
                device=str(resolve_device(arguments.device)),
            ),
        )
        for stage in STAGES[:-1]:
            if stage in stages:
                print(f"{name}: {stage}", flush=True)
                getattr(work, stage)()
    if "page" in stages:
        if not any(cell_files(arguments.output)):
            raise ConfigError(
                f"there are no cells in {arguments.output}, so {arguments.page} is not written; pass another --output, or "
                "--unpack FILE"
            )
        write_page(arguments.output, arguments.page)
        pack(arguments.output, arguments.page.with_name(f"{arguments.page.stem}-cells.json.gz"))
        print(f"written to {arguments.page}")


if __name__ == "__main__":
    run(lambda: main(tyro.cli(Arguments)))
