"""A long run of predictions: memory, open files and threads must not grow."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from trebi_gym import Budget

from .material import ENV, make_agent
from .workers import _resident

MOST_GROWTH = 32 << 20  # bytes, after the first tenth


def soak(folder: Path, predictions: int, until: float, seed: int) -> dict[str, Any]:
    """Run episodes under changing budgets for so many decisions, or until the clock says so; return what grew."""
    agent = make_agent(folder).agent
    agent.set_risk(None)
    env = gym.make(ENV)
    rng = np.random.default_rng(seed)
    observation, _ = env.reset(seed=seed)
    budget, state, done, start = Budget(float(rng.uniform(0, 20))), None, 0, time.monotonic()
    samples: list[tuple[int, int, int, int]] = []
    every = max(predictions // 100, 1)
    while done < predictions and time.monotonic() < until:
        action, state = agent.predict(observation, state, budget=budget)
        if not np.isfinite(action).all():
            raise RuntimeError(f"decision {done} is {action}")
        observation, _, terminated, truncated, info = env.step(action)
        budget = budget.charge(float(info["cost"]))
        done += 1
        if terminated or truncated:
            observation, _ = env.reset()
            budget, state = Budget(float(rng.uniform(0, 20))), None
        if done % every == 0:
            samples.append(
                (done, _resident(os.getpid()), len(os.listdir("/proc/self/fd")), threading.active_count())
            )
    env.close()
    first = next((sample for sample in samples if sample[0] >= done / 10), (0, 0, 0, 0))
    last = samples[-1] if samples else first
    growth = [after - before for before, after in zip(first[1:], last[1:], strict=True)]
    return {
        "predictions": done,
        "seconds": time.monotonic() - start,
        "megabytes_grown": growth[0] / 1e6,
        "files_grown": growth[1],
        "threads_grown": growth[2],
        "flat": growth[0] < MOST_GROWTH and growth[1] <= 0 and growth[2] <= 0,
    }
