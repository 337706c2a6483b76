"""The commands ``trebi info`` on data sets and ``trebi convert``."""

import h5py
import numpy as np
import pytest
from contracts import ARRAYS, make_dataset

from trebi_gym.commands.cli import main
from trebi_gym.commands.data import BAR_WIDTH, histogram
from trebi_gym.datasets import load, save

DATASET = "SafePendulum-medium-replay-v0"


def refused(capsys, *arguments):
    """What the command line says on refusing."""
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_a_histogram_counts_every_value_and_its_longest_bar_is_full():
    lines = histogram(np.array([0.0] * 30 + [9.5] * 10 + [10.0] * 5), bins=10)
    assert [int(line.split()[-1]) for line in lines] == [30, 0, 0, 0, 0, 0, 0, 0, 0, 15]
    assert [line.count("█") for line in (lines[0], lines[1], lines[-1])] == [BAR_WIDTH, 0, BAR_WIDTH // 2]
    assert histogram(np.full(4, 2.5)) == ["  all 2.5"]


def test_a_bar_is_drawn_even_where_one_in_a_thousand_falls():
    lines = histogram(np.array([0.0] * 2000 + [1.0]), bins=2)
    assert "▏" in lines[1]


def test_info_of_a_named_data_set_tells_budgets_and_which_episodes_keep_them(capsys, tmp_path):
    main(["info", DATASET, "--plot", str(tmp_path / "episodes.png")])
    text = capsys.readouterr().out
    for part in (
        "100 episodes, 20000 steps",
        "SafePendulum-v0, 200 steps an episode at most",
        "maximum budget 60 (published for",
        "by the factor 0.336",
        "ratio 0.2    23 episodes (23%) within 12, best return 140.6",
    ):
        assert part in text
    assert (tmp_path / "episodes.png").stat().st_size > 10_000


def test_info_of_ones_own_file_derives_the_budgets_and_says_how(capsys, tmp_path):
    save(make_dataset(), tmp_path / "mine.hdf5")
    main(["info", str(tmp_path / "mine.hdf5")])
    text = capsys.readouterr().out
    assert "(0.9 quantile of the data set's episode costs)" in text
    assert "published" not in text


def test_info_refuses_a_plot_of_an_agent_and_an_unknown_picture_format(capsys, tmp_path):
    assert "are for data sets; got an agent" in refused(capsys, "info", "x.zip", "--plot", "x.png")
    picture = str(tmp_path / "x.txt")
    assert "saved as .png, .pdf or .svg" in refused(capsys, "info", DATASET, "--plot", picture)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", ["native_hdf5", "dsrl", "d4rl", "minari"])
def test_convert_keeps_every_number_in_every_format(capsys, tmp_path, format):
    save(make_dataset(), tmp_path / "mine.hdf5")
    target = tmp_path / ("mine-v0" if format == "minari" else "other.hdf5")
    main(["convert", "--dataset", str(tmp_path / "mine.hdf5"), "--output", str(target), "--format", format])
    assert f"written to {target} as {format}" in capsys.readouterr().out
    before, after = load(tmp_path / "mine.hdf5"), load(target)
    for array in ARRAYS:
        np.testing.assert_array_equal(getattr(after, array), getattr(before, array))


def test_convert_charges_a_given_cost_function(tmp_path, capsys):
    save(make_dataset(), tmp_path / "mine.hdf5")
    target = tmp_path / "charged.hdf5"
    arguments = ["--output", str(target), "--cost", "test_data_commands:first_action_cost"]
    main(["convert", "--dataset", str(tmp_path / "mine.hdf5"), *arguments])
    charged = load(target)
    np.testing.assert_allclose(charged.costs, np.abs(charged.actions[:, 0]))


def first_action_cost(observation, action, next_observation, info):
    return np.abs(action[..., 0])


def test_convert_refuses_what_it_cannot_do_before_anything_is_written(capsys, tmp_path):
    source = tmp_path / "mine.hdf5"
    save(make_dataset(), source)
    base = ("convert", "--dataset", str(source), "--output")
    assert "--format must be one of native_hdf5" in refused(
        capsys, *base, str(tmp_path / "x"), "--format", "csv"
    )
    assert "exists already; pass --overwrite" in refused(capsys, *base, str(source))
    (tmp_path / "folder").mkdir()
    assert "exists already; choose another --output" in refused(capsys, *base, str(tmp_path / "folder"))
    with h5py.File(tmp_path / "bare.hdf5", "w") as file:
        file["observations"] = np.zeros((3, 1))
    message = refused(
        capsys, "convert", "--dataset", str(tmp_path / "bare.hdf5"), "--output", str(tmp_path / "y")
    )
    assert "lacks" in message
    assert {path.name for path in tmp_path.iterdir()} == {"mine.hdf5", "folder", "bare.hdf5"}


def test_values_that_differ_by_rounding_alone_are_one_value():
    nearly = np.array([0.1 + 0.2 + 0.3, 0.3 + 0.2 + 0.1])
    assert nearly[0] != nearly[1]
    assert histogram(nearly) == ["  all 0.6"]


def test_info_tells_of_replaced_costs_and_is_not_upset_by_a_strangers_metadata(capsys, tmp_path):
    save(make_dataset(metadata={"notes": 5, "replaced_cost": "my:cost"}), tmp_path / "mine.hdf5")
    main(["info", str(tmp_path / "mine.hdf5"), "--plot", str(tmp_path / "mine.png")])
    assert "the costs are those of my:cost, in the place of the stored ones" in capsys.readouterr().out
    assert (tmp_path / "mine.png").stat().st_size > 1000
