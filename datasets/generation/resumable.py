"""A long recording in parts, so that a crash loses little: finished parts on the disk, joined at the end.

A folder holds ``request.json``, what was asked for; ``part-00000.hdf5`` and so on, data sets of finished episodes; and
for a training run ``state.json`` with ``state-<n>.safetensors``, its weights and optimisers. Nothing in it is unpickled.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from trebi_gym.datasets.episode import EpisodeDataset
from trebi_gym.datasets.sources.base import Reading
from trebi_gym.datasets.sources.native_hdf5 import NativeHDF5
from trebi_gym.errors import DatasetError
from trebi_gym.files import lock, read_json, replacing

REQUEST, STATE, LOCK = "request.json", "state.json", "lock"
OURS = (REQUEST, STATE, LOCK, "part-*.hdf5", "state-*.safetensors", "whole.*", "run", ".*.tmp.*")


class Parts:
    """The folder of one recording; as a context manager it removes the folder again if nothing was finished in it.

    Args:
        folder: made if it is not there.
        request: what the recording is to be, plain JSON; a folder of another request is refused.
        resume: go on with the parts that are there; otherwise there may be none.
        overwrite: delete the parts that are there, instead of refusing.

    Raises:
        DatasetError: parts are there and neither ``resume`` nor ``overwrite`` is set, they belong to another request, or
            the folder is not one of parts, or another process is at work in it.
    """

    def __init__(
        self, folder: Path, request: Mapping[str, Any], *, resume: bool = False, overwrite: bool = False
    ) -> None:
        self.folder = folder
        self._request = json.loads(json.dumps(dict(request)))
        if _is_foreign(folder):
            raise DatasetError(
                f"{folder} is in the way: finished parts are to be kept there, and it holds something else; move it"
            )
        folder.mkdir(parents=True, exist_ok=True)
        self._lock: IO[str] | None = None
        if (folder / LOCK).exists():  # nothing is deleted while another process may be at work
            _locked(folder).close()
        if self.begun and not resume:
            if not overwrite:
                raise DatasetError(
                    f"{folder} is left from an interrupted build: pass --resume to go on with it, "
                    "or --overwrite to start anew"
                )
            _empty(folder)
        if self.begun:
            self._check_request()
        with replacing(folder / REQUEST) as temporary:
            temporary.write_text(json.dumps(self._request, indent=2, sort_keys=True))

    def __enter__(self) -> Parts:
        self._lock = _locked(self.folder)
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        if self._lock is not None:
            (self.folder / LOCK).unlink(missing_ok=True)
            self._lock.close()
        if not self.begun:
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def begun(self) -> bool:
        """Whether something is finished, here or in a folder within."""
        return has_parts(self.folder)

    def _check_request(self) -> None:
        path = self.folder / REQUEST
        try:
            stored = read_json(path, "the request of a recording")
            if not isinstance(stored, dict):
                raise ValueError(f"it holds {stored!r}")
        except (OSError, ValueError, RecursionError) as error:
            raise DatasetError(f"{path} is damaged ({error}): delete {self.folder} to start anew") from error
        names = sorted({*stored, *self._request})
        differing = [
            f"{name} was {stored.get(name)!r} and is {self._request.get(name)!r}"
            for name in names
            if stored.get(name) != self._request.get(name)
        ]
        if differing:
            raise DatasetError(
                f"{self.folder} belongs to another request: {'; '.join(differing)}; ask for the same again, "
                "or choose another place"
            )

    def path(self, number: int) -> Path:
        """Return where part ``number`` lies."""
        return self.folder / f"part-{number:05d}.hdf5"

    def has(self, number: int) -> bool:
        """Whether part ``number`` is finished."""
        return self.path(number).is_file()

    def read(self, number: int) -> EpisodeDataset:
        """Return part ``number``.

        Raises:
            DatasetError: it is damaged.
        """
        return NativeHDF5().read(self.path(number), Reading())

    def write(self, number: int, dataset: EpisodeDataset) -> None:
        """Keep part ``number``; it appears only when it is complete."""
        NativeHDF5().write(dataset, self.path(number))

    def read_state(self) -> dict[str, Any] | None:
        """Return what ``write_state`` kept last; None if it never did.

        Raises:
            DatasetError: it is damaged.
        """
        path = self.folder / STATE
        if not path.is_file():
            return None
        try:
            document = read_json(path, "the state of a recording")
            if not fnmatch(document["tensors"], "state-*.safetensors") or "/" in document["tensors"]:
                raise ValueError(f"it names the tensors {document['tensors']!r}")
            tensors = load_file(self.folder / document["tensors"])
            found: dict[str, Any] = _unpack(document["state"], tensors)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise DatasetError(f"{path} is damaged ({error}): delete {self.folder} to start anew") from error
        return found

    def write_state(self, state: Mapping[str, Any], number: int) -> None:
        """Keep a nested state of plain data and tensors; the one before is removed after.

        Args:
            state: dictionaries, lists, tuples, strings, numbers, None and tensors.
            number: of this state, another one than the last time.
        """
        tensors: dict[str, torch.Tensor] = {}
        packed = _pack(dict(state), tensors)
        name = f"state-{number:08d}.safetensors"
        with replacing(self.folder / name) as temporary:
            save_file(tensors, temporary)
        with replacing(self.folder / STATE) as temporary:
            temporary.write_text(json.dumps({"tensors": name, "state": packed}))
        for old in self.folder.glob("state-*.safetensors"):
            if old.name != name:
                old.unlink()


def has_parts(folder: Path) -> bool:
    """Whether a folder of parts, or one within it, holds anything finished that could be gone on with."""
    return any(
        path.name == STATE or (path.suffix == ".hdf5" and path.name.startswith("part-"))
        for path in (folder.rglob("*") if (folder / REQUEST).is_file() else ())
    )


def finish(dataset: EpisodeDataset, target: Path, folder: Path) -> None:
    """Write what was joined, and delete the parts' folder.

    It is written within the folder and moved, so that even a killed process leaves nothing else beside ``target``.
    """
    whole = folder / f"whole{target.suffix}"
    NativeHDF5().write(dataset, whole)
    os.replace(whole, target)
    shutil.rmtree(folder)


def _locked(folder: Path) -> IO[str]:
    """Return an open file that no other process holds; the system lets go of it when the process ends, however it ends.

    Raises:
        DatasetError: another process holds it.
    """
    held = lock(folder / LOCK)
    if held is None:
        raise DatasetError(f"another process is building in {folder}: wait for it, or choose another place")
    return held


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def _is_foreign(folder: Path) -> bool:
    """Whether a path is taken by anything but what this module writes, which may be deleted."""
    if not folder.is_dir():
        return folder.exists()
    return any(not any(fnmatch(path.name, name) for name in OURS) for path in folder.iterdir())


def _pack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Return JSON data; tensors are put into ``tensors`` and named."""
    if torch.is_tensor(value):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, Mapping):
        # as pairs, since keys need not be strings
        return {"pairs": [[key, _pack(item, tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"list": [_pack(item, tensors) for item in value], "tuple": isinstance(value, tuple)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{value!r} is neither plain data nor a tensor")


def _unpack(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "pairs" in value:
        return {key: _unpack(item, tensors) for key, item in value["pairs"]}
    items = [_unpack(item, tensors) for item in value["list"]]
    return tuple(items) if value["tuple"] else items
