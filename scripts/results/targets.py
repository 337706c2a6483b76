"""Whether the results meet what was aimed at: computed from the cells, every miss by name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from scripts.results.cells import Pool, Results
from scripts.results.plan import EPISODES, METHODS, MOVED_METHOD, RATIOS, SEEDS, TASKS, grid
from trebi_gym.evaluation.records import EpisodeRecord, bootstrap_interval
from trebi_gym.evaluation.schedules import SCHEDULES

FULL = len(SEEDS) * EPISODES
"""Episodes of one task, method and ratio."""
SPENT, SPENT_SHARE, SPENT_METHOD = 0.7, 0.7, "calibrated-0.2"
REFUSED = "refused: no episode was run"
PAPER_LOSS = 0.05
"""Of the paper's return, the most that the default may lose against it, at the lower end of the interval."""
PAPER_METHODS = ("paper", "paper-reduced")
COMPARED = ("calibrated-0.2", "uncalibrated")
PENDULUM_RETURNS = dict(zip(RATIOS, (145.0, 155.0, 165.0, 172.0, 178.0), strict=True))

Status = Literal["met", "missed", "excused", "not measured"]


@dataclass(frozen=True)
class Verdict:
    """One thing that was aimed at."""

    name: str
    status: Status
    said: str


def greatest_share(risk: float, episodes: int = FULL) -> float:
    """Return the share of episodes over budget up to which a risk counts as kept: ``r + 1.96 sqrt(r (1 - r) / n)``."""
    return risk + 1.96 * math.sqrt(risk * (1 - risk) / episodes)


def risk_verdicts(results: Results) -> list[Verdict]:
    """Return one verdict for each task, ratio and risk.

    A cell that a calibration refuses or does not certify is missed whatever its episodes did, unless every episode tells
    that no candidate ever kept the budget: then nothing could have, and it is excused.
    """
    verdicts = []
    for task in TASKS:
        for key, method in METHODS.items():
            if method.risk is not None:
                verdicts += [_risk_verdict(results, task, key, method.risk, ratio) for ratio in RATIOS]
    return verdicts


def _risk_verdict(results: Results, task: str, method: str, risk: float, ratio: float) -> Verdict:
    name = f"{task}, ratio {ratio:g}, risk {risk:g}"
    pool = results.pool(task, method, ratio)
    count, refusals = len(pool.records), pool.refusals
    over = sum(not record.kept for record in pool.records)
    said = f"{over} of {count} episodes over" if count else "no episode"
    if refusals:
        said += "; " + "; ".join(f"training seed {seed}: {why}" for seed, why in sorted(refusals.items()))
    if not _complete(pool):
        return Verdict(
            name, "not measured", f"{said}; {FULL} episodes are needed" if pool.cells else "nothing yet"
        )
    if pool.never_feasible:
        return Verdict(name, "excused", f"{said}; no candidate ever kept this budget")
    if refusals:
        return Verdict(name, "missed", said)
    share, limit = over / count, greatest_share(risk, count)
    return Verdict(name, "met" if share <= limit else "missed", f"{said}: {share:.3f}, at most {limit:.3f}")


def spending_verdicts(results: Results) -> tuple[Verdict, list[Verdict]]:
    """Return the verdict on what is spent at risk 0.2, and one for each cell that counts for it.

    Those count where the data hold episodes on both sides of the budget.
    """
    cells, unknown = [], []
    for task in TASKS:
        data = results.part(task, "data")
        if data is None:
            unknown.append(task)
            continue
        for ratio in RATIOS:
            within, beyond = data.found["sides"][f"{ratio:g}"]
            if within and beyond:
                cells.append(_spending_verdict(results, task, ratio))
    met, measured = (
        sum(cell.status == "met" for cell in cells),
        sum(cell.status != "not measured" for cell in cells),
    )
    said = f"{met} of {measured} measured cells" + (f" ({met / measured:.0%})" if measured else "")
    if unknown or measured < len(cells):
        rest = [f"{len(cells) - measured} cells are not measured"] if measured < len(cells) else []
        rest += [f"no data yet of {', '.join(unknown)}"] if unknown else []
        status: Status = "not measured"
        said += "; " + "; ".join(rest)
    else:
        status = "met" if cells and met >= SPENT_SHARE * len(cells) else "missed"
    return Verdict(f"cost / budget at least {SPENT:g} in {SPENT_SHARE:.0%} of the cells", status, said), cells


def _spending_verdict(results: Results, task: str, ratio: float) -> Verdict:
    name = f"{task}, ratio {ratio:g}"
    pool = results.pool(task, SPENT_METHOD, ratio)
    summary = pool.summary
    if not _complete(pool):
        return Verdict(name, "not measured", f"{len(pool.records)} of {FULL} episodes")
    if summary is None:
        return Verdict(name, "missed", REFUSED)
    met = summary.cost_per_budget >= SPENT
    return Verdict(name, "met" if met else "missed", f"cost / budget {summary.cost_per_budget:.2f}")


def return_verdicts(results: Results) -> list[Verdict]:
    """Return one verdict for each budget of the pendulum, on the mean return at risk 0.2."""
    verdicts = []
    for ratio, least in PENDULUM_RETURNS.items():
        name = f"pendulum, ratio {ratio:g}, risk 0.2"
        pool = results.pool("pendulum", SPENT_METHOD, ratio)
        summary = pool.summary
        if not _complete(pool):
            verdicts.append(Verdict(name, "not measured", f"{len(pool.records)} of {FULL} episodes"))
        elif summary is None:
            verdicts.append(Verdict(name, "missed", REFUSED))
        else:
            status: Status = "met" if summary.return_mean >= least else "missed"
            verdicts.append(Verdict(name, status, f"return {summary.return_mean:.1f}, at least {least:g}"))
    return verdicts


def moved_verdicts(results: Results) -> list[Verdict]:
    """Return one verdict for each task and schedule: broken though feasible, in the share that the risk allows.

    Of the episodes that lasted until a change: the others tell nothing of it.
    """
    risk = METHODS[MOVED_METHOD].risk
    assert risk is not None
    verdicts = []
    for task in TASKS:
        for schedule in SCHEDULES:
            records, name = results.moved(task, schedule), f"{task}, {schedule}"
            if len(records) < FULL:
                verdicts.append(Verdict(name, "not measured", f"{len(records)} of {FULL} episodes"))
                continue
            changed = results.changed(records)
            if not changed:
                said = f"none of {len(records)} episodes lasted until its change"
                verdicts.append(Verdict(name, "not measured", said))
                continue
            broken = sum(bool(record.feasible) and not record.kept for record in changed)
            never = sum(not record.feasible for record in changed)
            share, limit = broken / len(changed), greatest_share(risk, len(changed))
            said = f"{broken} of {len(changed)} episodes broke a changed budget that was feasible: {share:.3f}, at most "
            said += f"{limit:.3f}; never feasible in {never}"
            if len(changed) < len(records):
                said += f"; {len(records) - len(changed)} more ended before their change"
            verdicts.append(Verdict(name, "met" if share <= limit else "missed", said))
    return verdicts


def paper_verdicts(results: Results) -> list[Verdict]:
    """Return one verdict for each of our methods, task and ratio that the paper's networks and sampler were run on.

    Episodes are paired by training seed and environment seed; the difference of their returns has a 95% bootstrap interval.
    """
    verdicts = []
    for paper in PAPER_METHODS:
        for task in TASKS:
            for ratio in sorted({ratio for _, ratio in grid(task, paper)}):
                theirs = results.pool(task, paper, ratio)
                if theirs.records:
                    verdicts += [_paper_verdict(results, task, key, paper, ratio) for key in COMPARED]
    return verdicts


def _paper_verdict(results: Results, task: str, key: str, paper: str, ratio: float) -> Verdict:
    name = f"{task}, ratio {ratio:g}, {METHODS[key].label}, against {METHODS[paper].label}"
    pairs = _paired(results.pool(task, key, ratio), results.pool(task, paper, ratio))
    if len(pairs) < 2:
        return Verdict(name, "not measured", f"{len(pairs)} pairs of episodes")
    theirs = float(np.mean([other.episode_return for _, other in pairs]))
    difference = np.array([ours.episode_return - other.episode_return for ours, other in pairs])
    low, high = bootstrap_interval(difference)
    over = [np.mean([not record.kept for record in records]) for records in zip(*pairs, strict=True)]
    said = (
        f"{len(pairs)} pairs: return {difference.mean():+.1f} [{low:+.1f}, {high:+.1f}] on {theirs:.1f}, "
        f"share over {over[0]:.2f} against {over[1]:.2f}"
    )
    met = low >= -PAPER_LOSS * abs(theirs) and over[0] <= over[1]
    return Verdict(name, "met" if met else "missed", said)


def _paired(ours: Pool, theirs: Pool) -> list[tuple[EpisodeRecord, EpisodeRecord]]:
    """Return the episodes of both that share a training seed and an environment seed."""
    found = []
    for seed in ours.cells.keys() & theirs.cells.keys():
        first, second = (pool.cells[seed].evaluation for pool in (ours, theirs))
        others = {record.seed: record for record in second.records} if second else {}
        found += [(r, others[r.seed]) for r in (first.records if first else ()) if r.seed in others]
    return found


def _complete(pool: Pool) -> bool:
    """Whether every training seed has its cell, of all episodes or refused."""
    return len(pool.cells) == len(SEEDS) and all(
        cell.evaluation is None or len(cell.evaluation.records) >= EPISODES for cell in pool.cells.values()
    )
