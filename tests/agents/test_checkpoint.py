"""Saved agents: everything comes back, nothing in a file is run, and what is no agent is refused."""

import json
import os
import pickle  # noqa: TID251 - to show that it is never run
import zipfile

import gymnasium as gym
import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from stable_baselines3 import SAC
from toy_envs import register_toy_envs

from trebi_gym.agents import TREBIAgent
from trebi_gym.agents.models import EVERY_PART
from trebi_gym.agents.storage import checkpoint
from trebi_gym.errors import CheckpointError, ConfigError, NotLearnedError, TrebiError

register_toy_envs()
OBSERVATIONS = np.array([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.5], [0.0, 1.0, -2.0]])


@pytest.fixture
def saved(tiny_agent, tmp_path):
    return tiny_agent.save(tmp_path / "agent")


def parts_of(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewrite(path, **changes):
    """Write the zip anew with its description or its tensors changed."""
    members = parts_of(path)
    if "description" in changes:
        document = json.loads(members["agent.json"])
        changes["description"](document)
        members["agent.json"] = json.dumps(document).encode()
    if "tensors" in changes:
        tensors = load(members["tensors.safetensors"])
        changes["tensors"](tensors)
        members["tensors.safetensors"] = save(tensors)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (members | changes.get("members", {})).items():
            if content is not None:
                archive.writestr(name, content)


def test_a_loaded_agent_acts_exactly_like_the_saved_one(tiny_agent, saved):
    loaded = TREBIAgent.load(saved, device="cpu")
    assert loaded.config == tiny_agent.config
    assert loaded.seed == tiny_agent.seed
    assert loaded.learned_from == tiny_agent.learned_from
    assert (loaded.observation_space.shape, loaded.action_space) == ((3,), tiny_agent.action_space)
    for deterministic in (True, False):
        tiny_agent.set_random_seed()
        first, _ = tiny_agent.predict(OBSERVATIONS, budget=[5.0, 30.0, -1.0], deterministic=deterministic)
        second, _ = loaded.predict(OBSERVATIONS, budget=[5.0, 30.0, -1.0], deterministic=deterministic)
        np.testing.assert_array_equal(first, second)


def test_the_ending_zip_is_added_and_may_be_left_away_when_loading(tiny_agent, tmp_path):
    path = tiny_agent.save(tmp_path / "agent.v1")
    assert path == tmp_path / "agent.v1.zip"
    assert TREBIAgent.load(tmp_path / "agent.v1", device="cpu").models.keys() == tiny_agent.models.keys()
    assert tiny_agent.save(tmp_path / "b.zip") == tmp_path / "b.zip"


def test_equal_agents_are_equal_files_of_json_and_safetensors_only(tiny_agent, saved, tmp_path):
    assert set(parts_of(saved)) == {"agent.json", "tensors.safetensors"}
    assert saved.read_bytes() == tiny_agent.save(tmp_path / "again").read_bytes()
    again = TREBIAgent.load(saved, device="cpu").save(tmp_path / "third")
    assert again.read_bytes() == saved.read_bytes()


def test_an_agent_that_has_learned_nothing_is_not_saved(tiny_config, tmp_path):
    with pytest.raises(NotLearnedError, match="nothing to save"):
        TREBIAgent(config=tiny_config, device="cpu").save(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_save_that_fails_leaves_the_older_file_and_no_other(tiny_agent, saved, monkeypatch):
    before = saved.read_bytes()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", fail)
    with pytest.raises(OSError, match="disk full"):
        tiny_agent.save(saved)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["agent.zip"]


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="there is no saved agent at"):
        TREBIAgent.load(tmp_path / "nothing.zip")


@pytest.mark.parametrize("content", [b"", b"words, not a zip"])
def test_a_file_that_is_no_zip_is_refused(tmp_path, content):
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(CheckpointError, match="not a readable saved agent"):
        TREBIAgent.load(tmp_path / "a.zip")


def test_a_model_of_stable_baselines_is_refused_by_name(tmp_path):
    SAC("MlpPolicy", "Ledger-v0", policy_kwargs={"net_arch": [4]}, buffer_size=10).save(tmp_path / "sac.zip")
    with pytest.raises(CheckpointError, match=r"no saved agent: it lacks .* \(a Stable-Baselines3 model\?\)"):
        TREBIAgent.load(tmp_path / "sac.zip")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_file_that_was_cut_short_is_refused(saved, share):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match="perhaps it is cut short"):
        TREBIAgent.load(saved)


@pytest.mark.parametrize("place", [0.01, 0.2, 0.5, 0.8])
def test_a_file_with_damaged_bytes_is_refused(saved, place):
    content = bytearray(saved.read_bytes())
    start = int(place * len(content))
    content[start : start + 40] = bytes(255 - byte for byte in content[start : start + 40])
    saved.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match="not a readable saved agent"):
        TREBIAgent.load(saved)


def test_another_version_is_refused_with_the_remedy(saved):
    rewrite(saved, description=lambda document: document.update(version=2))
    with pytest.raises(CheckpointError, match="format version 2; this release reads 1: update trebi-gym"):
        TREBIAgent.load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format="else"), "its description does not say"),
        (lambda d: d["config"].update(horizon="eight"), "config.horizon must be of type int"),
        (lambda d: d["config"].update(speed=3), "config has no field speed"),
        (
            lambda d: d["config"].update(horizon=16),
            "the weights of diffusion in the file do not fit its configuration",
        ),
        (lambda d: d.pop("task"), "does not hold what a saved agent needs: 'task'"),
        (lambda d: d.pop("parts"), "does not hold what a saved agent needs: 'parts'"),
        (lambda d: d.update(parts=["policy"]), "unknown part 'policy'"),
        (lambda d: d.update(parts=3), "does not hold what a saved agent needs"),
        (lambda d: d["task"].update(episode_length="long"), "episode_length must be a whole number from 1"),
    ],
)
def test_a_description_that_is_wrong_is_refused(saved, change, message):
    rewrite(saved, description=change)
    with pytest.raises(TrebiError, match=message):
        TREBIAgent.load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("model.cost_critic." + first_name(t)),
            "weights of cost_critic in the file do not fit",
        ),
        (
            lambda t: t.update({"model.cost_critic." + first_name(t): torch.zeros(2)}),
            "weights of cost_critic",
        ),
        (lambda t: t.pop("actions.center"), "does not hold what a saved agent needs: 'actions.center'"),
        (lambda t: t["actions.scale"].zero_(), "scale finite and positive"),
        (lambda t: t.update({"actions.center": torch.zeros(2)}), r"must both have shape \(n,\)"),
        (lambda t: t.update({"spaces.action_low": torch.zeros(3)}), "bounds of the actions must be two rows"),
    ],
)
def test_tensors_that_are_wrong_are_refused(saved, change, message):
    rewrite(saved, tensors=change)
    with pytest.raises(TrebiError, match=message):
        TREBIAgent.load(saved)


def first_name(tensors):
    names = sorted(name for name in tensors if name.startswith("model.cost_critic."))
    return names[0].removeprefix("model.cost_critic.")


class Payload:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize(
    "name", ["agent.json", "tensors.safetensors", "data.pkl", "policy.pth", "archive/data.pkl"]
)
def test_a_pickle_in_a_file_is_never_run(saved, tmp_path, name):
    trap = tmp_path / "trap"
    content = pickle.dumps(Payload(trap))
    pickle.loads(content)
    assert trap.is_dir()
    trap.rmdir()
    rewrite(saved, members={name: content})
    with pytest.raises(CheckpointError):
        TREBIAgent.load(saved)
    assert not trap.exists()


def test_a_member_that_would_fill_the_memory_is_refused(saved, monkeypatch):
    monkeypatch.setitem(checkpoint.MAX_BYTES, "tensors.safetensors", 1000)
    with pytest.raises(CheckpointError, match=r"would unpack from \d+ bytes to \d+, more than the 1000"):
        TREBIAgent.load(saved)


@pytest.fixture
def folder(shipped_dataset, tiny_config, tmp_path):
    """What the three training scripts leave: each part in a file of its own."""
    target = tmp_path / "parts"
    for part in EVERY_PART:
        agent = TREBIAgent(config=tiny_config, device="cpu", seed=0)
        getattr(agent, f"learn_{part}")(shipped_dataset, progress_bar=False)
        agent.save(target / part)
    return target


def test_a_folder_of_parts_is_the_agent_that_learns_all_at_once(tiny_agent, folder):
    loaded = TREBIAgent.load(folder, device="cpu")
    first, _ = tiny_agent.predict(OBSERVATIONS, budget=20.0, deterministic=True)
    second, _ = loaded.predict(OBSERVATIONS, budget=20.0, deterministic=True)
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("part", "method", "script"),
    [
        ("diffusion", r"learn_diffusion\(\)", "scripts/train.py"),
        ("reward_critic", r"learn_reward_critic\(\)", "scripts/train_values.py"),
        ("cost_critic", r"learn_cost_critic\(\)", "scripts/train_cost_values.py"),
    ],
)
def test_a_part_that_is_missing_in_a_folder_names_the_script_that_makes_it(folder, part, method, script):
    (folder / f"{part}.zip").unlink()
    with pytest.raises(NotLearnedError, match=f"{part}: {method} or {script}"):
        TREBIAgent.load(folder).predict(OBSERVATIONS, budget=20.0)


def test_parts_that_do_not_belong_together_are_refused(folder, shipped_dataset, tiny_config):
    other = TREBIAgent(config=tiny_config, device="cpu", seed=0)
    other.learn_cost_critic(shipped_dataset.select(range(30)), progress_bar=False)
    other.save(folder / "cost_critic")
    with pytest.raises(CheckpointError, match=r"cost_critic.zip and .*diffusion.zip do not belong together"):
        TREBIAgent.load(folder)
    config = tiny_config.replace(discount=0.9)
    other = TREBIAgent(config=config, device="cpu", seed=0).learn_cost_critic(
        shipped_dataset, progress_bar=False
    )
    other.save(folder / "cost_critic")
    with pytest.raises(CheckpointError, match="do not belong together"):
        TREBIAgent.load(folder)


def test_a_folder_without_any_part_is_refused(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"holds no part of an agent \(diffusion.zip, .*\) and no agent.zip"
    ):
        TREBIAgent.load(tmp_path)


def test_a_folder_with_a_whole_agent_is_loaded(tiny_agent, saved):
    assert TREBIAgent.load(saved.parent, device="cpu").models.keys() == tiny_agent.models.keys()


def test_single_parts_can_be_saved(tiny_agent, tmp_path):
    path = tiny_agent.save(tmp_path / "a", parts=["cost_critic"])
    assert list(TREBIAgent.load(path).models) == ["cost_critic"]


def test_an_environment_of_other_sizes_is_refused_and_one_that_fits_is_kept(saved):
    with gym.make("SafePendulum-v0") as env:
        assert TREBIAgent.load(saved, env=env).get_env() is env
    with gym.make("SafeReacher-v0") as env, pytest.raises(CheckpointError, match="have shapes"):
        TREBIAgent.load(saved, env=env)


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_a_member_that_is_packed_by_another_method_is_refused(saved, method):
    members = parts_of(saved)
    with zipfile.ZipFile(saved, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(CheckpointError, match=rf"is packed by method {method}; a saved agent is deflated"):
        TREBIAgent.load(saved)


def test_weights_that_are_not_finite_are_refused(saved):
    def change(tensors):
        name = next(name for name in tensors if name.startswith("model.cost_critic"))
        tensors[name] = torch.full_like(tensors[name], float("nan"))

    rewrite(saved, tensors=change)
    with pytest.raises(CheckpointError, match="the weights of cost_critic in the file are not all finite"):
        TREBIAgent.load(saved)


@pytest.mark.parametrize("parts", [["difusion"], "diffusion"])
def test_parts_that_are_none_are_not_saved(tiny_agent, tmp_path, parts):
    with pytest.raises(ConfigError, match=r"parts must be a list of diffusion, .*; got "):
        tiny_agent.save(tmp_path / "agent", parts=parts)
    assert list(tmp_path.iterdir()) == []
