"""What an evaluation found: episodes, what they amount to with intervals, and both as table, JSON and CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from trebi_gym.errors import BudgetError, TrebiError
from trebi_gym.files import replacing


@dataclass(frozen=True)
class EpisodeRecord:
    """One episode of an evaluation. Costs are in the budget's units, so discounted if it is."""

    budget: float  # at the start
    seed: int  # of the environment
    episode_return: float  # undiscounted
    cost: float  # of the whole episode
    length: int
    remaining: float  # of the last budget, at the end
    kept: bool  # whether that is at least zero
    changed_budget: float | None = None  # what was left right after the last change of the schedule
    cost_after_change: float | None = None  # what the rest of the episode then cost
    feasible: float | None = (
        None  # share of decisions under the last budget for which some plan was predicted to keep it
    )
    certified: bool | None = (
        None  # whether the calibration's guarantee covered it; None where the policy tells neither
    )


@dataclass(frozen=True)
class Summary:
    """All episodes of one budget."""

    budget: float
    episodes: int
    return_mean: float
    return_iqm: float  # interquartile mean
    return_interval: tuple[float, float]  # 95%, bootstrap of the mean
    cost_mean: float
    cost_iqm: float
    cost_interval: tuple[float, float]
    cost_per_budget: float  # mean cost / budget
    share_over: float  # of the episodes that broke the budget, the last one if it changed
    worst_excess: float  # the most by which one broke it; 0 if none did
    length_mean: float
    share_broken_though_feasible: float | None = (
        None  # over, though some plan was once predicted to keep the last budget
    )
    share_never_feasible: float | None = None  # no plan ever was; None where the policy does not tell
    share_certified: float | None = None  # of the episodes, covered by a calibration's guarantee
    share_changed: float | None = (
        None  # of the episodes, whose budget changed before they ended; None where none did
    )


@dataclass(frozen=True)
class Evaluation:
    """Episodes of an evaluation, and what they amount to."""

    records: tuple[EpisodeRecord, ...]
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def budgets(self) -> list[float]:
        """The budgets, ascending."""
        return sorted({record.budget for record in self.records})

    def summary(self, budget: float | None = None) -> Summary:
        """Summarise the episodes of one budget, or of all together.

        Raises:
            BudgetError: no episode had this budget.
        """
        chosen = [record for record in self.records if budget is None or record.budget == budget]
        if not chosen:
            raise BudgetError(f"no episode was run with budget {budget}; there are {self.budgets}")
        returns = np.array([record.episode_return for record in chosen])
        costs = np.array([record.cost for record in chosen])
        budgets = np.array([record.budget for record in chosen])
        over = np.array([max(0.0, -record.remaining) for record in chosen])
        over[[record.kept for record in chosen]] = 0.0
        with np.errstate(over="ignore"):
            total = float(budgets.mean())
        if math.isinf(total) and np.isfinite(budgets).all():  # budgets whose sum is beyond the largest float
            total = float((budgets / len(budgets)).sum())
        return Summary(
            budget=total,
            episodes=len(chosen),
            return_mean=float(returns.mean()),
            return_iqm=float(stats.trim_mean(returns, 0.25)),
            return_interval=bootstrap_interval(returns),
            cost_mean=float(costs.mean()),
            cost_iqm=float(stats.trim_mean(costs, 0.25)),
            cost_interval=bootstrap_interval(costs),
            cost_per_budget=float(costs.mean() / total) if total > 0 else math.nan,
            share_over=float(np.mean([not record.kept for record in chosen])),
            worst_excess=float(over.max()),
            length_mean=float(np.mean([record.length for record in chosen])),
            **_told(chosen),
        )

    @property
    def summaries(self) -> list[Summary]:
        """One summary a budget, ascending."""
        return [self.summary(budget) for budget in self.budgets]

    def table(self) -> str:
        """Return a table for people."""
        rows: list[tuple[str, ...]] = [
            (
                f"{s.budget:.4g}",
                f"{s.return_mean:.1f} [{s.return_interval[0]:.1f}, {s.return_interval[1]:.1f}]",
                f"{s.return_iqm:.1f}",
                f"{s.cost_mean:.2f} [{s.cost_interval[0]:.2f}, {s.cost_interval[1]:.2f}]",
                f"{s.cost_iqm:.2f}",
                f"{s.cost_per_budget:.2f}",
                f"{s.share_over:.2f}",
                f"{s.worst_excess:.2f}",
                f"{s.length_mean:.0f}",
                f"{s.episodes}",
            )
            for s in self.summaries
        ]
        header: tuple[str, ...] = (
            "budget",
            "return [95%]",
            "IQM",
            "cost [95%]",
            "IQM",
            "cost/budget",
            "over",
            "worst",
            "steps",
            "n",
        )
        told = {
            "over, feasible": [s.share_broken_though_feasible for s in self.summaries],
            "never feasible": [s.share_never_feasible for s in self.summaries],
            "changed": [s.share_changed for s in self.summaries],
        }
        if self.metadata.get("risk") is not None:
            told["certified"] = [s.share_certified for s in self.summaries]
        for name, shares in told.items():
            if any(share is not None for share in shares):
                header += (name,)
                rows = [(*row, _share(share)) for row, share in zip(rows, shares, strict=True)]
        return format_table(header, rows)

    def to_json(self) -> str:
        """Return summaries, episodes and metadata as JSON; NaN is written as null."""
        document = {
            "metadata": self.metadata,
            "summaries": [dataclasses.asdict(summary) for summary in self.summaries],
            "episodes": [dataclasses.asdict(record) for record in self.records],
        }
        return json.dumps(_finite(document), indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Evaluation:
        """Read what ``to_json`` wrote.

        Raises:
            TrebiError: it is no such document.
        """
        try:
            document = json.loads(text)
            records = tuple(EpisodeRecord(**_infinite(item)) for item in document["episodes"])
            return cls(records, document["metadata"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise TrebiError(f"this is not a saved evaluation: {error!r}") from error

    def to_csv(self) -> str:
        """Return one line an episode as CSV."""
        names = [item.name for item in dataclasses.fields(EpisodeRecord)]
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(dataclasses.asdict(record) for record in self.records)
        return buffer.getvalue()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON or CSV, by the file's ending.

        Raises:
            TrebiError: another ending.
        """
        writers = {".json": self.to_json, ".csv": self.to_csv}
        target = Path(path)
        if target.suffix not in writers:
            raise TrebiError(f"an evaluation is saved as .json or .csv; got {target.name!r}")
        text = writers[target.suffix]()
        with replacing(target) as temporary:
            temporary.write_text(text)


def bootstrap_interval(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95% percentile bootstrap interval of the mean; NaN for fewer than two values."""
    if len(values) < 2:
        return math.nan, math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # equal values give a degenerate but right interval
        result = stats.bootstrap(
            (values,), np.mean, n_resamples=2000, method="percentile", rng=np.random.default_rng(0)
        )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a plain-text table with right-aligned columns."""
    widths = [max(len(str(row[i])) for row in (header, *rows)) for i in range(len(header))]
    lines = [
        "  ".join(str(cell).rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in (header, *rows)
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _told(records: Sequence[EpisodeRecord]) -> dict[str, float | None]:
    """Return the shares of a summary that rest on what the policy told, of those episodes of which it told something."""
    feasible = np.array([bool(record.feasible) for record in records if record.feasible is not None])
    kept = np.array([record.kept for record in records if record.feasible is not None])
    certified = [record.certified for record in records if record.certified is not None]
    changed = np.array([record.changed_budget is not None for record in records])
    return {
        "share_broken_though_feasible": float((feasible & ~kept).mean()) if len(feasible) else None,
        "share_never_feasible": float((~feasible).mean()) if len(feasible) else None,
        "share_certified": float(np.mean(certified)) if certified else None,
        "share_changed": float(changed.mean()) if changed.any() else None,
    }


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _infinite(item: dict[str, Any]) -> dict[str, Any]:
    """Undo for one episode what ``_finite`` did to an endless budget."""
    names = ["budget", "remaining"] + ["changed_budget"] * (item["cost_after_change"] is not None)
    return {**item, **{name: math.inf for name in names if item[name] is None}}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
