"""The files of ``make results``: one a cell, whole or not there, and told apart from those of another request."""

from __future__ import annotations

import gzip
import json
import math
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import trebi_gym
from scripts.results.plan import METHODS, NEEDED, RATIOS, TASKS, config_of
from trebi_gym.agents.serializable import plain
from trebi_gym.errors import ConfigError, TrebiError
from trebi_gym.evaluation.records import EpisodeRecord, Evaluation, Summary
from trebi_gym.files import lock, read_json, replacing


@dataclass(frozen=True)
class Cell:
    """One part of the results: what was asked for, what was found, and how it was made. All plain JSON."""

    request: dict[str, Any]
    found: dict[str, Any]
    made: dict[str, Any]  # "seconds", "version" of trebi_gym, "device"

    @cached_property
    def evaluation(self) -> Evaluation | None:
        """The episodes of an evaluated cell; None where there are none."""
        found = self.found.get("evaluation")
        return None if found is None else Evaluation.from_json(json.dumps(found))


def read_cell(path: Path) -> Cell:
    """Read a cell's file.

    Raises:
        ConfigError: it is none.
    """
    try:
        document = read_json(path, "a cell of the results")
        cell = Cell(dict(document["request"]), dict(document["found"]), dict(document["made"]))
        _ = [cell.found[name] for name in NEEDED.get(path.stem.partition("-")[0], ())]
        if path.parent.name in METHODS or "evaluation" in cell.found:  # no part without episodes
            float(cell.request["ratio"]), int(cell.request["seed"]), float(cell.request["budget"])
            _ = cell.evaluation
        float(cell.made["seconds"]), str(cell.made["version"]), str(cell.made["device"])
        return cell
    except (ValueError, KeyError, TypeError, TrebiError) as error:
        raise ConfigError(f"{path} is no cell of the results: {error!r}; delete it") from error


def settle(
    path: Path,
    request: dict[str, Any],
    make: Callable[[], dict[str, Any]],
    *,
    device: str,
    redo: bool = False,
    anew: bool = False,
) -> Literal["made", "kept", "busy"]:
    """Make a cell unless it is there; one that another process is making is left to it.

    Args:
        path: of the cell's file.
        request: all that the result depends on, plain JSON.
        make: returns what is found, plain JSON.
        device: that it is made on.
        redo: make a cell of another request anew, in the place of refusing it.
        anew: make it whatever is there.

    Raises:
        ConfigError: a cell of another request is there.
    """
    asked = json.loads(json.dumps(request))
    locks = path.parent / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    held = lock(locks / f"{path.stem}.lock")
    if held is None:
        return "busy"
    with held:
        if path.is_file() and not anew:
            differing = list(_differences(read_cell(path).request, asked))
            if not differing:
                return "kept"
            if not redo:
                raise ConfigError(
                    f"{path} was computed for something else: {'; '.join(differing[:6])}; --redo computes such cells "
                    "anew, another --output leaves them"
                )
        started = time.monotonic()
        found = make()
        write_cell(path, asked, found, seconds=time.monotonic() - started, device=device)
    return "made"


def write_cell(
    path: Path, request: dict[str, Any], found: dict[str, Any], *, seconds: float, device: str
) -> None:
    """Write a cell's file, which took so many seconds."""
    made = {"seconds": seconds, "version": trebi_gym.__version__, "device": device}
    with replacing(path) as temporary:
        document = {"request": request, "found": found, "made": made}
        temporary.write_text(json.dumps(document, indent=1, allow_nan=False))


def pack(output: Path, target: Path) -> None:
    """Write all cells under a folder into one file, gzipped JSON, the same bytes for the same cells."""
    found = {path.relative_to(output).as_posix(): json.loads(path.read_text()) for path in cell_files(output)}
    text = json.dumps(found, sort_keys=True, separators=(",", ":"))
    with replacing(target) as temporary:
        temporary.write_bytes(gzip.compress(text.encode(), mtime=0))


def unpack(source: Path, output: Path) -> int:
    """Write the cells of a packed file that are not there yet, and return how many these were.

    Raises:
        ConfigError: it is no such file, or holds something else than cells.
    """
    try:
        found = json.loads(gzip.decompress(source.read_bytes()))
        paths = {output / name: json.dumps(document, indent=1) for name, document in found.items()}
    except (OSError, EOFError, zlib.error, ValueError, AttributeError) as error:
        raise ConfigError(f"{source} holds no packed cells: {error}") from error
    for path in paths:
        parts = path.relative_to(output).parts
        methods = len(parts) == 2 or (len(parts) == 3 and parts[1] in METHODS)
        if not (methods and parts[0] in TASKS and path.suffix == ".json" and ".." not in parts):
            raise ConfigError(
                f"{source} holds {'/'.join(parts)!r}, which is no cell's name; nothing was unpacked"
            )
    missing = {path: text for path, text in paths.items() if not path.exists()}
    for path, text in missing.items():
        with replacing(path) as temporary:
            temporary.write_text(text)
    return len(missing)


def cell_files(output: Path) -> list[Path]:
    """Return the files of all cells, whether of an evaluation or another part, in order."""
    folders = [output / task / method for task in TASKS for method in ("", *METHODS)]
    return [path for folder in folders for path in sorted(folder.glob("*.json"))]


def cell_path(output: Path, task: str, method: str, seed: int, ratio: float) -> Path:
    """Return the file of an evaluated cell."""
    return output / task / method / f"seed-{seed}-ratio-{ratio:g}.json"


def same_episodes(
    output: Path, task: str, request: dict[str, Any], found: dict[str, Any]
) -> dict[str, Any] | None:
    """Return the evaluation of another risk's cell in which the same agent planned for the same: the same episodes.

    Args:
        output: the folder of the cells.
        task: the task.
        request: of the cell that is to be made.
        found: what it plans its episodes for, ``planned``, and whether that is ``certified``.
    """
    for key, method in METHODS.items():
        path = cell_path(output, task, key, request["seed"], request["ratio"])
        if method.risk in (None, request["risk"]) or not path.is_file():
            continue
        other = read_cell(path)
        asked = plain({**request, "method": key, "risk": method.risk})
        if other.request == asked and found.items() <= other.found.items():
            evaluation: dict[str, Any] = other.found["evaluation"]
            told = {**evaluation["metadata"], "risk": request["risk"], "run_at_risk": method.risk}
            return {**evaluation, "metadata": told}
    return None


def part_path(output: Path, task: str, part: str) -> Path:
    """Return the file of another part of a task: ``data``, ``learn-...``, ``calibrate-0``, ``time-uncalibrated``."""
    return output / task / f"{part}.json"


@dataclass(frozen=True)
class Pool:
    """What there is of one task, method and ratio: the cells of its training seeds."""

    cells: dict[int, Cell]  # by training seed

    @property
    def records(self) -> list[EpisodeRecord]:
        """All episodes."""
        return [
            record for cell in self.cells.values() if cell.evaluation for record in cell.evaluation.records
        ]

    @property
    def summary(self) -> Summary | None:
        """What all episodes together amount to; None without any."""
        return Evaluation(tuple(self.records)).summary() if self.records else None

    @property
    def refusals(self) -> dict[int, str]:
        """Why a training seed's cell was refused or is not certified, by seed."""
        found = {}
        for seed, cell in self.cells.items():
            if cell.found.get("refused"):
                found[seed] = str(cell.found["refused"])
            elif cell.found.get("certified") is False:
                found[seed] = "not certified"
        return found

    @property
    def never_feasible(self) -> bool:
        """Whether every episode tells that no candidate ever kept the budget."""
        return bool(self.records) and all(record.feasible == 0 for record in self.records)


class Results:
    """All cells under a folder; ``results.pool(task, method, ratio)``, ``results.part(task, name)``."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.cells: dict[tuple[str, str, float], dict[int, Cell]] = {}
        self.parts: dict[tuple[str, str], Cell] = {}
        for task in TASKS:
            for path in sorted((output / task).glob("*.json")):
                self.parts[task, path.stem] = read_cell(path)
            for method in METHODS:
                for path in sorted((output / task / method).glob("*.json")):
                    cell = read_cell(path)
                    key = (task, method, float(cell.request["ratio"]))
                    self.cells.setdefault(key, {})[int(cell.request["seed"])] = cell

    def pool(self, task: str, method: str, ratio: float) -> Pool:
        """Return what there is, which may be nothing."""
        return Pool(self.cells.get((task, method, ratio), {}))

    def part(self, task: str, name: str) -> Cell | None:
        """Return another part of a task, if it is there."""
        return self.parts.get((task, name))

    def outdated(self) -> dict[str, str]:
        """Return the tasks with cells of another configuration or calibration than is asked for, and the differences."""
        found: dict[str, set[str]] = {}

        def compare(task: str, before: Any, now: Any, name: str = "") -> None:
            # options of a network of another kind say nothing
            texts = (text for text in _differences(before, now, name) if ".options." not in text)
            found.setdefault(task, set()).update(texts)

        cells = [(task, cell) for (task, _, _), seeds in self.cells.items() for cell in seeds.values()]
        for task, cell in (*cells, *((task, cell) for (task, _), cell in self.parts.items())):
            key, config = cell.request.get("method"), cell.request.get("config")
            if key in METHODS and config:
                compare(task, config, config_of(TASKS[task], METHODS[key].kind).to_dict())
        for (task, name), cell in self.parts.items():
            data = self.part(task, "data")
            if name.startswith("calibrate-") and data is not None:
                planned, maximum = cell.request.get("planned"), data.found["maximum_budget"]
                ratios = None if planned is None else [float(f"{budget / maximum:.6g}") for budget in planned]
                told = {"episodes": cell.request.get("episodes"), "planned_ratios": ratios}
                asked = {
                    "episodes": TASKS[task].calibration_episodes,
                    "planned_ratios": TASKS[task].planned_ratios,
                }
                compare(task, told, plain(asked), "calibration")
        return {task: "; ".join(sorted(texts)) for task, texts in found.items() if texts}

    def moved(self, task: str, schedule: str) -> list[EpisodeRecord]:
        """Return the episodes of a task whose budgets moved by a schedule, of all training seeds."""
        cells = [
            cell
            for (of, name), cell in self.parts.items()
            if of == task and name.rpartition("-")[0] == f"moved-{schedule}"
        ]
        return [record for cell in cells if cell.evaluation for record in cell.evaluation.records]

    @staticmethod
    def changed(records: Iterable[EpisodeRecord]) -> list[EpisodeRecord]:
        """Return the episodes that lasted until a change to a budget that can be broken."""
        return [
            record
            for record in records
            if record.changed_budget is not None and math.isfinite(record.changed_budget)
        ]

    def budget(self, task: str, ratio: float) -> float | None:
        """Return the budget of a ratio, if any cell or the data's part tells it."""
        data = self.part(task, "data")
        if data is not None:
            return ratio * float(data.found["maximum_budget"])
        told = (
            cell.request["budget"]
            for (of, _, at), cells in self.cells.items()
            if (of, at) == (task, ratio)
            for cell in cells.values()
        )
        return next(map(float, told), None)

    def of_method(self, task: str, method: str) -> list[Cell]:
        """Return all cells of a task and method."""
        return [cell for ratio in RATIOS for cell in self.pool(task, method, ratio).cells.values()]


def _differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """Yield in words where two plain JSON values differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys((*before, *now)):
            yield from _differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif before != now:
        texts = [json.dumps(value) for value in (before, now)]
        shown = [text if len(text) <= 24 else f"{text[:20]}..." for text in texts]
        yield f"{name} was {shown[0]}, is {shown[1]}"
