"""Rollouts in parts: broken off anywhere and gone on with, they give the same data set."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from toy_envs import Scripted, register_toy_envs

from trebi_gym.datasets import load
from trebi_gym.datasets.generation import collect as collecting
from trebi_gym.datasets.generation.collect import Share, collect, collect_shares
from trebi_gym.datasets.generation.generate import generate, generate_from_policies
from trebi_gym.datasets.generation.policies import RandomPolicy, StableBaselinesPolicy
from trebi_gym.datasets.generation.resumable import OURS, Parts, finish, has_parts
from trebi_gym.errors import DatasetError

register_toy_envs()
ARRAYS = ("observations", "actions", "rewards", "costs", "lengths", "terminated", "truncated")
MEASURED = "steps_per_second"


class Killed(Exception):
    """Stands for a process that ends at once."""


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(collecting, "BLOCK", 20)


@pytest.fixture(scope="module")
def stochastic_policy():
    from stable_baselines3 import SAC

    model = SAC("MlpPolicy", "LedgerEarly-v0", device="cpu", seed=0, policy_kwargs={"net_arch": [8]})
    return StableBaselinesPolicy(model, noise=0.1, description={"algorithm": "stable_baselines3.SAC"})


def assert_same(first, second):
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)
    one, other = (
        {key: value for key, value in d.metadata.items() if key != MEASURED} for d in (first, second)
    )
    assert one == other


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def mixture(policy, folder=None, progress=None, **kwargs):
    options = {"steps": 130, "seed": 5, "weights": (2, 1), "n_envs": 3} | kwargs
    return generate_from_policies(
        "LedgerEarly-v0", [policy, policy], parts_folder=folder, progress=progress, **options
    )


@pytest.mark.parametrize("after", [1, 25, 60, 95, 128])
def test_rollouts_that_were_killed_and_gone_on_with_equal_uninterrupted_ones(
    after, stochastic_policy, tmp_path
):
    counted = []

    def kill(number):
        counted.append(number)
        if sum(counted) >= after:
            raise Killed

    folder = tmp_path / "a.parts"
    with pytest.raises(Killed):
        mixture(stochastic_policy, folder, kill)
    torch.manual_seed(after)  # whatever the next process has drawn
    assert has_parts(folder) == folder.exists() == (after > 20)
    resumed = mixture(stochastic_policy, folder, resume=True)
    assert_same(resumed, mixture(stochastic_policy))


def test_kept_blocks_are_read_and_not_recorded_again(stochastic_policy, tmp_path, monkeypatch):
    whole = mixture(stochastic_policy, tmp_path / "a.parts")
    assert len([name for name in files(tmp_path) if "part-" in name]) >= 5
    monkeypatch.setattr(collecting, "envs_for", lambda *_: pytest.fail("a block was recorded again"))
    assert_same(mixture(stochastic_policy, tmp_path / "a.parts", resume=True), whole)


def test_a_random_data_set_and_one_of_a_run_can_be_gone_on_with_too(tmp_path):
    sac = {"learning_starts": 20, "batch_size": 16, "policy_kwargs": {"net_arch": [8]}}
    for datatype, options in (("random", {}), ("expert", {"training_steps": 60, "hyperparameters": sac})):
        counted = []

        def kill(number, counted=counted, last=100 if datatype == "expert" else 50):
            counted.append(number)
            if sum(counted) >= last:
                raise Killed

        def make(datatype=datatype, options=options, **kwargs):
            return generate("Ledger-v0", datatype, steps=100, seed=2, n_envs=2, **options, **kwargs)

        folder = tmp_path / datatype
        with pytest.raises(Killed):
            make(parts_folder=folder, progress=kill)
        first = make(parts_folder=folder, resume=True)
        second = make()
        for key in ("training_steps_per_second", MEASURED):
            assert (key in first.metadata) == (key in second.metadata)
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)


def test_episodes_of_many_blocks_are_those_of_one_whose_seeds_count_on(monkeypatch):
    many = collect("LedgerEarly-v0", Scripted(), steps=300, seed=7, n_envs=4)
    monkeypatch.setattr(collecting, "BLOCK", 100_000)
    assert_same(many, collect("LedgerEarly-v0", Scripted(), steps=300, seed=7, n_envs=4))
    assert many.n_steps - len(many[-1]) < 300


def test_no_step_of_a_whole_block_is_thrown_away(monkeypatch):
    taken = []
    real = collecting.rollout

    def counting(*args, **kwargs):
        for step in real(*args, **kwargs):
            taken.append(int(step.active.sum()))
            yield step

    monkeypatch.setattr(collecting, "rollout", counting)
    dataset = collect("Ledger-v0", Scripted(), steps=100, seed=0, n_envs=4)
    assert dataset.n_steps == sum(taken) == 100


def test_each_block_draws_anew(tmp_path):
    import gymnasium as gym

    with gym.make("Ledger-v0") as env:
        policy = RandomPolicy(env.action_space, 0)
    dataset = collect_shares("Ledger-v0", [Share(policy, 100)], seed=0, n_envs=2)
    assert len(np.unique(dataset.actions)) == 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 131}, "steps was 130 and is 131"),
        ({"seed": 6, "n_envs": 2}, "n_envs was 3 and is 2; seed was 5 and is 6"),
        ({"weights": (1, 1)}, r"policies was .*0\.666.* and is .*0\.5"),
        ({"datatype": "mine"}, "datatype was 'policy' and is 'mine'"),
    ],
)
def test_going_on_with_another_request_is_refused_by_what_differs(
    change, message, stochastic_policy, tmp_path
):
    mixture(stochastic_policy, tmp_path / "a.parts")
    before = files(tmp_path)
    with pytest.raises(DatasetError, match=f"belongs to another request: {message}"):
        mixture(stochastic_policy, tmp_path / "a.parts", resume=True, **change)
    assert files(tmp_path) == before


def test_another_policy_of_the_same_name_is_another_request(stochastic_policy, tmp_path):
    described = {"file": "agent.zip", "sha256": "1"}
    for number in ("1", "2"):
        stochastic_policy.description = described | {"sha256": number}
        if number == "1":
            mixture(stochastic_policy, tmp_path / "a.parts")
        else:
            with pytest.raises(DatasetError, match=r"policies was .* and is "):
                mixture(stochastic_policy, tmp_path / "a.parts", resume=True)


def test_parts_that_are_there_are_neither_used_nor_deleted_unasked(stochastic_policy, tmp_path):
    first = mixture(stochastic_policy, tmp_path / "a.parts")
    with pytest.raises(DatasetError, match="pass --resume to go on with it, or --overwrite to start anew"):
        mixture(stochastic_policy, tmp_path / "a.parts")
    again = mixture(stochastic_policy, tmp_path / "a.parts", overwrite=True, seed=6)
    assert not np.array_equal(first.actions, again.actions)
    assert_same(again, mixture(stochastic_policy, tmp_path / "a.parts", resume=True, seed=6))


def test_a_folder_that_holds_other_things_is_left_alone(stochastic_policy, tmp_path):
    folder = tmp_path / "a.parts"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(DatasetError, match="is in the way"):
            mixture(stochastic_policy, folder, **options)
    assert files(tmp_path) == ["a.parts/thesis.txt"]


def test_a_build_that_fails_before_anything_is_finished_leaves_no_folder(stochastic_policy, tmp_path):
    with pytest.raises(Killed):
        mixture(stochastic_policy, tmp_path / "a.parts", progress=lambda _: (_ for _ in ()).throw(Killed))
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_unfinished_is_no_obstacle(stochastic_policy, tmp_path):
    folder = tmp_path / "a.parts"
    folder.mkdir()
    (folder / "request.json").write_text(json.dumps({"steps": 1}))
    (folder / ".part-00000-x1y2.tmp.hdf5").write_bytes(b"half")
    (folder / "whole.hdf5").write_bytes(b"half")
    assert not has_parts(folder)
    dataset = mixture(stochastic_policy, folder)
    finish(dataset, tmp_path / "a.hdf5", folder)
    assert files(tmp_path) == ["a.hdf5"]
    assert_same(load(tmp_path / "a.hdf5"), dataset)


@pytest.mark.parametrize("name", ["request.json", "part-00001.hdf5"])
def test_a_damaged_part_is_named(name, stochastic_policy, tmp_path):
    mixture(stochastic_policy, tmp_path / "a.parts")
    content = (tmp_path / "a.parts" / name).read_bytes()
    (tmp_path / "a.parts" / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(DatasetError, match=name):
        mixture(stochastic_policy, tmp_path / "a.parts", resume=True)


def test_a_damaged_state_of_a_run_is_named(tmp_path):
    parts = Parts(tmp_path / "run", {})
    parts.write_state({"weights": torch.ones(3), "n": 1}, 5)
    (tmp_path / "run" / "state-00000005.safetensors").write_bytes(b"half")
    with pytest.raises(DatasetError, match=r"state\.json is damaged"):
        parts.read_state()


def test_a_state_comes_back_as_it_was_and_only_the_last_one_stays(tmp_path):
    state = {
        "numbers": [1, 2.5, None, True, "text"],
        "nested": {0: {"step": torch.tensor(3.0)}, "betas": (0.9, 0.999)},
        "weights": torch.arange(6.0).reshape(2, 3),
    }
    parts = Parts(tmp_path / "run", {})
    parts.write_state({"old": torch.zeros(1)}, 1)
    parts.write_state(state, 2)
    found = Parts(tmp_path / "run", {}, resume=True).read_state()
    assert torch.equal(found.pop("weights"), state.pop("weights"))
    assert torch.equal(found["nested"][0].pop("step"), state["nested"][0].pop("step"))
    assert found == state
    assert files(tmp_path) == ["run/request.json", "run/state-00000002.safetensors", "run/state.json"]
    with pytest.raises(TypeError, match="neither plain data nor a tensor"):
        parts.write_state({"object": object()}, 3)
    assert "run" in OURS


def test_only_one_at_a_time_works_in_a_folder_and_a_killed_one_does_not_lock_it(tmp_path):
    hold = (
        "import time; from pathlib import Path; from trebi_gym.datasets.generation.resumable import Parts\n"
        f"with Parts(Path({str(tmp_path / 'a.parts')!r}), {{}}) as parts:\n"
        "    print('held', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(DatasetError, match="another process is building in"):
            Parts(tmp_path / "a.parts", {}, overwrite=True)
        process.kill()
        process.wait()
    with Parts(tmp_path / "a.parts", {}) as parts:
        parts.write_state({"a": 1}, 1)
    assert files(tmp_path / "a.parts")[0] == "request.json"
    assert "lock" not in files(tmp_path / "a.parts")
