"""Budgets that move while an episode runs: what is changed when, drawn for every episode from its own seed."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from trebi_gym.budget import check_remaining
from trebi_gym.checks import check_count, check_seed, is_whole
from trebi_gym.errors import BudgetError
from trebi_gym.rollout import BudgetChange

Changes = tuple[BudgetChange, ...]
Draw = np.random.Generator


def _drop(
    draw: Draw,
    budget: float,
    limit: int,
    share: float = 0.4,
    step: int | None = None,
    within: int | None = None,
) -> Changes:
    """What is left becomes ``share`` of it at ``step``, drawn from the middle half of the episode if not given."""
    return (BudgetChange(_middle(draw, limit) if step is None else step, factor=share),)


def _drops(
    draw: Draw, budget: float, limit: int, share: float = 0.7, times: int = 3, within: int | None = None
) -> Changes:
    """``times`` drops to ``share`` of what is left, at steps that are drawn."""
    return tuple(BudgetChange(step, factor=share) for step in _steps(draw, limit, times))


def _raise(
    draw: Draw,
    budget: float,
    limit: int,
    share: float = 2.0,
    step: int | None = None,
    within: int | None = None,
) -> Changes:
    """What is left becomes ``share`` times as much at ``step``, drawn from the middle half if not given."""
    return (BudgetChange(_middle(draw, limit) if step is None else step, factor=share),)


def _walk(draw: Draw, budget: float, limit: int, size: float = 0.2, every: int = 20) -> Changes:
    """Every ``every`` steps what is left is multiplied by e to the power of a normal number of deviation ``size``."""
    steps = range(every, limit, every)
    return tuple(BudgetChange(step, factor=float(np.exp(size * draw.standard_normal()))) for step in steps)


def _late(
    draw: Draw, budget: float, limit: int, step: int | None = None, within: int | None = None
) -> Changes:
    """There is no limit until ``step``, drawn from the middle half if not given; from there on the rest has the budget."""
    first = _middle(draw, limit) if step is None else step
    return BudgetChange(0, remaining=math.inf), BudgetChange(first, remaining=budget)


SCHEDULES: dict[str, Callable[..., Changes]] = {
    "drop": _drop,
    "drops": _drops,
    "raise": _raise,
    "walk": _walk,
    "late": _late,
}
RANGES: dict[str, tuple[float, float]] = {
    "drop": (0.0, 1.0),
    "drops": (0.0, 1.0),
    "raise": (1.0, math.inf),
    "walk": (0.0, 2.0),
}
"""What ``share`` or ``size`` may be."""


@dataclass(frozen=True)
class BudgetSchedule:
    """A kind of change, with its options; every episode draws its own from its environment's seed.

    Args:
        name: one of ``SCHEDULES``.
        options: ``share``, ``step``, ``times``, ``size``, ``every`` or ``within``, as the kind has them. ``within`` takes
            the place of the time limit where steps are drawn: for tasks whose episodes mostly end before it.

    Raises:
        BudgetError: there is no such kind or option, or a value that cannot be.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in SCHEDULES:
            raise BudgetError(f"there is no schedule {self.name!r}; there are {', '.join(SCHEDULES)}")
        known = schedule_options(self.name)
        unknown = sorted(set(self.options) - set(known))
        if unknown:
            raise BudgetError(
                f"the schedule {self.name} has no option {', '.join(unknown)}; it has {', '.join(known)}"
            )
        for option, value in self.options.items():
            if option in ("share", "size"):
                low, high = RANGES.get(self.name, (0.0, math.inf))
                if not low <= check_remaining(value, name=option) <= high or math.isinf(value):
                    raise BudgetError(f"{self.name}: {option} must lie in {low:g} to {high:g}; got {value!r}")
            elif not is_whole(value) or value < 1:
                raise BudgetError(
                    f"{self.name}: {option} must be a whole number of at least 1; got {value!r}"
                )
        if {"step", "within"} <= set(self.options):
            raise BudgetError(f"{self.name}: give step, or within, from which it is drawn; got both")

    def changes(self, seed: int, budget: float, limit: int) -> Changes:
        """Return an episode's changes, in order.

        Args:
            seed: of the episode's environment.
            budget: of the episode.
            limit: the environment's time limit in steps.

        Raises:
            BudgetError: a change would come after the episode's end, or the seed or the limit is no whole number.
        """
        seed = check_seed(seed, error=BudgetError)
        limit = check_count(limit, "limit", error=BudgetError)
        values = {**_defaults(self.name), **self.options}
        within = values.get("within") or limit
        if within > limit:
            raise BudgetError(f"{self}: within must be at most the time limit of {limit} steps")
        limit = within
        if max(values.get(option) or 1 for option in ("step", "times", "every")) >= limit:
            raise BudgetError(
                f"{self} does not fit into an episode of {limit} steps: its change must come before the end "
                f"({', '.join(f'{option}={value}' for option, value in values.items())})"
            )
        draw = np.random.default_rng([seed, sum(self.name.encode())])
        return SCHEDULES[self.name](draw, budget, limit, **self.options)

    def __str__(self) -> str:
        options = ",".join(f"{option}={value:g}" for option, value in self.options.items())
        return f"{self.name}:{options}" if options else self.name


def changes_within(
    schedule: Sequence[BudgetChange] | BudgetSchedule, env_id: str, limit: int
) -> Sequence[BudgetChange] | Callable[[int, float], Changes]:
    """Return a schedule as ``rollout`` takes it, for episodes of at most ``limit`` steps.

    Raises:
        BudgetError: it holds something else than changes, or one at a step that no episode reaches.
    """
    if isinstance(schedule, BudgetSchedule):
        return partial(schedule.changes, limit=limit)
    if not isinstance(schedule, Sequence) or not all(isinstance(change, BudgetChange) for change in schedule):
        raise BudgetError(f"a schedule is a BudgetSchedule or a list of BudgetChange; got {schedule!r:.200}")
    late = [change.step for change in schedule if change.step >= limit]
    if late:
        raise BudgetError(f"a change at step {late[0]} is never reached: {env_id} has steps 0 to {limit - 1}")
    return schedule


def parse_schedule(text: str) -> BudgetSchedule:
    """Return the schedule that ``NAME`` or ``NAME:OPTION=VALUE,...`` stands for, such as ``drop:share=0.2,step=100``.

    Raises:
        BudgetError: the text has no such form, or stands for none.
    """
    name, _, rest = text.partition(":")
    options: dict[str, Any] = {}
    for item in filter(None, rest.split(",")):
        option, equals, value = item.partition("=")
        try:
            number = float(value)
        except ValueError:
            equals = ""
        if not equals:
            raise BudgetError(
                f"a schedule is written NAME or NAME:OPTION=VALUE,..., for example drop:share=0.2,step=100; got {text!r}"
            )
        options[option] = int(number) if number.is_integer() and option not in ("share", "size") else number
    return BudgetSchedule(name, options)


def schedule_options(name: str) -> list[str]:
    """Return the options that a kind of change has."""
    return list(_defaults(name))


def _defaults(name: str) -> dict[str, Any]:
    """Return a kind's options with their defaults; None for one that is drawn."""
    parameters = inspect.signature(SCHEDULES[name]).parameters
    return {
        option: parameter.default
        for option, parameter in parameters.items()
        if option not in ("draw", "budget", "limit")
    }


def _middle(draw: Draw, limit: int) -> int:
    first = max(1, limit // 4)
    return int(draw.integers(first, max(first + 1, 3 * limit // 4)))


def _steps(draw: Draw, limit: int, times: int) -> list[int]:
    return sorted(int(step) for step in 1 + draw.choice(limit - 1, size=times, replace=False))
