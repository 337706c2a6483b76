"""Saved agents: one zip of JSON and safetensors, written whole or not at all; reading one runs no code from it."""

from __future__ import annotations

import json
import lzma
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

from trebi_gym.errors import CheckpointError
from trebi_gym.files import replacing

FORMAT = "trebi-gym agent"
VERSION = 1
DESCRIPTION = "agent.json"
TENSORS = "tensors.safetensors"
MAX_BYTES = 4 << 30
"""A larger member is refused before it is unpacked."""


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a file: what is known as JSON, and named tensors."""

    description: dict[str, Any]
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        """Return the tensors whose names begin with ``prefix.``, without it."""
        start = prefix + "."
        return {name[len(start) :]: value for name, value in self.tensors.items() if name.startswith(start)}


def write(
    path: str | os.PathLike[str], description: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> Path:
    """Write a checkpoint; ``path`` gets the ending ``.zip`` if it has none. Returns the file's path."""
    target = Path(path)
    if target.suffix != ".zip":
        target = target.with_name(target.name + ".zip")
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

    Raises:
        CheckpointError: there is no such file, or it is not a saved agent.
    """
    target = Path(path)
    if not target.is_file() and target.suffix != ".zip" and target.with_name(target.name + ".zip").is_file():
        target = target.with_name(target.name + ".zip")
    if not target.is_file():
        raise CheckpointError(f"there is no saved agent at {path}")
    try:
        with zipfile.ZipFile(target) as archive:
            names = set(archive.namelist())
            if not {DESCRIPTION, TENSORS} <= names:
                raise CheckpointError(
                    f"{target} is a zip, but no saved agent: it lacks {DESCRIPTION} or {TENSORS}"
                    + (" (a Stable-Baselines3 model?)" if "policy.pth" in names else "")
                )
            for name in (DESCRIPTION, TENSORS):
                if archive.getinfo(name).file_size > MAX_BYTES:
                    raise CheckpointError(
                        f"{target}: {name} would unpack to more than {MAX_BYTES >> 30} GiB; refused"
                    )
            description = json.loads(archive.read(DESCRIPTION))
            tensors = load_tensors(archive.read(TENSORS))
    except (
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        SafetensorError,
        ValueError,
        OSError,
        EOFError,
        RuntimeError,
    ) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{target} is not a readable saved agent, perhaps it is cut short: {error}"
        ) from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise CheckpointError(f"{target} is not a saved agent: its description does not say {FORMAT!r}")
    if description.get("version") != VERSION:
        raise CheckpointError(
            f"{target} has format version {description.get('version')!r}; this release reads {VERSION}: "
            "update trebi-gym, or learn the agent again"
        )
    return Checkpoint(description, tensors)
