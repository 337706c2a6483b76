"""Tiny environments, data sets and agents, made on the spot."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from trebi_gym.agents import NetworkConfig, TREBIAgent, TREBIConfig
from trebi_gym.datasets import EpisodeDataset

ROOT = Path(__file__).resolve().parent.parent.parent
ENV = "TortureLedger-v0"
LENGTH = 6


def register_envs() -> None:
    """Register the tests' ledger environment, which has no time limit of its own, with one."""
    tests = str(ROOT / "tests")
    if tests not in sys.path:
        sys.path.append(tests)
    if ENV not in gym.registry:
        gym.register(ENV, entry_point="toy_envs:LedgerEnv", max_episode_steps=LENGTH)


def make_dataset(episodes: int = 12, length: int = LENGTH, env_id: str | None = ENV) -> EpisodeDataset:
    """Return logged episodes of the ledger environment, whose last ends early, with costs that have fractions."""
    rng = np.random.default_rng(5)
    lengths = np.array([length] * (episodes - 1) + [length - 2])
    steps = int(lengths.sum())
    actions = rng.uniform(-2, 2, (steps, 1)).astype(np.float32)
    observations = np.zeros((steps + episodes, 3), dtype=np.float32)
    row = step = 0
    for count in lengths:
        last = np.concatenate([[0.0], actions[step : step + count, 0]])
        observations[row : row + count + 1] = np.column_stack(
            [np.arange(count + 1), last, np.full(count + 1, rng.uniform())]
        )
        row, step = row + count + 1, step + count
    ends = np.zeros(episodes, dtype=bool)
    ends[-1] = True
    metadata: dict[str, Any] = {"name": "torture", "episode_length": length}
    if env_id is not None:
        metadata["env_id"] = env_id
    return EpisodeDataset(
        observations=observations,
        actions=actions,
        rewards=(10 * rng.uniform(size=steps)).astype(np.float32),
        costs=(2 + actions[:, 0]).astype(np.float32),
        lengths=lengths,
        terminated=ends,
        truncated=~ends,
        metadata=metadata,
    )


def tiny_config() -> TREBIConfig:
    """Return a configuration that learns in a second and decides in milliseconds."""
    critic = NetworkConfig("mlp", {"width": 8, "blocks": 1, "steps_left": True})
    training = {"steps": 4, "batch_size": 16, "ema_start": 0}
    return TREBIConfig(
        horizon=4,
        denoiser=NetworkConfig("mlp", {"width": 8, "blocks": 1, "condition": True}),
        reward_critic=critic,
        cost_critic=critic,
        outcome_critic=NetworkConfig("mlp", {"width": 8, "blocks": 1}),
        outcome_training=None,
    ).replace(
        diffusion_steps=4,
        denoiser_training=training,
        critic_training=training,
        planner={"candidates": 4, "sampler_steps": 2, "retry_steps": None},
    )


@dataclass(frozen=True)
class Made:
    """A data set, the agent that learned from it, and its file."""

    dataset: EpisodeDataset
    agent: TREBIAgent
    path: Path


@cache
def make_agent(folder: Path) -> Made:
    """Learn and calibrate the tiny agent, and save it in the folder."""
    register_envs()
    dataset = make_dataset()
    agent = TREBIAgent(config=tiny_config(), seed=0, device="cpu").learn(dataset, progress_bar=False)
    agent.calibrate(ENV, risk=0.5, confidence=0.5, episodes=4, budgets=[0.0, 20.0], progress_bar=False)
    folder.mkdir(parents=True, exist_ok=True)
    return Made(dataset, agent, agent.save(folder / "agent.zip"))
