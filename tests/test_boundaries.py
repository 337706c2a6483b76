"""Numbers from outside are counted as they are, whatever their type, or refused: in the loop and all that runs it."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_envs import Scripted, Still, register_toy_envs

from trebi_gym.agents import TREBIAgent
from trebi_gym.agents.planning.policies import OriginalAccounting
from trebi_gym.checks import check_count, check_seed
from trebi_gym.costs import velocity_cost
from trebi_gym.datasets.generation.collect import collect
from trebi_gym.envs.wrappers import BudgetWrapper
from trebi_gym.errors import BudgetError, EnvironmentContractError, RenderingError, TrebiError
from trebi_gym.evaluation.evaluate import evaluate_budgets
from trebi_gym.evaluation.plots import plot_budgets
from trebi_gym.evaluation.schedules import BudgetSchedule
from trebi_gym.evaluation.video import as_frame, record_video, write_mp4
from trebi_gym.rollout import BudgetChange, _with_floats, envs_for, make_envs, rollout

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


NUMBERS = ("x_velocity", "episode_cost", "budget")


class Counted(gym.Env):
    """Environment i of a process puts 0 into its infos if i is even, and 0.5 if it is odd: the first gives integers."""

    made = 0

    def __init__(self):
        self.observation_space = gym.spaces.Box(-9, 9, (1,), np.float64)
        self.action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
        self.value = 0 if Counted.made % 2 == 0 else 0.5
        Counted.made += 1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1), {"cost": self.value, **self._info()}

    def step(self, action):
        return np.zeros(1), 0.0, False, False, {"cost": self.value, **self._info()}

    def _info(self):
        return {
            **dict.fromkeys(NUMBERS, self.value),
            "nested": {"speed": self.value},
            "place": np.array([self.value, 1]),
            "flag": self.value == 0,
            "picture": np.zeros((2, 2), np.uint8),
            "word": "a",
        }


def test_every_number_of_an_info_keeps_its_fraction(monkeypatch):
    monkeypatch.setattr(Counted, "made", 0)
    gym.register("Counted-v0", entry_point=Counted, max_episode_steps=5)
    try:
        envs = make_envs("Counted-v0", 2)
    finally:
        del gym.registry["Counted-v0"]
    _, at_reset = envs.reset(seed=[0, 1])
    *_, at_step = envs.step(np.zeros((2, 1), np.float32))
    for infos in (at_reset, at_step):
        for name in ("cost", *NUMBERS):
            assert infos[name].tolist() == [0.0, 0.5], name
        assert infos["nested"]["speed"].tolist() == [0.0, 0.5]
        assert infos["place"].tolist() == [[0.0, 1.0], [0.5, 1.0]]
        assert infos["flag"].dtype == bool
        assert infos["picture"].dtype == np.uint8
        assert infos["word"].tolist() == ["a"] * 2


def test_a_number_of_an_info_beyond_the_largest_float_is_refused():
    with pytest.raises(EnvironmentContractError, match="beyond the largest float"):
        _with_floats({"nested": {"count": 10**400}})


def test_a_budget_wrapper_hands_floats_on_to_vector_environments_of_ones_own(monkeypatch):
    monkeypatch.setattr(Counted, "made", 0)
    envs = gym.vector.SyncVectorEnv([lambda: BudgetWrapper(Counted(), 5.0)] * 2)
    _, at_reset = envs.reset(seed=[0, 1])
    *_, at_step = envs.step(np.zeros((2, 1), np.float32))
    assert at_reset["cost"].tolist() == at_step["cost"].tolist() == [0.0, 0.5]
    assert at_step["budget"].tolist() == [5.0, 4.5]


@given(st.sampled_from([np.int8, np.int16, np.int32, np.int64]), st.data())
def test_the_speed_of_whole_numbers_is_never_negative(kind, data):
    bounds = np.iinfo(kind)
    value = data.draw(st.integers(int(bounds.min), int(bounds.max)))
    assert velocity_cost(None, None, None, {"x_velocity": kind(value)}) == abs(float(value))


@pytest.mark.parametrize("velocity", ["0.5", None, [None, 1.0], True, 1j])
def test_a_velocity_that_is_no_number_is_refused(velocity):
    with pytest.raises(EnvironmentContractError, match="velocity_cost needs numbers"):
        velocity_cost(None, None, None, {"x_velocity": velocity})


class Own(gym.vector.VectorEnv):
    """Two environments of a user's own class, of one step each, that give ``cost``."""

    num_envs = 2
    single_observation_space = gym.spaces.Box(-9, 9, (1,), np.float64)
    single_action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, cost, metadata):
        self.cost, self.metadata = cost, metadata

    def reset(self, *, seed=None, options=None):
        return np.zeros((2, 1)), {}

    def step(self, actions):
        return np.zeros((2, 1)), np.zeros(2), np.ones(2, bool), np.zeros(2, bool), {"cost": self.cost}


DISABLED = {"autoreset_mode": gym.vector.AutoresetMode.DISABLED}


@pytest.mark.parametrize("cost", [np.ones((2, 1)), 1.0, np.ones(3)])
def test_costs_of_a_users_vector_environment_must_be_one_for_each(cost):
    with pytest.raises(EnvironmentContractError, match="one number for each of 2 environments"):
        list(rollout(Still(), Own(cost, DISABLED), budgets=[1.0, 1.0], seed=0))


def test_costs_of_a_users_vector_environment_are_counted_as_they_are():
    (step,) = rollout(Still(), Own([1, 0.5], DISABLED), budgets=[1.0, 1.0], seed=0)
    assert step.costs.tolist() == [1.0, 0.5]


def test_a_vector_environment_that_does_not_say_whether_it_resets_itself_is_refused():
    with pytest.raises(EnvironmentContractError, match="do not say whether they reset themselves"):
        list(rollout(Still(), Own([1.0, 1.0], {}), budgets=[1.0, 1.0], seed=0))


def test_an_environments_process_that_ends_is_told_and_leaves_no_process():
    envs = make_envs("Costly-v0", 2, asynchronous=True)
    steps = rollout(Still(), envs, budgets=[9.0, 9.0], seed=0)
    next(steps)
    workers = list(envs.unwrapped.processes)
    workers[1].kill()
    workers[1].join()
    with pytest.raises(TrebiError, match="the process of an environment ended by itself"):
        list(steps)
    envs.close()  # as every caller does at the end
    assert not any(worker.is_alive() for worker in workers)


def test_fewer_seeds_than_episodes_are_refused():
    with pytest.raises(TrebiError, match="there are 2 seeds and more episodes"):
        list(rollout(Still(), make_envs("Costly-v0", 2), budgets=[9.0] * 3, seed=[1, 2]))


@pytest.mark.parametrize("seed", [[[1, 2], [3]], "3", b"3", np.array(1.0), [1.0]])
def test_lists_of_what_is_no_seed_are_refused_by_the_loop(seed):
    with pytest.raises(TrebiError, match="seed must be a whole number"):
        list(rollout(Still(), make_envs("Costly-v0", 1), budgets=[9.0], seed=seed))


def test_lists_in_the_list_of_budgets_are_refused():
    with pytest.raises(BudgetError, match="budget must be a number"):
        evaluate_budgets(Still(), "Costly-v0", budgets=[1.0, [2.0, 3.0]], episodes=1)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_schedule_takes_seeds_by_the_same_rule(seed):
    with pytest.raises(BudgetError, match="seed must be a whole number"):
        BudgetSchedule("drop").changes(seed, 5.0, 100)


@pytest.mark.parametrize("limit", [100.0, 0, True, None])
def test_a_schedules_limit_is_a_count(limit):
    with pytest.raises(BudgetError, match="limit must be a whole number"):
        BudgetSchedule("drop").changes(0, 5.0, limit)


def test_a_film_refuses_what_an_evaluation_refuses_before_the_agent_is_seeded(tmp_path):
    for wrong, words in (
        ({"schedule": [BudgetChange(50, remaining=1.0)]}, "step 50 is never reached"),
        ({"schedule": BudgetSchedule("drop", {"step": 50})}, "does not fit into an episode of 5 steps"),
        ({"schedule": [3]}, "a list of BudgetChange; got"),
        ({"seed": -1}, "seed must be a whole number"),
    ):
        policy = Scripted()
        with pytest.raises(TrebiError, match=words):
            record_video(policy, "Ledger-v0", tmp_path / "a.mp4", **({"budget": 9.0} | wrong))
        assert policy.calls == []
        if "seed" in wrong:
            assert policy.seeds == []
    assert list(tmp_path.iterdir()) == []


def test_a_film_takes_a_schedule_as_an_evaluation_does(tmp_path):
    policies = Scripted(), Scripted()
    options = {"schedule": BudgetSchedule("drop"), "seed": 3}
    record_video(policies[0], "Ledger-v0", tmp_path / "a.mp4", budget=9.0, **options)
    evaluate_budgets(policies[1], "Ledger-v0", budgets=[9.0], episodes=1, **options)
    film, evaluation = ([call["budget"] for call in policy.calls] for policy in policies)
    assert film == evaluation


def test_pictures_of_several_sizes_and_lists_of_several_lengths_are_refused(tmp_path):
    frames = [np.zeros((side, 240, 3), np.uint8) for side in (64, 66)]
    with pytest.raises(RenderingError, match="must have one size"):
        write_mp4(frames, tmp_path / "a.mp4", 10)
    with pytest.raises(RenderingError, match="must be one array"):
        as_frame([[1, 2], [3]])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("budget", [1e300, 1e308, 1.7e308])
def test_huge_budgets_are_summed_up_and_drawn_without_a_word_of_numpy(budget, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        found = evaluate_budgets(Still(), "Costly-v0", budgets=[budget, 9.0], episodes=3)
        assert found.summary(budget).budget == pytest.approx(budget)
        assert found.summary(budget).share_over == 0.0
        found.table()
        plot_budgets(found, tmp_path / "a.png")
    assert (tmp_path / "a.png").exists()


def test_policies_around_an_agent_tell_its_episode_length(tiny_agent):
    assert OriginalAccounting(Still(7), 1.0, 0.99).episode_length == 7
    assert OriginalAccounting(Still(), 1.0, 0.99).episode_length is None
    assert tiny_agent.with_risk(None).episode_length == tiny_agent.episode_length
