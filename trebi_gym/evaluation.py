"""Does the agent keep its budgets, and what does it earn? Episodes of several budgets, with intervals."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats
from tqdm import tqdm

from trebi_gym.budget import Budget, check_budget
from trebi_gym.errors import BudgetError, TrebiError
from trebi_gym.files import replacing
from trebi_gym.rollout import BudgetChange, Policy, make_envs, rollout

ROUNDING = 1e-9
"""A budget counts as kept up to this share of it: sums of floats are not exact."""


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
        total = float(budgets.mean())
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
        )

    @property
    def summaries(self) -> list[Summary]:
        """One summary a budget, ascending."""
        return [self.summary(budget) for budget in self.budgets]

    def table(self) -> str:
        """Return a table for people."""
        rows = [
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
        header = (
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
        except (ValueError, KeyError, TypeError) as error:
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


def evaluate_budgets(
    agent: Policy,
    env_id: str,
    *,
    budgets: Sequence[float],
    episodes: int = 20,
    n_envs: int | None = None,
    seed: int = 0,
    schedule: Sequence[BudgetChange] = (),
    discount: float = 1.0,
    deterministic: bool = False,
    progress_bar: bool = False,
) -> Evaluation:
    """Run the same seeds under every budget, many episodes at once, planned for in one batch.

    Args:
        agent: what acts: a ``TREBIAgent``, or anything with its ``predict``.
        env_id: a registered environment with ``info["cost"]``.
        budgets: what an episode may cost; each is run for ``episodes`` episodes.
        episodes: episodes of each budget, with the environment's seeds ``seed, seed + 1, ...``.
        n_envs: episodes at once; None: as many as there are, at most 100.
        seed: of the environments, and of the agent's own draws.
        schedule: changes of the budget in mid-episode.
        discount: of the budgets and of the costs that are reported.
        deterministic: handed to ``agent.predict``.
        progress_bar: show one, in episodes' steps.

    Raises:
        BudgetError: a budget that is no budget, or none.
        TrebiError: fewer than one episode.
    """
    if episodes < 1:
        raise TrebiError(f"episodes must be at least 1; got {episodes}")
    if len(budgets) == 0:
        raise BudgetError("give at least one budget")
    values = [check_budget(budget) for budget in dict.fromkeys(budgets)]
    return evaluate_episodes(
        agent,
        env_id,
        budgets=[value for value in values for _ in range(episodes)],
        seeds=[seed + index for _ in values for index in range(episodes)],
        n_envs=n_envs,
        seed=seed,
        schedule=schedule,
        discount=discount,
        deterministic=deterministic,
        progress_bar=progress_bar,
    )


def evaluate_episodes(
    agent: Policy,
    env_id: str,
    *,
    budgets: Sequence[float],
    seeds: Sequence[int],
    n_envs: int | None = None,
    seed: int = 0,
    schedule: Sequence[BudgetChange] = (),
    discount: float = 1.0,
    deterministic: bool = False,
    progress_bar: bool = False,
) -> Evaluation:
    """Run one episode for every pair of a budget and an environment's seed; otherwise as ``evaluate_budgets``."""
    if len(budgets) != len(seeds):
        raise TrebiError(f"give one seed for each budget; got {len(budgets)} budgets and {len(seeds)} seeds")
    seeder = getattr(agent, "set_random_seed", None)
    if seeder is not None:
        seeder(seed)
    envs = make_envs(env_id, n_envs or min(len(budgets), 100))
    timed = _Timed(agent)
    jobs = [Budget(check_budget(budget), discount=discount) for budget in budgets]
    records: dict[int, EpisodeRecord] = {}
    returns = np.zeros(len(jobs))
    changes: dict[
        int, tuple[float, Budget]
    ] = {}  # what was left right after the last change, and the budget then
    last_change = max((change.step for change in schedule), default=None)
    limit = getattr(envs.spec, "max_episode_steps", None)
    total = len(jobs) * limit if limit else None
    try:
        with tqdm(total=total, disable=not progress_bar, unit="step", desc="evaluating") as bar:
            for step in rollout(
                timed, envs, budgets=jobs, schedule=schedule, seed=list(seeds), deterministic=deterministic
            ):
                bar.update(int(step.active.sum()))
                for index in np.flatnonzero(step.active):
                    job = int(step.episode[index])
                    returns[job] += step.rewards[index]
                    if step.step[index] == last_change:
                        changes[job] = (step.budgets[index].remaining, step.budgets[index])
                    if step.done[index]:
                        records[job] = _record(
                            budgets[job],
                            int(seeds[job]),
                            returns[job],
                            step.budgets_after[index],
                            changes.get(job),
                        )
    finally:
        envs.close()
    metadata = {
        "env_id": env_id,
        "seed": seed,
        "discount": discount,
        "deterministic": deterministic,
        "schedule": [dataclasses.asdict(change) for change in schedule],
        "milliseconds_per_decision": 1000 * timed.seconds / max(timed.decisions, 1),
        "decisions_at_once": envs.num_envs,
        "agent": repr(agent),
    }
    return Evaluation(tuple(records[job] for job in range(len(jobs))), metadata)


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


def _record(
    budget: float, seed: int, episode_return: float, after: Budget, change: tuple[float, Budget] | None
) -> EpisodeRecord:
    # in units of step 0, where nothing is divided by a small power of the discount
    left = after.total - after.spent
    kept = left >= -ROUNDING * max(1.0, abs(after.spent))
    return EpisodeRecord(
        budget=float(budget),
        seed=seed,
        episode_return=float(episode_return),
        cost=after.spent,
        length=after.step,
        remaining=left,
        kept=bool(kept),
        changed_budget=None if change is None else change[0],
        cost_after_change=None
        if change is None
        else (after.spent - change[1].spent) / change[1].discount ** change[1].step,
    )


class _Timed:
    """Counts what the agent's decisions take."""

    def __init__(self, agent: Policy) -> None:
        self._agent = agent
        self.seconds = 0.0
        self.decisions = 0

    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        started = time.perf_counter()
        result = self._agent.predict(observation, *args, **kwargs)
        self.seconds += time.perf_counter() - started
        self.decisions += len(observation)
        return result


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
