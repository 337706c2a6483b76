"""Recording episodes of policies, from vector environments."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from trebi_gym.datasets.episode import Episode, EpisodeDataset
from trebi_gym.datasets.parts import Parts
from trebi_gym.datasets.provenance import describe_env, with_statistics
from trebi_gym.datasets.recording import Recording
from trebi_gym.errors import DatasetError
from trebi_gym.rollout import Policy, make_envs, rollout

BLOCK = 20_000
"""Steps that are recorded from a policy before they are kept on the disk."""

Progress = Callable[[int], None]  # called with the number of steps that were added


@dataclass(frozen=True)
class Share:
    """How many steps of a data set one policy gives."""

    policy: Policy
    steps: int


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
        DatasetError: ``steps`` or ``n_envs`` is not positive.
        EnvironmentContractError: the environment reports no cost.
    """
    check_counts(steps=steps, n_envs=n_envs)
    episodes = _record(env_id, policy, steps, seed, n_envs, deterministic, progress)
    information = describe_env(env_id) | {"seed": seed, **(metadata or {})}
    return with_statistics(EpisodeDataset.from_episodes(episodes, information))


def _record(
    env_id: str,
    policy: Policy,
    steps: int,
    seed: int,
    n_envs: int,
    deterministic: bool,
    progress: Progress | None,
) -> list[Episode]:
    envs = make_envs(env_id, n_envs)
    running: dict[int, Recording] = {}
    finished: dict[int, Episode] = {}
    kept: list[Episode] = []
    total = 0
    try:
        for step in rollout(
            policy, envs, budgets=itertools.repeat(math.inf), seed=seed, deterministic=deterministic
        ):
            for index in np.flatnonzero(step.active):
                number = int(step.episode[index])
                if number not in running:
                    running[number] = Recording(step.observations[index])
                running[number].add(
                    step.actions[index], step.rewards[index], step.costs[index], step.next_observations[index]
                )
                if step.done[index]:
                    finished[number] = running.pop(number).finish(
                        bool(step.terminated[index]), bool(step.truncated[index])
                    )
            while len(kept) in finished and total < steps:
                kept.append(finished.pop(len(kept)))
                total += len(kept[-1])
                if progress is not None:
                    progress(len(kept[-1]))
            if total >= steps:
                return kept
    finally:
        envs.close()
    raise AssertionError("a rollout with endless budgets does not end")


def collect_shares(
    env_id: str,
    shares: Sequence[Share],
    *,
    seed: int,
    n_envs: int,
    progress: Progress | None,
    parts: Parts | None,
) -> EpisodeDataset:
    """Record shares one after the other, in blocks that each have a seed of their own.

    A block's episodes and draws follow from the seed and its place alone, so that blocks that are on the disk already
    need not be recorded again.

    Args:
        env_id: an environment with ``info["cost"]``.
        shares: policies, and how many steps each gives at least.
        seed: of everything that is drawn.
        n_envs: environments at once.
        progress: called with the number of new steps.
        parts: where finished blocks are kept, and found.

    Raises:
        EnvironmentContractError: the environment reports no cost.
    """
    recorded: list[EpisodeDataset] = []
    for place, share in enumerate(shares):
        done, block = 0, 0
        while done < share.steps:
            number = len(recorded)
            if parts is not None and parts.has(number):
                dataset = parts.read(number)
                if progress is not None:
                    progress(dataset.n_steps)
            else:
                drawn = int(np.random.SeedSequence([seed, place, block]).generate_state(1)[0])
                if hasattr(share.policy, "set_random_seed"):
                    share.policy.set_random_seed(drawn)
                # a stochastic policy draws from torch's global state, which is left as it was
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(drawn)
                    steps = min(BLOCK, share.steps - done)
                    episodes = _record(env_id, share.policy, steps, drawn, n_envs, False, progress)
                dataset = EpisodeDataset.from_episodes(episodes)
                if parts is not None:
                    parts.write(number, dataset)
            recorded.append(dataset)
            done += dataset.n_steps
            block += 1
    return EpisodeDataset.from_episodes(itertools.chain.from_iterable(recorded))


def check_counts(**counts: int) -> None:
    """Raise unless every number is at least 1.

    Raises:
        DatasetError: one is not.
    """
    for name, value in counts.items():
        if value < 1:
            raise DatasetError(f"{name} must be at least 1; got {value}")
