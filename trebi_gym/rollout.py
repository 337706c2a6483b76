"""The one closed loop: a policy acts in vector environments while budgets are counted and may change."""

from __future__ import annotations

import contextlib
import logging
import math
import numbers
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode

from trebi_gym.budget import Budget, check_budget
from trebi_gym.checks import check_count, check_seed, is_whole
from trebi_gym.costs import finite_cost
from trebi_gym.errors import BudgetError, EnvironmentContractError, TrebiError

Array = npt.NDArray[Any]

logger = logging.getLogger(__name__)


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


class _Checked(gym.Wrapper[Any, Any, Any, Any]):
    """Hands reward and cost of every step on as floats of Python, after checking them, and other numbers of the info too.

    A vector environment of Gymnasium keeps an info in an array of the type that the first environment gave it, so that a
    cost of 0.5 beside an integer cost of 0 would become 0. Floats are kept as float64.
    """

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return observation, _with_floats(info)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        if "cost" not in info:
            raise EnvironmentContractError(NO_COST)
        cost = finite_cost(info["cost"], source='info["cost"]')
        earned = finite_cost(reward, source="the reward of a step")
        return observation, earned, bool(terminated), bool(truncated), {**_with_floats(info), "cost": cost}


def _with_floats(info: dict[str, Any]) -> dict[str, Any]:
    """Return an info whose numbers, also those in arrays, are float64; booleans and pictures of bytes stay as they are."""
    return {key: _as_float(value) for key, value in info.items()}


def _as_float(value: Any) -> Any:
    if isinstance(value, dict):
        return _with_floats(value)
    if isinstance(value, np.ndarray):
        return value.astype(np.float64) if value.dtype.kind in "iuf" and value.dtype != np.uint8 else value
    if isinstance(value, bool):
        return value
    if isinstance(value, numbers.Real):
        try:
            return float(value)
        except OverflowError as error:
            raise EnvironmentContractError(
                "the environment put a whole number into a step's info that is beyond the largest float; scale it"
            ) from error
    return value


class _Processes(gym.vector.VectorWrapper[Any, Any, Any, Any, Any]):
    """Environments in processes of their own, whose end is told as an error of ours."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        with self._watched():
            return self.env.reset(**kwargs)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        with self._watched():
            return self.env.step(actions)

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            processes = self.env.unwrapped.processes  # type: ignore[attr-defined]
            for process in processes:
                process.terminate()
            for process in processes:
                process.join()
            for pipe in self.env.unwrapped.parent_pipes:  # type: ignore[attr-defined]
                if pipe is not None:
                    pipe.close()
            self.env.unwrapped.closed = True  # closing would wait for answers that do not come
            raise TrebiError(
                "the process of an environment ended by itself: the system may have stopped it for want of memory, or its "
                "simulator crashed; run fewer environments at once (n_envs), or one process (asynchronous=False)"
            ) from error


NO_COST = 'the environment put no "cost" into a step\'s info; wrap it with trebi_gym.CostWrapper(env, cost_function)'


def make_envs(
    env_id: str | gym.envs.registration.EnvSpec,
    n_envs: int,
    *,
    asynchronous: bool = False,
    episode_length: int | None = None,
    **kwargs: Any,
) -> gym.vector.VectorEnv[Any, Any, Any]:
    """Return ``n_envs`` environments that are only reset when asked to, as ``rollout`` needs them.

    Args:
        env_id: a registered environment with ``info["cost"]`` at every step.
        n_envs: how many.
        asynchronous: one process for each environment, instead of one for all; what they give is the same.
        episode_length: cut episodes off after so many steps where the environment's registration has no time limit.
        kwargs: for the environment, such as ``render_mode``.

    Raises:
        TrebiError: ``n_envs`` or ``episode_length`` is not a whole number of at least 1, or the environment needs a package
            that is not installed.
    """
    check_count(n_envs, "n_envs")
    wrappers: list[Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]] = []
    if episode_length is not None:
        length = check_count(episode_length, "episode_length")
        wrappers.append(partial(_limited, length=length))
    try:
        envs = gym.make_vec(
            env_id,
            num_envs=n_envs,
            vectorization_mode="async" if asynchronous else "sync",
            wrappers=[*wrappers, _Checked],  # type: ignore[list-item]
            vector_kwargs={"autoreset_mode": AutoresetMode.DISABLED},
            **kwargs,
        )
    except ImportError as error:
        raise TrebiError(f"the environment {env_id} cannot be made: {error}") from error
    return _Processes(envs) if asynchronous else envs


def envs_for(
    policy: Any,
    env_id: str,
    episodes: int,
    *,
    n_envs: int | None = None,
    asynchronous: bool = False,
    **kwargs: Any,
) -> tuple[gym.vector.VectorEnv[Any, Any, Any], int]:
    """Return environments in which a policy can act, and the longest episode in steps.

    An environment without a time limit is cut off at the policy's ``episode_length``, with a warning.

    Args:
        policy: what acts; checked are its ``observation_space``, ``action_space`` and ``episode_length``, where it has them.
        env_id: a registered environment with ``info["cost"]``.
        episodes: that will be run.
        n_envs: environments at once; None: as many as episodes, at most ``MOST_ENVS`` and as memory allows.
        asynchronous: one process for each environment; None for ``n_envs`` then means one for each processor core.
        kwargs: for the environment.

    Raises:
        TrebiError: a number is out of range, the spaces are not the policy's, or neither the environment nor the policy
            tells how long an episode is.
    """
    if n_envs is not None:
        check_count(n_envs, "n_envs")
    with _made(env_id, **kwargs) as env:
        _check_spaces(policy, env, env_id)
        own, learned = env_time_limit(env), getattr(policy, "episode_length", None)
    if own is None and learned is None:
        raise TrebiError(
            f"{env_id} has no time limit and the policy has no episode_length, so an episode might never end; register the "
            "environment with max_episode_steps=..."
        )
    if own is None:
        warnings.warn(
            f"{env_id} has no time limit: its episodes are cut off after {learned} steps, the length of those that the "
            "agent learned from",
            UserWarning,
            stacklevel=3,
        )
    elif learned is not None and own > learned:
        warnings.warn(
            f"episodes of {env_id} last up to {own} steps, those that the agent learned from {learned}: from step {learned} "
            "on it plans as if one step were left; make the environment with that limit, or learn from longer episodes",
            UserWarning,
            stacklevel=3,
        )
    limit = own if own is not None else int(learned)  # type: ignore[arg-type]
    wanted = min(episodes, MOST_ENVS)
    if n_envs is None and asynchronous:
        n_envs = min(wanted, os.cpu_count() or 1)
    elif n_envs is None:
        n_envs = _fitting(env_id, wanted, kwargs)
    return make_envs(env_id, n_envs, asynchronous=asynchronous, episode_length=limit, **kwargs), limit


MOST_ENVS = 100
"""Environments at once, if not said otherwise."""

FEW_ENVS = 8
"""So many are made without measuring what they take."""

MEMORY_SHARE = 0.25
"""Of the memory that is available, what environments may take if their number is not said."""


def _fitting(env_id: str, wanted: int, kwargs: dict[str, Any]) -> int:
    """Return how many environments are made, by what the first ones take of the memory."""
    available = _available_memory()
    if wanted <= FEW_ENVS or available is None:
        return wanted
    with contextlib.ExitStack() as stack:
        taken = []
        for _ in range(3):
            env = stack.enter_context(_made(env_id, **kwargs))
            env.reset(seed=0)
            taken.append(_resident_memory())
    # the first one also loads libraries, which all share
    each = max(taken[2] - taken[0], 0) / 2
    fitting = max(1, int(MEMORY_SHARE * available / each)) if each > 0 else wanted
    if fitting < wanted:
        logger.warning(
            "%d environments at once instead of %d: each takes %.0f MB, and a quarter of the available memory is %.1f GB; "
            "n_envs (--n-envs) sets another number",
            fitting,
            wanted,
            each / 1e6,
            MEMORY_SHARE * available / 1e9,
        )
    return min(fitting, wanted)


def _resident_memory() -> int:
    """Return how many bytes this process holds in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _available_memory() -> int | None:
    """Return how many bytes can be had without swapping; None where the system does not tell (it is not Linux)."""
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":", 1) for line in file)
        available = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    with contextlib.suppress(OSError, ValueError):  # of a container; "max" is no number
        with open("/sys/fs/cgroup/memory.max") as file:
            most = int(file.read())
        with open("/sys/fs/cgroup/memory.current") as file:
            available = min(available, most - int(file.read()))
    return max(available, 0)


@contextlib.contextmanager
def _made(env_id: str, **kwargs: Any) -> Iterator[gym.Env[Any, Any]]:
    """Make one environment, and close it at the end.

    Raises:
        TrebiError: it needs a package that is not installed.
    """
    try:
        env = gym.make(env_id, **kwargs)
    except ImportError as error:
        raise TrebiError(f"the environment {env_id} cannot be made: {error}") from error
    with contextlib.closing(env):
        yield env


def _limited(env: gym.Env[Any, Any], length: int) -> gym.Env[Any, Any]:
    """Return the environment with a time limit, where its registration has given it none."""
    if env.spec is not None and env.spec.max_episode_steps is not None:
        return env
    return gym.wrappers.TimeLimit(env, env_time_limit(env) or length)


def env_time_limit(env: gym.Env[Any, Any]) -> int | None:
    """Return an environment's time limit in steps, as its spec or its own ``max_episode_steps`` tells; None for none."""
    limit: Any = None if env.spec is None else env.spec.max_episode_steps
    if limit is None and env.has_wrapper_attr("max_episode_steps"):
        limit = env.get_wrapper_attr("max_episode_steps")
    return int(limit) if is_whole(limit) and limit >= 1 else None


def _check_spaces(policy: Any, env: gym.Env[Any, Any], env_id: Any) -> None:
    """Raise if a policy that has spaces acts in others than the environment has.

    Raises:
        TrebiError: their shapes differ.
    """
    own = [
        getattr(getattr(policy, name, None), "shape", None) for name in ("observation_space", "action_space")
    ]
    found = [env.observation_space.shape, env.action_space.shape]
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
        EnvironmentContractError: a step's info holds no finite ``"cost"``, or the environments reset themselves.
        TrebiError: a seed that is none, or fewer seeds than episodes; or the process of an environment ended.
    """
    n_envs = envs.num_envs
    mode = envs.metadata.get("autoreset_mode")
    if mode is None:
        raise EnvironmentContractError(
            'the environments do not say whether they reset themselves (metadata["autoreset_mode"]), and a step of a reset '
            "would be counted; make them with trebi_gym.rollout.make_envs, or set it to AutoresetMode.DISABLED"
        )
    if mode != AutoresetMode.DISABLED:
        raise EnvironmentContractError(
            f"the environments reset themselves ({mode}), which puts a step that is none after each episode; make them with "
            "trebi_gym.rollout.make_envs"
        )
    seeds_of = _seeds(seed)
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
                own = seeds_of(job[0])
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
        costs = _costs(envs, infos, active)
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


def _seeds(seed: int | Sequence[int]) -> Callable[[int], int]:
    """Return the function that gives each episode its environment's seed.

    Raises:
        TrebiError: a seed is not a whole number, negative, or too large; or, when it is asked for, missing.
    """
    if (
        not isinstance(seed, (Sequence, np.ndarray))
        or getattr(seed, "ndim", 1) == 0
        or isinstance(seed, (str, bytes))
    ):
        first = check_seed(seed)
        return lambda episode: first + episode
    listed = [check_seed(value) for value in seed]

    def of(episode: int) -> int:
        if episode >= len(listed):
            raise TrebiError(
                f"there are {len(listed)} seeds and more episodes; give one seed for each budget, or the first one only"
            )
        return listed[episode]

    return of


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


def _costs(
    envs: gym.vector.VectorEnv[Any, Any, Any], infos: dict[str, Any], active: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """Return the cost (E,) of each environment's step.

    Raises:
        EnvironmentContractError: a running environment gave none, or none that can be trusted.
    """
    if "cost" not in infos or not np.all(np.asarray(infos.get("_cost", True)) | ~active):
        raise EnvironmentContractError(NO_COST)
    given = np.asarray(infos["cost"])
    of_gymnasium = isinstance(envs.unwrapped, (gym.vector.SyncVectorEnv, gym.vector.AsyncVectorEnv))
    if given.dtype.kind not in "fiub" or (of_gymnasium and given.dtype != np.float64):
        raise EnvironmentContractError(
            f'the costs of the environments arrive as {given.dtype}, the type of the first environment\'s info["cost"], so '
            "other costs may have been cut to it; make the environments with trebi_gym.rollout.make_envs"
        )
    if given.shape != active.shape:
        raise EnvironmentContractError(
            f'info["cost"] must hold one number for each of {len(active)} environments, of shape {active.shape}; got shape '
            f"{given.shape}"
        )
    costs = given.astype(np.float64)
    if not np.all(np.isfinite(costs[active])):
        raise EnvironmentContractError(f'info["cost"] must be finite; got {costs[active]}')
    return costs
