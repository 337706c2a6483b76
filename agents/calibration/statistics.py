"""What a budget must be planned as, so that episodes keep it at a stated risk: the statistics, without an environment."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from trebi_gym.budget import check_remaining
from trebi_gym.checks import is_whole
from trebi_gym.errors import BudgetError, CalibrationError, CheckpointError

Floats = npt.NDArray[np.float64]

ROUNDING = 1e-9
"""Costs are sums of floats: one that is above a budget by this share of it keeps it."""


def check_number(value: object, name: str) -> float:
    """Return a number of Python or NumPy as a float.

    Raises:
        CalibrationError: it is no number, or NaN.
    """
    try:
        return check_remaining(value, name=name)
    except BudgetError as error:
        raise CalibrationError(f"{name} must be a number; got {value!r}") from error


def check_discount(value: object) -> float:
    """Return a discount as a float.

    Raises:
        CalibrationError: it does not lie in (0, 1].
    """
    number = check_number(value, "discount")
    if not 0 < number <= 1:
        raise CalibrationError(f"discount must lie in (0, 1]; got {value!r}")
    return number


def check_share(value: object, name: str) -> float:
    """Return a risk or a confidence as a float.

    Raises:
        CalibrationError: it does not lie between 0 and 1, both left out.
    """
    number = check_number(value, name)
    if not 0 < number < 1:
        raise CalibrationError(f"{name} must lie between 0 and 1, both left out; got {value!r}")
    return number


def allowed_failures(episodes: int, risk: float, confidence: float) -> int:
    """Return how many of n episodes may break a budget for the risk to be certified; -1 if even none is too many.

    The greatest k with ``P(Binomial(n, risk) <= k) <= 1 - confidence``: the exact binomial test, of which the upper limit
    of Clopper and Pearson (1934) is the inversion.
    """
    k = int(stats.binom.ppf(1 - confidence, episodes, risk))
    # ppf gives the least k at or above the level; the rounding of both functions is settled by looking
    while k >= 0 and stats.binom.cdf(k, episodes, risk) > 1 - confidence:
        k -= 1
    return k


def needed_episodes(risk: float, confidence: float) -> int:
    """Return the fewest episodes that can certify a risk, if none of them breaks the budget: 59 for 0.05 and 0.95."""
    return _upwards(math.log1p(-confidence) / math.log1p(-risk), risk)


def _upwards(value: float, risk: float) -> int:
    """Return the least whole number that is not below a quotient, up to its rounding."""
    if math.isinf(value):
        raise CalibrationError(f"risk {risk:g} is too small: no number of episodes can support it")
    return math.ceil(round(value, 9))


def limit_of(costs: Sequence[float], risk: float, confidence: float) -> float:
    """Return the cost that episodes like these, ascending, exceed with a probability of at most ``risk``.

    An order statistic: a one-sided tolerance limit without an assumption about the costs' distribution (Wilks 1941).

    Raises:
        CalibrationError: so small a risk needs more episodes.
    """
    share = check_share(risk, "risk")
    k = allowed_failures(len(costs), share, confidence)
    if k < 0:
        raise CalibrationError(
            f"risk {share:g} cannot be certified with {len(costs)} episodes: at confidence {confidence:g} it "
            f"needs at least {needed_episodes(share, confidence)} for each planned budget, none of which breaks "
            "its budget; calibrate with episodes=... of that many or more"
        )
    return costs[len(costs) - 1 - k]


@dataclass(frozen=True)
class Calibration:
    """Costs of closed-loop episodes, for each of K budgets that were planned for; N episodes each.

    Episodes that were run with planned budget p cost C(p), whatever limit is set on them. A budget b is kept at risk r
    if p is chosen so that ``P(C(p) > b) <= r``. The choice is the greatest p such that it and every smaller one pass the
    exact binomial test on their episodes: testing in a fixed order keeps the chance that any p is taken wrongly below
    ``1 - confidence`` (Learn then Test, arXiv 2110.01052). It holds for every budget and risk that are chosen without
    looking at these episodes, and for episodes that are drawn as these were: the same environment, starts and planner,
    and one budget from the first step to the last.
    """

    planned: tuple[
        float, ...
    ]  # (K,) ascending, in undiscounted cost or that of ``discount``; the last may be infinite
    costs: tuple[tuple[float, ...], ...]  # (K, N) ascending
    returns: tuple[float, ...]  # (K,) means
    env_id: str
    planner: Mapping[str, Any]  # the settings that the episodes were run with
    confidence: float = 0.95
    discount: float = 1.0
    seed: int = 0  # of the first episode
    greatest_step_cost: float = math.inf  # that any step of these episodes had
    models: str = (
        ""  # the mark of the weights that the episodes were run with; empty in files from before it was kept
    )

    def __post_init__(self) -> None:
        _check_common(self)
        object.__setattr__(self, "confidence", check_share(self.confidence, "confidence"))
        if not isinstance(self.env_id, str) or not self.env_id:
            raise CalibrationError(f"env_id must be the environment's name; got {self.env_id!r}")
        if not is_whole(self.seed) or self.seed < 0:
            raise CalibrationError(f"seed must be a whole number of at least 0; got {self.seed!r}")
        planned = np.array([check_number(value, "a planned budget") for value in self.planned])
        returns = _finite(self.returns, "returns of calibration episodes")
        lengths = {len(row) for row in self.costs}
        if len(planned) == 0 or len(self.costs) != len(planned) or len(self.returns) != len(planned):
            raise CalibrationError(
                f"a calibration needs one row of costs and one return for each planned budget; got {len(planned)} budgets, "
                f"{len(self.costs)} rows and {len(self.returns)} returns"
            )
        if (planned < 0).any() or not (np.diff(planned) > 0).all():
            raise CalibrationError(f"planned budgets must be at least 0 and ascend; got {self.planned}")
        if lengths == {0} or len(lengths) != 1:
            raise CalibrationError(f"every planned budget needs the same number of episodes; got {lengths}")
        costs = tuple(tuple(sorted(_finite(row, "costs of calibration episodes"))) for row in self.costs)
        object.__setattr__(self, "planned", tuple(planned.tolist()))
        object.__setattr__(self, "returns", returns)
        object.__setattr__(self, "costs", costs)

    @property
    def episodes(self) -> int:
        """N, for each planned budget."""
        return len(self.costs[0])

    def limits(self, risk: float) -> Floats:
        """Return the costs (K,) that episodes of each planned budget exceed with a probability of at most ``risk``.

        Raises:
            CalibrationError: so small a risk needs more episodes.
        """
        return np.array([limit_of(row, risk, self.confidence) for row in self.costs])

    def planned_for(self, budgets: Floats, risk: float) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Return what to plan with (E,) so that budgets (E,) are kept at this risk, and whether that is certified (E,).

        Where not even the smallest planned budget keeps one, that smallest is returned, or the budget itself where it is
        smaller still: nothing more careful was run, and nothing looser is asked for.
        Where calibration stopped at a planned budget that no budget up to the data's maximum lets pass, greater budgets
        and risks that were not asked for are planned for with the last of those that were run, which is careful.
        """
        limits = self.limits(risk)
        slack = ROUNDING * np.maximum(1.0, np.abs(budgets))
        passed = limits[None, :] <= (budgets + slack)[:, None]
        # in the fixed order, from the smallest planned budget on, up to the first that fails
        count = np.cumprod(passed, axis=1).sum(axis=1)
        planned = np.asarray(self.planned)[np.maximum(count - 1, 0)]
        planned = np.where(count > 0, planned, np.minimum(planned, budgets))
        return np.where(np.isinf(budgets), np.inf, planned), (count > 0) | np.isinf(budgets)

    def smallest_budget(self, risk: float) -> float:
        """Return the smallest budget of a whole episode that is certified at this risk."""
        return float(self.limits(risk)[0])

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data; an infinite number is null."""
        data = dataclasses.asdict(self)
        data["planned"] = [value if math.isfinite(value) else None for value in self.planned]
        data["greatest_step_cost"] = (
            self.greatest_step_cost if math.isfinite(self.greatest_step_cost) else None
        )
        return {"kind": "closed loop", **data}

    def table(self, risks: Sequence[float]) -> list[list[str]]:
        """Return one row of text a planned budget: it, mean and greatest cost, mean return, and the limits at each risk."""
        limits = [self.limits(risk) for risk in risks]
        return [
            [
                f"{planned:.4g}",
                f"{np.mean(row):.2f}",
                f"{max(row):.2f}",
                f"{value:.1f}",
                *(f"{limit[index]:.2f}" for limit in limits),
            ]
            for index, (planned, row, value) in enumerate(
                zip(self.planned, self.costs, self.returns, strict=True)
            )
        ]


@dataclass(frozen=True)
class HeldOutCalibration:
    """How far logged episodes, which nothing was learned from, cost more than the critic predicted at their start.

    A budget is planned for with a reserve: the split-conformal quantile of these differences (Lei et al. 2018,
    arXiv 1604.04173). It covers the critic's error on episodes of the *logging* policy. It promises nothing of episodes in
    which the agent chooses: choosing among many plans favours those whose cost is underestimated.
    """

    excesses: tuple[float, ...]  # (n,) episode's cost less prediction, ascending
    dataset: str
    planner: Mapping[str, Any]
    discount: float = 1.0
    greatest_step_cost: float = math.inf
    models: str = ""  # the mark of the weights; empty in files from before it was kept

    def __post_init__(self) -> None:
        _check_common(self)
        if not isinstance(self.dataset, str):
            raise CalibrationError(f"dataset must be the data set's name; got {self.dataset!r}")
        excesses = tuple(sorted(_finite(self.excesses, "excesses of held-out episodes")))
        if len(excesses) == 0:
            raise CalibrationError("a calibration needs at least one held-out episode")
        object.__setattr__(self, "excesses", excesses)

    def reserve(self, risk: float) -> float:
        """Return what to hold back.

        Raises:
            CalibrationError: so small a risk needs more episodes.
        """
        share, count = check_share(risk, "risk"), len(self.excesses)
        rank = math.ceil(round((count + 1) * (1 - share), 9))
        if rank > count:
            raise CalibrationError(
                f"risk {share:g} needs at least {_upwards(1 / share - 1, share)} held-out episodes; there are {count}"
            )
        return max(0.0, self.excesses[rank - 1])

    def planned_for(self, budgets: Floats, risk: float) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Return what to plan with (E,) for budgets (E,); nothing is certified (E,)."""
        return np.maximum(budgets - self.reserve(risk), 0.0), np.zeros(len(budgets), dtype=np.bool_)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data; an infinite number is null."""
        data = dataclasses.asdict(self)
        if math.isinf(self.greatest_step_cost):
            data["greatest_step_cost"] = None
        return {"kind": "held-out", **data}


AnyCalibration = Calibration | HeldOutCalibration


def _finite(values: Iterable[object], name: str) -> tuple[float, ...]:
    """Return finite numbers as floats.

    Raises:
        CalibrationError: one is no number, or not finite.
    """
    try:
        numbers = tuple(check_remaining(value, name="each") for value in values)
    except BudgetError as error:
        raise CalibrationError(f"{name} must be finite numbers: {error}") from error
    if not np.isfinite(numbers).all():
        raise CalibrationError(f"{name} must be finite numbers; one is infinite")
    return numbers


def _check_common(found: AnyCalibration) -> None:
    """Raise unless the fields that both kinds have hold what they should; numbers become floats.

    Raises:
        CalibrationError: a value is of another type or out of range.
    """
    if not isinstance(found.planner, Mapping):
        raise CalibrationError(f"planner must be the planner's settings by name; got {found.planner!r}")
    if not isinstance(found.models, str):
        raise CalibrationError(f"models must be the mark of the weights, a string; got {found.models!r}")
    greatest = check_number(found.greatest_step_cost, "greatest_step_cost")
    if greatest < 0:
        raise CalibrationError(f"greatest_step_cost must be at least 0; got {greatest!r}")
    object.__setattr__(found, "discount", check_discount(found.discount))
    object.__setattr__(found, "greatest_step_cost", greatest)


def from_dict(data: Mapping[str, Any]) -> AnyCalibration:
    """Make a calibration from ``to_dict``'s result.

    Raises:
        CheckpointError: it is not such a result.
    """
    kinds: dict[str, type[AnyCalibration]] = {"closed loop": Calibration, "held-out": HeldOutCalibration}
    try:
        values = dict(data)
        kind = kinds[values.pop("kind")]
        if values.get("greatest_step_cost") is None:
            values["greatest_step_cost"] = math.inf
        if kind is Calibration:
            values["planned"] = tuple(math.inf if item is None else item for item in values["planned"])
            values["costs"] = tuple(map(tuple, values["costs"]))
        return kind(**values)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the file's calibration cannot be read: {error!r}; take an unchanged copy of the file, or calibrate again"
        ) from error


def check_calibrated(
    calibration: AnyCalibration | None, planner: Mapping[str, Any], fingerprint: str, risk: float
) -> AnyCalibration:
    """Return an agent's calibration, if it still holds for how the agent is now.

    Args:
        calibration: of the agent.
        planner: its planner's settings, as plain data.
        fingerprint: of its weights.
        risk: that is asked for.

    Raises:
        CalibrationError: it is not calibrated, or its planner was set otherwise since, or its weights are others.
    """
    check_share(risk, "risk")
    if calibration is None:
        raise CalibrationError(
            f"risk {risk:g} was asked for, but the agent is not calibrated; call calibrate(env_id) or run trebi calibrate"
        )
    then = calibration.planner
    changed = [
        f"{name} was {then.get(name)!r}, is {value!r}"
        for name, value in planner.items()
        if then.get(name) != value
    ]
    if changed:
        raise CalibrationError(
            f"the planner was set otherwise when the agent was calibrated: {'; '.join(changed)}; calibrate again, "
            "or set it back with set_planner"
        )
    # files from before weights had fingerprints cannot be checked
    if calibration.models and calibration.models != fingerprint:
        raise CalibrationError(
            f"the agent's weights (mark {fingerprint[:12]}) are others than those that were calibrated (mark "
            f"{calibration.models[:12]}); calibrate again, or load the file of the calibrated agent"
        )
    return calibration
