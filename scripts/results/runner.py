"""The stages of ``make results`` for one task: its data, its agents, their calibration, the cells, and the timing."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scripts.results.cells import cell_path, part_path, same_episodes, settle
from scripts.results.plan import (
    FIRST_SEED,
    METHODS,
    MOVED_METHOD,
    MOVED_RATIO,
    MOVED_SEEDS,
    RATIOS,
    RISKS,
    SEED_STEP,
    TASKS,
    TIMED_RATIO,
    Kind,
    Request,
    agent_name,
    config_of,
    episodes_of,
    grid,
)
from trebi_gym.agents import TREBIAgent
from trebi_gym.agents.baselines.cloning import TRAINING, BudgetCloning, within_budget
from trebi_gym.agents.calibration.statistics import AnyCalibration
from trebi_gym.agents.config import TREBIConfig
from trebi_gym.agents.planning.policies import OriginalAccounting
from trebi_gym.agents.serializable import plain
from trebi_gym.commands.common import learn_with_checkpoints, partial_file
from trebi_gym.commands.generate import generate
from trebi_gym.datasets import EpisodeDataset, load, resolve
from trebi_gym.datasets.generation.resumable import has_parts
from trebi_gym.datasets.recipes import maximum_budget, user_data_folder
from trebi_gym.errors import CalibrationError, ConfigError, DatasetError
from trebi_gym.evaluation.evaluate import evaluate_budgets
from trebi_gym.evaluation.records import EpisodeRecord, Evaluation
from trebi_gym.evaluation.schedules import SCHEDULES, BudgetSchedule, schedule_options
from trebi_gym.rollout import Policy, envs_for, rollout


@dataclass(frozen=True)
class Expected:
    """What an agent's file must hold."""

    config: TREBIConfig
    seed: int
    episodes: int
    """Of the data that it learned from."""
    steps: int
    """Of these data."""
    calibration: tuple[str, int] | None = None
    """Environment, and episodes of each planned budget; None where it need not be calibrated."""
    planned: list[float] | None = None
    """Planned budgets of the calibration; None for any."""
    weights: str | None = None
    """Mark of the weights; None for any."""


def load_agent(path: Path, expected: Expected, device: str) -> tuple[TREBIAgent, str]:
    """Load an agent, set to plan as its configuration says, and return it with a mark of its weights.

    How it plans is not learned: the configuration's planner is measured, whatever it was when the agent learned. A
    calibration holds for one planner, which therefore must be that one.

    Raises:
        ConfigError: it is not there, or is another one than its name says.
    """
    if not path.is_file():
        stage = "learn" if expected.calibration is None else "calibrate"
        raise ConfigError(f"{path} is not there; run --stages {stage}")
    agent = TREBIAgent.load(path, device=device)
    pairs: dict[str, tuple[Any, Any]] = {
        "configuration": _compared(plain(agent.config), plain(expected.config)),
        "seed": (agent.seed, expected.seed),
        "episodes in its data": (agent.learned_from.get("episodes"), expected.episodes),
        "steps in its data": (agent.learned_from.get("steps"), expected.steps),
    }
    mark = agent.fingerprint()
    if expected.calibration is not None:
        found = [getattr(agent.calibration, name, None) for name in ("env_id", "episodes")]
        names = ("environment of its calibration", "episodes of its calibration")
        pairs |= dict(zip(names, zip(found, expected.calibration, strict=True), strict=True))
        pairs["planner of its calibration"] = (plain(agent.config.planner), plain(expected.config.planner))
    if expected.planned is not None:
        found = list(getattr(agent.calibration, "planned", ()))
        pairs["planned budgets of its calibration"] = (found, expected.planned)
    if expected.weights is not None:
        pairs["weights"] = (mark, expected.weights)
    wrong = [f"{name}: {found}, not {asked}" for name, (found, asked) in pairs.items() if found != asked]
    if wrong:
        raise ConfigError(f"{path} is not this task's agent ({'; '.join(wrong)}); move it away")
    return agent.set_planner(**vars(expected.config.planner)), mark


def counted_as_original(agent: TREBIAgent) -> Policy:
    """Return an agent of the paper's as a policy whose undiscounted budgets are counted as the original does."""
    assert agent.task is not None
    return OriginalAccounting(agent.with_risk(None), agent.task.budget_factor, agent.config.cost_discount)


def _compared(found: dict[str, Any], asked: dict[str, Any]) -> tuple[Any, Any]:
    """Return those fields of two configurations in which they differ, but for the planner, which is not learned."""
    differing = [name for name in asked if name != "planner" and found.get(name) != asked[name]]
    return {name: found.get(name) for name in differing}, {name: asked[name] for name in differing}


WARM_UP = 2
"""Plans before those that are timed."""


def described(dataset: EpisodeDataset) -> dict[str, Any]:
    """Return what the page says of a task's data; plain JSON."""
    maximum = maximum_budget(dataset)
    within = {ratio: len(within_budget(dataset, ratio * maximum.value)) for ratio in RATIOS}
    rate = dataset.metadata.get("steps_per_second")
    return {
        "name": dataset.metadata.get("name"),
        "algorithm": dataset.metadata.get("algorithm"),
        "steps": dataset.n_steps,
        "episodes": len(dataset),
        "maximum_budget": maximum.value,
        "rule": maximum.rule,
        "returns": [float(dataset.episode_returns.min()), float(dataset.episode_returns.max())],
        "costs": [float(dataset.episode_costs.min()), float(dataset.episode_costs.max())],
        "sides": {f"{ratio:g}": [count, len(dataset) - count] for ratio, count in within.items()},
        "build_seconds": dataset.n_steps / float(rate) if rate else None,
    }


def best_episode(dataset: EpisodeDataset, budget: float) -> Evaluation:
    """Return the episode of the greatest return among those within the budget, of which there must be one."""
    rows = within_budget(dataset, budget)
    row = int(rows[dataset.episode_returns[rows].argmax()])
    cost = float(dataset.episode_costs[row])
    record = EpisodeRecord(
        budget=budget,
        seed=row,
        episode_return=float(dataset.episode_returns[row]),
        cost=cost,
        length=int(dataset.lengths[row]),
        remaining=budget - cost,
        kept=True,
    )
    return Evaluation((record,), {"seeds": "the episode's place in the data"})


def plans_for(calibration: AnyCalibration, budget: float, risk: float) -> dict[str, Any]:
    """Return what a calibrated agent plans an episode with this budget for, null if infinite, and whether that is certified.

    Raises:
        CalibrationError: so small a risk needs more episodes.
    """
    planned, certified = calibration.planned_for(np.array([budget]), risk)
    told = float(planned[0]) if np.isfinite(planned[0]) else None
    return {"planned": told, "certified": bool(certified[0])}


def moved_schedule(name: str, dataset: EpisodeDataset) -> BudgetSchedule:
    """Return a schedule for a data set's task.

    Where episodes end early, the steps are drawn within the median episode of the data: most that are drawn within the time
    limit would never be reached.
    """
    median, longest = int(np.median(dataset.lengths)), int(dataset.lengths.max())
    drawn = "within" in schedule_options(name)
    return BudgetSchedule(name, {"within": median} if drawn and median < longest else {})


def as_plain(evaluation: Evaluation) -> dict[str, Any]:
    """Return an evaluation as plain JSON."""
    document: dict[str, Any] = json.loads(evaluation.to_json())
    return document


def time_decisions(
    policy: Policy, env_id: str, budget: float, plans: int, *, interval: int = 1
) -> list[float]:
    """Return the seconds of a decision in a closed loop with one environment, for each of so many plans, after a warm-up.

    Args:
        policy: what decides.
        env_id: of the environment.
        budget: of every episode.
        plans: to time.
        interval: decisions of which only the first makes a plan; what they take together is spread over them.
    """
    clock = _Clock(policy)
    envs, _ = envs_for(policy, env_id, 1)
    try:
        steps = rollout(clock, envs, budgets=itertools.repeat(budget), seed=FIRST_SEED)
        for _ in itertools.islice(steps, (WARM_UP + plans) * interval):
            pass
    finally:
        envs.close()
    groups = np.reshape(clock.seconds, (WARM_UP + plans, interval))
    return list(map(float, groups.mean(axis=1)[WARM_UP:]))


def mark_of(dataset: EpisodeDataset) -> str:
    """Return a mark of a data set's episodes."""
    arrays = (dataset.observations, dataset.actions, dataset.rewards, dataset.costs, dataset.lengths)
    return digest(*(np.ascontiguousarray(array).tobytes() for array in arrays))


def digest(*contents: bytes) -> str:
    """Return the SHA-256 hash of what is given, as text."""
    found = hashlib.sha256()
    for content in contents:
        found.update(content)
    return found.hexdigest()


class _Clock:
    """Notes what every decision takes."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.seconds: list[float] = []

    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        started = time.perf_counter()
        result = self._policy.predict(observation, *args, **kwargs)
        self.seconds.append(time.perf_counter() - started)
        return result


class Work:
    """One task's stages; each keeps what is there already."""

    def __init__(self, name: str, request: Request) -> None:
        self.name, self.asked, self.task = name, request, TASKS[name]
        self.agent = cache(self._agent)

    def data(self) -> None:
        """Build the data set if there is none, and note what the page says of it."""
        try:
            resolve(self.asked.source)
        except DatasetError:
            if self.asked.source != self.task.dataset:
                raise
            target = user_data_folder() / f"{self.asked.source}.hdf5"
            resume = has_parts(target.with_name(f"{target.stem}.parts"))
            generate(
                self.task.env_id,
                "medium-replay",
                self.task.total_step,
                output=target,
                algo=self.task.algo,
                resume=resume,
            )
        request = {"source": self.asked.source, "data": self.data_mark}
        self._settle(self._part("data"), request, lambda: described(self.dataset))

    def learn(self) -> None:
        """Learn every agent that is not there yet."""
        for kind, seed in self._needed():
            path = self.asked.agents / agent_name(self.name, kind, seed)
            if path.is_file():
                print(f"  {path} is there already and taken", flush=True)
                continue
            config = config_of(self.task, kind)

            def learned(kind: Kind = kind, seed: int = seed, path: Path = path) -> dict[str, Any]:
                resumed = partial_file(path).is_file()
                agent = TREBIAgent(config=config_of(self.task, kind), seed=seed, device=self.asked.device)
                learn_with_checkpoints(
                    agent, agent.learn, self.dataset, path, total_steps=None, every=1_000, resume=resumed
                )
                return {"resumed": resumed}

            request = {"config": plain(config), "seed": seed, "data": self.data_mark}
            self._settle(self._part(f"learn-{path.stem}"), request, learned, anew=True)

    def calibrate(self) -> None:
        """Calibrate the default's agents in closed loop, for all risks at once."""
        risky = any(METHODS[key].risk is not None for key in self.asked.methods)
        planned = self.task.planned(self.maximum) if risky else None
        for kind, seed in self._needed() if risky else ():
            if kind != "default":
                continue
            target = self.asked.agents / agent_name(self.name, kind, seed, calibrated=True)
            if target.is_file():
                self.agent("default", seed, True)
                print(f"  {target} is there already and taken", flush=True)
                continue
            agent, mark = self.agent("default", seed)

            def calibrated(agent: TREBIAgent = agent, target: Path = target) -> dict[str, Any]:
                keep = target.with_name(f"{target.stem}.calibration.json")
                resumed = keep.is_file()
                copied = agent.with_risk(None)  # what was learned stays as it was
                copied.calibrate(
                    self.task.env_id,
                    risk=RISKS,
                    budgets=planned,
                    episodes=self.asked.calibration_episodes,
                    keep=keep,
                )
                copied.save(target)
                keep.unlink(missing_ok=True)
                return {"resumed": resumed}

            episodes = self.asked.calibration_episodes
            request = {"models": mark, "planner": plain(agent.config.planner), "episodes": episodes}
            request |= {} if planned is None else {"planned": planned}
            self._settle(self._part(f"calibrate-{target.stem}"), request, calibrated, anew=True)

    def evaluate(self) -> None:
        """Run the episodes of every cell that is not there yet."""
        for key in self._methods():
            for seed, ratio in grid(self.name, key):
                if seed in self.asked.seeds or METHODS[key].kind == "data":
                    self._evaluate(key, seed, ratio)

    def _evaluate(self, key: str, seed: int, ratio: float) -> None:
        request = self._request(key, seed, ratio)
        request |= {"episodes": episodes_of(key, self.asked.episodes)}
        request |= {"first_seed": FIRST_SEED + SEED_STEP * seed, "env_id": self.task.env_id}
        path = cell_path(self.asked.output, self.name, key, seed, ratio)
        self._settle(path, request, lambda: self._episodes(key, request))

    def _request(self, key: str, seed: int, ratio: float) -> dict[str, Any]:
        """Return what an evaluated cell's policy depends on."""
        method = METHODS[key]
        request: dict[str, Any] = {"method": key, "seed": seed, "ratio": ratio}
        request["budget"] = ratio * self.maximum
        if method.kind == "cloning":
            return request | {"data": self.data_mark, "training": plain(TRAINING)}
        if method.kind == "data":
            return request | {"data": self.data_mark}
        agent, mark = self.agent(method.kind, seed, method.risk is not None)
        calibration = None
        if method.risk is not None:
            calibration = digest(json.dumps(agent.calibration_for(method.risk).to_dict()).encode())
        request |= {"risk": method.risk, "models": mark, "calibration": calibration}
        accounting = {} if method.kind == "default" else {"accounting": "original"}
        return request | {"config": agent.config.to_dict()} | accounting

    def _episodes(self, key: str, request: dict[str, Any]) -> dict[str, Any]:
        """Return what a cell finds: its episodes, whether its budget is certified, or why there are none."""
        method, budget, seed = METHODS[key], request["budget"], request["seed"]
        found: dict[str, Any] = {"evaluation": None, "certified": None, "refused": None}
        if not method.learns_agent and len(within_budget(self.dataset, budget)) == 0:
            return found | {"refused": "no episode in the data is within the budget"}
        if method.kind == "data":
            return found | {"evaluation": as_plain(best_episode(self.dataset, budget))}
        if method.risk is not None:
            calibration = self.agent("default", seed, True)[0].calibration_for(method.risk)
            try:
                told = plans_for(calibration, budget, method.risk)
            except CalibrationError as error:
                return found | {"refused": str(error)}
            found |= told | {"evaluation": same_episodes(self.asked.output, self.name, request, told)}
            if found["evaluation"] is not None:
                return found
        policy, episodes = self._policy(key, seed, budget), request["episodes"]
        evaluation = evaluate_budgets(
            policy, self.task.env_id, budgets=[budget], episodes=episodes, seed=request["first_seed"]
        )
        return found | {"evaluation": as_plain(evaluation)}

    def schedules(self) -> None:
        """Run episodes whose budgets move, of every kind of schedule; see ``moved_schedule``."""
        if MOVED_METHOD not in self.asked.methods:
            return
        for name in SCHEDULES:
            schedule = moved_schedule(name, self.dataset)
            for seed in self.asked.seeds:
                request = self._request(MOVED_METHOD, seed, MOVED_RATIO) | {"schedule": str(schedule)}
                request |= {"episodes": self.asked.episodes, "env_id": self.task.env_id}
                request |= {"first_seed": FIRST_SEED + MOVED_SEEDS + SEED_STEP * seed}

                def moved(
                    request: dict[str, Any] = request, seed: int = seed, schedule: BudgetSchedule = schedule
                ) -> dict[str, Any]:
                    found = evaluate_budgets(
                        self._policy(MOVED_METHOD, seed, request["budget"]),
                        self.task.env_id,
                        budgets=[request["budget"]],
                        episodes=request["episodes"],
                        seed=request["first_seed"],
                        schedule=schedule,
                    )
                    return {"evaluation": as_plain(found)}

                self._settle(self._part(f"moved-{name}-{seed}"), request, moved)

    def _policy(self, key: str, seed: int, budget: float, *, updates: int | None = None) -> Policy:
        method = METHODS[key]
        if method.kind == "cloning":
            training = replace(TRAINING, steps=updates or TRAINING.steps)
            cloning = BudgetCloning(budget, seed=seed, device=self.asked.device, training=training)
            return cloning.learn(self.dataset)
        agent, _ = self.agent(method.kind, seed, method.risk is not None)
        return agent.with_risk(method.risk) if method.kind == "default" else counted_as_original(agent)

    def time(self) -> None:
        """Time decisions, with one environment and one thread."""
        for key in self._methods():
            seeds = [seed for seed, ratio in grid(self.name, key) if ratio == TIMED_RATIO]
            seed = next((seed for seed in seeds if seed in self.asked.seeds), None)
            if METHODS[key].kind == "data" or seed is None:
                continue
            request = self._request(key, seed, TIMED_RATIO) | {"decisions": self.asked.decisions}

            def timed(key: str = key, seed: int = seed, budget: float = request["budget"]) -> dict[str, Any]:
                threads, load = torch.get_num_threads(), os.getloadavg()[0]
                policy = self._policy(key, seed, budget, updates=1)
                method, interval = METHODS[key], 1
                if method.learns_agent:
                    interval = config_of(self.task, method.kind).planner.control_interval
                torch.set_num_threads(1)
                try:
                    seconds = time_decisions(
                        policy, self.task.env_id, budget, self.asked.decisions, interval=interval
                    )
                finally:
                    torch.set_num_threads(threads)
                median = 1000 * statistics.median(seconds)
                return {"milliseconds": median, "slowest": 1000 * max(seconds), "load": load}

            self._settle(self._part(f"time-{key}"), request, timed)

    @cached_property
    def dataset(self) -> EpisodeDataset:
        """The task's episodes."""
        dataset = load(self.asked.source)
        if dataset.n_steps < self.task.least_steps:
            raise DatasetError(
                f"{self.name} is measured on at least {self.task.least_steps} steps; {self.asked.source} has "
                f"{dataset.n_steps}"
            )
        return dataset

    @cached_property
    def data_mark(self) -> str:
        """A mark of the task's episodes."""
        return mark_of(self.dataset)

    @cached_property
    def maximum(self) -> float:
        """The budget at ratio 1."""
        return maximum_budget(self.dataset).value

    def _methods(self) -> Iterator[str]:
        for key in self.asked.methods:
            if METHODS[key].kind == "paper" and not self.asked.device.startswith("cuda"):
                print(f"  {METHODS[key].label}: needs a GPU, left out", flush=True)
            else:
                yield key

    def _needed(self) -> list[tuple[Kind, int]]:
        """Return the agents that the methods act by."""
        pairs = [
            (METHODS[key].kind, seed)
            for key in self._methods()
            if METHODS[key].learns_agent
            for seed, _ in grid(self.name, key)
            if seed in self.asked.seeds
        ]
        return list(dict.fromkeys(pairs))

    def _agent(self, kind: Kind, seed: int, calibrated: bool = False) -> tuple[TREBIAgent, str]:
        """Load an agent, and return it with a mark of its weights; see ``load_agent``."""
        path = self.asked.agents / agent_name(self.name, kind, seed, calibrated=calibrated)
        expected = Expected(
            config=config_of(self.task, kind),
            seed=seed,
            episodes=len(self.dataset),
            steps=self.dataset.n_steps,
            calibration=(self.task.env_id, self.asked.calibration_episodes) if calibrated else None,
            planned=self.task.planned(self.maximum) if calibrated else None,
            weights=self.agent(kind, seed)[1] if calibrated else None,
        )
        return load_agent(path, expected, self.asked.device)

    def _part(self, name: str) -> Path:
        return part_path(self.asked.output, self.name, name)

    def _settle(
        self, path: Path, request: dict[str, Any], make: Callable[[], dict[str, Any]], *, anew: bool = False
    ) -> None:
        done = settle(path, request, make, device=self.asked.device, redo=self.asked.redo, anew=anew)
        said = {"made": "done", "kept": "is there already", "busy": "is left to another process"}[done]
        if done != "kept":
            print(f"  {path.relative_to(self.asked.output)} {said}", flush=True)
