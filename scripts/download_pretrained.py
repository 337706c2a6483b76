"""Download the models that Diffuser publishes, and unpack them for ``trebi import diffuser``.

A broken connection costs nothing, and a wrong file is never taken for the right one.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import importlib
import json
import os
import re
import tarfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from tqdm import tqdm

from trebi_gym.commands.common import run
from trebi_gym.errors import TrebiError
from trebi_gym.files import replacing_folder

PUBLISHED_ID = "1wc1m4HLj7btaYDN8ogDIAV9QzgWEckGy"
"""Of the archive of Diffuser's models on Google Drive, as its published script names it; it publishes no hash."""
ATTEMPTS = 5
"""Connections in a row that may break off without one new byte."""
CHUNK = 1 << 20
TIMEOUT = 60  # seconds without a byte

Progress = Callable[[int], Any]  # called with the number of new bytes


class DownloadError(TrebiError, OSError):
    """A file that could not be downloaded, or is not what it should be."""


def download(
    url: str,
    target: Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    progress: Progress | None = None,
) -> str:
    """Download a file, going on where an earlier call or a broken connection stopped, and return its SHA-256.

    What has come is kept in ``<target>.part``; ``target`` appears when everything has come and was checked. A file that
    changed on the server meanwhile is begun anew, never joined.

    Args:
        url: http, https or file.
        target: the file.
        size: bytes that it must have, beside what the server announces.
        sha256: that it must have.
        progress: called with the number of new bytes.

    Raises:
        DownloadError: no such file, connections that keep breaking, or another size or hash; the last two remove what
            came, since it cannot be mended.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https", "file"):
        raise DownloadError(f"a download's address begins with https://, http:// or file://; got {url!r}")
    part = target.with_name(target.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    fruitless = 0
    while True:
        before = part.stat().st_size if part.is_file() else 0
        try:
            _fetch(url, part, progress)
            break
        except urllib.error.HTTPError as error:
            raise DownloadError(f"{url}: the server answered {error.code} {error.reason}") from error
        except (OSError, http.client.HTTPException) as error:
            came = (part.stat().st_size if part.is_file() else 0) - before
            fruitless = 0 if came > 0 else fruitless + 1
            if fruitless >= ATTEMPTS:
                raise DownloadError(
                    f"{url} broke off {ATTEMPTS} times in a row without a new byte ({error}); {part} holds what came: "
                    "the same command goes on from there"
                ) from error
    _check(part, url, size, sha256)
    found = _hash(part)
    os.replace(part, target)
    _validator(part).unlink(missing_ok=True)
    return found


def download_from_drive(identifier: str, target: Path) -> str:
    """Download from Google Drive by gdown, which knows its pages, and return the SHA-256.

    Raises:
        DownloadError: gdown is not installed, or could not get the file.
    """
    try:
        gdown = importlib.import_module("gdown")
    except ImportError as error:
        raise DownloadError(
            "Google Drive needs gdown: pip install 'trebi-gym[download]', or pass --url of a mirror"
        ) from error
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        found = gdown.download(id=identifier, output=str(target), resume=True)
    except Exception as error:
        raise DownloadError(
            f"Google Drive did not give {identifier}: {error}; pass --url of a mirror"
        ) from error
    if not found or not target.is_file():
        raise DownloadError(f"Google Drive did not give {identifier}; pass --url of a mirror")
    return _hash(target)


def check_file(path: Path, *, size: int | None, sha256: str | None) -> None:
    """Raise and remove the file unless it has this size and hash, as far as they are given.

    Raises:
        DownloadError: it does not.
    """
    _check(path, str(path), size, sha256)


def unpack(archive: Path, folder: Path) -> list[Path]:
    """Unpack a tar archive into a new folder, whole or not at all, and return what lies in it.

    Nothing can be written outside of the folder: names that lead there are refused, links and devices too.

    Raises:
        DownloadError: it is no tar archive, is damaged, or holds a name that leads outside.
        FileExistsError: the folder is there already.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists already; delete it, or choose another --output")
    try:
        with replacing_folder(folder) as temporary, tarfile.open(archive) as opened:
            opened.extractall(temporary, filter="data")
            _check_end(opened)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise DownloadError(f"{archive} cannot be unpacked: {error}") from error
    return sorted(folder.iterdir())


def _check_end(archive: tarfile.TarFile) -> None:
    """Raise unless what was read ends as archives do: one that was cut between two files looks whole otherwise."""
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError("its end is missing, it was cut short")


def _fetch(url: str, part: Path, progress: Progress | None) -> None:
    """Get what is missing of ``part``; raises where the connection ends before everything came."""
    have = part.stat().st_size if part.is_file() else 0
    known = _read_validator(part) if have else None
    request = urllib.request.Request(url)
    if have and known:
        # with If-Range the server sends everything anew if the file is another one than before
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", known)
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is missing, or the file became shorter: only the whole tells
            part.unlink()
        raise ConnectionError("the server has no such range") if error.code == 416 else error from error
    with answer:
        validator = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        start, whole = 0, None
        if getattr(answer, "status", 200) == 206:
            start, whole = _range(answer)
            if start != have or validator != known:
                part.unlink()  # another file, or another piece of it: it is begun anew
                raise ConnectionError(
                    f"the server sent a piece from byte {start} marked {validator!r}, not one from {have} marked {known!r}"
                )
        if validator and not validator.startswith("W/"):
            _validator(part).write_text(json.dumps(validator))
        else:
            _validator(part).unlink(missing_ok=True)
        announced = answer.headers.get("Content-Length", "")
        expected = whole or (start + int(announced) if announced.isdecimal() else None)
        if progress is not None and start:
            progress(start)
        with part.open("r+b" if start else "wb") as file:
            file.seek(start)
            while chunk := answer.read1(CHUNK):
                file.write(chunk)
                if progress is not None:
                    progress(len(chunk))
            file.flush()
            os.fsync(file.fileno())
            came = file.tell()
    if expected is not None and came != expected:
        raise ConnectionError(f"the connection ended after {came} of {expected} bytes")


def _range(answer: Any) -> tuple[int, int | None]:
    """Return the first byte of a piece and the size of the whole, as far as the answer tells them."""
    match = re.match(r"bytes (\d+)-\d+/(\d+|\*)$", answer.headers.get("Content-Range", ""))
    if not match:
        return -1, None
    return int(match[1]), None if match[2] == "*" else int(match[2])


def _validator(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_validator(part: Path) -> str | None:
    with contextlib.suppress(OSError, ValueError):
        return str(json.loads(_validator(part).read_text()))
    return None


def _check(path: Path, name: str, size: int | None, sha256: str | None) -> None:
    found = path.stat().st_size
    wrong = f"has {found} bytes, not {size}" if size is not None and found != size else None
    if wrong is None and sha256 is not None and _hash(path) != sha256.lower():
        wrong = f"has the SHA-256 {_hash(path)}, not {sha256}"
    if wrong is not None:
        path.unlink()
        _validator(path).unlink(missing_ok=True)
        raise DownloadError(
            f"{name} {wrong}; what came was removed: try another --url, or check what was asked for"
        )


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Arguments:
    """Download the archive of Diffuser's models (some hundred MB), and unpack it."""

    output: Path = Path("logs/pretrained")
    """The new folder for what is in the archive."""
    url: str | None = None
    """Of a mirror of the archive, a tar file; default: Google Drive, where Diffuser publishes it, by gdown."""
    size: int | None = None
    """Bytes that the archive must have."""
    sha256: str | None = None
    """Hash that the archive must have; Diffuser publishes none, so the one found is printed for the next time."""
    keep_archive: bool = False
    """Keep the archive beside the folder."""


def main(arguments: Arguments) -> None:
    """Download, check, unpack."""
    if arguments.output.exists():
        raise FileExistsError(f"{arguments.output} exists already; delete it, or choose another --output")
    archive = arguments.output.with_name(arguments.output.name + ".tar")
    if arguments.url is None:
        found = download_from_drive(PUBLISHED_ID, archive)
        check_file(archive, size=arguments.size, sha256=arguments.sha256)
    else:
        with tqdm(unit="B", unit_scale=True, desc=archive.name) as bar:
            found = download(
                arguments.url, archive, size=arguments.size, sha256=arguments.sha256, progress=bar.update
            )
    print(f"{archive.stat().st_size} bytes, SHA-256 {found}")
    unpack(archive, arguments.output)
    if not arguments.keep_archive:
        archive.unlink()
    tasks = sorted(path.parent for path in arguments.output.rglob("diffusion") if path.is_dir())
    print(
        f"unpacked to {arguments.output}: {', '.join(path.name for path in tasks) or 'no task of Diffuser is in it'}"
    )
    for task in tasks[:1]:
        print(f"next: trebi import diffuser {task} --output agent.zip")


if __name__ == "__main__":
    run(lambda: main(tyro.cli(Arguments)))
