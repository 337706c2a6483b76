"""The command that builds data sets: what it writes and prints, and what is left when it is ended in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from trebi_gym.commands.cli import main
from trebi_gym.datasets import load

ROOT = Path(__file__).parents[2]
TASK = "SafePendulum-v0"
ARRAYS = ("observations", "actions", "rewards", "costs", "lengths", "terminated", "truncated")
SMALL = {"learning_starts": 100, "batch_size": 16, "policy_kwargs": {"net_arch": [8]}}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TREBI_DATA", str(tmp_path / "data"))


@pytest.fixture(scope="module")
def zips(tmp_path_factory):
    """A zip of SAC, and one of PPO with the statistics of its observations beside it."""
    folder = tmp_path_factory.mktemp("zips")
    (folder / "ppo").mkdir()
    SAC("MlpPolicy", TASK, device="cpu", seed=0, policy_kwargs={"net_arch": [8]}).save(folder / "sac.zip")
    envs = VecNormalize(DummyVecEnv([lambda: gym.make(TASK)]))
    model = PPO(
        "MlpPolicy", envs, device="cpu", seed=0, n_steps=64, batch_size=32, policy_kwargs={"net_arch": [8]}
    )
    model.learn(64).save(folder / "ppo" / "agent.zip")
    envs.save(str(folder / "ppo" / "vecnormalize.pkl"))
    return folder


def generate(*arguments):
    main(["generate", "--dataset", TASK, *map(str, arguments)])


def error_of(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        generate(*arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def small_file(tmp_path) -> Path:
    (tmp_path / "small.json").write_text(json.dumps(SMALL))
    return tmp_path / "small.json"


def test_a_policys_data_set_is_announced_as_unpickled_and_ends_with_the_steps_a_second(
    zips, tmp_path, capsys
):
    generate("--policy", zips / "sac.zip", "--total-step", 400, "--stochastic", "--noise", 0.1)
    printed = capsys.readouterr().out
    assert f"Stable-Baselines3 unpickles {zips / 'sac.zip'}, which can run code" in printed
    assert printed.index("unpickles") < printed.index("400 steps")
    assert printed.strip().endswith("steps a second")
    dataset = load("SafePendulum-policy-v0")
    assert files(tmp_path) == ["data/SafePendulum-policy-v0.hdf5"]
    assert dataset.metadata["policies"][0]["stochastic"] is True
    assert dataset.metadata["policies"][0]["noise"] == 0.1


def test_policies_are_mixed_and_named_by_the_datatype(zips, capsys):
    generate(
        *("--policy", zips / "sac.zip", zips / "ppo" / "agent.zip", "--weights", 1, 3),
        *("--datatype", "mixed", "--total-step", 800, "--n-envs", 2),
    )
    dataset = load("SafePendulum-mixed-v0")
    first, second = dataset.metadata["policies"]
    assert (first["steps"], second["steps"]) == (200, 600)
    assert (first["normalized_by"], second["normalized_by"]["file"]) == (None, "vecnormalize.pkl")
    printed = capsys.readouterr().out
    assert f"agent.zip sees observations normalised by {zips / 'ppo' / 'vecnormalize.pkl'}" in printed
    assert f"{zips / 'ppo' / 'vecnormalize.pkl'}, which can run code" in printed


def test_the_help_says_that_policies_are_unpickled(capsys):
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    assert "unpickles these files, which can run code" in " ".join(capsys.readouterr().out.split())


def test_hyperparameters_come_from_a_file_and_flags_go_over_it(tmp_path):
    generate(
        *("--datatype", "medium-replay", "--total-step", 200, "--hyperparameters", small_file(tmp_path)),
        *("--set", "batch_size=32", "use_sde=false", "--set", "ent_coef=auto_0.2"),
        *("--set", 'policy_kwargs={"net_arch": [4]}', "--learning-rate", 0.002),
    )
    # the data set of this name that ships is found first, so that the built one is loaded by its file
    given = load(tmp_path / "data" / "SafePendulum-medium-replay-v0.hdf5").metadata["hyperparameters"][
        "given"
    ]
    assert given == {
        "learning_starts": 100,
        "batch_size": 32,
        "use_sde": False,
        "ent_coef": "auto_0.2",
        "policy_kwargs": {"net_arch": [4]},
        "learning_rate": 0.002,
    }


@pytest.mark.parametrize("algo", ["td3", "ppo"])
def test_another_algorithm_is_trained_with_hyperparameters_of_its_own(algo, tmp_path):
    change = "learning_starts=100" if algo == "td3" else "n_steps=100"
    generate(
        *(
            "--algo",
            algo,
            "--datatype",
            "expert",
            "--total-step",
            200,
            "--training-steps",
            200,
            "--output",
            "a.hdf5",
        ),
        *(
            "--set",
            change,
            "--set",
            "batch_size=20",
            "--set",
            "policy_kwargs={'net_arch': [8]}".replace("'", '"'),
        ),
    )
    metadata = load("a.hdf5").metadata
    assert metadata["algorithm"] == f"stable_baselines3.{algo.upper()}"
    assert metadata["policy_step"] == metadata["training_steps"] == 200
    assert metadata["hyperparameters"]["learning_rate"] == (
        0.001 if algo == "td3" else 0.0003
    )  # not SAC's recipe
    assert metadata["training_steps_per_second"] > 0


def test_a_medium_expert_is_built_from_a_run_that_is_kept(tmp_path):
    common = ["--training-steps", 400, "--hyperparameters", small_file(tmp_path), "--keep-run", "run"]
    generate("--datatype", "medium-expert", "--total-step", 800, "--output", "a.hdf5", *common)
    began = time.monotonic()
    generate("--datatype", "medium-replay", "--total-step", 400, "--output", "b.hdf5", *common)
    assert time.monotonic() - began < 10
    assert load("a.hdf5").n_steps == 800
    assert load("b.hdf5").n_steps == 400
    assert [item["steps"] for item in load("a.hdf5").metadata["policies"]] == [400, 400]
    assert {name.split("/")[0] for name in files(tmp_path)} == {"a.hdf5", "b.hdf5", "run", "small.json"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--policy", "none.zip"), "there is no policy at none.zip"),
        (("--policy", "small.json"), "small.json is no zip"),
        (("--policy", "ZIP", "--algo", "ppo"), "was asked for as PPO, but was saved by SAC"),
        (
            ("--policy", "ZIP", "--weights", "1", "2"),
            "every policy needs one positive weight; got 1 policies",
        ),
        (("--policy", "ZIP", "--noise", "-1"), "noise must be at least 0"),
        (("--policy", "ZIP", "--learning-rate", "1"), "--learning-rate is for a training run"),
        (
            ("--policy", "ZIP", "--keep-run", "a", "--training-steps", "5"),
            "--training-steps, --keep-run are for a",
        ),
        (("--policy", "ZIP", "--datatype", "../mine"), "datatype must be a word"),
        (("--policy", "ZIP", "--normalize", "no.pkl"), "there are no VecNormalize statistics at no.pkl"),
        (
            ("--policy", "ZIP", "--normalize", "a", "b"),
            "--normalize takes one file for all policies or one for each",
        ),
        (("--policy", "ZIP", "--resume"), "there is nothing to resume: no finished part is in"),
        (("--policy", "ZIP", "--n-envs", "0"), "--n-envs must be at least 1; got 0"),
        (("--noise", "0.1"), "--noise is for trained policies: pass --policy"),
        (
            ("--datatype", "random", "--algo", "sac"),
            "--algo is for a training run, and random actions need none",
        ),
        (("--algo", "dqn"), "the algorithm must be one of sac, td3, ppo"),
        (("--set", "batch_size"), "--set takes NAME=VALUE, such as batch_size=512; got 'batch_size'"),
        (("--set", "gama=0.9"), "SAC has no hyperparameter gama; it has action_noise"),
        (("--set", "use_sde=no"), "use_sde of SAC must be true or false; got 'no'"),
        (
            ("--hyperparameters", "none.json"),
            "none.json is not what --hyperparameters takes, a file of JSON: No such file",
        ),
        (("--hyperparameters", "list.json"), "must hold a JSON object of constructor arguments; found [1]"),
        (("--datatype", "medium", "--training-steps", "0"), "--training-steps must be at least 1; got 0"),
        (("--training-steps", "100"), "20000 are asked for, and training_steps is 100"),
        (("--seed", "-1"), "--seed must be at least 0; got -1"),
        (("--learning-rate", "0"), "--learning-rate must be positive; got 0"),
    ],
)
def test_what_cannot_work_is_said_at_once_and_leaves_nothing(arguments, message, zips, tmp_path, capsys):
    small_file(tmp_path)
    (tmp_path / "list.json").write_text("[1]")
    before = files(tmp_path)
    said = error_of(
        capsys, *(str(zips / "sac.zip") if argument == "ZIP" else argument for argument in arguments)
    )
    assert message in said
    assert files(tmp_path) == before
    assert list(tmp_path.rglob("*.parts")) == []


def test_a_folder_of_the_users_that_is_called_like_the_parts_is_left_alone(zips, tmp_path, capsys):
    (tmp_path / "a.parts").mkdir()
    (tmp_path / "a.parts" / "thesis.txt").write_text("years of work")
    arguments = ["--datatype", "random", "--total-step", 200, "--output", "a.hdf5"]
    assert "is in the way" in error_of(capsys, *arguments)
    assert "is in the way" in error_of(capsys, *arguments, "--overwrite")
    assert files(tmp_path) == ["a.parts/thesis.txt"]


# a child process in which blocks and states are small, so that there is something to be ended in the middle of
CHILD = """
import sys
import trebi_gym.datasets.generation.collect as collect
import trebi_gym.datasets.generation.training_run as training_run
collect.BLOCK = 1000
training_run.record_training.__kwdefaults__["save_every"] = 200
from trebi_gym.commands.cli import main
main()
"""


def child(*arguments, **kwargs):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", CHILD, "generate", "--dataset", TASK, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        **kwargs,
    )


def run_child(*arguments) -> str:
    with child(*arguments) as process:
        _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def end_in_the_middle(process, folder: Path, number: signal.Signals, parts: int) -> str:
    """Send a signal once some parts are there, at no particular point of the next."""
    deadline = time.monotonic() + 120
    while (
        len([*folder.rglob("part-*.hdf5")]) < parts and process.poll() is None and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    assert process.poll() is None, "it ended before it could be stopped"
    time.sleep(float(np.random.default_rng().uniform(0, 0.1)))
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    return said


def test_a_rollout_that_was_killed_and_resumed_is_the_uninterrupted_one_to_the_bit(zips, tmp_path):
    arguments = ["--policy", zips / "sac.zip", "--stochastic", "--noise", 0.1, "--total-step", 40_000]
    with child(*arguments, "--output", "cut.hdf5") as process:
        end_in_the_middle(process, tmp_path / "cut.parts", signal.SIGKILL, parts=3)
    assert not (tmp_path / "cut.hdf5").exists()
    run_child(*arguments, "--output", "cut.hdf5", "--resume")
    run_child(*arguments, "--output", "whole.hdf5")
    cut, whole = load("cut.hdf5"), load("whole.hdf5")
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(cut, name), getattr(whole, name), err_msg=name)
    assert {**cut.metadata, "steps_per_second": 0} == {**whole.metadata, "steps_per_second": 0}
    assert files(tmp_path) == ["cut.hdf5", "whole.hdf5"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_an_interrupted_build_leaves_no_file_and_says_how_to_go_on(number, code, interruptible, tmp_path):
    arguments = ["--datatype", "random", "--total-step", 300_000, "--output", "a.hdf5"]
    with child(*arguments) as process:
        said = end_in_the_middle(process, tmp_path / "a.parts", number, parts=2)
    assert process.returncode == code
    assert "what was done is kept in a.parts; --resume goes on with it" in said
    assert not (tmp_path / "a.hdf5").exists()
    assert all("/part-" in name or name == "a.parts/request.json" for name in files(tmp_path))
    said = run_refused("--datatype", "random", "--total-step", 300_000, "--output", "a.hdf5")
    assert "pass --resume to go on with it, or --overwrite to start anew" in said
    said = run_refused("--datatype", "random", "--total-step", 5, "--output", "a.hdf5", "--resume")
    assert "steps was 300000 and is 5" in said
    run_child("--datatype", "random", "--total-step", 400, "--output", "a.hdf5", "--overwrite")
    assert files(tmp_path) == ["a.hdf5"]


def run_refused(*arguments) -> str:
    with child(*arguments) as process:
        _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    return said


def test_a_training_run_that_was_killed_goes_on_to_its_full_length(tmp_path):
    arguments = [
        "--datatype",
        "medium-replay",
        "--total-step",
        2000,
        "--hyperparameters",
        small_file(tmp_path),
    ]
    with child(*arguments, "--output", "a.hdf5") as process:
        end_in_the_middle(process, tmp_path / "a.parts", signal.SIGKILL, parts=2)
    assert not (tmp_path / "a.hdf5").exists()
    run_child(*arguments, "--output", "a.hdf5", "--resume")
    dataset = load("a.hdf5")
    assert dataset.n_steps == 2000
    assert dataset.metadata["training_steps"] == 2000
    assert dataset.metadata["resumed_at_steps"][0] in range(200, 2000, 200)
    assert files(tmp_path) == ["a.hdf5", "small.json"]


POLICIES = os.environ.get("TREBI_TEST_POLICIES")


@pytest.mark.skipif(POLICIES is None, reason="TREBI_TEST_POLICIES names no folder of real agents")
def test_a_strangers_agent_is_recorded_by_the_script_too(tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", str(ROOT / "scripts" / "data_generate.py")),
            *(
                "--dataset",
                "SafeHopper-v0",
                "--policy",
                f"{POLICIES}/sac-Hopper-v3.zip",
                "--datatype",
                "expert",
            ),
            *("--total_step", "2000", "--n_envs", "4", "--stochastic"),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    dataset = load("SafeHopper-expert-v0")
    assert dataset.n_steps >= 2000
    assert dataset.episode_returns.mean() > 900
    assert dataset.metadata["env_id"] == "SafeHopper-v0"
