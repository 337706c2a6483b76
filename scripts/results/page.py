"""The results page, written from whatever cells there are: text, tables, plots, targets and times."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.results.cells import Cell, Pool, Results
from scripts.results.plan import (
    CALIBRATION_EPISODES,
    EPISODES,
    FIRST_SEED,
    METHODS,
    MOVED_METHOD,
    MOVED_RATIO,
    RATIOS,
    REDUCED_EPISODES,
    RISKS,
    SEED_STEP,
    SEEDS,
    TASKS,
    TIMED_RATIO,
    episodes_of,
    grid,
    reduced_paper,
)
from scripts.results.targets import (
    FULL,
    Verdict,
    greatest_share,
    moved_verdicts,
    paper_verdicts,
    return_verdicts,
    risk_verdicts,
    spending_verdicts,
)
from trebi_gym.agents.config import TREBIConfig
from trebi_gym.agents.presets import preset
from trebi_gym.evaluation.plots import plot_methods
from trebi_gym.evaluation.records import Evaluation
from trebi_gym.evaluation.schedules import SCHEDULES
from trebi_gym.files import replacing


def _own_ways(outdated: Mapping[str, str]) -> str:
    """Return a list of the tasks that are calibrated in a way of their own, or whose cells are of another configuration."""
    ways: dict[str, str] = {}
    for name, task in TASKS.items():
        if name in outdated:
            ways[name] = (
                f"**cells of an earlier configuration** ({outdated[name]}). With its agents moved away, `--redo` "
                "computes them anew."
            )
        elif task.planned_ratios is not None:
            ratios = ", ".join(f"{ratio:g}" for ratio in task.planned_ratios)
            ways[name] = (
                f"{_as_named(preset(task.preset))}, {task.calibration_episodes} episodes under "
                f"each of {len(task.planned_ratios)} planned budgets, of ratios {ratios}: {task.planned_because}."
            )
    return "".join(f"\n    - {' and '.join(names)}: {way}" for way, names in grouped(ways).items())


def _as_named(config: TREBIConfig) -> str:
    """Return how a configuration plans otherwise than the preset that it was made of."""
    named = vars(preset(str(config.preset)).planner)
    changed = [f"{name}={value}" for name, value in vars(config.planner).items() if value != named[name]]
    return f"planning with `{', '.join(changed)}`" if changed else "the preset as it is"


def grouped(items: dict[Any, Any]) -> dict[Any, list[Any]]:
    """Return the keys of equal values together."""
    found: dict[Any, list[Any]] = {}
    for key, value in items.items():
        found.setdefault(tuple(value) if isinstance(value, list) else value, []).append(key)
    return found


def introduction(there: int, wanted: int, outdated: Mapping[str, str]) -> str:
    """Return the page's beginning, for so many cells of those that are wanted; and which tasks' are of another version."""
    small = reduced_paper()
    risks = " and ".join(f"{risk:g}" for risk in RISKS)
    paper = "The paper's networks and sampler"
    return f"""# Results

This page is written by `make results` from measured cells, one for each task, method, training seed and budget.
{there} of {wanted} cells are there; what is not measured is left empty in the tables and [listed](#not-measured).

- **Budgets** are ratio x the data's maximum budget, undiscounted cost of a whole episode.
- **Episodes**: {EPISODES} for each of {len(SEEDS)} training seeds, so {len(SEEDS) * EPISODES} in all. Training seed s is
  run on the environment seeds from {FIRST_SEED} + {SEED_STEP} s on, which are the same for every method.
- **default** is the preset `fast`, and `fast_long` for the hopper, the walker and the cheetah. *Calibrated* agents were
  calibrated in closed loop, at risk {risks}, on episodes of other seeds, {CALIBRATION_EPISODES} under each planned
  budget; *uncalibrated* ones are the same agents before that.{_own_ways(outdated)}
- **{paper}** (arXiv 2306.00603) plan for seconds a decision on a CPU. Budgets are counted and plans ranked as the
  original does.
  *Reduced*: {REDUCED_EPISODES} episodes of one training seed on the pendulum, learned for
  {small.denoiser_training.steps:,} updates of the trajectory model and {small.critic_training.steps:,} of each critic, of
  {small.denoiser_training.batch_size} windows (published: 200,000 of 2 x 32), with {small.planner.candidates} candidates
  (published: 128), and with {small.planner.control_interval} actions of each plan executed (published: 1), which
  may cost it a few percent of its return.
  *Full size* is as published, and needs a GPU.
- **Cloning** is a network of two layers, learned by mean squared error on the episodes in the data whose cost is within
  the budget, one for each budget; it is deterministic.
- **Best episode** is the one of the greatest return in the data whose cost is within the budget; nothing is run.
- **return, cost**: mean with 95% bootstrap interval over all episodes, training seeds together. **share over**: of the
  episodes that cost more than the budget. **worst excess**: the most by which one did.
- **ms**: median milliseconds of a decision with one environment and one thread, under the budget at ratio
  {TIMED_RATIO:g}, timed apart from the episodes, in a run of a few decisions. Where several actions of a plan are executed,
  its time is spread over them.

**When the promise does not hold.** A certificate speaks of episodes that are drawn as those of the calibration were:
another system, other starts, wear, or a budget that changes in mid-episode are not covered, and nothing notices the
first three. It holds with 95% confidence for each agent, so one agent in twenty may be certified wrongly; what 60
episodes show of it is uncertain again, which the targets below allow for. Budgets below the smallest that is
certified are planned for as well as can be, and marked. The page on [risk](risk.md) has the whole list, that on [the
critics](critics.md) what plans predicted against what episodes cost, and [how `fast` was chosen](fast.md) what was
tried and lost."""


TIMES = """## How long each part took

Wall time of all parts of a kind together, with their number in brackets; methods: running their episodes, and for
cloning learning too; episodes that two risks plan for alike are run once. Parts that ran at the same time slowed each
other down. Of a part that was interrupted and gone on with, only the last stretch is counted: it is marked with ≥. Data:
the steps recorded, at the rate that the data set tells.
An empty field is a part that was not run here, such as the learning of agents that were there already."""


def commands() -> str:
    """Return how the page is made, whole and in parts."""
    generated = "\n".join(
        f"trebi generate --dataset {task.env_id} --datatype medium-replay --algo {task.algo} --total-step {task.total_step}"
        for name, task in TASKS.items()
        if name != "pendulum"
    )
    return f"""## Do it again

```bash
make results
```

makes everything, and goes on where it was stopped: what is in `runs/results` already is kept. In parts, which may run at
the same time on different tasks:

```bash
python -m scripts.results --tasks pendulum
python -m scripts.results --tasks hopper --stages data learn
python -m scripts.results --tasks hopper --stages calibrate evaluate --methods calibrated-0.05 calibrated-0.2
python -m scripts.results --stages time page
python -m scripts.results --page-only
```

Every episode of this page is in [results-cells.json.gz](results-cells.json.gz). To go on from there on another machine:

```bash
python -m scripts.results --unpack docs/results-cells.json.gz --page-only
```

A cell of another agent, planner, data set or number of episodes is refused; `--redo` computes it anew. The data, which the
stage `data` builds where they are not there yet (the pendulum's ship). A training run rounds differently on another
processor, and its episodes then are others, so carry the file along to go on with such a task elsewhere:

```bash
{generated}
```"""


def times(results: Results) -> str:
    """Return the section on how long each part took."""
    header = (
        "task",
        "data",
        "learn",
        "calibrate",
        *(METHODS[key].label for key in METHODS),
        "budgets that move",
        "timing",
    )
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
                _spent([cell for name, cell in parts.items() if name.startswith("moved-")]),
                _spent([cell for name, cell in parts.items() if name.startswith("time-")]),
            )
        )
    loads = [
        float(cell.found["load"]) for (_, name), cell in results.parts.items() if name.startswith("time-")
    ]
    words = TIMES
    if loads:
        words += f" When decisions were timed, the machine's load average was {min(loads):.1f} to {max(loads):.1f}."
    return f"{words}\n\n{table(header, rows)}"


def _spent(cells: Sequence[Cell]) -> str:
    if not cells:
        return ""
    resumed = any(cell.found.get("resumed") for cell in cells)
    return f"{'≥ ' if resumed else ''}{_duration(sum(cell.made['seconds'] for cell in cells))} ({len(cells)})"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def unmeasured(results: Results) -> str:
    """Return the section on what is not measured, or on fewer episodes than asked."""
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
                for seeds, ratios in grouped(by_ratio).items()
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


def made_with(results: Results) -> str:
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
        configs = [cell.request["config"] for cell in found if cell.request.get("config")]
        planners = {json.dumps(config["planner"], sort_keys=True) for config in configs}
        if planners:
            critics = sorted({_outcome_critic(config) for config in configs})
            lines += [
                "",
                f"- {task}, {METHODS[key].label}: outcome critic {' / '.join(critics)}, planner "
                + " / ".join(map(_settings, sorted(planners))),
            ]
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


def _outcome_critic(config: Mapping[str, Any]) -> str:
    critic = config.get("outcome_critic")
    return f"`{critic['name']}`" if critic else "none"


def _settings(planner: str) -> str:
    return f"`{', '.join(f'{name}={value}' for name, value in json.loads(planner).items())}`"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', ' ') for cell in line)} |" for line in lines)


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
