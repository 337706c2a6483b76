"""Learning one part: from which data, and what the agent's file says of them."""

import dataclasses
import warnings

import numpy as np
import pytest

from trebi_gym.agents import TREBIAgent
from trebi_gym.commands.cli import main
from trebi_gym.commands.common import resolve_env, resolve_maximum
from trebi_gym.datasets import load, save
from trebi_gym.errors import ConfigError

NAME = "SafePendulum-medium-replay-v0"


@pytest.fixture
def saved(tiny_agent, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TREBI_DATA", str(tmp_path / "data"))
    return tiny_agent.save(tmp_path / "agent.zip")


def some(dataset, count, **metadata):
    """The first episodes of a data set, under the same name."""
    from trebi_gym.datasets import EpisodeDataset

    episodes = [dataset[index] for index in range(count)]
    return EpisodeDataset.from_episodes(episodes, {**dataset.metadata, **metadata})


def test_without_a_data_set_the_agents_own_is_taken(saved, tmp_path):
    main(
        [
            "learn-part",
            "cost_critic",
            "--agent",
            str(saved),
            "--total-steps",
            "2",
            "--output",
            str(tmp_path / "new"),
        ]
    )
    assert (tmp_path / "new.zip").is_file()
    assert not (tmp_path / "new").exists()
    assert TREBIAgent.load(tmp_path / "new.zip").learned_from == TREBIAgent.load(saved).learned_from


def test_a_name_that_stands_for_other_data_by_now_is_not_taken(saved, shipped_dataset, tmp_path, capsys):
    agent = TREBIAgent.load(saved)
    agent.learn(some(shipped_dataset, 5), total_steps=4, progress_bar=False)
    agent.save(saved)
    before = saved.read_bytes()
    with pytest.raises(SystemExit):
        main(["learn-part", "cost_critic", "--agent", str(saved), "--total-steps", "2"])
    said = capsys.readouterr().err
    assert "of 5 episodes and 1000 steps, but that name stands for 100 episodes" in said
    assert "pass --dataset FILE" in said
    assert saved.read_bytes() == before


def test_a_part_that_learns_from_other_data_is_told_apart_and_warned_of(saved, shipped_dataset):
    agent = TREBIAgent.load(saved)
    whole = dict(agent.learned_from)
    other = some(shipped_dataset, 5, name="mine")
    with pytest.warns(
        UserWarning, match=r"cost_critic will learn from mine \(5 episodes, 1000 steps\), the agent's"
    ):
        agent.learn_cost_critic(other, total_steps=2, progress_bar=False)
    assert {key: agent.learned_from[key] for key in whole} == whole
    assert agent.learned_from["parts"]["cost_critic"]["name"] == "mine"
    again = TREBIAgent.load(agent.save(saved))
    assert again.learned_from == agent.learned_from
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.learn_cost_critic(shipped_dataset, total_steps=2, progress_bar=False)
    assert again.learned_from == whole


def free(observation, action, next_observation, info):
    return np.zeros(np.shape(action)[:-1])


def test_an_agent_of_replaced_costs_is_not_scored_by_the_costs_of_the_task(tiny_config, tmp_path):
    replaced = load(NAME, cost=free)
    agent = TREBIAgent(config=tiny_config, device="cpu", seed=0)
    agent.learn(replaced, total_steps=4, progress_bar=False)
    agent = TREBIAgent.load(agent.save(tmp_path / "a.zip"))
    with pytest.raises(
        ConfigError, match="learned from costs that free gave, and SafePendulum-v0 reports its own"
    ):
        resolve_env(agent)
    with pytest.raises(
        ConfigError, match=r"give the maximum budget 0\.0, so that every ratio would be the same"
    ):
        resolve_maximum(agent, None)


def test_data_of_another_name_and_the_same_numbers_are_kept_as_they_are(tmp_path, shipped_dataset):
    counted = dataclasses.replace(shipped_dataset, rewards=np.arange(20_000) + 2**24)
    assert counted.rewards.dtype == np.float64
    save(counted, tmp_path / "a.hdf5")
    np.testing.assert_array_equal(load(tmp_path / "a.hdf5").rewards, counted.rewards)


def test_a_log_folder_that_is_a_file_is_refused_before_learning(saved, tmp_path, capsys):
    (tmp_path / "log").write_text("")
    arguments = ["--agent", str(saved), "--log-folder", str(tmp_path / "log"), "--total-steps", "2"]
    with pytest.raises(SystemExit):
        main(["learn-part", "cost_critic", *arguments])
    assert "the training log needs a folder, and" in capsys.readouterr().err
