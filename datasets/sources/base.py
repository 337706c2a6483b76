"""What a file format offers."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from trebi_gym.costs import CostFunction
from trebi_gym.datasets.episode import EpisodeDataset


class Source(Protocol):
    """A file format, recognised by its content."""

    def recognises(self, path: Path) -> bool:
        """Whether ``path`` is of this format; never raises for a readable file."""
        ...

    def read(self, path: Path, cost: CostFunction | None) -> EpisodeDataset:
        """Read and validate; a given cost function takes the place of stored costs."""
        ...

    def write(self, dataset: EpisodeDataset, path: Path) -> None:
        """Write so that ``read`` gives the same numbers back; a crash leaves no half file."""
        ...
