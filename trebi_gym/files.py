"""Writing a file so that a crash leaves either the finished file or none."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from trebi_gym.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def check_writable(path: str | os.PathLike[str]) -> None:
    """Find out whether ``path`` can be written before hours of work go into what it is to hold; makes its folder.

    Raises:
        ConfigError: it cannot.
    """
    target = Path(path)
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder", str(target))
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise ConfigError(
            f"{target} cannot be written: {error.strerror or error}; choose another place"
        ) from error


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write to; on success move it into place, on failure remove it.

    The data are flushed to the disk before the move, so ``path`` is never half-written.

    Raises:
        FileNotFoundError: nothing was written to the temporary path.
        OSError: the folder cannot be made or written to.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(
        dir=target.parent, prefix=f".{target.stem}-", suffix=f".tmp{target.suffix}"
    )
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        # mkstemp makes private files; the result gets what the user's umask allows
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary folder beside ``path`` to fill; on success rename it to ``path``, on failure remove it.

    Every file in it is flushed to the disk before, so a folder at ``path`` is never half-filled.

    Raises:
        FileExistsError: there is something at ``path`` when the folder is finished.
        OSError: the folder cannot be made or written to.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-", suffix=".tmp"))
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb+") as opened:
                    os.fsync(opened.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        if target.exists():
            raise FileExistsError(errno.EEXIST, "something was put there meanwhile", str(target))
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def lock(path: str | os.PathLike[str]) -> IO[str] | None:
    """Return an open file that no other process holds, or None where one does.

    The system lets go of it when it is closed or the process ends, however it ends. Where the system has no such locks it
    is never held.
    """
    target = Path(path)
    held = target.open("w")
    if fcntl is not None:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            held.close()
            return None
    return held
