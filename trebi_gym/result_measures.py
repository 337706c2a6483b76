"""What ``make results`` measures beside an agent's episodes: the data's best, single decisions, and marks of both."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from typing import Any

import numpy as np

from trebi_gym.agents.calibration import AnyCalibration
from trebi_gym.agents.cloning import within_budget
from trebi_gym.datasets import EpisodeDataset
from trebi_gym.datasets.recipes import maximum_budget
from trebi_gym.records import EpisodeRecord, Evaluation
from trebi_gym.result_plan import FIRST_SEED, RATIOS
from trebi_gym.rollout import Policy, envs_for, rollout
from trebi_gym.schedules import BudgetSchedule, schedule_options

WARM_UP = 2
"""Plans before those that are timed."""


def described(dataset: EpisodeDataset) -> dict[str, Any]:
    """Return what the page says of a task's data; plain JSON."""
    maximum = maximum_budget(dataset)
    within = {ratio: len(within_budget(dataset, ratio * maximum.value)) for ratio in RATIOS}
    rate = dataset.metadata.get("steps_per_second")
    return {
        "name": dataset.metadata.get("name"),
        "algorithm": dataset.metadata.get("algorithm"),
        "steps": dataset.n_steps,
        "episodes": len(dataset),
        "maximum_budget": maximum.value,
        "rule": maximum.rule,
        "returns": [float(dataset.episode_returns.min()), float(dataset.episode_returns.max())],
        "costs": [float(dataset.episode_costs.min()), float(dataset.episode_costs.max())],
        "sides": {f"{ratio:g}": [count, len(dataset) - count] for ratio, count in within.items()},
        "build_seconds": dataset.n_steps / float(rate) if rate else None,
    }


def best_episode(dataset: EpisodeDataset, budget: float) -> Evaluation:
    """Return the episode of the greatest return among those within the budget, of which there must be one."""
    rows = within_budget(dataset, budget)
    row = int(rows[dataset.episode_returns[rows].argmax()])
    cost = float(dataset.episode_costs[row])
    record = EpisodeRecord(
        budget=budget,
        seed=row,
        episode_return=float(dataset.episode_returns[row]),
        cost=cost,
        length=int(dataset.lengths[row]),
        remaining=budget - cost,
        kept=True,
    )
    return Evaluation((record,), {"seeds": "the episode's place in the data"})


def plans_for(calibration: AnyCalibration, budget: float, risk: float) -> dict[str, Any]:
    """Return what a calibrated agent plans an episode with this budget for, null if infinite, and whether that is certified.

    Raises:
        CalibrationError: so small a risk needs more episodes.
    """
    planned, certified = calibration.planned_for(np.array([budget]), risk)
    told = float(planned[0]) if np.isfinite(planned[0]) else None
    return {"planned": told, "certified": bool(certified[0])}


def moved_schedule(name: str, dataset: EpisodeDataset) -> BudgetSchedule:
    """Return a schedule for a data set's task.

    Where episodes end early, the steps are drawn within the median episode of the data: most that are drawn within the time
    limit would never be reached.
    """
    median, longest = int(np.median(dataset.lengths)), int(dataset.lengths.max())
    drawn = "within" in schedule_options(name)
    return BudgetSchedule(name, {"within": median} if drawn and median < longest else {})


def as_plain(evaluation: Evaluation) -> dict[str, Any]:
    """Return an evaluation as plain JSON."""
    document: dict[str, Any] = json.loads(evaluation.to_json())
    return document


def time_decisions(
    policy: Policy, env_id: str, budget: float, plans: int, *, interval: int = 1
) -> list[float]:
    """Return the seconds of a decision in a closed loop with one environment, for each of so many plans, after a warm-up.

    Args:
        policy: what decides.
        env_id: of the environment.
        budget: of every episode.
        plans: to time.
        interval: decisions of which only the first makes a plan; what they take together is spread over them.
    """
    clock = _Clock(policy)
    envs, _ = envs_for(policy, env_id, 1)
    try:
        steps = rollout(clock, envs, budgets=itertools.repeat(budget), seed=FIRST_SEED)
        for _ in itertools.islice(steps, (WARM_UP + plans) * interval):
            pass
    finally:
        envs.close()
    groups = np.reshape(clock.seconds, (WARM_UP + plans, interval))
    return list(map(float, groups.mean(axis=1)[WARM_UP:]))


def mark_of(dataset: EpisodeDataset) -> str:
    """Return a mark of a data set's episodes."""
    arrays = (dataset.observations, dataset.actions, dataset.rewards, dataset.costs, dataset.lengths)
    return digest(*(np.ascontiguousarray(array).tobytes() for array in arrays))


def digest(*contents: bytes) -> str:
    """Return the SHA-256 hash of what is given, as text."""
    found = hashlib.sha256()
    for content in contents:
        found.update(content)
    return found.hexdigest()


class _Clock:
    """Notes what every decision takes."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.seconds: list[float] = []

    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        started = time.perf_counter()
        result = self._policy.predict(observation, *args, **kwargs)
        self.seconds.append(time.perf_counter() - started)
        return result
