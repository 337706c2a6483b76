"""Pictures and videos: written whole, of the right size, and refused where they cannot be."""

import math
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from moviepy import VideoFileClip
from PIL import Image
from toy_envs import Scripted, register_toy_envs

from trebi_gym.errors import RenderingError, TrebiError
from trebi_gym.evaluation.plots import plot_budgets
from trebi_gym.evaluation.records import EpisodeRecord, Evaluation
from trebi_gym.evaluation.video import PANEL, draw_budget, record_video, write_mp4
from trebi_gym.rollout import BudgetChange

register_toy_envs()


def make_evaluation(budgets=(10.0, 20.0), episodes=3, factor=0.9):
    return Evaluation(
        tuple(
            EpisodeRecord(budget, seed, 100.0, factor * min(budget, 40.0) + 0.1 * seed, 5, 0.1, True)
            for budget in budgets
            for seed in range(episodes)
        )
    )


@pytest.mark.parametrize("ending", [".png", ".pdf", ".svg"])
def test_a_plot_is_written_in_the_format_of_its_ending(tmp_path, ending):
    path = tmp_path / "new" / f"plot{ending}"
    plot_budgets(make_evaluation(), path, title="Ledger")
    content = path.read_bytes()
    assert content.startswith({".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}[ending])
    if ending == ".png":
        picture = np.asarray(Image.open(path).convert("L"))
        assert min(picture.shape) > 300
        assert len(np.unique(picture)) > 10
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def svg_texts(path):
    """What matplotlib wrote, as the comments that it puts beside every text."""
    parser = ElementTree.XMLParser(target=ElementTree.TreeBuilder(insert_comments=True))
    tree = ElementTree.parse(path, parser)
    return [item.text.strip() for item in tree.iter() if item.tag is ElementTree.Comment]


def test_a_plot_names_every_evaluation_also_where_there_are_more_than_colours(tmp_path):
    names = [f"agent {index}" for index in range(7)]
    plot_budgets({name: make_evaluation() for name in names}, tmp_path / "plot.svg")
    texts = svg_texts(tmp_path / "plot.svg")
    assert set(names) <= set(texts)
    assert "cost = budget" in texts


def test_a_plot_shows_costs_far_above_the_largest_budget(tmp_path):
    plot_budgets(make_evaluation(factor=5.0), tmp_path / "plot.svg")
    assert "100" in svg_texts(tmp_path / "plot.svg")


@pytest.mark.parametrize(
    "evaluation",
    [
        make_evaluation(episodes=1),
        make_evaluation(budgets=(0.0,)),
        make_evaluation(budgets=(10.0, math.inf)),
        Evaluation(tuple(EpisodeRecord(1.0, seed, 0.1, 0.1, 5, 0.9, True) for seed in range(7))),
    ],
    ids=["one episode", "budget zero", "no limit", "equal episodes"],
)
def test_a_plot_of_an_unusual_evaluation_is_written(tmp_path, evaluation):
    plot_budgets(evaluation, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5_000


def test_a_plot_without_any_finite_budget_is_refused(tmp_path):
    with pytest.raises(TrebiError, match="no episode with a finite budget"):
        plot_budgets(make_evaluation(budgets=(math.inf,)), tmp_path / "plot.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["plot.txt", "plot", "plot.hdf5"])
def test_a_plot_with_another_ending_is_refused_and_leaves_nothing(tmp_path, name):
    with pytest.raises(TrebiError, match=rf"saved as .png, .pdf or .svg; got '{name}'"):
        plot_budgets(make_evaluation(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_video_has_a_frame_for_every_step_and_room_for_the_budget(tmp_path, tiny_agent):
    found = record_video(tiny_agent, "ShortPendulum-v0", tmp_path / "a.mp4", budget=3.0, seed=1, fps=5)
    assert found.frames == 6
    assert found.budget == 3.0
    assert found.path == tmp_path / "a.mp4"
    assert [item.name for item in tmp_path.iterdir()] == ["a.mp4"]
    with VideoFileClip(str(tmp_path / "a.mp4")) as clip:
        assert clip.size == [500, 500 + PANEL]
        assert clip.fps == 5
        assert round(clip.duration * clip.fps) == 6


def test_a_recording_reports_what_the_episode_earned_and_cost(tmp_path):
    found = record_video(Scripted(), "Ledger-v0", tmp_path / "a.mp4", budget=11.0)
    assert (found.frames, found.episode_return, found.cost) == (5, pytest.approx(101.0), pytest.approx(11.0))
    assert found.kept
    change = [BudgetChange(3, remaining=3.0)]
    assert not record_video(Scripted(), "Ledger-v0", tmp_path / "a.mp4", budget=99.0, schedule=change).kept
    with VideoFileClip(str(tmp_path / "a.mp4")) as clip:
        assert clip.fps == 10
        # three times the frame of 83 x 61, and sides must be even for the codec
        assert clip.size == [250, 184 + PANEL]


def test_a_video_with_another_ending_is_refused_before_anything_is_run(tmp_path):
    policy = Scripted()
    with pytest.raises(TrebiError, match=r"saved as .mp4; got 'a.gif'"):
        record_video(policy, "Ledger-v0", tmp_path / "a.gif", budget=1.0)
    assert policy.calls == []
    assert list(tmp_path.iterdir()) == []


def test_an_environment_that_gives_no_picture_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(RenderingError, match="gave no picture"):
        record_video(Scripted(), "LedgerBlind-v0", tmp_path / "a.mp4", budget=1.0)
    assert list(tmp_path.iterdir()) == []


def test_no_frame_is_no_video(tmp_path):
    with pytest.raises(TrebiError, match="no frame"):
        write_mp4([], tmp_path / "a.mp4", 10)
    assert list(tmp_path.iterdir()) == []


def test_a_video_that_fails_leaves_the_older_file(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"older")

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_mp4([np.zeros((20, 20, 3), np.uint8)] * 3, path, 10)
    assert path.read_bytes() == b"older"
    assert [item.name for item in tmp_path.iterdir()] == ["a.mp4"]


def bar_length(frame):
    """Coloured pixels in the bar under a white frame of 200 pixels' width."""
    row = draw_budget(np.full((100, 200, 3), 255, np.uint8), *frame, cost=1.0, step=3)[100 + 36]
    return int((np.abs(row[12:188].astype(int) - 228).max(axis=1) > 20).sum())


def test_the_bar_is_as_long_as_the_share_of_the_budget_that_is_left():
    assert bar_length((50.0, 100.0)) == pytest.approx(88, abs=2)
    assert bar_length((100.0, 100.0)) == pytest.approx(176, abs=2)
    assert bar_length((math.inf, 100.0)) == pytest.approx(176, abs=2)
    assert bar_length((0.0, 100.0)) == 0
    assert bar_length((-5.0, 100.0)) == 0
    assert bar_length((0.0, 0.0)) == 0


def test_the_picture_itself_is_kept_above_the_bar():
    frame = np.random.default_rng(0).integers(0, 255, (51, 200, 3)).astype(np.uint8)
    drawn = draw_budget(frame, 1.0, 2.0, cost=0.0, step=1)
    np.testing.assert_array_equal(drawn[:51], frame)
    assert drawn.shape == (52 + PANEL, 200, 3)


def test_importing_the_plots_leaves_the_users_choice_of_a_matplotlib_backend_alone():
    code = (
        "import matplotlib; before = matplotlib.rcParams._get('backend'); import trebi_gym.evaluation.plots; "
        "assert matplotlib.rcParams._get('backend') is before"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
