"""A decision: what may be spent, the best plan within it, and its first action."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trebi_gym.agents.calibration import AnyCalibration, check_share
from trebi_gym.agents.checked import plain
from trebi_gym.agents.inputs import Request, check_actions, check_scores, parse_request, planning_budgets
from trebi_gym.agents.plans import least_costs
from trebi_gym.agents.settings import usual_settings
from trebi_gym.agents.spaces import fit_actions
from trebi_gym.agents.state import PlanState, continued, hold_back
from trebi_gym.agents.units import geometric_sum
from trebi_gym.errors import CalibrationError, ObservationError

if TYPE_CHECKING:
    from trebi_gym.agents.trebi import TREBIAgent

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


@usual_settings()
def decide(
    agent: TREBIAgent,
    request: Request,
    state: PlanState | None,
    episode_start: Array | None,
    deterministic: bool,
    risk: float | None,
) -> tuple[Array, PlanState]:
    """Return actions and the next state; see ``TREBIAgent.predict``."""
    planner, task = agent.ready()
    environments = len(request.observations)
    interval = agent.config.planner.control_interval
    state = continued(state, episode_start, environments, interval, task.action_size)
    steps_left = request.count_steps_left(task.episode_length, state.step)
    warn_beyond(agent, request, state.step)
    if risk is not None:
        check_calibrated(agent, risk)
    steps = np.where(request.steps >= 0, request.steps, task.episode_length - steps_left)
    # observations may tell that steps were taken, too
    begun = np.maximum(steps, task.episode_length - steps_left) > 0
    reserve = hold_back(
        state, request, steps, agent.calibration, risk, begun=begun, deterministic=deterministic
    )
    due = state.position >= interval
    if due.any():
        limits, thresholds = planning_budgets(request, steps_left, agent.config, task.budget_factor, reserve)
        found = planner.search(
            request.observations[due],
            thresholds[due],
            steps_left[due],
            agent.noise(deterministic),
            request.discounts[due] != 1.0,
        )
        state.actions[due] = check_actions(planner.best_actions(found, interval))
        state.rewards[due], state.costs[due] = planner.best_scores(found)
        state.least[due] = least_costs(found.costs).cpu().numpy()
        check_scores(state.rewards[due], state.costs[due], state.least[due])
        with np.errstate(over="ignore"):  # a budget beyond float32 is infinite
            state.budgets[due], state.limits[due] = thresholds[due], limits[due]
        state.position[due] = 0
    actions = state.actions[np.arange(environments), state.position]
    state.position += 1
    state.step = (task.episode_length - steps_left).astype(np.int64) + 1
    assert agent.action_space is not None
    actions = fit_actions(actions, agent.action_space)
    return (actions[0] if request.single else actions), state


def warn_beyond(agent: TREBIAgent, request: Request, counted: npt.NDArray[np.int64] | None) -> None:
    """Warn, once for an agent, where an episode is longer than those that it learned from.

    Args:
        agent: that decides.
        request: which may tell the steps taken, or those left.
        counted: (E,) steps taken, where the request does not tell; None: not known.
    """
    assert agent.task is not None
    length = agent.task.episode_length
    if agent.warned_of_length:
        return
    if request.steps_left is not None:
        longest = int(request.steps_left.max())
        if longest <= length:
            return
        found = f"an observation tells that {longest} steps are left"
    else:
        steps = request.steps if counted is None else np.where(request.steps < 0, counted, request.steps)
        if steps.max() < length:
            return
        found = f"step {int(steps.max())} (the first is 0) is planned like the last one"
    agent.warned_of_length = True
    warnings.warn(
        f"the agent learned from episodes of {length} steps, but {found}: nothing was learned of so long an episode, and "
        f"its predictions do not hold there; end episodes after {length} steps, or learn from longer ones",
        UserWarning,
        stacklevel=5,
    )


def check_calibrated(agent: TREBIAgent, risk: float) -> AnyCalibration:
    """Return the agent's calibration, if it still holds for how the agent is set.

    Raises:
        CalibrationError: it is not calibrated, or its planner was set otherwise since, or its weights are others.
    """
    check_share(risk, "risk")
    if agent.calibration is None:
        raise CalibrationError(
            f"risk {risk:g} was asked for, but the agent is not calibrated; call calibrate(env_id) or run trebi calibrate"
        )
    now, then = plain(agent.config.planner), agent.calibration.planner
    changed = [
        f"{name} was {then.get(name)!r}, is {value!r}"
        for name, value in now.items()
        if then.get(name) != value
    ]
    if changed:
        raise CalibrationError(
            f"the planner was set otherwise when the agent was calibrated: {'; '.join(changed)}; calibrate again, "
            "or set it back with set_planner"
        )
    # files from before weights were marked cannot be checked
    if agent.calibration.models and agent.calibration.models != agent.weights_mark():
        raise CalibrationError(
            f"the agent's weights (mark {agent.weights_mark()[:12]}) are others than those that were calibrated (mark "
            f"{agent.calibration.models[:12]}); calibrate again, or load the file of the calibrated agent"
        )
    return agent.calibration


@usual_settings()
def least_budgets(agent: TREBIAgent, request: Request, repeats: int) -> Floats:
    """Return the least undiscounted cost (E,) that any candidate is predicted to have, planned for at budget 0."""
    planner, task = agent.ready()
    steps_left = request.count_steps_left(task.episode_length, None)
    nothing = np.zeros(len(steps_left))
    least = np.full(len(steps_left), math.inf)
    for _ in range(repeats):
        found = planner.search(request.observations, nothing, steps_left, agent.noise(False))
        least = np.minimum(least, least_costs(found.costs).cpu().numpy())
    if not np.isfinite(least).all():
        raise ObservationError(
            f"no plan from observation {int(np.flatnonzero(~np.isfinite(least))[0])} has a finite predicted cost: it "
            "lies far outside what was learned from; check its units"
        )
    discount = agent.config.cost_discount
    if agent.config.planner.budget_rule == "remaining":
        factor: Any = geometric_sum(discount, steps_left) / steps_left
    else:
        factor = 1.0 if discount == 1.0 else task.budget_factor
    return np.asarray(np.maximum(least, 0.0) / factor, dtype=np.float64)


class AtRisk:
    """An agent as a policy that is asked for one risk, whatever the agent's own is; None for no calibration."""

    def __init__(self, agent: TREBIAgent, risk: float | None) -> None:
        self._agent, self.risk = agent, risk
        self.calibration = agent.calibration

    @property
    def episode_length(self) -> int | None:
        """The longest episode that the agent learned from, in steps."""
        return self._agent.episode_length

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed what the agent draws."""
        self._agent.set_random_seed(seed)

    def predict(
        self,
        observation: Any,
        state: PlanState | None = None,
        episode_start: Array | None = None,
        deterministic: bool = False,
        *,
        budget: Any,
    ) -> tuple[Array, PlanState]:
        """Return actions and the next state; see ``TREBIAgent.predict``."""
        request = parse_request(observation, budget, self._agent.ready()[1].observation_size)
        return decide(self._agent, request, state, episode_start, deterministic, self.risk)

    def __repr__(self) -> str:
        return repr(self._agent)
