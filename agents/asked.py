"""What a calibration is asked for, checked before the first of its episodes is run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trebi_gym.agents.calibration import check_discount, check_share, needed_episodes
from trebi_gym.budget import check_budget
from trebi_gym.checks import check_count, check_seed
from trebi_gym.errors import BudgetError, CalibrationError, shown

if TYPE_CHECKING:
    from trebi_gym.agents.trebi import TREBIAgent

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
