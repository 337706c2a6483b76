"""The yardstick computes what the planner computes, and the benchmark measures what it says."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch

from trebi_gym import benchmark as bench
from trebi_gym import measuring
from trebi_gym.agents.config import NetworkConfig
from trebi_gym.agents.models import PARTS, make_model, make_windows
from trebi_gym.agents.presets import PRESETS, preset
from trebi_gym.textbook import textbook_decision, textbook_updates

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


def test_the_benchmark_measures_every_preset_in_the_same_run(small_paper, tmp_path):
    document = bench.benchmark(
        ("fast", "small_paper"), (1, 2), seconds=0.01, longest=1e-6, scaling=False, device="cpu"
    )
    rows = document["measurements"]
    told = {(m.what, m.who, m.size, m.environments) for m in rows}
    for size in bench.SIZES:
        assert ("decision", "textbook", size, 1) in told
        for who, count in itertools.product(("fast", "small_paper"), (1, 2)):
            assert ("decision", who, size, count) in told
        for who, part in itertools.product(("textbook", "fast", "small_paper"), PARTS):
            assert (f"{part} update", who, size, 0) in told
    left_out = [m for m in rows if m.seconds is None]
    assert left_out
    assert all("--longest" in m.note and m.who == "small_paper" for m in left_out)
    assert all(m.operations > 0 and m.floor > 0 for m in rows if m.seconds)
    text = bench.report(document)
    assert "times faster than textbook" in text
    assert "left out: about" in text
    bench.save(document, tmp_path / "bench.json")
    again = json.loads((tmp_path / "bench.json").read_text())
    assert len(again["measurements"]) == len(rows)
    assert again["measurements"][0]["seconds"]["repeats"] >= 3


def test_the_budget_of_the_benchmark_puts_every_plan_over_or_none(small_paper):
    dataset = bench.random_dataset("hopper")
    agent = bench.untrained(small_paper, dataset, "cpu")
    assert not agent.plan(dataset.observations[0], 0.0).feasible.any()
    assert agent.plan(dataset.observations[0], 1e6).feasible.all()


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
