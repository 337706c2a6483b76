"""Numbers from outside are counted as they are, whatever their type, or refused: in the loop and all that runs it."""

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_envs import Still, register_toy_envs

from trebi_gym.agents import TREBIAgent
from trebi_gym.checks import check_count, check_seed
from trebi_gym.datasets.generation.collect import collect
from trebi_gym.envs.wrappers import BudgetWrapper
from trebi_gym.errors import EnvironmentContractError, RenderingError, TrebiError
from trebi_gym.evaluation.evaluate import evaluate_budgets
from trebi_gym.evaluation.video import as_frame, record_video
from trebi_gym.rollout import envs_for, make_envs, rollout

register_toy_envs()

MIXES = {
    "int and float": (0, 0.5),
    "bool and float": (False, 0.25),
    "numpy's": (np.int8(0), np.float32(0.5)),
    "an array": (np.array(0), np.array(0.75)),
    "int and float32": (np.int64(1), np.float32(0.125)),
}


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("costs", MIXES.values(), ids=MIXES.keys())
def test_a_cost_keeps_its_fraction_whatever_the_first_environment_reports(costs, asynchronous, monkeypatch):
    expected = 5 * float(costs[0]) + 5 * float(costs[1])
    monkeypatch.setattr(gym.registry["Costly-v0"], "kwargs", {"costs": costs})
    for n_envs in (1, 2, 3):
        found = evaluate_budgets(
            Still(), "Costly-v0", budgets=[3.0], episodes=4, n_envs=n_envs, asynchronous=asynchronous
        )
        assert [record.cost for record in found.records] == [expected] * 4
        assert [record.kept for record in found.records] == [expected <= 3.0] * 4


@given(st.lists(st.one_of(st.integers(0, 9), st.floats(0, 9, width=32)), min_size=1, max_size=6))
@settings(max_examples=25, deadline=None)
def test_many_environments_count_as_one_does(costs):
    spec = gym.registry["Costly-v0"]
    before, spec.kwargs = spec.kwargs, {"costs": tuple(costs)}
    try:
        many, one = (
            evaluate_budgets(Still(), "Costly-v0", budgets=[5.0], episodes=5, n_envs=n) for n in (5, 1)
        )
    finally:
        spec.kwargs = before
    assert [r.cost for r in many.records] == [r.cost for r in one.records]


def test_recorded_costs_keep_their_fractions(monkeypatch):
    monkeypatch.setattr(gym.registry["Costly-v0"], "kwargs", {"costs": (0, 0.5)})
    found = collect("Costly-v0", Still(), steps=40, seed=0, n_envs=4)
    assert found.episode_costs.tolist() == [2.5] * 4


def test_a_film_counts_fractions(monkeypatch, tmp_path):
    frame = np.zeros((64, 64, 3), np.uint8)
    monkeypatch.setattr(gym.registry["Costly-v0"], "kwargs", {"costs": (0, 0.5), "frame": frame})
    assert record_video(Still(), "Costly-v0", tmp_path / "a.mp4", budget=2.0).cost == 2.5


def test_a_users_own_vector_environment_that_cuts_costs_is_refused():
    envs = gym.make_vec(
        "Costly-v0",
        num_envs=2,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": gym.vector.AutoresetMode.DISABLED},
    )
    with pytest.raises(EnvironmentContractError, match=r"arrive as int64.*make_envs"):
        list(rollout(Still(), envs, budgets=[1.0, 1.0], seed=[0, 0]))


def test_environments_that_reset_themselves_are_refused():
    envs = gym.make_vec("Costly-v0", num_envs=2, vectorization_mode="sync")
    with pytest.raises(EnvironmentContractError, match=r"reset themselves.*make_envs"):
        list(rollout(Still(), envs, budgets=[1.0], seed=0))


@pytest.mark.parametrize(
    "cost", ["0.5", np.array([0.5]), None, [0.5], 1j, float("inf"), float("nan"), object()]
)
def test_a_cost_that_is_not_one_finite_number_is_refused_by_one_rule(cost, monkeypatch):
    monkeypatch.setattr(gym.registry["Costly-v0"], "kwargs", {"costs": (cost, cost)})
    messages = set()
    for act in (
        lambda: evaluate_budgets(Still(), "Costly-v0", budgets=[3.0], episodes=1),
        lambda: evaluate_budgets(Still(), "Costly-v0", budgets=[3.0], episodes=2, n_envs=2),
        lambda: collect("Costly-v0", Still(), steps=10, seed=0),
        lambda: _step(BudgetWrapper(gym.make("Costly-v0"), 1.0)),
    ):
        with pytest.raises(EnvironmentContractError) as caught:
            act()
        messages.add(str(caught.value).partition("; got")[0])
    assert len(messages) == 1


def _step(env):
    env.reset(seed=0)
    env.step(env.action_space.sample())


@pytest.mark.parametrize("reward", [float("nan"), "1", np.array([1.0, 2.0])])
def test_a_reward_that_is_not_one_finite_number_is_refused(reward, monkeypatch):
    monkeypatch.setattr(gym.registry["Costly-v0"], "kwargs", {"reward": reward})
    with pytest.raises(EnvironmentContractError, match="the reward of a step must give"):
        evaluate_budgets(Still(), "Costly-v0", budgets=[3.0], episodes=1)


def test_an_environment_without_a_time_limit_is_cut_off_at_the_agents_episode_length():
    with pytest.warns(UserWarning, match=r"CostlyEndless-v0 has no time limit.*after 7 steps"):
        found = evaluate_budgets(Still(7), "CostlyEndless-v0", budgets=[3.0], episodes=2)
    assert [record.length for record in found.records] == [7, 7]


def test_an_environment_without_a_time_limit_is_refused_where_nothing_tells_one(tmp_path):
    for act in (
        lambda: evaluate_budgets(Still(), "CostlyEndless-v0", budgets=[3.0], episodes=1),
        lambda: record_video(Still(), "CostlyEndless-v0", tmp_path / "a.mp4", budget=1.0),
        lambda: collect("CostlyEndless-v0", Still(), steps=10, seed=0),
    ):
        with pytest.raises(TrebiError, match=r"has no time limit.*max_episode_steps="):
            act()


def test_an_environment_that_lasts_longer_than_what_was_learned_from_is_warned_of():
    with pytest.warns(UserWarning, match="last up to 10 steps, those that the agent learned from 4"):
        evaluate_budgets(Still(4), "Costly-v0", budgets=[3.0], episodes=1)


def test_environments_in_processes_of_their_own_give_the_same(tiny_agent):
    found = [
        evaluate_budgets(
            tiny_agent, "ShortPendulum-v0", budgets=[1.0, 3.0], episodes=3, n_envs=3, asynchronous=way, seed=5
        )
        for way in (False, True)
    ]
    assert found[0].records == found[1].records


def test_the_number_of_environments_is_chosen_by_what_the_first_ones_take(monkeypatch, caplog):
    from trebi_gym import rollout as module

    taken = iter([500_000_000, 700_000_000, 800_000_000])  # 150 MB each
    monkeypatch.setattr(module, "_resident_memory", lambda: next(taken))
    monkeypatch.setattr(module, "_available_memory", lambda: 6_000_000_000)
    envs, _ = envs_for(Still(), "Costly-v0", 60)
    assert envs.num_envs == 10
    assert "10 environments at once instead of 60: each takes 150 MB" in caplog.text
    envs, _ = envs_for(Still(), "Costly-v0", 60, n_envs=12)
    assert envs.num_envs == 12


SEEDS = [1.0, None, True, -1, 2**62, "3", np.float64(3), [3]]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seed_that_is_none_is_refused_everywhere_by_our_own_error(seed, tmp_path):
    for act in (
        lambda: evaluate_budgets(Still(), "Costly-v0", budgets=[3.0], episodes=1, seed=seed),
        lambda: record_video(Still(), "Costly-v0", tmp_path / "a.mp4", budget=1.0, seed=seed),
        lambda: collect("Costly-v0", Still(), steps=10, seed=seed),
        lambda: check_seed(seed),
    ):
        with pytest.raises(
            TrebiError, match=r"seed must be a whole number of at least 0 and below 2\*\*62; got"
        ):
            act()


@pytest.mark.parametrize("seed", [np.int64(3), np.uint8(3), np.array(3)[()]])
def test_seeds_of_numpy_are_those_of_python(seed):
    ours, theirs = (
        evaluate_budgets(Still(), "Costly-v0", budgets=[3.0], episodes=2, seed=value) for value in (seed, 3)
    )
    assert ours.records == theirs.records


@pytest.mark.parametrize("count", [2.0, 0, -1, True, None, "2", np.float64(2)])
def test_a_count_that_is_none_is_refused(count):
    with pytest.raises(TrebiError, match="episodes must be a whole number of at least 1; got"):
        evaluate_budgets(Still(), "Costly-v0", budgets=[3.0], episodes=count)
    with pytest.raises(TrebiError, match="n_envs must be a whole number of at least 1; got"):
        make_envs("Costly-v0", count)
    with pytest.raises(TrebiError, match="things must be a whole number of at least 1; got"):
        check_count(count, "things")


def test_an_environment_of_a_missing_module_is_refused_with_its_name():
    with pytest.raises(TrebiError, match=r"no_such_module:Env-v0 cannot be made: .*no_such_module"):
        evaluate_budgets(Still(), "no_such_module:Env-v0", budgets=[3.0], episodes=1)


PICTURES = {
    "colours": (np.full((300, 300, 3), 7, np.uint8), 7),
    "grey with a channel": (np.full((300, 300, 1), 7, np.uint8), 7),
    "grey": (np.full((300, 300), 7, np.uint8), 7),
    "opaque": (np.dstack([np.full((300, 300, 3), 7), np.full((300, 300, 1), 255)]).astype(np.uint8), 7),
    "transparent": (np.zeros((300, 300, 4), np.uint8), 255),
    "floats": (np.full((300, 300, 3), 0.5), 128),
    "float32": (np.full((300, 300, 3), 1.0, np.float32), 255),
    "black floats": (np.zeros((300, 300, 3)), 0),
    "small": (np.full((16, 16, 3), 7, np.uint8), 7),
}


@pytest.mark.parametrize(("picture", "value"), PICTURES.values(), ids=PICTURES.keys())
def test_pictures_of_the_usual_kinds_become_frames(picture, value):
    frame = as_frame(picture)
    assert frame.dtype == np.uint8
    assert frame.shape[2] == 3
    assert frame.shape[1] >= 240
    assert (frame == value).all()


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((9, 9, 2), np.uint8),
        np.zeros((9,), np.uint8),
        np.zeros((0, 9, 3), np.uint8),
        np.full((9, 9, 3), 200.0),
        np.full((9, 9, 3), np.nan),
        np.zeros((9, 9, 3), np.uint16),
        np.zeros((9, 9, 3), bool),
        "a picture",
    ],
)
def test_other_pictures_are_refused(picture):
    with pytest.raises(RenderingError, match="a picture"):
        as_frame(picture)


@pytest.mark.parametrize("rate", [0.5, 12.5, 60])
def test_any_number_of_frames_a_second_above_zero_is_written(rate, monkeypatch, tmp_path):
    frame = np.zeros((16, 16, 3), np.uint8)
    monkeypatch.setattr(gym.registry["Costly-v0"], "kwargs", {"frame": frame, "render_fps": rate})
    assert record_video(Still(), "Costly-v0", tmp_path / "a.mp4", budget=2.0).frames == 10


@pytest.mark.parametrize("rate", [0, -1, "30", float("nan"), 10**6, True])
def test_other_numbers_of_frames_a_second_are_refused(rate, tmp_path):
    with pytest.raises(TrebiError, match="fps must be a number of frames a second"):
        record_video(Still(), "Costly-v0", tmp_path / "a.mp4", budget=2.0, fps=rate)


def test_a_learned_agent_tells_its_episode_length(tiny_agent):
    assert isinstance(tiny_agent, TREBIAgent)
    assert tiny_agent.episode_length == tiny_agent.task.episode_length
