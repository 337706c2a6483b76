"""Runs the torture bench: ``python -m scripts.torture``, from the repository's folder."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"  # forked workers share no threads
os.environ.setdefault("MPLBACKEND", "Agg")

import torch  # noqa: E402
import tyro  # noqa: E402

from . import disk, fuzz_agents, fuzz_data, fuzz_values, kills  # noqa: E402
from .cases import GOOD, KINDS, MUTATORS  # noqa: E402
from .material import ROOT  # noqa: E402
from .page import write_page  # noqa: E402
from .soak import soak  # noqa: E402
from .workers import Report, run_cases  # noqa: E402

SHARES = {
    "agents": 14, "native": 8, "dsrl": 8, "d4rl": 8, "minari": 10, "calibrations": 6, "budgets": 3, "observations": 3,
    "arguments": 5, "commands": 10, "kills": 14, "disks": 5, "soak": 6,
}  # fmt: skip
"""Shares of the time, in per cent."""
CI = {
    "agents": 150, "native": 100, "dsrl": 60, "d4rl": 60, "minari": 60, "calibrations": 60, "budgets": 150,
    "observations": 150, "arguments": 100, "commands": 40, "kills": 13, "disks": 12, "soak": 1000,
}  # fmt: skip
"""Cases of each kind for continuous integration: about a minute where nothing is wrong."""
PACKAGES = ("torch", "numpy", "h5py", "minari", "safetensors", "gymnasium")
ENTERED = (disk, fuzz_agents, fuzz_data, fuzz_values, kills)


@dataclass(frozen=True)
class Arguments:
    """Attack the package in many ways, count what becomes of it, write runs/torture/report.json and the page."""

    minutes: float = float(os.environ.get("TORTURE_MINUTES", "10"))
    """All together; default: TORTURE_MINUTES, else 10."""
    kinds: tuple[str, ...] = tuple(SHARES)
    """Which kinds."""
    only: str | None = None
    """One case again, KIND:NUMBER; its input is kept."""
    seed: int = 0
    """Of everything that is drawn."""
    first: int = 0
    """The first case's number, in every kind."""
    most: int = 1_000_000
    """Cases of each kind, and predictions, at most."""
    processes: int = min(os.cpu_count() or 1, 8)
    """Workers at once."""
    output: Path = Path("runs/torture")
    """Folder for report.json, and for the inputs that went wrong."""
    page: Path | None = ROOT / "docs" / "reliability.md"
    """The page to write; none with --only."""
    ci: bool = False
    """Run the few cases of each kind that continuous integration does; no page."""
    page_only: bool = False
    """Write the page from the report that is there."""


def main(arguments: Arguments) -> int:
    """Run the kinds, write the report and the page; return 1 if anything went wrong."""
    torch.set_num_threads(1)
    target = arguments.output.absolute()
    if arguments.page_only:
        assert arguments.page is not None
        write_page(json.loads((target / "report.json").read_text()), arguments.page)
        return 0
    failing = target / "failing"
    if arguments.only is None:
        shutil.rmtree(failing, ignore_errors=True)
    failing.mkdir(parents=True, exist_ok=True)
    # inputs are small: a memory disk, where there is one, spares the real one millions of writes
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as scratch:
        common = {"seed": arguments.seed, "scratch": Path(scratch), "failing": failing}
        if arguments.only is not None:
            kind, _, number = arguments.only.partition(":")
            (report,) = run_cases(kind, [int(number)], processes=1, until=float("inf"), **common)
            shutil.rmtree(failing / f"{kind}-{number}", ignore_errors=report.outcome in GOOD)
            print(json.dumps(asdict(report), indent=1))
            return report.outcome not in GOOD
        document = _run(arguments, common)
    (target / "report.json").write_text(json.dumps(document, indent=1))
    if arguments.page is not None and not arguments.ci:
        write_page(document, arguments.page)
    flat = document["soak"]["flat"]
    print("nothing went wrong" if not document["wrong"] and flat else f"see {target}")
    return 1 if document["wrong"] or not flat else 0


def _run(arguments: Arguments, common: dict[str, Any]) -> dict[str, Any]:
    started = time.monotonic()
    whole = sum(SHARES[name] for name in arguments.kinds)
    entries, sorts = [], dict[tuple[str, str, str], Report]()
    result: dict[str, Any] = {
        "predictions": 0, "seconds": 0.0, "megabytes_grown": 0.0, "files_grown": 0, "threads_grown": 0, "flat": True,
    }  # fmt: skip
    for name in arguments.kinds:
        until = time.monotonic() + 60 * arguments.minutes * SHARES[name] / whole
        most = min(arguments.most, CI[name]) if arguments.ci else arguments.most
        if name == "soak":
            result = soak(common["scratch"] / "soak", most, until, arguments.seed)
            print(f"soak: {result}", flush=True)
            continue
        numbers = range(arguments.first, arguments.first + most)
        counts: Counter[str] = Counter()
        for report in run_cases(name, numbers, processes=arguments.processes, until=until, **common):
            counts[report.outcome] += 1
            if report.outcome not in GOOD:
                # one of each sort: the same words with other numbers are the same
                sort = re.sub(r"'[^']*'|[\w./-]*\d[\w./-]*", "#", report.detail)[:80]
                if (name, report.outcome, sort) in sorts:
                    shutil.rmtree(common["failing"] / f"{report.kind}-{report.number}", ignore_errors=True)
                else:
                    sorts[name, report.outcome, sort] = report
        entries.append(
            {
                "kind": name,
                "words": KINDS[name].words,
                "counts": dict(counts),
                "mutators": sorted(MUTATORS[name]),
            }
        )
        print(f"{name}: {dict(counts)}", flush=True)
    return {
        "made": {
            "minutes": (time.monotonic() - started) / 60,
            "seed": arguments.seed,
            "version": version("trebi-gym"),
            "revision": _revision(),
            "python": platform.python_version(),
            "packages": {name: version(name) for name in PACKAGES},
            "machine": f"{platform.system()} on {platform.machine()}, {arguments.processes} workers",
        },
        "kinds": entries,
        "soak": result,
        "wrong": [asdict(report) for report in sorts.values()],
    }


def _revision() -> str:
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return f" ({found.stdout.strip()})" if found.returncode == 0 else ""


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments)))
