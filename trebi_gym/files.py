"""Writing a file so that a crash leaves either the finished file or none, and reading JSON that may be anybody's."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from trebi_gym.errors import ConfigError, StorageError, TrebiError

try:
    import fcntl
    import resource
except ImportError:  # Windows
    fcntl = resource = None  # type: ignore[assignment]

Place = str | os.PathLike[str]

TEMPORARY = re.compile(r"\..{0,80}~([0-9a-f]{8})-(\d+)-(\d+)-[0-9a-f]{8}\.tmp(\..*)?", re.DOTALL)
"""A temporary name: host, process and its start, by which those of processes that have ended are known."""
LONGEST_STEM = 60
"""Bytes of the target's name that its temporary name keeps; file systems allow 255 in all."""
LARGEST_JSON = 1 << 28
"""Bytes of a JSON file that are read."""


def check_writable(path: Place) -> None:
    """Find out whether ``path`` can be written before hours of work go into what it is to hold; makes its folder.

    Raises:
        ConfigError: it cannot.
    """
    try:
        target = _real(path)
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder", str(target))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(target)
        with temporary.open("xb"):
            pass
        temporary.unlink()
        # a name that is too long is found out as well
        with contextlib.suppress(FileNotFoundError):
            target.stat()
        remove_litter(target.parent)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be written: {_reason(error)}; choose another place") from error


def check_room(path: Place, size: int) -> None:
    """Find out whether the disk has room for ``size`` bytes at ``path``, and files may be so large; makes its folder.

    Raises:
        StorageError: it has not.
    """
    with _told(path):
        folder = _real(path).parent
        folder.mkdir(parents=True, exist_ok=True)
        room = shutil.disk_usage(folder).free
        if resource is not None:
            limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
            room = room if limit == resource.RLIM_INFINITY else min(room, limit)
        if room < size:
            raise OSError(errno.ENOSPC, f"it needs {size} bytes, and there is room for {room}", str(path))


@contextlib.contextmanager
def replacing(path: Place) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write to; on success move it into place, on failure remove it.

    The data are flushed to the disk before the move, so ``path`` is never half-written. A symbolic link at ``path`` is
    written through. What writers of the same folder left there that were killed is removed.

    Raises:
        StorageError: the folder cannot be made, or the file cannot be written there; what was there before is unchanged.
        FileNotFoundError: nothing was written to the temporary path.
    """
    with _told(path):
        target = _real(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_litter(target.parent)
        temporary = _temporary(target)
        with temporary.open("xb"):
            pass
    try:
        with _told(path):
            yield temporary
        if not temporary.exists():
            raise FileNotFoundError(errno.ENOENT, "nothing was written", str(temporary))
        with _told(path):
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: Place) -> Iterator[Path]:
    """Give a temporary folder beside ``path`` to fill; on success rename it to ``path``, on failure remove it.

    Every file in it is flushed to the disk before, so a folder at ``path`` is never half-filled.

    Raises:
        FileExistsError: there is something at ``path`` when the folder is finished.
        StorageError: the folder cannot be made or written to.
    """
    target = Path(path)
    with _told(path):
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_litter(target.parent)
        temporary = _temporary(target)
        temporary.mkdir()
    try:
        with _told(path):
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    with file.open("rb+") as opened:
                        os.fsync(opened.fileno())
        with _told(path):
            taken = target.exists()
            if not taken:
                temporary.rename(target)
        if taken:
            raise FileExistsError(errno.EEXIST, "something was put there meanwhile", str(target))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_litter(folder: Path) -> None:
    """Remove the temporary files in a folder whose processes have ended, as a killed one cannot do it by itself."""
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            found = TEMPORARY.fullmatch(entry.name)
            if found is None or found[1] != _host() or _is_running(int(found[2]), int(found[3])):
                continue
            with contextlib.suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    os.unlink(entry.path)


def lock(path: Place) -> IO[str] | None:
    """Return an open file that no other process holds, or None where one does.

    The system lets go of it when it is closed or the process ends, however it ends. Where the system has no such locks it
    is never held.

    Raises:
        StorageError: it cannot be written.
    """
    with _told(path):
        held = Path(path).open("w")  # noqa: SIM115 (the caller closes it)
    if fcntl is not None:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            held.close()
            return None
    return held


def check_regular(path: Place, error: type[TrebiError] = StorageError) -> None:
    """Raise unless a path leads to a regular file: opening a pipe or a device may wait for ever or never end.

    Raises:
        TrebiError: or ``error``: it does not.
    """
    reason = _irregular(path)
    if reason is not None:
        raise error(f"{path} cannot be read: {reason}")


def _irregular(path: Place) -> str | None:
    """Return why a path cannot be read as a file; None where it can."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        return _reason(error)
    return (
        None if stat.S_ISREG(mode) else "it is no regular file, but a folder, a pipe or a device; give a file"
    )


def read_json(path: Place, what: str, error: type[TrebiError] = StorageError) -> Any:
    """Return what a JSON file holds.

    Args:
        path: the file.
        what: it should be, for the message, such as "a saved calibration".
        error: what is raised.

    Raises:
        TrebiError: or ``error``: it is missing, no regular file, too large, not JSON, or nested too deeply.
    """
    irregular = _irregular(path)
    if irregular is not None:
        raise error(f"{path} is not {what}: {irregular}")
    try:
        size = os.stat(path).st_size
        if size > LARGEST_JSON:
            raise ValueError(f"it has {size} bytes, more than the {LARGEST_JSON} that are read")
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as reason:
        raise error(f"{path} is not {what}: {_reason(reason)}") from reason


@contextlib.contextmanager
def _told(path: Place) -> Iterator[None]:
    """Turn an error of the system into one that says which file could not be written, and what to do.

    Raises:
        StorageError: in the place of an OSError.
    """
    try:
        yield
    except TrebiError:
        raise
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) and "null" not in str(error):
            raise
        raise StorageError(
            f"{path} could not be written: {_reason(error)}; what was there before is unchanged: free space or choose "
            "another place"
        ) from error


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error)


def _real(path: Place) -> Path:
    """Return where a path leads to: a symbolic link is written through."""
    target = Path(path)
    if target.is_symlink():
        target = Path(os.path.realpath(target))
    # neither a link that leads to itself nor a device is replaced by a file
    with contextlib.suppress(FileNotFoundError):
        mode = target.lstat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise OSError(errno.EINVAL, "it is a pipe, a device, or a link that leads to itself", str(path))
    return target


def _temporary(target: Path) -> Path:
    """Return a name beside ``target`` that tells whose it is."""
    stem = os.fsencode(target.stem)[:LONGEST_STEM].decode(errors="ignore")
    owner = f"{_host()}-{os.getpid()}-{_started(os.getpid())}"
    suffix = target.suffix.lower() if len(os.fsencode(target.suffix)) <= LONGEST_STEM else ""
    return target.with_name(f".{stem}~{owner}-{secrets.token_hex(4)}.tmp{suffix}")


def _host() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _started(process: int) -> int:
    """Return when a process began, in the system's own count; 0 where the system does not tell."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return int(fields[19])
    except (OSError, ValueError, IndexError):
        return 0


def _is_running(process: int, started: int) -> bool:
    """Return whether the process that began at ``started`` still runs; its number may have gone to another one."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # another user's, or not to be told
    return _started(process) == started
