"""Pictures of what a critics' report says."""

from __future__ import annotations

import itertools
import os

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from trebi_gym.errors import TrebiError
from trebi_gym.evaluation.critic_report import (
    CHOSEN_REWARD,
    LEAST_COST,
    REWARD_WITHIN,
    CriticsReport,
    Prediction,
)
from trebi_gym.evaluation.plots import COLOURS, checked_picture, plain_axes
from trebi_gym.files import replacing


def plot_critics(report: CriticsReport, path: str | os.PathLike[str], *, title: str = "") -> None:
    """Draw RMSE by steps left, quantiles' nominal against true coverage, and RMSE by noise level.

    Raises:
        TrebiError: the path's ending is no picture format.
    """
    target = checked_picture(path)
    figure = Figure(figsize=(13, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    first, second, third = figure.subplots(1, 3)
    names = (
        "reward_critic",
        "cost_critic",
        "outcome_critic, reward given the cost",
        "outcome_critic, cost quantile 0.5",
        REWARD_WITHIN,
        LEAST_COST,
    )
    for colour, name in zip(COLOURS, names, strict=False):
        rows = [row for row in report.held_out if row.critic == name]
        by_steps = [row for row in rows if row.by == "steps left"]
        if by_steps:
            at = [(row.low + row.high) / 2 for row in by_steps]
            first.plot(at, [row.rmse for row in by_steps], marker="o", color=colour, label=name)
        by_noise = [row for row in rows if row.by == "noise level"]
        if by_noise:
            third.plot(
                [row.low for row in by_noise], [row.rmse for row in by_noise], color=colour, label=name
            )
    told = [row for row in report.held_out if row.by == "all" and row.coverage is not None]
    second.plot([0, 1], [0, 1], color="0.35", linestyle="--", linewidth=1)
    for colour, start in zip(COLOURS, ("cost_critic", "outcome_critic"), strict=False):
        points = [(row.nominal, row.coverage) for row in told if row.critic.startswith(start)]
        if points:
            second.plot(*zip(*points, strict=True), marker="o", color=colour, label=start)
            second.legend(frameon=False, fontsize=8)
    first.set(xlabel="steps left", ylabel="RMSE", ylim=(0, None))
    second.set(xlabel="nominal quantile", ylabel="targets at or below it")
    third.set(xlabel="noise level", ylabel="RMSE", ylim=(0, None))
    for axes in (first, second, third):
        plain_axes(axes)
    first.legend(frameon=False, fontsize=8)
    if title:
        figure.suptitle(title)
    with replacing(target) as temporary:
        figure.savefig(temporary, dpi=140)


def plot_closed_loop(report: CriticsReport, path: str | os.PathLike[str], *, title: str = "") -> None:
    """Draw what was said of every chosen plan against what the rest of the episode then cost, and earned if that was said.

    Raises:
        TrebiError: no episodes were run, or the path's ending is no picture format.
    """
    target = checked_picture(path)
    if not report.points:
        raise TrebiError("the report has no episodes in closed loop: it needs env_id and budgets")
    figure = Figure(figsize=(11, 4.4 * len(report.points)), layout="constrained")
    FigureCanvasAgg(figure)
    for (first, second), found in zip(
        figure.subplots(len(report.points), 2, squeeze=False), report.points, strict=True
    ):
        what = "earned" if found.name == CHOSEN_REWARD else "cost"
        shown = first.scatter(found.predicted, found.target, c=found.steps_left, s=4, alpha=0.4, linewidth=0)
        ends = [float(pick(found.predicted.tolist() + found.target.tolist())) for pick in (min, max)]
        first.plot(ends, ends, color="0.35", linestyle="--", linewidth=1)
        first.set(xlabel=found.name, ylabel=f"what the rest of the episode {what}")
        figure.colorbar(shown, ax=first, label="steps left")
        _error_by_steps(second, found)
        second.set(xlabel="steps left", ylabel=f"what the rest {what}, minus that")
        for axes in (first, second):
            plain_axes(axes)
    if title:
        figure.suptitle(title)
    with replacing(target) as temporary:
        figure.savefig(temporary, dpi=140)


def _error_by_steps(axes: Axes, found: Prediction) -> None:
    """Draw the median and the middle nine tenths of the errors, by the steps left."""
    error = found.target - found.predicted
    edges = np.linspace(found.steps_left.min(), found.steps_left.max() + 1, 21)
    inside = [(found.steps_left >= a) & (found.steps_left < b) for a, b in itertools.pairwise(edges)]
    kept = [
        (place, which)
        for place, which in zip((edges[:-1] + edges[1:]) / 2, inside, strict=True)
        if which.any()
    ]
    at = [place for place, _ in kept]
    low, middle, top = (
        [float(np.quantile(error[which], level)) for _, which in kept] for level in (0.05, 0.5, 0.95)
    )
    axes.fill_between(at, low, top, color=COLOURS[0], alpha=0.25, linewidth=0, label="5% to 95% of decisions")
    axes.plot(at, middle, color=COLOURS[0], label="median")
    axes.axhline(0.0, color="0.35", linestyle="--", linewidth=1)
    axes.legend(frameon=False, fontsize=8)
