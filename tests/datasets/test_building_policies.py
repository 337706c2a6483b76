"""Data sets of agents that Stable-Baselines3 saved: own ones, old ones, mixed ones, noisy ones."""

import base64
import json
import os
import sys
import zipfile
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DDPG, PPO, SAC, TD3
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from toy_envs import register_toy_envs

from trebi_gym.datasets.generation.collect import collect
from trebi_gym.datasets.generation.generate import generate_from_policies, load_policy
from trebi_gym.datasets.generation.policies import (
    StableBaselinesPolicy,
    _old_gym,
    find_statistics,
    read_description,
    saved_algorithm,
)
from trebi_gym.errors import DatasetError, EnvironmentContractError

register_toy_envs()
CLASSES = {"sac": SAC, "td3": TD3, "ppo": PPO, "ddpg": DDPG, "a2c": A2C}
TASK = "Ledger-v0"  # its observation tells the step and the last action, its cost is 2 + action


@pytest.fixture(scope="module")
def zips(tmp_path_factory):
    """One zip of each algorithm; SAC's and PPO's have learned a little."""
    folder = tmp_path_factory.mktemp("zips")
    for name, kind in CLASSES.items():
        options = {"batch_size": 16, "n_steps": 32} if name == "ppo" else {}
        model = kind("MlpPolicy", TASK, device="cpu", seed=3, policy_kwargs={"net_arch": [8]}, **options)
        if name in ("sac", "ppo"):
            model.learn(160)
        model.save(folder / f"{name}.zip")
    return folder


def rewritten(source: Path, target: Path, change) -> Path:
    """A copy of a zip with other data in its description."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "data":
                data = json.loads(content)
                change(data)
                content = json.dumps(data).encode()
            new.writestr(name, content)
    return target


def acted(dataset, model, *, normalize=lambda observations: observations):
    """What a model does deterministically where the data set was."""
    rows = dataset.observations[dataset.observation_rows]
    return model.predict(normalize(rows), deterministic=True)[0]


@pytest.mark.parametrize("name", CLASSES)
def test_a_saved_agent_of_every_algorithm_is_recognised_and_acts_as_it_did(name, zips):
    path = zips / f"{name}.zip"
    assert saved_algorithm(read_description(path)) == name
    dataset = collect(TASK, load_policy(path, TASK), steps=20, seed=0, n_envs=3)
    model = CLASSES[name].load(path, device="cpu")
    np.testing.assert_allclose(dataset.actions, acted(dataset, model), atol=1e-5)
    np.testing.assert_allclose(dataset.costs, 2.0 + dataset.actions[:, 0], rtol=1e-6)


def test_the_metadata_say_which_file_acted_and_how(zips):
    policy = load_policy(zips / "sac.zip", TASK, stochastic=True, noise=0.25)
    dataset = generate_from_policies(TASK, [policy], steps=20, seed=4, n_envs=2)
    (described,) = dataset.metadata["policies"]
    assert dataset.metadata["name"] == "Ledger-policy-v0"
    assert dataset.metadata["algorithm"] == described["algorithm"] == "stable_baselines3.SAC"
    assert dataset.metadata["seed"] == 4
    assert dataset.metadata["steps_per_second"] > 0
    assert described["file"] == "sac.zip"
    assert len(described["sha256"]) == 64
    assert (described["stochastic"], described["noise"], described["weight"]) == (True, 0.25, 1.0)
    assert described["steps"] == dataset.n_steps
    assert dataset.metadata["statistics"]["episodes"] == len(dataset)
    assert json.loads(json.dumps(dict(dataset.metadata))) == dict(dataset.metadata)


def test_policies_share_the_steps_by_their_weights_one_after_the_other(zips):
    policies = [load_policy(zips / f"{name}.zip", TASK) for name in ("sac", "td3")]
    dataset = generate_from_policies(TASK, policies, steps=100, seed=0, weights=(7, 3))
    assert [item["steps"] for item in dataset.metadata["policies"]] == [70, 30]
    assert [item["weight"] for item in dataset.metadata["policies"]] == pytest.approx([0.7, 0.3])
    models = [SAC.load(zips / "sac.zip", device="cpu"), TD3.load(zips / "td3.zip", device="cpu")]
    np.testing.assert_allclose(dataset.actions[:70], acted(dataset, models[0])[:70], atol=1e-5)
    np.testing.assert_allclose(dataset.actions[70:], acted(dataset, models[1])[70:], atol=1e-5)
    marks = [float(episode.observations[0, 2]) for episode in dataset]
    assert len(set(marks)) == len(marks)  # no episode of one policy begins as one of the other


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 0.0), (1.0, -1.0), (1.0, float("nan"))])
def test_weights_that_are_no_shares_are_refused(weights, zips):
    policies = [load_policy(zips / "sac.zip", TASK)] * 2
    with pytest.raises(DatasetError, match="every policy needs one positive weight"):
        generate_from_policies(TASK, policies, steps=10, seed=0, weights=weights)


def test_noise_is_measured_in_half_action_ranges_and_the_clipped_action_is_the_recorded_one(zips):
    quiet, noisy = (load_policy(zips / "sac.zip", TASK, noise=noise) for noise in (0.0, 0.5))
    seen = np.zeros((4000, 3))
    differences = noisy.predict(seen, budget=())[0] - quiet.predict(seen, budget=())[0]
    assert (
        np.abs(noisy.predict(seen, budget=())[0]).max() == 2.0
    )  # half the range of [-2, 2] is 2: many are clipped
    assert 0.7 < differences.std() < 1.0  # 0.5 * 2 before clipping
    dataset = collect(TASK, noisy, steps=60, seed=0)
    np.testing.assert_allclose(dataset.costs, 2.0 + dataset.actions[:, 0], rtol=1e-6)
    assert not np.allclose(
        dataset.actions, acted(dataset, SAC.load(zips / "sac.zip", device="cpu")), atol=0.1
    )


@pytest.mark.parametrize("noise", [-0.1, float("nan"), float("inf")])
def test_noise_that_cannot_be_is_refused(noise, zips):
    with pytest.raises(DatasetError, match="noise must be at least 0"):
        load_policy(zips / "sac.zip", TASK, noise=noise)


def test_a_stochastic_policy_draws_and_a_deterministic_one_does_not(zips):
    for stochastic in (True, False):
        policy = load_policy(zips / "sac.zip", TASK, stochastic=stochastic)
        first, second = (collect(TASK, policy, steps=30, seed=seed) for seed in (0, 1))
        again = collect(TASK, policy, steps=30, seed=0)
        np.testing.assert_array_equal(first.actions, again.actions)
        same_start = first[0].actions[0] == second[0].actions[0]
        assert np.allclose(first.actions, acted(first, SAC.load(zips / "sac.zip"))) != stochastic
        assert not (stochastic and same_start.all())


def test_recording_leaves_everybody_elses_random_numbers_alone(zips):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    numbers = np.random.get_state()[1].copy()  # noqa: NPY002
    policy = load_policy(zips / "sac.zip", TASK, stochastic=True)
    collect(TASK, policy, steps=10, seed=0)
    assert torch.equal(before, torch.get_rng_state())
    np.testing.assert_array_equal(numbers, np.random.get_state()[1])  # noqa: NPY002


def test_recording_does_not_keep_a_model_from_learning_on():
    model = SAC("MlpPolicy", TASK, device="cpu", seed=0, learning_starts=5, policy_kwargs={"net_arch": [8]})
    collect(TASK, StableBaselinesPolicy(model), steps=5, seed=0)
    before = [weight.clone() for weight in model.actor.parameters()]
    model.learn(20)
    assert not all(map(torch.equal, before, model.actor.parameters()))
    model.policy.set_training_mode(True)
    assert model.actor.training


def test_state_dependent_exploration_is_drawn_anew_for_every_episode(tmp_path):
    SAC("MlpPolicy", TASK, device="cpu", use_sde=True, policy_kwargs={"net_arch": [8]}).save(
        tmp_path / "a.zip"
    )
    policy = load_policy(tmp_path / "a.zip", TASK, stochastic=True)
    seen = np.ones((2, 3))
    began, goes_on = np.array([True, True]), np.array([False, False])
    one = policy.predict(seen, episode_start=began, budget=())[0]
    assert not np.allclose(one[0], one[1])
    np.testing.assert_array_equal(one, policy.predict(seen, episode_start=goes_on, budget=())[0])
    assert not np.allclose(one, policy.predict(seen, episode_start=began, budget=())[0])


def test_what_old_versions_pickled_is_not_unpickled(zips, tmp_path):
    def age(data):
        for key, value in data.items():
            if (
                isinstance(value, dict)
                and ":serialized:" in value
                and key not in ("policy_class", "policy_kwargs")
            ):
                value[":serialized:"] = base64.b64encode(b"cnowhere_at_all\nthing\n.").decode()
        data["observation_space"][":type:"] = "<class 'gym.spaces.box.Box'>"
        data["observation_space"]["shape"] = data["observation_space"].pop("_shape")

    for name in ("sac", "ppo", "td3"):
        old = rewritten(zips / f"{name}.zip", tmp_path / f"{name}.zip", age)
        with pytest.raises((ImportError, AttributeError, DatasetError)):
            CLASSES[name].load(old, device="cpu")
        dataset = collect(TASK, load_policy(old, TASK), steps=10, seed=0)
        expected = CLASSES[name].load(zips / f"{name}.zip", device="cpu")
        np.testing.assert_allclose(dataset.actions, acted(dataset, expected), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.zip", None, "there is no policy at"),
        ("text.zip", b"hello", "is no zip, or is cut short"),
        ("half.zip", "half", "cut short"),
    ],
)
def test_a_file_that_is_no_saved_agent_is_refused(name, content, message, zips, tmp_path):
    path = tmp_path / name
    if content is not None:
        whole = (zips / "sac.zip").read_bytes()
        path.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    with pytest.raises(DatasetError, match=message):
        load_policy(path, TASK)


def test_a_zip_of_something_else_is_refused_and_an_agent_of_our_own_is_named(tmp_path, tiny_agent):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("cat.jpg", b"miaow")
    with pytest.raises(DatasetError, match=r"lacks data and policy.pth$"):
        load_policy(tmp_path / "photos.zip", TASK)
    with pytest.raises(DatasetError, match="an agent of trebi_gym's own"):
        load_policy(tiny_agent.save(tmp_path / "ours.zip"), TASK)


def test_weights_that_do_not_fit_the_description_are_refused(zips, tmp_path):
    with zipfile.ZipFile(zips / "sac.zip") as old, zipfile.ZipFile(tmp_path / "a.zip", "w") as new:
        for name in old.namelist():
            new.writestr(name, b"garbage" if name == "policy.pth" else old.read(name))
    with pytest.raises(DatasetError, match="cannot be loaded as SAC"):
        load_policy(tmp_path / "a.zip", TASK)


def test_another_algorithm_than_the_one_that_saved_the_file_is_refused(zips):
    with pytest.raises(DatasetError, match="was asked for as PPO, but was saved by SAC"):
        load_policy(zips / "sac.zip", TASK, algo="ppo")
    with pytest.raises(DatasetError, match="the algorithm must be one of sac, td3"):
        load_policy(zips / "sac.zip", TASK, algo="dqn")


def test_an_agent_of_an_algorithm_that_is_not_known_is_refused(zips, tmp_path):
    def contrib(data):
        data["policy_class"]["__module__"] = "sb3_contrib.tqc.policies"

    path = rewritten(zips / "sac.zip", tmp_path / "a.zip", contrib)
    with pytest.raises(DatasetError, match=r"does not say that it was saved by one of sac.*pass --algo"):
        load_policy(path, TASK)


def test_an_agent_of_another_environment_is_refused_with_both_sizes(zips):
    with pytest.raises(DatasetError, match=r"observations of shape \(3,\), and SafeReacher-v0 has \(1"):
        load_policy(zips / "sac.zip", "SafeReacher-v0")


def test_an_agent_that_was_trained_on_other_action_bounds_is_refused(tmp_path):
    env = gym.wrappers.RescaleAction(gym.make(TASK), np.float32(-1.0), np.float32(1.0))
    SAC("MlpPolicy", env, device="cpu", policy_kwargs={"net_arch": [8]}).save(tmp_path / "a.zip")
    with pytest.raises(DatasetError, match=r"actions of low \[-1.0\], and Ledger-v0 has \[-2.0\]"):
        load_policy(tmp_path / "a.zip", TASK)


def test_an_environment_whose_steps_do_not_fit_a_data_set_is_refused(zips):
    with pytest.raises(EnvironmentContractError, match=r"Box action space .*CartPole-v1 has Discrete"):
        load_policy(zips / "sac.zip", "CartPole-v1")


@pytest.fixture
def normalised(tmp_path):
    """A PPO agent with the statistics of the observations that it saw, in a folder of their own."""
    envs = VecNormalize(DummyVecEnv([lambda: gym.make(TASK)]))
    model = PPO(
        "MlpPolicy", envs, device="cpu", seed=1, n_steps=32, batch_size=16, policy_kwargs={"net_arch": [8]}
    )
    model.learn(64)
    model.save(tmp_path / "agent.zip")
    envs.save(str(tmp_path / "vecnormalize.pkl"))
    envs.training = False
    return tmp_path / "agent.zip", model, envs


def test_statistics_beside_the_zip_normalise_what_the_policy_sees_and_not_what_is_recorded(normalised):
    path, model, envs = normalised
    policy = load_policy(path, TASK)
    dataset = collect(TASK, policy, steps=20, seed=0)
    expected = acted(dataset, model, normalize=envs.normalize_obs)
    np.testing.assert_allclose(dataset.actions, expected, atol=1e-5)
    assert not np.allclose(dataset.actions, acted(dataset, model), atol=1e-3)
    np.testing.assert_array_equal(dataset[0].observations[:, 0], np.arange(6))
    np.testing.assert_allclose(dataset[0].rewards, 10.0 * np.arange(5) + dataset[0].actions[:, 0], rtol=1e-5)
    assert dataset.metadata["policies"][0]["normalized_by"]["file"] == "vecnormalize.pkl"


@pytest.mark.parametrize("place", ["agent_vecnormalize.pkl", "vecnormalize.pkl", "agent/vecnormalize.pkl"])
def test_statistics_are_looked_for_where_people_keep_them(place, tmp_path):
    assert find_statistics(tmp_path / "agent.zip") is None
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).touch()
    assert find_statistics(tmp_path / "agent.zip") == tmp_path / place


def test_statistics_that_name_spaces_of_the_old_gym_are_read(normalised, monkeypatch):
    path, model, envs = normalised
    raw = envs.normalize_obs(np.ones((1, 3)))
    with _old_gym():
        for name in ("Box", "Space"):
            kind = getattr(gym.spaces, name)
            monkeypatch.setattr(kind, "__module__", kind.__module__.replace("gymnasium", "gym"))
        envs.save(str(path.with_name("vecnormalize.pkl")))
        monkeypatch.undo()
    assert b"gym.spaces.box" in path.with_name("vecnormalize.pkl").read_bytes()
    assert "gym" not in sys.modules
    policy = load_policy(path, TASK)
    actions, _ = policy.predict(np.ones((1, 3)), budget=())
    np.testing.assert_allclose(actions, model.predict(raw, deterministic=True)[0], atol=1e-6)
    assert "gym" not in sys.modules


def test_statistics_that_are_none_are_refused(normalised, tmp_path):
    path, _, _ = normalised
    with pytest.raises(DatasetError, match="there are no VecNormalize statistics at"):
        load_policy(path, TASK, normalize=tmp_path / "nothing.pkl")
    (tmp_path / "text.pkl").write_text("hello")
    with pytest.raises(DatasetError, match="cannot be used as VecNormalize statistics of Ledger-v0"):
        load_policy(path, TASK, normalize=tmp_path / "text.pkl")


POLICIES = os.environ.get("TREBI_TEST_POLICIES")


@pytest.mark.skipif(POLICIES is None, reason="TREBI_TEST_POLICIES names no folder of real agents")
@pytest.mark.parametrize(
    ("task", "returns", "costs"),
    [("Hopper", (1000, 4000), (700, 3000)), ("HalfCheetah", (8500, 10500), (9000, 10500))],
)
def test_agents_that_strangers_saved_long_ago_run_as_well_as_they_did(task, returns, costs):
    policy = load_policy(Path(str(POLICIES)) / f"sac-{task}-v3.zip", f"Safe{task}-v0")
    dataset = collect(f"Safe{task}-v0", policy, steps=1500, seed=0, n_envs=2)
    assert dataset.n_steps >= 1500
    assert returns[0] < dataset.episode_returns.min() <= dataset.episode_returns.max() < returns[1]
    assert costs[0] < dataset.episode_costs.min() <= dataset.episode_costs.max() < costs[1]
    assert np.abs(dataset.actions).max() <= 1.0
