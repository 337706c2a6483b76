"""What a case is, what can become of it, and the registry of kinds and of their mutators."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

REFUSED, RIGHT = "refused", "right"
GOOD = (REFUSED, RIGHT)
BAD = ("foreign", "hang", "memory", "code", "leak", "wrong", "crash", "litter", "corrupt", "lost")
OUTCOMES = {
    "refused": "refused by one of our errors",
    "right": "accepted and right",
    "foreign": "another error than ours, or a NumPy warning",
    "hang": "took more than 20 s",
    "memory": "took more than 2 GB",
    "code": "ran code from the input",
    "leak": "opened another file",
    "wrong": "a wrong number",
    "crash": "the process died",
    "litter": "left temporary files",
    "corrupt": "left a file that cannot be read",
    "lost": "lost what was there before",
}


class BadOutcome(Exception):
    """Raised by a case that found something wrong itself: one of ``BAD``, and what was found."""

    def __init__(self, outcome: str, detail: str) -> None:
        super().__init__(detail)
        self.outcome, self.detail = outcome, detail


def must(condition: Any, detail: str, outcome: str = "wrong") -> None:
    """Raise ``BadOutcome`` unless the condition holds."""
    if not condition:
        raise BadOutcome(outcome, detail)


@dataclass
class Case:
    """One numbered case: a generator of its own, and an empty folder for its input."""

    kind: str
    number: int
    seed: int
    folder: Path
    canary: Path
    """A folder outside ``folder`` that nothing may open: ``secret.hdf5``, ``secret.bin``, ``pipe``."""
    material: Any = None
    """What the kind prepared once: an agent, arrays, ..."""
    notes: list[str] = field(default_factory=list)
    """Which mutators were applied, and how; part of the report."""

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng([self.seed, zlib.crc32(self.kind.encode()), self.number])

    def pick(self, items: Any) -> Any:
        """Return one of the items."""
        items = list(items)
        return items[int(self.rng.integers(len(items)))]

    def note(self, text: object) -> None:
        """Add to the description of the case."""
        self.notes.append(str(text)[:160])

    def mutate(self, subject: Any, most: int = 2) -> None:
        """Apply one to ``most`` mutators of the kind to the subject."""
        for _ in range(int(self.rng.integers(1, most + 1))):
            name = self.pick(sorted(MUTATORS[self.kind]))
            self.note(name)
            try:
                MUTATORS[self.kind][name](subject, self)
            except (
                TypeError,
                ValueError,
                KeyError,
                IndexError,
                AttributeError,
            ):  # after what an earlier one did
                self.note("does not apply")
        self.write_notes()

    def write_notes(self) -> None:
        """Write the description beside the input: a case that is killed cannot tell it any more."""
        (self.folder / "notes.txt").write_text(" + ".join(self.notes))


@dataclass(frozen=True)
class Kind:
    """A kind of case."""

    name: str
    words: str
    """What is attacked, for the page."""
    prepare: Callable[[Path], Any]
    """Makes the material, once, in a folder; forked workers share it."""
    attempt: Callable[[Case], None]
    """Makes the input and uses it. Returns when the result is right; lets errors pass; raises ``BadOutcome``."""
    limit: float = 20.0
    """Seconds that one case may take."""


KINDS: dict[str, Kind] = {}
MUTATORS: dict[str, dict[str, Callable[[Any, Case], None]]] = {}


def kind(name: str, words: str, prepare: Callable[[Path], Any], limit: float = 20.0) -> Callable[[Any], Any]:
    """Enter a function as what a kind attempts."""

    def enter(attempt: Callable[[Case], None]) -> Callable[[Case], None]:
        KINDS[name] = Kind(name, words, prepare, attempt, limit)
        MUTATORS.setdefault(name, {})
        return attempt

    return enter


def mutator(*kinds: str) -> Callable[[Any], Any]:
    """Enter a function as a mutator of these kinds: it changes the subject in place."""

    def enter(function: Callable[[Any, Case], None]) -> Callable[[Any, Case], None]:
        for name in kinds:
            MUTATORS.setdefault(name, {})[function.__name__] = function
        return function

    return enter
