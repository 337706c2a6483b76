"""TREBIAgent: episodes in, models learned, and at every step a budget in and an action out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.logger import Logger, configure

from trebi_gym.agents import spaces
from trebi_gym.agents.calibration.closed_loop import Calibrates
from trebi_gym.agents.config import TREBIConfig
from trebi_gym.agents.models import LEARNERS, OUTCOME, Task, budget_factor, fit_task, noted, parts_of
from trebi_gym.agents.planning.budgets import BudgetLike, check_scores, parse_request, planning_budgets
from trebi_gym.agents.planning.planner import BudgetGuidedPlanner, Plan, make_planner
from trebi_gym.agents.planning.policies import decide, warn_beyond
from trebi_gym.agents.planning.state import PlanState
from trebi_gym.agents.presets import preset
from trebi_gym.agents.spaces import agent_spaces, check_dataset, spaces_of_dataset
from trebi_gym.agents.storage import persistence
from trebi_gym.agents.torch_settings import usual_settings
from trebi_gym.agents.training.loop import (
    LearningEnv,
    MaybeCallback,
    Run,
    check_request,
    run_parts,
    write_log,
)
from trebi_gym.checks import check_seed
from trebi_gym.datasets import EpisodeDataset
from trebi_gym.datasets import load as load_dataset
from trebi_gym.errors import ConfigError, NotLearnedError

Array = npt.NDArray[Any]


class TREBIAgent(Calibrates):
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
        self.config = preset(config)
        self.device = spaces.resolve_device(device)
        self.verbose = verbose
        self.tensorboard_log = tensorboard_log
        self.num_timesteps = 0
        self.task: Task | None = None
        self.models: dict[str, torch.nn.Module] = {}
        self.learned_from: dict[str, Any] = {}
        self.run: Run | None = None
        self.learning_env: LearningEnv | None = None  # while learning
        self.warned_of_length = False
        self._env = env_or_spaces if hasattr(env_or_spaces, "step") else None
        found = (None, None) if env_or_spaces is None else agent_spaces(env_or_spaces)
        self.observation_space: gym.spaces.Box | None = found[0]
        self.action_space: gym.spaces.Box | None = found[1]
        self.seed = spaces.resolve_seed(seed)
        self._generator = torch.Generator(device=self.device)
        self.set_random_seed(self.seed)
        self._planner: BudgetGuidedPlanner | None = None
        self._logger: Logger | None = None

    def learn(
        self,
        dataset: EpisodeDataset | str | os.PathLike[str],
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

    def learn_diffusion(self, dataset: EpisodeDataset | str | os.PathLike[str], **kwargs: Any) -> Self:
        """Learn the trajectory model only; keyword arguments as for ``learn``."""
        return self._learn(("diffusion",), dataset, **kwargs)

    def learn_reward_critic(self, dataset: EpisodeDataset | str | os.PathLike[str], **kwargs: Any) -> Self:
        """Learn the critic of the reward to come only; keyword arguments as for ``learn``."""
        return self._learn(("reward_critic",), dataset, **kwargs)

    def learn_cost_critic(self, dataset: EpisodeDataset | str | os.PathLike[str], **kwargs: Any) -> Self:
        """Learn the critic of the cost to come only; keyword arguments as for ``learn``."""
        return self._learn(("cost_critic",), dataset, **kwargs)

    def learn_outcome_critic(self, dataset: EpisodeDataset | str | os.PathLike[str], **kwargs: Any) -> Self:
        """Learn the critic of finished plans only, where the configuration has one; keyword arguments as for ``learn``."""
        return self._learn((OUTCOME,), dataset, **kwargs)

    @usual_settings()
    def _learn(
        self,
        parts: Sequence[str],
        dataset: EpisodeDataset | str | os.PathLike[str],
        total_steps: int | None = None,
        callback: MaybeCallback = None,
        log_interval: int | None = 100,
        progress_bar: bool = True,
        resume_from: str | os.PathLike[str] | None = None,
    ) -> Self:
        episodes = dataset if isinstance(dataset, EpisodeDataset) else load_dataset(dataset)
        if self.observation_space is None or self.action_space is None:
            self.observation_space, self.action_space = spaces_of_dataset(episodes)
        check_dataset(episodes, self.observation_space, self.action_space)
        check_request(self.config, parts, episodes, total_steps, callback, log_interval)
        # a single part of an agent that has others keeps the normalisers that these were fitted with
        self.take_up(episodes, parts)
        self._planner, self._fingerprint, self.calibration, self.risk = None, None, None, None
        self.warned_of_length = False
        if resume_from is None:
            for part in parts:
                self.models.pop(part, None)
            self.run, self.num_timesteps = None, 0
        else:
            persistence.resume(self, resume_from, parts)
        run_parts(self, parts, episodes, total_steps, callback, log_interval, progress_bar)
        return self

    def take_up(self, dataset: EpisodeDataset, parts: Sequence[str] | None = None) -> None:
        """Note which data these parts learn from, and fit to them what all share; ``learn`` does it by itself."""
        parts = parts_of(self.config) if parts is None else parts
        whole = self.task is None or set(parts) == set(parts_of(self.config))
        if whole:
            self.task = fit_task(dataset, self.config, budget_factor(dataset, self.config))
        self.learned_from = noted(self.learned_from, dataset, parts, whole)

    @property
    def episode_length(self) -> int | None:
        """The longest episode, in steps, of the data that was learned from; None before anything is learned."""
        return None if self.task is None else self.task.episode_length

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
        write_log(self)

    def get_env(self) -> Any:
        """Return the environment that the agent was made with, or None; while learning, as callbacks can use it."""
        return self._env if self.learning_env is None else self.learning_env

    def get_vec_normalize_env(self) -> None:
        """Return None: observations are normalised by what was fitted to the data, not by an environment."""

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
        request = parse_request(observation, budget, self.ready()[1].observation_size)
        return decide(self, request, state, episode_start, deterministic, self.risk if risk is None else risk)

    @usual_settings()
    def plan(self, observation: Any, budget: BudgetLike | None = None) -> Plan:
        """Return every candidate plan, the best first; arguments as for ``predict``, errors too."""
        planner, task = self.ready()
        request = parse_request(observation, budget, task.observation_size)
        steps_left = request.count_steps_left(task.episode_length, None)
        warn_beyond(self, request, None)
        _, thresholds = planning_budgets(request, steps_left, self.config, task.budget_factor)
        discounted = request.discounts != 1.0
        found = planner.plan(request.observations, thresholds, steps_left, self.noise(False), discounted)
        least = np.where(np.isnan(found.costs), np.inf, found.costs).min(axis=1)
        check_scores(found.rewards[:, 0], found.costs[:, 0], least)
        return found

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed what planning draws from here on; None takes the agent's own seed.

        Raises:
            ConfigError: it is no seed.
        """
        self._generator.manual_seed(self.seed if seed is None else check_seed(seed, error=ConfigError))

    def noise(self, deterministic: bool) -> torch.Generator:
        """Return what planning draws from: the running stream, or one that begins anew."""
        if not deterministic:
            return self._generator
        return torch.Generator(device=self.device).manual_seed(self.seed)

    @usual_settings()
    def ready(self) -> tuple[BudgetGuidedPlanner, Task]:
        """Return the planner, and what it knows of the task.

        Raises:
            NotLearnedError: a model is missing.
        """
        missing = [part for part in parts_of(self.config) if part not in self.models]
        if missing or self.task is None:
            remedies = "; ".join(f"{part}: {LEARNERS[part][0]} or {LEARNERS[part][1]}" for part in missing)
            raise NotLearnedError(
                f"the agent has not learned all its models yet; call learn(dataset), or {remedies}"
            )
        if self._planner is None:
            self._planner = make_planner(self.models, self.task, self.config, self.device)
        return self._planner, self.task

    def set_planner(self, **changes: Any) -> Self:
        """Change how decisions are made, without learning anew: any field of ``PlannerConfig``.

        Raises:
            ConfigError: an unknown field, or a value that cannot work.
        """
        self.config = self.config.replace(planner=changes)
        self._planner, self._fingerprint = None, None
        return self

    def save(self, path: str | os.PathLike[str], parts: Sequence[str] | None = None) -> Path:
        """Write one zip of JSON and safetensors; it appears only when it is complete.

        While learning goes on, the file also holds what ``learn(resume_from=...)`` needs.

        Args:
            path: gets the ending ``.zip`` if it has none.
            parts: only these models; None: all there are.

        Raises:
            NotLearnedError: there is nothing to save yet.
        """
        return persistence.save(self, path, parts)

    @classmethod
    def load(cls, path: str | os.PathLike[str], env: Any = None, device: torch.device | str = "auto") -> Self:
        """Read an agent from its zip, or from a folder of zips with one model each; no code in them is run.

        Raises:
            CheckpointError: it is not a saved agent, or the files in the folder do not belong together.
        """
        return persistence.load(cls, path, env, device)

    @classmethod
    def from_diffuser(
        cls,
        folder: str | os.PathLike[str],
        dataset: EpisodeDataset | str | os.PathLike[str],
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
        return persistence.from_diffuser(cls, Path(folder), episodes, options, device=device, seed=seed)

    def __repr__(self) -> str:
        learned = ", ".join(self.models) or "nothing"
        return f"TREBIAgent(preset={self.config.preset!r}, device={str(self.device)!r}, learned: {learned})"
