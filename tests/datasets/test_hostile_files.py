"""A stranger's file may not make us read other files, wait for ever, or fill the memory."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from test_episodes import flat_steps

from trebi_gym.datasets import EpisodeDataset, load, save
from trebi_gym.errors import DatasetError

KEYS = ("observations", "next_observations", "actions", "rewards", "costs", "terminals", "timeouts")


def good(folder: Path, format: str) -> Path:
    dataset = EpisodeDataset.from_steps(**flat_steps([4, 6]))
    path = folder / ("log-v0" if format == "minari" else "log.hdf5")
    save(dataset, path, format=format)
    return path


def inside(path: Path) -> Path:
    return path / "data" / "main_data.hdf5" if path.is_dir() else path


def array_of(format: str) -> str:
    return {"minari": "episode_0/rewards"}.get(format, "rewards")


def replaced(path: Path, key: str, make):
    """Put another thing in the place of an array; ``make(group, name, shape)`` makes it."""
    with h5py.File(inside(path), "r+") as file:
        shape = file[key].shape
        group, name = file[key].parent, key.rpartition("/")[2]
        del group[name]
        make(group, name, shape)


def canary(folder: Path) -> Path:
    """A file of numbers that must not get into a data set."""
    with h5py.File(folder / "canary.h5", "w") as file:
        file["secret"] = np.full(64, 4242.0)
    (folder / "canary.bin").write_bytes(np.full(64, 4242.0, np.float32).tobytes())
    return folder


def external_storage(folder, name):
    def make(group, key, shape):
        group.create_dataset(key, shape, np.float32, external=[(str(folder / name), 0, h5py.h5f.UNLIMITED)])

    return make


def virtual(folder, name):
    def make(group, key, shape):
        layout = h5py.VirtualLayout(shape, np.float32)
        layout[:] = h5py.VirtualSource(str(folder / name), "secret", shape=(64,))[: shape[0]]
        group.create_virtual_dataset(key, layout)

    return make


def linked(link):
    def make(group, key, shape):
        group[key] = link

    return make


THINGS = {
    "external storage": lambda folder: external_storage(folder, "canary.bin"),
    "external storage in a pipe": lambda folder: external_storage(folder, "pipe"),
    "external storage in a device": lambda folder: external_storage(Path("/dev"), "zero"),
    "a virtual array": lambda folder: virtual(folder, "canary.h5"),
    "a virtual array of a pipe": lambda folder: virtual(folder, "pipe"),
    "an external link": lambda folder: linked(h5py.ExternalLink(str(folder / "canary.h5"), "secret")),
    "an external link to a pipe": lambda folder: linked(h5py.ExternalLink(str(folder / "pipe"), "secret")),
    "a soft link": lambda folder: linked(h5py.SoftLink("/nowhere")),
}

LOAD = """
import resource, sys
from trebi_gym.datasets import load
from trebi_gym.errors import TrebiError
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
try:
    found = load(sys.argv[1], episode_length=10)
    print("loaded", 4242.0 in found.rewards)
except TrebiError as error:
    print("refused", error)
"""


def loaded_apart(path: Path) -> str:
    """What comes of loading a path in a process that may take neither long nor much memory."""
    found = subprocess.run(
        [sys.executable, "-c", LOAD, str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert found.returncode == 0, found.stderr[-2000:]
    return found.stdout


@pytest.mark.parametrize("format", ["native_hdf5", "dsrl", "d4rl", "minari"])
@pytest.mark.parametrize("thing", THINGS)
def test_what_leads_to_other_files_is_refused_and_not_opened(tmp_path, format, thing):
    os.mkfifo(canary(tmp_path) / "pipe")
    before = {name: os.stat(tmp_path / name).st_atime_ns for name in ("canary.h5", "canary.bin")}
    for name in before:  # a reading that follows is then seen, also where times are kept lazily
        os.utime(tmp_path / name, ns=(0, os.stat(tmp_path / name).st_mtime_ns))
    path = good(tmp_path / "log", format)
    replaced(path, array_of(format), THINGS[thing](tmp_path))
    with pytest.raises(DatasetError, match=r"other files, which are not read|a link to somewhere else"):
        load(path, episode_length=10)
    assert all(os.stat(tmp_path / name).st_atime_ns == 0 for name in before)


@pytest.mark.parametrize("format", ["native_hdf5", "d4rl", "minari"])
@pytest.mark.parametrize("target", ["canary.h5", "pipe"])
def test_a_group_in_another_file_is_refused(tmp_path, format, target):
    os.mkfifo(canary(tmp_path) / "pipe")
    path = good(tmp_path / "log", format)
    with h5py.File(inside(path), "r+") as file:
        name = "episode_1" if format == "minari" else "infos" if format == "d4rl" else "costs"
        del file[name]
        file[name] = h5py.ExternalLink(str(tmp_path / target), "/")
    with pytest.raises(DatasetError, match="a link to somewhere else"):
        load(path, episode_length=10)


@pytest.mark.parametrize("name", ["metadata.json", "main_data.hdf5"])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_minari_folder_whose_files_are_elsewhere_is_refused(tmp_path, name, kind):
    path = good(tmp_path / "log", "minari")
    file = path / "data" / name
    shutil.copy(file, tmp_path / name)
    file.unlink()
    if kind == "link":
        file.symlink_to(tmp_path / name)
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        file.mkdir()
    assert loaded_apart(path).startswith("refused")


@pytest.mark.parametrize("format", ["native_hdf5", "d4rl", "minari"])
@pytest.mark.parametrize(
    ("shape", "kind", "options"),
    [
        ((10**9,), np.float64, {}),
        ((10**12,), np.float32, {"chunks": (1024,)}),
        ((4, 10**9), np.float32, {"chunks": (1, 1024), "compression": "gzip"}),
        ((10**18,), np.int8, {"chunks": (1024,)}),
        ((4,), h5py.string_dtype(), {}),
        ((4,), h5py.vlen_dtype(np.float64), {}),
        ((4,), np.dtype([("a", np.float32)]), {}),
        ((4,), np.complex128, {}),
        ((4,), np.dtype("S8"), {}),
    ],
)
def test_an_array_that_claims_more_than_the_file_holds_or_no_numbers_is_refused(
    tmp_path, format, shape, kind, options
):
    path = good(tmp_path / "log", format)
    replaced(
        path, array_of(format), lambda group, name, _: group.create_dataset(name, shape, kind, **options)
    )
    assert loaded_apart(path).startswith("refused")


def test_a_log_that_compresses_well_is_loaded(tmp_path):
    steps = flat_steps([1000] * 50)
    for name in ("observations", "next_observations", "actions", "rewards", "costs"):
        steps[name] = np.zeros_like(steps[name])
    path = tmp_path / "log.hdf5"
    save(EpisodeDataset.from_steps(**steps), path)
    assert path.stat().st_size < steps["observations"].nbytes / 10
    assert load(path).n_steps == 50_000


@pytest.mark.parametrize("text", ["[" * 100_000, "{}", "[]", "null", '{"total_episodes": 1e400}'])
def test_a_minari_description_that_is_none_is_refused(tmp_path, text):
    path = good(tmp_path / "log", "minari")
    (path / "data" / "metadata.json").write_text(text)
    with pytest.raises(DatasetError):
        load(path)


def mutants(count):
    """Numbers of seeded changes to good files, small enough to run in seconds."""
    return range(count)


@pytest.mark.parametrize("format", ["native_hdf5", "dsrl", "d4rl", "minari"])
def test_changed_files_are_refused_by_our_error_or_loaded_as_finite_numbers(tmp_path, format):
    original = good(tmp_path / "good", format)
    refused = 0
    for number in mutants(60):
        draw = np.random.default_rng([number, len(format)])
        path = tmp_path / f"mutant-{number}" / original.name
        (shutil.copytree if original.is_dir() else shutil.copy)(original, _made(path))
        if draw.uniform() < 0.5:
            _change_bytes(inside(path), draw)
        else:
            _change_array(inside(path), draw)
        try:
            found = load(path, episode_length=10)
        except DatasetError:
            refused += 1
        else:
            assert np.isfinite(found.rewards).all()
            assert np.isfinite(found.episode_costs).all()
    assert refused > 10


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True)
    return path


def _change_bytes(path: Path, draw: np.random.Generator) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(int(draw.integers(1, 8))):
        content[int(draw.integers(len(content)))] = int(draw.integers(256))
    path.write_bytes(
        bytes(content[: len(content) if draw.uniform() < 0.8 else int(draw.integers(len(content)))])
    )


def _change_array(path: Path, draw: np.random.Generator) -> None:
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        name = str(draw.choice(names))
        array = file[name][()]
        del file[name]
        kind = int(draw.integers(6))
        if kind == 0:
            return
        changed = [
            array,
            array[:-1],
            np.repeat(array, 2, axis=0),
            array.astype(np.float64) * 1e308,
            np.full(array.shape, np.nan),
            array[..., None],
        ][kind]
        with np.errstate(all="ignore"):
            file[name] = changed


def test_a_file_that_names_an_environment_runs_nothing(tmp_path, monkeypatch):
    path = good(tmp_path / "log", "minari")
    description = json.loads((path / "data" / "metadata.json").read_text())
    description["env_spec"] = '{"id": "no_such_module:Env-v0", "entry_point": "no_such_module:Env"}'
    (path / "data" / "metadata.json").write_text(json.dumps(description))
    assert len(load(path)) == 2
