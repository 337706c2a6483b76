"""Files of others: the same episodes in every format, written by a script that uses none of our code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np
import pytest
from contracts import ARRAYS, make_dataset

from trebi_gym.datasets import load, save
from trebi_gym.datasets.episode import timeouts_by_length
from trebi_gym.datasets.sources import SOURCES
from trebi_gym.datasets.sources.d4rl import departing_velocity
from trebi_gym.errors import DatasetError

SCRIPT = Path(__file__).with_name("write_foreign.py")
EVERY = {
    "d4rl": "hopper_medium-v2.hdf5",
    "dsrl": "dsrl.hdf5",
    "minari": "minari/toy/hdf5-v0",
    "minari, costs without the reset's": "minari/toy/short-v0",
    "minari in arrow": "minari/toy/arrow-v0",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("foreign")
    subprocess.run([sys.executable, str(SCRIPT), str(found)], check=True, capture_output=True, text=True)
    return found


@pytest.fixture(scope="module")
def expected(folder):
    return load(folder / EVERY["dsrl"])


def speed(observation, action, next_observation, info):
    return np.abs(info["speed"])


@pytest.mark.parametrize("kind", EVERY)
def test_the_same_episodes_load_equal_from_every_format(folder, expected, kind):
    found = load(folder / EVERY[kind])
    for array in ARRAYS:
        tolerance = 1e-5 if array == "costs" else 0  # D4RL's come from differences of positions
        np.testing.assert_allclose(getattr(found, array), getattr(expected, array), rtol=tolerance, atol=0)
    assert len(found) == 20
    assert found.terminated.sum() == 7
    assert found.truncated.sum() == 13


@pytest.mark.parametrize("kind", EVERY)
def test_row_t_holds_the_cost_that_action_t_caused(folder, kind):
    found = load(folder / EVERY[kind])
    np.testing.assert_allclose(found.costs, 2 + found.actions[:, 0], rtol=1e-5)
    for episode in found:
        # and the observation after action t tells action t
        np.testing.assert_array_equal(episode.observations[1:, 2:], episode.actions)


def test_each_is_recognised_by_its_content_as_what_it_is(folder):
    for kind, place in EVERY.items():
        by = [name for name, source in SOURCES.items() if source.recognises(folder / place)]
        assert by == [kind.split(",")[0].split(" ")[0]]


def test_the_name_of_a_d4rl_file_tells_its_task_and_episode_length(folder):
    found = load(folder / EVERY["d4rl"])
    assert found.metadata["name"] == "hopper-medium-v2"
    assert found.metadata["env_id"] == "SafeHopper-v0"
    assert found.episode_length == 1000


def test_a_d4rl_file_of_another_name_needs_the_name_for_its_costs(folder, tmp_path):
    path = tmp_path / "mine.hdf5"
    path.write_bytes((folder / EVERY["d4rl"]).read_bytes())
    with pytest.raises(
        DatasetError, match=r'it holds no costs, and none can be derived: .*name="hopper-medium-v2"'
    ):
        load(path)
    named = load(path, name="hopper-medium-v2")
    np.testing.assert_array_equal(named.costs, load(folder / EVERY["d4rl"]).costs)


def test_without_timeouts_episodes_are_cut_at_the_time_limit(folder, expected):
    path = folder / "bare" / "steps.hdf5"
    with pytest.raises(DatasetError, match=r"neither timeouts nor next_observations.*episode_length=\.\.\."):
        load(path, cost=lambda o, a, n, info: 2 + a[:, 0])
    found = load(path, cost=lambda o, a, n, info: 2 + a[:, 0], episode_length=9)
    for array in ("lengths", "terminated", "truncated", "actions", "costs"):
        np.testing.assert_allclose(getattr(found, array), getattr(expected, array), rtol=1e-6)
    assert found.episode_length == 9


def test_an_unknown_last_observation_repeats_the_one_before_and_is_noted(folder):
    found = load(folder / "bare" / "steps.hdf5", cost=lambda o, a, n, info: 2 + a[:, 0], episode_length=9)
    for episode in found:
        np.testing.assert_array_equal(episode.observations[-1], episode.observations[-2])
    assert any("the last one is repeated" in note for note in found.metadata["notes"])


def test_a_time_limit_counts_anew_after_every_end():
    terminals = np.zeros(12, bool)
    terminals[[1, 6]] = True
    reached = timeouts_by_length(terminals, 3)
    # steps 0-1 | 2-4, 5-6 | 7-9, 10-11 unfinished
    assert np.flatnonzero(reached).tolist() == [4, 9]
    exact = np.zeros(6, bool)
    exact[2] = True
    assert np.flatnonzero(timeouts_by_length(exact, 3)).tolist() == [5], "the task's own end is no timeout"


def test_the_velocity_departs_from_a_step_and_never_reaches_into_the_next_episode():
    positions = np.array([0.0, 1.0, 3.0, 100.0, 104.0, 500.0])
    ends = np.array([2, 4, 5])
    found = departing_velocity(positions, ends, 0.5)
    np.testing.assert_array_equal(found, [2.0, 4.0, 4.0, 8.0, 8.0, 0.0])
    arriving = np.diff(positions, prepend=0.0) / 0.5
    assert not np.allclose(found, arriving)
    single = departing_velocity(positions, ends, 0.5, np.arange(6.0))
    assert single[5] == 5.0, "an episode of one step has the velocity that was recorded before it"


def test_places_where_next_observations_jump_end_an_episode_and_are_told(folder, tmp_path, caplog):
    path = tmp_path / "hopper-medium-v2.hdf5"
    path.write_bytes((folder / EVERY["d4rl"]).read_bytes())
    with h5py.File(path, "r+") as file:
        ends = np.flatnonzero(file["timeouts"][()])
        file["timeouts"][ends[0]] = False
    found = load(path)
    assert len(found) == 20
    assert found.truncated.sum() == 13
    assert any("1 episodes end where next_observations jump" in note for note in found.metadata["notes"])
    assert "no end is marked" in caplog.text


def test_next_observations_that_never_follow_are_refused(folder, tmp_path):
    path = tmp_path / "dsrl.hdf5"
    path.write_bytes((folder / EVERY["dsrl"]).read_bytes())
    with h5py.File(path, "r+") as file:
        file["next_observations"][()] = file["observations"][()] / 2 - 1
    with pytest.raises(
        DatasetError, match="next_observations differ from the following step's observations at"
    ):
        load(path)


def test_a_log_with_costs_needs_no_next_observations(folder, tmp_path, expected):
    path = tmp_path / "log.hdf5"
    path.write_bytes((folder / EVERY["dsrl"]).read_bytes())
    with h5py.File(path, "r+") as file:
        del file["next_observations"]
    found = load(path)
    for array in ("lengths", "actions", "costs", "terminated"):
        np.testing.assert_array_equal(getattr(found, array), getattr(expected, array))
    for episode in found:
        np.testing.assert_array_equal(episode.observations[-1], episode.observations[-2])
    assert any("the last one is repeated" in note for note in found.metadata["notes"])


@pytest.mark.parametrize("kind", EVERY)
def test_a_given_episode_length_is_taken_for_every_format(folder, kind):
    assert load(folder / EVERY[kind], episode_length=77).episode_length == 77


def test_minari_data_without_costs_take_a_cost_function(folder, expected):
    path = folder / "minari/toy/costless-v0"
    with pytest.raises(
        DatasetError, match=r"episode 0 has no cost .*it has no infos/cost; .*its infos are speed"
    ):
        load(path)
    found = load(path, cost=speed)
    np.testing.assert_array_equal(found.costs, expected.costs)


def test_a_minari_folder_is_read_from_a_relative_path_too(folder, monkeypatch, expected):
    monkeypatch.chdir(folder / "minari")
    np.testing.assert_array_equal(load("toy/hdf5-v0").actions, expected.actions)


def test_a_minari_id_is_a_name(folder, monkeypatch, expected):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder / "minari"))
    np.testing.assert_array_equal(load("toy/hdf5-v0").actions, expected.actions)
    assert load("toy/hdf5-v0").metadata["name"] == "toy/hdf5-v0"
    np.testing.assert_array_equal(load(folder / "minari/toy/hdf5-v0/data").actions, expected.actions)


@pytest.mark.filterwarnings("ignore")
def test_what_we_save_for_minari_it_loads_samples_and_rebuilds_the_task_from(
    tmp_path, monkeypatch, shipped_dataset
):
    import minari

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    few = shipped_dataset.select(range(4))
    save(few, tmp_path / "trebi" / "pendulum" / "few-v3", format="minari")
    theirs = minari.load_dataset("trebi/pendulum/few-v3")
    assert theirs.total_episodes == 4
    assert theirs.total_steps == few.n_steps
    for episode, mine in zip(theirs.iterate_episodes(), few, strict=True):
        np.testing.assert_array_equal(episode.observations, mine.observations)
        np.testing.assert_array_equal(episode.infos["cost"][1:], mine.costs)
        assert episode.truncations[-1]
    (sampled,) = theirs.sample_episodes(1)
    assert len(sampled.rewards) == 200
    env = theirs.recover_environment()
    assert env.spec.id == "SafePendulum-v0"
    env.reset(seed=0)
    assert "cost" in env.step(env.action_space.sample())[4]
    assert "trebi/pendulum/few-v3" in minari.list_local_datasets()
    again = load("trebi/pendulum/few-v3")
    assert again.metadata == few.metadata
    for array in ARRAYS:
        np.testing.assert_array_equal(getattr(again, array), getattr(few, array))


@pytest.mark.parametrize("name", ["few", "few-v0 copy", "a.b-v0", "fé w"])
def test_a_folder_that_is_no_minari_id_is_refused_before_anything_is_written(tmp_path, name):
    path = tmp_path / name
    if name == "few":
        save(make_dataset(), path, format="minari")  # a version is optional
        assert len(load(path)) == 3
        return
    with pytest.raises(DatasetError, match="is no id of a Minari data set"):
        save(make_dataset(), path, format="minari")
    assert list(tmp_path.iterdir()) == []


def test_a_minari_folder_is_never_written_over(tmp_path):
    save(make_dataset(), tmp_path / "few-v0", format="minari")
    with pytest.raises(DatasetError, match="exists already; delete it, or choose another place"):
        save(make_dataset(), tmp_path / "few-v0", format="minari")


def change(path, key, value):
    document = json.loads((path / "data" / "metadata.json").read_text())
    document[key] = value
    if value is None:
        del document[key]
    (path / "data" / "metadata.json").write_text(json.dumps(document))


def test_a_minari_folder_may_not_name_an_environment_to_make_for_its_spaces(tmp_path, monkeypatch):
    save(make_dataset(), tmp_path / "few-v0", format="minari")
    ran = tmp_path / "ran"
    (tmp_path / "payload.py").write_text(f"open({str(ran)!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    spec = gym.envs.registration.EnvSpec("Payload-v0", entry_point="payload:make")
    change(tmp_path / "few-v0", "env_spec", spec.to_json())
    change(tmp_path / "few-v0", "observation_space", None)
    with pytest.raises(DatasetError, match=r"metadata\.json lacks observation_space"):
        load(tmp_path / "few-v0")
    assert not ran.exists()


def test_spaces_that_are_no_boxes_are_refused_with_the_remedy(tmp_path):
    from minari.serialization import serialize_space

    save(make_dataset(), tmp_path / "few-v0", format="minari")
    space = gym.spaces.Dict(position=gym.spaces.Box(-1, 1, (3,)))
    change(tmp_path / "few-v0", "observation_space", serialize_space(space))
    with pytest.raises(DatasetError, match=r"its observations are Dict.*flatten them"):
        load(tmp_path / "few-v0")


BAD_FOLDERS = {
    "metadata that are no JSON": lambda p: (p / "data/metadata.json").write_text("{"),
    "metadata that are a list": lambda p: (p / "data/metadata.json").write_text("[]"),
    "more episodes than there are": lambda p: change(p, "total_episodes", 9),
    "an unknown storage": lambda p: change(p, "data_format", "stone"),
    "no steps file": lambda p: (p / "data/main_data.hdf5").unlink(),
    "a steps file that is cut short": lambda p: cut(p / "data/main_data.hdf5"),
    "a NaN": lambda p: poke(p, "rewards", np.array([np.nan, 1, 2])),
    "too few actions": lambda p: poke(p, "actions", np.zeros((2, 2))),
    "too many costs": lambda p: poke(p, "infos/cost", np.zeros(7)),
    "no rewards": lambda p: poke(p, "rewards", None),
}


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def poke(path, key, value):
    with h5py.File(path / "data/main_data.hdf5", "r+") as file:
        del file[f"episode_0/{key}"]
        if value is not None:
            file[f"episode_0/{key}"] = value


MESSAGES = {
    "metadata that are no JSON": "is not the description of a Minari data set",
    "metadata that are a list": "lacks observation_space",
    "more episodes than there are": "perhaps it is damaged",
    "an unknown storage": "perhaps it is damaged",
    "no steps file": "perhaps it is damaged",
    "a steps file that is cut short": "perhaps it is cut short",
    "a NaN": "is nan",
    "too few actions": "found 4 and 2",
    "too many costs": r"its infos/cost has shape \(7,\)",
    "no rewards": "perhaps it is damaged",
}


@pytest.mark.parametrize("kind", BAD_FOLDERS)
def test_a_damaged_minari_folder_is_refused_with_what_is_wrong(tmp_path, kind):
    save(make_dataset(), tmp_path / "few-v0", format="minari")
    BAD_FOLDERS[kind](tmp_path / "few-v0")
    with pytest.raises(DatasetError, match=MESSAGES[kind]):
        load(tmp_path / "few-v0")


def test_a_missing_pyarrow_is_named_with_the_command_that_installs_it(folder, monkeypatch):
    for name in [
        name for name in sys.modules if name.startswith(("pyarrow", "minari.dataset._storages.arrow"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DatasetError, match=r"needs another package: pip install 'trebi-gym\[arrow\]'"):
        load(folder / EVERY["minari in arrow"])


def edit(path, key, value):
    with h5py.File(path, "r+") as file:
        del file[key]
        if value is not None:
            file[key] = value


FLAT = {
    "without actions": (lambda p: edit(p, "actions", None), "lacks actions"),
    "with a NaN reward": (lambda p: edit(p, "rewards", np.full(8, np.nan)), r"rewards\[0\] is nan"),
    "of unequal lengths": (lambda p: edit(p, "rewards", np.zeros(5)), "must hold the same number of steps"),
    "of wrong dimensions": (lambda p: edit(p, "observations", np.zeros(8)), "must have two dimensions"),
    "without an end": (
        lambda p: (edit(p, "terminals", np.zeros(8, bool)), edit(p, "timeouts", np.zeros(8, bool))),
        "is marked in terminals or timeouts",
    ),
    "with flags that are none": (
        lambda p: edit(p, "terminals", np.full(8, 0.5)),
        "terminals must hold 0 and 1",
    ),
    "of text": (lambda p: edit(p, "rewards", np.array([b"a"] * 8)), "must hold numbers"),
    "empty": (
        lambda p: [
            edit(p, key, np.zeros((0, 3) if "obs" in key else (0, 2) if key == "actions" else 0))
            for key in ("observations", "next_observations", "actions", "rewards", "terminals", "timeouts")
        ],
        "same number of steps|none of the 0 steps|must hold 0 steps",
    ),
    "cut short": (lambda p: cut(p), "perhaps it is cut short"),
}


@pytest.mark.parametrize(
    ("format", "kind"),
    [
        (format, kind)
        for kind in FLAT
        for format in ("native_hdf5", "dsrl", "d4rl")
        # in files of others, a jump of the next observation ends an episode too
        if format == "native_hdf5" or kind != "without an end"
    ],
)
def test_a_bad_flat_file_is_refused_with_what_is_wrong(tmp_path, format, kind):
    path = tmp_path / "mine.hdf5"
    save(make_dataset(), path, format=format)
    spoil, message = FLAT[kind]
    spoil(path)
    with pytest.raises(DatasetError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_infos_of_another_length_are_refused(tmp_path):
    path = tmp_path / "mine.hdf5"
    save(make_dataset(), path, format="d4rl")
    edit(path, "infos/cost", np.zeros(5))
    with pytest.raises(DatasetError, match=r"every array in infos must hold 8 steps"):
        load(path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["d4rl", "dsrl", "minari"])
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_two_million_steps_load_in_seconds_and_little_memory(tmp_path, kind, compression):
    """2,000,000 steps of 17 + 6 numbers: under 1.5 GB at the peak and under 20 s on two cores."""
    steps, limit = 2_000_000, 1000
    generator = np.random.default_rng(0)
    observations = generator.standard_normal((steps + 1, 17), dtype=np.float32)
    timeouts = np.zeros(steps, bool)
    timeouts[limit - 1 :: limit] = True
    arrays = {
        "observations": observations[:-1],
        "next_observations": observations[1:],
        "actions": generator.standard_normal((steps, 6), dtype=np.float32),
        "rewards": generator.standard_normal(steps, dtype=np.float32),
        "terminals": np.zeros(steps, bool),
        "timeouts": timeouts,
    }
    if kind == "d4rl":
        arrays |= {f"infos/{key}": generator.standard_normal((steps, 9)) for key in ("qpos", "qvel")}
    else:
        arrays["costs"] = np.abs(arrays["rewards"])
    path = tmp_path / "walker2d-medium-v2.hdf5"
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            file.create_dataset(key, data=array, compression=compression)
    if kind == "minari":
        save(load(path), tmp_path / "big-v0", format="minari")
        path = tmp_path / "big-v0"
    code = (
        "import resource, sys, time; from trebi_gym.datasets import load; began = time.perf_counter(); "
        "found = load(sys.argv[1]); seconds = time.perf_counter() - began; "
        "print(found.n_steps, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    result = subprocess.run(
        [sys.executable, "-c", code, str(path)], env=environment, check=True, capture_output=True, text=True
    )
    found, seconds, gigabytes = map(float, result.stdout.split())
    print(f"{kind} {compression}: {seconds:.1f} s, {gigabytes:.2f} GB")
    assert found == steps
    assert seconds < 20
    assert gigabytes < 1.5
