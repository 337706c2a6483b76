"""Does the agent keep its budgets, and what does it earn? Episodes of several budgets, with intervals."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from trebi_gym.budget import Budget, check_budget
from trebi_gym.checks import check_count, check_seed
from trebi_gym.errors import BudgetError, TrebiError
from trebi_gym.evaluation.records import EpisodeRecord, Evaluation
from trebi_gym.evaluation.schedules import BudgetSchedule, changes_within
from trebi_gym.rollout import BudgetChange, Policy, RolloutStep, envs_for, rollout


def evaluate_budgets(
    agent: Policy,
    env_id: str,
    *,
    budgets: Sequence[float],
    episodes: int = 20,
    n_envs: int | None = None,
    asynchronous: bool = False,
    seed: int = 0,
    schedule: Sequence[BudgetChange] | BudgetSchedule = (),
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
        n_envs: episodes at once; None: as many as there are, at most 100 and as many as memory allows, which is said.
        asynchronous: run every environment in a process of its own; the result is the same. For heavy environments.
        seed: of the environments, and of the agent's own draws.
        schedule: changes of the budget in mid-episode: the same for every episode, or of a kind and drawn for each.
        discount: of the budgets and of the costs that are reported.
        deterministic: handed to ``agent.predict``.
        progress_bar: show one, in episodes' steps.

    Raises:
        BudgetError: a budget that is no budget, or none; a change at a step that no episode reaches.
        TrebiError: fewer than one episode or environment, a negative seed, or spaces that are not the agent's.
    """
    episodes, seed = check_count(episodes, "episodes"), check_seed(seed)
    try:
        several = np.ndim(budgets) > 0 and len(budgets) > 0
    except ValueError:  # lists in the list, which are no budgets
        several = True
    if not several:
        raise BudgetError(f"give a list of at least one budget; got {budgets!r}")
    values = list(dict.fromkeys(check_budget(budget) for budget in budgets))
    return evaluate_episodes(
        agent,
        env_id,
        budgets=[value for value in values for _ in range(episodes)],
        seeds=[seed + index for _ in values for index in range(episodes)],
        n_envs=n_envs,
        asynchronous=asynchronous,
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
    asynchronous: bool = False,
    seed: int = 0,
    schedule: Sequence[BudgetChange] | BudgetSchedule = (),
    discount: float = 1.0,
    deterministic: bool = False,
    progress_bar: bool = False,
) -> Evaluation:
    """Run one episode for every pair of a budget and an environment's seed; otherwise as ``evaluate_budgets``.

    Raises:
        BudgetError: a budget that is no budget; a change at a step that no episode reaches.
        TrebiError: no episode, a negative seed, lengths that differ, or spaces that are not the agent's.
    """
    if len(budgets) != len(seeds):
        raise TrebiError(f"give one seed for each budget; got {len(budgets)} budgets and {len(seeds)} seeds")
    if len(budgets) == 0:
        raise TrebiError("there is no episode to run: give at least one budget")
    seed, seeds = check_seed(seed), [check_seed(value, "each of the seeds") for value in seeds]
    _warn_of_calibration(agent, env_id, seeds)
    seeder = getattr(agent, "set_random_seed", None)
    if seeder is not None:
        seeder(seed)
    envs, limit = envs_for(agent, env_id, len(budgets), n_envs=n_envs, asynchronous=asynchronous)
    timed = _Timed(agent)
    jobs = [Budget(check_budget(budget), discount=discount) for budget in budgets]
    records: dict[int, EpisodeRecord] = {}
    tallies = [_Tally() for _ in jobs]
    total = len(jobs) * limit
    try:
        changes = changes_within(schedule, env_id, limit)
        with tqdm(total=total, disable=not progress_bar, unit="step", desc="evaluating") as bar:
            for step in rollout(
                timed, envs, budgets=jobs, schedule=changes, seed=list(seeds), deterministic=deterministic
            ):
                bar.update(int(step.active.sum()))
                told = _told(step)
                for index in np.flatnonzero(step.active):
                    job = int(step.episode[index])
                    tallies[job].add(step, int(index), told)
                    if step.done[index]:
                        after = step.budgets_after[index]
                        records[job] = tallies[job].record(budgets[job], int(seeds[job]), after)
    finally:
        envs.close()
    metadata = {
        "env_id": env_id,
        "seed": seed,
        "discount": discount,
        "deterministic": deterministic,
        "schedule": str(schedule)
        if isinstance(schedule, BudgetSchedule)
        else [dataclasses.asdict(change) for change in schedule],
        "milliseconds_per_decision": 1000 * timed.seconds / max(timed.decisions, 1),
        "decisions_at_once": envs.num_envs,
        "agent": repr(agent),
        "risk": getattr(agent, "risk", None),
    }
    return Evaluation(tuple(records[job] for job in range(len(jobs))), metadata)


def _warn_of_calibration(agent: Any, env_id: str, seeds: Sequence[int]) -> None:
    """Warn where episodes are run again that the agent was calibrated on."""
    found: Any = getattr(agent, "calibration", None)
    if getattr(agent, "risk", None) is None or _plain_id(getattr(found, "env_id", None)) != _plain_id(env_id):
        return
    known = range(found.seed, found.seed + found.episodes)
    again = sum(seed in known for seed in seeds)
    if again:
        warnings.warn(
            f"{again} of {len(seeds)} episodes have seeds that the agent was calibrated on ({known.start} to "
            f"{known.stop - 1}), so they do not tell whether the risk is kept on others; evaluate with other seeds",
            UserWarning,
            stacklevel=3,
        )


def _plain_id(env_id: Any) -> str | None:
    """Return an environment's id without the module that registers it, ``module:Id-v0``."""
    return None if env_id is None else str(env_id).rpartition(":")[2]


class _Tally:
    """What one episode has earned, what its last change was, and whether its last budget was feasible."""

    def __init__(self) -> None:
        self._return = 0.0
        self._change: Budget | None = None  # the budget right after the last change
        self._feasible: list[bool] = []  # under the last budget
        self._certified: bool | None = None

    def add(self, step: RolloutStep, index: int, told: dict[int, tuple[bool, bool]]) -> None:
        """Count one step of the environment ``index``."""
        self._return += float(step.rewards[index])
        if step.changed is not None and step.changed[index]:
            self._change, self._feasible = step.budgets[index], []
        if index in told:
            feasible, self._certified = told[index]
            self._feasible.append(feasible)

    def record(self, budget: float, seed: int, after: Budget) -> EpisodeRecord:
        """Return the ended episode; ``after`` is its budget at the end."""
        # in units of step 0, where nothing is divided by a small power of the discount
        left, change = after.total - after.spent, self._change
        return EpisodeRecord(
            budget=float(budget),
            seed=seed,
            episode_return=self._return,
            cost=after.spent,
            length=after.step,
            remaining=left,
            kept=after.kept,
            changed_budget=None if change is None else change.remaining,
            cost_after_change=None
            if change is None
            else (after.spent - change.spent) / change.discount**change.step,
            feasible=sum(self._feasible) / len(self._feasible) if self._feasible else None,
            certified=self._certified,
        )


def _told(step: RolloutStep) -> dict[int, tuple[bool, bool]]:
    """Return what the policy's state tells of the budgets that it planned for at this step: (feasible, certified).

    A state whose ``position`` tells that an environment goes on with an earlier plan says nothing new of it.
    """
    state = step.policy_state
    if step.policy_rows is None or not (hasattr(state, "feasible") and hasattr(state, "certified")):
        return {}
    planned = np.asarray(getattr(state, "position", np.ones(len(step.policy_rows)))) == 1
    return {
        int(row): (bool(feasible), bool(certified))
        for row, feasible, certified, now in zip(
            step.policy_rows, state.feasible, state.certified, planned, strict=True
        )
        if now
    }


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
