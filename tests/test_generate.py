"""Building data sets by the command: runs, trained policies, interruption and resumption."""

import copy
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
import torch
from contracts import ARRAYS
from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from toy_envs import register_toy_envs

from trebi_gym.cli import main
from trebi_gym.datasets import load
from trebi_gym.datasets.behaviour import find_statistics, load_policy, saved_algorithm
from trebi_gym.datasets.building import generate, generate_from_policies
from trebi_gym.datasets.parts import Parts
from trebi_gym.datasets.training_run import check_hyperparameters, record_training
from trebi_gym.errors import DatasetError

register_toy_envs()
SMALL = {"learning_starts": 20, "batch_size": 16, "buffer_size": 400, "policy_kwargs": {"net_arch": [16]}}
POLICIES = os.environ.get("TREBI_TEST_POLICIES")
needs_policies = pytest.mark.skipif(
    not POLICIES, reason="set TREBI_TEST_POLICIES to the folder of trained policies"
)


@pytest.fixture(scope="module")
def zips(tmp_path_factory):
    """Barely trained agents for SafePendulum, one of each algorithm."""
    folder = tmp_path_factory.mktemp("zips")
    with gym.make("SafePendulum-v0") as env:
        for kind, options in (
            (SAC, SMALL),
            (TD3, SMALL),
            (PPO, {"n_steps": 64, "policy_kwargs": {"net_arch": [16]}}),
        ):
            model = kind("MlpPolicy", env, seed=0, device="cpu", **copy.deepcopy(options))
            model.learn(64)
            model.save(folder / f"{kind.__name__.lower()}.zip")
    return folder


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("TREBI_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        main(["generate", "--dataset", "SafePendulum-v0", "--output", "x.hdf5", *arguments])
    assert caught.value.code == 2
    assert not Path("x.hdf5").exists()
    assert not Path("x.parts").exists()
    return capsys.readouterr().err


def assert_equal(first, second):
    for array in ARRAYS:
        np.testing.assert_array_equal(getattr(first, array), getattr(second, array))


@pytest.mark.parametrize("algo", ["sac", "td3", "ppo"])
def test_a_run_of_every_algorithm_is_recorded_step_by_step(algo):
    options = {"n_steps": 64} if algo == "ppo" else SMALL
    found = generate(
        "SafePendulum-v0", "medium-replay", steps=600, seed=0, algo=algo, hyperparameters=options
    )
    assert found.n_steps == 600
    assert found.metadata["algorithm"] == f"stable_baselines3.{algo.upper()}"
    assert np.abs(found.actions).max() > 1.0, "actions are the executed ones, not those rescaled to [-1, 1]"
    assert found.truncated.all()


def test_medium_expert_holds_half_of_each_medium_first():
    common = {"seed": 0, "training_steps": 400, "hyperparameters": SMALL}
    both = generate("Ledger-v0", "medium-expert", steps=40, **common)
    medium = generate("Ledger-v0", "medium", steps=20, **common)
    assert both.n_steps == 40
    assert both.metadata["name"] == "Ledger-medium-expert-v0"
    np.testing.assert_array_equal(both.actions[:20], medium.actions)
    assert not np.array_equal(both.actions[20:], medium.actions)


def test_a_hyperparameter_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(
        DatasetError, match="SAC has no hyperparameter clip_range; it has action_noise, batch_size"
    ):
        check_hyperparameters("sac", {"clip_range": 0.2})
    with pytest.raises(DatasetError, match="PPO cannot be made with"):
        record_training("Ledger-v0", steps=10, seed=0, algo="ppo", hyperparameters={"n_steps": "many"})


def test_hyperparameters_come_from_a_file_and_flags_go_over_it(tmp_path, capsys):
    (tmp_path / "sac.json").write_text(json.dumps({**SMALL, "gamma": 0.9}))
    main(
        [
            "generate",
            "--dataset",
            "Ledger-v0",
            "--datatype",
            "medium-replay",
            "--total-step",
            "60",
            "--output",
            "x.hdf5",
            "--hyperparameters",
            "sac.json",
            "--set",
            "gamma=0.8",
            "tau=0.01",
            "--learning-rate",
            "0.002",
        ]
    )
    found = load("x.hdf5").metadata["hyperparameters"]
    assert (found["gamma"], found["tau"], found["learning_rate"], found["batch_size"]) == (
        0.8,
        0.01,
        0.002,
        16,
    )
    assert "steps a second" in capsys.readouterr().out


def test_trained_policies_give_their_shares_of_the_steps(zips, capsys):
    main(
        [
            "generate",
            "--dataset",
            "SafePendulum-v0",
            "--datatype",
            "mixed",
            "--total-step",
            "1600",
            "--output",
            "x.hdf5",
            "--policy",
            str(zips / "sac.zip"),
            str(zips / "td3.zip"),
            "--weights",
            "3",
            "1",
            "--n-envs",
            "2",
        ]
    )
    printed = capsys.readouterr().out
    assert printed.count("unpickles the policy's file") == 2
    found = load("x.hdf5")
    assert found.metadata["name"] == "SafePendulum-mixed-v0"
    assert found.lengths.tolist() == [200] * 8
    assert [policy["weight"] for policy in found.metadata["policies"]] == [0.75, 0.25]
    assert [len(policy["sha256"]) for policy in found.metadata["policies"]] == [64, 64]
    # deterministic policies: what each does at one observation tells which it is
    for name, episodes in (("sac", range(6)), ("td3", range(6, 8))):
        model = {"sac": SAC, "td3": TD3}[name].load(zips / f"{name}.zip", device="cpu")
        for episode in episodes:
            expected = model.predict(found[episode].observations[:-1], deterministic=True)[0]
            np.testing.assert_allclose(found[episode].actions, expected, atol=1e-5)


def test_stochastic_policies_and_noise_draw_other_actions_which_stay_in_the_action_space(zips):
    def first(**options):
        loaded = load_policy(zips / "sac.zip", "SafePendulum-v0", **options)
        return generate_from_policies("SafePendulum-v0", [loaded], steps=400, seed=0, n_envs=2)

    plain, drawn, noisy = first(), first(stochastic=True), first(noise=0.5)
    assert not np.array_equal(plain.actions, drawn.actions)
    assert not np.array_equal(plain.actions, noisy.actions)
    assert np.abs(noisy.actions).max() <= 2.0
    model = SAC.load(zips / "sac.zip", device="cpu")
    meant = model.predict(noisy[0].observations[:-1], deterministic=True)[0]
    difference = (noisy[0].actions - meant)[np.abs(noisy[0].actions) < 2]
    assert 0.7 < difference.std() < 1.1, "half of the half range, which is 2"
    assert_equal(first(stochastic=True), drawn)


def test_a_recording_leaves_torchs_global_state_as_it_was(zips):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    loaded = load_policy(zips / "sac.zip", "SafePendulum-v0", stochastic=True)
    torch.manual_seed(5)
    generate_from_policies("SafePendulum-v0", [loaded], steps=200, seed=0, n_envs=1)
    assert torch.equal(torch.rand(1), expected)


def test_the_algorithm_is_read_off_the_file_where_it_says_so(zips, capsys):
    assert saved_algorithm(zips / "sac.zip") == "sac"
    assert saved_algorithm(zips / "td3.zip") == "td3"
    with pytest.raises(DatasetError, match=r"ppo\.zip does not say which algorithm saved it; pass --algo"):
        saved_algorithm(zips / "ppo.zip")
    assert (
        load_policy(zips / "ppo.zip", "SafePendulum-v0", algo="ppo").description["algorithm"].endswith("PPO")
    )


def test_the_policy_sees_normalised_observations_and_the_data_hold_raw_ones(tmp_path):
    envs = VecNormalize(DummyVecEnv([lambda: gym.make("SafePendulum-v0")]), gamma=0.9)
    model = SAC("MlpPolicy", envs, seed=0, device="cpu", **copy.deepcopy(SMALL))
    model.learn(300)
    model.save(tmp_path / "agent.zip")
    assert find_statistics(tmp_path / "agent.zip") is None
    envs.save(str(tmp_path / "agent_vecnormalize.pkl"))
    assert find_statistics(tmp_path / "agent.zip") == tmp_path / "agent_vecnormalize.pkl"
    loaded = load_policy(tmp_path / "agent.zip", "SafePendulum-v0")
    assert loaded.description["normalized_observations"]
    found = generate_from_policies("SafePendulum-v0", [loaded], steps=200, seed=0, n_envs=1)
    observations = found[0].observations[:-1]
    np.testing.assert_allclose(np.square(observations[:, :2]).sum(axis=1), 1, atol=1e-5)  # raw: cos and sin
    envs.training = False
    expected = model.predict(envs.normalize_obs(observations), deterministic=True)[0]
    np.testing.assert_allclose(found[0].actions, expected, atol=1e-5)
    assert not np.allclose(found[0].actions, model.predict(observations, deterministic=True)[0], atol=1e-3)


def test_statistics_that_are_none_are_refused(zips, tmp_path):
    (tmp_path / "words.pkl").write_text("no statistics")
    with pytest.raises(DatasetError, match=r"words\.pkl cannot be used for SafePendulum-v0"):
        load_policy(zips / "sac.zip", "SafePendulum-v0", normalize=tmp_path / "words.pkl")
    with pytest.raises(DatasetError, match="there are no VecNormalize statistics at"):
        load_policy(zips / "sac.zip", "SafePendulum-v0", normalize=tmp_path / "none.pkl")


def test_files_that_are_no_fitting_policy_are_refused(zips, tmp_path, capsys, tiny_agent):
    (tmp_path / "words.zip").write_text("no zip")
    tiny_agent.save(tmp_path / "ours.zip")
    for path, part in (
        ("none.zip", "there is no policy at"),
        ("words.zip", "is no zip"),
        ("ours.zip", "did not save it: it lacks data or policy.pth (an agent of trebi_gym?)"),
    ):
        assert part in refused(capsys, "--policy", str(tmp_path / path), "--algo", "sac")
    assert "cannot be loaded as TD3" in refused(capsys, "--policy", str(zips / "sac.zip"), "--algo", "td3")
    with pytest.raises(DatasetError, match=r"for SafeReacher-v0 \(observations \(11,\), actions \(2,\)\)"):
        load_policy(zips / "sac.zip", "SafeReacher-v0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--policy", "a.zip", "--learning-rate", "0.1"), "--learning-rate are for a training run"),
        (("--weights", "1"), "--weights and --noise are for trained policies"),
        (("--datatype", "best"), "datatype must be one of random"),
        (("--algo", "dqn"), "a run is trained by one of sac, td3, ppo; got 'dqn'"),
        (("--set", "gamma"), "--set takes NAME=VALUE"),
        (("--set", "speed=3"), "SAC has no hyperparameter speed"),
        (("--hyperparameters", "none.json"), "is not a JSON file"),
        (("--training-steps", "0"), "--training-steps must be at least 1"),
        (("--n-envs", "0", "--datatype", "random"), "n_envs must be at least 1"),
        (("--resume",), "there is nothing to resume"),
    ],
)
def test_arguments_that_cannot_work_are_refused_and_leave_nothing(arguments, message, capsys):
    assert message in refused(capsys, *arguments)


def test_weights_that_do_not_fit_are_refused(zips, capsys):
    message = refused(capsys, "--policy", str(zips / "sac.zip"), "--weights", "1", "2")
    assert "every policy needs a positive weight" in message


def run_in_background(*arguments, wait_for, **variables):
    """Start a command, and return it once a file that fits ``wait_for`` is there."""
    process = subprocess.Popen(
        [sys.executable, "-c", "from trebi_gym.cli import main; main()", "generate", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    while not any(Path().glob(wait_for)):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


ROLLOUT = (
    "--dataset",
    "SafePendulum-v0",
    "--datatype",
    "random",
    "--total-step",
    "100000",
    "--output",
    "x.hdf5",
)
RUN = (
    "--dataset",
    "SafePendulum-v0",
    "--total-step",
    "11000",
    "--output",
    "x.hdf5",
    "--set",
    "batch_size=8",
    "train_freq=20",
    "gradient_steps=1",
    "policy_kwargs={'net_arch': [8]}",
)


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=["kill -9", "Ctrl-C", "kill"]
)
def test_an_interrupted_recording_leaves_no_file_and_is_gone_on_with_to_the_same_data(number):
    process = run_in_background(*ROLLOUT, wait_for="x.parts/part-00001.hdf5")
    process.send_signal(number)
    output = process.communicate(timeout=60)[0]
    assert process.returncode != 0
    assert not Path("x.hdf5").exists()
    assert not list(Path().glob("*.tmp*"))
    if number != signal.SIGKILL:
        assert "--resume goes on" in output
    kept = sum(1 for _ in Path("x.parts").glob("part-*.hdf5"))
    assert 2 <= kept < 5
    main(["generate", *ROLLOUT, "--resume"])
    assert not Path("x.parts").exists()
    resumed = load("x.hdf5")
    assert resumed.n_steps == 100_000
    expected = generate("SafePendulum-v0", "random", steps=100_000, seed=0)
    assert_equal(resumed, expected)


def test_parts_of_an_interrupted_build_are_not_taken_for_another_one(capsys):
    process = run_in_background(*ROLLOUT, wait_for="x.parts/part-00000.hdf5")
    process.kill()
    process.communicate(timeout=60)
    for arguments, message in (
        (ROLLOUT, "is left from an interrupted run: pass --resume"),
        ((*ROLLOUT, "--seed", "1", "--resume"), "cannot be resumed here: seed was 0, is 1"),
    ):
        with pytest.raises(SystemExit):
            main(["generate", *arguments])
        assert message in capsys.readouterr().err
        assert Path("x.parts/part-00000.hdf5").exists()
    main(["generate", *ROLLOUT[:-4], "--total-step", "400", "--output", "x.hdf5", "--overwrite"])
    assert load("x.hdf5").n_steps == 400
    assert not Path("x.parts").exists()


def test_a_killed_training_run_goes_on_from_what_it_kept(capsys):
    process = run_in_background(*RUN, wait_for="x.parts/run/state.json")
    process.kill()
    process.communicate(timeout=60)
    state = json.loads(Path("x.parts/run/state.json").read_text())["state"]["pairs"]
    at = dict(state)["num_timesteps"]
    assert 10_000 <= at < 11_000
    kept = load("x.parts/run/part-00000.hdf5")
    main(["generate", *RUN, "--resume"])
    found = load("x.hdf5")
    assert found.n_steps == 11_000
    assert found.metadata["training_steps"] == 11_000
    for name in ("observations", "actions", "costs"):
        np.testing.assert_array_equal(
            getattr(found, name)[: kept.n_steps], getattr(kept, name)[: kept.n_steps]
        )
    assert not Path("x.parts").exists()


def test_what_a_training_run_keeps_is_a_true_continuation(tmp_path):
    def run(steps, parts):
        return record_training(
            "SafePendulum-v0",
            steps=steps,
            seed=0,
            hyperparameters=SMALL,
            parts=parts,
            save_every=200,
            snapshots=4,
        )

    whole = run(400, Parts(tmp_path / "a", {"run": 1}))
    again = run(400, Parts(tmp_path / "a", {"run": 1}, resume=True))
    assert again.model.num_timesteps == 400
    assert again.model._n_updates == whole.model._n_updates > 0
    assert_equal(again.dataset, whole.dataset)
    for name, value in whole.model.policy.state_dict().items():
        assert torch.equal(again.model.policy.state_dict()[name], value)
    for kind in ("actor", "critic"):
        before, after = (getattr(record.model, kind).optimizer.state_dict() for record in (whole, again))
        assert before["state"].keys() == after["state"].keys() != set()
        for key, moments in before["state"].items():
            assert torch.equal(moments["exp_avg"], after["state"][key]["exp_avg"])
    assert torch.equal(whole.model.log_ent_coef, again.model.log_ent_coef)
    assert [step for step, _ in again.policies] == [step for step, _ in whole.policies]
    theirs, ours = whole.model.replay_buffer, again.model.replay_buffer
    # the run's last step is recorded, but Stable-Baselines3 had not stored it when the run was stopped
    assert (theirs.size(), ours.size()) == (399, 400)
    for array in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        np.testing.assert_allclose(
            getattr(ours, array)[:399], getattr(theirs, array)[:399], atol=1e-6, err_msg=array
        )


def test_a_run_that_was_kept_gives_other_kinds_without_training_again(tmp_path):
    common = {"seed": 0, "training_steps": 400, "hyperparameters": SMALL, "run_folder": tmp_path / "run"}
    expert = generate("SafePendulum-v0", "expert", steps=200, **common)
    began = time.perf_counter()
    again = generate("SafePendulum-v0", "expert", steps=200, **common)
    assert time.perf_counter() - began < 5
    assert_equal(expert, again)
    replay = generate(
        "SafePendulum-v0",
        "medium-replay",
        steps=400,
        seed=0,
        hyperparameters=SMALL,
        run_folder=tmp_path / "run",
    )
    assert replay.n_steps == 400
    with pytest.raises(DatasetError, match="cannot be resumed here: seed was 0, is 1"):
        generate("SafePendulum-v0", "expert", steps=200, **{**common, "seed": 1})


def test_a_damaged_state_is_refused_with_the_remedy(tmp_path):
    parts = Parts(tmp_path / "a", {"run": 1})
    parts.write_state({"weights": {0: torch.ones(2), "x": (1, None, [2.5])}}, 3)
    assert parts.read_state()["weights"]["x"] == (1, None, [2.5])
    (tmp_path / "a" / "state-00000003.safetensors").write_bytes(b"cut")
    with pytest.raises(DatasetError, match=r"is damaged .* to start anew"):
        parts.read_state()
    (tmp_path / "a" / "request.json").write_text("{")
    with pytest.raises(DatasetError, match=r"is damaged .* to start anew"):
        Parts(tmp_path / "a", {"run": 1}, resume=True)


@needs_policies
@pytest.mark.parametrize(("task", "low", "high"), [("Hopper", 900, 3800), ("HalfCheetah", 8500, 10000)])
def test_a_strangers_policy_of_an_old_version_acts_as_it_did(task, low, high):
    loaded = load_policy(Path(POLICIES) / f"sac-{task}-v3.zip", f"Safe{task}-v0", stochastic=True)
    found = generate_from_policies(f"Safe{task}-v0", [loaded], steps=2000, seed=0)
    assert low < found.episode_returns.mean() < high
    np.testing.assert_array_less(0, found.episode_costs)
