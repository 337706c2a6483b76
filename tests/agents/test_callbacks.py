"""Stable-Baselines3's own callbacks while learning: those that make sense work, the others are refused at the start."""

import csv

import gymnasium as gym
import pytest
from stable_baselines3.common import callbacks as sb3
from stable_baselines3.common.logger import configure
from toy_envs import register_toy_envs

from trebi_gym.agents import TREBIAgent
from trebi_gym.errors import ConfigError

register_toy_envs()


def learn(dataset, config, callback, env=None, **options):
    agent = TREBIAgent(env, config, device="cpu", seed=0)
    return agent.learn(dataset, callback=callback, progress_bar=False, **options)


@pytest.fixture(params=["no environment", "one", "four"])
def env(request):
    """What the agent was made with must not change how often callbacks count."""
    if request.param == "no environment":
        yield None
        return
    make = gym.make if request.param == "one" else lambda name: gym.make_vec(name, num_envs=4)
    made = make("SafePendulum-v0")
    yield made
    made.close()


def test_a_progress_bar_counts_optimiser_steps(shipped_dataset, tiny_config, env):
    pytest.importorskip("rich", reason="ProgressBarCallback needs rich")
    bar = sb3.ProgressBarCallback()
    agent = learn(shipped_dataset, tiny_config, bar, env)
    assert (bar.pbar.n, bar.pbar.total) == (100, 100)
    assert agent.get_env() is env


def test_a_progress_bar_of_a_resumed_run_counts_what_is_left(shipped_dataset, tiny_config, tmp_path):
    pytest.importorskip("rich", reason="ProgressBarCallback needs rich")
    stopped = learn(shipped_dataset, tiny_config, lambda local, _: local["self"].num_timesteps < 30)
    bar = sb3.ProgressBarCallback()
    learn(shipped_dataset, tiny_config, bar, resume_from=stopped.save(tmp_path / "a"))
    assert (bar.pbar.n, bar.pbar.total) == (70, 70)


def test_a_log_every_so_many_steps_holds_what_was_measured(shipped_dataset, tiny_config, env, tmp_path):
    agent = TREBIAgent(env, tiny_config, device="cpu", seed=0)
    agent.set_logger(configure(str(tmp_path), ["csv"]))
    agent.learn(shipped_dataset, callback=sb3.LogEveryNTimesteps(15), log_interval=None, progress_bar=False)
    agent.logger.close()
    lines = list(csv.DictReader((tmp_path / "progress.csv").open()))
    assert [line["diffusion/step"] for line in lines if line["diffusion/step"]] == ["15", "30"]
    assert [line["reward_critic/step"] for line in lines if line["reward_critic/step"]] == ["5", "20"]
    assert len(lines) == 6
    assert all(float(line["diffusion/loss"]) > 0 for line in lines[:2])


def test_copies_with_what_normalises_an_environment_hold_the_agent(
    shipped_dataset, tiny_config, env, tmp_path
):
    callback = sb3.CheckpointCallback(50, str(tmp_path), save_vecnormalize=True, save_replay_buffer=True)
    learn(shipped_dataset, tiny_config, callback, env)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["rl_model_100_steps.zip", "rl_model_50_steps.zip"]
    assert set(TREBIAgent.load(tmp_path / names[1], device="cpu").models) == {"diffusion"}


def test_events_lists_and_functions_work_together(shipped_dataset, tiny_config, env):
    seen = []
    inner = sb3.ConvertCallback(lambda local, _: seen.append(local["self"].num_timesteps) or True)
    stopping = sb3.ConvertCallback(lambda local, _: local["self"].num_timesteps < 60)
    every = sb3.EveryNTimesteps(20, sb3.CallbackList([inner]))
    agent = learn(shipped_dataset, tiny_config, sb3.CallbackList([every, stopping]), env)
    assert seen == [20, 40, 60]
    assert agent.num_timesteps == 60


def evaluating():
    return sb3.EvalCallback(gym.make("SafePendulum-v0"), eval_freq=10)


@pytest.mark.parametrize(
    "make",
    [
        evaluating,
        lambda: [evaluating()],
        lambda: sb3.EveryNTimesteps(5, evaluating()),
        lambda: sb3.CallbackList([sb3.CallbackList([evaluating()])]),
    ],
)
def test_an_evaluation_while_learning_is_refused_before_anything_is_learned(
    shipped_dataset, tiny_config, make
):
    agent = TREBIAgent(None, tiny_config, device="cpu", seed=0)
    with pytest.raises(ConfigError, match=r"EvalCallback cannot be used while learning: .*evaluate it after"):
        agent.learn(shipped_dataset, callback=make(), progress_bar=False)
    assert agent.models == {}
    assert agent.num_timesteps == 0


def test_a_limit_of_episodes_is_refused(shipped_dataset, tiny_config):
    with pytest.raises(ConfigError, match="learning from logged episodes ends none; give learn total_steps"):
        learn(shipped_dataset, tiny_config, sb3.StopTrainingOnMaxEpisodes(3))


@pytest.mark.parametrize("callback", [3, "print", [lambda local, _: True], [None]])
def test_what_is_no_callback_is_refused(shipped_dataset, tiny_config, callback):
    with pytest.raises(ConfigError, match="callback must be a BaseCallback"):
        learn(shipped_dataset, tiny_config, callback)


class Looking(sb3.BaseCallback):
    """Keeps what a callback can ask the model for."""

    def _on_training_start(self):
        self.spec = self.training_env.spec

    def _on_step(self):
        return False


def test_the_environment_that_an_agent_was_made_with_can_be_asked_for(shipped_dataset, tiny_config):
    with gym.make("SafePendulum-v0") as env:
        looking = Looking()
        learn(shipped_dataset, tiny_config, looking, env)
        assert looking.spec is env.spec
    with pytest.raises(AttributeError, match="learning from logged episodes has no environment, so no spec"):
        learn(shipped_dataset, tiny_config, Looking())
