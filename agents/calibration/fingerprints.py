"""Marks by which weights and episodes are known again: of an agent, and of what it learned from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import nn

from trebi_gym.datasets import EpisodeDataset

DIGITS = 12
"""Hexadecimal digits that are kept of an episode's mark: two of a million episodes share one with a chance of 0.2%."""


def fingerprint(models: Iterable[nn.Module]) -> str:
    """Return a fingerprint of the weights of models, in their order (64 hexadecimal digits); the same on every device."""
    digest = hashlib.sha256()
    for model in models:
        for name, value in sorted(model.state_dict().items()):
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


def count_learned(learned_from: Mapping[str, Any], dataset: EpisodeDataset) -> int:
    """Return how many of the data set's episodes any model of an agent learned from.

    Args:
        learned_from: what an agent keeps of its data.
        dataset: that is asked about.
    """
    sources = [learned_from, *learned_from.get("parts", {}).values()]
    known = {mark for source in sources for mark in source.get("marks", ())}
    return sum(mark in known for mark in episode_marks(dataset))
