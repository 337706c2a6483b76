"""Logs as people have them: ends that are not marked, and cost functions that were written for single steps."""

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_episodes import flat_steps

from trebi_gym.datasets import load
from trebi_gym.errors import DatasetError

LIMIT = 10


def write(path, lengths, *, without=(), **changed):
    arrays = {**flat_steps(lengths), **changed}
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            if name not in without:
                file["infos/cost" if name == "costs" else name] = array
    return path


def test_a_time_limit_is_counted_from_the_last_end_of_any_kind(tmp_path):
    path = write(tmp_path / "a.hdf5", [6, 10, 10, 10], without=["timeouts"])
    assert load(path, episode_length=LIMIT).lengths.tolist() == [6, 10, 10, 10]


@given(lengths=st.lists(st.integers(1, LIMIT), min_size=2, max_size=8))
@settings(max_examples=30, deadline=None)
def test_episodes_of_any_length_are_found_where_next_observations_jump(lengths, tmp_path_factory):
    path = write(tmp_path_factory.mktemp("log") / "a.hdf5", lengths, without=["timeouts"])
    assert load(path, episode_length=LIMIT).lengths.tolist() == lengths


def test_only_ends_that_the_time_limit_does_not_explain_are_told(tmp_path, caplog):
    load(write(tmp_path / "a.hdf5", [10, 10, 10], without=["timeouts"]), episode_length=LIMIT)
    assert "jump" not in caplog.text
    load(write(tmp_path / "b.hdf5", [6, 10, 3, 10], without=["timeouts"]), episode_length=LIMIT)
    assert "2 episodes end where next_observations jump" in caplog.text


def test_without_next_observations_the_limit_is_counted_from_terminals(tmp_path):
    terminals = np.zeros(36, bool)
    terminals[5] = True
    gone = ["timeouts", "next_observations"]
    path = write(tmp_path / "a.hdf5", [6, 10, 10, 10], without=gone, terminals=terminals)
    assert load(path, episode_length=LIMIT).lengths.tolist() == [6, 10, 10, 10]


def test_the_last_episode_of_a_foreign_log_may_be_unfinished(tmp_path):
    steps = flat_steps([100, 100, 100, 100])["timeouts"]
    steps[-1] = False
    found = load(write(tmp_path / "a.hdf5", [100, 100, 100, 100], timeouts=steps))
    assert found.lengths.tolist() == [100] * 4
    assert found.metadata["unfinished_steps"] == 100


def single(observation, action, next_observation, info):
    return 1.0 if next_observation[1] > 0 else 0.0


def good(observation, action, next_observation, info):
    return np.where(next_observation[..., 1] > 0, 1.0, 0.0)


def one_number(observation, action, next_observation, info):
    return 1.0


def text(observation, action, next_observation, info):
    return np.full(len(action), "1")


def not_finite(observation, action, next_observation, info):
    return np.where(next_observation[..., 1] > 102, np.nan, 0.0)


def broken(observation, action, next_observation, info):
    return info["speed"]


def native(path):
    from trebi_gym.datasets import EpisodeDataset, save

    save(EpisodeDataset.from_steps(**flat_steps([4, 6])), path)
    return path


def dsrl(path):
    with h5py.File(path, "w") as file:
        for name, array in flat_steps([4, 6]).items():
            file[name] = array
    return path


def minari(path):
    from trebi_gym.datasets import EpisodeDataset, save

    target = path.parent / "log-v0"
    save(EpisodeDataset.from_steps(**flat_steps([4, 6])), target, format="minari")
    return target


SOURCES = {"native": native, "dsrl": dsrl, "d4rl": lambda path: write(path, [4, 6]), "minari": minari}


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES.keys())
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (single, r"the cost function single failed \(ValueError.*so it must allow for leading axes"),
        (one_number, r"the cost function one_number must return one number for each step"),
        (text, r"the cost function text must return one number for each step"),
        (not_finite, r"the cost function not_finite returned nan for step"),
        (broken, r"the cost function broken failed \(KeyError"),
    ],
)
def test_a_cost_function_that_does_not_fit_recorded_steps_is_named_with_what_to_do(
    make, function, message, tmp_path
):
    with pytest.raises(DatasetError, match=message):
        load(make(tmp_path / "a.hdf5"), cost=function)


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES.keys())
def test_a_cost_function_with_leading_axes_takes_the_place_of_stored_costs(make, tmp_path):
    assert load(make(tmp_path / "a.hdf5"), cost=good).episode_costs.tolist() == [4.0, 6.0]
