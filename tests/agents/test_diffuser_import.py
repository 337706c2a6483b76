"""Published Diffuser models: read as plain data, equal to what they computed, and usable with a budget."""

import dataclasses
import pickle  # noqa: TID251 - to write what must be refused
import shutil
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from trebi_gym.agents import TREBIAgent
from trebi_gym.agents.models import Task, make_model
from trebi_gym.agents.storage.diffuser import read_config, read_experiment, read_published
from trebi_gym.commands.cli import main
from trebi_gym.datasets import AffineNormalizer, EpisodeDataset, save
from trebi_gym.errors import CheckpointError, DatasetError, NotLearnedError

FIXTURES = Path(__file__).parent.parent / "data" / "diffuser"
HOPPER, CHEETAH = "hopper-medium-replay-v2", "halfcheetah-medium-expert-v2"
DIFFUSION, VALUES = "diffusion/defaults_H32_T20", "values/defaults_H32_T20_d0.997"
ran: list[str] = []


@pytest.fixture
def folder(tmp_path):
    """A copy of hopper's folder, to be spoiled."""
    shutil.copytree(FIXTURES / HOPPER, tmp_path / HOPPER)
    return tmp_path / HOPPER


@pytest.fixture(scope="module")
def dataset():
    """Episodes of hopper's shape, of which some end early."""
    generator = np.random.default_rng(0)
    lengths = np.array([60, 35, 50, 41])
    steps = int(lengths.sum())
    walk = np.cumsum(generator.normal(0, 0.1, (steps + 4, 11)), axis=0)
    return EpisodeDataset(
        observations=walk.astype(np.float32),
        actions=generator.uniform(-1, 1, (steps, 3)).astype(np.float32),
        rewards=generator.uniform(0, 3, steps).astype(np.float32),
        costs=generator.uniform(0, 2, steps).astype(np.float32),
        lengths=lengths,
        terminated=np.array([False, True, True, False]),
        truncated=np.array([True, False, False, True]),
        metadata={"name": HOPPER, "env_id": "SafeHopper-v0", "episode_length": 1000},
    )


def plain_task(found):
    def unit(size):
        return AffineNormalizer(np.zeros(size), np.ones(size))

    return Task(unit(found.observation_size), unit(found.action_size), 1000, 1.0, 1.0)


@pytest.mark.parametrize("task", [HOPPER, CHEETAH])
@pytest.mark.parametrize(("part", "kind"), [("diffusion", "diffusion"), ("reward_critic", "values")])
def test_the_imported_networks_compute_what_the_published_ones_did(task, part, kind):
    expected = load_file(FIXTURES / "expected.safetensors")
    found = read_published(FIXTURES / task)
    model = make_model(part, found.config, plain_task(found), seed=0).eval()
    model.load_state_dict(found.weights[part])
    with torch.no_grad():
        result = model(expected[f"{task}.{kind}.x"], expected[f"{task}.{kind}.t"])
    target = expected[f"{task}.{kind}.ema_out"].reshape(result.shape)
    torch.testing.assert_close(result, target, rtol=0, atol=1e-5)


def test_the_configuration_is_the_published_one():
    config = read_published(FIXTURES / CHEETAH).config
    assert config.denoiser.options == {"dim": 8, "dim_mults": [1, 4, 8], "attention": True}
    assert config.reward_critic.options == config.cost_critic.options == {"dim": 8, "dim_mults": [1, 4, 8]}
    assert (config.horizon, config.diffusion_steps, config.discount, config.cost_discount) == (
        4,
        20,
        0.997,
        0.997,
    )
    assert (config.termination_reward, config.termination_cost, config.first_action_weight) == (-100, 100, 10)
    assert (config.normalizer, config.episode_length, config.preset) == ("gaussian", 1000, "locomotion")
    assert (config.planner.guide_scale, config.planner.guide_stop) == (1e-3, 4), (
        "as the paper's for halfcheetah"
    )
    training = config.denoiser_training
    assert (training.batch_size, training.learning_rate, training.accumulation, training.ema_decay) == (
        32,
        2e-4,
        2,
        0.995,
    )


def test_the_latest_epoch_is_taken_and_another_on_request(folder):
    later = torch.load(folder / VALUES / "state_199.pt", weights_only=True)
    earlier = {"step": 0, "ema": {name: value + 1 for name, value in later["ema"].items()}}
    torch.save(earlier, folder / VALUES / "state_20.pt")  # by name, 20 would come behind 199
    newest, older = (read_experiment(folder / VALUES, epoch) for epoch in ("latest", 20))
    assert (newest.epoch, older.epoch) == (199, 20)
    name = "time_mlp.1.weight"
    assert torch.equal(newest.weights[name] + 1, older.weights[name])
    with pytest.raises(CheckpointError, match="has no epoch 7; it has 20, 199, or latest"):
        read_experiment(folder / VALUES, 7)


def test_the_optimised_weights_are_taken_on_request(folder):
    path = folder / DIFFUSION / "state_0.pt"
    state = torch.load(path, weights_only=True)
    state["model"] = {name: value - 1 for name, value in state["ema"].items()}
    torch.save(state, path)
    name = "final_conv.1.weight"
    averaged, optimised = (
        read_experiment(folder / DIFFUSION, ema=ema).weights[name] for ema in (True, False)
    )
    assert torch.equal(averaged - 1, optimised)


def record(word):
    """What a payload calls."""
    ran.append(word)


class Payload:
    def __reduce__(self):
        return record, ("ran",)


class Eval:
    def __reduce__(self):
        return eval, ("__import__('test_diffuser_import').record('ran')",)


@pytest.mark.parametrize(
    "payload", [Payload(), Eval(), {"_dict": {"horizon": Payload()}}, record, torch.device("cpu")]
)
def test_a_file_with_a_payload_does_not_run_it_and_is_refused_by_name(tmp_path, payload):
    path = tmp_path / "model_config.pkl"
    path.write_bytes(pickle.dumps(payload))
    ran.clear()
    with pytest.raises(
        CheckpointError, match=r"it names \w+\.\w+, which is not read: only names of diffuser"
    ):
        read_config(path)
    assert ran == []
    if not isinstance(payload, (torch.device, dict)) and payload is not record:
        pickle.loads(path.read_bytes())
        assert ran == ["ran"], "the payload is one: an ordinary reader runs it"


def test_names_of_the_published_package_become_records_that_do_nothing(tmp_path):
    # a call of diffuser.utils.run('x'), as a pickle of hand-written opcodes
    text = b"cdiffuser.utils\nrun\n(S'x'\ntR(S'_dict'\n(S'horizon'\nI4\ndd b."
    path = tmp_path / "model_config.pkl"
    path.write_bytes(text.replace(b" ", b""))
    assert read_config(path) == {"horizon": 4}
    good = b"cdiffuser.utils.config\nConfig\n)\x81}(S'_dict'\n(S'horizon'\nI4\ndS'_class'\ncdiffuser.os\nsystem\nub."
    path.write_bytes(b"\x80\x02" + good)
    assert read_config(path) == {"horizon": 4}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a readable configuration"),
        (b"words", "is not a readable configuration"),
        (pickle.dumps([1, 2]), "holds list, not a configuration"),
        (pickle.dumps({"horizon": 4}), "holds dict, not a configuration"),
        (b"\x80\x04\x8c\x01a\x51.", "is not a readable configuration"),
        (b"\x80\x04" + b"\x00" * (1 << 20), "bytes; a configuration has less than"),
    ],
    ids=["empty", "text", "list", "dictionary", "persistent id", "large"],
)
def test_what_is_no_configuration_is_refused(tmp_path, content, message):
    path = tmp_path / "model_config.pkl"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_config(path)


def test_weights_are_read_as_weights_only(folder):
    path = folder / DIFFUSION / "state_0.pt"
    ran.clear()
    torch.save({"ema": Payload()}, path)
    with pytest.raises(CheckpointError, match="is not a file of plain weights"):
        read_published(folder)
    assert ran == []


def edit_config(path, **changes):
    """Rewrite a configuration's entries, as the published code would pickle them."""
    entries = read_config(path) | changes
    body = pickle.dumps(
        {"_dict": {key: value for key, value in entries.items() if value is not ...}}, protocol=2
    )
    path.write_bytes(b"\x80\x02cdiffuser.utils.config\nConfig\n)\x81" + body[2:-1] + b"b.")


SPOILED = {
    "no values": (lambda p: shutil.rmtree(p / "values"), "values does not exist"),
    "no experiment": (lambda p: shutil.rmtree(p / DIFFUSION), "must hold one experiment; it holds nothing"),
    "two experiments": (
        lambda p: shutil.copytree(p / DIFFUSION, p / "diffusion/other"),
        "it holds defaults_H32_T20, other: choose with experiment=",
    ),
    "no weights": (lambda p: (p / DIFFUSION / "state_0.pt").unlink(), r"holds no state_<epoch>\.pt"),
    "no model config": (lambda p: (p / VALUES / "model_config.pkl").unlink(), "a published experiment holds"),
    "weights cut short": (
        lambda p: (p / DIFFUSION / "state_0.pt").write_bytes(
            (p / DIFFUSION / "state_0.pt").read_bytes()[:5000]
        ),
        "is not a file of plain weights, or is damaged",
    ),
    "no average": (lambda p: torch.save({"step": 0}, p / DIFFUSION / "state_0.pt"), "holds no 'ema'"),
    "other names": (
        lambda p: torch.save({"ema": {"x": torch.ones(1)}}, p / DIFFUSION / "state_0.pt"),
        r"holds no weights named model\.\*",
    ),
    "another horizon": (
        lambda p: edit_config(p / VALUES / "model_config.pkl", horizon=64),
        "do not belong together: horizon is 32 and 64",
    ),
    "a noise predictor": (
        lambda p: edit_config(p / DIFFUSION / "diffusion_config.pkl", predict_epsilon=True),
        "its network predicts the noise",
    ),
    "normed values": (
        lambda p: edit_config(p / VALUES / "dataset_config.pkl", normed=True),
        "its values are normalised",
    ),
    "another normaliser": (
        lambda p: [
            edit_config(p / d / "dataset_config.pkl", normalizer="CDFNormalizer") for d in (DIFFUSION, VALUES)
        ],
        "the normaliser 'CDFNormalizer' is not known; known are GaussianNormalizer, LimitsNormalizer",
    ),
    "a missing entry": (
        lambda p: edit_config(p / DIFFUSION / "model_config.pkl", horizon=...),
        r"model_config\.pkl has no 'horizon'",
    ),
    "values of another task": (
        lambda p: edit_config(p / VALUES / "dataset_config.pkl", env="walker2d-medium-v2"),
        "do not belong together: env is 'hopper-medium-replay-v2' and 'walker2d-medium-v2'",
    ),
    "data that were changed": (
        lambda p: edit_config(p / DIFFUSION / "dataset_config.pkl", preprocess_fns=["arctanh_actions"]),
        r"was learned from data that went through \['arctanh_actions'\]",
    ),
    "text for a number": (
        lambda p: edit_config(p / VALUES / "dataset_config.pkl", discount="much"),
        "cannot be expressed by our models: could not convert",
    ),
    "resolutions that are none": (
        lambda p: edit_config(p / DIFFUSION / "model_config.pkl", dim_mults=5),
        "cannot be expressed by our models",
    ),
    "half a step": (
        lambda p: [
            edit_config(p / d / "dataset_config.pkl", max_path_length=999.5) for d in (DIFFUSION, VALUES)
        ],
        "cannot be expressed by our models: a whole number is needed, found 999.5",
    ),
    "a horizon that does not divide": (
        lambda p: [edit_config(p / d / "model_config.pkl", horizon=30) for d in (DIFFUSION, VALUES)],
        "cannot be expressed by our models: the U-Net halves the horizon 3 times",
    ),
}


@pytest.mark.parametrize("kind", SPOILED)
def test_a_folder_that_is_not_what_is_published_is_refused_with_what_is_wrong(folder, kind):
    spoil, message = SPOILED[kind]
    spoil(folder)
    with pytest.raises(CheckpointError, match=message):
        read_published(folder)


def test_an_experiment_is_chosen_by_name_with_or_without_its_discount(folder):
    shutil.copytree(folder / DIFFUSION, folder / "diffusion/other")
    found = read_published(folder, experiment="defaults_H32_T20")
    assert found.source["values"]["experiment"] == "defaults_H32_T20_d0.997"


def test_weights_that_do_not_fit_their_configuration_are_refused(folder, dataset):
    edit_config(folder / DIFFUSION / "model_config.pkl", dim=16)
    with pytest.raises(CheckpointError, match=r"the weights of diffusion in .* do not fit its configuration"):
        TREBIAgent.from_diffuser(folder, dataset)


def test_data_of_other_sizes_are_refused(dataset):
    with pytest.raises(
        CheckpointError, match="observations of 17 numbers, the data set has 11; name the data set"
    ):
        TREBIAgent.from_diffuser(FIXTURES / CHEETAH, dataset)


def test_the_data_of_another_known_task_are_refused(dataset):
    other = dataclasses.replace(dataset, metadata={**dataset.metadata, "name": "hopper-medium-v2"})
    with pytest.raises(
        CheckpointError,
        match="was learned from hopper-medium-replay-v2, but the data set is hopper-medium-v2",
    ):
        TREBIAgent.from_diffuser(FIXTURES / HOPPER, other)
    own = dataclasses.replace(dataset, metadata={**dataset.metadata, "name": "my-hopper"})
    assert TREBIAgent.from_diffuser(FIXTURES / HOPPER, own, seed=0).learned_from["name"] == "my-hopper"


def test_networks_that_no_memory_could_hold_are_refused(folder, dataset):
    edit_config(folder / DIFFUSION / "model_config.pkl", dim=2**24)
    with pytest.raises(CheckpointError, match=r"the weights of diffusion in .* do not fit"):
        TREBIAgent.from_diffuser(folder, dataset)


def test_the_normalisers_are_those_of_the_data_named(dataset):
    agent = TREBIAgent.from_diffuser(FIXTURES / HOPPER, dataset, seed=0)
    rows = dataset.observations[dataset.observation_rows]
    np.testing.assert_allclose(agent.task.observations.center, rows.mean(axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(agent.task.observations.scale, rows.std(axis=0), rtol=1e-4)
    assert agent.task.budget_factor == pytest.approx(139 / 2040)


def test_only_the_cost_critic_is_left_to_learn_and_then_it_plans_within_a_budget(dataset, tmp_path):
    agent = TREBIAgent.from_diffuser(FIXTURES / HOPPER, dataset, seed=0, device="cpu")
    with pytest.raises(NotLearnedError, match=r"cost_critic: learn_cost_critic\(\)"):
        agent.predict(dataset.observations[0], budget=100.0)
    before = {name: value.clone() for name, value in agent.models["diffusion"].state_dict().items()}
    agent.learn_cost_critic(dataset, total_steps=3, progress_bar=False)
    for name, value in agent.models["diffusion"].state_dict().items():
        assert torch.equal(value, before[name]), "the imported weights stay"
    agent.set_planner(candidates=4)
    action, _ = agent.predict(dataset.observations[0], budget=100.0, deterministic=True)
    assert action.shape == (3,)
    agent.save(tmp_path / "agent.zip")
    again = TREBIAgent.load(tmp_path / "agent.zip", device="cpu")
    assert again.learned_from["imported"]["values"] == {"experiment": "defaults_H32_T20_d0.997", "epoch": 199}
    np.testing.assert_array_equal(
        again.predict(dataset.observations[0], budget=100.0, deterministic=True)[0], action
    )


def test_the_command_imports_then_learns_the_part_that_is_missing(dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TREBI_DATA", str(tmp_path / "data"))
    save(dataset, tmp_path / "data" / f"{HOPPER}.hdf5")
    target = tmp_path / "agent.zip"
    main(["import", "diffuser", str(FIXTURES / HOPPER), "--output", str(target)])
    assert f"trebi learn-part cost_critic --agent {target}" in capsys.readouterr().out
    main(["learn-part", "cost_critic", "--agent", str(target), "--total-steps", "2"])
    assert set(TREBIAgent.load(target).models) == {"diffusion", "reward_critic", "cost_critic"}
    assert list(tmp_path.glob("*.zip")) == [target]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--epoch", "last"), "--epoch is a number or latest; got 'last'"),
        (("--epoch", "7"), "has no epoch 7"),
        (("--dataset", "none"), "no data set 'none'"),
        (("--output", "taken.zip"), "taken.zip exists already"),
    ],
)
def test_an_import_that_cannot_work_says_why_and_leaves_nothing(
    arguments, message, dataset, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("TREBI_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    save(dataset, tmp_path / "data" / f"{HOPPER}.hdf5")
    (tmp_path / "taken.zip").touch()
    with pytest.raises(SystemExit) as caught:
        main(["import", "diffuser", str(FIXTURES / HOPPER), "--output", "agent.zip", *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "agent.zip").exists()


def test_a_missing_data_set_tells_how_to_get_it(tmp_path, monkeypatch):
    for variable in ("TREBI_DATA", "D4RL_DATASET_DIR", "MINARI_DATASETS_PATH"):
        monkeypatch.setenv(variable, str(tmp_path))
    with pytest.raises(DatasetError, match="curl -L"):
        TREBIAgent.from_diffuser(FIXTURES / HOPPER, HOPPER)


def published(tmp_path):
    """A copy of a published folder that a test may change."""
    target = tmp_path / "halfcheetah-medium-expert-v2"
    shutil.copytree(Path(__file__).parent.parent / "data" / "diffuser" / target.name, target)
    return target


def test_a_pickle_that_would_take_more_memory_than_it_has_bytes_is_refused(tmp_path):
    folder = published(tmp_path) / "diffusion" / "defaults_H4_T20"
    path = folder / "model_config.pkl"
    path.write_bytes(b"\x80\x02}r\xff\xff\xff\x7f.")  # keeps a dictionary under the number 2**31 - 1
    with pytest.raises(CheckpointError, match="keeps an object under the number 2147483647, and has 9 bytes"):
        read_config(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_weights_that_name_more_than_weights_need_are_refused(tmp_path, legacy):
    path = published(tmp_path) / "diffusion" / "defaults_H4_T20" / "state_0.pt"
    # PyTorch's restricted reader makes a bytearray as large as it is told
    torch.save({"ema": {"model.a": bytearray(10)}}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"it names .*bytearray, which no file of weights needs"):
        read_experiment(path.parent)


def test_weights_that_unpack_to_more_than_the_file_are_refused(tmp_path):
    path = published(tmp_path) / "diffusion" / "defaults_H4_T20" / "state_0.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("state_0/data/0", bytes(1 << 20))
    with pytest.raises(CheckpointError, match=r"it would unpack from \d+ bytes to 1048576"):
        read_experiment(path.parent)


def test_entries_of_a_configuration_that_could_grow_are_left_out(tmp_path):
    path = tmp_path / "model_config.pkl"
    grown = ["x"]
    for _ in range(60):
        grown = [grown, grown]
    entries = {
        "horizon": 4,
        "mults": [1, 4],
        "grown": grown,
        "many": [0] * 1000,
        "huge": 10**5000,
        "long": "x" * 5000,
    }

    class Config:
        pass

    Config.__module__, Config.__qualname__ = "diffuser.utils.config", "Config"
    made = Config()
    made._dict = entries
    package = types.ModuleType("diffuser.utils.config")
    package.Config = Config
    with pytest.MonkeyPatch.context() as patch:
        for name in ("diffuser", "diffuser.utils"):
            patch.setitem(sys.modules, name, types.ModuleType(name))
        patch.setitem(sys.modules, "diffuser.utils.config", package)
        path.write_bytes(pickle.dumps(made, protocol=2))
    assert read_config(path) == {"horizon": 4, "mults": [1, 4]}
