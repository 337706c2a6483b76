"""What every test shares: one thread, small data sets, and an agent that is learned once."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from trebi_gym.agents import NetworkConfig, TREBIAgent, TREBIConfig
from trebi_gym.datasets import EpisodeDataset, load

torch.set_num_threads(1)

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def shipped_dataset() -> EpisodeDataset:
    """The data set that ships."""
    return load("SafePendulum-medium-replay-v0")


@pytest.fixture(scope="session")
def tiny_config() -> TREBIConfig:
    """A configuration whose three models learn in a few seconds; it plans badly, but by the same path."""
    denoiser = NetworkConfig("mlp", {"width": 32, "blocks": 1, "condition": True})
    critic = NetworkConfig("mlp", {"width": 32, "blocks": 1, "steps_left": True})
    outcome = NetworkConfig("mlp", {"width": 128, "blocks": 2})
    return TREBIConfig(
        horizon=8,
        denoiser=denoiser,
        reward_critic=critic,
        cost_critic=critic,
        outcome_critic=outcome,
        outcome_training=None,
    ).replace(
        denoiser_training={"steps": 40, "batch_size": 32},
        critic_training={"steps": 20, "batch_size": 32},
        planner={"candidates": 8},
    )


@pytest.fixture(scope="session")
def tiny_agent(shipped_dataset: EpisodeDataset, tiny_config: TREBIConfig) -> TREBIAgent:
    """An agent that has learned a little of the shipped data; tests must not change it."""
    return TREBIAgent(config=tiny_config, device="cpu", seed=0).learn(shipped_dataset, progress_bar=False)


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed."""
    return np.random.default_rng(0)


@pytest.fixture
def interruptible():
    """Ctrl-C interrupts, here and in what is started from here: jobs in the background inherit that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
