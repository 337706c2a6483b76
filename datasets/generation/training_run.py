"""A Stable-Baselines3 training run whose every step is recorded, and that can be gone on with after a crash.

What is recorded are the environment's own steps: the action as it was executed, the true end, and ``info["cost"]``.
A replay buffer is not used: Stable-Baselines3 stores rescaled actions there and time limits as terminals.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from trebi_gym.checks import check_seed
from trebi_gym.datasets.episode import Episode, EpisodeDataset
from trebi_gym.datasets.generation.algorithms import make_model
from trebi_gym.datasets.generation.collect import Progress, check_counts
from trebi_gym.datasets.generation.provenance import describe_env, describe_training, with_statistics
from trebi_gym.datasets.generation.resumable import Parts
from trebi_gym.datasets.generation.step_recorder import StepRecorder, check_spaces
from trebi_gym.errors import DatasetError

SAVE_EVERY = 10_000
"""Steps between two states on the disk."""

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class TrainingRecord:
    """What a training run leaves: its steps, the trained model, and policies from on the way."""

    dataset: EpisodeDataset
    model: Any  # of Stable-Baselines3
    policies: list[tuple[int, Weights]]  # (training step, what acts of the policy's weights)
    ends: list[int]  # (E,) the training step at which each episode of the data set ended

    def medium_policy(self) -> tuple[int, Weights]:
        """Return the first kept policy whose running return reached a third of the way to the best.

        The running return is the mean of the ten episodes that ended last.

        Raises:
            DatasetError: no policy was kept on the way.
        """
        if not self.policies:
            raise DatasetError("no policy was kept on the way; record the run with snapshots=100")
        returns = self.dataset.episode_returns
        window = np.ones(min(10, len(returns)))
        running = np.convolve(returns, window / len(window), mode="valid")
        threshold = running[0] + (running.max() - running[0]) / 3
        reached = self.ends[len(window) - 1 + int(np.argmax(running >= threshold))]
        return next(
            ((step, weights) for step, weights in self.policies if step >= reached), self.policies[-1]
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
        steps: of training. An algorithm that learns from rollouts, such as PPO, finishes its last one.
        seed: of the environment, the networks and the exploration.
        algo: one of ``trebi_gym.datasets.generation.algorithms.ALGORITHMS``.
        hyperparameters: of the algorithm, see ``make_model``; its defaults otherwise.
        progress: called with the number of new steps.
        snapshots: how many copies of the policy to keep, spread evenly over the run.
        parts: where to keep what was done. What is there already is gone on with: a true continuation of the run, but not
            to the bit. The replay buffer is filled again from the recorded steps, the draws are new ones, and an episode
            that was running is lost.
        save_every: steps between two states in ``parts``; the next end of an episode is waited for where that is possible.

    Raises:
        DatasetError: hyperparameters that do not exist, or too few steps for a single episode to end.
        EnvironmentContractError: the environment reports no cost, or its spaces are no one-dimensional boxes.
    """
    check_counts(steps=steps, save_every=save_every)
    seed = check_seed(seed, error=DatasetError)
    check_spaces(env_id)
    given = dict(hyperparameters or {})
    recorder = StepRecorder(gym.make(env_id))
    try:
        state = None if parts is None else parts.read_state()
        begun = int(state["num_timesteps"]) if state else 0
        model = make_model(algo, recorder, _seed(seed, begun), given)
        every = max(1, steps // snapshots) if snapshots else 0
        run = _Run(model, recorder, progress, every, parts, save_every)
        if state is not None:
            run.restore(state, goes_on=begun < steps)
        if begun < steps:
            model.learn(steps - begun, callback=run.callback(), reset_num_timesteps=False)
            run.save()
    finally:
        recorder.close()
    information = describe_env(env_id) | describe_training(model, algo, given) | {"seed": seed}
    information["steps_per_second"] = round(model.num_timesteps / max(run.seconds(), 1e-9), 1)
    dropped = model.num_timesteps - sum(map(len, recorder.episodes))
    if dropped:
        information["dropped_steps"] = dropped
    if run.resumed_at:
        information["resumed_at_steps"] = run.resumed_at
    dataset = with_statistics(EpisodeDataset.from_episodes(recorder.episodes, information))
    return TrainingRecord(dataset, model, run.policies, recorder.ends)


def acting_weights(policy: Any) -> Weights:
    """Return a copy of those weights that choose actions: the actor's where there is one, else all."""
    weights = policy.state_dict()
    actor = {name: value for name, value in weights.items() if name.startswith("actor.")}
    return {name: value.detach().clone() for name, value in (actor or weights).items()}


def _seed(seed: int, begun: int) -> int:
    # a run that is gone on with may not repeat the draws and the first episodes that it began with
    return int(np.random.SeedSequence([seed, begun]).generate_state(1)[0]) if begun else seed


@dataclass
class _Run:
    """A run as it goes: what it keeps, and how it is put on the disk and taken from there."""

    model: Any
    recorder: StepRecorder
    progress: Progress | None
    snapshot_every: int
    parts: Parts | None
    save_every: int
    policies: list[tuple[int, Weights]] = field(default_factory=list)
    resumed_at: list[int] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    seconds_before: float = 0.0
    saved_episodes: int = 0
    saved_parts: int = 0
    saved_at: int = 0

    def seconds(self) -> float:
        """Seconds of training, those before an interruption included."""
        return self.seconds_before + time.monotonic() - self.began

    def callback(self) -> Any:
        from stable_baselines3.common.callbacks import BaseCallback

        run = self

        class Follow(BaseCallback):
            def _on_rollout_start(self) -> None:
                run.between_rollouts()

            def _on_step(self) -> bool:
                run.after_step()
                return True

        return Follow()

    def after_step(self) -> None:
        step = self.model.num_timesteps
        if self.progress is not None:
            self.progress(1)
        if self.snapshot_every and step % self.snapshot_every == 0:
            self.policies.append((step, acting_weights(self.model.policy)))

    def between_rollouts(self) -> None:
        """Save when it is time: here every step that was taken has been learned from."""
        since = self.model.num_timesteps - self.saved_at
        waits = hasattr(self.model, "replay_buffer") and since < 2 * self.save_every
        if since >= self.save_every and not (waits and self.recorder.unfinished_steps):
            self.save()

    def save(self) -> None:
        """Keep the new episodes and the model's state."""
        if self.parts is None:
            return
        new = self.recorder.episodes[self.saved_episodes :]
        if new:
            self.parts.write(self.saved_parts, EpisodeDataset.from_episodes(new))
            self.saved_parts += 1
        self.saved_episodes = len(self.recorder.episodes)
        self.saved_at = self.model.num_timesteps
        state = {
            "num_timesteps": self.model.num_timesteps,
            "n_updates": int(self.model._n_updates),
            "n_episodes": int(self.model._episode_num),
            "parts": self.saved_parts,
            "ends": self.recorder.ends,
            "seconds": self.seconds(),
            "resumed_at": self.resumed_at,
            "parameters": self.model.get_parameters(),
            "log_ent_coef": getattr(self.model, "log_ent_coef", None),
            "policies": self.policies,
        }
        self.parts.write_state(state, self.model.num_timesteps)

    def restore(self, state: dict[str, Any], goes_on: bool) -> None:
        """Take up what an interrupted run kept, or a finished one."""
        assert self.parts is not None
        episodes = [episode for number in range(state["parts"]) for episode in self.parts.read(number)]
        self.recorder.go_on(episodes, state["ends"], state["num_timesteps"])
        self.model.set_parameters(state["parameters"], exact_match=True)
        if state["log_ent_coef"] is not None:
            self.model.log_ent_coef.data.copy_(state["log_ent_coef"])
        self.model.num_timesteps = state["num_timesteps"]
        self.model._n_updates = state["n_updates"]
        self.model._episode_num = state["n_episodes"]
        self.policies = [(int(step), weights) for step, weights in state["policies"]]
        self.resumed_at = [*state["resumed_at"], *([state["num_timesteps"]] if goes_on else [])]
        self.seconds_before = state["seconds"]
        self.saved_parts, self.saved_episodes = state["parts"], len(episodes)
        self.saved_at = self.model.num_timesteps
        if goes_on and hasattr(self.model, "replay_buffer"):
            refill(self.model, episodes)
        if self.progress is not None:
            self.progress(self.model.num_timesteps)
        self.began = time.monotonic()


def refill(model: Any, episodes: list[Episode]) -> None:
    """Fill a replay buffer from recorded steps, as Stable-Baselines3 does: the latest that it has room for.

    Actions are rescaled to [-1, 1], and the ends by a time limit are told from those by the task.
    """
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
