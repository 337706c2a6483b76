"""Wrappers that give any environment a cost, and any costing environment a budget."""

from __future__ import annotations

import copy
import numbers
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from trebi_gym.budget import Budget, check_budget
from trebi_gym.checks import is_whole
from trebi_gym.costs import CostFunction, finite_cost, resolve_cost
from trebi_gym.errors import ConfigError, EnvironmentContractError

Info = dict[str, Any]
StepResult = tuple[Any, SupportsFloat, bool, bool, Info]


class CostWrapper(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Puts each step's cost into ``info["cost"]``, a float: 0.0 at reset.

    Args:
        env: the environment.
        cost: a function ``(observation, action, next_observation, info) -> cost``, or its ``"module:name"``.
            A function that can be imported is recorded by that name, so that ``env.spec`` goes into JSON.

    Raises:
        EnvironmentContractError: ``cost`` is neither, or cannot be found.
    """

    def __init__(self, env: gym.Env[Any, Any], cost: CostFunction | str) -> None:
        self._cost = resolve_cost(cost)
        RecordConstructorArgs.__init__(self, cost=_importable_name(cost))
        gym.Wrapper.__init__(self, env)
        self._observation: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Info]:
        """Reset the environment; nothing has been done, so ``info["cost"]`` is 0.0."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._observation = copy.deepcopy(observation)
        return observation, {**info, "cost": 0.0}

    def step(self, action: Any) -> StepResult:
        """Take a step and add what it cost.

        Raises:
            EnvironmentContractError: the cost function did not return one finite number.
        """
        # an environment may write its next observation into the array it returned before: hence the copies
        before = self._observation
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._observation = copy.deepcopy(observation)
        cost = finite_cost(self._cost(before, action, observation, info), source="the cost function")
        return observation, reward, terminated, truncated, {**info, "cost": cost}


class BudgetWrapper(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Counts an episode's cost against a budget, which can be changed while the episode runs.

    ``info["budget"]`` is what is left, a float, from reset on; negative once overspent. When the episode
    ends, ``info["episode_cost"]`` is the plain sum of its costs, and ``info["budget_kept"]`` whether the
    budget that was in force last was kept, up to rounding.

    Args:
        env: an environment with ``info["cost"]`` at every step: see ``CostWrapper``.
        budget: what an episode may cost, at least 0; ``inf`` for no limit.
        discount: in (0, 1]: the cost of step t counts ``discount**t``, see ``trebi_gym.budget.Budget``.
        observe: also show it to the agent: the observation becomes the dictionary of ``observation``,
            ``budget`` (1,) and ``steps_left`` (1,).
        episode_length: the longest episode, in steps, from which ``steps_left`` counts down; by default that
            of ``env.spec``, or else of the environment's ``max_episode_steps``.

    Raises:
        BudgetError: the budget is negative, NaN or not a number, or the discount out of range.
        ConfigError: ``episode_length`` is not a whole number of at least 1.
        EnvironmentContractError: ``observe`` is set and the length of an episode is not known.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        budget: float,
        discount: float = 1.0,
        observe: bool = False,
        episode_length: int | None = None,
    ) -> None:
        self._initial = Budget(check_budget(budget), discount)
        _check_episode_length(episode_length)
        RecordConstructorArgs.__init__(
            self,
            budget=self._initial.total,
            discount=self._initial.discount,
            observe=bool(observe),
            episode_length=None if episode_length is None else int(episode_length),
        )
        gym.Wrapper.__init__(self, env)
        self._budget = self._initial
        self._episode_cost = 0.0
        self._started = False
        self._observe = bool(observe)
        self._episode_length = 0
        if self._observe:
            self._episode_length = _known_length(env, episode_length)
            self.observation_space = spaces.Dict(
                observation=env.observation_space,
                budget=spaces.Box(-np.inf, np.inf, shape=(1,), dtype=np.float64),
                steps_left=spaces.Box(0.0, float(self._episode_length), shape=(1,), dtype=np.float64),
            )

    @property
    def budget(self) -> Budget:
        """The budget as it stands: what is left, and the step."""
        return self._budget

    def set_budget(self, value: float) -> None:
        """Let the rest of this episode cost ``value``; the observation tells it from the next step on.

        Raises:
            BudgetError: ``value`` is negative, NaN or not a number; the budget stays as it was.
            ResetNeeded: no episode has been started.
        """
        if not self._started:
            raise gym.error.ResetNeeded(
                "set_budget changes an episode that runs: call reset() first, or "
                'reset(options={"budget": value})'
            )
        self._budget = self._budget.with_remaining(value)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Info]:
        """Start an episode with the constructor's budget, or with ``options["budget"]`` for this one only.

        Raises:
            BudgetError: ``options["budget"]`` is negative, NaN or not a number.
        """
        budget = self._initial
        if options is not None and "budget" in options:
            budget = Budget(check_budget(options["budget"]), self._initial.discount)
            options = {key: value for key, value in options.items() if key != "budget"} or None
        observation, info = self.env.reset(seed=seed, options=options)
        self._budget = budget
        self._episode_cost = 0.0
        self._started = True
        # no action has been taken yet, so nothing is charged
        cost = info.get("cost", 0.0)
        if isinstance(
            cost, numbers.Real
        ):  # a float, for vector environments; nothing else is judged before it counts
            cost = float(cost)
        return self._observed(observation), {**info, "cost": cost, "budget": budget.remaining}

    def step(self, action: Any) -> StepResult:
        """Take a step and charge what it cost.

        Raises:
            EnvironmentContractError: ``info["cost"]`` is missing, or is not one finite number.
        """
        observation, reward, terminated, truncated, info = self.env.step(action)
        if "cost" not in info:
            raise EnvironmentContractError(
                f'BudgetWrapper needs info["cost"] at every step; info had {sorted(map(str, info))}. '
                "Wrap the environment in CostWrapper(env, cost) first"
            )
        cost = finite_cost(info["cost"], source='info["cost"]')
        self._charge(cost)
        # a float, since vector environments keep infos in the first environment's type
        info = {**info, "cost": cost, "budget": self._budget.remaining}
        if terminated or truncated:
            info["episode_cost"] = self._episode_cost
            info["budget_kept"] = self._budget.kept
        return self._observed(observation), reward, terminated, truncated, info

    def _charge(self, cost: float) -> None:
        self._budget = self._budget.charge(cost)
        self._episode_cost += cost

    def _shown(self) -> Budget:
        """Return the budget that observations show."""
        return self._budget

    def _observed(self, observation: Any) -> Any:
        if not self._observe:
            return observation
        steps_left = max(0, self._episode_length - self._budget.step)
        return {
            "observation": observation,
            "budget": np.array([self._shown().remaining]),
            "steps_left": np.array([float(steps_left)]),
        }


def _importable_name(cost: CostFunction | str) -> CostFunction | str:
    """Return ``"module:name"`` of a function that is found there, and anything else as it is."""
    module, name = getattr(cost, "__module__", None), getattr(cost, "__qualname__", None)
    if isinstance(cost, str) or not module or not name or module == "__main__":
        return cost
    try:
        found = resolve_cost(f"{module}:{name}")
    except EnvironmentContractError:
        return cost
    return f"{module}:{name}" if found is cost else cost


def _check_episode_length(episode_length: int | None) -> None:
    if episode_length is None:
        return
    if not is_whole(episode_length) or episode_length < 1:
        raise ConfigError(
            f"episode_length must be a whole number of steps, at least 1; got {episode_length!r}"
        )


def _known_length(env: gym.Env[Any, Any], episode_length: int | None) -> int:
    """Return the longest episode, in steps.

    Raises:
        EnvironmentContractError: neither the caller nor ``env.spec`` nor the environment itself tells it.
    """
    if episode_length is not None:
        return int(episode_length)
    length = None if env.spec is None else env.spec.max_episode_steps
    if length is None and env.has_wrapper_attr("max_episode_steps"):
        length = env.get_wrapper_attr("max_episode_steps")
    if length is None:
        raise EnvironmentContractError(
            "observe=True counts down the steps that are left, but this environment has no time limit: pass "
            "episode_length=..., or make it with max_episode_steps=..."
        )
    _check_episode_length(length)
    return int(length)
