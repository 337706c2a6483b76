"""Marks by which weights and episodes are known again: of an agent, and of what it learned from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from trebi_gym.datasets import EpisodeDataset

if TYPE_CHECKING:
    from trebi_gym.agents.agent import TREBIAgent

DIGITS = 12
"""Hexadecimal digits that are kept of an episode's mark: two of a million episodes share one with a chance of 0.2%."""


def fingerprint(agent: TREBIAgent) -> str:
    """Return a mark of the agent's weights (64 hexadecimal digits); it is the same on every device."""
    from trebi_gym.agents.models import parts_of  # models notes the marks of its data

    digest = hashlib.sha256()
    for part in parts_of(agent.config):
        for name, value in sorted(agent.models[part].state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def episode_marks(dataset: EpisodeDataset) -> list[str]:
    """Return a mark of each of the N episodes: of its observations and actions, as float32.

    Rewards and costs are left out: an episode whose cost was defined anew is still the same episode.
    """
    found = []
    for episode in dataset:
        digest = hashlib.sha256()
        for array in (episode.observations, episode.actions):
            digest.update(np.ascontiguousarray(array, dtype="<f4").tobytes())
        found.append(digest.hexdigest()[:DIGITS])
    return found


def count_learned(learned_from: Mapping[str, Any], dataset: EpisodeDataset) -> int | None:
    """Return how many of the data set's episodes any model learned from; None where the agent's file does not tell.

    Args:
        learned_from: what an agent keeps of its data.
        dataset: that is asked about.
    """
    sources = [learned_from, *learned_from.get("parts", {}).values()]
    known = {mark for source in sources for mark in source.get("marks", ())}
    if not known:
        return None
    return sum(mark in known for mark in episode_marks(dataset))
