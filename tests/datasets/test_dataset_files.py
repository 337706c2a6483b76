"""Data sets on disk: found, read, refused, and written whole or not at all."""

import json

import h5py
import numpy as np
import pytest

from trebi_gym.costs import pendulum_cost
from trebi_gym.datasets import Episode, EpisodeDataset, load, resolve, save
from trebi_gym.datasets.sources.native_hdf5 import KEYS
from trebi_gym.errors import DatasetError


def make_dataset(dtype=np.float32, metadata=None):
    rng = np.random.default_rng(3)
    return EpisodeDataset(
        observations=rng.normal(size=(11, 3)).astype(dtype),
        actions=rng.normal(size=(8, 2)).astype(dtype),
        rewards=rng.normal(size=8).astype(dtype),
        costs=rng.uniform(size=8).astype(dtype),
        lengths=np.array([3, 1, 4]),
        terminated=np.array([True, False, False]),
        truncated=np.array([False, True, True]),
        metadata=metadata or {"name": "x", "nested": {"a": [1, 2.5, None]}},
    )


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "data.hdf5"
    save(make_dataset(), path)
    return path


def rewrite(path, change):
    with h5py.File(path, "r+") as file:
        change(file)


def replace(key, make):
    def change(file):
        array = make(file[key][()])
        del file[key]
        file[key] = array

    return change


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_round_trip_keeps_every_number_every_type_and_the_metadata(tmp_path, dtype):
    dataset = make_dataset(dtype)
    save(dataset, tmp_path / "a.hdf5")
    again = load(tmp_path / "a.hdf5")
    for name in ("observations", "actions", "rewards", "costs", "lengths", "terminated", "truncated"):
        before, after = getattr(dataset, name), getattr(again, name)
        np.testing.assert_array_equal(after, before, err_msg=name)
        assert after.dtype == before.dtype, name
    assert dict(again.metadata) == dict(dataset.metadata)


def test_the_file_reads_flat_as_a_dsrl_reader_reads_it(file):
    dataset = make_dataset()
    with h5py.File(file, "r") as raw:
        flat = {key: np.array(raw[key]) for key in raw}
    assert set(flat) == set(KEYS)
    assert {len(array) for array in flat.values()} == {8}
    ends = np.flatnonzero(flat["terminals"] | flat["timeouts"])
    assert ends.tolist() == [2, 3, 7]
    assert flat["terminals"].tolist() == [False, False, True, False, False, False, False, False]
    assert flat["timeouts"].tolist() == [False, False, False, True, False, False, False, True]
    assert flat["rewards"].shape == flat["costs"].shape == (8,)
    np.testing.assert_array_equal(flat["next_observations"][:2], flat["observations"][1:3])
    np.testing.assert_array_equal(flat["next_observations"][3], dataset[1].observations[1])
    np.testing.assert_array_equal(flat["costs"], dataset.costs)


def test_a_plain_dsrl_file_without_our_metadata_is_read(file):
    rewrite(file, lambda raw: raw.attrs.clear())
    dataset = load(file)
    assert dataset.lengths.tolist() == [3, 1, 4]
    assert dict(dataset.metadata) == {"name": file.stem}


def test_an_unfinished_tail_in_a_file_is_a_truncated_episode_and_told(file, caplog):
    rewrite(file, replace("timeouts", lambda x: x & (np.arange(8) != 7)))
    dataset = load(file)
    assert dataset.lengths.tolist() == [3, 1, 4]
    assert (bool(dataset.terminated[-1]), bool(dataset.truncated[-1])) == (False, True)
    assert dataset.metadata["unfinished_steps"] == 4
    assert "4 steps of an episode whose end was not recorded" in repr(dataset)
    assert "the last 4 steps have no marked end: they are kept as a truncated episode" in caplog.text


@pytest.mark.parametrize("key", KEYS)
def test_a_missing_key_is_refused_with_what_is_needed_and_what_was_found(file, key):
    def change(raw):
        del raw[key]

    rewrite(file, change)
    with pytest.raises(DatasetError, match=f"lacks {key}; a data set needs observations, .*; found "):
        load(file)


def test_a_group_in_the_place_of_an_array_is_refused(file):
    def change(raw):
        del raw["costs"]
        raw.create_group("costs")

    rewrite(file, change)
    with pytest.raises(DatasetError, match="lacks costs"):
        load(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replace("costs", lambda x: x[:-1]), "same number of steps"),
        (
            replace("rewards", lambda x: np.where(np.arange(8) == 5, np.nan, x)),
            r"rewards\[5\] is nan; 1 of 8",
        ),
        (replace("actions", lambda x: np.where(x == x[2, 1], np.inf, x)), r"actions\[2, 1\] is inf"),
        (replace("observations", lambda x: x[:, 0]), "observations must have two dimensions"),
        (replace("costs", lambda x: np.float32(1.0)), "same number of steps"),
        (replace("timeouts", np.zeros_like), None),
        (
            replace("next_observations", lambda x: x + 1),
            r"next_observations\[0\] differs from observations\[1\]",
        ),
        (replace("observations", lambda x: x.astype("S8")), "observations must hold numbers"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_the_file(file, change, message):
    rewrite(file, change)
    if message is None:
        rewrite(file, replace("terminals", np.zeros_like))
        message = "none of the 8 steps is marked"
    with pytest.raises(DatasetError, match=message) as caught:
        load(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("stored", ["{not json", "[1, 2]"])
def test_metadata_that_are_no_json_object_are_refused(file, stored):
    rewrite(file, lambda raw: raw.attrs.__setitem__("trebi_gym", stored))
    with pytest.raises(DatasetError, match=r"attribute 'trebi_gym'"):
        load(file)


@pytest.mark.parametrize("content", [b"", b"a log, but in words\n" * 50])
def test_a_file_that_is_no_hdf5_is_refused_with_its_size(tmp_path, content):
    path = tmp_path / "words.hdf5"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=rf"\({len(content)} bytes\) is not a data set in a known format"):
        load(path)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_a_file_that_was_cut_short_is_refused(file, share):
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DatasetError, match="cannot be read as HDF5, perhaps it is cut short"):
        load(file)


def test_an_hdf5_file_of_something_else_is_refused(tmp_path):
    with h5py.File(tmp_path / "other.hdf5", "w") as raw:
        raw["temperature"] = np.zeros(3)
    with pytest.raises(DatasetError, match="not a data set in a known format"):
        load(tmp_path / "other.hdf5")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="is a folder but no Minari data set"):
        load(tmp_path)


def test_an_unknown_name_lists_the_places_and_the_known_names(monkeypatch, tmp_path):
    monkeypatch.setenv("TREBI_DATA", str(tmp_path))
    with pytest.raises(DatasetError) as caught:
        load("Nothing-v0")
    message = str(caught.value)
    assert str(tmp_path / "Nothing-v0.hdf5") in message
    assert "data/Nothing-v0.hdf5" in message.replace("\\", "/")
    assert "SafePendulum-medium-replay-v0" in message


def test_a_known_name_that_is_not_built_yet_names_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("TREBI_DATA", str(tmp_path))
    with pytest.raises(DatasetError) as caught:
        load("SafeReacher-medium-replay-v0")
    assert "trebi generate --dataset SafeReacher-v0 --datatype medium-replay --total-step 200000" in str(
        caught.value
    )


def test_a_data_set_is_found_by_name_in_the_users_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("TREBI_DATA", str(tmp_path))
    save(make_dataset(), tmp_path / "Mine-v0.hdf5")
    assert resolve("Mine-v0") == tmp_path / "Mine-v0.hdf5"
    assert len(load("Mine-v0")) == 3


def test_without_trebi_data_the_users_data_directory_is_searched(monkeypatch, tmp_path):
    monkeypatch.delenv("TREBI_DATA", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    save(make_dataset(), tmp_path / "trebi-gym" / "Mine-v0.hdf5")
    assert resolve("Mine-v0") == tmp_path / "trebi-gym" / "Mine-v0.hdf5"


def test_a_cost_function_takes_the_place_of_stored_costs_and_of_missing_ones(file):
    def cost(observation, action, next_observation, info):
        return 10 * np.abs(action[..., 0]) + 0 * next_observation[..., 0]

    expected = 10 * np.abs(make_dataset().actions[:, 0])
    np.testing.assert_allclose(load(file, cost=cost).costs, expected, rtol=1e-6)

    def change(raw):
        del raw["costs"]

    rewrite(file, change)
    np.testing.assert_allclose(load(file, cost=cost).costs, expected, rtol=1e-6)
    np.testing.assert_allclose(
        load(file, cost=pendulum_cost).costs,
        pendulum_cost(make_dataset().observations[[0, 1, 2, 4, 6, 7, 8, 9]], None, None, {}),
        rtol=1e-5,
    )


def test_an_unknown_format_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(DatasetError, match="format must be one of native_hdf5"):
        save(make_dataset(), tmp_path / "a.hdf5", format="parquet")
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_no_file_at_all(monkeypatch, tmp_path):
    original = h5py.Group.create_dataset

    def fail(self, name, *args, **kwargs):
        if name == "rewards":
            raise OSError("disk full")
        return original(self, name, *args, **kwargs)

    monkeypatch.setattr(h5py.Group, "create_dataset", fail)
    with pytest.raises(OSError, match="disk full"):
        save(make_dataset(), tmp_path / "a.hdf5")
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_the_older_file_as_it_was(monkeypatch, file):
    before = file.read_bytes()
    monkeypatch.setattr(json, "dumps", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save(make_dataset(), file)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_a_file_is_written_as_the_umask_allows_and_its_folder_is_made(tmp_path):
    path = tmp_path / "new" / "folder" / "a.hdf5"
    save(make_dataset(), path)
    other = tmp_path / "other"
    other.write_text("")
    assert path.stat().st_mode == other.stat().st_mode


def test_a_link_that_points_to_itself_is_refused(file):
    def change(raw):
        del raw["costs"]
        raw["costs"] = h5py.SoftLink("/costs")

    rewrite(file, change)
    with pytest.raises(DatasetError, match="/costs is a link to somewhere else"):
        load(file)


def test_an_array_that_claims_more_than_the_file_can_hold_is_refused_before_memory_is_taken(file):
    def change(raw):
        del raw["costs"]
        raw.create_dataset("costs", (10**10,), "f8", chunks=(1000,))

    rewrite(file, change)
    with pytest.raises(DatasetError, match=r"arrays claim .*/costs: \(10000000000,\) of float64"):
        load(file)


def test_a_file_with_damaged_bytes_is_read_or_refused_but_never_fails_otherwise(file):
    whole = file.read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        damaged = bytearray(whole)
        for place in generator.integers(len(whole), size=20):
            damaged[place] = int(generator.integers(256))
        file.write_bytes(damaged)
        try:
            load(file)
        except DatasetError:
            refused += 1
    assert refused > 0


def test_complex_numbers_are_refused(file):
    rewrite(file, replace("costs", lambda x: x.astype(complex)))
    with pytest.raises(DatasetError, match="costs must hold numbers; found complex"):
        load(file)


def test_metadata_that_json_cannot_hold_are_refused_and_leave_no_file(tmp_path):
    episode = Episode(np.zeros((3, 2)), np.zeros((2, 1)), np.zeros(2), np.zeros(2), False, True)
    dataset = EpisodeDataset.from_episodes([episode], {"speed": np.float32(1)})
    with pytest.raises(DatasetError, match="must be plain JSON"):
        save(dataset, tmp_path / "mine.hdf5")
    assert list(tmp_path.iterdir()) == []


def test_something_that_is_neither_a_name_nor_a_file_is_refused():
    with pytest.raises(DatasetError, match="given by its name or file; got 3"):
        load(3)
