"""A Stable-Baselines3 training run whose every step is recorded, and that can be gone on with after a crash.

What is recorded are the environment's own steps: the action as it was executed, the true end, and ``info["cost"]``.
A replay buffer is not used: Stable-Baselines3 stores rescaled actions there and time limits as terminals.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import logging
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np

from trebi_gym.datasets.collect import Progress
from trebi_gym.datasets.episode import Episode, EpisodeDataset
from trebi_gym.datasets.parts import Parts
from trebi_gym.datasets.provenance import describe_env, describe_training, with_statistics
from trebi_gym.datasets.recording import StepRecorder
from trebi_gym.errors import DatasetError

TRAINED = ("sac", "td3", "ppo")
"""Algorithms that a run can train by."""
SAVE_EVERY = 10_000
"""Steps between two states on the disk; they are kept when the next episode ends."""
EXPLORATION = 0.1
"""TD3's noise while it learns, in units of half the action range: without any it would not explore."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingRecord:
    """What a training run leaves: its steps, the trained model, and policies from on the way."""

    dataset: EpisodeDataset
    model: Any  # of Stable-Baselines3
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


def check_hyperparameters(algo: str, hyperparameters: dict[str, Any]) -> None:
    """Raise unless an algorithm takes these hyperparameters.

    Raises:
        DatasetError: no such algorithm, or hyperparameters that it does not have.
    """
    if algo not in TRAINED:
        raise DatasetError(f"a run is trained by one of {', '.join(TRAINED)}; got {algo!r}")
    import stable_baselines3

    fixed = {"self", "policy", "env", "seed", "device", "verbose", "tensorboard_log", "_init_setup_model"}
    known = set(inspect.signature(getattr(stable_baselines3, algo.upper()).__init__).parameters) - fixed
    unknown = sorted(set(hyperparameters) - known)
    if unknown:
        raise DatasetError(
            f"{algo.upper()} has no hyperparameter {', '.join(unknown)}; it has {', '.join(sorted(known))}"
        )


def record_training(
    env_id: str,
    *,
    steps: int,
    seed: int,
    algo: str = "sac",
    hyperparameters: dict[str, Any] | None = None,
    progress: Progress | None = None,
    snapshots: int = 0,
    parts: Parts | None = None,
    save_every: int = SAVE_EVERY,
) -> TrainingRecord:
    """Train by Stable-Baselines3 and record every step that the environment took.

    Args:
        env_id: an environment with ``info["cost"]``.
        steps: of training.
        seed: of the environment, the networks and the exploration.
        algo: one of ``TRAINED``.
        hyperparameters: of the algorithm's constructor; its defaults otherwise.
        progress: called with the number of new steps.
        snapshots: how many copies of the policy to keep, spread evenly over the run.
        parts: where to keep what was done; what is there already is gone on with, as a true continuation of the run
            but not to the bit: the replay buffer is filled again from the recorded steps, and draws begin anew.
        save_every: steps between two states in ``parts``.

    Raises:
        DatasetError: hyperparameters that do not exist, or too few steps for a single episode to end.
        EnvironmentContractError: the environment reports no cost.
    """
    given = dict(hyperparameters or {})
    check_hyperparameters(algo, given)
    recorder = StepRecorder(gym.make(env_id))
    try:
        model = _make(algo, recorder, seed, given)
        run = _Run(
            model,
            recorder,
            steps,
            progress,
            max(1, steps // snapshots) if snapshots else 0,
            parts,
            save_every,
        )
        run.restore()
        if model.num_timesteps < steps:
            model.learn(
                total_timesteps=steps - model.num_timesteps,
                callback=run.callback(),
                reset_num_timesteps=False,
            )
        run.save()
    finally:
        recorder.close()
    information = describe_env(env_id) | describe_training(model, given, steps) | {"seed": seed}
    dropped = steps - sum(map(len, recorder.episodes))
    if dropped:
        information["dropped_steps"] = dropped
    dataset = with_statistics(EpisodeDataset.from_episodes(recorder.episodes, information))
    return TrainingRecord(dataset=dataset, model=model, policies=run.policies)


def _make(algo: str, env: gym.Env[Any, Any], seed: int, given: dict[str, Any]) -> Any:
    import stable_baselines3
    from stable_baselines3.common.noise import NormalActionNoise

    options = copy.deepcopy(given)  # Stable-Baselines3 writes into policy_kwargs
    if algo == "td3" and "action_noise" not in options:
        size = int(np.prod(env.action_space.shape or (1,)))
        options["action_noise"] = NormalActionNoise(np.zeros(size), np.full(size, EXPLORATION))
    try:
        return getattr(stable_baselines3, algo.upper())("MlpPolicy", env, seed=seed, device="cpu", **options)
    except (TypeError, ValueError, AssertionError) as error:
        raise DatasetError(f"{algo.upper()} cannot be made with {given}: {error}") from error


@dataclass
class _Run:
    """A run as it goes: what it keeps, and how it is put on the disk and taken from there."""

    model: Any
    recorder: StepRecorder
    steps: int
    progress: Progress | None
    snapshot_every: int
    parts: Parts | None
    save_every: int
    policies: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    saved_episodes: int = 0
    saved_parts: int = 0
    saved_at: int = 0

    def callback(self) -> Any:
        from stable_baselines3.common.callbacks import BaseCallback

        run = self

        class Follow(BaseCallback):
            def _on_step(self) -> bool:
                return run.after_step()

        return Follow()

    def after_step(self) -> bool:
        step = self.model.num_timesteps
        if self.progress is not None:
            self.progress(1)
        if self.snapshot_every and step % self.snapshot_every == 0:
            self.policies.append((step, copy.deepcopy(self.model.policy.state_dict())))
        at_an_end = self.recorder.unfinished_steps == 0
        if self.parts is not None and at_an_end and step - self.saved_at >= self.save_every:
            self.save()
        return bool(step < self.steps)

    def save(self) -> None:
        """Keep the new episodes and the model's state, if there are new ones."""
        new = self.recorder.episodes[self.saved_episodes :]
        if self.parts is None or not new:
            return
        self.parts.write(self.saved_parts, EpisodeDataset.from_episodes(new))
        self.saved_parts += 1
        self.saved_episodes = len(self.recorder.episodes)
        self.saved_at = self.model.num_timesteps
        state = {
            "num_timesteps": self.model.num_timesteps,
            "n_updates": int(getattr(self.model, "_n_updates", 0)),
            "parts": self.saved_parts,
            "parameters": self.model.get_parameters(),
            "log_ent_coef": getattr(self.model, "log_ent_coef", None),
            "policies": self.policies,
        }
        self.parts.write_state(state, self.model.num_timesteps)

    def restore(self) -> None:
        """Take up what an interrupted run kept, if there is any."""
        state = None if self.parts is None else self.parts.read_state()
        if state is None or self.parts is None:
            return
        for number in range(state["parts"]):
            self.recorder.episodes += list(self.parts.read(number))
        self.model.set_parameters(state["parameters"], exact_match=True)
        if state["log_ent_coef"] is not None:
            self.model.log_ent_coef.data.copy_(state["log_ent_coef"])
        self.model.num_timesteps = state["num_timesteps"]
        self.model._n_updates = state["n_updates"]
        self.policies = [(int(step), weights) for step, weights in state["policies"]]
        self.saved_parts, self.saved_episodes = state["parts"], len(self.recorder.episodes)
        self.saved_at = self.model.num_timesteps
        if hasattr(self.model, "replay_buffer"):
            _refill(self.model, self.recorder.episodes)
        if self.progress is not None:
            self.progress(self.model.num_timesteps)
        _logger.info("%s: going on from step %d", self.parts.folder, self.model.num_timesteps)


def _refill(model: Any, episodes: list[Episode]) -> None:
    """Fill the replay buffer from recorded steps: the latest that it has room for, actions rescaled to [-1, 1]."""
    room = model.replay_buffer.buffer_size
    latest = list(itertools.accumulate(len(episode) for episode in reversed(episodes)))
    needed = next((index + 1 for index, total in enumerate(latest) if total >= room), len(episodes))
    for episode in episodes[len(episodes) - needed :]:
        scaled = model.policy.scale_action(episode.actions)
        for t in range(len(episode)):
            last = t == len(episode) - 1
            model.replay_buffer.add(
                episode.observations[t : t + 1],
                episode.observations[t + 1 : t + 2],
                scaled[t : t + 1],
                episode.rewards[t : t + 1],
                np.array([last]),
                [{"TimeLimit.truncated": last and episode.truncated}],
            )
