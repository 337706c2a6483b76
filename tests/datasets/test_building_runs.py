"""Data sets of training runs: which algorithm, which hyperparameters, and going on after a crash."""

import json

import numpy as np
import pytest
import torch
from stable_baselines3.common.noise import NormalActionNoise
from toy_envs import register_toy_envs

from trebi_gym.datasets.generation.algorithms import ALGORITHMS, check_hyperparameters, make_model
from trebi_gym.datasets.generation.generate import generate
from trebi_gym.datasets.generation.resumable import Parts
from trebi_gym.datasets.generation.step_recorder import StepRecorder
from trebi_gym.datasets.generation.training_run import acting_weights, record_training, refill
from trebi_gym.errors import DatasetError, EnvironmentContractError

gym = pytest.importorskip("gymnasium")
register_toy_envs()
SMALL = {"policy_kwargs": {"net_arch": [8]}}
LEARNS = {
    "sac": {**SMALL, "learning_starts": 20, "batch_size": 16},
    "td3": {**SMALL, "learning_starts": 20, "batch_size": 16},
    "ddpg": {**SMALL, "learning_starts": 20, "batch_size": 16},
    "ppo": {**SMALL, "n_steps": 32, "batch_size": 16},
    "a2c": {**SMALL, "n_steps": 8},
}


class Killed(Exception):
    """Stands for a process that ends at once."""


def killed_after(steps):
    """A progress callback that ends the run at a step."""
    done = []

    def progress(number):
        done.append(number)
        if sum(done) >= steps:
            raise Killed

    return progress


def record(folder, algo="sac", steps=160, **kwargs):
    parts = Parts(folder, {}, resume=True)
    options = {"hyperparameters": LEARNS[algo], "snapshots": 20, "parts": parts, "save_every": 20} | kwargs
    return record_training("Ledger-v0", steps=steps, seed=3, algo=algo, **options)


def weights_of(model):
    return torch.cat([weight.flatten() for weight in model.policy.state_dict().values()])


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_algorithm_trains_and_its_executed_steps_are_recorded(algo):
    dataset = record_training("Ledger-v0", steps=64, seed=0, algo=algo, hyperparameters=LEARNS[algo]).dataset
    assert dataset.n_steps == 60
    assert dataset.metadata["dropped_steps"] == 4
    assert dataset.metadata["algorithm"] == f"stable_baselines3.{algo.upper()}"
    assert dataset.metadata["steps_per_second"] > 0
    assert dataset.metadata["hyperparameters"]["policy_kwargs"] == {"net_arch": [8]}
    assert np.abs(dataset.actions).max() <= 2.0
    np.testing.assert_allclose(dataset.costs, 2.0 + dataset.actions[:, 0], rtol=1e-6)
    for episode in dataset:
        np.testing.assert_allclose(episode.observations[1:, 1], episode.actions[:, 0])


def test_a_run_of_rollouts_finishes_the_last_one_and_says_how_long_it_was():
    dataset = record_training(
        "Ledger-v0", steps=50, seed=0, algo="ppo", hyperparameters=LEARNS["ppo"]
    ).dataset
    assert dataset.metadata["training_steps"] == 64
    assert dataset.n_steps == 60


@pytest.mark.parametrize("datatype", ["medium", "expert", "medium-expert", "medium-replay"])
def test_ppo_gives_every_kind_of_data_set(datatype):
    dataset = generate(
        "Ledger-v0", datatype, steps=40, seed=0, algo="ppo", training_steps=96, hyperparameters=LEARNS["ppo"]
    )
    assert dataset.n_steps == 40
    assert dataset.metadata["algorithm"] == "stable_baselines3.PPO"
    assert dataset.metadata["training_steps"] == 96


def test_a_medium_expert_is_half_medium_and_half_expert():
    def make(datatype, steps):
        return generate(
            "Ledger-v0", datatype, steps=steps, seed=0, training_steps=200, hyperparameters=LEARNS["sac"]
        )

    both, medium = make("medium-expert", 60), make("medium", 30)
    first, second = both.metadata["policies"]
    assert first["steps"] == second["steps"] == 30
    assert first["weight"] == second["weight"] == 0.5
    assert first["policy_step"] == medium.metadata["policy_step"] < second["policy_step"] == 200
    np.testing.assert_array_equal(both.actions[:30], medium.actions)
    assert both.metadata["name"] == "Ledger-medium-expert-v0"


def test_the_medium_policy_is_the_one_that_the_run_had_at_its_step():
    found = record_training("Ledger-v0", steps=100, seed=0, hyperparameters=LEARNS["sac"], snapshots=100)
    step, weights = found.medium_policy()
    shorter = record_training("Ledger-v0", steps=step - 1, seed=0, hyperparameters=LEARNS["sac"])
    assert 0 < step < 100
    same = acting_weights(shorter.model.policy)
    assert set(weights) == set(same)
    assert all(name.startswith("actor.") for name in weights)
    assert all(torch.equal(weights[name], same[name]) for name in weights)


def test_a_run_without_kept_policies_has_no_medium_one():
    with pytest.raises(DatasetError, match="snapshots=100"):
        record_training("Ledger-v0", steps=40, seed=0, hyperparameters=LEARNS["sac"]).medium_policy()


@pytest.mark.parametrize(
    ("algo", "given", "message"),
    [
        ("sac", {"leaning_rate": 1}, "SAC has no hyperparameter leaning_rate; it has .*learning_rate"),
        ("ppo", {"buffer_size": 5, "tau": 1}, "PPO has no hyperparameter buffer_size, tau; it has "),
        ("sac", {"seed": 5}, "SAC has no hyperparameter seed"),
        ("sac", {"batch_size": "large"}, "batch_size of SAC must be a number; got 'large'"),
        ("sac", {"batch_size": True}, "batch_size of SAC must be a number; got True"),
        ("sac", {"batch_size": 0}, "batch_size of SAC must be positive; got 0"),
        ("sac", {"learning_rate": -1e-3}, "learning_rate of SAC must be positive; got -0.001"),
        ("sac", {"use_sde": "false"}, "use_sde of SAC must be true or false; got 'false'"),
        ("sac", {"train_freq": [1, "minute"]}, "SAC cannot be made with .*minute"),
        ("sac", {"policy_kwargs": {"net_arc": [8]}}, "SAC cannot be made with .*net_arc"),
        (
            "sac",
            {"policy_kwargs": {"activation_fn": "Tahn"}},
            "activation_fn must be the name of a class in torch.nn",
        ),
        (
            "sac",
            {"policy_kwargs": {"activation_fn": "functional"}},
            "activation_fn must be the name of a class",
        ),
        ("dqn", {}, "the algorithm must be one of sac, td3, ppo, ddpg, a2c; got 'dqn'"),
    ],
)
def test_hyperparameters_that_cannot_work_are_refused_by_name(algo, given, message):
    with pytest.raises(DatasetError, match=message):
        record_training("Ledger-v0", steps=20, seed=0, algo=algo, hyperparameters=given)


def test_unknown_hyperparameters_are_found_before_anything_is_made(monkeypatch):
    monkeypatch.setattr(gym, "make", lambda *_, **__: pytest.fail("an environment was made"))
    with pytest.raises(DatasetError, match="no hyperparameter"):
        generate("Ledger-v0", "medium", steps=5, seed=0, hyperparameters={"nonsense": 1})


def test_plain_json_becomes_what_the_algorithm_takes():
    env = StepRecorder(gym.make("Ledger-v0"))
    given = json.loads(
        '{"train_freq": [2, "episode"], "policy_kwargs": {"net_arch": [5], "activation_fn": "ELU"}}'
    )
    model = make_model("td3", env, 0, given)
    assert (model.train_freq.frequency, model.train_freq.unit.value) == (2, "episode")
    assert [type(layer).__name__ for layer in model.actor.mu][:2] == ["Linear", "ELU"]
    assert model.actor.mu[0].out_features == 5
    assert given == {"train_freq": [2, "episode"], "policy_kwargs": {"net_arch": [5], "activation_fn": "ELU"}}


@pytest.mark.parametrize("algo", ["td3", "ddpg"])
def test_a_policy_that_draws_nothing_explores_by_noise_unless_told_otherwise(algo):
    env = StepRecorder(gym.make("Ledger-v0"))
    for given, sigma in (({}, 0.1), ({"action_noise": 0.3}, 0.3)):
        noise = make_model(algo, env, 0, given).action_noise
        assert isinstance(noise, NormalActionNoise)
        np.testing.assert_allclose(noise._sigma, [sigma])
    assert make_model(algo, env, 0, {"action_noise": None}).action_noise is None
    check_hyperparameters(algo, {"action_noise": noise})


def test_an_environment_with_other_spaces_is_refused_before_training():
    with pytest.raises(EnvironmentContractError, match="needs a Box action space"):
        record_training("CartPole-v1", steps=20, seed=0, algo="ppo")


@pytest.mark.parametrize("algo", ["sac", "td3", "ppo"])
def test_a_killed_run_goes_on_from_its_last_state_to_its_full_length(algo, tmp_path):
    with pytest.raises(Killed):
        record(tmp_path, algo, progress=killed_after(75))
    kept = Parts(tmp_path, {}, resume=True).read_state()
    counted = []
    whole = record(tmp_path, algo, progress=counted.append)
    assert 0 < kept["num_timesteps"] <= 75
    assert counted[0] == kept["num_timesteps"]
    assert sum(counted) == whole.model.num_timesteps == whole.dataset.metadata["training_steps"]
    assert whole.dataset.metadata["resumed_at_steps"] == [kept["num_timesteps"]]
    assert whole.dataset.n_steps + whole.dataset.metadata.get("dropped_steps", 0) == whole.model.num_timesteps
    assert whole.dataset.n_steps >= 150
    assert [step for step, _ in whole.policies] == list(range(8, 161, 8))
    assert whole.ends[-1] <= whole.model.num_timesteps
    assert len(whole.ends) == len(whole.dataset)


@pytest.mark.parametrize("algo", ["sac", "td3", "ppo"])
def test_what_a_killed_run_kept_is_taken_up_to_the_last_number(algo, tmp_path, monkeypatch):
    taken = {}

    def stop(model, *_, **__):
        taken["model"] = model
        raise Killed

    with pytest.raises(Killed):
        record(tmp_path, algo, progress=killed_after(75))
    state = Parts(tmp_path, {}, resume=True).read_state()
    from stable_baselines3.common.base_class import BaseAlgorithm

    monkeypatch.setattr(type(make_model(algo, gym.make("Ledger-v0"), 0, LEARNS[algo])), "learn", stop)
    with pytest.raises(Killed):
        record(tmp_path, algo)
    model = taken["model"]
    assert isinstance(model, BaseAlgorithm)
    assert (model.num_timesteps, model._n_updates) == (state["num_timesteps"], state["n_updates"])
    assert model._n_updates > 0
    found, expected = model.get_parameters(), state["parameters"]
    assert set(found) == set(expected)
    for name in found:
        if name.endswith("optimizer"):
            moments = found[name]["state"]
            assert moments
            for key, values in moments.items():
                for kind, value in values.items():
                    assert torch.equal(value, expected[name]["state"][key][kind])
        else:
            assert all(torch.equal(found[name][key], expected[name][key]) for key in found[name])
    if algo == "sac":
        assert torch.equal(model.log_ent_coef, state["log_ent_coef"])
        assert float(model.log_ent_coef.detach()) != 0.0


def test_the_replay_buffer_is_filled_again_with_what_was_in_it(tmp_path):
    hyperparameters = {**LEARNS["sac"], "buffer_size": 1000}
    ran = record_training("LedgerEarly-v0", steps=60, seed=0, hyperparameters=hyperparameters)
    buffer, steps = ran.model.replay_buffer, ran.dataset.n_steps
    again = make_model("sac", gym.make("LedgerEarly-v0"), 5, hyperparameters)
    refill(again, list(ran.dataset))
    assert again.replay_buffer.pos == steps
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        np.testing.assert_allclose(
            getattr(again.replay_buffer, name)[:steps], getattr(buffer, name)[:steps], atol=1e-5, err_msg=name
        )
    assert np.abs(again.replay_buffer.actions).max() <= 1.0
    assert not buffer.timeouts[:steps].any()
    assert buffer.dones[:steps].sum() == len(ran.dataset)


def test_a_time_limit_is_told_from_an_end_when_the_buffer_is_filled_again():
    ran = record_training("Ledger-v0", steps=30, seed=0, hyperparameters=LEARNS["sac"])
    again = make_model("sac", gym.make("Ledger-v0"), 5, LEARNS["sac"])
    refill(again, list(ran.dataset))
    np.testing.assert_array_equal(again.replay_buffer.timeouts[:30], ran.model.replay_buffer.timeouts[:30])
    assert again.replay_buffer.timeouts[:30].sum() == 6


def test_a_buffer_that_is_too_small_gets_the_latest_steps():
    ran = record_training("Ledger-v0", steps=60, seed=0, hyperparameters=LEARNS["sac"])
    again = make_model("sac", gym.make("Ledger-v0"), 5, {**LEARNS["sac"], "buffer_size": 20})
    refill(again, list(ran.dataset))
    assert again.replay_buffer.full
    np.testing.assert_allclose(sorted(again.replay_buffer.rewards[:, 0]), sorted(ran.dataset.rewards[-20:]))


def test_a_run_that_goes_on_does_not_repeat_the_draws_that_it_began_with(tmp_path):
    with pytest.raises(Killed):
        record(tmp_path, progress=killed_after(45))
    dataset = record(tmp_path).dataset
    assert len({float(episode.observations[0, 2]) for episode in dataset}) == len(dataset)
    assert len(np.unique(dataset.actions)) == dataset.n_steps


def test_a_run_that_is_killed_twice_still_ends(tmp_path):
    for steps in (45, 110):
        with pytest.raises(Killed):
            record(tmp_path, progress=killed_after(steps))
    dataset = record(tmp_path).dataset
    assert dataset.n_steps == 160
    assert len(dataset.metadata["resumed_at_steps"]) == 2


def test_a_finished_run_is_used_again_without_training_whenever_its_last_episode_ended(tmp_path, monkeypatch):
    for steps in (160, 163):  # 163: nothing new was recorded since the last state, and yet it has learned
        folder = tmp_path / str(steps)
        ran = record(folder, steps=steps)
        counted = []
        again = record(folder, steps=steps, progress=counted.append)
        assert torch.equal(weights_of(ran.model), weights_of(again.model))
        assert counted == [steps]
        assert "resumed_at_steps" not in again.dataset.metadata
        np.testing.assert_array_equal(ran.dataset.actions, again.dataset.actions)


def test_keeping_states_does_not_change_the_run(tmp_path):
    kept = record(tmp_path)
    free = record_training("Ledger-v0", steps=160, seed=3, hyperparameters=LEARNS["sac"])
    np.testing.assert_array_equal(kept.dataset.actions, free.dataset.actions)
    assert torch.equal(weights_of(kept.model), weights_of(free.model))


def test_all_kinds_are_made_of_one_run_that_is_kept(tmp_path, monkeypatch):
    def make(datatype, steps, **kwargs):
        return generate(
            "Ledger-v0",
            datatype,
            steps=steps,
            seed=1,
            training_steps=120,
            hyperparameters=LEARNS["sac"],
            run_folder=tmp_path / "run",
            **kwargs,
        )

    replay = make("medium-replay", 120)
    import stable_baselines3

    monkeypatch.setattr(stable_baselines3.SAC, "learn", lambda *_, **__: pytest.fail("it was trained again"))
    part = make("medium-replay", 40)
    np.testing.assert_array_equal(part.actions, replay.actions[:40])
    assert part.metadata["statistics"]["steps"] == 40
    expert, both = make("expert", 20), make("medium-expert", 40)
    assert expert.metadata["policy_step"] == both.metadata["policies"][1]["policy_step"] == 120
    with pytest.raises(DatasetError, match=r"belongs to another request: hyperparameters was .* and is .*"):
        generate("Ledger-v0", "expert", steps=5, seed=1, training_steps=120, run_folder=tmp_path / "run")
    with pytest.raises(DatasetError, match="150 are asked for, and training_steps is 120"):
        make("medium-replay", 150)
