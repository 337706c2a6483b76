"""The critics' report: errors that can be computed by hand, what it refuses, and its command."""

import csv
import io
import json
import warnings

import numpy as np
import pytest
import torch
from toy_envs import register_toy_envs

from trebi_gym.agents import TREBIAgent
from trebi_gym.agents.calibration.fingerprints import episode_marks
from trebi_gym.agents.config import NetworkConfig
from trebi_gym.agents.models import make_windows
from trebi_gym.commands.cli import main
from trebi_gym.errors import DatasetError, TrebiError
from trebi_gym.evaluation import critic_plots as critics_plots
from trebi_gym.evaluation.critic_report import (
    CHOSEN_COST,
    CHOSEN_LEAST,
    CHOSEN_REWARD,
    Prediction,
    bins_of,
    report_critics,
    row_of,
)
from trebi_gym.evaluation.evaluate import evaluate_budgets

register_toy_envs()


def test_errors_and_coverage_are_those_of_the_numbers():
    found = Prediction(
        "c", np.array([1.0, 2.0, 3.0, 6.0]), np.array([1.0, 4.0, 2.0, 5.0]), np.arange(4.0), 0.9
    )
    row = row_of(found, "all")
    assert (row.low, row.high, row.count, row.nominal) == (1.0, 6.0, 4, 0.9)
    assert row.rmse == pytest.approx(np.sqrt((0 + 4 + 1 + 1) / 4))
    assert row.bias == pytest.approx(0.0)
    assert row.coverage == 0.75
    rows = list(bins_of(found, "steps left"))
    assert sum(row.count for row in rows) == 4
    assert [row.low for row in rows] == sorted(row.low for row in rows)
    (alone,) = bins_of(Prediction("c", np.ones(3), np.zeros(3), np.full(3, 7.0)), "steps left")
    assert (alone.low, alone.high, alone.count, alone.bias, alone.coverage) == (7.0, 7.0, 3, 1.0, None)


@pytest.fixture(scope="module", params=["budget", "mlp"])
def judged(request, tiny_agent, tiny_config, shipped_dataset):
    """An agent with each kind of outcome critic."""
    if request.param == "mlp":
        return tiny_agent
    config = tiny_config.replace(outcome_critic=NetworkConfig("budget", {"width": 32}))
    return TREBIAgent(config=config, device="cpu", seed=0).learn(shipped_dataset, progress_bar=False)


@pytest.fixture(scope="module")
def report(judged, shipped_dataset):
    return report_critics(
        judged,
        shipped_dataset,
        windows=200,
        env_id="ShortPendulum-v0",
        budgets=[2.0, 5.0],
        episodes=3,
        seed=4,
    )


def test_a_row_for_every_critic_bin_and_noise_level(report, judged, tiny_agent):
    whole = [row for row in report.held_out if row.by == "all"]
    assert [row.critic for row in whole[:2]] == ["reward_critic", "cost_critic"]
    if judged is not tiny_agent:
        assert [row.critic for row in whole[2:]] == [
            "outcome_critic, most reward within the cost",
            "outcome_critic, least cost",
        ]
        assert all(row.nominal is None for row in whole[2:])
    else:
        assert [row.nominal for row in whole[2:-1]] == list(judged.models["outcome_critic"].levels)
        assert whole[-1].critic == "outcome_critic, reward given the cost"
        shares = [row.coverage for row in whole[2:-1]]
        assert shares == sorted(shares)
    assert all(row.count == 200 for row in whole)
    assert whole[1].nominal == tiny_agent.config.cost_quantile
    noise = [row for row in report.held_out if row.by == "noise level"]
    assert len(noise) == 2 * tiny_agent.config.diffusion_steps
    for row in whole:
        for by in ("steps left", "prediction"):
            mine = [other for other in report.held_out if (other.critic, other.by) == (row.critic, by)]
            assert sum(other.count for other in mine) == 200
            squares = sum(other.count * other.rmse**2 for other in mine)
            assert squares == pytest.approx(200 * row.rmse**2, rel=1e-6)


def test_the_cost_critics_error_is_that_of_its_values_on_the_windows(tiny_agent, shipped_dataset):
    windows = make_windows(shipped_dataset, tiny_agent.config, tiny_agent.task)
    drawn = windows[torch.as_tensor(np.random.default_rng(1).integers(len(windows), size=50))]
    with torch.no_grad():
        value = tiny_agent.models["cost_critic"](
            drawn.trajectory, torch.zeros(50, dtype=torch.long), drawn.steps_left
        )
    error = (value - drawn.cost_to_go).double().numpy()
    found = report_critics(tiny_agent, shipped_dataset, windows=50, seed=1)
    (row,) = [row for row in found.held_out if (row.critic, row.by) == ("cost_critic", "all")]
    assert row.bias == pytest.approx(error.mean(), rel=1e-5)
    assert row.rmse == pytest.approx(np.sqrt((error**2).mean()), rel=1e-5)
    assert found.closed_loop == ()
    assert found == report_critics(tiny_agent, shipped_dataset, windows=50, seed=1)


def test_in_closed_loop_every_decision_is_held_against_the_rest_of_its_episode(report, judged, tiny_agent):
    points, earned = report.points
    assert points.name == (CHOSEN_COST if judged is tiny_agent else CHOSEN_LEAST)
    assert earned.name == CHOSEN_REWARD and earned.nominal is None
    np.testing.assert_array_equal(earned.steps_left, points.steps_left)
    assert len(points.predicted) == 2 * 3 * 6  # episodes of six steps
    length = tiny_agent.task.episode_length
    assert set(points.steps_left) == {float(length - step) for step in range(6)}
    assert points.nominal == (judged.config.planner.cost_level if judged is tiny_agent else None)
    assert report.closed_loop[0].count == len(points.predicted)


def test_what_came_is_what_the_same_episodes_cost_in_an_evaluation(tiny_agent, shipped_dataset):
    asked = {"budgets": [30.0], "episodes": 2, "seed": 4}
    found = report_critics(tiny_agent, shipped_dataset, windows=5, env_id="Ledger-v0", **asked)
    points, earned = found.points
    records = evaluate_budgets(tiny_agent.with_risk(None), "Ledger-v0", **asked).records
    whole = points.target[points.steps_left == 200]
    assert whole == pytest.approx([record.cost for record in records])
    assert whole.sum() > 0
    assert earned.target[earned.steps_left == 200] == pytest.approx(
        [record.episode_return for record in records]
    )
    for job in range(2):  # five decisions each, and every step costs something
        assert (np.diff(points.target[5 * job : 5 * (job + 1)]) < 0).all()


def test_it_is_written_as_json_csv_and_pictures(report, tmp_path):
    report.save(tmp_path)
    document = json.loads((tmp_path / "critics.json").read_text())
    assert len(document["held_out"]) == len(report.held_out)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "critics.csv").read_text())))
    assert len(rows) == len(report.held_out) + len(report.closed_loop)
    assert {row["where"] for row in rows} == {"held out", "closed loop"}
    for plot in (critics_plots.plot_critics, critics_plots.plot_closed_loop):
        plot(report, tmp_path / "picture.png")
        assert (tmp_path / "picture.png").stat().st_size > 5000
        with pytest.raises(TrebiError, match="txt"):
            plot(report, tmp_path / "picture.txt")


def test_an_agent_without_an_outcome_critic_is_reported_too(shipped_dataset, tiny_config):
    config = tiny_config.replace(outcome_critic=None, planner={"ranking": "rescored"}, cost_quantile=None)
    agent = TREBIAgent(config=config, device="cpu", seed=0).learn(shipped_dataset, 3, progress_bar=False)
    found = report_critics(agent, shipped_dataset, windows=20)
    assert {row.critic for row in found.held_out} == {"reward_critic", "cost_critic"}
    assert all(row.coverage is None for row in found.held_out)
    with pytest.raises(TrebiError, match="has no episodes in closed loop"):
        critics_plots.plot_closed_loop(found, "picture.png")


def test_episodes_that_were_learned_from_are_warned_of_and_counted(tiny_agent, shipped_dataset, tmp_path):
    agent = TREBIAgent.load(tiny_agent.save(tmp_path / "a"), device="cpu")
    marks = episode_marks(shipped_dataset)
    agent.learned_from["marks"] = marks[:3]
    with pytest.warns(UserWarning, match="the agent learned from 3 of these 100 episodes"):
        found = report_critics(agent, shipped_dataset, windows=5)
    assert json.loads(found.to_json())["metadata"]["learned_episodes"] == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        others = report_critics(agent, shipped_dataset.select(range(3, 9)), windows=5)
    assert others.metadata["learned_episodes"] == 0


def test_what_cannot_be_reported_is_refused(tiny_agent, shipped_dataset):
    with pytest.raises(TrebiError, match="windows must be a whole number of at least 1; got 0"):
        report_critics(tiny_agent, shipped_dataset, windows=0)
    with pytest.raises(TrebiError, match="give at least one budget"):
        report_critics(tiny_agent, shipped_dataset, env_id="ShortPendulum-v0")
    wide = shipped_dataset.select(range(2))
    other = type(wide)(
        **{
            name: getattr(wide, name)
            for name in ("actions", "rewards", "costs", "lengths", "terminated", "truncated")
        },
        observations=wide.observations[:, :2],
    )
    with pytest.raises(DatasetError, match="the data set has 2 and 1"):
        report_critics(tiny_agent, other)


def test_the_command_prints_and_writes(tiny_agent, tmp_path, capsys):
    saved = tiny_agent.save(tmp_path / "agent.zip")
    data = "SafePendulum-medium-replay-v0"
    main(["critics", str(saved), "--dataset", data, "--windows", "30", "--output", str(tmp_path / "out")])
    assert "held-out windows" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "critics.json",
        "critics.csv",
        "critics.png",
    }
    with pytest.raises(SystemExit):
        main(["critics", str(saved), "--dataset", data, "--env", "SafePendulum-v0"])
    assert "--env is for episodes, which need --budgets" in capsys.readouterr().err
