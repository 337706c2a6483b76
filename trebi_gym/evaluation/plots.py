"""Return and cost against budget, with intervals."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from trebi_gym.errors import TrebiError
from trebi_gym.evaluation.records import Evaluation
from trebi_gym.files import replacing

COLOURS = ("#1f6f8b", "#c8553d", "#588157", "#7b5ea7", "#8d6b2f")
METHOD_COLOURS = (*COLOURS, "#c27ba0", "#4d4d4d")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

LARGEST = 1e300
"""Budget that is drawn; margins around larger ones are beyond the largest float."""


def plot_budgets(
    evaluations: Evaluation | Mapping[str, Evaluation], path: str | os.PathLike[str], *, title: str = ""
) -> None:
    """Draw cost and return against budget, with 95% intervals, single episodes, and the line cost = budget.

    Args:
        evaluations: one evaluation, or several by name.
        path: of the picture; its ending gives the format (png, pdf, svg).
        title: above the picture.

    Episodes without a limit, of a budget of infinity or above ``LARGEST``, have no place on the axis and are left out.

    Raises:
        TrebiError: the ending is no picture format, or no budget can be drawn.
    """
    named = {"": evaluations} if isinstance(evaluations, Evaluation) else dict(evaluations)
    target = checked_picture(path)
    finite = [
        record for evaluation in named.values() for record in evaluation.records if _drawable(record.budget)
    ]
    if not finite:
        raise TrebiError(f"there is no episode with a finite budget of at most {LARGEST:g} to draw")
    top = max(record.budget for record in finite) or 1.0
    highest = max(top, *(record.cost for record in finite))
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    costs, returns = figure.subplots(1, 2)
    costs.plot([0, top], [0, top], color="0.35", linestyle="--", linewidth=1, label="cost = budget")
    costs.fill_between([0, top], [0, top], [highest * 1.15] * 2, color="#c8553d", alpha=0.07, linewidth=0)
    for colour, (name, evaluation) in zip(itertools.cycle(COLOURS), named.items(), strict=False):
        summaries = [summary for summary in evaluation.summaries if _drawable(summary.budget)]
        budgets = [summary.budget for summary in summaries]
        costs.scatter(
            [record.budget for record in evaluation.records if _drawable(record.budget)],
            [record.cost for record in evaluation.records if _drawable(record.budget)],
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
        plain_axes(axes)
        axes.legend(frameon=False, loc="upper left" if axes is costs else "lower right")
    if title:
        figure.suptitle(title)
    with replacing(target) as temporary:
        figure.savefig(temporary, dpi=140)


def plot_episodes(
    returns: npt.NDArray[np.float64],
    costs: npt.NDArray[np.float64],
    path: str | os.PathLike[str],
    *,
    maximum: float,
    ratios: Sequence[float] = (0.2, 0.4, 0.6, 0.8, 1.0),
    title: str = "",
) -> None:
    """Draw what a data set's episodes earn and cost: two histograms, and return against cost with the budgets.

    Args:
        returns: (E,) of the episodes.
        costs: (E,) of the episodes.
        path: of the picture; its ending gives the format (png, pdf, svg).
        maximum: the budget at ratio 1.
        ratios: budgets to mark, as shares of ``maximum``.
        title: above the picture.

    Raises:
        TrebiError: the ending is no picture format.
    """
    target = checked_picture(path)
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    first, second, third = figure.subplots(1, 3)
    first.hist(returns, bins=40, color=COLOURS[0])
    first.set(xlabel="return of the episode", ylabel="episodes")
    second.hist(costs, bins=40, color=COLOURS[1])
    second.set(xlabel="cost of the episode", ylabel="episodes")
    third.scatter(costs, returns, s=8, color=COLOURS[0], alpha=min(1.0, 0.25 + 50 / len(costs)), linewidth=0)
    third.set(xlabel="cost of the episode", ylabel="return of the episode")
    for axes in (first, second):
        axes.yaxis.get_major_locator().set_params(integer=True)
    for ratio in ratios:
        for axes in (second, third):
            axes.axvline(ratio * maximum, color="0.35", linestyle="--", linewidth=0.8)
        third.annotate(
            f"{ratio:g}", (ratio * maximum, 1.0), xycoords=("data", "axes fraction"), fontsize=7, ha="center"
        )
    for axes in (first, second, third):
        plain_axes(axes)
    if title:
        figure.suptitle(title)
    with replacing(target) as temporary:
        figure.savefig(temporary, dpi=140)


def plot_methods(
    methods: Mapping[str, Sequence[Evaluation] | None], path: str | os.PathLike[str], *, title: str = ""
) -> None:
    """Draw mean return and mean cost / budget against budget, one line a method, with 95% intervals.

    Args:
        methods: by name, one evaluation for each budget, which must be above zero; None or nothing for a method that is
            not drawn. Names keep their colour and marker whether or not others are drawn.
        path: of the picture; its ending gives the format (png, pdf, svg).
        title: above the picture.

    Raises:
        TrebiError: the ending is no picture format, or there is nothing to draw.
    """
    target = checked_picture(path)
    drawn = {name: [each.summary() for each in found] for name, found in methods.items() if found}
    if not drawn:
        raise TrebiError("there is no evaluation to draw")
    figure = Figure(figsize=(11, 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    returns, costs = figure.subplots(1, 2)
    # means over different numbers of episodes differ in their last digits
    budgets = sorted({float(f"{summary.budget:.9g}") for found in drawn.values() for summary in found})
    # side by side, since intervals that lie on one another cannot be read
    gap = min((after - before for before, after in itertools.pairwise(budgets)), default=budgets[0])
    places = dict(zip(drawn, (np.arange(len(drawn)) - (len(drawn) - 1) / 2) * 0.07 * gap, strict=True))
    styles = zip(itertools.cycle(METHOD_COLOURS), itertools.cycle(MARKERS), methods, strict=False)
    for colour, marker, name in styles:
        found = drawn.get(name, [])
        if not found:
            continue
        at = [summary.budget + places[name] for summary in found]
        _errors(
            returns,
            at,
            [s.return_mean for s in found],
            [s.return_interval for s in found],
            colour,
            name,
            marker,
        )
        shares = [(s.cost_interval[0] / s.budget, s.cost_interval[1] / s.budget) for s in found]
        _errors(costs, at, [s.cost_per_budget for s in found], shares, colour, name, marker)
    limit = costs.axhline(1.0, color="0.35", linestyle="--", linewidth=1)
    returns.set(xlabel="budget", ylabel="return of the episode, mean", xticks=budgets)
    costs.set(xlabel="budget", ylabel="cost / budget, mean", xticks=budgets)
    costs.set_ylim(bottom=min(0.0, costs.get_ylim()[0]))
    for axes in (returns, costs):
        axes.xaxis.set_major_formatter("{x:.4g}")
        plain_axes(axes)
    handles, labels = returns.get_legend_handles_labels()
    handles, labels = [*handles, limit], [*labels, "cost = budget"]
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    if title:
        figure.suptitle(title)
    with replacing(target) as temporary:
        figure.savefig(temporary, dpi=140)


def checked_picture(path: str | os.PathLike[str]) -> Path:
    """Return the path of a picture.

    Raises:
        TrebiError: its ending is no picture format.
    """
    target = Path(path)
    if target.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise TrebiError(f"a plot is saved as .png, .pdf or .svg; got {target.name!r}")
    return target


def _drawable(budget: float) -> bool:
    return budget <= LARGEST


def plain_axes(axes: Any) -> None:
    """Leave away what axes do not need, and add a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def _errors(
    axes: Any,
    budgets: Sequence[float],
    means: Sequence[float],
    intervals: Sequence[tuple[float, float]],
    colour: str,
    label: str,
    marker: str = "o",
) -> None:
    # an interval of a single episode is NaN and draws nothing; rounding may not make one negative
    spread = [
        [np.maximum(mean - low, 0.0) for mean, (low, _) in zip(means, intervals, strict=True)],
        [np.maximum(high - mean, 0.0) for mean, (_, high) in zip(means, intervals, strict=True)],
    ]
    axes.errorbar(
        budgets, means, yerr=spread, color=colour, marker=marker, markersize=5, capsize=3, label=label
    )
