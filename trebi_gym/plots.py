"""Return and cost against budget, with intervals."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from trebi_gym.errors import TrebiError
from trebi_gym.files import replacing
from trebi_gym.records import Evaluation

COLOURS = ("#1f6f8b", "#c8553d", "#588157", "#7b5ea7", "#8d6b2f")


def plot_budgets(
    evaluations: Evaluation | Mapping[str, Evaluation], path: str | os.PathLike[str], *, title: str = ""
) -> None:
    """Draw cost and return against budget, with 95% intervals, single episodes, and the line cost = budget.

    Args:
        evaluations: one evaluation, or several by name.
        path: of the picture; its ending gives the format (png, pdf, svg).
        title: above the picture.

    Episodes without a limit (a budget of infinity) have no place on the axis and are left out.

    Raises:
        TrebiError: the ending is no picture format, or no budget is finite.
    """
    named = {"": evaluations} if isinstance(evaluations, Evaluation) else dict(evaluations)
    target = Path(path)
    if target.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise TrebiError(f"a plot is saved as .png, .pdf or .svg; got {target.name!r}")
    finite = [
        record
        for evaluation in named.values()
        for record in evaluation.records
        if math.isfinite(record.budget)
    ]
    if not finite:
        raise TrebiError("there is no episode with a finite budget to draw")
    top = max(record.budget for record in finite) or 1.0
    highest = max(top, *(record.cost for record in finite))
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    costs, returns = figure.subplots(1, 2)
    costs.plot([0, top], [0, top], color="0.35", linestyle="--", linewidth=1, label="cost = budget")
    costs.fill_between([0, top], [0, top], [highest * 1.15] * 2, color="#c8553d", alpha=0.07, linewidth=0)
    for colour, (name, evaluation) in zip(itertools.cycle(COLOURS), named.items(), strict=False):
        summaries = [summary for summary in evaluation.summaries if math.isfinite(summary.budget)]
        budgets = [summary.budget for summary in summaries]
        costs.scatter(
            [record.budget for record in evaluation.records if math.isfinite(record.budget)],
            [record.cost for record in evaluation.records if math.isfinite(record.budget)],
            s=9,
            color=colour,
            alpha=0.3,
            linewidth=0,
        )
        _errors(
            costs,
            budgets,
            [s.cost_mean for s in summaries],
            [s.cost_interval for s in summaries],
            colour,
            name or "mean cost",
        )
        _errors(
            returns,
            budgets,
            [s.return_mean for s in summaries],
            [s.return_interval for s in summaries],
            colour,
            name or "mean return",
        )
    costs.set(xlabel="budget", ylabel="cost of the episode", xlim=(0, top * 1.05), ylim=(0, highest * 1.15))
    returns.set(xlabel="budget", ylabel="return of the episode", xlim=(0, top * 1.05))
    for axes in (costs, returns):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, loc="upper left" if axes is costs else "lower right")
    if title:
        figure.suptitle(title)
    with replacing(target) as temporary:
        figure.savefig(temporary, dpi=140)


def _errors(
    axes: object,
    budgets: Sequence[float],
    means: Sequence[float],
    intervals: Sequence[tuple[float, float]],
    colour: str,
    label: str,
) -> None:
    # an interval of a single episode is NaN and draws nothing; rounding may not make one negative
    spread = [
        [np.maximum(mean - low, 0.0) for mean, (low, _) in zip(means, intervals, strict=True)],
        [np.maximum(high - mean, 0.0) for mean, (_, high) in zip(means, intervals, strict=True)],
    ]
    axes.errorbar(budgets, means, yerr=spread, color=colour, marker="o", markersize=5, capsize=3, label=label)  # type: ignore[attr-defined]
