"""Recording episodes of policies, from vector environments."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from trebi_gym.checks import check_count, check_seed
from trebi_gym.datasets.episode import Episode, EpisodeDataset
from trebi_gym.datasets.generation.provenance import describe_env, statistics, with_statistics
from trebi_gym.datasets.generation.resumable import Parts
from trebi_gym.datasets.generation.step_recorder import Recording, check_spaces
from trebi_gym.errors import DatasetError
from trebi_gym.rollout import Policy, envs_for, rollout

BLOCK = 50_000
"""Steps that are recorded from a policy before they are kept on the disk."""

Progress = Callable[[int], object]  # called with the number of steps that were added


@dataclass(frozen=True)
class Share:
    """How many steps of a data set one policy gives at least, in whole episodes."""

    policy: Policy
    steps: int
    weight: float = 1.0  # its part of the whole


def collect(
    env_id: str,
    policy: Policy,
    *,
    steps: int,
    seed: int,
    n_envs: int = 8,
    deterministic: bool = False,
    progress: Progress | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> EpisodeDataset:
    """Record whole episodes of a policy until they hold at least ``steps`` steps.

    Episodes are taken in the order in which they started, so that short ones are not preferred. Under one seed, and with
    as many environments, the same steps are recorded.

    Args:
        env_id: an environment with ``info["cost"]``.
        policy: what acts, with budgets of infinity: ``load_policy``'s, a ``TREBIAgent``, or anything with its ``predict``.
        steps: the least number of steps.
        seed: of the first episode; the others count on from it.
        n_envs: environments at once.
        deterministic: handed to the policy.
        progress: called with the number of new steps.
        metadata: added to what is recorded about the environment.

    Raises:
        DatasetError: ``steps`` or ``n_envs`` is not positive, or ``seed`` negative.
        EnvironmentContractError: the environment reports no cost, or its spaces are no one-dimensional boxes.
    """
    return collect_shares(
        env_id,
        [Share(policy, steps)],
        seed=seed,
        n_envs=n_envs,
        deterministic=deterministic,
        progress=progress,
        metadata={"seed": seed, **(metadata or {})},
    )


def first_seed(seed: int) -> int:
    """Return the environment's seed of the first recorded episode.

    It is drawn, and not the seed itself: recordings of the seeds 0 and 1 would share their starts otherwise, also with
    evaluations, whose episodes have the seeds 0, 1, 2, ...
    """
    return int(np.random.SeedSequence(seed).generate_state(1)[0])


def collect_shares(
    env_id: str,
    shares: Sequence[Share],
    *,
    seed: int,
    n_envs: int = 8,
    deterministic: bool = False,
    progress: Progress | None = None,
    parts: Parts | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> EpisodeDataset:
    """Record shares one after the other, in blocks of about ``BLOCK`` steps.

    What a block holds follows from the seed, the block's number and the number of episodes before it: environments are
    made anew, episode i has the environment's seed ``first_seed(seed) + i``, and what the policy draws is seeded for each
    block. So blocks that are on the disk already need not be recorded again, and the result is the same to the bit.

    Args:
        env_id: an environment with ``info["cost"]``.
        shares: policies, and how many steps each gives.
        seed: of everything that is drawn.
        n_envs: environments at once.
        deterministic: handed to the policies.
        progress: called with the number of new steps.
        parts: where finished blocks are kept, and found.
        metadata: added to what is recorded about environment and policies.

    Raises:
        DatasetError: a number that is out of range.
        EnvironmentContractError: the environment reports no cost, or its spaces are no one-dimensional boxes.
    """
    check_counts(n_envs=n_envs, steps=min(share.steps for share in shares))
    seed = check_seed(seed, error=DatasetError)
    check_spaces(env_id)
    number = episodes = 0
    joined: list[EpisodeDataset] = []
    seconds = 0.0
    for share in shares:
        blocks: list[EpisodeDataset] = []
        while (missing := share.steps - sum(block.n_steps for block in blocks)) > 0:
            if parts is not None and parts.has(number):
                block = parts.read(number)
                if progress is not None:
                    progress(block.n_steps)
            else:
                began = time.monotonic()
                with _seeded(share.policy, [seed, number]):
                    recorded = _block(
                        env_id,
                        share.policy,
                        missing,
                        first_seed(seed) + episodes,
                        n_envs,
                        deterministic,
                        progress,
                    )
                block = EpisodeDataset.from_episodes(recorded, {"seconds": time.monotonic() - began})
                if parts is not None:
                    parts.write(number, block)
            blocks.append(block)
            seconds += float(block.metadata["seconds"])
            episodes += len(block)
            number += 1
        joined.append(EpisodeDataset.from_episodes(itertools.chain.from_iterable(blocks)))
    whole = EpisodeDataset.from_episodes(
        itertools.chain.from_iterable(joined),
        {
            **describe_env(env_id),
            "n_envs": n_envs,
            "steps_per_second": round(sum(found.n_steps for found in joined) / max(seconds, 1e-9), 1),
            "policies": [
                {**_describe(share.policy), "weight": share.weight, **statistics(found)}
                for share, found in zip(shares, joined, strict=True)
            ],
            **(metadata or {}),
        },
    )
    return with_statistics(whole)


def _block(
    env_id: str,
    policy: Policy,
    missing: int,
    seed: int,
    n_envs: int,
    deterministic: bool,
    progress: Progress | None,
) -> list[Episode]:
    """Record about ``BLOCK`` steps; of the last block just the first episodes that hold the ``missing`` steps.

    When enough steps are taken no new episode begins, and those that run go on to their ends, so that none is wasted.
    """
    wanted, is_last = min(BLOCK, missing), missing <= BLOCK
    running: dict[int, Recording] = {}
    finished: dict[int, Episode] = {}
    taken = 0

    def budgets() -> Iterator[float]:
        while taken < wanted:
            yield math.inf

    envs, _ = envs_for(policy, env_id, n_envs, n_envs=n_envs)
    try:
        for step in rollout(policy, envs, budgets=budgets(), seed=seed, deterministic=deterministic):
            taken += int(step.active.sum())
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
                    if progress is not None:
                        progress(len(finished[number]))
            if is_last and step.done.any():
                kept = first_episodes(finished, missing)
                if sum(map(len, kept)) >= missing:
                    return kept
    finally:
        envs.close()
    return [finished[number] for number in range(len(finished))]


def first_episodes(finished: Mapping[int, Episode], steps: int) -> list[Episode]:
    """Return episodes 0, 1, 2, ... until they hold ``steps`` steps or one is missing."""
    kept: list[Episode] = []
    total = 0
    while total < steps and len(kept) in finished:
        kept.append(finished[len(kept)])
        total += len(kept[-1])
    return kept


@contextlib.contextmanager
def _seeded(policy: Policy, entropy: list[int]) -> Iterator[None]:
    """Seed what a policy draws; torch's global state, which Stable-Baselines3 draws from, is put back afterwards."""
    drawn = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    seeder = getattr(policy, "set_random_seed", None)
    if seeder is not None:
        seeder(drawn)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(drawn)
        yield


def _describe(policy: Any) -> dict[str, Any]:
    return dict(getattr(policy, "description", None) or {"policy": type(policy).__name__})


def check_counts(**counts: int) -> None:
    """Raise unless every number is at least 1.

    Raises:
        DatasetError: one is not.
    """
    for name, value in counts.items():
        check_count(value, name, error=DatasetError)
