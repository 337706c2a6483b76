"""EpisodeDataset: how flat steps become episodes, and what is refused."""

import copy
import dataclasses
import pickle  # noqa: TID251 (a data set must stay what it is in one)

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


def test_steps_after_the_last_end_are_kept_as_a_truncated_episode(caplog):
    steps = flat_steps([2, 3])
    steps["timeouts"][-1] = False
    dataset = EpisodeDataset.from_steps(**steps)
    assert dataset.lengths.tolist() == [2, 3]
    assert dataset.truncated[-1]
    assert dataset.metadata["unfinished_steps"] == 3
    assert "3 steps of an episode whose end was not recorded" in repr(dataset)
    assert "the last 3 steps have no marked end" in caplog.text


def test_one_mark_at_the_start_of_a_long_log_keeps_what_follows():
    steps = flat_steps([40, 960])
    steps["timeouts"][-1] = False
    assert EpisodeDataset.from_steps(**steps).lengths.tolist() == [40, 960]


def test_steps_after_the_last_end_that_cannot_be_one_episode_are_left_out_and_told(caplog):
    steps = flat_steps([2, 3])
    steps["timeouts"][-1] = False
    dataset = EpisodeDataset.from_steps(**steps, metadata={"episode_length": 2})
    assert dataset.lengths.tolist() == [2]
    assert dataset.metadata["dropped_steps"] == 3
    assert "3 steps left out" in repr(dataset)
    assert "more than an episode of 2 steps: they are left out" in caplog.text


def test_an_unfinished_tail_whose_steps_are_not_in_order_is_refused():
    steps = flat_steps([2, 3])
    steps["timeouts"][-1] = False
    steps["next_observations"][3] += 1
    with pytest.raises(DatasetError, match=r"next_observations\[3\] differs from observations\[4\]"):
        EpisodeDataset.from_steps(**steps)


def test_nothing_is_counted_where_every_episode_ends():
    metadata = EpisodeDataset.from_steps(**flat_steps([2, 3])).metadata
    assert not {"dropped_steps", "unfinished_steps"} & set(metadata)


def test_a_mask_chooses_episodes():
    dataset = EpisodeDataset.from_steps(**flat_steps([2, 3, 1, 4]))
    assert dataset.select(dataset.lengths <= 2).lengths.tolist() == [2, 1]
    assert dataset.select([True, False, False, True]).lengths.tolist() == [2, 4]
    assert dataset.select(np.array([-1, 0, 0])).lengths.tolist() == [4, 2, 2]
    assert dataset[1:3].lengths.tolist() == [3, 1]
    assert dataset[::-1].lengths.tolist() == [4, 1, 3, 2]
    assert len(dataset[np.int64(1)]) == len(dataset[-3]) == 3


@given(st.lists(st.booleans(), min_size=4, max_size=4).filter(any))
def test_a_mask_is_the_same_as_its_numbers(mask):
    dataset = EpisodeDataset.from_steps(**flat_steps([2, 3, 1, 4]))
    numbers = [index for index, chosen in enumerate(mask) if chosen]
    assert dataset.select(mask).lengths.tolist() == dataset.select(numbers).lengths.tolist()


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ([1.7], "list of whole numbers or a mask"),
        ([1.0], "list of whole numbers or a mask"),
        (["1"], "list of whole numbers or a mask"),
        (3, "list of whole numbers or a mask"),
        (None, "list of whole numbers or a mask"),
        ([None], "list of whole numbers or a mask"),
        ([[0, 1]], "list of whole numbers or a mask"),
        ([[0], [1, 2]], "list of whole numbers or a mask"),
        ([True, False], "a mask must hold 4 booleans"),
        ([4], "there is no episode 4: the data set has 4"),
        ([-5], "there is no episode -5"),
        ([], "no episode is chosen"),
        ([False] * 4, "no episode is chosen"),
    ],
)
def test_what_chooses_no_episodes_is_refused(chosen, message):
    dataset = EpisodeDataset.from_steps(**flat_steps([2, 3, 1, 4]))
    with pytest.raises(DatasetError, match=message):
        dataset.select(chosen)


@pytest.mark.parametrize("index", [1.0, "1", None, [0, 1], True, np.array([0, 1])])
def test_an_index_that_is_no_number_is_refused(index):
    with pytest.raises(DatasetError, match="an episode is chosen by a whole number"):
        EpisodeDataset.from_steps(**flat_steps([2, 3]))[index]


@pytest.mark.parametrize(
    ("share", "seed"), [(["x"], 0), ("x", 0), (True, 0), (None, 0), (0.5, -1.0), (0.5, None)]
)
def test_a_split_by_no_share_or_seed_is_refused(share, seed):
    with pytest.raises(DatasetError, match="must be a"):
        EpisodeDataset.from_steps(**flat_steps([2, 3])).split(share, seed)


def test_nobody_can_change_a_data_set_afterwards():
    steps, metadata = flat_steps([2, 3]), {"notes": ["a"]}
    dataset = EpisodeDataset.from_steps(**steps, metadata=metadata)
    before = dataset.costs.tolist()
    for array in steps.values():
        array[...] = 0
    metadata["notes"].append("b")
    assert dataset.costs.tolist() == before
    assert dataset.metadata == {"notes": ["a"]}
    with pytest.raises(TypeError):
        dataset.metadata["name"] = "another"
    for other in (
        copy.copy(dataset),
        copy.deepcopy(dataset),
        pickle.loads(pickle.dumps(dataset)),
        dataclasses.replace(dataset, metadata={}),
        dataset[0:1],
    ):
        for name in ("observations", "actions", "rewards", "costs", "lengths", "terminated", "truncated"):
            with pytest.raises(ValueError, match="read-only"):
                getattr(other, name)[:] = 0
    with pytest.raises(ValueError, match="read-only"):
        pickle.loads(pickle.dumps(dataset[0])).costs[:] = 0


def test_a_writable_view_of_memory_is_copied_and_an_owned_array_is_not():
    steps = flat_steps([2, 3])
    readable = steps["actions"].view()
    readable.flags.writeable = False  # its memory can still be written to
    dataset = EpisodeDataset.from_steps(**{**steps, "actions": readable})
    assert not np.shares_memory(dataset.actions, steps["actions"])
    assert np.shares_memory(dataclasses.replace(dataset, metadata={}).actions, dataset.actions)


def test_sums_that_no_number_can_hold_are_refused_without_a_warning(recwarn):
    steps = flat_steps([2, 3])
    steps["costs"] = np.full(5, 1e308)
    with pytest.raises(DatasetError, match="the costs of episode 0 add up to more than a number can hold"):
        EpisodeDataset.from_steps(**steps)
    assert not recwarn.list


def test_the_same_observations_in_two_precisions_are_in_order():
    steps = flat_steps([2, 3])
    exact = np.cumsum(np.full((6, 1), 0.1), axis=0)
    steps["observations"], steps["next_observations"] = exact[:5].astype(np.float32), exact[1:]
    assert EpisodeDataset.from_steps(**steps).lengths.tolist() == [2, 3]
    swapped = {**steps, "observations": exact[:5], "next_observations": exact[1:].astype(np.float32)}
    assert EpisodeDataset.from_steps(**swapped).lengths.tolist() == [2, 3]
    steps["next_observations"] = steps["next_observations"] + np.float64(1e-5)
    with pytest.raises(DatasetError, match="differs from observations"):
        EpisodeDataset.from_steps(**steps)


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
