"""What a file format offers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from trebi_gym.costs import CostFunction
from trebi_gym.datasets.episode import EpisodeDataset
from trebi_gym.datasets.recipes import Recipe


@dataclass(frozen=True)
class Reading:
    """What a reader is told beside the file: whatever the format itself does not say."""

    cost: CostFunction | None = None
    """Takes the place of stored costs; called once with all steps: (S, O), (S, A), (S, O), info of (S, ...) arrays."""
    episode_length: int | None = None
    """The task's time limit, in steps; where ends are not marked, episodes are cut there."""
    recipe: Recipe | None = None
    """The named data set that the file is taken to be."""

    @property
    def time_limit(self) -> int | None:
        """The time limit that was given, else the recipe's."""
        if self.episode_length is not None:
            return self.episode_length
        return None if self.recipe is None else self.recipe.episode_length


class Source(Protocol):
    """A file format, recognised by its content."""

    def recognises(self, path: Path) -> bool:
        """Whether ``path`` is of this format; never raises for a readable file."""
        ...

    def read(self, path: Path, reading: Reading) -> EpisodeDataset:
        """Read and validate."""
        ...

    def write(self, dataset: EpisodeDataset, path: Path) -> None:
        """Write so that ``read`` gives the same numbers back; a crash leaves no half file."""
        ...
