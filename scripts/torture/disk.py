"""Disks that are full or read-only, two writers of one file, long and foreign names, links: what is there stays whole."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trebi_gym.agents import TREBIAgent
from trebi_gym.datasets import load, save
from trebi_gym.errors import TrebiError

from .cases import Case, kind, must
from .kills import _log, _start, _wait, trebi
from .material import ENV, Made, make_agent, make_dataset

LIBC = ctypes.CDLL(None, use_errno=True)
MS_RDONLY, MS_REMOUNT, MNT_DETACH = 1, 32, 2
CAN_MOUNT = os.geteuid() == 0
"""Whether small file systems can be made; without, the full disk is left to ``largest file``."""
READERS = {".zip": lambda path: TREBIAgent.load(path, device="cpu"), ".hdf5": load}


@dataclass(frozen=True)
class Material:
    made: Made
    folder: Path


def prepare(folder: Path) -> Material:
    made = make_agent(folder)
    save(make_dataset(episodes=400, length=40, env_id=None), folder / "data.hdf5")
    return Material(made, folder)


def writers(case: Case, folder: Path) -> dict[str, tuple[Callable[[], None], str]]:
    """Return commands that write, and what each writes, under ``folder``."""
    data, agent = case.material.folder / "data.hdf5", case.material.made.path
    risk = "--episodes 4 --risk 0.5 --confidence 0.5"
    lines = {
        "convert": (f"convert --dataset {data} --output {folder}/new.hdf5 --overwrite", "new.hdf5"),
        "convert to minari": (f"convert --dataset {data} --output {folder}/new-v0 --format minari", "new-v0"),
        "learn": (
            f"learn --dataset {data} --output {folder}/new.zip --total-steps 8 --checkpoint-every 2 --overwrite",
            "new.zip",
        ),
        "calibrate": (f"calibrate {agent} --env {ENV} {risk} --output {folder}/new.zip", "new.zip"),
        "evaluate": (
            f"evaluate {agent} --env {ENV} --episodes 2 --budgets 5 --output {folder}",
            "evaluation.json",
        ),
        "record": (f"record {agent} --env {ENV} --budget 5 --output {folder}/film.mp4", "film.mp4"),
        "generate": (
            f"generate --dataset {ENV} --datatype random --total-step 300 --output {folder}/new.hdf5 --overwrite",
            "new.hdf5",
        ),
        "plot": (f"info {data} --plot {folder}/plot.png", "plot.png"),
    }
    return {name: (trebi(line), target) for name, (line, target) in lines.items()}


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """Give a file system of so many bytes."""
    folder.mkdir()
    _mount(folder, 0, f"size={size}")
    try:
        yield folder
    finally:
        LIBC.umount2(os.fsencode(folder), MNT_DETACH)


def _mount(folder: Path, flags: int, options: str) -> None:
    # by the C library: starting a program would look as if the input had started it
    if LIBC.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", flags, options.encode()):
        raise OSError(ctypes.get_errno(), "no file system can be mounted", str(folder))


@kind("disks", "full and read-only disks, two writers, names, links", prepare, limit=300.0)
def attempt(case: Case) -> None:
    ways = sorted(WAYS)
    way = ways[case.number % len(ways)]
    case.note(way)
    WAYS[way](case)


def _refused_or_whole(
    case: Case, folder: Path, target: str, work: Callable[[], None], before: bytes | None
) -> None:
    """Run a command; it must end well, or with one clear line and nothing but what was there."""
    code = _wait(_start(work, case.folder), case.folder)
    litter = [path.name for path in folder.rglob("*") if ".tmp" in path.name]
    must(not litter, f"left {litter}", "litter")
    place = folder / target
    if code == 0:
        if place.suffix in READERS:
            READERS[place.suffix](place)
        must(place.exists(), f"ended well, but {target} is not there", "lost")
        return
    said = _log(case.folder)
    must(code == 2 and "error" in said, f"exit status {code}: {said}", "foreign")
    if before is not None:
        must(place.is_file() and place.read_bytes() == before, f"{target} is not what it was", "lost")
    else:
        must(not place.exists() or target == "evaluation.json", f"refused, but {target} is there", "corrupt")
    raise TrebiError(said.strip()[-200:])


def _old(case: Case, folder: Path, target: str) -> bytes | None:
    """Put something good where the command will write, half of the time."""
    source = {".zip": case.material.made.path, ".hdf5": case.material.folder / "data.hdf5"}.get(
        Path(target).suffix
    )
    if source is None or case.rng.random() < 0.5:
        return None
    with contextlib.suppress(OSError):
        shutil.copy(source, folder / target)
        case.note("over an old one")
        return (folder / target).read_bytes()
    (folder / target).unlink(missing_ok=True)
    return None


def full(case: Case) -> None:
    size = int(case.rng.integers(4, 500)) << 10
    with small_disk(case.folder / "disk", size) as folder:
        name = case.pick(writers(case, folder))
        case.note(f"{name}, {size} bytes")
        work, target = writers(case, folder)[name]
        _refused_or_whole(case, folder, target, work, _old(case, folder, target))


def largest_file(case: Case) -> None:
    """A limit on a file's size, as a quota sets it."""
    folder = case.folder / "disk"
    folder.mkdir()
    size = int(case.rng.integers(1, 300)) << 10
    name = case.pick(name for name in writers(case, folder) if name != "record")
    case.note(f"{name}, {size} bytes")
    work, target = writers(case, folder)[name]

    def held() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        work()

    before = _old(case, folder, target)
    _refused_or_whole(case, folder, target, held, before)


def read_only(case: Case) -> None:
    """A folder that nothing can be written to."""
    name = case.pick(writers(case, case.folder))
    case.note(name)
    if CAN_MOUNT:
        with small_disk(case.folder / "disk", 16 << 20) as folder:
            work, target = writers(case, folder)[name]
            before = _old(case, folder, target)
            _mount(folder, MS_REMOUNT | MS_RDONLY, "")
            _refused_or_whole(case, folder, target, work, before)
    else:
        folder = case.folder / "disk"
        folder.mkdir()
        work, target = writers(case, folder)[name]
        before = _old(case, folder, target)
        folder.chmod(0o555)
        try:
            _refused_or_whole(case, folder, target, work, before)
        finally:
            folder.chmod(0o755)


def two_writers(case: Case) -> None:
    """Two processes write one file at once: it is one of theirs, whole."""
    name = case.pick(("convert", "learn", "calibrate", "evaluate", "record", "generate"))
    work, target = writers(case, case.folder)[name]
    case.note(name)
    children = [_start(work, case.folder) for _ in range(2)]
    codes = [_wait(child, case.folder) for child in children]
    must(0 in codes or codes == [2, 2], f"exit statuses {codes}: {_log(case.folder)}", "foreign")
    litter = [path.name for path in case.folder.iterdir() if ".tmp" in path.name]
    must(not litter, f"left {litter}", "litter")
    if 0 in codes:
        place = case.folder / target
        must(place.is_file(), f"{target} is not there", "lost")
        READERS.get(place.suffix, Path.read_bytes)(place)


def names(case: Case) -> None:
    """Names that are long, foreign, hidden, or have another ending."""
    stem = case.pick(
        (
            "é\u202ež",
            "with space",
            "new\nline",
            "x" * 200,
            "x" * 240,
            "x" * 250,
            "x" * 300,
            ".hidden",
            "a.b.c",
            "-dash",
            "'quote\"",
            "😀",
        )
    )
    ending = case.pick((".hdf5", ".zip", ".ZIP", ""))
    path = case.folder / f"{stem}{ending}"
    case.note(repr(path.name[:30]) + f" of {len(path.name)}")
    case.write_notes()
    if ending == ".hdf5":
        save(case.material.made.dataset, path)
        must(len(load(path)) == len(case.material.made.dataset), "other episodes come back")
    else:
        found = case.material.made.agent.save(path)
        TREBIAgent.load(found, device="cpu")
        must(
            found.suffix.lower() == ".zip" and found.name.lower().count(".zip") == 1, f"saved as {found.name}"
        )
    litter = [item.name for item in case.folder.iterdir() if ".tmp" in item.name]
    must(not litter, f"left {litter}", "litter")


def links(case: Case) -> None:
    """A link where a file is to be written: what it leads to is written, and the link stays."""
    real, link = case.folder / "real", case.folder / f"link{case.pick(('.hdf5', '.zip'))}"
    real.mkdir()
    goal = case.pick(
        (real / f"file{link.suffix}", Path("real") / f"file{link.suffix}", real, link, Path("/dev/null"))
    )
    link.symlink_to(goal)
    case.note(f"{link.name} -> {goal.name}")
    if link.suffix == ".hdf5":
        save(case.material.made.dataset, link)
        found = load(link)
        must(np.array_equal(found.costs, case.material.made.dataset.costs), "other costs come back")
    else:
        case.material.made.agent.save(link)
        TREBIAgent.load(link, device="cpu")
    must(link.is_symlink(), "the link was replaced by a file", "lost")


WAYS: dict[str, Callable[[Case], None]] = {
    **({"full disk": full} if CAN_MOUNT else {}),
    "largest file": largest_file,
    "read-only": read_only,
    "two writers": two_writers,
    "names": names,
    "links": links,
}
