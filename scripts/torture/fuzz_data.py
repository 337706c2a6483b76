"""Data sets made hostile, in every format: their arrays, attributes and JSON, how HDF5 stores them, and their bytes.

What is accepted is compared with the file itself, read here in the plainest way.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from trebi_gym.datasets import EpisodeDataset, load, save
from trebi_gym.datasets.sources import SOURCES

from . import hostile
from .cases import Case, kind, must, mutator
from .material import make_dataset
from .workers import SECRET

ALL = ("native", "dsrl", "d4rl", "minari")
FLAT = ALL[:3]
FORMATS = {"native": "native_hdf5", "dsrl": "dsrl", "d4rl": "d4rl", "minari": "minari"}
DTYPES = ("f2", "f4", "f8", ">f4", "g", "i1", "i2", "i8", "u1", "u8", "?", "c8", "S3", "V5")

UNWRITABLE = (TypeError, ValueError, OSError, RuntimeError, KeyError, MemoryError, OverflowError)
"""What h5py says to contents that HDF5 cannot hold."""


@dataclass
class Stored:
    """The contents of one HDF5 file: arrays and attributes by path, and what is done to the file when it is written."""

    arrays: dict[str, Any]
    attributes: dict[tuple[str, str], Any]
    document: dict[str, Any] | None  # Minari's metadata.json
    later: list[Callable[[h5py.File], None]] = field(default_factory=list)
    after: list[Callable[[Path], None]] = field(default_factory=list)  # on the closed file
    text: bytes | None = None  # in the place of the document
    options: dict[str, dict[str, Any]] = field(default_factory=dict)  # of create_dataset

    def copy(self) -> Stored:
        document = None if self.document is None else json.loads(json.dumps(self.document))
        return Stored(
            {key: array.copy() for key, array in self.arrays.items()}, dict(self.attributes), document
        )

    def write(self, path: Path) -> None:
        with h5py.File(path, "w") as file:
            for key, array in self.arrays.items():
                with contextlib.suppress(*UNWRITABLE):
                    file.create_dataset(key, data=array, **self.options.get(key, {}))
            for (place, name), value in self.attributes.items():
                if place in file or place == "/":
                    with contextlib.suppress(*UNWRITABLE):
                        file[place].attrs[name] = value
            for change in self.later:
                with contextlib.suppress(*UNWRITABLE):
                    change(file)
        for spoil in self.after:
            spoil(path)


def _prepare(name: str) -> Callable[[Path], Stored]:
    def prepare(folder: Path) -> Stored:
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / ("torture-v0" if name == "minari" else "torture.hdf5")
        if not target.exists():
            save(
                make_dataset(env_id="SafePendulum-v0" if name == "native" else None),
                target,
                format=FORMATS[name],
            )
        file = target / "data" / "main_data.hdf5" if name == "minari" else target
        stored = Stored({}, {}, None)
        if name == "minari":
            stored.document = json.loads((target / "data" / "metadata.json").read_text())
        with h5py.File(file) as opened:

            def take(place: str, item: Any) -> None:
                if isinstance(item, h5py.Dataset):
                    stored.arrays[place] = item[()]
                for key, value in item.attrs.items():
                    stored.attributes[(place, key)] = value

            take("/", opened)
            opened.visititems(take)
        return stored

    return prepare


def _attempt(case: Case) -> None:
    stored: Stored = case.material.copy()
    case.mutate(stored)
    if case.kind == "minari":
        target = case.folder / "torture-v0"
        (target / "data").mkdir(parents=True)
        stored.write(target / "data" / "main_data.hdf5")
        if (target / "data").is_dir():
            text = stored.text if stored.text is not None else json.dumps(stored.document).encode()
            place = target / "data" / "metadata.json"
            if not place.is_symlink():
                place.write_bytes(text)
    else:
        target = case.folder / "torture.hdf5"
        stored.write(target)
    found = load(target, **_told(case))
    check(found, target, case)


def _told(case: Case) -> dict[str, Any]:
    if case.kind == "d4rl" and case.rng.random() < 0.1:
        return {"episode_length": 6}
    return {}


for _name in ALL:
    kind(_name, f"data sets, {_name}", _prepare(_name))(_attempt)


def check(found: EpisodeDataset, target: Path, case: Case) -> None:
    """Compare what was loaded with the file, and see that nothing of the canaries is in it."""
    for name in ("observations", "actions", "rewards", "costs"):
        array = getattr(found, name)
        must(np.isfinite(array).all(), f"{name} are not finite")
        must(
            not (np.asarray(array, np.float64) == SECRET).any(), f"{name} hold another file's numbers", "leak"
        )
    must(found.lengths.min() >= 1, "an episode without a step")
    must(int(found.lengths.sum()) == len(found.rewards), "lengths do not add up")
    if case.kind == "minari":
        return
    with h5py.File(target) as file:
        rewards = np.asarray(file["rewards"][()], np.float64).reshape(-1)
        costs = np.asarray(
            file["infos/cost" if "infos/cost" in file and "costs" not in file else "costs"][()], np.float64
        ).reshape(-1)
        ends = [
            np.asarray(file[name][()]).reshape(-1).astype(bool)
            for name in ("terminals", "timeouts")
            if name in file
        ]
        observations = np.asarray(file["observations"][()], np.float64)
    steps = len(found.rewards)
    must(
        steps + found.metadata.get("dropped_steps", 0) == len(rewards) or steps == len(rewards),
        f"{steps} of {len(rewards)} steps",
    )
    must(_same(found.rewards, rewards[:steps]), "rewards are not the file's")
    must(_same(found.costs, costs[:steps]), "costs are not the file's")
    must(
        _same(found.observations[found.observation_rows], observations[:steps]),
        "observations are not the file's",
    )
    marked = np.flatnonzero(np.logical_or.reduce(ends)[:steps])
    must(np.isin(marked, np.cumsum(found.lengths) - 1).all(), "an episode goes on after a marked end")
    totals = [float(part.sum()) for part in np.split(costs[:steps], np.cumsum(found.lengths)[:-1])]
    must(
        np.allclose(found.episode_costs, totals, rtol=1e-5, atol=1e-6),
        "costs of episodes are not the file's sums",
    )


def _same(found: np.ndarray, stored: np.ndarray) -> bool:
    return found.shape == stored.shape and np.allclose(
        np.asarray(found, np.float64), stored, rtol=1e-3, atol=1e-6
    )


# what the arrays hold


def _key(stored: Stored, case: Case) -> str:
    return str(case.pick(stored.arrays))


@mutator(*ALL)
def dtype(stored: Stored, case: Case) -> None:
    key, word = _key(stored, case), case.pick(DTYPES)
    with contextlib.suppress(TypeError, ValueError), np.errstate(all="ignore"):
        stored.arrays[key] = stored.arrays[key].astype(word)
    case.note(f"{key} as {word}")


@mutator(*ALL)
def text_array(stored: Stored, case: Case) -> None:
    key = _key(stored, case)
    word = case.pick(("0.5", "x", "é"))
    stored.arrays[key] = np.full(stored.arrays[key].shape, word, dtype=h5py.string_dtype())
    case.note(f"{key} as text")


@mutator(*ALL)
def shape(stored: Stored, case: Case) -> None:
    key = _key(stored, case)
    array = stored.arrays[key]
    way = case.pick(
        (
            "scalar",
            "axis",
            "column",
            "flat",
            "shorter",
            "longer",
            "empty",
            "wide",
            "transposed",
            "none",
            "thin",
        )
    )
    stored.arrays[key] = (
        {
            "scalar": lambda: array.reshape(-1)[0] if array.size else array,
            "axis": lambda: array[None],
            "column": lambda: array[..., None],
            "flat": lambda: array.reshape(-1),
            "shorter": lambda: array[:-1],
            "longer": lambda: np.concatenate([array, array[-1:]]) if array.ndim else array,
            "empty": lambda: array[:0] if array.ndim else array,
            "wide": lambda: np.repeat(array[..., None] if array.ndim < 2 else array, 50, axis=-1),
            "transposed": lambda: array.T,
            "none": lambda: h5py.Empty("f4"),
            "thin": lambda: array[:, :0] if array.ndim == 2 else array,
        }[way]()
        if not isinstance(array, h5py.Empty)
        else array
    )
    case.note(f"{key}: {way}")


@mutator(*ALL)
def values(stored: Stored, case: Case) -> None:
    key = _key(stored, case)
    array = stored.arrays[key]
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub" or not array.size:
        return
    word = case.pick(
        (np.nan, np.inf, -np.inf, 1e30, -1e30, 1e-40, 3.4e38, -1, 2, 255, 0.5, 1e308, -0.0, SECRET + 1)
    )
    array = (
        array.astype(np.float64) if not np.can_cast(np.min_scalar_type(word), array.dtype) else array.copy()
    )
    if case.rng.random() < 0.5:
        array.reshape(-1)[int(case.rng.integers(array.size))] = word
    else:
        array[...] = word
    stored.arrays[key] = array
    case.note(f"{key} = {word}")


@mutator(*FLAT)
def flags(stored: Stored, case: Case) -> None:
    """Ends that are not marked, marked everywhere, marked twice, or no flags at all."""
    way = case.pick(("none", "all", "both", "numbers", "last open", "first only", "random"))
    for key in ("terminals", "timeouts"):
        array = stored.arrays.get(key)
        if not isinstance(array, np.ndarray) or array.ndim != 1 or not len(array):
            return
        if way == "none":
            array = np.zeros(len(array), bool)
        elif way == "all":
            array = np.ones(len(array), bool)
        elif way == "both":
            array = stored.arrays["terminals"] | stored.arrays["timeouts"] if array.dtype == bool else array
        elif way == "numbers":
            array = array.astype(case.pick(("f4", "i8"))) * case.pick((1, 2, 0.5, -1))
        elif way == "last open":
            array = array.copy()
            array[-1] = 0
        elif way == "first only":
            array = np.arange(len(array)) == 3
        else:
            array = case.rng.random(len(array)) < 0.2
        stored.arrays[key] = array
    case.note(way)


@mutator(*ALL)
def keys(stored: Stored, case: Case) -> None:
    key = _key(stored, case)
    way = case.pick(("remove", "rename", "group", "extra", "copy"))
    if way == "remove":
        del stored.arrays[key]
    elif way == "rename":
        stored.arrays[key.upper()] = stored.arrays.pop(key)
    elif way == "group":
        stored.arrays[f"{key}/{key}"] = stored.arrays.pop(key)
    elif way == "extra":
        stored.arrays[case.pick(("costs", "infos/cost", "infos/qpos", "é", "x/y/z", "infos/deep/er"))] = (
            np.arange(5.0)
        )
    else:
        stored.arrays[key] = stored.arrays[_key(stored, case)].copy()
    case.note(f"{way} {key}")


# attributes and JSON


@mutator(*ALL)
def attribute(stored: Stored, case: Case) -> None:
    places = list(stored.attributes) or [("/", "x")]
    place = case.pick([*places, ("/", "trebi_gym"), ("/", "trebi_gym_dsrl")])
    stored.attributes[place] = case.pick(
        ("", "[]", "{", "1", "null", "x" * 60_000, b"\xff\xfe", 3, 2.5, np.zeros(3), np.bytes_(b"{}"), h5py.Empty("S1"),
         np.array(["a", "b"], dtype=h5py.string_dtype()), "[" * 50_000, '{"name": NaN}', '{"a": ' + "9" * 6000 + "}")
    )  # fmt: skip
    case.note(f"{place}: {str(stored.attributes[place])[:30]!r}")


@mutator(*FLAT)
def metadata(stored: Stored, case: Case) -> None:
    """Our own metadata, entry by entry."""
    for place, text in stored.attributes.items():
        if place[0] == "/" and isinstance(text, str) and text.startswith("{"):
            try:
                tree = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if tree and isinstance(tree, dict):
                if case.rng.random() < 0.5:
                    hostile.spoil_tree(tree, case)
                else:
                    name = case.pick(
                        (
                            "env_id",
                            "episode_length",
                            "name",
                            "notes",
                            "env_spec",
                            "dropped_steps",
                            "split",
                            "replaced_cost",
                            "algorithm",
                        )
                    )
                    tree[name] = case.pick(
                        (hostile.value(case), "torture_canary:Env-v0", "torture_canary", {"id": "x"})
                    )
                    case.note(f"{name} = {str(tree[name])[:40]}")
                stored.attributes[place] = json.dumps(tree)
            return


@mutator("minari")
def description(stored: Stored, case: Case) -> None:
    assert stored.document is not None
    if case.rng.random() < 0.3:
        stored.text = hostile.spoil_json(json.dumps(stored.document), case)
    elif case.rng.random() < 0.5 and stored.document:
        hostile.spoil_tree(stored.document, case)
    else:
        name = case.pick(
            ("env_spec", "observation_space", "action_space", "data_format", "total_episodes", "total_steps", "dataset_id",
             "trebi_gym", "minari_version", "eval_env_spec", "requirements", "code_permalink")
        )  # fmt: skip
        spec = json.dumps({"id": "Torture-v9", "entry_point": "torture_canary:run", "max_episode_steps": 5})
        stored.document[name] = case.pick(
            (hostile.value(case), spec, "../../canary", "arrow", "parquet", 10**9, json.dumps({"type": "Discrete", "n": 3}),
             json.dumps({"type": "Box", "dtype": "float32", "shape": [3], "low": [0, 0], "high": [1, 1, 1]}))
        )  # fmt: skip
        case.note(f"{name} = {str(stored.document[name])[:50]}")


# how HDF5 stores it


def _replace(key: str, make: Callable[[h5py.File], None]) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        if key in file:
            del file[key]
        make(file)

    return change


@mutator(*ALL)
def link(stored: Stored, case: Case) -> None:
    """A link in the place of an array or a group: within the file, to nowhere, in a circle, or to another file."""
    key = _key(stored, case)
    if "/" in key and case.rng.random() < 0.3:
        key = key.split("/")[0]
    secret = case.pick(
        (str(case.canary / "secret.hdf5"), os.path.relpath(case.canary / "secret.hdf5", case.folder))
    )
    target = case.pick(
        (h5py.SoftLink("/nowhere"), h5py.SoftLink(f"/{key}"), h5py.SoftLink("/"), h5py.SoftLink(f"/{_key(stored, case)}"),
         h5py.ExternalLink(secret, "/secret"), h5py.ExternalLink(secret, "/flat"), h5py.ExternalLink(secret, "/"),
         h5py.ExternalLink(str(case.canary / "pipe"), "/x"), h5py.ExternalLink("missing.hdf5", "/x"))
    )  # fmt: skip
    stored.later.append(_replace(key, lambda file: file.__setitem__(key, target)))
    case.note(f"{key} -> {type(target).__name__} {target.path} {Path(getattr(target, 'filename', '')).name}")


@mutator(*ALL)
def external_storage(stored: Stored, case: Case) -> None:
    """An array whose bytes lie in another file, or in a device that never ends."""
    key = _key(stored, case)
    array = np.asarray(stored.arrays[key]) if isinstance(stored.arrays[key], np.ndarray) else np.zeros(10)
    place = case.pick(
        (
            str(case.canary / "secret.bin"),
            os.path.relpath(case.canary / "secret.bin", case.folder),
            str(case.canary / "pipe"),
            "/dev/zero",
            "/etc/hostname",
        )
    )
    rows = case.pick((array.shape[:1], array.shape[:1], (10**9,)))
    full = (*rows, *array.shape[1:])
    size = int(np.prod(full, dtype=object)) * 4

    def make(file: h5py.File) -> None:
        file.create_dataset(key, shape=full, dtype="f4", external=[(place, 0, size)])

    stored.later.append(_replace(key, make))
    case.note(f"{key} {full} in {Path(place).name}")


@mutator(*ALL)
def virtual(stored: Stored, case: Case) -> None:
    """An array put together of another file's, or of one of its own."""
    key = _key(stored, case)
    array = np.asarray(stored.arrays[key]) if isinstance(stored.arrays[key], np.ndarray) else np.zeros(10)
    layout = h5py.VirtualLayout(shape=array.shape or (1,), dtype="f4")
    source = case.pick((str(case.canary / "secret.hdf5"), ".", "missing.hdf5", str(case.canary / "pipe")))
    layout[...] = h5py.VirtualSource(source, "flat" if source != "." else "rewards", shape=layout.shape)
    stored.later.append(_replace(key, lambda file: file.create_virtual_dataset(key, layout)))
    case.note(f"{key} of {Path(source).name}")


@mutator(*ALL)
def claimed(stored: Stored, case: Case) -> None:
    """A shape that the file does not hold: chunks that were never written."""
    key = _key(stored, case)
    array = np.asarray(stored.arrays[key]) if isinstance(stored.arrays[key], np.ndarray) else np.zeros(10)
    rows = case.pick((array.shape[0] if array.ndim else 1, 10**5, 10**7, 10**9, 2**40, 2**62))
    full = (rows, *array.shape[1:]) if case.rng.random() < 0.7 else (*array.shape[:1], rows)
    fill = case.pick((None, 0.0, np.nan, 1.0))
    layout = case.pick(
        (
            {"chunks": tuple(min(side, 64) for side in full)},
            {"chunks": tuple(min(side, 4096) for side in full), "compression": "gzip"},
            {},
        )
    )

    def make(file: h5py.File) -> None:
        made = file.create_dataset(key, shape=full, dtype=case_dtype, fillvalue=fill, **layout)
        if layout and case_write:
            made[(0,) * made.ndim] = 0

    case_dtype, case_write = case.pick(("f4", "f8", "i1")), case.rng.random() < 0.5
    stored.later.append(_replace(key, make))
    case.note(f"{key} {full} {sorted(layout)}")


@mutator(*ALL)
def storage(stored: Stored, case: Case) -> None:
    """Filters and layouts that are legal; the numbers stay what they are."""
    key = _key(stored, case)
    stored.options[key] = case.pick(
        ({"compression": "gzip"}, {"compression": "lzf"}, {"fletcher32": True, "chunks": True},
         {"shuffle": True, "chunks": True},
         {"maxshape": None}, {"chunks": True}, {"track_times": True})
    )  # fmt: skip
    case.note(f"{key} {stored.options[key]}")


@mutator(*ALL)
def types(stored: Stored, case: Case) -> None:
    """Compound, enumerated, reference, opaque and ragged types, and named ones."""
    key = _key(stored, case)
    count = len(stored.arrays[key]) if getattr(stored.arrays[key], "ndim", 0) else 1
    way = case.pick(("compound", "enum", "reference", "ragged", "array", "named"))

    def make(file: h5py.File) -> None:
        if way == "compound":
            file[key] = np.zeros(count, dtype=[("a", "f4"), ("b", "i4")])
        elif way == "enum":
            file.create_dataset(key, (count,), dtype=h5py.enum_dtype({"no": 0, "yes": 1}, basetype="i1"))
        elif way == "reference":
            file.create_dataset(key, (count,), dtype=h5py.ref_dtype)
        elif way == "ragged":
            file.create_dataset(key, (count,), dtype=h5py.vlen_dtype(np.float32))
        elif way == "array":
            file.create_dataset(key, (count,), dtype=np.dtype(("f4", (3,))))
        else:
            file[key] = np.dtype("f4")

    stored.later.append(_replace(key, make))
    case.note(f"{key} {way}")


# the bytes, and what lies at the path


@mutator(*ALL)
def file_bytes(stored: Stored, case: Case) -> None:
    first = case.pick((96, 2048, None))
    stored.after.append(lambda path: _rewrite(path, case, first) and None)


def _rewrite(path: Path, case: Case, first: int | None) -> None:
    if path.is_file() and not path.is_symlink():
        path.write_bytes(hostile.spoil_bytes(path.read_bytes(), case, first))
        case.write_notes()


@mutator(*ALL)
def at_path(stored: Stored, case: Case) -> None:
    """No file but a link, a pipe, a folder, a device or other contents."""
    way = case.pick(
        ("symlink to itself", "dangling", "pipe", "folder", "zero", "text", "empty", "same by symlink")
    )

    def change(path: Path) -> None:
        copy = path.with_name(f"copy-{len(list(path.parent.iterdir()))}.hdf5")
        if path.exists():
            shutil.move(path, copy)
        if way == "symlink to itself":
            path.symlink_to(path)
        elif way == "dangling":
            path.symlink_to(path.parent / "nowhere")
        elif way == "pipe":
            os.mkfifo(path)
        elif way == "folder":
            path.mkdir()
        elif way == "zero":
            path.symlink_to("/dev/zero")
        elif way == "same by symlink":
            path.symlink_to(copy.name)
        else:
            path.write_text("" if way == "empty" else "observations")

    stored.after.append(change)
    case.note(way)


@mutator("minari")
def folder_link(stored: Stored, case: Case) -> None:
    """Files of the folder that are links to files elsewhere."""
    way = case.pick(("data", "metadata", "metadata pipe", "more"))

    def change(path: Path) -> None:
        if way == "data" and path.is_file():
            path.unlink()
            path.symlink_to(case.canary / "secret.hdf5")
        elif way.startswith("metadata"):
            name = "secret.bin" if way == "metadata" else "pipe"
            path.with_name("metadata.json").symlink_to(case.canary / name)
        else:
            path.with_name("additional_data_0.hdf5").symlink_to(case.canary / "secret.hdf5")

    stored.after.append(change)
    case.note(way)


assert set(FORMATS.values()) <= set(SOURCES)
