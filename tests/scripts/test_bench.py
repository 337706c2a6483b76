"""The yardstick computes what the planner computes, and the benchmark measures what it says."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch

from scripts.bench import measure as measuring
from scripts.bench import run as bench
from scripts.bench import run as bench_report
from scripts.bench.__main__ import bench as command
from scripts.bench.reference import textbook_decision, textbook_updates
from trebi_gym.agents.config import NetworkConfig
from trebi_gym.agents.models import PARTS, make_model, make_windows
from trebi_gym.agents.networks import cuda_graphs as capture
from trebi_gym.agents.presets import PRESETS, preset
from trebi_gym.errors import ConfigError

CPU = torch.device("cpu")
SMALL = {"dim": 16, "dim_mults": [1, 2]}


@pytest.fixture
def small_paper(monkeypatch):
    """The paper's preset with small networks, of which a decision takes no seconds."""
    config = preset("toy_safe_env").replace(
        preset="small_paper",
        horizon=8,
        denoiser=NetworkConfig("temporal_unet", SMALL),
        reward_critic=NetworkConfig("temporal", SMALL),
        cost_critic=NetworkConfig("temporal", SMALL),
        critic_training={"learning_rate": 0.01},
        denoiser_training={"learning_rate": 0.01},
        planner={"candidates": 8},
    )
    monkeypatch.setitem(PRESETS, "small_paper", config)
    monkeypatch.setattr(bench, "PAPER_OF", dict.fromkeys(bench.SIZES, "small_paper"))
    return config


@pytest.fixture
def small_fast(monkeypatch):
    """The preset fast with small networks and few candidates."""
    mlp = {"width": 16, "blocks": 1}
    critic = NetworkConfig("mlp", {**mlp, "steps_left": True})
    config = preset("fast").replace(
        horizon=8,
        denoiser=NetworkConfig("mlp", {**mlp, "condition": True}),
        reward_critic=critic,
        cost_critic=critic,
        outcome_critic=NetworkConfig("mlp", mlp),
        outcome_training=None,
        planner={"candidates": 4, "sampler_steps": 2, "retry_steps": 5},
    )
    monkeypatch.setitem(PRESETS, "fast", config)
    return config


@pytest.fixture
def quick(small_paper, small_fast, monkeypatch):
    """Both presets small, the paper's with few denoising steps and windows, so that a benchmark takes seconds."""
    training = {"batch_size": 4}
    few = small_paper.replace(diffusion_steps=4, denoiser_training=training, critic_training=training)
    monkeypatch.setitem(PRESETS, "small_paper", few)
    monkeypatch.setattr(bench, "peak_rate", lambda device: 1e9)
    draw = bench.random_dataset
    monkeypatch.setattr(bench, "random_dataset", lambda size: draw(size, episodes=1))


@pytest.mark.parametrize("guide_type", [0, 1])
@pytest.mark.parametrize("budget", [0.0, 2.0])
def test_the_textbook_way_decides_as_the_planner_does(small_paper, guide_type, budget):
    dataset = bench.random_dataset("pendulum")
    config = small_paper.replace(planner={"guide_type": guide_type, "budget_factor": 1.0})
    agent = bench.untrained(config, dataset, "cpu")
    for seed, observation in enumerate(dataset.observations[:3]):
        decide = textbook_decision(
            agent.models, agent.config, agent.task, torch.Generator().manual_seed(seed)
        )
        agent.set_random_seed(seed)
        ours, _ = agent.predict(observation, budget=budget)
        theirs = decide(observation, budget)
        np.testing.assert_allclose(
            ours, np.clip(theirs, agent.action_space.low, agent.action_space.high), atol=1e-3
        )


@pytest.mark.parametrize("part", PARTS)
def test_the_textbook_way_trains(small_paper, part):
    dataset = bench.random_dataset("pendulum")
    dataset = dataclasses.replace(dataset, rewards=dataset.costs)  # which can be predicted
    agent = bench.untrained(small_paper, dataset, "cpu")
    windows = make_windows(dataset, small_paper, agent.task)
    model = make_model(part, small_paper, agent.task, 0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        losses = [
            loss.item()
            for loss in itertools.islice(textbook_updates(model, part, windows, small_paper, agent.task), 60)
        ]
    assert np.isfinite(losses).all()
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])


def test_the_benchmark_measures_every_preset_in_the_same_run(quick, tmp_path):
    document = bench.benchmark(
        ("fast", "small_paper"), (1, 2), seconds=0.01, longest=60, scaling=False, device="cpu"
    )
    rows = document["measurements"]
    told = {(m.what, m.who, m.size, m.environments) for m in rows}
    for size in bench.SIZES:
        assert ("decision", "textbook", size, 1) in told
        for who, count in itertools.product(("fast", "small_paper"), (1, 2)):
            assert ("decision", who, size, count) in told
        for who, part in itertools.product(("textbook", "fast", "small_paper"), PARTS):
            assert (f"{part} update", who, size, 0) in told
    assert all(m.operations > 0 and m.floor > 0 for m in rows)
    text = bench_report.report(document)
    assert "times faster than textbook (one at once)" in text
    bench_report.save(document, tmp_path / "bench.json")
    again = json.loads((tmp_path / "bench.json").read_text())
    assert len(again["measurements"]) == len(rows)
    assert again["measurements"][0]["seconds"]["repeats"] >= 3


def test_fast_is_measured_with_its_second_search_and_without(quick):
    rows = bench.benchmark(("fast",), (1, 2), seconds=0.01, scaling=False, device="cpu")["measurements"]
    for size, count in itertools.product(bench.SIZES, (1, 2)):
        operations = {
            m.setting: m.operations
            for m in rows
            if (m.who, m.what, m.size, m.environments) == ("fast", "decision", size, count)
        }
        assert set(operations) == {
            "every plan over its budget, so a second search",
            "no plan over its budget",
        }
        once, twice = sorted(operations.values())
        assert (
            2.5 < twice / once < 4.5
        )  # 2 + 5 denoising steps instead of 2, two guided moves fewer than steps


@pytest.mark.parametrize("environments", [(1,), (1, 2)])
def test_every_decision_of_a_preset_that_takes_too_long_is_left_out_and_the_yardstick_never(
    quick, environments
):
    document = bench.benchmark(
        ("fast", "small_paper"), environments, seconds=0.01, longest=1e-6, scaling=False, device="cpu"
    )
    decisions = [m for m in document["measurements"] if m.what == "decision"]
    left_out = [m for m in decisions if m.seconds is None]
    assert {m.who for m in left_out} == {"fast", "small_paper"}
    assert {m.who for m in decisions if m.seconds is not None} == {"textbook"}
    assert all("--longest" in m.note for m in left_out)
    assert "left out: about" in bench_report.report(document)


def test_decisions_that_are_fast_enough_are_not_left_out_with_those_that_are_not(small_fast, monkeypatch):
    monkeypatch.setattr(bench, "_seconds_of", lambda call, device: 1.0)
    monkeypatch.setattr(bench, "untrained", lambda config, dataset, device: StubAgent())
    monkeypatch.setattr(bench, "textbook_decision", lambda *arguments: lambda *asked: None)
    dataset = bench.random_dataset("pendulum")
    jobs = bench._decisions("pendulum", dataset, {"fast": small_fast}, (1, 16, 64), 20.0, CPU)
    notes = {job.measurement.environments: job.measurement.note for job in list(jobs)[1:]}
    assert notes == {1: "", 16: "", 64: "left out: about 64 s a call (--longest)"}


class StubAgent:
    models = config = None
    task = "some"

    def predict(self, *asked, budget):
        pass


def test_a_place_that_cannot_be_written_is_found_out_before_the_work(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(ConfigError, match="cannot be written: "):
        command(output=tmp_path / "taken" / "bench.json")


def test_a_preset_is_found_under_the_originals_way_of_writing_its_name(quick, capsys):
    command(("config.fast", "fast"), (1,), seconds=0.01, scaling=False, device="cpu")
    lines = capsys.readouterr().out.splitlines()
    assert sum(" fast " in line and " decision " in f" {line}" for line in lines) == 2 * len(bench.SIZES)


def test_presets_of_ones_own_have_rows_of_updates_too(quick, small_fast, monkeypatch):
    monkeypatch.setitem(PRESETS, "another", small_fast.replace(preset="another"))
    rows = bench.benchmark(("another",), (1,), seconds=0.01, scaling=False, device="cpu")["measurements"]
    told = {(m.what, m.size) for m in rows if m.who == "another"}
    assert {(f"{part} update", size) for part in PARTS for size in bench.SIZES} <= told


def test_growth_is_that_of_one_search_held_to_no_yardstick_and_bfloat16_to_no_floor_of_float32(quick):
    jobs = [job for job in bench._scaling(CPU) if job.measurement.setting.startswith(("1 env", "16 cand"))]
    for job in jobs:
        assert job.call.func.__self__.config.planner.retry_steps is None
    document = {
        "gpu": None,
        "machine": "some",
        "threads": 1,
        "torch": "2",
        "operations_a_second": 1e9,
        "measurements": bench._measure(jobs, 0.01, 1e9, CPU),
    }
    floors = {m.setting: m.floor for m in document["measurements"]}
    assert floors.pop("1 environments, bfloat16") is None
    assert len(floors) == 2
    assert all(floors.values())
    timing = measuring.Timing(1.0, 1.0, 1.0, 3)
    yardstick = bench_report.Measurement(
        "decision", "textbook", "hopper", 1, "", 0, timing, 1, 1.0, 1, "yardstick"
    )
    document["measurements"] = [yardstick, *document["measurements"]]
    *_, header, _, first, second, third, fourth = bench_report.report(document).splitlines()
    column = header.index("times faster than textbook"), header.index("(one at once)") + len("(one at once)")
    assert first[slice(*column)].strip() == "1.00"
    assert [row[slice(*column)].strip() for row in (second, third, fourth)] == ["", "", ""]


@pytest.mark.parametrize("which", ["small_paper", "fast"])
def test_the_budget_of_the_benchmark_puts_every_plan_over_or_none(small_paper, small_fast, which):
    for size in bench.SIZES:
        dataset = bench.random_dataset(size)
        agent = bench.untrained(which, dataset, "cpu")
        nothing = agent.plan(dataset.observations[:5], 0.0)
        assert not nothing.feasible.any()
        assert nothing.costs.min() > 0.05  # and not only by rounding
        assert agent.plan(dataset.observations[:5], 1e6).feasible.all()
        if which == "fast":  # plain sums; the margin, at most a quarter, is held back
            assert not agent.plan(dataset.observations[:5], 0.9).feasible.any()
            assert agent.plan(dataset.observations[:5], 1.4).feasible.all()


class FromGPU(torch.Tensor):
    """A tensor that says it lies on a GPU."""

    device = torch.device("cuda")


@pytest.fixture
def recorded(monkeypatch):
    """A function and its recordings, which stand in for CUDA graphs: none of its products is seen in a replay."""

    class Replay:
        def __init__(self, function, inputs):
            made.append(self)
            with torch.utils._python_dispatch._disable_current_modes():
                self._outputs = function(*inputs)

        def __call__(self, *inputs):
            return self._outputs

    made = []
    monkeypatch.setattr(capture, "Recording", Replay)
    left = torch.randn(3, 4)
    return capture.Recordings(lambda right: (left @ right.as_subclass(torch.Tensor),)), made


def test_operations_are_counted_though_the_computation_has_been_recorded(recorded):
    recordings, made = recorded
    right = torch.randn(4, 5).as_subclass(FromGPU)
    job = bench._Job(bench._row("decision", "fast", "hopper", 1, ""), lambda: recordings(right))
    recordings(right)
    assert measuring.count_operations(job.call) == 0  # what went wrong
    (found,) = bench._measure([job], 0.0, 1e9, CPU)
    assert found.operations == 2 * 3 * 4 * 5
    assert len(made) == 1


def test_what_is_called_directly_is_recorded_anew_afterwards(recorded):
    recordings, made = recorded
    right = torch.randn(4, 5).as_subclass(FromGPU)
    recordings(right)
    with capture.computing_directly():
        recordings(right)
        recordings(right)
    assert len(made) == 1
    recordings(right)
    recordings(right)
    assert len(made) == 2


def test_directness_ends_with_an_error_too(recorded):
    recordings, made = recorded
    with pytest.raises(KeyError), capture.computing_directly():
        raise KeyError
    recordings(torch.randn(4, 5).as_subclass(FromGPU))
    assert len(made) == 1


def test_operations_are_counted_in_products_convolutions_and_their_gradients():
    left, right = torch.randn(3, 4), torch.randn(4, 5, requires_grad=True)
    assert measuring.count_operations(lambda: left @ right) == 2 * 3 * 4 * 5
    assert measuring.count_operations(lambda: (left @ right).sum().backward()) == 2 * 2 * 3 * 4 * 5
    convolution = torch.nn.Conv1d(2, 3, 5, padding=2)
    assert measuring.count_operations(lambda: convolution(torch.randn(7, 2, 8))) == 2 * 7 * 8 * 5 * 2 * 3


def test_memory_at_its_peak_is_told_though_it_is_free_again_afterwards():
    def call():
        torch.zeros(20_000_000).add_(1)

    found = measuring.peak_memory(call, CPU)
    if found is None:
        pytest.skip("this system does not tell")
    assert 70e6 < found < 120e6
    assert measuring.peak_memory(lambda: None, CPU) < 5e6


def test_calls_are_timed_in_turns():
    order = []
    timings = measuring.time_in_turns(
        {name: lambda name=name: order.append(name) for name in "ab"}, seconds=0.0, device=CPU
    )
    assert order == list("ab" * 4)
    assert all(
        dataclasses.asdict(t)["repeats"] == 3 and t.fastest <= t.median <= t.slowest for t in timings.values()
    )


class Clock:
    """A clock that only calls make go on."""

    def __init__(self, monkeypatch):
        self.now, self.order = 0.0, []
        monkeypatch.setattr(measuring.time, "perf_counter", lambda: self.now)

    def call(self, name, seconds):
        def spend():
            self.now += seconds
            self.order.append(name)

        return spend


def test_fast_calls_are_spread_over_the_time_that_slow_calls_take(monkeypatch):
    clock = Clock(monkeypatch)
    calls = {name: clock.call(name, seconds) for name, seconds in (("slow", 4.0), ("mid", 1.0), ("f", 0.25))}
    timings = measuring.time_in_turns(calls, seconds=20.0, device=CPU)
    assert {name: t.repeats for name, t in timings.items()} == {"slow": 5, "mid": 20, "f": 80}
    turns = [name for name, _ in itertools.groupby(clock.order[2 * len(calls) :])]
    # the first turn of a call that is slow enough was its second call
    assert turns == ["mid", "f", *["slow", "mid", "f"] * 4]


def test_even_the_fastest_call_is_repeated_no_more_than_200_times_and_the_slowest_three_times(monkeypatch):
    clock = Clock(monkeypatch)
    calls = {"slow": clock.call("slow", 100.0), "fast": clock.call("fast", 0.001)}
    timings = measuring.time_in_turns(calls, seconds=20.0, device=CPU)
    assert timings["slow"].repeats == 3
    assert 150 < timings["fast"].repeats <= 200
    assert clock.order[-1] == "fast"
    assert clock.order[-70] == "slow" or clock.order[-67] == "slow"
    assert measuring.time_in_turns({}, seconds=1.0, device=CPU) == {}
