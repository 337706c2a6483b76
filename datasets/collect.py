"""Recording episodes: of a policy, or of a whole Stable-Baselines3 training run.

What is recorded are the environment's own steps: the action as it was executed, the true end, and ``info["cost"]``.
A replay buffer is not used: Stable-Baselines3 stores rescaled actions there and time limits as terminals.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from trebi_gym.budget import Budget
from trebi_gym.datasets.episode import Episode, EpisodeDataset
from trebi_gym.datasets.provenance import (
    describe_env,
    describe_sac,
    find_spec,
    with_metadata,
    with_statistics,
)
from trebi_gym.datasets.recipes import dataset_name, recipe_for_env
from trebi_gym.datasets.recording import Recording, StepRecorder
from trebi_gym.errors import DatasetError
from trebi_gym.rollout import Policy, make_envs, rollout

Array = npt.NDArray[Any]
Progress = Callable[[int], None]  # called with the number of steps that were added


class RandomPolicy:
    """Draws every action uniformly from a bounded action space."""

    def __init__(self, action_space: gym.Space[Any], seed: int) -> None:
        if not isinstance(action_space, gym.spaces.Box) or not action_space.is_bounded():
            raise DatasetError(f"uniform actions need a bounded Box action space; got {action_space}")
        self._space = action_space
        self._generator = np.random.default_rng(seed)

    def predict(
        self,
        observation: Array,
        state: Any = None,
        episode_start: Array | None = None,
        deterministic: bool = False,
        *,
        budget: Sequence[Budget],
    ) -> tuple[Array, Any]:
        """Return (E, A) uniform actions."""
        shape = (len(observation), *self._space.shape)
        actions = self._generator.uniform(self._space.low, self._space.high, size=shape)
        return actions.astype(self._space.dtype), state


class StableBaselinesPolicy:
    """A Stable-Baselines3 policy, which knows of no budget."""

    def __init__(self, policy: Any) -> None:
        self._policy = policy

    def predict(
        self,
        observation: Array,
        state: Any = None,
        episode_start: Array | None = None,
        deterministic: bool = False,
        *,
        budget: Sequence[Budget],
    ) -> tuple[Array, Any]:
        """Return (E, A) actions within the action space."""
        actions, state = self._policy.predict(
            observation, state=state, episode_start=episode_start, deterministic=deterministic
        )
        return actions, state


def collect(
    env_id: str,
    policy: Policy,
    *,
    steps: int,
    seed: int,
    n_envs: int = 8,
    deterministic: bool = False,
    progress: Progress | None = None,
    metadata: dict[str, Any] | None = None,
) -> EpisodeDataset:
    """Record whole episodes of a policy until they hold at least ``steps`` steps.

    Episodes are taken in the order in which they started, so that short ones are not preferred.

    Args:
        env_id: an environment with ``info["cost"]``.
        policy: what acts, with budgets of infinity.
        steps: the least number of steps.
        seed: of the first episode; the others count on from it.
        n_envs: environments at once.
        deterministic: handed to the policy.
        progress: called with the number of new steps.
        metadata: added to what is recorded about the environment.

    Raises:
        DatasetError: ``steps`` is not positive.
        EnvironmentContractError: the environment reports no cost.
    """
    if steps < 1:
        raise DatasetError(f"steps must be at least 1; got {steps}")
    envs = make_envs(env_id, n_envs)
    running: dict[int, Recording] = {}
    finished: dict[int, Episode] = {}
    try:
        for step in rollout(
            policy, envs, budgets=itertools.repeat(math.inf), seed=seed, deterministic=deterministic
        ):
            for index in np.flatnonzero(step.active):
                number = int(step.episode[index])
                recording = running.setdefault(number, Recording(step.observations[index]))
                recording.add(
                    step.actions[index], step.rewards[index], step.costs[index], step.next_observations[index]
                )
                if step.done[index]:
                    finished[number] = recording.finish(
                        bool(step.terminated[index]), bool(step.truncated[index])
                    )
                    del running[number]
            if progress is not None:
                progress(int(step.active.sum()))
            kept = _first_episodes(finished, steps)
            if kept is not None:
                break
    finally:
        envs.close()
    information = describe_env(env_id) | {"seed": seed, **(metadata or {})}
    return with_statistics(EpisodeDataset.from_episodes(kept or [], information))


def record_training(
    env_id: str,
    *,
    steps: int,
    seed: int,
    hyperparameters: dict[str, Any] | None = None,
    progress: Progress | None = None,
    snapshots: int = 0,
) -> TrainingRecord:
    """Train Stable-Baselines3's SAC and record every step that the environment took.

    Args:
        env_id: an environment with ``info["cost"]``.
        steps: of training.
        seed: of the environment, the networks and the exploration.
        hyperparameters: of ``stable_baselines3.SAC``; its defaults otherwise.
        progress: called with the number of new steps.
        snapshots: how many copies of the policy to keep, spread evenly over the run.

    Raises:
        DatasetError: too few steps for a single episode to end.
        EnvironmentContractError: the environment reports no cost.
    """
    from stable_baselines3 import SAC
    from stable_baselines3.common.callbacks import BaseCallback

    recorder = StepRecorder(gym.make(env_id))
    every = max(1, steps // snapshots) if snapshots else 0
    policies: list[tuple[int, dict[str, Any]]] = []

    class Follow(BaseCallback):
        def _on_step(self) -> bool:
            if progress is not None:
                progress(1)
            if every and self.num_timesteps % every == 0:
                policies.append((self.num_timesteps, copy.deepcopy(self.model.policy.state_dict())))
            return True

    model = SAC("MlpPolicy", recorder, seed=seed, device="cpu", **(hyperparameters or {}))
    try:
        model.learn(total_timesteps=steps, callback=Follow())
    finally:
        recorder.close()
    information = describe_env(env_id) | describe_sac(model, hyperparameters or {}, steps) | {"seed": seed}
    dropped = recorder.unfinished_steps
    if dropped:
        information["dropped_steps"] = dropped
    dataset = with_statistics(EpisodeDataset.from_episodes(recorder.episodes, information))
    return TrainingRecord(dataset=dataset, model=model, policies=policies)


@dataclass(frozen=True)
class TrainingRecord:
    """What a training run leaves: its steps, the trained model, and policies from on the way."""

    dataset: EpisodeDataset
    model: Any  # stable_baselines3.SAC
    policies: list[tuple[int, dict[str, Any]]]  # (training step, policy weights)

    def medium_policy(self) -> tuple[int, dict[str, Any]]:
        """Return the first kept policy whose running return reached a third of the way to the best.

        The running return is the mean of the ten episodes that ended last.
        """
        returns = self.dataset.episode_returns
        window = np.ones(min(10, len(returns)))
        running = np.convolve(returns, window / len(window), mode="valid")
        threshold = running[0] + (running.max() - running[0]) / 3
        ended = np.cumsum(self.dataset.lengths)[len(window) - 1 :]
        reached = int(ended[int(np.argmax(running >= threshold))])
        return next(
            ((step, weights) for step, weights in self.policies if step >= reached), self.policies[-1]
        )


def generate(
    env_id: str,
    datatype: Literal["random", "medium-replay", "medium", "expert"] | str,
    *,
    steps: int,
    seed: int,
    training_steps: int | None = None,
    hyperparameters: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> EpisodeDataset:
    """Build a data set of one of the usual kinds.

    ``random``: uniform actions. ``medium-replay``: every step of a SAC training run. ``medium`` and ``expert``:
    episodes of the policy a third of the way to the run's best return, and of its final policy.

    Args:
        env_id: an environment with ``info["cost"]``.
        datatype: the kind.
        steps: steps in the data set.
        seed: of everything that is drawn.
        training_steps: of SAC for ``medium`` and ``expert``; as many as the task's recipe, else ``steps``.
        hyperparameters: of SAC; the recipe's, else Stable-Baselines3's defaults.
        progress: called with the number of new steps.

    Raises:
        DatasetError: the datatype is not known, or steps are too few.
        EnvironmentContractError: the environment reports no cost.
    """
    name = dataset_name(find_spec(env_id).id, datatype)
    if steps < 1:
        raise DatasetError(f"steps must be at least 1; got {steps}")
    recipe = recipe_for_env(find_spec(env_id).id)
    if hyperparameters is None:
        hyperparameters = recipe.hyperparameters if recipe else {}
    information: dict[str, Any] = {"name": name, "datatype": datatype}
    if datatype == "random":
        with gym.make(env_id) as env:
            policy = RandomPolicy(env.action_space, seed)
        information["algorithm"] = "uniform actions"
        return collect(env_id, policy, steps=steps, seed=seed, progress=progress, metadata=information)
    if datatype == "medium-replay":
        record = record_training(
            env_id, steps=steps, seed=seed, hyperparameters=hyperparameters, progress=progress
        )
        return with_metadata(record.dataset, information)
    if training_steps is None:
        training_steps = recipe.steps if recipe else steps
    record = record_training(
        env_id,
        steps=training_steps,
        seed=seed,
        hyperparameters=hyperparameters,
        progress=progress,
        snapshots=100,
    )
    information |= {
        key: record.dataset.metadata[key] for key in ("algorithm", "hyperparameters", "training_steps")
    }
    if datatype == "medium":
        information["policy_step"], weights = record.medium_policy()
        record.model.policy.load_state_dict(weights)
    else:
        information["policy_step"] = training_steps
    # another seed than the training run's, so that the episodes are new ones
    return collect(
        env_id,
        StableBaselinesPolicy(record.model),
        steps=steps,
        seed=seed + 1_000_000,
        progress=progress,
        metadata=information | {"seed": seed},
    )


def _first_episodes(finished: dict[int, Episode], steps: int) -> list[Episode] | None:
    kept: list[Episode] = []
    total = 0
    while total < steps:
        if len(kept) not in finished:
            return None
        kept.append(finished[len(kept)])
        total += len(kept[-1])
    return kept
