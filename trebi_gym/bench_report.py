"""What the benchmark measured: its rows, as a table for people and as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trebi_gym.files import replacing
from trebi_gym.measuring import Timing
from trebi_gym.records import format_table

TEXTBOOK = "textbook"


@dataclass(frozen=True)
class Measurement:
    """One measured thing."""

    what: str  # "decision", "decision, scaling", or "<part> update"
    who: str  # a preset, or "textbook"
    size: str  # a name in SIZES
    environments: int  # planned for at once; 0 for an update
    setting: str  # what is not as in the preset, or which plans break their budget
    windows: int  # of an update; 0 for a decision
    seconds: Timing | None  # of one call; None where it was left out
    operations: int | None  # floating-point operations of one call
    floor: float | None  # seconds that these take at the rate of a large product; None for bfloat16
    memory: int | None  # bytes that the call needs at its peak
    note: str = ""

    @property
    def each(self) -> float | None:
        """Seconds for each environment's decision, or for the update."""
        return None if self.seconds is None else self.seconds.median / max(self.environments, 1)


def report(document: dict[str, Any]) -> str:
    """Return a table for people, with ratios of medians against the textbook way, called for one environment at a time.

    Rows of ``decision, scaling`` have none: the textbook way was not timed in turns with them.
    """
    measured: Sequence[Measurement] = document["measurements"]
    textbook = {(m.what, m.size): m.each for m in measured if m.who == TEXTBOOK}
    rows = []
    for m in measured:
        base = textbook.get((m.what, m.size))
        rows.append(
            (
                m.what,
                m.size,
                m.who,
                str(m.environments or ""),
                "; ".join(text for text in (m.setting, m.note) if text),
                "" if m.seconds is None else f"{1000 * m.seconds.median:.2f}",
                ""
                if m.seconds is None
                else f"{1000 * m.seconds.fastest:.2f} to {1000 * m.seconds.slowest:.2f}",
                "" if not m.each else f"{1 / m.each:.1f}",
                "" if not m.each or not m.windows else f"{m.windows / m.each:.0f}",
                "" if not m.each or base is None else f"{base / m.each:.2f}",
                "" if m.floor is None else f"{1000 * m.floor:.2f}",
                "" if m.memory is None else f"{m.memory / 1e6:.0f}",
            )
        )
    header = (
        "what",
        "size",
        "who",
        "at once",
        "setting",
        "median ms",
        "range ms",
        "a second",
        "windows a second",
        "times faster than textbook (one at once)",
        "floor ms",
        "memory MB",
    )
    machine = document["gpu"] or f"{document['machine']}, {document['threads']} threads"
    rate = f"a large float32 product: {document['operations_a_second'] / 1e9:.0f} GFLOP/s"
    return f"{machine}, torch {document['torch']}; {rate}\n{format_table(header, rows)}"


def save(document: dict[str, Any], path: Path) -> None:
    """Write what was measured as JSON."""
    plain = document | {"measurements": [dataclasses.asdict(m) for m in document["measurements"]]}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(plain, indent=2))
