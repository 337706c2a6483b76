"""The one closed loop: a policy acts in vector environments while budgets are counted and may change."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode

from trebi_gym.budget import Budget, check_budget, is_whole
from trebi_gym.errors import BudgetError, EnvironmentContractError, TrebiError

Array = npt.NDArray[Any]


class Policy(Protocol):
    """What acts: ``TREBIAgent``, or anything with its ``predict``."""

    def predict(
        self,
        observation: Array,
        state: Any = None,
        episode_start: Array | None = None,
        deterministic: bool = False,
        *,
        budget: Sequence[Budget],
    ) -> tuple[Array, Any]:
        """Return actions (E, A) and the state to hand back at the next step.

        E is the number of environments. It falls towards the end of a rollout if the state has a method
        ``of_rows(rows)``, which returns the state of some of them only: ended ones are then left out.
        """
        ...


@dataclass(frozen=True)
class BudgetChange:
    """At ``step`` what is left of the budget becomes ``remaining``, or ``factor`` times what it was.

    Raises:
        BudgetError: not exactly one of the two is given, or a value is out of range.
    """

    step: int
    remaining: float | None = None
    factor: float | None = None

    def __post_init__(self) -> None:
        if (self.remaining is None) == (self.factor is None):
            raise BudgetError(
                "a budget change needs exactly one of remaining and factor; "
                f"got remaining={self.remaining!r}, factor={self.factor!r}"
            )
        if not is_whole(self.step) or self.step < 0:
            raise BudgetError(f"a budget change needs a step of at least 0; got {self.step!r}")
        object.__setattr__(self, "step", int(self.step))
        check_budget(self.remaining if self.factor is None else self.factor, name="a budget change")

    def apply(self, budget: Budget) -> Budget:
        """Return the changed budget; one that is already overspent is not made better by a factor."""
        if self.factor is None:
            return budget.with_remaining(float(self.remaining or 0.0))
        return (
            budget.with_remaining(self.factor * max(budget.remaining, 0.0))
            if budget.remaining > 0
            else budget
        )


@dataclass(frozen=True)
class RolloutStep:
    """One step of E environments. Rows where ``active`` is False are idle and mean nothing."""

    active: npt.NDArray[np.bool_]  # (E,)
    episode: npt.NDArray[np.int64]  # (E,) which of the budgets this environment is at
    step: npt.NDArray[np.int64]  # (E,) step within the episode
    observations: Array  # (E, O) before the action
    actions: Array  # (E, A) as executed
    rewards: npt.NDArray[np.float64]  # (E,)
    costs: npt.NDArray[np.float64]  # (E,)
    next_observations: Array  # (E, O) after the action, also at the end of an episode
    terminated: npt.NDArray[np.bool_]  # (E,)
    truncated: npt.NDArray[np.bool_]  # (E,)
    budgets: tuple[Budget, ...]  # E, before the action, a change at this step included
    budgets_after: tuple[Budget, ...]  # E, with this step's cost charged
    policy_state: Any = None  # what the policy returned beside the actions
    policy_rows: npt.NDArray[np.int64] | None = (
        None  # environments that the policy was asked for, in its state's order
    )
    changed: npt.NDArray[np.bool_] | None = None  # (E,) whether the budget was changed right before this step

    @property
    def done(self) -> npt.NDArray[np.bool_]:
        """(E,) episodes that ended with this step."""
        ended: npt.NDArray[np.bool_] = self.active & (self.terminated | self.truncated)
        return ended


def make_envs(
    env_id: str | gym.envs.registration.EnvSpec, n_envs: int, **kwargs: Any
) -> gym.vector.VectorEnv[Any, Any, Any]:
    """Return ``n_envs`` environments in one process that are only reset when asked to, as ``rollout`` needs them."""
    return gym.make_vec(
        env_id,
        num_envs=n_envs,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.DISABLED},
        **kwargs,
    )


def check_spaces(policy: Any, envs: gym.vector.VectorEnv[Any, Any, Any], env_id: Any) -> None:
    """Raise if a policy that has spaces acts in others than these environments have.

    Raises:
        TrebiError: their shapes differ.
    """
    own = [
        getattr(getattr(policy, name, None), "shape", None) for name in ("observation_space", "action_space")
    ]
    found = [envs.single_observation_space.shape, envs.single_action_space.shape]
    if None not in own and own != found:
        raise TrebiError(
            f"the agent's spaces have shapes {own[0]} and {own[1]} for observations and actions; {env_id} has {found[0]} "
            f"and {found[1]}; name the environment that the agent is for"
        )


def rollout(
    policy: Policy,
    envs: gym.vector.VectorEnv[Any, Any, Any],
    *,
    budgets: Iterable[float | Budget],
    schedule: Sequence[BudgetChange] | Callable[[int, float], Sequence[BudgetChange]] = (),
    seed: int | Sequence[int] = 0,
    deterministic: bool = False,
) -> Iterator[RolloutStep]:
    """Run one episode for every budget, as many at once as there are environments.

    Args:
        policy: what acts; it is handed a ``Budget`` for every environment.
        envs: environments from ``make_envs`` with ``info["cost"]``; they are not closed here.
        budgets: what each episode may cost; may be endless, since a generator stops where its reader does.
        schedule: changes in mid-episode, the same for every episode, or a function that gives those of an episode from its
            environment's seed and its first budget.
        seed: the environment's seed of every episode, or the first one's, from which the others count on.
        deterministic: handed to ``policy.predict``.

    Yields:
        A ``RolloutStep`` after every step of the environments.

    Raises:
        EnvironmentContractError: a step's info holds no finite ``"cost"``.
    """
    n_envs = envs.num_envs
    jobs = enumerate(b if isinstance(b, Budget) else Budget(check_budget(b)) for b in budgets)
    idle = Budget(math.inf)  # with the discount of the jobs, since a policy may know budgets of that one only
    counted: list[Budget] = [idle] * n_envs
    episode = np.full(n_envs, -1, dtype=np.int64)
    active = np.zeros(n_envs, dtype=np.bool_)
    seeds: list[int | None] = [None] * n_envs
    changes: list[Sequence[BudgetChange]] = [()] * n_envs
    ready = np.ones(n_envs, dtype=np.bool_)  # environments that wait for an episode
    observations: Array | None = None
    state: Any = None
    episode_start = np.ones(n_envs, dtype=np.bool_)
    rows = np.arange(n_envs)  # environments that the policy is asked for
    exhausted = False  # no more episodes to begin

    while True:
        for index in np.flatnonzero(ready):
            job = next(jobs, None)
            active[index] = job is not None
            exhausted = exhausted or job is None
            seeds[index] = None
            counted[index] = idle
            if job is not None:
                episode[index], counted[index] = job
                idle = Budget(math.inf, counted[index].discount)
                own = int(seed) + job[0] if isinstance(seed, numbers.Integral) else int(seed[job[0]])  # type: ignore[index]
                seeds[index] = own
                changes[index] = schedule(own, counted[index].total) if callable(schedule) else schedule
        if not active.any():
            return
        if ready.any():
            # idle environments are reset too: they are stepped along and may not stay at an end
            options = None if ready.all() else {"reset_mask": ready.copy()}
            observations, _ = envs.reset(seed=list(seeds), options=options)  # type: ignore[arg-type]
            episode_start = ready.copy()
        assert observations is not None
        changed = np.zeros(n_envs, dtype=np.bool_)
        for index in np.flatnonzero(active):
            for change in changes[index]:
                if change.step == counted[index].step:
                    counted[index], changed[index] = change.apply(counted[index]), True
        before = tuple(counted)
        rows, state = _still_needed(rows, active, state) if exhausted else (rows, state)
        chosen, state = policy.predict(
            observations[rows],
            state,
            episode_start[rows],
            deterministic,
            budget=tuple(before[index] for index in rows),
        )
        actions = _for_every(np.asarray(chosen), rows, n_envs)
        next_observations, rewards, terminated, truncated, infos = envs.step(actions)
        costs = _costs(infos, active)
        for index in np.flatnonzero(active):
            counted[index] = counted[index].charge(float(costs[index]))
        result = RolloutStep(
            active=active.copy(),
            episode=episode.copy(),
            step=np.array([budget.step for budget in before], dtype=np.int64),
            observations=observations,
            actions=actions,
            rewards=np.array(rewards, dtype=np.float64),
            costs=costs,
            next_observations=next_observations,
            terminated=np.array(terminated, dtype=np.bool_),
            truncated=np.array(truncated, dtype=np.bool_),
            budgets=before,
            budgets_after=tuple(counted),
            policy_state=state,
            policy_rows=rows,
            changed=changed,
        )
        yield result
        observations = next_observations
        ready = result.terminated | result.truncated
        episode_start = np.zeros(n_envs, dtype=np.bool_)


def _still_needed(rows: npt.NDArray[np.int64], active: npt.NDArray[np.bool_], state: Any) -> tuple[Any, Any]:
    """Leave idle environments out once they are half of those that the policy is asked for, if its state can follow.

    Without this, the last long episode would be planned for along with all that ended before it.
    """
    needed = active[rows]
    if 2 * needed.sum() > len(rows) or not hasattr(state, "of_rows"):
        return rows, state
    kept = np.flatnonzero(needed)
    return rows[kept], state.of_rows(kept)


def _for_every(chosen: Array, rows: npt.NDArray[np.int64], n_envs: int) -> Array:
    """Return actions (E, A): the chosen ones in their rows, and for idle environments any that is allowed."""
    if len(rows) == n_envs:
        return chosen
    actions = np.repeat(chosen[:1], n_envs, axis=0)
    actions[rows] = chosen
    return actions


def _costs(infos: dict[str, Any], active: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    if "cost" not in infos or not np.all(np.asarray(infos.get("_cost", True)) | ~active):
        raise EnvironmentContractError(
            'the environment put no "cost" into a step\'s info; wrap it with trebi_gym.CostWrapper(env, cost_function)'
        )
    costs = np.asarray(infos["cost"], dtype=np.float64)
    if not np.all(np.isfinite(costs[active])):
        raise EnvironmentContractError(f'info["cost"] must be finite; got {costs[active]}')
    return costs
