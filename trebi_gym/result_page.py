"""The page of results, written from whatever cells there are: tables, plots, targets, times, and what is not measured."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trebi_gym.files import replacing
from trebi_gym.plots import plot_methods
from trebi_gym.records import Evaluation
from trebi_gym.result_cells import Cell, Pool, Results
from trebi_gym.result_plan import (
    METHODS,
    RATIOS,
    RISKS,
    TASKS,
    episodes_of,
    grid,
)
from trebi_gym.result_targets import (
    FULL,
    Verdict,
    greatest_share,
    paper_verdicts,
    return_verdicts,
    risk_verdicts,
    spending_verdicts,
)
from trebi_gym.result_words import TIMES, commands, introduction

FEW = 12
"""Up to so many targets of a group, those that are met are shown too."""

COLUMNS = (
    "method",
    "ratio",
    "budget",
    "episodes",
    "return",
    "cost",
    "cost / budget",
    "share over",
    "worst excess",
    "ms",
    "note",
)


def write_page(output: Path, page: Path) -> None:
    """Write the page and its pictures from the cells under ``output``.

    Raises:
        ConfigError: a file there is no cell.
    """
    results = Results(output)
    pictures = {task: page.parent / "images" / f"results-{task}.png" for task in TASKS}
    for task, picture in pictures.items():
        drawn = {
            method.label: [
                Evaluation(tuple(pool.records))
                for ratio in RATIOS
                if (pool := results.pool(task, key, ratio)).records
            ]
            for key, method in METHODS.items()
        }
        if any(drawn.values()):
            plot_methods(drawn, picture, title=f"{TASKS[task].env_id}")
        else:
            picture.unlink(missing_ok=True)
    sections = [_head(results), _targets(results)]
    sections += [_task(results, task, pictures[task]) for task in TASKS]
    sections += [_times(results), _unmeasured(results), _made_with(results), commands()]
    with replacing(page) as temporary:
        temporary.write_text("\n\n".join(sections) + "\n")


def _head(results: Results) -> str:
    wanted = sum(len(grid(task, method)) for task in TASKS for method in METHODS)
    there = sum(
        (seed in results.pool(task, method, ratio).cells)
        for task in TASKS
        for method in METHODS
        for seed, ratio in grid(task, method)
    )
    return introduction(there, wanted)


def _task(results: Results, task: str, picture: Path) -> str:
    data = results.part(task, "data")
    lines = [f"## {TASKS[task].env_id}", ""]
    if data is None:
        lines.append("The data are not there yet.")
    else:
        found = data.found
        lines.append(
            f"Data: {found['name']}, {found['steps']:,} steps in {found['episodes']:,} episodes, returns "
            f"{found['returns'][0]:.1f} to {found['returns'][1]:.1f}, costs {found['costs'][0]:.1f} to "
            f"{found['costs'][1]:.1f}. Maximum budget {found['maximum_budget']:.4g}, {found['rule']}. Episodes within the "
            "budgets: " + ", ".join(f"{found['sides'][f'{ratio:g}'][0]}" for ratio in RATIOS) + "."
        )
    rows = [
        _row(results, task, key, ratio)
        for key in METHODS
        for ratio in RATIOS
        if any(ratio == planned for _, planned in grid(task, key))
    ]
    lines += ["", _table(COLUMNS, rows)]
    if picture.is_file():
        lines += ["", f"![Return and cost / budget on {TASKS[task].env_id}](images/{picture.name})"]
    return "\n".join(lines)


def _row(results: Results, task: str, key: str, ratio: float) -> tuple[str, ...]:
    pool, budget = results.pool(task, key, ratio), results.budget(task, ratio)
    timed, summary = results.part(task, f"time-{key}"), pool.summary
    head = (METHODS[key].label, f"{ratio:g}", "" if budget is None else f"{budget:.4g}")
    if summary is None:
        return (*head, *[""] * 7, _note(pool, task, key, ratio))
    return (
        *head,
        str(summary.episodes),
        _mean(summary.return_mean, summary.return_interval, 1),
        _mean(summary.cost_mean, summary.cost_interval, 2),
        f"{summary.cost_per_budget:.2f}",
        f"{summary.share_over:.2f}",
        f"{summary.worst_excess:.2f}",
        "" if timed is None else f"{timed.found['milliseconds']:.1f}",
        _note(pool, task, key, ratio),
    )


def _note(pool: Pool, task: str, key: str, ratio: float) -> str:
    wanted = [seed for seed, planned in grid(task, key) if planned == ratio]
    notes = [
        f"{why} (training seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))})"
        for why, seeds in _grouped(pool.refusals).items()
    ]
    if pool.cells and len(pool.cells) < len(wanted):
        notes.append(f"{len(pool.cells)} of {len(wanted)} training seeds")
    if pool.never_feasible:
        notes.append("no candidate ever kept this budget")
    return "; ".join(notes)


def _targets(results: Results) -> str:
    spending, cells = spending_verdicts(results)
    limits = " and ".join(f"{greatest_share(risk):.3f} at {risk:g}" for risk in RISKS)
    groups = [
        (
            "Risk kept",
            f"For every task, ratio and risk r, at most r + 1.96 sqrt(r (1 - r) / n) of the n = {FULL} episodes are "
            f"over the budget: {limits}. A cell with a budget that the calibration refuses or does not certify counts as "
            "missed, unless no candidate ever kept that budget.",
            risk_verdicts(results),
            [],
        ),
        (
            "Budget used",
            "At risk 0.2, mean cost / budget is at least 0.7 in 70% of the cells where the data hold episodes on both "
            "sides of the budget.",
            [spending],
            [cell for cell in cells if cell.status == "missed"],
        ),
        (
            "Return of the pendulum",
            "At risk 0.2, the mean return is at least 145, 155, 165, 172 and 178 for the five budgets.",
            return_verdicts(results),
            [],
        ),
        (
            "Return against the paper's networks and sampler",
            "At the same budget and on the same episodes, the lower end of the difference's 95% interval is at least -5% of "
            "the paper's return, and the share over budget is not higher. Where the paper's was not run, nothing is asked.",
            paper_verdicts(results),
            [],
        ),
    ]
    lines = ["## Targets", ""]
    verdicts = [verdict for _, _, found, _ in groups for verdict in found]
    lines.append(f"In all: {_counts(verdicts)}.")
    for title, said, found, below in groups:
        lines += ["", f"**{title}.** {said} {_counts(found).capitalize()}.", ""]
        shown = (
            found
            if len(found) == 1
            else [
                verdict
                for verdict in found
                if verdict.status in ("missed", "excused") or (verdict.status == "met" and len(found) <= FEW)
            ]
        )
        lines += [f"- {verdict.status}: {verdict.name}: {verdict.said}" for verdict in shown]
        lines += [f"- below 0.7: {verdict.name}: {verdict.said}" for verdict in below]
        missing = [verdict.name for verdict in found if verdict.status == "not measured"]
        if missing and len(found) > 1:
            lines.append(f"- not measured: {len(missing)} of {len(found)}" + _listed(missing))
    return "\n".join(lines)


def _listed(names: Sequence[str], most: int = FEW) -> str:
    return f", {'; '.join(names)}" if len(names) <= most else ""


def _counts(verdicts: Sequence[Verdict]) -> str:
    words = ("met", "missed", "excused", "not measured")
    counts = {word: sum(verdict.status == word for verdict in verdicts) for word in words}
    return ", ".join(f"{count} {word}" for word, count in counts.items() if count or word in words[:2])


def _times(results: Results) -> str:
    header = ("task", "data", "learn", "calibrate", *(METHODS[key].label for key in METHODS), "timing")
    rows = []
    for task in TASKS:
        parts = {name: cell for (of, name), cell in results.parts.items() if of == task}
        data = parts.get("data")
        built = None if data is None else data.found["build_seconds"]
        rows.append(
            (
                task,
                "" if built is None else _duration(built),
                _spent([cell for name, cell in parts.items() if name.startswith("learn-")]),
                _spent([cell for name, cell in parts.items() if name.startswith("calibrate-")]),
                *(_spent(results.of_method(task, key)) for key in METHODS),
                _spent([cell for name, cell in parts.items() if name.startswith("time-")]),
            )
        )
    loads = [
        float(cell.found["load"]) for (_, name), cell in results.parts.items() if name.startswith("time-")
    ]
    words = TIMES
    if loads:
        words += f" When decisions were timed, the machine's load average was {min(loads):.1f} to {max(loads):.1f}."
    return f"{words}\n\n{_table(header, rows)}"


def _spent(cells: Sequence[Cell]) -> str:
    if not cells:
        return ""
    resumed = any(cell.found.get("resumed") for cell in cells)
    return f"{'≥ ' if resumed else ''}{_duration(sum(cell.made['seconds'] for cell in cells))} ({len(cells)})"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _unmeasured(results: Results) -> str:
    lines = []
    for task in TASKS:
        for key, method in METHODS.items():
            wanted = grid(task, key)
            missing = [
                (seed, ratio) for seed, ratio in wanted if seed not in results.pool(task, key, ratio).cells
            ]
            if not missing:
                continue
            by_ratio: dict[str, list[int]] = {}
            for seed, ratio in missing:
                by_ratio.setdefault(f"{ratio:g}", []).append(seed)
            which = "; ".join(
                f"ratio{'s' if len(ratios) > 1 else ''} {', '.join(ratios)}: training seeds {', '.join(map(str, seeds))}"
                for seeds, ratios in _grouped(by_ratio).items()
            )
            lines.append(f"- {task}, {method.label}: {'all' if len(missing) == len(wanted) else which}")
    short = [
        f"- {task}, {METHODS[key].label}, ratio {ratio:g}, training seed {seed}: only {len(cell.evaluation.records)} "
        f"of {episodes_of(key)} episodes"
        for (task, key, ratio), cells in results.cells.items()
        for seed, cell in cells.items()
        if cell.evaluation is not None and len(cell.evaluation.records) < episodes_of(key)
    ]
    return "\n".join(["## Not measured", "", *(lines + short or ["Everything is measured."])])


def _made_with(results: Results) -> str:
    """Return which versions and planners the cells come from, and which cells of a method do not belong together."""
    cells = [cell for found in results.cells.values() for cell in found.values()]
    versions = sorted({str(cell.made["version"]) for cell in cells})
    devices = sorted({str(cell.made["device"]) for cell in cells})
    lines = ["## What the cells were made with", ""]
    lines.append(
        f"trebi-gym {', '.join(versions)}, on {', '.join(devices)}." if cells else "There are no cells yet."
    )
    for task, key in itertools.product(TASKS, METHODS):
        found = results.of_method(task, key)
        planners = {
            json.dumps(cell.request["config"]["planner"], sort_keys=True)
            for cell in found
            if cell.request.get("config")
        }
        if planners:
            label = METHODS[key].label
            lines += ["", f"- {task}, {label}: planner " + " / ".join(map(_settings, sorted(planners)))]
        marks: dict[int, set[Any]] = {}
        for cell in found:
            same = (cell.request.get("models"), cell.request.get("calibration"), cell.request.get("data"))
            marks.setdefault(int(cell.request["seed"]), set()).add(same)
        if len(planners) > 1 or any(len(seen) > 1 for seen in marks.values()):
            lines.append(
                "  **These cells do not belong together**: they are of different agents, planners or data; run it again "
                "with `--redo`."
            )
    return "\n".join(lines)


def _settings(planner: str) -> str:
    return f"`{', '.join(f'{name}={value}' for name, value in json.loads(planner).items())}`"


def _grouped(items: dict[Any, Any]) -> dict[Any, list[Any]]:
    """Return the keys of equal values together."""
    found: dict[Any, list[Any]] = {}
    for key, value in items.items():
        found.setdefault(tuple(value) if isinstance(value, list) else value, []).append(key)
    return found


def _mean(mean: float, interval: tuple[float, float], digits: int) -> str:
    low, high = interval
    around = "" if math.isnan(low) else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{mean:.{digits}f}{around}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', ' ') for cell in line)} |" for line in lines)
