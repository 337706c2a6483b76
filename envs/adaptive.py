"""A budget wrapper that learns across episodes what to plan for, so that budgets break as often as they may."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import gymnasium as gym

from trebi_gym.budget import Budget, check_remaining
from trebi_gym.checks import is_whole
from trebi_gym.envs.wrappers import BudgetWrapper, Info, StepResult
from trebi_gym.errors import ConfigError
from trebi_gym.files import read_json, replacing

FORMAT = "trebi-gym adaptive budget"
FIELDS = {"format", "risk", "rate", "low", "high", "share", "episodes", "broken"}


class AdaptiveBudgetWrapper(BudgetWrapper):
    """Plans for a share of the budget that moves from episode to episode, as adaptive conformal inference moves its level.

    After an episode that kept its budget b the share s grows by ``rate * risk``, after one that broke it it falls by
    ``rate * (1 - risk)`` (Gibbs and Candès, arXiv 2106.00170). The next episode is to be planned for ``max(s, low) * b``:
    ``planned`` and ``info["planned_budget"]`` tell what is left of that, and with ``observe=True`` so does the observation.
    ``budget``, ``info["budget"]`` and ``info["budget_kept"]`` stay those of the user's budget.

    What holds, for any sequence of episodes, however the system shifts: as long as an episode that is planned for at most
    ``low`` of its budget keeps it, the share of broken budgets over T episodes is at most
    ``risk + (high - low + rate) / (rate * T)``. It is a long-run share: no single episode is promised anything, and the
    first episodes pay for what is learned. Where even ``low`` breaks budgets the share stays there and nothing holds.
    Episodes that are left before their end, and those without a limit, do not count.

    Args:
        env: an environment with ``info["cost"]`` at every step.
        budget: what an episode may cost.
        risk: the share of episodes that may break their budget, in (0, 1).
        rate: how far the share moves, above 0: larger follows shifts faster and wavers more.
        start: the first episode's share.
        low: the least share, at least 0.
        high: the greatest.
        discount: see ``BudgetWrapper``.
        observe: see ``BudgetWrapper``.
        episode_length: see ``BudgetWrapper``.

    Raises:
        BudgetError: the budget cannot be one.
        ConfigError: a risk, rate or bound that cannot be.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        budget: float,
        risk: float = 0.05,
        rate: float = 0.05,
        start: float = 1.0,
        low: float = 0.0,
        high: float = 2.0,
        discount: float = 1.0,
        observe: bool = False,
        episode_length: int | None = None,
    ) -> None:
        self.risk, self.rate, self.share = float(risk), float(rate), float(start)
        self.low, self.high = float(low), float(high)
        if not 0 < self.risk < 1:
            raise ConfigError(f"risk must lie between 0 and 1, both left out; got {risk!r}")
        if not (self.rate > 0 and math.isfinite(self.rate)):
            raise ConfigError(f"rate must be above 0 and finite; got {rate!r}")
        if not 0 <= self.low <= self.share <= self.high < math.inf:
            raise ConfigError(
                f"0 <= low <= start <= high must hold; got low={low!r}, start={start!r}, high={high!r}"
            )
        super().__init__(env, budget, discount, observe, episode_length)
        self._saved_kwargs |= {"risk": risk, "rate": rate, "start": start, "low": low, "high": high}
        self.episodes = 0
        self.broken = 0
        self._planned = self._initial
        self._running = False

    @property
    def planned(self) -> Budget:
        """What the running episode is to be planned for, as it stands."""
        return self._planned

    def set_budget(self, value: float) -> None:
        """Let the rest of this episode cost ``value``, planned for as the present share of it; see ``BudgetWrapper``."""
        super().set_budget(value)
        self._planned = self._planned.with_remaining(self._share_of(float(value)))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Info]:
        """Start an episode; ``info["planned_budget"]`` is what to plan for."""
        asked = None if options is None else options.get("budget")
        total = self._initial.total if asked is None else check_remaining(asked)
        if total >= 0:  # else reset of BudgetWrapper refuses it
            self._planned = Budget(self._share_of(total), self._initial.discount)
        observation, info = super().reset(seed=seed, options=options)
        self._running = True
        return observation, {**info, "planned_budget": self._planned.remaining}

    def step(self, action: Any) -> StepResult:
        """Take a step, charge it to both budgets, and move the share when the episode ends."""
        observation, reward, terminated, truncated, info = super().step(action)
        if self._running and (terminated or truncated):
            self._running = False
            if math.isfinite(self._budget.total):
                self._move(broken=not self._budget.kept)
        return observation, reward, terminated, truncated, {**info, "planned_budget": self._planned.remaining}

    def _charge(self, cost: float) -> None:
        super()._charge(cost)
        self._planned = self._planned.charge(cost)

    def _shown(self) -> Budget:
        return self._planned

    def _share_of(self, value: float) -> float:
        return value if math.isinf(value) else max(self.share, self.low) * value

    def _move(self, broken: bool) -> None:
        self.episodes += 1
        self.broken += int(broken)
        # not held at low: a share just above it could then break every other budget for ever
        self.share = min(max(self.share + self.rate * (self.risk - broken), self.low - self.rate), self.high)

    def state_dict(self) -> dict[str, Any]:
        """Return what was learned so far, and the settings that it was learned with, as plain JSON."""
        return {
            "format": FORMAT,
            **{name: getattr(self, name) for name in sorted(FIELDS - {"format"})},
        }

    def load_state_dict(self, state: Any) -> None:
        """Go on from what ``state_dict`` returned.

        Raises:
            ConfigError: it is no such state, or belongs to other settings.
        """
        if not isinstance(state, dict) or state.get("format") != FORMAT or set(state) != FIELDS:
            raise ConfigError(
                f"this is not what state_dict() of an AdaptiveBudgetWrapper returned: {state!r:.200}"
            )
        for name in ("risk", "rate", "low", "high"):
            if state[name] != getattr(self, name):
                raise ConfigError(
                    f"the state belongs to {name}={state[name]!r}, this wrapper has {getattr(self, name)!r}; make "
                    "the wrapper with the same settings"
                )
        share, counts = state["share"], (state["broken"], state["episodes"])
        number = isinstance(share, (int, float)) and not isinstance(share, bool)
        if not number or not self.low - self.rate <= share <= self.high:
            raise ConfigError(
                f"the state's share must lie within {self.low - self.rate:g} to {self.high:g}; got {share!r}"
            )
        if not all(is_whole(count) for count in counts) or not 0 <= counts[0] <= counts[1]:
            raise ConfigError(
                f"the state's episodes and broken ones must be whole numbers; got {counts[1]!r} and {counts[0]!r}"
            )
        self.share, (self.broken, self.episodes) = float(share), counts

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``state_dict`` as JSON; the file appears only when it is complete."""
        with replacing(Path(path)) as temporary:
            temporary.write_text(json.dumps(self.state_dict(), indent=2, allow_nan=False))

    def load(self, path: str | os.PathLike[str]) -> None:
        """Go on from a saved file.

        Raises:
            ConfigError: there is no such file, or it is not one.
        """
        if not Path(path).exists():
            raise ConfigError(
                f"there is no file {path}; the first day has nothing to load, and save makes it"
            )
        state = read_json(path, "a saved AdaptiveBudgetWrapper", ConfigError)
        self.load_state_dict(state)
