"""Calibration in closed loop: episodes are run under planned budgets, one planned budget after the other, resumably."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from trebi_gym.agents.calibration.statistics import (
    ROUNDING,
    Calibration,
    check_discount,
    check_share,
    limit_of,
    needed_episodes,
)
from trebi_gym.budget import Budget, check_budget
from trebi_gym.checks import check_count, check_seed
from trebi_gym.errors import BudgetError, CalibrationError, shown
from trebi_gym.files import check_writable, read_json, replacing
from trebi_gym.rollout import Policy, envs_for, rollout

STEPS = 12
"""Planned budgets up to the maximum, evenly spaced; three more above it."""


def default_budgets(maximum: float | None) -> list[float]:
    """Return the budgets to plan for: 0, steps up to 1.25 times the maximum of the agent's data, and no limit.

    Raises:
        CalibrationError: the data give no maximum.
    """
    if not maximum:
        raise CalibrationError(
            "the agent's data give no maximum budget to choose planned budgets by; pass budgets=[...]"
        )
    return [maximum * step / STEPS for step in range(STEPS + 4)] + [math.inf]


def requested_risks(risk: Any) -> list[float]:
    """Return the risks, at least one, of a number or any collection of them, an array too.

    Raises:
        CalibrationError: there is none, or one does not lie between 0 and 1.
    """
    risks = [check_share(value, "risk") for value in _each(risk)]
    if not risks:
        raise CalibrationError("calibrate needs a risk; got an empty collection")
    return risks


def requested_budgets(maximum: float | None, budgets: Any) -> list[float]:
    """Return the budgets to plan for, ascending and each once; None takes the default.

    Raises:
        CalibrationError: there is none, or one is no budget.
    """
    given = default_budgets(maximum) if budgets is None else budgets
    if isinstance(given, str) or not isinstance(given, Iterable) or getattr(given, "ndim", 1) == 0:
        raise CalibrationError(f"budgets must be a list of budgets to plan for, or None; got {shown(given)}")
    try:
        planned = sorted({check_budget(value) for value in given})
    except BudgetError as error:
        raise CalibrationError(f"budgets to plan for cannot be used: {error}") from error
    if not planned:
        raise CalibrationError("budgets to plan for must not be empty; None takes steps up to the maximum")
    return planned


def check_episodes(
    risks: Sequence[float], episodes: Any, confidence: Any, seed: Any, n_envs: Any, discount: Any
) -> None:
    """Raise unless the episodes can be run and can support every risk.

    Raises:
        CalibrationError: a number is of a wrong kind or out of range, or the episodes are too few.
    """
    check_count(episodes, "episodes", error=CalibrationError)
    if n_envs is not None:
        check_count(n_envs, "n_envs", error=CalibrationError)
    check_seed(seed, error=CalibrationError)
    check_discount(discount)
    share = check_share(confidence, "confidence")
    least = max(needed_episodes(risk, share) for risk in risks)
    if episodes < least:
        raise CalibrationError(
            f"risk {min(risks):g} at confidence {share:g} needs at least {least} episodes for each planned budget, "
            f"even if none of them breaks its budget; got episodes={episodes}"
        )


def check_cells(cells: Any, planned: int, episodes: int) -> dict[str, Any]:
    """Return what an interrupted calibration kept, if each cell holds what a finished one must.

    Raises:
        ValueError: one does not; the message names it.
    """
    if not isinstance(cells, Mapping):
        raise ValueError(f"its cells must be an object; got {type(cells).__name__}")
    known = {str(index) for index in range(planned)}
    for name, cell in cells.items():
        if name not in known or not isinstance(cell, Mapping):
            raise ValueError(f"cell {name!r} is none of the {planned}, or no object")
        costs = cell.get("costs")
        if not isinstance(costs, list) or len(costs) != episodes or not all(map(_finite, costs)):
            raise ValueError(f"cell {name!r} must hold {episodes} finite costs")
        if not (_finite(cell.get("return")) and _finite(cell.get("greatest_step_cost"))):
            raise ValueError(f"cell {name!r} must hold a finite return and a finite greatest_step_cost")
    return dict(cells)


def refuse_given(given: Mapping[str, tuple[Any, Any]]) -> None:
    """Raise where a value was given that held-out episodes have no use for.

    Args:
        given: value and default by name.

    Raises:
        CalibrationError: a value is not its default.
    """
    names = [
        f"{name}={value!r}"
        for name, (value, default) in given.items()
        if (value is not None if default is None else value != default)
    ]
    if names:
        raise CalibrationError(
            f"held-out episodes are compared as they are, none is run: they have no use for {', '.join(names)}; "
            "leave that out, or calibrate with an environment"
        )


def _each(value: Any) -> list[Any]:
    if isinstance(value, str) or not isinstance(value, Iterable) or getattr(value, "ndim", 1) == 0:
        return [value]
    return list(value)


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


EPISODES, CONFIDENCE = 100, 0.95

FIRST_SEED = 1_000_000
"""Of calibration episodes, far from the seeds that evaluations count from."""


def in_closed_loop(
    policy: Policy,
    env_id: str,
    *,
    planner: Mapping[str, Any],
    fingerprint: str,
    maximum_budget: float | None,
    risks: Sequence[float],
    budgets: Sequence[float] | npt.NDArray[Any] | None,
    episodes: int,
    confidence: float,
    seed: int,
    discount: float,
    n_envs: int | None,
    asynchronous: bool,
    progress_bar: bool,
    keep: str | os.PathLike[str] | None,
) -> Calibration:
    """Run the episodes; see ``TREBIAgent.calibrate``.

    Args:
        policy: that is calibrated, without a risk of its own.
        env_id: of the environment.
        planner: the policy's settings, as plain data; kept with the result, like what follows.
        fingerprint: of its weights.
        maximum_budget: of the data that it learned from, if known.
        risks: and all else: as ``TREBIAgent.calibrate`` takes them.
        budgets: to plan for.
        episodes: for each of them.
        confidence: of the guarantee.
        seed: of the first episode's environment.
        discount: of the budgets.
        n_envs: environments at once.
        asynchronous: run every environment in a process of its own.
        progress_bar: show one.
        keep: a file for what is finished.

    Of the default planned budgets, none is run after the first that no budget up to the maximum of the agent's data lets
    pass: planned budgets are taken in a fixed order, so a later one could not be taken either.
    """
    check_episodes(risks, episodes, confidence, seed, n_envs, discount)
    planned = requested_budgets(maximum_budget, budgets)
    maximum = math.inf if budgets is not None or maximum_budget is None else float(maximum_budget)
    request = {
        "env_id": env_id,
        "planned": [value if math.isfinite(value) else None for value in planned],
        "episodes": int(episodes),
        "seed": int(seed),
        "discount": Budget(0.0, discount).discount,
        "planner": dict(planner),
        "models": fingerprint,
    }
    cells = _kept(keep, request)
    envs, limit = envs_for(policy, env_id, int(episodes), n_envs=n_envs, asynchronous=asynchronous)
    try:
        total = limit * episodes * len(planned)
        with tqdm(total=total, disable=not progress_bar, unit="step", desc="calibrating") as bar:
            for index, budget in enumerate(planned):
                run = index + 1
                if str(index) not in cells:
                    cells[str(index)] = _cell(policy, envs, budget, int(episodes), seed, index, discount, bar)
                    if keep is not None:
                        with replacing(keep) as temporary:
                            temporary.write_text(json.dumps({"request": request, "cells": cells}))
                else:
                    bar.update(limit * episodes)
                if not _any_keeps(cells[str(index)]["costs"], maximum, risks, confidence):
                    break
    finally:
        envs.close()
    rows = [cells[str(index)] for index in range(run)]
    return Calibration(
        planned=tuple(planned[:run]),
        costs=tuple(tuple(row["costs"]) for row in rows),
        returns=tuple(row["return"] for row in rows),
        env_id=env_id,
        planner=dict(planner),
        confidence=float(confidence),
        discount=float(discount),
        seed=int(seed),
        greatest_step_cost=max(row["greatest_step_cost"] for row in rows),
        models=fingerprint,
    )


def _any_keeps(costs: Sequence[float], budget: float, risks: Sequence[float], confidence: float) -> bool:
    """Whether episodes with these costs are certified to keep a budget at any of the risks."""
    return any(
        limit_of(sorted(costs), risk, confidence) <= budget + ROUNDING * max(1.0, budget) for risk in risks
    )


def _cell(
    policy: Policy,
    envs: Any,
    budget: float,
    episodes: int,
    seed: int,
    index: int,
    discount: float,
    bar: Any,
) -> dict[str, Any]:
    """Run the episodes of one planned budget."""
    seeder = getattr(policy, "set_random_seed", None)
    if seeder is not None:
        seeder(seed + index)
    costs, returns, greatest = np.zeros(episodes), np.zeros(episodes), 0.0
    seeds = [seed + episode for episode in range(episodes)]
    jobs = [Budget(budget, discount)] * episodes
    for step in rollout(policy, envs, budgets=jobs, seed=seeds):
        bar.update(int(step.active.sum()))
        for row in np.flatnonzero(step.active):
            job = int(step.episode[row])
            returns[job] += step.rewards[row]
            greatest = max(greatest, float(step.costs[row]))
            costs[job] = step.budgets_after[row].spent
    return {
        "costs": costs.tolist(),
        "return": float(returns.mean()),
        "greatest_step_cost": greatest,
    }


def _kept(keep: str | os.PathLike[str] | None, request: dict[str, Any]) -> dict[str, Any]:
    """Return the cells that an interrupted run of the same request left.

    Raises:
        CalibrationError: the file is of another request, damaged, or no such file.
        ConfigError: the file could not be written.
    """
    if keep is None:
        return {}
    check_writable(keep)
    if not Path(keep).exists():
        return {}
    document = read_json(keep, "what an interrupted calibration leaves", CalibrationError)
    try:
        before, found = dict(document["request"]), document["cells"]
    except (ValueError, KeyError, TypeError) as error:
        raise CalibrationError(
            f"{keep} is not what an interrupted calibration leaves: {error!r}; delete it"
        ) from error
    differing = [name for name in request if before.get(name) != request[name]]
    if differing:
        raise CalibrationError(
            f"{keep} is left from a calibration with other {', '.join(differing)}; delete it to start anew"
        )
    try:
        return check_cells(found, len(request["planned"]), request["episodes"])
    except ValueError as error:
        raise CalibrationError(f"{keep} is damaged: {error}; delete it to start anew") from error
