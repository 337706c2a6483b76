"""The command line and the scripts: what they write, what they refuse, and that nothing is left half-written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from trebi_gym.agents import TREBIAgent
from trebi_gym.commands.cli import main
from trebi_gym.commands.common import run
from trebi_gym.datasets import load
from trebi_gym.errors import ConfigError

ROOT = Path(__file__).parents[2]
DATASET = "SafePendulum-medium-replay-v0"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TREBI_DATA", str(tmp_path / "data"))


@pytest.fixture(scope="module")
def agent_file(tmp_path_factory, tiny_agent):
    return tiny_agent.save(tmp_path_factory.mktemp("agent") / "agent.zip")


def error_of(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    assert stopped.value.code == 2
    return capsys.readouterr().err


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_generate_writes_a_data_set_that_its_name_loads(tmp_path, capsys):
    main(
        [
            "generate",
            "--dataset",
            "SafePendulum-v0",
            "--datatype",
            "random",
            "--total_step",
            "400",
            "--seed",
            "3",
        ]
    )
    assert files(tmp_path) == ["data/SafePendulum-random-v0.hdf5"]
    dataset = load("SafePendulum-random-v0")
    assert dataset.n_steps == 400
    assert dataset.metadata["seed"] == 3
    assert "400 steps" in capsys.readouterr().out


def test_generate_does_not_overwrite_unless_told_to(tmp_path, capsys):
    target = tmp_path / "x.hdf5"
    target.write_text("mine")
    arguments = ["generate", "--dataset", "SafePendulum-v0", "--datatype", "random", "--total-step", "200"]
    assert "exists already; pass --overwrite" in error_of(capsys, *arguments, "--output", target)
    assert target.read_text() == "mine"
    main([*arguments, "--output", str(target), "--overwrite"])
    assert load(target).n_steps == 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dataset", "Nope-v0"), "there is no environment 'Nope-v0'"),
        (("--dataset", "no_such_module:Nope-v0"), "there is no environment 'no_such_module:Nope-v0'"),
        (("--dataset", "SafePendulum-v0", "--datatype", "weird"), "datatype must be one of random"),
        (("--dataset", "SafePendulum-v0", "--total-step", "0"), "must be at least 1; got 0"),
        (("--dataset", "Pendulum-v1", "--datatype", "random", "--total-step", "9"), 'no "cost"'),
    ],
)
def test_generate_says_what_is_wrong_and_leaves_no_file(arguments, message, tmp_path, capsys):
    assert message in error_of(capsys, "generate", *arguments)
    assert files(tmp_path) == []


def test_learn_evaluate_record_and_info_work_one_after_the_other(tmp_path, capsys):
    main(
        ["learn", "--dataset", DATASET, "--output", "mine", "--total-steps", "30", "--checkpoint-every", "7"]
    )
    assert files(tmp_path) == ["mine.zip"]  # the copy to resume from is gone
    main(
        [
            "evaluate",
            "mine.zip",
            "--budgets",
            "5",
            "9",
            "--episodes",
            "1",
            "--change",
            "20:3",
            "--output",
            "out",
        ]
    )
    assert files(tmp_path / "out") == ["evaluation.csv", "evaluation.json", "evaluation.png"]
    document = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert [item["budget"] for item in document["summaries"]] == [5.0, 9.0]
    assert document["metadata"]["schedule"] == [{"step": 20, "remaining": 3.0, "factor": None}]
    capsys.readouterr()
    main(["info", "mine.zip"])
    assert DATASET in capsys.readouterr().out
    main(["info", DATASET])
    assert "maximum budget 60" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("learn", "--dataset", "nothing", "--output", "a.zip"), "no data set 'nothing'"),
        (
            ("learn", "--dataset", DATASET, "--output", "a.zip", "--config", "fats"),
            "there is no preset 'fats'",
        ),
        (
            ("learn", "--dataset", DATASET, "--output", "a.zip", "--total-steps", "2"),
            "total_steps must be a whole number of at least 4",
        ),
        (("learn", "--dataset", DATASET, "--output", "a.zip", "--resume"), "nothing to resume"),
        (
            ("learn", "--dataset", DATASET, "--output", "a.zip", "--device", "warp"),
            "there is no device 'warp'",
        ),
        (("learn", "--dataset", DATASET, "--output", "a.zip", "--seed", "-1"), "seed must be a whole number"),
        (
            ("learn", "--dataset", DATASET, "--output", "."),
            ". is a folder; pass the file to write, such as agent.zip",
        ),
        (("learn", "--dataset", DATASET, "--output", ".."), ".. is a folder; pass the file to write"),
        (
            ("learn", "--dataset", DATASET, "--output", "/"),
            "/ is a folder; pass the file to write, such as /agent.zip",
        ),
        (("evaluate", "none.zip"), "there is no saved agent at none.zip"),
        (("record", "none.zip", "--budget", "3"), "there is no saved agent at none.zip"),
        (("info", "none.zip"), "there is no saved agent at none.zip"),
        (("info", "none"), "no data set 'none'; looked for"),
    ],
)
def test_commands_say_what_is_wrong_and_leave_no_file(arguments, message, tmp_path, capsys):
    assert message in error_of(capsys, *arguments)
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("evaluate", "--budgets", "-3"), "budget must be at least 0"),
        (("evaluate", "--budgets", "nan"), "NaN"),
        (("evaluate", "--episodes", "0"), "episodes must be a whole number of at least 1"),
        (("evaluate", "--change", "soon"), "a change is written STEP:REMAINING"),
        (("evaluate", "--change", "5:-1"), "must be at least 0"),
        (
            ("evaluate", "--change", "100:5", "200:3"),
            "a change at step 200 is never reached: SafePendulum-v0 has steps 0 to 199",
        ),
        (("evaluate", "--schedule", "drop:step=200"), "does not fit into an episode of 200 steps"),
        (("evaluate", "--env", "SafeReacher-v0"), "the agent's spaces have shapes (3,) and (1,)"),
        (("calibrate", "--env", "SafeReacher-v0", "--episodes", "60"), "SafeReacher-v0 has (11,) and (2,)"),
        (("record", "--budget", "3", "--output", "film.avi"), "a video is saved as .mp4"),
        (("record", "--budget", "-3"), "must be at least 0"),
    ],
)
def test_bad_budgets_and_endings_are_refused(arguments, message, tmp_path, capsys, agent_file):
    assert message in error_of(capsys, arguments[0], agent_file, *arguments[1:])
    assert files(tmp_path) == []


def test_an_interrupted_learn_leaves_no_agent_and_resuming_gives_the_same_file(tmp_path):
    arguments = ["--dataset", DATASET, "--total-steps", "900", "--checkpoint-every", "20", "--seed", "4"]
    command = [sys.executable, "-c", "from trebi_gym.commands.cli import main; main()", "learn", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, "--output", "cut.zip"], env=environment, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "cut.partial.zip").is_file() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "cut.zip").exists()
    quiet = {"env": environment, "stderr": subprocess.DEVNULL, "check": True}
    subprocess.run([*command, "--output", "cut.zip", "--resume"], **quiet)
    subprocess.run([*command, "--output", "whole.zip"], **quiet)
    assert (tmp_path / "cut.zip").read_bytes() == (tmp_path / "whole.zip").read_bytes()
    assert not (tmp_path / "cut.partial.zip").exists()


def script(name, *arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / name), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


STAGES = ("train.py", "train_values.py", "train_cost_values.py", "train_outcomes.py")


def test_the_stages_fill_one_folder_that_planning_finds(tmp_path):
    which = ["--dataset", DATASET, "--config", "config.fast"]
    early = script("plan_cost_guided.py", *which)
    assert early.returncode == 2
    for name in STAGES:
        assert f"scripts/{name}" in early.stderr
    for name in STAGES:
        done = script(name, *which, "--total_steps", "10")
        assert done.returncode == 0, done.stderr
    folder = tmp_path / "logs" / DATASET / "fast"
    assert set(TREBIAgent.load(folder).models) == {
        "diffusion",
        "reward_critic",
        "cost_critic",
        "outcome_critic",
    }
    planned = script("plan_cost_guided.py", *which, "--ratio_of_maxthreshold", "0.2", "--episodes", "1")
    assert planned.returncode == 0, planned.stderr
    assert json.loads((folder / "plan-0.2.json").read_text())["episodes"][0]["budget"] == 12.0
    drawn = script(
        "plan_cost_guided.py", *which, "--random_budget", "1", "--control_interval", "2", "--episodes", "2"
    )
    assert drawn.returncode == 0, drawn.stderr
    episodes = json.loads((folder / "plan-random-interval-2.json").read_text())["episodes"]
    assert len({episode["budget"] for episode in episodes}) == 2
    assert all(6.0 <= episode["budget"] <= 60.0 for episode in episodes)


def test_the_demo_writes_everything_that_it_promises(tmp_path, capsys):
    main(["demo", "--output", "demo", "--episodes", "1", "--total-steps", "12"])
    made = {name for name in files(tmp_path / "demo") if not name.startswith("log/")}
    kinds = {f"{stem}{ending}" for stem in ("evaluation", "drop") for ending in (".json", ".csv")}
    assert made == {"agent.zip", "budgets.png", "drop.mp4"} | kinds
    assert "To try next" in capsys.readouterr().out


CAR = """
import gymnasium as gym
from trebi_gym import CostWrapper

def speed_cost(observation, action, next_observation, info):
    return abs(next_observation[..., 1])

gym.register(
    "SafeCar-v0",
    entry_point=lambda **kwargs: CostWrapper(gym.make("MountainCarContinuous-v0", **kwargs), speed_cost),
    max_episode_steps=40,
)
"""


def test_a_task_in_a_module_of_the_present_folder_goes_through_all_commands(tmp_path):
    (tmp_path / "my_tasks.py").write_text(CAR)

    def trebi(*arguments):
        # without the present folder on the path, as for the installed command
        command = [sys.executable, "-P", "-c", "from trebi_gym.commands.cli import main; main()", *arguments]
        return subprocess.run(
            command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
        )

    task = "my_tasks:SafeCar-v0"
    made = trebi(
        "generate", "--dataset", task, "--datatype", "random", "--total-step", "90", "--output", "car.hdf5"
    )
    assert made.returncode == 0, made.stderr
    learned = trebi("learn", "--dataset", "car.hdf5", "--output", "car.zip", "--total-steps", "6")
    assert learned.returncode == 0, learned.stderr
    judged = trebi("evaluate", "car.zip", "--env", task, "--ratios", "0.5", "--episodes", "1")
    assert judged.returncode == 0, judged.stderr
    budget = float(judged.stdout.splitlines()[2].split()[0])
    assert budget == pytest.approx(0.5 * np.quantile(load("car.hdf5").episode_costs, 0.9), rel=1e-3)


def test_a_command_that_is_told_to_end_removes_what_it_had_not_finished(tmp_path):
    code = (
        "import os, signal, time\n"
        "from trebi_gym.files import replacing\n"
        "from trebi_gym.commands.common import run\n"
        "def slow():\n"
        "    with replacing('late.json') as path:\n"
        "        path.write_text('half')\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        time.sleep(60)\n"
        "run(slow)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 128 + signal.SIGTERM
    assert files(tmp_path) == []


def test_an_interrupted_run_is_not_begun_anew_by_accident(tmp_path, capsys):
    (tmp_path / "agent.partial.zip").write_text("the only copy of hours of work")
    learn = ["learn", "--dataset", DATASET, "--output", "agent.zip", "--total-steps", "6"]
    assert "pass --resume to go on with it, or delete it" in error_of(capsys, *learn)
    assert files(tmp_path) == ["agent.partial.zip"]
    main([*learn, "--overwrite"])
    assert files(tmp_path) == ["agent.zip"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "--dataset", "SafePendulum-v0", "--output", "taken/data.hdf5"],
        ["learn", "--dataset", DATASET, "--output", "taken/agent.zip"],
        ["demo", "--output", "taken"],
    ],
)
def test_a_place_that_cannot_be_written_is_found_out_before_the_work(arguments, tmp_path, capsys):
    (tmp_path / "taken").write_text("a file, not a folder")
    assert "cannot be written: " in error_of(capsys, *arguments)
    assert files(tmp_path) == ["taken"]


def test_an_agents_file_does_not_choose_a_module_to_import(tiny_agent):
    from trebi_gym.commands.common import resolve_env

    class Strange:
        learned_from = {"env_id": "os_like_payload:Task-v0"}  # noqa: RUF012

    with pytest.raises(ConfigError, match="pass --env os_like_payload:Task-v0"):
        resolve_env(Strange())
    assert resolve_env(tiny_agent) == "SafePendulum-v0"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_a_signal_that_comes_while_an_object_ends_is_not_lost(number, code, interruptible):
    hook = sys.unraisablehook
    ended = []

    class Fragile:
        def __del__(self):
            ended.append(self)
            # its handler runs here, where Python ignores what it raises
            signal.raise_signal(number)

    def command():
        Fragile()
        assert len(ended) == 1
        time.sleep(30)

    begun = time.monotonic()
    with pytest.raises(SystemExit) as raised:
        run(command)
    assert raised.value.code == code
    assert time.monotonic() - begun < 10
    assert sys.unraisablehook is hook


def test_other_errors_of_ending_objects_are_said_as_ever(monkeypatch):
    class Fragile:
        def __del__(self):
            raise ValueError("at the end")

    said = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    run(Fragile)
    assert [str(lost.exc_value) for lost in said] == ["at the end"]


def test_calibrate_keeps_what_it_found_in_the_file_and_evaluate_takes_its_risk(tiny_agent, tmp_path, capsys):
    agent = str(tiny_agent.save(tmp_path / "agent.zip"))
    main(
        [
            "calibrate",
            agent,
            "--risk",
            "0.2",
            "0.4",
            "--budgets",
            "0",
            "40",
            "--episodes",
            "14",
            "--output",
            "c",
        ]
    )
    said = capsys.readouterr().out
    assert (
        "14 episodes of SafePendulum-v0 for each planned budget, seeds 1000000 on; the agent's risk: 0.2"
        in said
    )
    assert "keeps, risk 0.4" in said
    assert files(tmp_path) == ["agent.zip", "c.zip"]
    main(["info", "c.zip"])
    assert "guarantee    with confidence 0.95" in capsys.readouterr().out
    main(["info", agent])
    assert "calibration    none" in capsys.readouterr().out
    evaluate = ["evaluate", "c.zip", "--budgets", "100", "--episodes", "1"]
    main([*evaluate, "--risk", "0.4"])
    main([*evaluate, "--uncalibrated"])
    capsys.readouterr()
    assert "give --risk or --uncalibrated" in error_of(capsys, *evaluate, "--risk", "0.4", "--uncalibrated")
    assert "at least 59 for each" in error_of(capsys, *evaluate, "--risk", "0.05")
    assert "not calibrated" in error_of(capsys, "evaluate", agent, "--risk", "0.2")
    assert "at least 59 episodes" in error_of(capsys, "calibrate", agent, "--episodes", "58")
    assert "--env or --dataset" in error_of(capsys, "calibrate", agent, "--env", "x", "--dataset", "y")


def test_a_calibration_that_was_killed_goes_on_from_what_it_kept(tiny_agent, tmp_path, capsys, monkeypatch):
    from trebi_gym.agents.calibration import closed_loop as calibrating

    agent = str(tiny_agent.save(tmp_path / "agent.zip"))
    command = ["calibrate", agent, "--risk", "0.2", "--budgets", "0", "40", "--episodes", "14"]
    cell, run = calibrating._cell, []

    def breaks(*arguments):
        if run:
            raise KeyboardInterrupt
        run.append(1)
        return cell(*arguments)

    monkeypatch.setattr(calibrating, "_cell", breaks)
    with pytest.raises(SystemExit):
        main(command)
    assert files(tmp_path) == ["agent.calibration.json", "agent.zip"]
    assert TREBIAgent.load(agent).calibration is None
    run.clear()
    main(command)
    assert files(tmp_path) == ["agent.zip"]
    assert TREBIAgent.load(agent).risk == 0.2


def test_calibrate_on_held_out_episodes_says_that_it_promises_nothing(tiny_config, tmp_path, capsys):
    learned, held = load(DATASET).split(0.2)
    agent = TREBIAgent(config=tiny_config, seed=0).learn(learned, progress_bar=False).save(tmp_path / "a.zip")
    from trebi_gym.datasets import save

    save(held, tmp_path / "held.hdf5")
    main(["calibrate", str(agent), "--dataset", "held.hdf5", "--risk", "0.2"])
    said = capsys.readouterr().out
    assert "held back" in said
    assert "no guarantee" in said
    for option in (
        ["--budgets", "5"],
        ["--episodes", "50"],
        ["--confidence", "0.9"],
        ["--seed", "3"],
        ["--n-envs", "2"],
    ):
        said = error_of(capsys, "calibrate", str(agent), "--dataset", "held.hdf5", "--risk", "0.2", *option)
        assert f"no use for {option[0][2:].replace('-', '_')}=" in said
