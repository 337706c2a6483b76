"""Saved agents of strangers: hundreds of mutants are refused by an error of ours or act, with time and memory bounded."""

import json
import subprocess
import sys
import warnings
import zipfile

import hostile_agents
import pytest
from test_checkpoint import rewrite

from trebi_gym.agents import NetworkConfig, PlannerConfig, TREBIAgent, TREBIConfig
from trebi_gym.errors import CheckpointError, ConfigError, TrebiError

NETWORKS = {
    "mlp": NetworkConfig("mlp", {"width": 32, "blocks": 1}),
    "budget": NetworkConfig("budget", {"width": 32, "step_width": 16}),
}


@pytest.fixture(scope="module", params=sorted(NETWORKS))
def saved(request, shipped_dataset, tmp_path_factory):
    critic = NetworkConfig("mlp", {"width": 32, "blocks": 1, "steps_left": True})
    config = TREBIConfig(
        horizon=8,
        denoiser=NetworkConfig("mlp", {"width": 32, "blocks": 1, "condition": True}),
        reward_critic=critic,
        cost_critic=critic,
        outcome_critic=NETWORKS[request.param],
        planner=PlannerConfig(candidates=8),
    )
    agent = TREBIAgent(config=config, device="cpu", seed=0)
    agent.learn(shipped_dataset.select(range(5)), 8, progress_bar=False)
    return agent.save(tmp_path_factory.mktemp("hostile") / "agent")


def test_mutants_are_refused_or_act(saved, tmp_path):
    command = [sys.executable, hostile_agents.__file__, str(saved), str(tmp_path), "0", "150"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert found.returncode == 0, found.stderr
    result = json.loads(found.stdout)
    assert result["wrong"] == []
    assert result["refused"] > 50
    assert result["acted"] > 5


def copy_of(saved, tmp_path):
    path = tmp_path / "copy.zip"
    path.write_bytes(saved.read_bytes())
    return path


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (
            ("config", "denoiser", "options", "width"),
            32_000,
            r"do not fit .*and by the configuration \(32000,\)",
        ),
        (("config", "denoiser", "options", "width"), 10**12, "do not fit|cannot be built"),
        (("config", "denoiser", "options", "blocks"), 10**9, "from 1 to 256 blocks"),
        (
            ("config", "reward_critic", "options", "steps_left"),
            float("inf"),
            "steps_left must be true or false; got inf",
        ),
        (("config", "horizon"), 10**9, "do not fit"),
        (("config", "diffusion_steps"), 10**9, "diffusion_steps must be at most 1024"),
        (("config", "planner", "candidates"), 10**9, "plans through the networks"),
        (("config", "planner", "guide_moves"), 10**9, "plans through the networks"),
        (("task", "episode_length"), float("inf"), "episode_length must be a whole number"),
        (("task", "cost_scale"), 10**400, "does not hold what a saved agent needs"),
        (("seed",), float("inf"), "seed must be a whole number"),
        (("learned_from", "maximum_budget"), "much", "wrong maximum_budget 'much'"),
        (("learned_from", "marks"), 3, "wrong marks 3"),
        (("spaces", "action"), "int64", "actions are of 'int64'"),
    ],
)
def test_numbers_that_no_agent_has_are_refused_before_anything_is_made(
    saved, tmp_path, where, value, message
):
    path = copy_of(saved, tmp_path)

    def change(document):
        for key in where[:-1]:
            document = document[key]
        document[where[-1]] = value

    rewrite(path, description=change)
    with pytest.raises(TrebiError, match=message):
        TREBIAgent.load(path)


def test_a_zip_of_many_entries_of_one_name_twice_or_of_zeros_is_refused(saved, tmp_path):
    with zipfile.ZipFile(saved) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    path = tmp_path / "a.zip"

    def write(entries):
        with warnings.catch_warnings(), zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            warnings.simplefilter("ignore", UserWarning)
            for name, content in entries:
                archive.writestr(name, content)

    entries = list(members.items())
    for more, message in (
        ([("other", b"")], "has 3 entries, where a saved agent has .* once each; it also has other"),
        (entries[:1], "has 3 entries, where a saved agent has"),
        ([(f"more/{index}", b"") for index in range(5_000)], "its table of contents has"),
    ):
        write(entries + more)
        with pytest.raises(CheckpointError, match=message):
            TREBIAgent.load(path)
    write([entries[0], ("tensors.safetensors", bytes(70 << 20))])
    with pytest.raises(
        CheckpointError, match=r"tensors.safetensors would unpack from .* bytes to 73400320, more than"
    ):
        TREBIAgent.load(path)
    write([entries[0], ("tensors.safetensors", (1 << 40).to_bytes(8, "little") + bytes(100))])
    with pytest.raises(CheckpointError, match="the list of its tensors would take 1099511627776 bytes"):
        TREBIAgent.load(path)
    write([("agent.json", b"[" * 100_000), entries[1]])
    with pytest.raises(CheckpointError, match="not a readable saved agent"):
        TREBIAgent.load(path)


@pytest.mark.parametrize("name", ["x.ZIP", "x.Zip", "x.zip"])
def test_the_ending_zip_is_one_however_it_is_written(saved, tmp_path, name):
    agent = TREBIAgent.load(saved, device="cpu")
    assert agent.save(tmp_path / name) == tmp_path / name
    assert TREBIAgent.load(tmp_path / name).config == agent.config
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_places_that_cannot_be_written_are_refused_by_name(saved, tmp_path):
    agent = TREBIAgent.load(saved, device="cpu")
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.zip").mkdir()
    for place, message in (
        (tmp_path / "file" / "a", "cannot be written"),
        (tmp_path / "folder.zip", "it is a folder"),
        (tmp_path / ("x" * 300), "cannot be written: File name too long"),
        ("..", "is a folder; pass the file to write"),
        ("", "is a folder; pass the file to write"),
    ):
        with pytest.raises(ConfigError, match=message):
            agent.save(place)
    logged = TREBIAgent(config=agent.config, device="cpu", tensorboard_log=tmp_path / "file" / "log")
    with pytest.raises(ConfigError, match="the training log cannot be written to"):
        logged.set_logger(logged.logger)
    for place in (tmp_path / ("x" * 300), "", tmp_path / "a\0b", tmp_path / "file" / "a"):
        with pytest.raises(CheckpointError):
            TREBIAgent.load(place)
