"""Calibration in closed loop: episodes are run under planned budgets, one planned budget after the other, resumably."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from trebi_gym.agents.calibration.fingerprints import fingerprint as fingerprint
from trebi_gym.agents.calibration.held_out import on_held_out
from trebi_gym.agents.calibration.statistics import (
    ROUNDING,
    AnyCalibration,
    Calibration,
    check_discount,
    check_share,
    limit_of,
    needed_episodes,
)
from trebi_gym.agents.planning.budgets import parse_request
from trebi_gym.agents.planning.policies import AtRisk, check_calibrated, least_budgets
from trebi_gym.agents.serializable import plain
from trebi_gym.budget import Budget, check_budget
from trebi_gym.checks import check_count, check_seed, is_whole
from trebi_gym.datasets import EpisodeDataset
from trebi_gym.datasets import load as load_dataset
from trebi_gym.errors import BudgetError, CalibrationError
from trebi_gym.files import check_writable, read_json, replacing
from trebi_gym.rollout import envs_for, rollout

if TYPE_CHECKING:
    from trebi_gym.agents.agent import TREBIAgent

STEPS = 12
"""Planned budgets up to the maximum, evenly spaced; three more above it."""


def default_budgets(agent: TREBIAgent) -> list[float]:
    """Return the budgets to plan for: 0, steps up to 1.25 times the maximum of the agent's data, and no limit.

    Raises:
        CalibrationError: the data give no maximum.
    """
    maximum = agent.learned_from.get("maximum_budget")
    if not maximum:
        raise CalibrationError(
            "the agent's data give no maximum budget to choose planned budgets by; pass budgets=[...]"
        )
    return [maximum * step / STEPS for step in range(STEPS + 4)] + [math.inf]


def asked_risks(risk: Any) -> list[float]:
    """Return the risks, at least one, of a number or any collection of them, an array too.

    Raises:
        CalibrationError: there is none, or one does not lie between 0 and 1.
    """
    risks = [check_share(value, "risk") for value in _each(risk)]
    if not risks:
        raise CalibrationError("calibrate needs a risk; got an empty collection")
    return risks


def asked_budgets(agent: TREBIAgent, budgets: Any) -> list[float]:
    """Return the budgets to plan for, ascending and each once; None takes the default.

    Raises:
        CalibrationError: there is none, or one is no budget.
    """
    given = default_budgets(agent) if budgets is None else budgets
    if isinstance(given, str) or not isinstance(given, Iterable) or getattr(given, "ndim", 1) == 0:
        raise CalibrationError(f"budgets must be a list of budgets to plan for, or None; got {given!r}")
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
    agent: TREBIAgent,
    env_id: str,
    *,
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

    Of the default planned budgets, none is run after the first that no budget up to the maximum of the agent's data lets
    pass: planned budgets are taken in a fixed order, so a later one could not be taken either.
    """
    agent.ready()
    check_episodes(risks, episodes, confidence, seed, n_envs, discount)
    planned = asked_budgets(agent, budgets)
    maximum = math.inf if budgets is not None else float(agent.learned_from["maximum_budget"])
    mark = agent.weights_mark()
    request = {
        "env_id": env_id,
        "planned": [value if math.isfinite(value) else None for value in planned],
        "episodes": int(episodes),
        "seed": int(seed),
        "discount": Budget(0.0, discount).discount,
        "planner": plain(agent.config.planner),
        "models": mark,
    }
    cells = _kept(keep, request)
    envs, limit = envs_for(agent, env_id, int(episodes), n_envs=n_envs, asynchronous=asynchronous)
    try:
        total = limit * episodes * len(planned)
        with tqdm(total=total, disable=not progress_bar, unit="step", desc="calibrating") as bar:
            for index, budget in enumerate(planned):
                run = index + 1
                if str(index) not in cells:
                    cells[str(index)] = _cell(agent, envs, budget, int(episodes), seed, index, discount, bar)
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
        planner=plain(agent.config.planner),
        confidence=float(confidence),
        discount=float(discount),
        seed=int(seed),
        greatest_step_cost=max(row["greatest_step_cost"] for row in rows),
        models=mark,
    )


def _any_keeps(costs: Sequence[float], budget: float, risks: Sequence[float], confidence: float) -> bool:
    """Whether episodes with these costs are certified to keep a budget at any of the risks."""
    return any(
        limit_of(sorted(costs), risk, confidence) <= budget + ROUNDING * max(1.0, budget) for risk in risks
    )


def _cell(
    agent: TREBIAgent,
    envs: Any,
    budget: float,
    episodes: int,
    seed: int,
    index: int,
    discount: float,
    bar: Any,
) -> dict[str, Any]:
    """Run the episodes of one planned budget."""
    agent.set_random_seed(seed + index)
    costs, returns, greatest = np.zeros(episodes), np.zeros(episodes), 0.0
    seeds = [seed + episode for episode in range(episodes)]
    jobs = [Budget(budget, discount)] * episodes
    for step in rollout(AtRisk(agent, None), envs, budgets=jobs, seed=seeds):
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


class Calibrates:
    """What an agent can be asked about risk; ``TREBIAgent`` derives from it."""

    calibration: AnyCalibration | None = None
    risk: float | None = None
    _fingerprint: str | None = None

    def calibrate(
        self,
        env_id: str | None = None,
        *,
        dataset: EpisodeDataset | str | os.PathLike[str] | None = None,
        risk: float | Sequence[float] | npt.NDArray[Any] = 0.05,
        budgets: Sequence[float] | npt.NDArray[Any] | None = None,
        episodes: int = EPISODES,
        confidence: float = CONFIDENCE,
        seed: int = FIRST_SEED,
        discount: float = 1.0,
        n_envs: int | None = None,
        asynchronous: bool = False,
        progress_bar: bool = True,
        keep: str | os.PathLike[str] | None = None,
    ) -> Self:
        """Find out what each budget must be planned as, so that an episode breaks it with at most the asked risk.

        With an environment, episodes are run under every planned budget: ``agents.calibration.Calibration`` tells what
        that guarantees, and of what. With a data set of episodes that were not learned from, only the critic's error on
        those is known, and nothing is guaranteed: ``HeldOutCalibration``. The result is kept in the agent's file, holds
        for every risk that the episodes support, and serves until the agent learns anew or plans otherwise.

        Args:
            env_id: of the environment, with ``info["cost"]``.
            dataset: instead of an environment.
            risk: the greatest chance of an episode over its budget. The first is ``agent.risk`` from here on.
            budgets: to plan for; None: 17, from 0 over 1.25 times the data's maximum to no limit, up to the first that no
                budget up to the maximum lets pass at any of the risks. Budgets above the maximum, and risks that were not
                asked for, may then be planned for more carefully than they need be.
            episodes: for each of them.
            confidence: of the guarantee.
            seed: of the first episode's environment; evaluate with others.
            discount: of the budgets.
            n_envs: environments at once; None: as many as episodes, at most 100 and as memory allows, which is said.
            asynchronous: run every environment in a process of its own; the result is the same. For heavy environments.
            progress_bar: show one.
            keep: a file for what is finished, from which the same call goes on after a crash.

        Raises:
            CalibrationError: the episodes cannot support the risk, there is nothing to calibrate on, the data were
                learned from, or a value is out of range or has no use with a data set.
            ConfigError: ``keep`` cannot be written.
            DatasetError: the data set does not fit the agent.
            TrebiError: the environment does not.
        """
        agent = _agent(self)
        risks = asked_risks(risk)
        if (env_id is None) == (dataset is None):
            raise CalibrationError("calibrate needs an environment's id or dataset=..., one of them")
        self._fingerprint = None  # weights may have been changed since they were last looked at
        if dataset is not None:
            refuse_given(
                {
                    "budgets": (budgets, None),
                    "episodes": (episodes, EPISODES),
                    "confidence": (confidence, CONFIDENCE),
                    "seed": (seed, FIRST_SEED),
                    "discount": (discount, 1.0),
                    "n_envs": (n_envs, None),
                    "asynchronous": (asynchronous, False),
                    "keep": (keep, None),
                }
            )
            held = dataset if isinstance(dataset, EpisodeDataset) else load_dataset(dataset)
            self.calibration = on_held_out(agent, held, risks)
        else:
            self.calibration = in_closed_loop(
                agent,
                str(env_id),
                risks=risks,
                budgets=budgets,
                episodes=episodes,
                confidence=confidence,
                seed=seed,
                discount=discount,
                n_envs=n_envs,
                asynchronous=asynchronous,
                progress_bar=progress_bar,
                keep=keep,
            )
        self.risk = risks[0]
        return self

    def set_risk(self, risk: float | None) -> Self:
        """Set the risk that ``predict`` takes where it is told none; None for budgets as the planner keeps them by itself.

        Raises:
            CalibrationError: the agent is not calibrated, or its calibration cannot support the risk.
        """
        if risk is not None:
            check_calibrated(_agent(self), risk).planned_for(np.zeros(1), risk)
        self.risk = risk
        return self

    def weights_mark(self) -> str:
        """Return the mark of the agent's weights, computed once for each planner that is made."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(_agent(self))
        return self._fingerprint

    def smallest_budget(self, observation: Any, *, step: int = 0, repeats: int = 4) -> Any:
        """Return the least that the rest of an episode is predicted to cost from here: () or (E,), undiscounted.

        The least prediction among plans that are made for budget 0. What a whole episode can be held to at a risk is
        ``calibration.smallest_budget(risk)``.

        Args:
            observation: (O,) or (E, O).
            step: steps taken in the episode.
            repeats: times that candidates are drawn.

        Raises:
            CalibrationError: fewer than one repeat.
            ObservationError: it is malformed, or no plan from it has a finite predicted cost.
        """
        if not is_whole(repeats) or repeats < 1:
            raise CalibrationError(f"repeats must be a whole number of at least 1; got {repeats!r}")
        agent = _agent(self)
        request = parse_request(observation, Budget(0.0, step=step), agent.ready()[1].observation_size)
        least = least_budgets(agent, request, repeats)
        return float(least[0]) if request.single else least


def _agent(self: Calibrates) -> TREBIAgent:
    return cast("TREBIAgent", self)
