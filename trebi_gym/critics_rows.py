"""What a critics' report holds: predictions against what came, and their errors bin by bin."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trebi_gym.files import replacing
from trebi_gym.records import format_table

Floats = npt.NDArray[np.float64]

REWARD_WITHIN = "outcome_critic, most reward within the cost"
LEAST_COST = "outcome_critic, least cost"
"""What a budget critic says of logged windows."""
CHOSEN_COST = "cost of the chosen plan, undiscounted"
CHOSEN_LEAST = "least cost after the chosen plan, undiscounted"
CHOSEN_REWARD = "reward of the chosen plan, undiscounted"
"""What is said of chosen plans in closed loop."""

BINS = 5


@dataclass(frozen=True)
class Prediction:
    """What one critic says of windows, and what then came; B numbers each."""

    name: str
    predicted: Floats
    target: Floats
    steps_left: Floats
    nominal: float | None = None  # the quantile that it predicts; None for a mean


@dataclass(frozen=True)
class Row:
    """The error of one critic within one bin. Errors are prediction minus target, in the critic's units."""

    critic: str
    by: str  # "all", "steps left", "prediction" or "noise level"
    low: float  # of the bin
    high: float
    count: int
    rmse: float
    bias: float
    nominal: float | None = None  # share of targets that should lie at or below the prediction
    coverage: float | None = None  # share that do


@dataclass(frozen=True)
class CriticsReport:
    """All rows; ``held_out`` of logged windows, ``closed_loop`` of the agent's own episodes, if any were run."""

    held_out: tuple[Row, ...]
    closed_loop: tuple[Row, ...] = ()
    points: tuple[Prediction, ...] = field(
        default=(), compare=False, repr=False
    )  # closed loop, decision by decision
    metadata: dict[str, Any] = field(default_factory=dict)

    def table(self) -> str:
        """Return tables for people."""
        blocks = [("held-out windows", self.held_out), ("closed loop", self.closed_loop)]
        return "\n\n".join(f"{title}\n{_table(rows)}" for title, rows in blocks if rows)

    def to_json(self) -> str:
        """Return the rows and the metadata as JSON."""
        return json.dumps(
            {
                "metadata": self.metadata,
                "held_out": [dataclasses.asdict(row) for row in self.held_out],
                "closed_loop": [dataclasses.asdict(row) for row in self.closed_loop],
            },
            indent=2,
            allow_nan=False,
        )

    def to_csv(self) -> str:
        """Return one line a row as CSV."""
        buffer = io.StringIO()
        names = ["where", *(item.name for item in dataclasses.fields(Row))]
        writer = csv.DictWriter(buffer, names, lineterminator="\n")
        writer.writeheader()
        for where, rows in (("held out", self.held_out), ("closed loop", self.closed_loop)):
            writer.writerows({"where": where} | dataclasses.asdict(row) for row in rows)
        return buffer.getvalue()

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write critics.json and critics.csv into a folder."""
        for ending, text in ((".json", self.to_json()), (".csv", self.to_csv())):
            with replacing(Path(folder) / f"critics{ending}") as temporary:
                temporary.write_text(text)


def row_of(
    found: Prediction,
    by: str,
    low: float | None = None,
    high: float | None = None,
    chosen: npt.NDArray[np.bool_] | None = None,
) -> Row:
    """Return the error over the chosen windows; without any choice, over all."""
    which = np.ones(len(found.predicted), dtype=np.bool_) if chosen is None else chosen
    predicted, target = found.predicted[which], found.target[which]
    error = predicted - target
    return Row(
        critic=found.name,
        by=by,
        low=float(predicted.min() if low is None else low),
        high=float(predicted.max() if high is None else high),
        count=len(error),
        rmse=float(np.sqrt(np.mean(error**2))),
        bias=float(error.mean()),
        nominal=found.nominal,
        coverage=None if found.nominal is None else float((target <= predicted).mean()),
    )


def bins_of(found: Prediction, by: str) -> Iterator[Row]:
    """Yield a row for each of five bins that hold about as many windows each; equal values share one."""
    values = found.steps_left if by == "steps left" else found.predicted
    edges = np.unique(np.quantile(values, np.linspace(0, 1, BINS + 1)))
    if len(edges) == 1:
        yield row_of(found, by, float(edges[0]), float(edges[0]))
    for index in range(len(edges) - 1):
        low, high = edges[index], edges[index + 1]
        chosen = (values >= low) & ((values < high) | (index == len(edges) - 2))
        if chosen.any():
            yield row_of(found, by, float(low), float(high), chosen)


def _table(rows: Sequence[Row]) -> str:
    def share(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    header = ("critic", "by", "from", "to", "n", "RMSE", "bias", "nominal", "at or below")
    return format_table(
        header,
        [
            (
                row.critic,
                row.by,
                f"{row.low:.4g}",
                f"{row.high:.4g}",
                str(row.count),
                f"{row.rmse:.3g}",
                f"{row.bias:+.3g}",
                share(row.nominal),
                share(row.coverage),
            )
            for row in rows
        ],
    )
