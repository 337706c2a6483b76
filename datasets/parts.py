"""A long recording in parts, so that a crash loses little: finished parts on the disk, joined at the end.

A folder holds ``request.json``, what was asked for; ``part-00000.hdf5`` and so on, data sets of finished episodes; and
for a training run ``state.json`` with ``state-<n>.safetensors``, its weights and optimisers. Nothing in it is unpickled.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from trebi_gym.datasets.episode import EpisodeDataset
from trebi_gym.datasets.sources.base import Reading
from trebi_gym.datasets.sources.native_hdf5 import NativeHDF5
from trebi_gym.errors import DatasetError
from trebi_gym.files import replacing

REQUEST, STATE = "request.json", "state.json"


class Parts:
    """The folder of one recording.

    Args:
        folder: made if it is not there.
        request: what the recording is to be, plain JSON; a folder of another request is refused.
        resume: go on with what is there; otherwise nothing may be there.

    Raises:
        DatasetError: something is there and ``resume`` is not set, or it belongs to another request.
    """

    def __init__(self, folder: Path, request: Mapping[str, Any], *, resume: bool = False) -> None:
        self.folder = folder
        self._request = json.loads(json.dumps(dict(request)))
        stored = self._stored_request()
        if stored is not None and not resume:
            raise DatasetError(
                f"{folder} is left from an interrupted run: pass --resume to go on with it, or delete it to start anew"
            )
        if stored is not None and stored != self._request:
            names = sorted({*stored, *self._request})
            differing = [name for name in names if stored.get(name) != self._request.get(name)]
            raise DatasetError(
                f"{folder} cannot be resumed here: "
                + ", ".join(
                    f"{name} was {stored.get(name)!r}, is {self._request.get(name)!r}" for name in differing
                )
            )
        if stored is None:
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(folder / REQUEST) as temporary:
                temporary.write_text(json.dumps(self._request, indent=2, sort_keys=True))

    def _stored_request(self) -> Any:
        path = self.folder / REQUEST
        if not path.is_file():
            return None
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise DatasetError(f"{path} is damaged ({error}): delete {self.folder} to start anew") from error

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
            document = json.loads(path.read_text())
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

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


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
