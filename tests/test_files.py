"""Files appear whole or not at all, wherever they are written, and nothing stays of writers that were killed."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trebi_gym.datasets import load, save
from trebi_gym.errors import ConfigError, DatasetError, StorageError, TrebiError
from trebi_gym.files import TEMPORARY, check_regular, check_writable, read_json, replacing, replacing_folder

WRITER = """
import sys, time
from trebi_gym.files import replacing, replacing_folder
with (replacing_folder if sys.argv[2] == "folder" else replacing)(sys.argv[1]) as path:
    (path / "a" if sys.argv[2] == "folder" else path).write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def writer(target, kind):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(target), kind], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "writing\n"
    return process


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_writer_left_is_removed_by_the_next_one(tmp_path, kind):
    process = writer(tmp_path / "a.zip", kind)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (litter,) = names(tmp_path)
    assert TEMPORARY.fullmatch(litter)
    with replacing(tmp_path / "b.json") as temporary:
        temporary.write_text("whole")
    assert names(tmp_path) == ["b.json"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_living_writers_file_stays(tmp_path, kind):
    process = writer(tmp_path / "a.zip", kind)
    try:
        check_writable(tmp_path / "b.zip")
        with replacing(tmp_path / "a.zip") as temporary:
            temporary.write_text("whole")
        assert len(names(tmp_path)) == 2
    finally:
        process.kill()
        process.wait()


def test_a_process_number_that_was_given_to_another_process_does_not_keep_litter(tmp_path):
    with replacing(tmp_path / "a") as temporary:
        temporary.write_text("whole")
        own = TEMPORARY.fullmatch(temporary.name)
    other = temporary.name.replace(f"-{own[2]}-{own[3]}-", f"-{own[2]}-{int(own[3]) + 1}-")
    (tmp_path / other).write_text("half")
    check_writable(tmp_path / "a")
    assert names(tmp_path) == ["a"]


def test_litter_of_another_machine_stays(tmp_path):
    foreign = ".a~00000000-1-1-0123abcd.tmp.zip"
    (tmp_path / foreign).write_text("half")
    check_writable(tmp_path / "a.zip")
    assert names(tmp_path) == [foreign]


@pytest.mark.parametrize("name", ["a" * 255, "ü" * 127, "über/日本語.hdf5", "a b'\"c\n.zip", "." + "a" * 254])
def test_every_name_that_the_file_system_takes_can_be_written(tmp_path, name):
    target = tmp_path / name
    check_writable(target)
    with replacing(target) as temporary:
        temporary.write_text("whole")
    assert target.read_text() == "whole"
    assert names(target.parent) == [target.name]


@pytest.mark.parametrize("name", ["a" * 256, "a\0b", "file/a.json"])
def test_a_place_that_cannot_be_written_is_told_by_our_own_error(tmp_path, name):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="cannot be written"):
        check_writable(tmp_path / name)
    with (
        pytest.raises(StorageError, match=r"could not be written: .*choose another place"),
        replacing(tmp_path / name) as path,
    ):
        path.write_text("whole")
    with pytest.raises((StorageError, FileExistsError)), replacing_folder(tmp_path / name) as path:
        (path / "a").write_text("whole")
    assert names(tmp_path) == ["file"]


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / "real" / "there.json")
    for text in ("first", "second"):
        with replacing(tmp_path / "link.json") as temporary:
            temporary.write_text(text)
        assert (tmp_path / "link.json").is_symlink()
        assert (tmp_path / "real" / "there.json").read_text() == text


@pytest.mark.parametrize("kind", ["itself", "a device", "a pipe", "/dev/null"])
def test_a_pipe_a_device_and_a_link_to_one_are_not_replaced(tmp_path, kind):
    target = Path("/dev/null") if kind == "/dev/null" else tmp_path / "a.json"
    if kind == "a pipe":
        os.mkfifo(target)
    elif kind != "/dev/null":
        target.symlink_to(target if kind == "itself" else "/dev/null")
    before = target.lstat()
    with pytest.raises(ConfigError, match="a pipe, a device, or a link that leads to itself"):
        check_writable(target)
    refused = pytest.raises(StorageError, match="a pipe, a device, or a link that leads to itself")
    with refused, replacing(target):
        pass
    assert target.lstat().st_mode == before.st_mode
    assert not stat.S_ISREG(os.lstat("/dev/null").st_mode)


def test_an_error_of_the_system_while_writing_leaves_what_was_there(tmp_path):
    target = tmp_path / "a.json"
    target.write_text("before")
    with (
        pytest.raises(StorageError, match=r"No space left on device; what was there before is unchanged"),
        replacing(target),
    ):
        raise OSError(28, "No space left on device")
    assert target.read_text() == "before"
    assert names(tmp_path) == ["a.json"]


LIMITED = """
import resource, signal, sys
from trebi_gym.datasets import load, save
from trebi_gym.errors import TrebiError
found = load("SafePendulum-medium-replay-v0")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    save(found, sys.argv[1])
except TrebiError as error:
    print(error)
"""


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path):
    target = tmp_path / "a.hdf5"
    found = subprocess.run(
        [sys.executable, "-c", LIMITED, str(target)], capture_output=True, text=True, check=True, timeout=120
    )
    assert "a.hdf5 could not be written" in found.stdout
    assert names(tmp_path) == []


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000 + "]" * 100_000, "\x00", "NaNN"])
def test_what_is_not_json_is_refused_with_the_files_name(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DatasetError, match=r"a\.json is not a thing: "):
        read_json(path, "a thing", DatasetError)


def test_a_pipe_a_folder_and_a_device_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, "/dev/zero", tmp_path / "none"):
        with pytest.raises(TrebiError, match=r"cannot be read: (it is no regular file|No such file)"):
            check_regular(path)
        with pytest.raises(TrebiError):
            read_json(path, "a thing")
        with pytest.raises(DatasetError):
            load(path)


HOMELESS = """
import os, pwd, sys
del os.environ["HOME"]
pwd.getpwuid = lambda uid: (_ for _ in ()).throw(KeyError(uid))
os.environ.update(TREBI_DATA=sys.argv[1], D4RL_DATASET_DIR=sys.argv[1], MINARI_DATASETS_PATH=sys.argv[1])
if len(sys.argv) > 2:
    del os.environ["TREBI_DATA"]
from trebi_gym.datasets import load
from trebi_gym.errors import TrebiError
print(len(load("SafePendulum-medium-replay-v0")))
try:
    load("SafeReacher-medium-replay-v0")
except TrebiError as error:
    print(error)
"""


def test_without_a_home_folder_what_ships_is_loaded(tmp_path):
    for more in ([], ["without TREBI_DATA"]):
        found = subprocess.run(
            [sys.executable, "-c", HOMELESS, str(tmp_path), *more],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert found.returncode == 0, found.stderr
        assert found.stdout.startswith("100\n")
        assert "SafeReacher-medium-replay-v0" in found.stdout or "set XDG_DATA_HOME" in found.stdout


def test_two_writers_of_one_file_leave_one_whole_file(tmp_path):
    target = tmp_path / "a.json"
    code = (
        "import json, sys\nfrom trebi_gym.files import replacing\n"
        "for i in range(60):\n    with replacing(sys.argv[1]) as path: path.write_text(json.dumps([sys.argv[2]] * 2000))"
    )
    both = [subprocess.Popen([sys.executable, "-c", code, str(target), who]) for who in "ab"]
    seen, until = set(), time.monotonic() + 60
    while any(process.poll() is None for process in both) and time.monotonic() < until:
        if target.exists():
            seen.add(len(set(json.loads(target.read_text()))))
    assert [process.wait() for process in both] == [0, 0]
    assert seen == {1}
    assert names(tmp_path) == ["a.json"]


def test_a_data_set_saved_where_nothing_can_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="could not be written"):
        save(load("SafePendulum-medium-replay-v0"), tmp_path / "file" / "a.hdf5")
