"""TREBIAgent: episodes in, models learned, and at every step a budget in and an action out."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.logger import Logger, configure
from torch import nn
from tqdm import tqdm

from trebi_gym.agents.agent_state import AgentState, with_data
from trebi_gym.agents.calibration.closed_loop import (
    CONFIDENCE,
    EPISODES,
    FIRST_SEED,
    in_closed_loop,
    refuse_given,
    requested_risks,
)
from trebi_gym.agents.calibration.fingerprints import fingerprint
from trebi_gym.agents.calibration.held_out import on_held_out
from trebi_gym.agents.calibration.statistics import AnyCalibration, check_calibrated
from trebi_gym.agents.config import TREBIConfig
from trebi_gym.agents.models import LEARNERS, OUTCOME, Task, parts_of
from trebi_gym.agents.planning.budgets import BudgetLike, parse_request
from trebi_gym.agents.planning.planner import Plan, PlanningPolicy, make_planner
from trebi_gym.agents.planning.state import PlanState
from trebi_gym.agents.presets import preset
from trebi_gym.agents.serializable import plain
from trebi_gym.agents.spaces import (
    agent_spaces,
    check_dataset,
    resolve_device,
    resolve_seed,
    spaces_of_dataset,
)
from trebi_gym.agents.storage import persistence
from trebi_gym.agents.torch_settings import usual_settings
from trebi_gym.agents.training.loop import (
    LearningEnv,
    LearningRun,
    MaybeCallback,
    SavedRun,
    check_request,
    one_callback,
    share_steps,
)
from trebi_gym.budget import Budget
from trebi_gym.checks import check_count, check_seed
from trebi_gym.datasets import EpisodeDataset
from trebi_gym.datasets import load as load_dataset
from trebi_gym.errors import CalibrationError, CheckpointError, ConfigError, NotLearnedError

Array = npt.NDArray[Any]
Place = str | os.PathLike[str]


class TREBIAgent:
    """Trajectory-based real-time budget inference (arXiv 2306.00603).

    A diffusion model of trajectories, guided by a critic of the reward and one of the cost to come, plans anew at
    every step; plans that are predicted to cost more than the budget are only taken when there is no other.

    Args:
        env_or_spaces: an environment, a vector environment, or a pair (observation space, action space); None takes
            the spaces from the data set when learning.
        config: a ``TREBIConfig`` or a preset's name.
        device: "auto", "cpu", "cuda", ...
        seed: of the weights, the training and the planning; None draws one.
        verbose: 1 prints the training log.
        tensorboard_log: folder for the training log, as TensorBoard events and CSV.

    Raises:
        ConfigError: the configuration cannot work, or there is no such device or seed.
        EnvironmentContractError: the spaces are not plain boxes.
    """

    def __init__(
        self,
        env_or_spaces: Any = None,
        config: TREBIConfig | str = TREBIConfig(),
        device: torch.device | str = "auto",
        seed: int | None = None,
        verbose: int = 0,
        tensorboard_log: str | os.PathLike[str] | None = None,
    ) -> None:
        found = (None, None) if env_or_spaces is None else agent_spaces(env_or_spaces)
        self._state = AgentState(
            config=preset(config),
            seed=resolve_seed(seed),
            observation_space=found[0],
            action_space=found[1],
        )
        self.device = resolve_device(device)
        self.verbose = verbose
        self.tensorboard_log = tensorboard_log
        self.num_timesteps = 0
        """Optimiser steps of the last or running ``learn``, as Stable-Baselines3's callbacks expect."""
        self._env = env_or_spaces if hasattr(env_or_spaces, "step") else None
        self._generator = torch.Generator(device=self.device)
        self.set_random_seed(self.seed)
        self._run: LearningRun | None = None  # that has not ended
        self._is_learning = False
        self._policy: PlanningPolicy | None = None
        self._fingerprint: str | None = None
        self._logger: Logger | None = None

    @property
    def state(self) -> AgentState:
        """All that the agent knows, as one value; finished models of a running ``learn`` included."""
        return replace(self._state, models=self.models)

    @property
    def config(self) -> TREBIConfig:
        """The configuration; ``set_planner`` changes how decisions are made."""
        return self._state.config

    @property
    def seed(self) -> int:
        """The seed of the weights, the training and the planning."""
        return self._state.seed

    @property
    def observation_space(self) -> gym.spaces.Box | None:
        """(O,); None before anything is learned, where nothing told it."""
        return self._state.observation_space

    @property
    def action_space(self) -> gym.spaces.Box | None:
        """(A,); None before anything is learned, where nothing told it."""
        return self._state.action_space

    @property
    def task(self) -> Task | None:
        """What the models know of the data: normalisers, episode length, scales; None before anything is learned."""
        return self._state.task

    @property
    def episode_length(self) -> int | None:
        """The longest episode, in steps, of the data that was learned from; None before anything is learned."""
        return None if self._state.task is None else self._state.task.episode_length

    @property
    def models(self) -> Mapping[str, nn.Module]:
        """The learned models, by name."""
        return self._state.models if self._run is None else {**self._state.models, **self._run.models}

    @property
    def learned_from(self) -> Mapping[str, Any]:
        """What is kept of the data that was learned from; plain JSON."""
        return self._state.learned_from

    @property
    def calibration(self) -> AnyCalibration | None:
        """What budgets must be planned as to be kept at a stated risk; None: the agent is not calibrated."""
        return self._state.calibration

    @property
    def risk(self) -> float | None:
        """The risk that ``predict`` takes where it is told none; see ``set_risk``."""
        return self._state.risk

    def learn(
        self,
        dataset: EpisodeDataset | Place,
        total_steps: int | None = None,
        callback: MaybeCallback = None,
        log_interval: int | None = 100,
        progress_bar: bool = True,
        resume_from: str | os.PathLike[str] | None = None,
    ) -> Self:
        """Learn all models from logged episodes, from the start.

        Args:
            dataset: a data set, its name, or its file.
            total_steps: optimiser steps of the models together, exactly; they are shared as the configuration shares its
                own, each model takes at least one. None takes the configuration's.
            callback: as in Stable-Baselines3: a ``BaseCallback``, a list, or a function (locals, globals) -> bool;
                False ends learning. ``num_timesteps`` counts optimiser steps. Callbacks that need the agent to act, or
                episodes to end, are refused: there is neither while learning.
            log_interval: optimiser steps between two lines of the log; None leaves it to a callback.
            progress_bar: show one.
            resume_from: a file saved while learning the same data set; the result is as if it had not stopped.

        Raises:
            ConfigError: ``total_steps`` is too small, a callback cannot work here, or the log cannot be written.
            DatasetError: the data cannot be used.
            CheckpointError: ``resume_from`` belongs to another configuration or other data.
        """
        return self._learn(
            parts_of(self.config), dataset, total_steps, callback, log_interval, progress_bar, resume_from
        )

    def learn_diffusion(self, dataset: EpisodeDataset | Place, **kwargs: Any) -> Self:
        """Learn the trajectory model only; keyword arguments as for ``learn``."""
        return self._learn(("diffusion",), dataset, **kwargs)

    def learn_reward_critic(self, dataset: EpisodeDataset | Place, **kwargs: Any) -> Self:
        """Learn the critic of the reward to come only; keyword arguments as for ``learn``."""
        return self._learn(("reward_critic",), dataset, **kwargs)

    def learn_cost_critic(self, dataset: EpisodeDataset | Place, **kwargs: Any) -> Self:
        """Learn the critic of the cost to come only; keyword arguments as for ``learn``."""
        return self._learn(("cost_critic",), dataset, **kwargs)

    def learn_outcome_critic(self, dataset: EpisodeDataset | Place, **kwargs: Any) -> Self:
        """Learn the critic of finished plans only, where the configuration has one; keyword arguments as for ``learn``."""
        return self._learn((OUTCOME,), dataset, **kwargs)

    @usual_settings()
    def _learn(
        self,
        names: Sequence[str],
        dataset: EpisodeDataset | Place,
        total_steps: int | None = None,
        callback: MaybeCallback = None,
        log_interval: int | None = 100,
        progress_bar: bool = True,
        resume_from: Place | None = None,
    ) -> Self:
        episodes = dataset if isinstance(dataset, EpisodeDataset) else load_dataset(dataset)
        state = self._state
        if state.observation_space is None or state.action_space is None:
            spaces = spaces_of_dataset(episodes)
            state = replace(state, observation_space=spaces[0], action_space=spaces[1])
        assert state.observation_space is not None
        assert state.action_space is not None
        check_dataset(episodes, state.observation_space, state.action_space)
        check_request(state.config, names, episodes, total_steps, callback, log_interval)
        state = replace(with_data(state, episodes, names), calibration=None, risk=None)
        assert state.task is not None
        finished: dict[str, nn.Module] = {}
        saved: SavedRun | None = None
        if resume_from is None:
            kept = {name: model for name, model in self.models.items() if name not in names}
            steps = share_steps({name: state.config.training_of(name) for name in names}, total_steps)
        else:
            kept = {}
            finished, saved = persistence.load_run(state, resume_from, names, self.device)
            steps = dict(saved.steps)
            if total_steps is not None and sum(steps.values()) != total_steps:
                raise ConfigError(
                    f"the run to resume was begun with {sum(steps.values())} steps, not {total_steps}; leave total_steps "
                    "away"
                )
        self._state, self._policy, self._fingerprint = replace(state, models=kept), None, None
        self._run = LearningRun(
            names,
            steps,
            state.config,
            state.task,
            episodes,
            seed=state.seed,
            device=self.device,
            finished=finished,
            saved=saved,
        )
        self.num_timesteps, self._is_learning = self._run.num_timesteps, True
        try:
            has_ended = self._follow(self._run, one_callback(callback), episodes, log_interval, progress_bar)
        finally:
            self._is_learning = False
        if has_ended:
            self._state, self._run = self.state, None
        return self

    def _follow(
        self,
        run: LearningRun,
        hooks: Any,
        dataset: EpisodeDataset,
        log_interval: int | None,
        progress_bar: bool,
    ) -> bool:
        """Take a run's steps, with callbacks, the log and a progress bar; return whether it came to its end."""
        hooks.init_callback(self)
        hooks.on_training_start({"self": self, "dataset": dataset, "total_timesteps": run.total}, {})
        steps, going, first = iter(run), True, run.num_timesteps
        with tqdm(total=run.total, initial=run.num_timesteps, disable=not progress_bar, unit="step") as bar:
            for metrics in steps:
                self.num_timesteps = run.num_timesteps
                if metrics.step == 1 or run.num_timesteps == first + 1:
                    bar.set_description(run.name)
                bar.update()
                if run.is_last_of_model() or (log_interval is not None and metrics.step % log_interval == 0):
                    loss = run.check_loss()
                    if log_interval is not None:
                        self.dump_logs()
                    bar.set_postfix(loss=f"{loss:.4g}", refresh=False)
                going = hooks.on_step()
                if not going:
                    break
        steps.close()  # type: ignore[attr-defined]
        hooks.on_training_end()
        return bool(going)

    @property
    def logger(self) -> Logger:
        """Stable-Baselines3's logger, as its callbacks expect."""
        if self._logger is None:
            formats = ["stdout"] if self.verbose else []
            if self.tensorboard_log is not None:
                formats += ["csv", "tensorboard"]
            folder = None if self.tensorboard_log is None else os.fspath(self.tensorboard_log)
            try:
                self._logger = configure(folder, formats) if formats else Logger(None, [])
            except OSError as error:
                raise ConfigError(
                    f"the training log cannot be written to {folder}: {error.strerror or error}; choose another folder"
                ) from error
        return self._logger

    def set_logger(self, logger: Logger) -> None:
        """Log to this logger from now on."""
        self._logger = logger

    def dump_logs(self) -> None:
        """Log what the last optimiser step measured, and write the log; for Stable-Baselines3's callbacks."""
        if self._run is not None:
            self._run.record(self.logger)
        self.logger.dump(self.num_timesteps)

    def get_env(self) -> Any:
        """Return the environment that the agent was made with, or None; while learning, as callbacks can use it."""
        return LearningEnv(self._env) if self._is_learning else self._env

    def get_vec_normalize_env(self) -> None:
        """Return None: observations are normalised by what was fitted to the data, not by an environment."""

    @usual_settings()
    def predict(
        self,
        observation: Any,
        state: PlanState | None = None,
        episode_start: Array | None = None,
        deterministic: bool = False,
        *,
        budget: BudgetLike | None = None,
        risk: float | None = None,
    ) -> tuple[Array, PlanState]:
        """Plan, and return the first action of the best plan.

        Args:
            observation: (O,), or (E, O) for E environments, or the Dict of ``BudgetWrapper(observe=True)``.
            state: what the last call returned; it tells the step of the episode, and carries the plan that
                ``control_interval`` goes on with.
            episode_start: (E,) environments that have just been reset.
            deterministic: draw the same noise at every call, so that equal arguments give equal actions.
            budget: what the rest of the episode may cost: a number or an array (E,) in undiscounted cost, or a
                ``Budget`` (or one for each environment), which also tells its discount and the step. At or below
                zero, as when it is overspent, the plan of least predicted cost is taken. Without a step from
                a ``Budget``, the state or the observation, a whole episode is assumed to be ahead, which is cautious.
            risk: the chance that the episode may cost more than the budget, one that ``calibrate`` can support; None
                takes the agent's own, ``agent.risk``. It needs the state of the last call handed back.

        Returns:
            The action (A,) or actions (E, A) within the action space and of its dtype, and the state for the next call. It
            also tells whether any plan keeps the budget (``feasible``), by how much (``margin``), and whether the risk is
            ``certified``.

        Raises:
            NotLearnedError: a model is missing.
            ObservationError: an observation of a wrong shape, not finite, or too far from the data to plan from.
            BudgetError: no budget, or one that is not a number.
            CalibrationError: the risk is not calibrated for.
        """
        policy = self._planning_policy()
        request = parse_request(observation, budget, policy.task.observation_size)
        risk = self.risk if risk is None else risk
        calibration = None if risk is None else self.calibration_for(risk)
        noise = self._noise(deterministic)
        return policy.decide(
            request,
            state,
            episode_start,
            noise,
            deterministic=deterministic,
            calibration=calibration,
            risk=risk,
        )

    @usual_settings()
    def plan(self, observation: Any, budget: BudgetLike | None = None) -> Plan:
        """Return every candidate plan, the best first; arguments as for ``predict``, errors too."""
        policy = self._planning_policy()
        return policy.plan(
            parse_request(observation, budget, policy.task.observation_size), self._noise(False)
        )

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed what planning draws from here on; None takes the agent's own seed.

        Raises:
            ConfigError: it is no seed.
        """
        self._generator.manual_seed(self.seed if seed is None else check_seed(seed, error=ConfigError))

    def _noise(self, deterministic: bool) -> torch.Generator:
        """Return what planning draws from: the running stream, or one that begins anew."""
        if not deterministic:
            return self._generator
        return torch.Generator(device=self.device).manual_seed(self.seed)

    def _planning_policy(self) -> PlanningPolicy:
        """Return what decides, made once for the models and the planner's settings.

        Raises:
            NotLearnedError: a model is missing.
        """
        if self._policy is None:
            state, models = self._state, self.models
            missing = [name for name in parts_of(state.config) if name not in models]
            if missing or state.task is None or state.action_space is None:
                remedies = "; ".join(
                    f"{name}: {LEARNERS[name][0]} or {LEARNERS[name][1]}" for name in missing
                )
                raise NotLearnedError(
                    f"the agent has not learned all its models yet; call learn(dataset), or {remedies}"
                )
            with usual_settings():
                planner = make_planner(models, state.task, state.config, self.device)
            self._policy = PlanningPolicy(planner, state.task, state.config, state.action_space)
        return self._policy

    def set_planner(self, **changes: Any) -> Self:
        """Change how decisions are made, without learning anew: any field of ``PlannerConfig``.

        Raises:
            ConfigError: an unknown field, or a value that cannot work.
        """
        self._state, self._policy = replace(self._state, config=self.config.replace(planner=changes)), None
        return self

    def calibrate(
        self,
        env_id: str | None = None,
        *,
        dataset: EpisodeDataset | Place | None = None,
        risk: float | Sequence[float] | npt.NDArray[Any] = 0.05,
        budgets: Sequence[float] | npt.NDArray[Any] | None = None,
        episodes: int = EPISODES,
        confidence: float = CONFIDENCE,
        seed: int = FIRST_SEED,
        discount: float = 1.0,
        n_envs: int | None = None,
        asynchronous: bool = False,
        progress_bar: bool = True,
        keep: str | os.PathLike[str] | None = None,
    ) -> Self:
        """Find out what each budget must be planned as, so that an episode breaks it with at most the asked risk.

        With an environment, episodes are run under every planned budget; ``trebi_gym.agents.Calibration`` tells what that
        guarantees, and of what. With a data set of episodes that were not learned from, only the critic's error on
        those is known, and nothing is guaranteed: ``HeldOutCalibration``. The result is kept in the agent's file, holds
        for every risk that the episodes support, and serves until the agent learns anew or plans otherwise.

        Args:
            env_id: of the environment, with ``info["cost"]``.
            dataset: instead of an environment.
            risk: the greatest chance of an episode over its budget. The first is ``agent.risk`` from here on.
            budgets: to plan for; None: 17, from 0 over 1.25 times the data's maximum to no limit, up to the first that no
                budget up to the maximum lets pass at any of the risks. Budgets above the maximum, and risks that were not
                asked for, may then be planned for more carefully than they need be.
            episodes: for each of them.
            confidence: of the guarantee.
            seed: of the first episode's environment; evaluate with others.
            discount: of the budgets.
            n_envs: environments at once; None: as many as episodes, at most 100 and as memory allows, which is said.
            asynchronous: run every environment in a process of its own; the result is the same. For heavy environments.
            progress_bar: show one.
            keep: a file for what is finished, from which the same call goes on after a crash.

        Raises:
            CalibrationError: the episodes cannot support the risk, there is nothing to calibrate on, the data were
                learned from, or a value is out of range or has no use with a data set.
            ConfigError: ``keep`` cannot be written.
            DatasetError: the data set does not fit the agent.
            TrebiError: the environment does not.
        """
        policy, risks = self.with_risk(None), requested_risks(risk)
        if (env_id is None) == (dataset is None):
            raise CalibrationError("calibrate needs an environment's id or dataset=..., one of them")
        self._fingerprint = None  # weights may have been changed since they were last looked at
        if dataset is not None:
            refuse_given(
                {
                    "budgets": (budgets, None),
                    "episodes": (episodes, EPISODES),
                    "confidence": (confidence, CONFIDENCE),
                    "seed": (seed, FIRST_SEED),
                    "discount": (discount, 1.0),
                    "n_envs": (n_envs, None),
                    "asynchronous": (asynchronous, False),
                    "keep": (keep, None),
                }
            )
            held = dataset if isinstance(dataset, EpisodeDataset) else load_dataset(dataset)
            found: AnyCalibration = on_held_out(
                self.state, held, risks, fingerprint=self.fingerprint(), device=self.device
            )
        else:
            found = in_closed_loop(
                policy,
                str(env_id),
                planner=plain(self.config.planner),
                fingerprint=self.fingerprint(),
                maximum_budget=self.learned_from.get("maximum_budget"),
                risks=risks,
                budgets=budgets,
                episodes=episodes,
                confidence=confidence,
                seed=seed,
                discount=discount,
                n_envs=n_envs,
                asynchronous=asynchronous,
                progress_bar=progress_bar,
                keep=keep,
            )
        self._state = replace(self._state, calibration=found, risk=risks[0])
        return self

    def set_risk(self, risk: float | None) -> Self:
        """Set the risk that ``predict`` takes where it is told none; None for budgets as the planner keeps them by itself.

        Raises:
            CalibrationError: the agent is not calibrated, or its calibration cannot support the risk.
        """
        if risk is not None:
            self.calibration_for(risk).planned_for(np.zeros(1), risk)
        self._state = replace(self._state, risk=risk)
        return self

    def with_risk(self, risk: float | None) -> Self:
        """Return the same agent with another risk of its own; None: one that leaves its calibration aside.

        It shares models and the stream of random numbers with this one.

        Raises:
            NotLearnedError: a model is missing.
            CalibrationError: the agent is not calibrated for the risk.
        """
        self._planning_policy()
        return copy.copy(self).set_risk(risk)

    def calibration_for(self, risk: float) -> AnyCalibration:
        """Return the agent's calibration, if it still holds for how the agent is now.

        Raises:
            NotLearnedError: a model is missing.
            CalibrationError: there is none, or the planner or the weights have changed since.
        """
        return check_calibrated(self.calibration, plain(self.config.planner), self.fingerprint(), risk)

    def fingerprint(self) -> str:
        """Return the fingerprint of the agent's weights (64 hexadecimal digits).

        Raises:
            NotLearnedError: a model is missing.
        """
        if self._fingerprint is None:
            self._planning_policy()
            self._fingerprint = fingerprint(self.models[name] for name in parts_of(self.config))
        return self._fingerprint

    @usual_settings()
    def smallest_budget(self, observation: Any, *, step: int = 0, repeats: int = 4) -> Any:
        """Return the least that the rest of an episode is predicted to cost from here: () or (E,), undiscounted.

        The least prediction among plans that are made for budget 0. What a whole episode can be held to at a risk is
        ``calibration.smallest_budget(risk)``.

        Args:
            observation: (O,) or (E, O).
            step: steps taken in the episode.
            repeats: times that candidates are drawn.

        Raises:
            CalibrationError: fewer than one repeat.
            ObservationError: it is malformed, or no plan from it has a finite predicted cost.
        """
        check_count(repeats, "repeats", error=CalibrationError)
        policy = self._planning_policy()
        request = parse_request(observation, Budget(0.0, step=step), policy.task.observation_size)
        lowest = policy.smallest_budgets(request, repeats, self._noise(False))
        return float(lowest[0]) if request.single else lowest

    @usual_settings()
    def save(self, path: Place, parts: Sequence[str] | None = None) -> Path:
        """Write one zip of JSON and safetensors; it appears only when it is complete.

        While learning goes on, the file also holds what ``learn(resume_from=...)`` needs.

        Args:
            path: gets the ending ``.zip`` if it has none.
            parts: only these models; None: all there are.

        Raises:
            NotLearnedError: there is nothing to save yet.
        """
        run = None if self._run is None or self._run.name is None else self._run.save()
        return persistence.save(self.state, path, parts, run)

    @classmethod
    def load(
        cls,
        path: Place,
        env: Any = None,
        device: torch.device | str = "auto",
        tensorboard_log: Place | None = None,
    ) -> Self:
        """Read an agent from its zip, or from a folder of zips with one model each; no code in them is run.

        Args:
            path: of the file or folder.
            env: an environment whose spaces must have the agent's shapes, for callbacks; None: none.
            device: "auto", "cpu", "cuda", ...
            tensorboard_log: folder for the log of later training.

        Raises:
            CheckpointError: it is not a saved agent, or the files in the folder do not belong together.
        """
        return cls.from_state(persistence.load(path, resolve_device(device)), env, device, tensorboard_log)

    @classmethod
    def from_state(
        cls,
        state: AgentState,
        env: Any = None,
        device: torch.device | str = "auto",
        tensorboard_log: Place | None = None,
    ) -> Self:
        """Return the agent that knows this; ``agent.state`` tells what one knows.

        Raises:
            CheckpointError: the environment's spaces have other shapes.
        """
        boxes = (state.observation_space, state.action_space)
        if env is not None:
            own, given = (
                [getattr(box, "shape", None) for box in pair] for pair in (boxes, agent_spaces(env))
            )
            if own != given:
                raise CheckpointError(
                    f"the agent's observations and actions have shapes {own}, the environment's {given}"
                )
        agent = cls(boxes, state.config, device=device, seed=state.seed, tensorboard_log=tensorboard_log)
        agent._state = state
        agent._env = env if hasattr(env, "step") else None
        return agent

    @classmethod
    def from_diffuser(
        cls,
        folder: Place,
        dataset: EpisodeDataset | Place,
        epoch: int | Literal["latest"] = "latest",
        *,
        experiment: str | None = None,
        ema: bool = True,
        device: torch.device | str = "auto",
        seed: int | None = None,
    ) -> Self:
        """Take Diffuser's published trajectory model and value as ours; only the cost critic is left to learn.

        Args:
            folder: ``<task>``, which holds ``diffusion/<experiment>`` and ``values/<experiment>``.
            dataset: what they were learned from: it gives the normalisers, and the budgets.
            epoch: of ``state_<epoch>.pt``; "latest" takes each model's last.
            experiment: which, where there are several.
            ema: the averaged weights, which act; False: those that were optimised.
            device: "auto", "cpu", "cuda", ...
            seed: of learning and planning; None draws one.

        Raises:
            CheckpointError: the folder is not what is published, or does not fit the data; nothing in it is run.
            DatasetError: the data set cannot be used.
        """
        episodes = dataset if isinstance(dataset, EpisodeDataset) else load_dataset(dataset)
        options = {"epoch": epoch, "experiment": experiment, "ema": ema}
        state = persistence.from_diffuser(
            Path(folder), episodes, options, seed=resolve_seed(seed), device=resolve_device(device)
        )
        return cls.from_state(state, device=device)

    def __repr__(self) -> str:
        learned = ", ".join(self.models) or "nothing"
        return f"TREBIAgent(preset={self.config.preset!r}, device={str(self.device)!r}, learned: {learned})"
