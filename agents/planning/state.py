"""What an agent keeps between two decisions, and what it holds back of each budget to keep it at the asked risk."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from trebi_gym.agents.calibration.statistics import AnyCalibration
from trebi_gym.agents.planning.budgets import Request
from trebi_gym.errors import BudgetError, CalibrationError, ObservationError

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

LARGEST = 1e12
"""Finite budget that anything is held back from: beyond, numbers lie further apart than 0.0001."""


@dataclass
class PlanState:
    """What planning keeps between two steps of E environments; hand it back to the next ``predict``."""

    step: npt.NDArray[np.int64]  # (E,) steps taken in the running episode
    actions: npt.NDArray[np.float32]  # (E, K, A) actions of the last plans that may still be executed
    position: npt.NDArray[np.int64]  # (E,) how many of them have been
    rewards: npt.NDArray[np.float32]  # (E,) what the last plan is predicted to earn
    costs: npt.NDArray[np.float32]  # (E,) what it is predicted to cost, in the critic's units
    budgets: npt.NDArray[np.float32]  # (E,) what planning was allowed to spend, in the same units
    limits: npt.NDArray[np.float32]  # (E,) what was left of the budget, in the same units
    least: npt.NDArray[np.float32]  # (E,) the least predicted cost of any candidate
    reserve: Floats  # (E,) held back of the budget for the risk, in units of step 0; negative where more can be planned for
    certified: npt.NDArray[np.bool_]  # (E,) whether the calibration's guarantee covers this episode's budget
    told: Floats  # (E,) what was left of the budget at the last decision; NaN before the first
    totals: Floats  # (E,) of the last Budget; NaN where it was told as a number
    risks: Floats  # (E,) that the reserve was settled for; NaN for none

    @property
    def feasible(self) -> npt.NDArray[np.bool_]:
        """(E,) whether any candidate was predicted to keep the budget, margin and reserve left aside; never below zero."""
        kept: npt.NDArray[np.bool_] = (self.least <= self.limits) & (self.limits >= 0)
        return kept

    @property
    def margin(self) -> npt.NDArray[np.float32]:
        """(E,) by how much the cheapest candidate keeps the budget, in the critic's units; negative if none does."""
        margin: npt.NDArray[np.float32] = self.limits - self.least
        return margin

    def of_rows(self, rows: npt.NDArray[np.int64]) -> PlanState:
        """Return the state of some of the environments only."""
        return PlanState(**{item.name: getattr(self, item.name)[rows] for item in fields(self)})


def fresh(environments: int, interval: int, action_size: int) -> PlanState:
    """Return the state at the start of an episode."""
    floats = {
        name: np.zeros(environments, dtype=np.float32)
        for name in ("rewards", "costs", "budgets", "limits", "least")
    }
    return PlanState(
        step=np.zeros(environments, dtype=np.int64),
        actions=np.zeros((environments, interval, action_size), dtype=np.float32),
        position=np.full(environments, interval, dtype=np.int64),
        **floats,
        reserve=np.zeros(environments),
        certified=np.zeros(environments, dtype=np.bool_),
        told=np.full(environments, np.nan),
        totals=np.full(environments, np.nan),
        risks=np.full(environments, np.nan),
    )


def continued(
    state: PlanState | None, episode_start: Array | None, environments: int, interval: int, action_size: int
) -> PlanState:
    """Return a state of its own for the next decision: fresh, or the given one with new episodes started.

    Raises:
        ObservationError: the state belongs to another number of environments.
    """
    if state is not None and not isinstance(state, PlanState):
        raise ObservationError(
            f"state must be what the last predict returned, or None; got {type(state).__name__}"
        )
    if state is not None and len(state.step) != environments:
        raise ObservationError(
            f"the state belongs to {len(state.step)} environments, but {environments} observations were given; "
            "pass state=None when the number of environments changes"
        )
    started = np.zeros(environments, dtype=np.bool_)
    if episode_start is not None:
        given = np.asarray(episode_start, dtype=np.bool_)
        if given.size not in (1, environments):
            raise ObservationError(
                f"episode_start must hold one value for each of {environments} environments; got {given.size}"
            )
        started = np.broadcast_to(given.reshape(-1), (environments,))
    result = fresh(environments, interval, action_size)
    if state is None:
        return result
    # plans for another number of steps cannot be gone on with
    kept = {"actions", "position"} if state.actions.shape[1] != interval else set()
    for item in fields(PlanState):
        if item.name not in kept:
            getattr(result, item.name)[~started] = getattr(state, item.name)[~started]
    return result


def hold_back(
    state: PlanState,
    request: Request,
    steps: Floats,
    calibration: AnyCalibration | None,
    risk: float | None,
    *,
    begun: npt.NDArray[np.bool_],
    deterministic: bool,
) -> Floats | None:
    """Return what to hold back of each budget (E,) at the present step, and note it in the state.

    It is settled when an episode starts or its budget is changed, for the budget as it is then, and stays until the next
    change. A ``Budget`` tells a change by its total; a number, by having risen, or fallen by more than any step cost in
    calibration. ``certified`` is granted at the start of an episode only; any change takes it away until the next.

    Args:
        state: is changed.
        request: the budgets.
        steps: (E,) taken in the running episode.
        calibration: of the agent.
        risk: asked for; None holds nothing back.
        begun: (E,) where anything else tells that steps were taken already.
        deterministic: the noise is the same at every decision, which is not what was calibrated: nothing is certified.

    Raises:
        CalibrationError: the agent is not calibrated, or not for budgets of this discount or this risk.
        BudgetError: a budget is finite, but so large that costs are lost in its rounding.
    """
    if risk is None:
        state.reserve[:], state.certified[:], state.told[:], state.risks[:] = 0.0, False, np.nan, np.nan
        return None
    if calibration is None:
        raise CalibrationError(
            f"risk {risk!r} was asked for, but the agent is not calibrated; call calibrate(env_id) or run trebi calibrate"
        )
    foreign = request.discounts[request.discounts != calibration.discount]
    if len(foreign):
        raise CalibrationError(
            f"the agent is calibrated for budgets of discount {calibration.discount:g}; got one of discount {foreign[0]:g}"
        )
    unknown = np.isnan(state.told)
    new = unknown | (state.risks != risk)
    counted = ~np.isnan(request.totals)
    due = new | _moved(state, request, calibration.greatest_step_cost)
    # unspent: whatever is left of a Budget is all of it
    starting = unknown & (state.step == 0) & (steps == 0) & ~begun & (request.remaining >= 0)
    starting &= ~counted | (request.remaining == request.totals)
    state.certified &= ~due
    if due.any():
        # a Budget that has not changed is that of the whole episode, wherever it is met first
        whole = new & counted
        budgets = np.where(whole, request.totals, request.remaining)[due]
        huge = budgets[np.isfinite(budgets) & (budgets > LARGEST)]
        if len(huge):
            raise BudgetError(
                f"a budget of {huge[0]:g} is too large to hold anything back from it exactly; at a risk, budgets are at "
                f"most {LARGEST:g}, or inf for no limit"
            )
        planned, certified = calibration.planned_for(np.maximum(budgets, 0.0), risk)
        with np.errstate(invalid="ignore"):
            reserve = np.where(np.isinf(budgets), 0.0, np.maximum(budgets, 0.0) - planned)
        scale = np.where(whole, 1.0, calibration.discount**steps)[due]
        state.reserve[due] = reserve * scale
        state.certified[due] = certified & starting[due]
    state.certified &= not deterministic
    state.told, state.totals, state.risks[:] = request.remaining.copy(), request.totals.copy(), risk
    return np.asarray(state.reserve / calibration.discount**steps)


def _moved(state: PlanState, request: Request, greatest_step_cost: float) -> npt.NDArray[np.bool_]:
    """Return whether each budget (E,) was changed since the last decision, as far as can be told."""
    slack = 1e-9 * np.maximum(1.0, np.abs(np.where(np.isfinite(state.told), state.told, 0.0)))
    with np.errstate(invalid="ignore"):
        return np.where(
            ~np.isnan(request.totals),
            ~np.isclose(request.totals, state.totals, rtol=1e-9, atol=0.0),
            (request.remaining > state.told + slack)
            | (request.remaining < state.told - greatest_step_cost - slack)
            | (np.isposinf(state.told) & ~np.isposinf(request.remaining)),
        )
