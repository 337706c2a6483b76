"""Runs cases in forked workers, and says what became of each: by its error, its time, its memory, and what it opened.

A worker is forked from a process that has imported everything, so that a case costs milliseconds. The parent watches:
a worker that is too long or too large at one case is killed, the case is counted, and another worker goes on.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from trebi_gym.errors import TrebiError

from .cases import GOOD, KINDS, BadOutcome, Case

BYTES = 2 << 30
SECRET = 7_654_321.0
"""The number that fills the canaries."""
FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "subprocess.Popen",
    "pickle.find_class",
    "socket.connect",
)
"""Audit events that no input may cause."""
HELPERS = ("ffmpeg", "ffplay", "uname")
"""Programs that writing a film starts."""
IN_ACCESS, IN_OPEN, IN_NONBLOCK = 0x1, 0x20, 0o4000
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass
class Report:
    """What became of one case."""

    kind: str
    number: int
    outcome: str
    detail: str
    notes: str
    seconds: float


class Canary:
    """A folder of files that nothing may open; the system tells (inotify) when something does."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        numbers = np.full((64, 3), SECRET, dtype=np.float32)
        (folder / "secret.bin").write_bytes(numbers.tobytes())
        with h5py.File(folder / "secret.hdf5", "w") as file:
            file["secret"] = numbers
            file["flat"] = numbers[:, 0].copy()
        os.mkfifo(folder / "pipe")
        (folder / "torture_canary.py").write_text("RAN = True\ndef run(*args, **kwargs):\n    return 0.0\n")
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._handle = self._libc.inotify_init1(IN_NONBLOCK)
        watched = self._libc.inotify_add_watch(self._handle, os.fsencode(folder / "."), IN_ACCESS | IN_OPEN)
        if self._handle < 0 or watched < 0:
            raise OSError(ctypes.get_errno(), "the canaries cannot be watched")

    def opened(self) -> set[str]:
        """Return the names of what was opened since the last call."""
        names = set()
        with contextlib.suppress(BlockingIOError):
            while True:
                data = os.read(self._handle, 1 << 16)
                while data:
                    size = int.from_bytes(data[12:16], sys.byteorder)
                    names.add(os.fsdecode(data[16 : 16 + size].rstrip(b"\0")))
                    data = data[16 + size :]
        return names - {"", "torture_canary.py"}


def judged(case: Case, canary: Canary, ran: list[str]) -> Report:
    """Run one case here and judge it."""
    started = time.monotonic()
    outcome, detail = "right", ""
    canary.opened()
    ran.clear()
    sys.modules.pop("torture_canary", None)
    _forget_peak()
    floor = _resident(os.getpid())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", RuntimeWarning)
        try:
            KINDS[case.kind].attempt(case)
        except TrebiError as error:
            outcome, detail = "refused", str(error)
        except BadOutcome as error:
            outcome, detail = error.outcome, error.detail
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever comes is what is to be counted
            outcome, detail = "foreign", f"{type(error).__name__}: {error} {_place(error)}"
    if outcome in GOOD and caught:
        outcome, detail = "foreign", f"warning: {caught[0].message} {caught[0].filename}:{caught[0].lineno}"
    seconds, grown = time.monotonic() - started, _peak() - floor
    opened = canary.opened()
    if "torture_canary" in sys.modules or ran:
        outcome, detail = "code", f"ran {', '.join(ran) or 'a module that the input named'}; {detail}"
    elif opened:
        outcome, detail = "leak", f"opened {', '.join(sorted(opened))}; then {outcome}: {detail}"
    elif grown > BYTES:
        outcome, detail = "memory", f"{grown / 1e9:.1f} GB, then {outcome}: {detail}"
    elif seconds > KINDS[case.kind].limit:
        outcome, detail = "hang", f"{seconds:.0f} s, then {outcome}: {detail}"
    return Report(case.kind, case.number, outcome, detail[:600], " + ".join(case.notes), seconds)


def run_cases(
    kind: str,
    numbers: range | list[int],
    *,
    seed: int,
    scratch: Path,
    failing: Path,
    processes: int,
    until: float,
) -> Iterator[Report]:
    """Yield what became of each case, until all are done or the clock (``time.monotonic``) says ``until``.

    The input of a case that went wrong is moved to ``failing/KIND-NUMBER``.
    """
    material = KINDS[kind].prepare(scratch / f"material-{kind}")
    todo = iter(numbers)

    def work(number: int, home: Path, canary: Canary, ran: list[str]) -> Report:
        folder = home / "case"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        os.chdir(folder)
        report = judged(Case(kind, number, seed, folder, canary.folder, material), canary, ran)
        if report.outcome not in GOOD:
            _keep(folder, failing, report)
        return report

    pool = [_Worker(scratch, index, work, KINDS[kind].limit) for index in range(processes)]
    try:
        busy = 0
        for worker in pool:
            busy += worker.give(todo, until)
        while busy:
            for worker in pool:
                if worker.number is None:
                    continue
                report = worker.poll()
                if report is None:
                    continue
                if isinstance(report, tuple):  # it was killed, or it died
                    outcome, detail = report
                    case = worker.number
                    report = Report(kind, case, outcome, detail, "", worker.age())
                    report.notes = worker.notes()
                    _keep(worker.home / "case", failing, report)
                    worker.fork()
                yield report
                busy -= 1
                busy += worker.give(todo, until)
            _wait([worker.answers for worker in pool if worker.number is not None])
    finally:
        for worker in pool:
            worker.end()


class _Worker:
    """A forked process that is sent numbers and sends back reports, one JSON a line."""

    def __init__(self, scratch: Path, index: int, work: Callable[..., Report], limit: float) -> None:
        self.home = scratch / f"worker-{index}"
        self._work, self._limit, self._generation = work, limit, 0
        self.number: int | None = None
        self.fork()

    def fork(self) -> None:
        self._close()
        self._generation += 1
        self.number, self._buffer = None, b""
        shutil.rmtree(self.home, ignore_errors=True)
        self.home.mkdir(parents=True)
        orders, self._orders = os.pipe()
        self.answers, answers = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._orders)
            os.close(self.answers)
            code = 1
            try:
                self._serve(orders, answers)
                code = 0
            finally:
                os._exit(code)
        os.close(orders)
        os.close(answers)
        self._floor = _resident(os.getpid())

    def _serve(self, orders: int, answers: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        quiet = os.open(os.devnull, os.O_RDWR)
        os.dup2(quiet, 0)
        log = os.open(self.home / "output", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        canary, ran = Canary(self.home / "canary"), []
        sys.path.insert(0, str(canary.folder))

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if event in FORBIDDEN and not Path(str(arguments[0])).name.startswith(HELPERS):
                ran.append(f"{event} {arguments[:1]}")

        sys.addaudithook(hook)
        with os.fdopen(orders) as lines:
            for line in lines:
                os.truncate(self.home / "output", 0)
                report = self._work(int(line), self.home, canary, ran)
                os.write(answers, json.dumps(asdict(report)).encode() + b"\n")

    def give(self, todo: Iterator[int], until: float) -> int:
        self.number = next(todo, None) if time.monotonic() < until else None
        if self.number is None:
            return 0
        self._since = time.monotonic()
        os.write(self._orders, b"%d\n" % self.number)
        return 1

    def age(self) -> float:
        return time.monotonic() - self._since

    def notes(self) -> str:
        found = self.home / "case" / "notes.txt"
        return found.read_text() if found.is_file() else ""

    def poll(self) -> Report | tuple[str, str] | None:
        if select.select([self.answers], [], [], 0)[0]:
            data = os.read(self.answers, 1 << 16)
            if not data:
                _, status = os.waitpid(self.pid, 0)
                self.pid = 0
                return "crash", f"ended by {os.waitstatus_to_exitcode(status)}"
            self._buffer += data
            if self._buffer.endswith(b"\n"):
                found, self._buffer = json.loads(self._buffer), b""
                return Report(**found)
        if self.age() > self._limit + 1:
            return "hang", f"more than {self._limit:.0f} s"
        grown = _resident(self.pid) - self._floor
        if grown > BYTES + (1 << 28):
            return "memory", f"{grown / 1e9:.1f} GB and growing"
        return None

    def _close(self) -> None:
        if self._generation:
            if self.pid:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
            os.close(self._orders)
            os.close(self.answers)

    def end(self) -> None:
        self._close()
        shutil.rmtree(self.home, ignore_errors=True)


def _keep(folder: Path, failing: Path, report: Report) -> None:
    target = failing / f"{report.kind}-{report.number}"
    shutil.rmtree(target, ignore_errors=True)
    with contextlib.suppress(OSError, shutil.Error):
        shutil.copytree(folder, target, symlinks=True, copy_function=_copy_small)
    target.mkdir(parents=True, exist_ok=True)
    (target / "report.json").write_text(json.dumps(asdict(report), indent=1))


def _copy_small(source: str, target: str) -> None:
    if os.path.islink(source) or (os.path.isfile(source) and os.path.getsize(source) < 4 << 20):
        shutil.copy2(source, target, follow_symlinks=False)


def _place(error: BaseException) -> str:
    trace, last = error.__traceback__, ""
    while trace is not None:
        path = trace.tb_frame.f_code.co_filename
        if (
            any(f"/{part}/" in path for part in ("trebi_gym", "agents", "datasets", "envs"))
            and "site-packages" not in path
        ):
            last = f"at {path.rsplit('/', 2)[-2]}/{Path(path).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return last


def _wait(handles: list[int]) -> None:
    if handles:
        select.select(handles, [], [], 0.05)


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    except (OSError, IndexError):
        return 0


def _forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return 0
