"""The torture bench tells good from bad, and a minute of it finds nothing bad."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))

from scripts.torture import page, workers  # noqa: E402
from scripts.torture.cases import GOOD, KINDS, BadOutcome, kind, must  # noqa: E402
from trebi_gym.errors import DatasetError  # noqa: E402


def refuse(case):
    raise DatasetError("no")


def overflow(case):
    np.float32(1e30) * np.float32(1e30)


def take_memory(case):
    filled = np.ones(100 << 20, dtype=np.float64)
    must(filled[0] == 1, "")


WAYS = {
    "right": lambda case: None,
    "refused": refuse,
    "foreign": lambda case: [][1],
    "hang": lambda case: time.sleep(60),
    "memory": take_memory,
    "leak": lambda case: (case.canary / "secret.bin").read_bytes(),
    "code": lambda case: __import__("torture_canary"),
    "crash": lambda case: os._exit(3),
    "wrong": lambda case: must(1 + 1 == 3, "1 + 1 is not 3"),
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run attempts, given by number, as a kind of its own that is allowed eight seconds a case."""
    monkeypatch.setattr(workers, "BYTES", 256 << 20)  # the real limit takes long to fill on a busy machine

    def run(attempts):
        @kind("test", "for tests", lambda folder: None, limit=8.0)
        def attempt(case):
            (case.folder / "input").write_text("x")
            attempts[case.number](case)

        numbers = range(len(attempts))
        options = {"seed": 0, "scratch": tmp_path / "scratch", "failing": tmp_path / "failing"}
        found = list(workers.run_cases("test", numbers, processes=1, until=time.monotonic() + 60, **options))
        return {report.number: report for report in found}

    yield run
    del KINDS["test"]


def test_every_outcome_is_recognised_and_a_killed_worker_is_replaced(run, tmp_path):
    found = run([*WAYS.values(), WAYS["right"]])
    assert [found[number].outcome for number in sorted(found)] == [*WAYS, "right"]
    kept = {path.name for path in (tmp_path / "failing").iterdir()}
    assert kept == {f"test-{number}" for number, way in enumerate(WAYS) if way not in GOOD}
    assert (tmp_path / "failing" / "test-2" / "input").read_text() == "x"


def test_a_numpy_warning_is_no_right_answer(run):
    (report,) = run([overflow]).values()
    assert report.outcome == "foreign"
    assert "overflow" in report.detail


def test_a_case_is_the_same_by_its_number(run):
    drawn = []

    def draw(case):
        raise BadOutcome("wrong", str(case.rng.integers(10**9)))

    for _ in range(2):
        drawn.append([run([draw, draw])[number].detail for number in range(2)])
    assert drawn[0] == drawn[1]
    assert drawn[0][0] != drawn[0][1]


def test_the_page_counts_what_the_report_counts():
    report = {"kind": "native", "number": 7, "outcome": "leak", "detail": "opened | secret", "notes": "link"}
    document = {
        "made": {
            "minutes": 2, "seed": 0, "version": "1", "revision": "", "python": "3", "packages": {"torch": "2"},
            "machine": "m",
        },
        "kinds": [
            {"kind": "native", "words": "data", "counts": {"refused": 1200, "leak": 1}, "mutators": ["link"]}
        ],
        "soak": {
            "predictions": 5, "seconds": 1.0, "megabytes_grown": 0.0, "files_grown": 0, "threads_grown": 0, "flat": True,
        },
        "wrong": [report],
    }  # fmt: skip
    text = page.page(document)
    assert "| data (`native`) | 1,201 | 1,200 | 0 | 1 |" in text
    assert "**1 cases went wrong**" in text
    assert "`native:7`" in text


def test_a_minute_of_the_bench_finds_nothing_wrong(tmp_path):
    command = [sys.executable, "-m", "scripts.torture", "--ci", "--minutes", "5", "--output", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (tmp_path / "report.json").is_file(), ended.stderr[-2000:]
    document = json.loads((tmp_path / "report.json").read_text())
    wrong = [f"{r['kind']}:{r['number']} {r['outcome']}: {r['detail'][:200]}" for r in document["wrong"]]
    assert not wrong, "\n".join(wrong)
    assert document["soak"]["flat"], document["soak"]
