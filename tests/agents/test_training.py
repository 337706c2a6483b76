"""Learning: the same under one seed, resumed to the very same weights, with Stable-Baselines3's callbacks and logs."""

import csv
import math
import re
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from stable_baselines3.common.logger import configure
from torch import nn

from trebi_gym.agents import PRESETS, TrainingConfig, TREBIAgent, preset
from trebi_gym.agents.calibration.fingerprints import episode_marks
from trebi_gym.agents.models import EVERY_PART, check_horizon, described, noted
from trebi_gym.agents.training.loop import share_steps
from trebi_gym.agents.training.trainer import Fit
from trebi_gym.commands.cli import main
from trebi_gym.commands.paper_stages import StageArguments, train_stage
from trebi_gym.datasets import EpisodeDataset, save
from trebi_gym.errors import CheckpointError, ConfigError, DatasetError

STEPS = {"diffusion": 40, "reward_critic": 20, "cost_critic": 20, "outcome_critic": 20}  # of tiny_config


def make_agent(config, seed=0, **options):
    return TREBIAgent(config=config, device="cpu", seed=seed, **options)


def weights(agent):
    return {
        f"{part}.{name}": value
        for part in agent.models
        for name, value in agent.models[part].state_dict().items()
    }


def assert_same_weights(first, second):
    first, second = weights(first), weights(second)
    assert first.keys() == second.keys()
    assert first
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def stop_at(step):
    return lambda local, _: local["self"].num_timesteps < step


def test_two_identical_runs_give_identical_weights(shipped_dataset, tiny_config, tiny_agent):
    again = make_agent(tiny_config).learn(shipped_dataset, progress_bar=False)
    assert_same_weights(again, tiny_agent)
    observation = shipped_dataset.observations[:5]
    for agent in (again, tiny_agent):
        agent.set_random_seed(9)
    np.testing.assert_array_equal(
        again.predict(observation, budget=20.0)[0], tiny_agent.predict(observation, budget=20.0)[0]
    )


def test_learning_does_not_depend_on_and_does_not_touch_the_global_random_state(
    shipped_dataset, tiny_config, tiny_agent
):
    torch.manual_seed(1234)
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    again = make_agent(tiny_config).learn(shipped_dataset, progress_bar=False)
    assert_same_weights(again, tiny_agent)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_another_seed_gives_other_weights(shipped_dataset, tiny_config, tiny_agent):
    other = make_agent(tiny_config, seed=1).learn_cost_critic(shipped_dataset, progress_bar=False)
    mine = weights(other)
    assert any(not torch.equal(value, weights(tiny_agent)[name]) for name, value in mine.items())


@pytest.mark.parametrize("part", EVERY_PART)
def test_a_part_learned_alone_is_the_part_that_learn_makes(shipped_dataset, tiny_config, tiny_agent, part):
    alone = make_agent(tiny_config)
    getattr(alone, f"learn_{part}")(shipped_dataset, progress_bar=False)
    assert list(alone.models) == [part]
    for name, value in weights(alone).items():
        assert torch.equal(value, weights(tiny_agent)[name]), name


@pytest.mark.parametrize("step", [1, 17, 40, 41, 55, 79, 80, 81, 93, 99, 100])
def test_a_run_that_was_stopped_and_resumed_gives_exactly_the_uninterrupted_weights(
    shipped_dataset, tiny_config, tiny_agent, tmp_path, step
):
    stopped = make_agent(tiny_config).learn(shipped_dataset, callback=stop_at(step), progress_bar=False)
    assert stopped.num_timesteps == step
    path = stopped.save(tmp_path / "part")
    resumed = make_agent(tiny_config)
    counted = []
    resumed.learn(
        shipped_dataset,
        callback=lambda local, _: counted.append(local["self"].num_timesteps) or True,
        progress_bar=False,
        resume_from=path,
    )
    assert_same_weights(resumed, tiny_agent)
    assert counted == list(range(step + 1, 101))


def test_a_run_can_be_stopped_and_resumed_more_than_once(shipped_dataset, tiny_config, tiny_agent, tmp_path):
    agent = make_agent(tiny_config).learn(shipped_dataset, callback=stop_at(10), progress_bar=False)
    for step in (25, 50, 70):
        path = agent.save(tmp_path / f"at_{step}")
        agent = make_agent(tiny_config).learn(
            shipped_dataset, callback=stop_at(step), progress_bar=False, resume_from=path
        )
    path = agent.save(tmp_path / "last")
    agent.learn(shipped_dataset, progress_bar=False, resume_from=path)
    assert_same_weights(agent, tiny_agent)


@pytest.mark.parametrize("step", [13, 26])
@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate_schedule": "cosine", "accumulation": 2},
        {"ema_start": 20, "ema_every": 3, "ema_decay": 0.8},
    ],
)
def test_a_falling_learning_rate_and_a_running_average_are_resumed_exactly_too(
    shipped_dataset, tiny_config, tmp_path, changes, step
):
    config = tiny_config.replace(denoiser_training=changes)
    whole = make_agent(config).learn_diffusion(shipped_dataset, progress_bar=False)
    stopped = make_agent(config).learn_diffusion(shipped_dataset, callback=stop_at(step), progress_bar=False)
    resumed = make_agent(config).learn_diffusion(
        shipped_dataset, progress_bar=False, resume_from=stopped.save(tmp_path / "a")
    )
    assert_same_weights(resumed, whole)


def test_what_was_stopped_is_saved_and_loaded_as_it_was(shipped_dataset, tiny_config, tmp_path):
    stopped = make_agent(tiny_config).learn(shipped_dataset, callback=stop_at(70), progress_bar=False)
    assert_same_weights(TREBIAgent.load(stopped.save(tmp_path / "a"), device="cpu"), stopped)


def test_a_run_of_other_episodes_is_refused_without_a_list_of_all_their_fingerprints(
    shipped_dataset, tiny_config, tmp_path
):
    stopped = make_agent(tiny_config).learn(shipped_dataset, callback=stop_at(70), progress_bar=False)
    marks = stopped.learned_from["marks"]
    assert marks == episode_marks(shipped_dataset)
    path = stopped.save(tmp_path / "run")
    with pytest.raises(CheckpointError, match="its learned_from differ") as refused:
        make_agent(tiny_config).learn(shipped_dataset.select(range(50)), progress_bar=False, resume_from=path)
    assert marks[0] not in str(refused.value)


def test_a_part_of_an_agent_from_before_episodes_were_marked_learns_the_same_data_without_a_warning(
    shipped_dataset,
):
    now = described(shipped_dataset)
    before = {key: value for key, value in now.items() if key != "marks"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert noted(before, shipped_dataset, ["cost_critic"], whole=False) == before
    with pytest.warns(UserWarning, match="normalisers and budgets are those of"):
        kept = noted(now | {"marks": ["0" * 12]}, shipped_dataset, ["cost_critic"], whole=False)
    assert kept["parts"]["cost_critic"]["marks"] == now["marks"]


def test_resuming_refuses_what_belongs_to_something_else(shipped_dataset, tiny_config, tiny_agent, tmp_path):
    path = (
        make_agent(tiny_config)
        .learn(shipped_dataset, callback=stop_at(10), progress_bar=False)
        .save(tmp_path / "run")
    )
    finished = tiny_agent.save(tmp_path / "finished")

    def resume(agent, dataset, source=path, method="learn"):
        getattr(agent, method)(dataset, progress_bar=False, resume_from=source)

    with pytest.raises(CheckpointError, match="its config differ"):
        resume(make_agent(tiny_config.replace(discount=0.9)), shipped_dataset)
    with pytest.raises(CheckpointError, match="its seed differ"):
        resume(make_agent(tiny_config, seed=1), shipped_dataset)
    with pytest.raises(CheckpointError, match="its learned_from differ"):
        resume(make_agent(tiny_config), shipped_dataset.select(range(50)))
    with pytest.raises(CheckpointError, match="learned from other episodes"):
        resume(make_agent(tiny_config), shipped_dataset.select([0, *range(99)]))
    with pytest.raises(
        CheckpointError,
        match="was saved while learning diffusion, reward_critic, cost_critic, outcome_critic, not",
    ):
        resume(make_agent(tiny_config), shipped_dataset, method="learn_cost_critic")
    with pytest.raises(CheckpointError, match=r"no unfinished learning run; load it with TREBIAgent.load"):
        resume(make_agent(tiny_config), shipped_dataset, finished)
    with pytest.raises(CheckpointError, match="there is no saved agent at"):
        resume(make_agent(tiny_config), shipped_dataset, tmp_path / "nothing.zip")


class Counting(BaseCallback):
    """Keeps what Stable-Baselines3's callbacks are told."""

    def __init__(self, limit=math.inf):
        super().__init__()
        self.limit, self.started, self.ended, self.steps = limit, 0, 0, []

    def _on_training_start(self):
        self.started += 1
        assert self.locals["dataset"].n_steps == 20_000

    def _on_step(self):
        self.steps.append((self.n_calls, self.num_timesteps, self.model.num_timesteps))
        self.logger.record("mine/steps", self.num_timesteps)
        return self.num_timesteps < self.limit

    def _on_training_end(self):
        self.ended += 1


def test_a_callback_of_stable_baselines_is_called_once_a_step_and_can_end_learning(
    shipped_dataset, tiny_config
):
    callback = Counting(limit=45)
    agent = make_agent(tiny_config).learn(shipped_dataset, callback=callback, progress_bar=False)
    assert callback.steps == [(step, step, step) for step in range(1, 46)]
    assert (callback.started, callback.ended) == (1, 1)
    assert list(agent.models) == ["diffusion", "reward_critic"]
    assert agent.num_timesteps == 45


def test_several_callbacks_and_a_function_work_together(shipped_dataset, tiny_config, tmp_path):
    first, second = Counting(), CheckpointCallback(30, str(tmp_path / "copies"), name_prefix="agent")
    make_agent(tiny_config).learn(shipped_dataset, callback=[first, second], progress_bar=False)
    assert len(first.steps) == 100
    names = sorted(path.name for path in (tmp_path / "copies").iterdir())
    assert names == ["agent_30_steps.zip", "agent_60_steps.zip", "agent_90_steps.zip"]


def test_a_copy_of_a_checkpoint_callback_resumes_to_the_uninterrupted_weights(
    shipped_dataset, tiny_config, tiny_agent, tmp_path
):
    callback = CheckpointCallback(25, str(tmp_path), name_prefix="agent")
    make_agent(tiny_config).learn(shipped_dataset, callback=callback, progress_bar=False)
    for step in (25, 50, 75):
        resumed = make_agent(tiny_config).learn(
            shipped_dataset, progress_bar=False, resume_from=tmp_path / f"agent_{step}_steps.zip"
        )
        assert_same_weights(resumed, tiny_agent)


def test_a_log_is_written_as_csv_and_as_tensorboard_events(shipped_dataset, tiny_config, tmp_path):
    agent = make_agent(tiny_config, tensorboard_log=tmp_path)
    agent.learn(shipped_dataset, callback=Counting(), log_interval=10, progress_bar=False)
    agent.logger.close()
    lines = list(csv.DictReader((tmp_path / "progress.csv").open()))
    assert [int(line["diffusion/step"]) for line in lines if line["diffusion/step"]] == [10, 20, 30, 40]
    assert [int(line["cost_critic/step"]) for line in lines if line["cost_critic/step"]] == [10, 20]
    assert all(float(line["diffusion/loss"]) > 0 for line in lines if line["diffusion/loss"])
    assert 70 < int(lines[-1]["mine/steps"]) <= 100
    assert float(lines[-1]["time/steps_per_second"]) > 0
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1


def test_a_logger_of_ones_own_is_used(shipped_dataset, tiny_config, tmp_path):
    agent = make_agent(tiny_config)
    agent.set_logger(configure(str(tmp_path), ["json"]))
    agent.learn_cost_critic(shipped_dataset, log_interval=20, progress_bar=False)
    agent.logger.close()
    assert "cost_critic/loss" in (tmp_path / "progress.json").read_text()


def test_nothing_is_printed_or_written_unless_asked(
    shipped_dataset, tiny_config, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    make_agent(tiny_config).learn_cost_critic(shipped_dataset, progress_bar=False)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
    assert list(tmp_path.iterdir()) == []


def test_the_progress_bar_counts_every_step(shipped_dataset, tiny_config, capsys):
    make_agent(tiny_config).learn(shipped_dataset)
    assert "100/100" in capsys.readouterr().err


def test_total_steps_are_shared_as_the_configuration_does(shipped_dataset, tiny_config):
    callback = Counting()
    agent = make_agent(tiny_config).learn(shipped_dataset, 10, callback=callback, progress_bar=False)
    assert len(callback.steps) == 10
    assert list(agent.models) == list(EVERY_PART)
    assert (
        make_agent(tiny_config)
        .learn_diffusion(shipped_dataset, total_steps=5, progress_bar=False)
        .num_timesteps
        == 5
    )


@pytest.mark.parametrize("total", [4, 8, 10, 29, 30, np.int64(31)])
def test_as_many_steps_are_done_as_were_asked_for_also_when_resumed(
    shipped_dataset, tiny_config, tmp_path, total
):
    agent = make_agent(tiny_config).learn(shipped_dataset, total, progress_bar=False)
    assert agent.num_timesteps == total
    stopped = make_agent(tiny_config).learn(shipped_dataset, total, callback=stop_at(3), progress_bar=False)
    resumed = make_agent(tiny_config).learn(
        shipped_dataset, total, progress_bar=False, resume_from=stopped.save(tmp_path / "a")
    )
    assert resumed.num_timesteps == total
    assert_same_weights(resumed, agent)


@given(own=st.lists(st.integers(1, 10**6), min_size=1, max_size=4), total=st.integers(4, 10**7))
def test_steps_are_shared_to_the_last_one_by_the_largest_remainder(own, total):
    configs = {str(index): TrainingConfig(steps=steps) for index, steps in enumerate(own)}
    shares = share_steps(configs, total)
    assert sum(shares.values()) == total
    for steps, share in zip(own, shares.values(), strict=True):
        due = total * steps / sum(own)
        assert share >= 1
        # a model that is due less than one step takes one, from those with the most
        assert due - len(own) < share < due + 1 or share == 1
    assert share_steps(configs, sum(own)) == share_steps(configs, None) or sum(own) < len(own)


def test_the_shares_of_fast_are_written_out():
    fast = preset("fast")
    configs = {part: fast.training_of(part) for part in EVERY_PART}  # 8000, 4000, 4000 and 6000 of 22,000
    for total, shares in ((4, [1, 1, 1, 1]), (8, [3, 2, 1, 2]), (10, [3, 2, 2, 3]), (30, [11, 6, 5, 8])):
        assert list(share_steps(configs, total).values()) == shares


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"total_steps": 2.0}, "total_steps must be a whole number of at least 4"),
        ({"total_steps": 2}, "total_steps must be a whole number of at least 4"),
        ({"log_interval": 0}, "log_interval must be at least 1"),
    ],
)
def test_too_few_steps_are_refused(shipped_dataset, tiny_config, options, message):
    with pytest.raises(ConfigError, match=message):
        make_agent(tiny_config).learn(shipped_dataset, progress_bar=False, **options)


def test_learning_again_starts_from_the_beginning(shipped_dataset, tiny_config, tiny_agent):
    agent = make_agent(tiny_config).learn(shipped_dataset.select(range(30)), 12, progress_bar=False)
    agent.learn(shipped_dataset, progress_bar=False)
    assert_same_weights(agent, tiny_agent)
    assert agent.task == tiny_agent.task or agent.task.episode_length == tiny_agent.task.episode_length


def test_a_data_set_of_other_sizes_or_with_actions_outside_the_space_is_refused(shipped_dataset, tiny_config):
    agent = make_agent(tiny_config).learn_cost_critic(shipped_dataset, progress_bar=False)
    part = shipped_dataset.select(range(2))

    def changed(**arrays):
        names = ("observations", "actions", "rewards", "costs", "lengths", "terminated", "truncated")
        return EpisodeDataset(**{name: arrays.get(name, getattr(part, name)) for name in names})

    with pytest.raises(DatasetError, match="3 observation and 1 action dimensions; the data set has 3 and 2"):
        agent.learn(changed(actions=np.repeat(part.actions, 2, axis=1)), progress_bar=False)
    with pytest.raises(DatasetError, match="the data set has 2 and 1"):
        agent.learn(changed(observations=part.observations[:, :2]), progress_bar=False)
    actions = part.actions.copy()
    actions[7] = 2.5
    with pytest.raises(DatasetError, match=r"actions\[7, 0\] is 2.5, outside the action space \[-2.0, 2.0\]"):
        agent.learn(changed(actions=actions), progress_bar=False)
    with pytest.raises(DatasetError, match="no data set 'Nothing-v0'"):
        agent.learn("Nothing-v0", progress_bar=False)


def test_a_horizon_longer_than_the_episodes_is_refused(shipped_dataset, tiny_config):
    with pytest.raises(
        DatasetError, match=r"has 256 steps, but an episode of this data set has at most 200; plan 200: "
    ):
        make_agent(tiny_config.replace(horizon=256)).learn(shipped_dataset, progress_bar=False)


def of_length(length):
    rng = np.random.default_rng(0)
    return EpisodeDataset(
        observations=rng.normal(size=(2 * (length + 1), 3)),
        actions=rng.uniform(-1, 1, (2 * length, 1)),
        rewards=rng.normal(size=2 * length),
        costs=np.ones(2 * length),
        lengths=np.full(2, length),
        terminated=np.zeros(2, bool),
        truncated=np.ones(2, bool),
    )


@pytest.mark.parametrize("name", sorted(PRESETS))
@pytest.mark.parametrize("length", [1, 2, 7, 9, 16, 31])
def test_the_horizon_that_is_advised_for_short_episodes_can_be_taken(name, length):
    config, data = preset(name), of_length(length)
    with pytest.raises(
        DatasetError, match=f"a plan of this configuration has 32 steps, .* at most {length}"
    ) as refused:
        TREBIAgent(config=config, device="cpu").learn(data, progress_bar=False)
    advised = re.search(
        r"config.replace\(horizon=(\d+)\), or --horizon (\d+) of trebi learn", str(refused.value)
    )
    least = 8 if name in ("toy_safe_env", "locomotion") else 2
    if length < least:
        assert advised is None
        assert "no shorter plan goes with preset" in str(refused.value)
    else:
        assert int(advised[1]) == int(advised[2]) == length - length % (8 if least == 8 else 1)
        check_horizon(data, config.replace(horizon=int(advised[1])))


def test_the_advised_horizon_is_an_option_of_the_command_and_of_the_scripts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save(of_length(5), tmp_path / "short.hdf5")
    with pytest.raises(SystemExit):
        main(["learn", "--dataset", "short.hdf5", "--output", "a"])
    assert "--horizon 5 of trebi learn" in capsys.readouterr().err
    main(["learn", "--dataset", "short.hdf5", "--output", "a", "--horizon", "5", "--total-steps", "4"])
    assert TREBIAgent.load("a.zip").config.horizon == 5
    stage = StageArguments("short.hdf5", config="config.fast", horizon=5, total_steps=1)
    train_stage("cost_critic", stage)
    assert TREBIAgent.load("logs/short/fast/cost_critic.zip").config.horizon == 5


def test_what_cannot_be_learned_does_not_cost_what_was_learned(shipped_dataset, tiny_config):
    agent = make_agent(tiny_config).learn(shipped_dataset, 4, progress_bar=False)
    models = dict(agent.models)
    for wrong in ({"total_steps": 1}, {"log_interval": 0}, {"callback": 3}):
        with pytest.raises(ConfigError):
            agent.learn(shipped_dataset, progress_bar=False, **wrong)
    with pytest.raises(DatasetError):
        agent.learn(of_length(3), progress_bar=False)
    assert agent.models == models


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([5.0]))


def make_fit(**options):
    values = {"steps": 30, "batch_size": 1, "learning_rate": 0.1, "ema_start": 0, "ema_every": 1}
    model = Line()

    class Loss:
        def draw(self, generator):
            return (torch.randn(1, generator=generator),)

        def __call__(self, model, target):
            return ((model.weight - target) ** 2).sum(), {"weight": model.weight.detach()}

    return Fit(model, Loss(), TrainingConfig(**(values | options)), torch.Generator().manual_seed(0))


def test_the_average_copies_before_its_start_and_then_follows_every_so_many_steps():
    fit = make_fit(ema_decay=0.9, ema_start=6, ema_every=3)
    average, average_weight = None, fit.averaged.weight.item()
    for metrics in fit.run(20):
        taken, weight = metrics.step - 1, fit.model.weight.item()
        if taken % 3 == 0:
            average = weight if taken < 6 or average is None else 0.9 * average + 0.1 * weight
            if taken == 6:
                # the first update behind the start: a copy at step 3 followed by an average at step 6
                assert fit.averaged.weight.item() != weight
        assert fit.averaged.weight.item() == pytest.approx(average, rel=1e-5)
    assert average != average_weight


def test_gradients_are_averaged_over_the_accumulated_batches():
    single, double = make_fit(accumulation=1), make_fit(accumulation=2)
    next(single.run())
    next(double.run())
    noise = torch.randn(2, generator=torch.Generator().manual_seed(0))
    expected = 2 * (5.0 - noise).mean()
    assert float(double.model.weight.grad) == pytest.approx(float(expected), rel=1e-5)


def test_the_cosine_schedule_falls_from_the_whole_rate_to_nearly_zero():
    fit, rates = make_fit(learning_rate_schedule="cosine"), []
    for _ in fit.run():
        rates.append(fit._optimizer.param_groups[0]["lr"])
    assert rates[0] == 0.1
    assert (np.diff(rates) < 0).all()
    assert rates[-1] < 0.001


def test_a_state_of_another_network_is_refused():
    state = make_fit().state()
    state["model.weight"] = torch.zeros(3)
    with pytest.raises(CheckpointError, match="does not fit this agent's configuration"):
        make_fit().restore(state)
    with pytest.raises(CheckpointError, match="does not fit"):
        make_fit().restore({})


def test_resuming_with_another_number_of_steps_is_refused(shipped_dataset, tiny_config, tmp_path):
    path = (
        make_agent(tiny_config)
        .learn(shipped_dataset, total_steps=60, callback=stop_at(10), progress_bar=False)
        .save(tmp_path / "run")
    )
    with pytest.raises(ConfigError, match="begun with 60 steps, not 80; leave total_steps away"):
        make_agent(tiny_config).learn(shipped_dataset, total_steps=80, resume_from=path, progress_bar=False)
