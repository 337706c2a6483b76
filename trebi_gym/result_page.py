"""The page of results, written from whatever cells there are: tables, plots, targets, times, and what is not measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from trebi_gym.files import replacing
from trebi_gym.plots import plot_methods
from trebi_gym.records import Evaluation
from trebi_gym.result_cells import Pool, Results
from trebi_gym.result_closing import made_with, table, times, unmeasured
from trebi_gym.result_plan import (
    METHODS,
    MOVED_METHOD,
    MOVED_RATIO,
    RATIOS,
    RISKS,
    TASKS,
    grid,
)
from trebi_gym.result_targets import (
    FULL,
    Verdict,
    greatest_share,
    moved_verdicts,
    paper_verdicts,
    return_verdicts,
    risk_verdicts,
    spending_verdicts,
)
from trebi_gym.result_words import commands, grouped, introduction
from trebi_gym.schedules import SCHEDULES

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
    sections += [_moved(results)]
    sections += [times(results), unmeasured(results), made_with(results), commands()]
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
    return introduction(there, wanted, results.outdated())


def _task(results: Results, task: str, picture: Path) -> str:
    data = results.part(task, "data")
    lines = [f"## {TASKS[task].env_id}", ""]
    if data is None:
        lines.append("The data are not there yet.")
    else:
        found = data.found
        lines.append(
            f"Data: {found['name']}, of {found.get('algorithm')}: "
            f"{found['steps']:,} steps in {found['episodes']:,} episodes, returns "
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
    lines += ["", table(COLUMNS, rows)]
    if picture.is_file():
        lines += ["", f"![Return and cost / budget on {TASKS[task].env_id}](images/{picture.name})"]
    return "\n".join(lines)


def _moved(results: Results) -> str:
    """Return the section on budgets that move."""
    header = (
        "task",
        "schedule",
        "episodes",
        "changed",
        "return",
        "cost",
        "share over",
        "over, feasible",
        "never feasible",
    )
    rows = []
    for task in TASKS:
        for schedule in SCHEDULES:
            records = results.moved(task, schedule)
            if not records:
                continue
            summary = Evaluation(tuple(records)).summary()
            shares = (summary.share_over, summary.share_broken_though_feasible, summary.share_never_feasible)
            rows.append(
                (
                    task,
                    schedule,
                    str(summary.episodes),
                    f"{len(results.changed(records)) / len(records):.2f}",
                    _mean(summary.return_mean, summary.return_interval, 1),
                    _mean(summary.cost_mean, summary.cost_interval, 2),
                    *("" if share is None else f"{share:.2f}" for share in shares),
                )
            )
    lines = [
        "## Budgets that move",
        "",
        f"{METHODS[MOVED_METHOD].label.capitalize()}, a budget of ratio {MOVED_RATIO:g} at the start, "
        "[changed](howto-budgets.md) in mid-episode at steps that every episode draws, within the data's median episode "
        "where the task ends episodes early. Over is an episode that broke its last budget; *changed* is the share of "
        "episodes that lasted until a change.",
        "",
        table(header, rows) if rows else "Nothing is measured yet.",
    ]
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
        for why, seeds in grouped(pool.refusals).items()
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
            "Budgets that move",
            f"At risk {METHODS[MOVED_METHOD].risk:g}, from a budget of ratio {MOVED_RATIO:g} on, the share of episodes that "
            "break their last budget, though some plan was once predicted to keep it, is at most what the risk allows.",
            moved_verdicts(results),
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


def _mean(mean: float, interval: tuple[float, float], digits: int) -> str:
    low, high = interval
    around = "" if math.isnan(low) else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{mean:.{digits}f}{around}"
