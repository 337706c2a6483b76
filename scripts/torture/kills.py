"""Every command that writes is killed at a random moment and run again: nothing corrupt, nothing lost, no litter, equal.

A command runs in a forked child, so that what is hit is its work and not its start. SIGKILL may leave temporary files,
but the next run of the same command takes them away; SIGTERM and SIGINT may leave none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from scripts.download_pretrained import download, unpack
from scripts.results.cells import pack, read_cell, settle
from scripts.results.cells import unpack as unpack_cells
from trebi_gym.agents import TREBIAgent
from trebi_gym.commands.cli import main
from trebi_gym.commands.common import run
from trebi_gym.commands.demo import demo as run_demo
from trebi_gym.datasets import load, save
from trebi_gym.errors import TrebiError

from .cases import BadOutcome, Case, kind, must
from .material import ENV, ROOT, make_agent, make_dataset

PATIENCE = 240.0  # seconds for a command to end after SIGTERM or SIGINT, and to be run again
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
DIFFUSER = ROOT / "tests" / "data" / "diffuser" / "hopper-medium-replay-v2"


@dataclass(frozen=True)
class Command:
    """A command, how it is run again, and what it makes: each is read after a kill, if it is there."""

    first: Callable[[], None]
    again: Callable[[], None]
    made: dict[str, Callable[[Path], Any]]
    """What it makes, relative to its folder, and how that is read: what reading returns is compared."""
    inputs: tuple[str, ...] = ()


# reading results, as far as they are promised to be equal


def agent_bytes(path: Path) -> str:
    TREBIAgent.load(path, device="cpu")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def arrays(path: Path) -> str:
    found, total = load(path), hashlib.sha256()
    for name in ("observations", "actions", "rewards", "costs", "lengths", "terminated", "truncated"):
        total.update(np.ascontiguousarray(getattr(found, name)).tobytes())
    return total.hexdigest()


def table(path: Path) -> str:
    return path.read_text()


def whole(path: Path) -> int:
    """Only that it is there and not empty, where times are in it."""
    must(path.stat().st_size > 0, f"{path.name} is empty", "corrupt")
    if path.suffix == ".json":
        json.loads(path.read_text())
    return 0


def film(path: Path) -> int:
    import imageio.v3 as iio

    return len(list(iio.imiter(path)))


def cell(path: Path) -> Any:
    return read_cell(path).found


# the commands


def trebi(line: str) -> Callable[[], None]:
    return lambda: main(line.split())


def learn_again(line: str, target: str) -> Callable[[], None]:
    first = line.split()

    def again() -> None:
        if Path(target).with_suffix(".partial.zip").exists():
            extra = ["--overwrite"] if first[0] == "learn" and Path(target).exists() else []
            main([*first, "--resume", *extra])
        elif first[0] == "learn" and Path(target).exists():
            return
        else:
            main(first)

    return again


def unless_there(first: Callable[[], None], target: str) -> Callable[[], None]:
    return lambda: None if Path(target).exists() else first()


def generate_again(line: str, target: str) -> Callable[[], None]:
    first = line.split()

    def again() -> None:
        folder = Path(target).with_suffix(".parts")
        begun = any(path.name == "state.json" or path.name.startswith("part-") for path in folder.rglob("*"))
        if begun:
            main([*first, "--resume", "--overwrite"])
        elif not Path(target).exists():
            main(first)

    return again


def fetch() -> None:
    address = (Path.cwd().parent / "archive.tar").as_uri()

    def work() -> None:
        if not Path("archive.tar").exists():
            download(address, Path("archive.tar"), size=(Path.cwd().parent / "archive.tar").stat().st_size)
        if not Path("unpacked").exists():
            unpack(Path("archive.tar"), Path("unpacked"))

    run(work)


def cells() -> None:
    def work() -> None:
        output = Path("cells/pendulum")
        for number in range(6):
            request = {"number": number, "values": list(range(2000))}
            settle(output / f"sample-{number}.json", request, lambda n=number: _slow(n), device="cpu")
        pack(Path("cells"), Path("cells.json.gz"))
        unpack_cells(Path("cells.json.gz"), Path("copy"))

    run(work)


def _slow(number: int) -> dict[str, Any]:
    time.sleep(0.05)
    return {"values": [number] * 20_000}


def demo() -> None:
    run(lambda: run_demo(Path("demo"), seed=0, episodes=1, total_steps=8))


LEARN = "learn --dataset long.hdf5 --output new.zip --total-steps 40 --checkpoint-every 4"
OWN = "learn-part cost_critic --agent agent.zip --dataset data.hdf5 --total-steps 40 --checkpoint-every 4"
PART = f"{OWN} --output new.zip"
IMPORT = f"import diffuser {DIFFUSER} --output new.zip --dataset hopper.hdf5 --seed 0 --overwrite"
CALIBRATE = f"calibrate agent.zip --env {ENV} --episodes 10 --risk 0.5 --confidence 0.5 --output new.zip"
EVALUATE = f"evaluate agent.zip --env {ENV} --episodes 8 --budgets 3 9 --output out"
RECORD = f"record agent.zip --env {ENV} --budget 9 --output film.mp4"
CRITICS = "critics agent.zip --dataset data.hdf5 --windows 200 --output out"
CONVERT = "convert --dataset data.hdf5 --output new.hdf5 --format d4rl --overwrite"
MINARI = "convert --dataset data.hdf5 --output new-v0 --format minari"
RANDOM = f"generate --dataset {ENV} --datatype random --total-step 3000 --output made.hdf5"
REPLAY = (
    f"generate --dataset {ENV} --datatype medium-replay --total-step 400 --output made.hdf5 "
    "--hyperparameters small.json"
)
REPORTS: dict[str, Callable[[Path], Any]] = {
    "out/evaluation.json": whole,
    "out/evaluation.csv": table,
    "out/evaluation.png": whole,
}

COMMANDS: dict[str, Command] = {
    "generate random": Command(trebi(RANDOM), generate_again(RANDOM, "made.hdf5"), {"made.hdf5": arrays}),
    "generate medium-replay": Command(
        trebi(REPLAY), generate_again(REPLAY, "made.hdf5"), {"made.hdf5": arrays}, ("small.json",)
    ),
    "learn": Command(trebi(LEARN), learn_again(LEARN, "new.zip"), {"new.zip": agent_bytes}, ("long.hdf5",)),
    "learn-part": Command(
        trebi(PART), learn_again(PART, "new.zip"), {"new.zip": agent_bytes}, ("data.hdf5", "agent.zip")
    ),
    "learn-part in place": Command(
        trebi(OWN), learn_again(OWN, "agent.zip"), {"agent.zip": agent_bytes}, ("data.hdf5",)
    ),
    "import": Command(trebi(IMPORT), trebi(IMPORT), {"new.zip": agent_bytes}, ("hopper.hdf5",)),
    "calibrate": Command(trebi(CALIBRATE), trebi(CALIBRATE), {"new.zip": agent_bytes}, ("agent.zip",)),
    "evaluate": Command(trebi(EVALUATE), trebi(EVALUATE), REPORTS, ("agent.zip",)),
    "record": Command(trebi(RECORD), trebi(RECORD), {"film.mp4": film}, ("agent.zip",)),
    "critics": Command(
        trebi(CRITICS),
        trebi(CRITICS),
        {"out/critics.json": whole, "out/critics.csv": table},
        ("agent.zip", "data.hdf5"),
    ),
    "convert": Command(trebi(CONVERT), trebi(CONVERT), {"new.hdf5": arrays}, ("data.hdf5",)),
    "convert to minari": Command(
        trebi(MINARI), unless_there(trebi(MINARI), "new-v0"), {"new-v0": arrays}, ("data.hdf5",)
    ),
    "download": Command(
        fetch, fetch, {"unpacked/inside": lambda path: hashlib.sha256(path.read_bytes()).hexdigest()}
    ),
    "results cells": Command(cells, cells, {f"cells/pendulum/sample-{n}.json": cell for n in range(6)}),
    "demo": Command(demo, demo, {"demo/agent.zip": agent_bytes, "demo/evaluation.csv": table}),
}


@dataclass
class Inputs:
    """Where the inputs lie, and what each command makes when nothing disturbs it (found on its first use)."""

    folder: Path
    undisturbed: dict[str, tuple[float, dict[str, Any], set[str]]]


def prepare(folder: Path) -> Inputs:
    made = make_agent(folder)
    save(made.dataset, folder / "data.hdf5")
    save(make_dataset(length=40, env_id=None), folder / "long.hdf5")
    shutil.copy(made.path, folder / "agent.zip") if made.path != folder / "agent.zip" else None
    with h5py.File(folder / "hopper.hdf5", "w") as file:
        rng = np.random.default_rng(0)
        for key, width in (
            ("observations", 11),
            ("actions", 3),
            ("rewards", 0),
            ("costs", 0),
            ("terminals", 0),
            ("timeouts", 0),
        ):
            file[key] = (
                rng.uniform(-1, 1, (120, width))
                if width
                else np.arange(120) % 40 == 39
                if key == "timeouts"
                else np.zeros(120)
            )
    small = {"learning_starts": 100, "batch_size": 16, "policy_kwargs": {"net_arch": [8]}}
    (folder / "small.json").write_text(json.dumps(small))
    inside = folder / "inside"
    inside.write_bytes(np.random.default_rng(1).bytes(8 << 20))
    with tarfile.open(folder / "archive.tar", "w") as archive:
        archive.add(inside, "inside")
    return Inputs(folder, {})


@kind("kills", "commands killed at random moments and run again", prepare, limit=600.0)
def attempt(case: Case) -> None:
    names = list(COMMANDS)
    turn, place = divmod(case.number, len(names))
    name, number = names[place], SIGNALS[turn % len(SIGNALS)]
    if name == "demo" and turn % 4:  # it takes a hundred times as long as the others
        name = "learn"
    try:
        kill_once(case, name, number)
    except TrebiError as error:  # of reading what was made: nothing here is to be refused
        raise BadOutcome("corrupt", f"cannot be read: {error}") from error


def kill_once(case: Case, name: str, number: signal.Signals) -> None:
    """Run a command undisturbed (once for each worker), then kill it at a random moment, look, run it again, compare."""
    inputs, command = case.material, COMMANDS[name]
    archive = case.folder.parent / "archive.tar"
    if not archive.exists():
        shutil.copy(inputs.folder / "archive.tar", archive)
    if name not in inputs.undisturbed:
        folder = _folder(case.folder.parent / "undisturbed", inputs, command)
        started = time.monotonic()
        _finish(_start(command.first, folder), folder)
        inputs.undisturbed[name] = time.monotonic() - started, _read(command, folder), _files(folder)
        shutil.rmtree(folder)
    seconds, expected, files = inputs.undisturbed[name]
    folder = _folder(case.folder.parent / "killed", inputs, command)
    moment = float(case.rng.uniform(0, 1.1 * seconds))
    case.note(f"{name}, {number.name} after {moment:.3f} of {seconds:.3f} s")
    case.write_notes()
    try:
        child = _start(command.first, folder)
        time.sleep(moment)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)
        _wait(child, folder)
        if number != signal.SIGKILL:
            litter = [path for path in _files(folder) if ".tmp" in path]
            must(not litter, f"{number.name} left {litter}", "litter")
        for place, reader in command.made.items():
            if (folder / place).exists():
                try:
                    reader(folder / place)
                except Exception as error:  # noqa: BLE001 - any failure to read means it is corrupt
                    must(False, f"{place} cannot be read: {error}", "corrupt")
        for place in command.inputs:
            must(
                (folder / place).read_bytes() == (inputs.folder / place).read_bytes(),
                f"{place} is changed",
                "lost",
            )
        _finish(_start(command.again, folder), folder)
        found = _read(command, folder)
        differing = [place for place in expected if found[place] != expected[place]]
        must(not differing, f"{', '.join(differing)} differ from an undisturbed run's")
        must(_files(folder) <= files, f"left {sorted(_files(folder) - files)}", "litter")
        must(_files(folder) >= files, f"lacks {sorted(files - _files(folder))}", "lost")
    except BaseException:
        shutil.copytree(folder, case.folder / "killed", symlinks=True, dirs_exist_ok=True)
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _folder(folder: Path, inputs: Inputs, command: Command) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in {*command.inputs, "agent.zip", "data.hdf5"}:
        shutil.copy(inputs.folder / name, folder)
    return folder


def _start(work: Callable[[], None], folder: Path) -> int:
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        os.setpgid(0, 0)
        os.chdir(folder)
        log = os.open(folder.with_name(folder.name + ".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        work()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except KeyboardInterrupt:
        code = 130
    except BaseException:  # noqa: BLE001 - a traceback is what the log is for
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(child: int, folder: Path) -> int:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child, signal.SIGKILL)  # what it had started, such as ffmpeg
            code = os.waitstatus_to_exitcode(status)
            must(code != 70, f"traceback: {_log(folder)}", "foreign")
            return code
        time.sleep(0.005)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    must(False, f"did not end within {PATIENCE:.0f} s", "hang")
    return 1


def _finish(child: int, folder: Path) -> None:
    code = _wait(child, folder)
    must(code == 0, f"run again: exit status {code}: {_log(folder)}", "lost")


def _log(folder: Path) -> str:
    return folder.with_name(folder.name + ".log").read_text(errors="replace")[-400:]


def _read(command: Command, folder: Path) -> dict[str, Any]:
    return {place: reader(folder / place) for place, reader in command.made.items()}


def _files(folder: Path) -> set[str]:
    """Return the files there, without locks and training logs: those of a killed run stay, as they should."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "locks" not in path.parts and "tfevents" not in path.name
    }
