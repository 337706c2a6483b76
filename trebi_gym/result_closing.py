"""The last sections of the page of results: how long each part took, what is not measured, what made the cells."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from trebi_gym.result_cells import Cell, Results
from trebi_gym.result_plan import METHODS, TASKS, episodes_of, grid
from trebi_gym.result_words import TIMES, grouped


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
