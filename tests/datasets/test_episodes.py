"""EpisodeDataset: how flat steps become episodes, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trebi_gym.datasets import Episode, EpisodeDataset
from trebi_gym.errors import DatasetError


def flat_steps(lengths, ends="timeouts", size=2):
    """Steps of episodes in which every number tells its episode and its step."""
    arrays = {key: [] for key in ("observations", "next_observations", "actions", "rewards", "costs")}
    flags = {"terminals": [], "timeouts": []}
    for episode, length in enumerate(lengths):
        for t in range(length):
            arrays["observations"].append([100.0 * episode + t] * size)
            arrays["next_observations"].append([100.0 * episode + t + 1] * size)
            arrays["actions"].append([0.01 * t])
            arrays["rewards"].append(1000.0 * episode + t)
            arrays["costs"].append(0.5 * t)
            for key, values in flags.items():
                values.append(key == ends and t == length - 1)
    return {key: np.array(value, np.float32) for key, value in arrays.items()} | {
        key: np.array(value) for key, value in flags.items()
    }


def test_an_episode_ends_at_every_terminal_and_every_timeout():
    steps = flat_steps([2, 3, 1])
    steps["timeouts"][4], steps["terminals"][4] = False, True
    dataset = EpisodeDataset.from_steps(**steps)
    assert dataset.lengths.tolist() == [2, 3, 1]
    assert dataset.terminated.tolist() == [False, True, False]
    assert dataset.truncated.tolist() == [True, False, True]
    assert len(dataset) == 3
    assert dataset.n_steps == 6


def test_an_end_that_is_both_terminal_and_timeout_counts_as_terminal():
    steps = flat_steps([2])
    steps["terminals"][1] = True
    dataset = EpisodeDataset.from_steps(**steps)
    assert dataset.terminated.tolist() == [True]
    assert dataset.truncated.tolist() == [False]


def test_an_episode_holds_its_own_rows_and_the_observation_after_its_last_step():
    episode = EpisodeDataset.from_steps(**flat_steps([2, 3]))[1]
    assert episode.observations[:, 0].tolist() == [100, 101, 102, 103]
    assert episode.rewards.tolist() == [1000, 1001, 1002]
    assert episode.costs.tolist() == [0, 0.5, 1]
    assert len(episode) == 3


def test_steps_behind_the_last_end_are_dropped_and_counted():
    steps = flat_steps([2, 3])
    steps["timeouts"][-1] = False
    dataset = EpisodeDataset.from_steps(**steps)
    assert dataset.lengths.tolist() == [2]
    assert dataset.metadata["dropped_steps"] == 3


def test_nothing_is_counted_as_dropped_where_every_episode_ends():
    assert "dropped_steps" not in EpisodeDataset.from_steps(**flat_steps([2, 3])).metadata


def test_columns_of_one_number_are_read_as_flat_arrays():
    steps = flat_steps([2, 3])
    flat = EpisodeDataset.from_steps(**steps)
    for key in ("rewards", "costs", "terminals", "timeouts"):
        steps[key] = steps[key][:, None]
    column = EpisodeDataset.from_steps(**steps)
    assert column.rewards.tolist() == flat.rewards.tolist()
    assert column.lengths.tolist() == flat.lengths.tolist()


@pytest.mark.parametrize(
    "key", ["observations", "next_observations", "actions", "rewards", "costs", "terminals", "timeouts"]
)
def test_arrays_of_unequal_length_are_refused_with_all_lengths(key):
    steps = flat_steps([2, 3])
    steps[key] = steps[key][:-1]
    with pytest.raises(DatasetError, match=rf"same number of steps; found .*'{key}': 4"):
        EpisodeDataset.from_steps(**steps)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("key", "place", "index"),
    [
        ("observations", (3, 1), r"\[3, 1\]"),
        ("next_observations", (3, 0), r"\[3, 0\]"),
        ("actions", (2, 0), r"\[2, 0\]"),
        ("rewards", (1,), r"\[1\]"),
        ("costs", (4,), r"\[4\]"),
    ],
)
def test_values_that_are_not_finite_are_refused_with_the_first_index(key, place, index, value):
    steps = flat_steps([2, 3])
    steps[key][place] = value
    with pytest.raises(DatasetError, match=rf"{key}{index} is {value}; 1 of "):
        EpisodeDataset.from_steps(**steps)


@pytest.mark.parametrize("key", ["terminals", "timeouts"])
def test_an_end_marked_by_nan_is_refused(key):
    steps = flat_steps([2, 3])
    steps[key] = steps[key].astype(np.float32)
    steps[key][2] = np.nan
    with pytest.raises(DatasetError, match=rf"{key}\[2\] is nan"):
        EpisodeDataset.from_steps(**steps)


def test_data_without_a_finished_episode_are_refused_with_the_remedy():
    steps = flat_steps([3], ends="none")
    with pytest.raises(DatasetError, match=r"none of the 3 steps is marked .* mark at least the last step"):
        EpisodeDataset.from_steps(**steps)


def test_empty_arrays_are_refused():
    steps = {key: value[:0] for key, value in flat_steps([3]).items()}
    with pytest.raises(DatasetError, match="no finished episode"):
        EpisodeDataset.from_steps(**steps)


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("observations", lambda x: x[:, 0], "observations must have two dimensions"),
        ("actions", lambda x: x[:, 0], "actions must have two dimensions"),
        ("actions", lambda x: x[..., None], "actions must have two dimensions"),
        ("rewards", lambda x: np.stack([x, x], axis=1), "rewards must have one dimension"),
        ("timeouts", lambda x: np.stack([x, x], axis=1), "timeouts must have one dimension"),
        ("next_observations", lambda x: x[:, :1], "must have the same shape"),
        ("actions", lambda x: x[:, :0], r"actions must have shape \(5, n\)"),
        ("costs", lambda x: x.astype("S4"), "costs must hold numbers"),
    ],
)
def test_wrong_shapes_and_types_are_refused(key, change, message):
    steps = flat_steps([2, 3])
    steps[key] = change(steps[key])
    with pytest.raises(DatasetError, match=message):
        EpisodeDataset.from_steps(**steps)


def test_a_next_observation_that_is_not_the_following_one_is_refused_with_its_step():
    steps = flat_steps([2, 3])
    steps["timeouts"][1] = False
    with pytest.raises(DatasetError, match=r"next_observations\[1\] differs from observations\[2\]"):
        EpisodeDataset.from_steps(**steps)


def test_single_episodes_that_do_not_fit_together_are_refused():
    def episode(observations, actions):
        rewards = np.zeros(len(actions))
        return Episode(observations, actions, rewards, rewards, False, True)

    good = episode(np.zeros((3, 2)), np.zeros((2, 1)))
    with pytest.raises(DatasetError, match="no finished episode"):
        EpisodeDataset.from_episodes([])
    with pytest.raises(
        DatasetError,
        match=r"episode 1 has 2 rewards and so needs 3 observations, .* found 2, 2 and 2",
    ):
        EpisodeDataset.from_episodes([good, episode(np.zeros((2, 2)), np.zeros((2, 1)))])
    with pytest.raises(DatasetError, match="same observation and action sizes"):
        EpisodeDataset.from_episodes([good, episode(np.zeros((3, 5)), np.zeros((2, 1)))])


def test_arrays_of_a_data_set_cannot_be_written_to():
    dataset = EpisodeDataset.from_steps(**flat_steps([2, 3]))
    with pytest.raises(ValueError, match="read-only"):
        dataset.costs[0] = 7.0
    with pytest.raises(ValueError, match="read-only"):
        dataset[0].observations[0] = 7.0


def test_sums_are_those_of_the_episodes():
    dataset = EpisodeDataset.from_steps(**flat_steps([2, 3]))
    assert dataset.episode_returns.tolist() == [1.0, 3003.0]
    assert dataset.episode_costs.tolist() == [0.5, 1.5]


def test_indexing_counts_from_the_end_and_stops_there():
    dataset = EpisodeDataset.from_steps(**flat_steps([2, 3]))
    assert len(dataset[-1]) == 3
    assert [len(episode) for episode in dataset] == [2, 3]
    with pytest.raises(IndexError):
        dataset[2]


def test_selecting_keeps_the_chosen_episodes_in_the_given_order():
    dataset = EpisodeDataset.from_steps(**flat_steps([2, 3, 4]), metadata={"name": "x"})
    chosen = dataset.select([2, 0])
    assert chosen.lengths.tolist() == [4, 2]
    assert chosen.observations[:, 0].tolist() == [200, 201, 202, 203, 204, 0, 1, 2]
    assert chosen.metadata["name"] == "x"


def test_the_repr_says_how_much_there_is():
    text = repr(EpisodeDataset.from_steps(**flat_steps([2, 3]), metadata={"name": "Ledger"}))
    assert "Ledger" in text
    assert "2 episodes, 5 steps" in text


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 7), min_size=1, max_size=6), data=st.data())
def test_splitting_then_joining_gives_every_number_back(lengths, data):
    steps = flat_steps(lengths)
    ends = np.flatnonzero(steps["timeouts"])
    for end in ends:
        if data.draw(st.booleans()):
            steps["timeouts"][end], steps["terminals"][end] = False, True
    dataset = EpisodeDataset.from_steps(**steps)
    again = EpisodeDataset.from_episodes(list(dataset))
    rows = again.observation_rows
    np.testing.assert_array_equal(again.observations[rows], steps["observations"])
    np.testing.assert_array_equal(again.observations[rows + 1], steps["next_observations"])
    for key in ("actions", "rewards", "costs"):
        np.testing.assert_array_equal(getattr(again, key), steps[key])
    np.testing.assert_array_equal(again.terminated, steps["terminals"][ends])
    np.testing.assert_array_equal(again.truncated, steps["timeouts"][ends])


def test_episodes_whose_errors_cancel_in_the_sum_are_refused_too():
    def episode(actions):
        return Episode(np.zeros((6, 2)), np.zeros((actions, 1)), np.zeros(5), np.zeros(5), False, True)

    with pytest.raises(DatasetError, match=r"episode 0 has 5 rewards .* found 6, 4 and 5"):
        EpisodeDataset.from_episodes([episode(4), episode(6)])


@pytest.mark.parametrize("length", ["long", -4, 0, 1.5])
def test_a_time_limit_in_the_metadata_that_is_none_is_refused(length):
    episode = Episode(np.zeros((6, 2)), np.zeros((5, 1)), np.zeros(5), np.zeros(5), False, True)
    with pytest.raises(DatasetError, match="episode_length in the metadata must be a number of steps"):
        EpisodeDataset.from_episodes([episode], {"episode_length": length})
