"""Saved agents: one zip of JSON and safetensors, written whole or not at all; reading one runs no code from it."""

from __future__ import annotations

import io
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from trebi_gym.errors import CheckpointError, ConfigError
from trebi_gym.files import check_writable, replacing

FORMAT = "trebi-gym agent"
VERSION = 1
DESCRIPTION = "agent.json"
TENSORS = "tensors.safetensors"
MAX_BYTES = {DESCRIPTION: 32 << 20, TENSORS: 4 << 30}
"""A larger member is refused before it is unpacked."""
MAX_UNPACKED = (64 << 20, 32)
"""A member of more bytes than the first may unpack to the second times its packed bytes: weights hardly pack at all."""
MAX_DIRECTORY = 1 << 16
"""Bytes of the zip's table of contents, which has two entries; with those of a comment and the end record."""
MAX_HEADER = 16 << 20
"""Bytes of the list of tensors; one of a hundred models takes less."""


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a file: what is known as JSON, and named tensors."""

    description: dict[str, Any]
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        """Return the tensors whose names begin with ``prefix.``, without it."""
        start = prefix + "."
        return {name[len(start) :]: value for name, value in self.tensors.items() if name.startswith(start)}


def zip_path(path: str | os.PathLike[str]) -> Path:
    """Return where an agent is saved that is asked for at ``path``: with the ending ``.zip``, added if it has none.

    Raises:
        ConfigError: the path names no file.
    """
    target = Path(path)
    if target.name in ("", ".."):
        raise ConfigError(f"{path} is a folder; pass the file to write, such as {target / 'agent.zip'}")
    return target if target.suffix.lower() == ".zip" else target.with_name(target.name + ".zip")


def write(
    path: str | os.PathLike[str], description: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> Path:
    """Write a checkpoint; ``path`` gets the ending ``.zip`` if it has none. Returns the file's path.

    Raises:
        ConfigError: it cannot be written there.
    """
    target = zip_path(path)
    check_writable(target)
    packed = save_tensors(
        {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    )
    document = json.dumps({"format": FORMAT, "version": VERSION, **description}, indent=2, sort_keys=True)
    with replacing(target) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in ((DESCRIPTION, document.encode()), (TENSORS, packed)):
            # a fixed date, so that equal agents are equal files
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED)
    return target


def read(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint.

    What it takes to read one is bounded by the file's size: nothing is unpacked before its sizes are compared with that.

    Raises:
        CheckpointError: there is no such file, or it is not a saved agent.
    """
    target = Path(path)
    try:
        if not target.is_file() and target.suffix.lower() != ".zip" and zip_path(target).is_file():
            target = zip_path(target)
        if not target.is_file():
            raise CheckpointError(f"there is no saved agent at {path}")
        with _Bounded(target) as file, zipfile.ZipFile(file) as archive:
            file.most = None
            _check_members(target, archive)
            description = json.loads(archive.read(DESCRIPTION))
            _check_description(target, description)
            with archive.open(TENSORS) as member:
                header = int.from_bytes(member.read(8), "little")
            if header > min(MAX_HEADER, archive.getinfo(TENSORS).file_size - 8):
                raise CheckpointError(
                    f"{target}: the list of its tensors would take {header} bytes, more than there are or than any agent's"
                )
            tensors = load_tensors(archive.read(TENSORS))
    except CheckpointError:
        raise
    # an entry of the zip that is packed in a way that Python lacks is a NotImplementedError, deep JSON a RecursionError
    except (
        zipfile.BadZipFile,
        zlib.error,
        SafetensorError,
        ValueError,
        OSError,
        EOFError,
        RuntimeError,
    ) as error:
        raise CheckpointError(
            f"{target} is not a readable saved agent, perhaps it is cut short: {error}"
        ) from error
    except (KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise CheckpointError(f"{target} is not a readable saved agent: {error!r}") from error
    return Checkpoint(description, tensors)


class _Bounded(io.FileIO):
    """A file of which no more than ``most`` bytes are read at once, while it is a number."""

    most: int | None = MAX_DIRECTORY + (1 << 17)

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as a file does.

        Raises:
            BadZipFile: more than ``most`` bytes are asked for; Python reads a zip's table of contents as one piece.
        """
        if self.most is not None:
            left = os.fstat(self.fileno()).st_size - self.tell()
            asked = left if size is None or size < 0 else min(size, left)
            if asked > self.most:
                raise zipfile.BadZipFile(
                    f"its table of contents has {asked} bytes, where two entries are listed"
                )
        return super().read(-1 if size is None else size)


def _check_members(target: Path, archive: zipfile.ZipFile) -> None:
    """Raise unless the zip holds the two members of an agent, and each unpacks to no more than such a file may."""
    names = archive.namelist()
    if not {DESCRIPTION, TENSORS} <= set(names):
        raise CheckpointError(
            f"{target} is a zip, but no saved agent: it lacks {DESCRIPTION} or {TENSORS}"
            + (" (a Stable-Baselines3 model?)" if "policy.pth" in names else "")
        )
    if len(names) != 2:
        other = sorted(set(names) - {DESCRIPTION, TENSORS}) or sorted(names)
        raise CheckpointError(
            f"{target} has {len(names)} entries, where a saved agent has {DESCRIPTION} and {TENSORS} once each; it also "
            f"has {', '.join(other[:3])}"
        )
    for member in archive.infolist():
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise CheckpointError(
                f"{target}: {member.filename} is packed by method {member.compress_type}; a saved agent is deflated"
            )
        free, ratio = MAX_UNPACKED
        most = min(MAX_BYTES[member.filename], max(free, ratio * member.compress_size))
        if member.file_size > most:
            raise CheckpointError(
                f"{target}: {member.filename} would unpack from {member.compress_size} bytes to {member.file_size}, more "
                f"than the {most} that a saved agent of that size may; refused"
            )


def _check_description(target: Path, description: Any) -> None:
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise CheckpointError(f"{target} is not a saved agent: its description does not say {FORMAT!r}")
    if description.get("version") != VERSION:
        raise CheckpointError(
            f"{target} has format version {description.get('version')!r}; this release reads {VERSION}: "
            "update trebi-gym, or learn the agent again"
        )
