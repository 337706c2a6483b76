"""``make results``: cells that are kept and checked, targets that are computed, and a page of whatever there is."""

import dataclasses
import gzip
import itertools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from test_plots_video import svg_texts
from toy_envs import register_toy_envs

from scripts.results import cells as result_cells
from scripts.results import runner as result_measures
from scripts.results import runner as result_work
from scripts.results.__main__ import Arguments, main
from scripts.results.cells import Results, cell_path, part_path, settle, unpack, write_cell
from scripts.results.page import write_page
from scripts.results.plan import METHODS, RATIOS, TASKS, Task, config_of, episodes_of, grid, reduced_paper
from scripts.results.runner import best_episode, counted_as_original, moved_schedule, time_decisions
from scripts.results.targets import (
    PENDULUM_RETURNS,
    greatest_share,
    moved_verdicts,
    paper_verdicts,
    return_verdicts,
    risk_verdicts,
    spending_verdicts,
)
from trebi_gym.agents import TREBIAgent
from trebi_gym.agents.baselines.cloning import TRAINING
from trebi_gym.budget import Budget
from trebi_gym.errors import CalibrationError, ConfigError, DatasetError
from trebi_gym.evaluation.plots import plot_methods
from trebi_gym.evaluation.records import EpisodeRecord, Evaluation
from trebi_gym.evaluation.schedules import SCHEDULES
from trebi_gym.files import lock

register_toy_envs()

NAME = "SafePendulum-medium-replay-v0"


@pytest.fixture
def toy(monkeypatch, tmp_path, tiny_config):
    """One task of six steps an episode, with tiny agents; returns how to run its stages."""
    real = dict(TASKS)
    TASKS.clear()
    task = Task("ShortPendulum-v0", NAME, total_step=20_000, least_steps=20_000, preset=tiny_config)
    TASKS["toy"] = task
    monkeypatch.setattr(result_work, "TRAINING", dataclasses.replace(TRAINING, steps=3))

    def run(*stages, **flags):
        values = {
            "seeds": (0,),
            "episodes": 2,
            "calibration_episodes": 59,
            "decisions": 3,
            "device": "cpu",
            "tasks": ("toy",),
        } | flags
        main(
            Arguments(
                output=tmp_path / "cells", page=tmp_path / "docs" / "results.md", stages=stages, **values
            )
        )

    yield run
    TASKS.clear()
    TASKS.update(real)  # not by monkeypatch, which would turn their order round


@pytest.fixture
def agents(tmp_path, tiny_agent):
    """A folder with an agent that is learned already."""
    tiny_agent.save(tmp_path / "agents" / "toy-0.zip")
    return tmp_path / "agents"


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.json")}


def test_every_stage_leaves_its_cells_and_a_second_run_keeps_them(toy, tmp_path, monkeypatch):
    # the other kinds do not fit into an episode of six steps
    monkeypatch.setattr(result_work, "SCHEDULES", {name: SCHEDULES[name] for name in ("drop", "late")})
    methods = ("calibrated-0.2", "uncalibrated", "cloning", "best-episode")
    stages = ("data", "learn", "calibrate", "evaluate", "schedules", "time", "page")
    toy(*stages, methods=methods)
    found = files(tmp_path / "cells")
    cells = {f"toy/{key}/seed-0-ratio-{ratio:g}.json" for key in methods for ratio in RATIOS}
    parts = {"data", "learn-toy-0", "calibrate-toy-0-calibrated", *(f"time-{key}" for key in methods[:3])}
    parts |= {f"moved-{name}-0" for name in ("drop", "late")}
    assert set(found) == cells | {f"toy/{name}.json" for name in parts}
    page = (tmp_path / "docs" / "results.md").read_bytes()

    monkeypatch.setattr(result_work, "evaluate_budgets", None)
    monkeypatch.setattr(TREBIAgent, "learn", None)
    monkeypatch.setattr(TREBIAgent, "calibrate", None)
    toy(*stages, methods=methods)
    assert files(tmp_path / "cells") == found
    assert (tmp_path / "docs" / "results.md").read_bytes() == page


def test_a_cell_says_what_it_was_made_of(toy, agents, tmp_path, tiny_config):
    toy("evaluate", methods=("uncalibrated",), agents=agents)
    cell = result_cells.read_cell(cell_path(tmp_path / "cells", "toy", "uncalibrated", 0, 0.4))
    assert [record.seed for record in cell.evaluation.records] == [50_000, 50_001]
    assert {record.budget for record in cell.evaluation.records} == {24.0}
    assert cell.request["config"] == json.loads(json.dumps(tiny_config.to_dict()))
    assert len(cell.request["models"]) == 64
    assert cell.made["seconds"] > 0 and cell.made["version"]


def test_after_a_kill_only_what_was_not_finished_is_run(toy, agents, tmp_path, monkeypatch):
    evaluate, calls = result_work.evaluate_budgets, []

    def killed(*args, **kwargs):
        calls.append(kwargs["budgets"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(result_work, "evaluate_budgets", killed)
    with pytest.raises(KeyboardInterrupt):
        toy("evaluate", methods=("uncalibrated",), agents=agents)
    first = files(tmp_path / "cells")
    assert len(first) == 2 and not list((tmp_path / "cells").rglob("*.tmp*"))
    toy("evaluate", methods=("uncalibrated",), agents=agents)
    assert calls[3:] == [[36.0], [48.0], [60.0]]
    found = files(tmp_path / "cells")
    assert len(found) == 5 and first.items() <= found.items()


def test_a_cell_of_another_planner_is_refused_and_computed_anew_when_asked(
    toy, agents, tmp_path, tiny_config
):
    toy("evaluate", methods=("uncalibrated",), agents=agents)
    before = files(tmp_path / "cells")
    TASKS["toy"] = dataclasses.replace(TASKS["toy"], preset=tiny_config.replace(planner={"candidates": 5}))
    with pytest.raises(ConfigError, match=r"config.planner.candidates was 8, is 5; --redo"):
        toy("evaluate", methods=("uncalibrated",), agents=agents)
    assert files(tmp_path / "cells") == before
    toy("evaluate", methods=("uncalibrated",), agents=agents, redo=True)
    cell = result_cells.read_cell(cell_path(tmp_path / "cells", "toy", "uncalibrated", 0, 1.0))
    assert cell.request["config"]["planner"]["candidates"] == 5


def test_a_cell_of_other_episodes_or_weights_is_refused(toy, agents, shipped_dataset, tiny_config):
    toy("evaluate", methods=("uncalibrated",), agents=agents)
    with pytest.raises(ConfigError, match="episodes was 2, is 3"):
        toy("evaluate", methods=("uncalibrated",), agents=agents, episodes=3)
    other = TREBIAgent(config=tiny_config, device="cpu", seed=0)
    other.learn(shipped_dataset, total_steps=6, progress_bar=False).save(agents / "toy-0.zip")
    with pytest.raises(ConfigError, match="models was"):
        toy("evaluate", methods=("uncalibrated",), agents=agents)


def test_an_agent_of_other_data_or_of_another_seed_is_refused(toy, agents, shipped_dataset, tiny_config):
    other = TREBIAgent(config=tiny_config, device="cpu", seed=7)
    other.learn(shipped_dataset.select(range(5)), total_steps=4, progress_bar=False).save(
        agents / "toy-0.zip"
    )
    with pytest.raises(ConfigError, match=r"seed: 7, not 0; episodes in its data: 5, not 100"):
        toy("evaluate", methods=("uncalibrated",), agents=agents)


def test_an_agent_that_learned_otherwise_is_refused(toy, agents, tiny_config):
    TASKS["toy"] = dataclasses.replace(TASKS["toy"], preset=tiny_config.replace(first_action_weight=3.0))
    with pytest.raises(
        ConfigError, match=r"configuration: {'first_action_weight': 10.0}, not {'first_action"
    ):
        toy("evaluate", methods=("uncalibrated",), agents=agents)


def test_an_agent_calibrated_with_another_number_of_episodes_or_planner_is_refused(toy, agents, tiny_config):
    toy("calibrate", methods=("calibrated-0.2",), agents=agents)
    with pytest.raises(ConfigError, match=r"episodes of its calibration: 59, not 60"):
        toy("calibrate", methods=("calibrated-0.2",), agents=agents, calibration_episodes=60)
    TASKS["toy"] = dataclasses.replace(TASKS["toy"], preset=tiny_config.replace(planner={"candidates": 5}))
    with pytest.raises(ConfigError, match=r"planner of its calibration: .*'candidates': 8"):
        toy("evaluate", methods=("calibrated-0.2",), agents=agents)


def test_episodes_that_two_risks_plan_for_alike_are_run_once(toy, agents, tmp_path, monkeypatch):
    evaluate, run = result_work.evaluate_budgets, []

    def counted(policy, *args, **kwargs):
        run.append((policy.risk, *kwargs["budgets"]))
        return evaluate(policy, *args, **kwargs)

    monkeypatch.setattr(result_work, "evaluate_budgets", counted)
    TASKS["toy"] = dataclasses.replace(TASKS["toy"], planned_ratios=(0.0, 0.3, 0.9))
    methods = ("calibrated-0.05", "calibrated-0.2")
    toy("calibrate", "evaluate", methods=methods, agents=agents)
    cells = [
        [result_cells.read_cell(cell_path(tmp_path / "cells", "toy", key, 0, ratio)) for ratio in RATIOS]
        for key in methods
    ]
    told = [[(cell.found["planned"], cell.found["certified"]) for cell in row] for row in cells]
    differing = [
        cell.request["budget"] for cell, *both in zip(cells[1], *told, strict=True) if both[0] != both[1]
    ]
    assert len(differing) < len(RATIOS)
    assert run == [*((0.05, cell.request["budget"]) for cell in cells[0]), *((0.2, b) for b in differing)]
    assert {cell.evaluation.metadata["risk"] for cell in cells[1]} == {0.2}

    # a cell that does not say what it planned for, as they once did, is no such cell
    shared = next(
        index
        for index, both in enumerate(zip(*cells, strict=True))
        if both[1].request["budget"] not in differing
    )
    first, second = (cell_path(tmp_path / "cells", "toy", key, 0, RATIOS[shared]) for key in methods)
    document = json.loads(first.read_text())
    del document["found"]["planned"]
    first.write_text(json.dumps(document))
    second.unlink()
    before = len(run)
    toy("evaluate", methods=methods[1:], agents=agents)
    assert len(run) == before + 1
    del run[before:]

    for path in (tmp_path / "cells").rglob("seed-*.json"):
        path.unlink()
    toy("evaluate", methods=methods[1:], agents=agents)
    assert len(run) == 2 * len(RATIOS) + len(differing)
    for cell, ratio in zip(cells[1], RATIOS, strict=True):
        alone = result_cells.read_cell(cell_path(tmp_path / "cells", "toy", methods[1], 0, ratio))
        assert alone.evaluation.records == cell.evaluation.records


def test_a_tasks_own_calibration_is_run_and_another_one_is_refused(toy, agents):
    TASKS["toy"] = dataclasses.replace(TASKS["toy"], calibration_episodes=14, planned_ratios=(0.0, 0.5))
    method = "calibrated-0.2"
    with pytest.raises(CalibrationError, match=r"needs at least 59 .* got episodes=14"):
        toy("calibrate", methods=(method,), agents=agents, calibration_episodes=None)
    TASKS["toy"] = dataclasses.replace(TASKS["toy"], calibration_episodes=59)
    toy("calibrate", methods=(method,), agents=agents, calibration_episodes=None)
    found = TREBIAgent.load(agents / "toy-0-calibrated.zip").calibration
    assert found.planned == (0.0, 30.0) and found.episodes == 59
    TASKS["toy"] = dataclasses.replace(TASKS["toy"], planned_ratios=(0.0, 0.6))
    with pytest.raises(
        ConfigError, match=r"planned budgets of its calibration: \[0.0, 30.0\], not \[0.0, 36.0\]"
    ):
        toy("evaluate", methods=(method,), agents=agents)


def test_an_agent_that_is_not_there_is_named_with_its_stage(toy):
    with pytest.raises(ConfigError, match=r"toy-0.zip is not there; run --stages learn"):
        toy("evaluate", methods=("uncalibrated",))


def test_data_that_are_not_there_are_built_once_and_their_rate_is_told(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("TREBI_DATA", str(tmp_path / "data"))
    name = "ShortPendulum-medium-replay-v0"
    TASKS["toy"] = dataclasses.replace(TASKS["toy"], dataset=name, total_step=120, least_steps=100)
    toy("data")
    built = (tmp_path / "data" / f"{name}.hdf5").read_bytes()
    cell = result_cells.read_cell(part_path(tmp_path / "cells", "toy", "data"))
    assert cell.found["steps"] == 120 and cell.found["build_seconds"] > 0
    assert all(within + beyond == 20 for within, beyond in cell.found["sides"].values())
    toy("data")
    assert (tmp_path / "data" / f"{name}.hdf5").read_bytes() == built


def test_too_few_data_are_refused(toy):
    TASKS["toy"] = dataclasses.replace(TASKS["toy"], least_steps=20_001)
    with pytest.raises(DatasetError, match=r"at least 20001 steps.*has 20000"):
        toy("data")


def test_what_another_process_is_making_is_left_to_it(tmp_path):
    path = tmp_path / "toy" / "cell.json"
    (tmp_path / "toy" / "locks").mkdir(parents=True)
    with lock(tmp_path / "toy" / "locks" / "cell.lock"):
        assert settle(path, {"a": 1}, lambda: {}, device="cpu") == "busy"
    assert not path.exists()
    assert settle(path, {"a": (1, 2)}, lambda: {}, device="cpu") == "made"
    assert settle(path, {"a": [1, 2]}, lambda: {}, device="cpu") == "kept"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("data.json", "[]"),
        ("data.json", '{"request": {}, "found": {}, "made": {}}'),
        (
            "data.json",
            '{"request": {}, "found": {"steps": 9}, "made": {"seconds": 1, "version": "", "device": ""}}',
        ),
        (
            "time-cloning.json",
            '{"request": {}, "found": {}, "made": {"seconds": 1, "version": "", "device": ""}}',
        ),
        (
            "cloning/seed-0.json",
            '{"request": {}, "found": {}, "made": {"seconds": 1, "version": "", "device": ""}}',
        ),
        (
            "uncalibrated/seed-0.json",
            '{"request": {}, "found": {"evaluation": null}, "made": {"seconds": 1, "version": "", "device": ""}}',
        ),
        (
            "uncalibrated/seed-0.json",
            '{"request": {"ratio": 1, "seed": 0, "budget": 2}, "found": {"evaluation": {"episodes": [1]}}, "made": {}}',
        ),
    ],
)
def test_a_file_that_is_no_cell_is_refused(tmp_path, name, text):
    path = tmp_path / "pendulum" / name
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"{path.name} is no cell of the results"):
        Results(tmp_path)


def test_a_page_is_not_overwritten_with_no_cells_at_all(tmp_path):
    page = tmp_path / "results.md"
    page.write_text("measured")
    with pytest.raises(ConfigError, match=r"there are no cells in .*typo, so .*results.md is not written"):
        main(Arguments(output=tmp_path / "typo", page=page, page_only=True))
    assert page.read_text() == "measured"
    assert list(tmp_path.iterdir()) == [page]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"tasks": ("cart",)}, "--tasks: there is no cart; there are toy"),
        ({"methods": ("magic",)}, "there is no magic"),
        ({"stages": ("lunch",)}, "there is no lunch"),
        ({"seeds": (3,)}, "there is no 3; there are 0, 1, 2"),
        ({"episodes": 0}, "--episodes must lie in 1 to 1000; got 0"),
        ({"datasets": ("cart=x.hdf5",)}, "TASK=NAME_OR_FILE.*got cart"),
        ({"datasets": ("toy",)}, "got toy"),
    ],
)
def test_flags_that_cannot_be_followed_are_refused(toy, tmp_path, flags, message):
    with pytest.raises(ConfigError, match=message):
        main(
            Arguments(
                output=tmp_path / "cells", page=tmp_path / "results.md", **({"tasks": ("toy",)} | flags)
            )
        )
    assert not (tmp_path / "results.md").exists()


def test_the_best_episode_is_the_one_that_earns_most_within_the_budget(shipped_dataset):
    (record,) = best_episode(shipped_dataset, 24.0).records
    pairs = zip(shipped_dataset.episode_returns, shipped_dataset.episode_costs, strict=True)
    assert record.episode_return == max(earned for earned, cost in pairs if cost <= 24.0)
    assert record.cost <= 24.0 and record.remaining == 24.0 - record.cost
    assert shipped_dataset.episode_costs[record.seed] == record.cost


def test_where_no_episode_is_within_the_budget_cells_say_so(toy, tmp_path, shipped_dataset):
    from trebi_gym.datasets import save

    dear = shipped_dataset.select([int(i) for i in (shipped_dataset.episode_costs > 40).nonzero()[0]])
    save(dear, tmp_path / "dear.hdf5")
    TASKS["toy"] = dataclasses.replace(TASKS["toy"], least_steps=1)
    flags = {"methods": ("cloning", "best-episode"), "datasets": (f"toy={tmp_path / 'dear.hdf5'}",)}
    toy("data", "evaluate", "page", **flags)
    for key in flags["methods"]:
        cell = result_cells.read_cell(cell_path(tmp_path / "cells", "toy", key, 0, 0.2))
        assert (
            cell.evaluation is None and cell.found["refused"] == "no episode in the data is within the budget"
        )
        assert (
            result_cells.read_cell(cell_path(tmp_path / "cells", "toy", key, 0, 1.0)).evaluation is not None
        )
    assert (
        "|  | no episode in the data is within the budget (training seed 0) |"
        in (tmp_path / "docs" / "results.md").read_text()
    )


def test_as_many_decisions_as_asked_are_timed_beyond_an_episodes_end(tiny_agent):
    assert len(time_decisions(tiny_agent, "ShortPendulum-v0", 20.0, 7)) == 7


def test_what_a_plan_takes_is_spread_over_the_actions_that_are_executed_of_it(tiny_agent, monkeypatch):
    tick = iter(itertools.count())
    clock = SimpleNamespace(now=0.0)

    class Planning:
        """Every third decision takes 3 seconds, the others none."""

        def predict(self, *args, **kwargs):
            clock.now += 3.0 if next(tick) % 3 == 0 else 0.0
            return tiny_agent.predict(*args, **kwargs)

    monkeypatch.setattr(result_measures.time, "perf_counter", lambda: clock.now)
    assert time_decisions(Planning(), "ShortPendulum-v0", 20.0, 4, interval=3) == [1.0] * 4


def test_steps_of_changes_are_drawn_within_the_median_episode_where_episodes_end_early(shipped_dataset):
    whole = {name: moved_schedule(name, shipped_dataset) for name in SCHEDULES}
    assert all(str(schedule) == name for name, schedule in whole.items())
    lengths = np.array([4, 9, 200])
    ended = SimpleNamespace(lengths=lengths)
    found = {name: str(moved_schedule(name, ended)) for name in SCHEDULES}
    assert found == {name: name if name == "walk" else f"{name}:within=9" for name in SCHEDULES}


def test_the_papers_cells_on_a_cpu_are_few_and_its_size_is_stated():
    assert grid("pendulum", "paper-reduced") == [(0, 0.2), (0, 0.6), (0, 1.0)]
    assert grid("hopper", "paper-reduced") == []
    assert (
        episodes_of("paper-reduced") == 6 and episodes_of("paper") == 20 and episodes_of("best-episode") == 1
    )
    assert len(grid("hopper", "paper")) == 15
    small = reduced_paper()
    assert small.planner.sampler == "ddpm" and small.planner.candidates == 64
    assert (
        small.denoiser_training.steps == 10_000
        and small.planner.control_interval == 5
        and small.planner.ranking == "original"
    )
    assert config_of(TASKS["halfcheetah"], "paper").horizon == 4
    assert config_of(TASKS["hopper"], "default").preset == "fast_long"


def test_budgets_of_the_papers_agents_are_counted_as_the_original_does(tiny_agent):
    seen = np.zeros((1, 3))
    tiny_agent.set_random_seed(2)
    action, _ = counted_as_original(tiny_agent).predict(seen, budget=[Budget(30.0)])
    tiny_agent.set_random_seed(2)
    told = Budget(30.0 * tiny_agent.task.budget_factor, tiny_agent.config.cost_discount)
    np.testing.assert_array_equal(action, tiny_agent.predict(seen, budget=[told])[0])


def test_the_full_paper_is_left_out_without_a_gpu(toy, tmp_path, capsys):
    toy("learn", "evaluate", methods=("paper",))
    assert "full size: needs a GPU, left out" in capsys.readouterr().out
    assert not files(tmp_path)


# ---- made-up cells


def test_cells_are_packed_into_one_file_and_unpacked_where_they_are_missing(tmp_path):
    for seed in range(2):
        put(tmp_path / "cells", seed=seed, over=seed)
    put_data(tmp_path / "cells", "pendulum", [(1, 9)] * 5)
    first, flags = (
        tmp_path / "page-cells.json.gz",
        {"stages": ("page",), "page": tmp_path / "again" / "page.md"},
    )
    main(Arguments(output=tmp_path / "cells", stages=("page",), page=tmp_path / "page.md"))
    other = cell_path(tmp_path / "other", "pendulum", "calibrated-0.2", 1, 0.2)
    put(tmp_path / "other", seed=1, over=7)
    kept = other.read_bytes()
    main(Arguments(output=tmp_path / "other", unpack=first, **flags))
    assert other.read_bytes() == kept and len(files(tmp_path / "other")) == 3
    other.unlink()
    main(Arguments(output=tmp_path / "other", unpack=first, **flags))
    for name in ("page.md", "page-cells.json.gz"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no gzip", "holds no packed cells"),
        (
            gzip.compress(b'{"pendulum/../../evil.json": {}}', mtime=0),
            "which is no cell's name; nothing was unpacked",
        ),
        (gzip.compress(b'{"pendulum/magic/a.json": {}}', mtime=0), "no cell's name"),
        (gzip.compress(b'["pendulum/data.json"]', mtime=0), "holds no packed cells"),
        (gzip.compress(b"{}", mtime=0)[:-9], "holds no packed cells"),
    ],
)
def test_a_file_that_holds_no_cells_is_not_unpacked(tmp_path, content, message):
    (tmp_path / "packed").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        unpack(tmp_path / "packed", tmp_path / "cells")
    assert not (tmp_path / "cells").exists() and not (tmp_path / "evil.json").exists()


def records(budget, *, over=0, count=20, earned=200.0, spent=0.8, feasible=1.0):
    """Episodes that cost a share of the budget, of which some cost 1 more than it."""
    costs = [budget + 1.0 if index < over else spent * budget for index in range(count)]
    return [
        EpisodeRecord(budget, i, earned, cost, 9, budget - cost, cost <= budget, feasible=feasible)
        for i, cost in enumerate(costs)
    ]


def put(
    output,
    task="pendulum",
    method="calibrated-0.2",
    ratio=0.2,
    seed=0,
    *,
    refused=None,
    certified=True,
    **made,
):
    budget = 60.0 * ratio
    evaluation = None if refused else json.loads(Evaluation(tuple(records(budget, **made))).to_json())
    write_cell(
        cell_path(output, task, method, seed, ratio),
        {"method": method, "seed": seed, "ratio": ratio, "budget": budget, "models": f"m{seed}"},
        {"evaluation": evaluation, "certified": certified, "refused": refused},
        seconds=2.0,
        device="cpu",
    )


def put_data(output, task, sides):
    found = {"name": task, "steps": 100, "episodes": 10, "maximum_budget": 60.0, "rule": "made up"}
    found |= {"returns": [0.0, 1.0], "costs": [0.0, 1.0], "build_seconds": 90.0}
    found["sides"] = {f"{ratio:g}": list(pair) for ratio, pair in zip(RATIOS, sides, strict=True)}
    write_cell(part_path(output, task, "data"), {}, found, seconds=1.0, device="cpu")


def verdict(verdicts, name):
    (found,) = [item for item in verdicts if item.name == name]
    return found


def test_the_share_up_to_which_a_risk_is_kept():
    assert greatest_share(0.05) == pytest.approx(0.1051, abs=1e-4)
    assert greatest_share(0.2) == pytest.approx(0.3012, abs=1e-4)
    assert greatest_share(0.05, 300) == pytest.approx(0.0747, abs=1e-4)  # more episodes are held to more


def test_risks_are_met_and_missed_by_the_share_over_all_training_seeds(tmp_path):
    for seed in range(3):
        put(tmp_path, ratio=0.2, seed=seed, over=6)  # 18 of 60 are 0.300
        put(tmp_path, ratio=0.4, seed=seed, over=6 + (seed == 0))  # 19 of 60 are 0.317
        put(tmp_path, method="calibrated-0.05", ratio=0.2, seed=seed, over=6)
        put(tmp_path, ratio=0.8, seed=seed, count=19)
    put(tmp_path, ratio=0.6, seed=0)
    found = risk_verdicts(Results(tmp_path))
    assert len(found) == 2 * 5 * len(TASKS)
    assert verdict(found, "pendulum, ratio 0.2, risk 0.2").status == "met"
    missed = verdict(found, "pendulum, ratio 0.4, risk 0.2")
    assert missed.status == "missed" and missed.said == "19 of 60 episodes over: 0.317, at most 0.301"
    assert verdict(found, "pendulum, ratio 0.2, risk 0.05").status == "missed"
    for ratio in ("0.6", "0.8", "1"):
        assert verdict(found, f"pendulum, ratio {ratio}, risk 0.2").status == "not measured"


def test_what_is_refused_or_not_certified_is_missed_unless_nothing_was_ever_feasible(tmp_path):
    for seed in range(3):
        put(tmp_path, ratio=0.2, seed=seed, certified=seed != 1)
        put(tmp_path, ratio=0.4, seed=seed, refused="too few episodes" if seed == 2 else None)
        put(tmp_path, ratio=0.6, seed=seed)
    found = risk_verdicts(Results(tmp_path))
    first = verdict(found, "pendulum, ratio 0.2, risk 0.2")
    assert (first.status, first.said) == ("missed", "0 of 60 episodes over; training seed 1: not certified")
    second = verdict(found, "pendulum, ratio 0.4, risk 0.2")
    assert second.status == "missed" and "training seed 2: too few episodes" in second.said
    assert verdict(found, "pendulum, ratio 0.6, risk 0.2").status == "met"
    for seed in range(3):
        put(tmp_path, ratio=0.2, seed=seed, certified=False, feasible=0.0)
    found = risk_verdicts(Results(tmp_path))
    assert verdict(found, "pendulum, ratio 0.2, risk 0.2").status == "excused"


def test_what_is_spent_counts_where_the_data_hold_episodes_on_both_sides(tmp_path):
    for task in TASKS:
        put_data(tmp_path, task, [(0, 10), (3, 7), (5, 5), (9, 1), (10, 0)])
        for seed in range(3):
            for ratio in RATIOS:
                low = task == "hopper" or (task == "reacher" and ratio == 0.4) or ratio in (0.2, 1.0)
                put(tmp_path, task=task, ratio=ratio, seed=seed, spent=0.5 if low else 0.8)
    whole, cells = spending_verdicts(Results(tmp_path))
    assert len(cells) == 15
    assert (whole.status, whole.said) == ("met", "11 of 15 measured cells (73%)")
    assert [cell.name for cell in cells if cell.status == "missed"] == [
        "reacher, ratio 0.4",
        "hopper, ratio 0.4",
        "hopper, ratio 0.6",
        "hopper, ratio 0.8",
    ]
    for seed in range(3):
        put(tmp_path, task="walker2d", ratio=0.4, seed=seed, spent=0.69)
    assert spending_verdicts(Results(tmp_path))[0].status == "missed"
    cell_path(tmp_path, "walker2d", "calibrated-0.2", 0, 0.4).unlink()
    assert spending_verdicts(Results(tmp_path))[0].status == "not measured"


def test_returns_of_the_pendulum_are_held_against_their_own_targets(tmp_path):
    assert PENDULUM_RETURNS == {0.2: 145.0, 0.4: 155.0, 0.6: 165.0, 0.8: 172.0, 1.0: 178.0}
    for seed in range(3):
        put(tmp_path, ratio=0.2, seed=seed, earned=145.0)
        put(tmp_path, ratio=0.4, seed=seed, earned=154.9)
        put(tmp_path, ratio=0.6, seed=seed, refused="too few episodes")
    found = [verdict.status for verdict in return_verdicts(Results(tmp_path))]
    assert found == ["met", "missed", "missed", "not measured", "not measured"]


def test_budgets_that_move_are_missed_where_they_are_broken_though_feasible(tmp_path):
    for name, feasible, over in (("drop", 1.0, 7), ("raise", 1.0, 6), ("late", 0.0, 20)):
        for seed in range(3):
            moved = [
                dataclasses.replace(record, changed_budget=1.0)
                for record in records(36.0, over=over, feasible=feasible)
            ]
            # these ended before their change, and tell nothing of it
            unchanged = {"drop": None, "late": math.inf}.get(name)
            moved += [
                dataclasses.replace(record, changed_budget=unchanged, feasible=None)
                for record in (moved if name in ("drop", "late") else [])
            ]
            write_cell(
                part_path(tmp_path, "pendulum", f"moved-{name}-{seed}"),
                {"seed": seed, "ratio": 0.6, "budget": 36.0},
                {"evaluation": json.loads(Evaluation(tuple(moved)).to_json())},
                seconds=1.0,
                device="cpu",
            )
    found = moved_verdicts(Results(tmp_path))
    assert verdict(found, "pendulum, drop").status == "missed"
    assert verdict(found, "pendulum, raise").status == "met"
    late = verdict(found, "pendulum, late")
    assert late.status == "met" and "never feasible in 60; 60 more" in late.said
    assert verdict(found, "pendulum, walk").status == "not measured"
    write_page(tmp_path, tmp_path / "page.md")
    rows = [line.split(" | ") for line in (tmp_path / "page.md").read_text().splitlines()]
    (drop,) = [row for row in rows if row[:2] == ["| pendulum", "drop"]]
    assert drop[2:4] == ["120", "0.50"] and drop[6] == "0.35"
    assert verdict(found, "pendulum, drop").said.endswith("; 60 more ended before their change")


def test_the_papers_returns_are_held_against_ours_on_the_same_episodes(tmp_path):
    assert paper_verdicts(Results(tmp_path)) == []
    for ratio, earned, over in ((0.2, 100.0, 2), (0.6, 100.0, 0), (1.0, 100.0, 0)):
        put(tmp_path, method="paper-reduced", ratio=ratio, earned=earned, over=over, count=6)
    put(
        tmp_path, method="uncalibrated", ratio=0.2, earned=95.1, over=6
    )  # all over, of which 6 of the 6 are paired
    put(tmp_path, method="calibrated-0.2", ratio=0.2, earned=95.1, over=2)
    put(tmp_path, method="calibrated-0.2", ratio=0.6, earned=94.9)
    put(tmp_path, method="calibrated-0.2", ratio=1.0, seed=1, earned=120.0)  # of another training seed
    found = paper_verdicts(Results(tmp_path))
    assert len(found) == 6
    paper = "against the paper's networks and sampler, reduced"
    first = verdict(found, f"pendulum, ratio 0.2, default, calibrated at risk 0.2, {paper}")
    assert first.status == "met"
    assert first.said == "6 pairs: return -4.9 [-4.9, -4.9] on 100.0, share over 0.33 against 0.33"
    assert verdict(found, f"pendulum, ratio 0.2, default, uncalibrated, {paper}").status == "missed"
    assert verdict(found, f"pendulum, ratio 0.6, default, calibrated at risk 0.2, {paper}").status == "missed"
    assert (
        verdict(found, f"pendulum, ratio 1, default, calibrated at risk 0.2, {paper}").status
        == "not measured"
    )


def test_the_page_of_no_cells_says_that_nothing_is_measured(tmp_path):
    write_page(tmp_path / "cells", tmp_path / "results.md")
    text = (tmp_path / "results.md").read_text()
    assert "\n0 of 403 cells are there" in text
    assert "In all: 0 met, 0 missed, 81 not measured." in text
    assert "There are no cells yet." in text and "images/" not in text
    assert not (tmp_path / "images").exists()
    assert text.count("- pendulum, ") == len(METHODS)  # each is listed as not measured


def test_the_page_names_misses_gaps_and_cells_that_do_not_belong_together(tmp_path):
    output, page = tmp_path / "cells", tmp_path / "docs" / "results.md"
    put_data(output, "pendulum", [(1, 9)] * 5)
    for seed in range(3):
        put(output, ratio=0.2, seed=seed, over=8)
    put(output, ratio=0.4, seed=1)
    write_page(output, page)
    text = page.read_text()
    assert "- missed: pendulum, ratio 0.2, risk 0.2: 24 of 60 episodes over: 0.400, at most 0.301" in text
    (row,) = [
        line
        for line in text.splitlines()
        if line.startswith("| default, calibrated at risk 0.2 | 0.2 | 12 |")
    ]
    assert row.split(" | ")[3:] == [
        "60",
        "200.0 [200.0, 200.0]",
        "10.96 [10.56, 11.36]",
        "0.91",
        "0.40",
        "1.00",
        "",
        " |",
    ]
    assert "| 1 of 3 training seeds |" in text
    assert (
        "- pendulum, default, calibrated at risk 0.2: ratio 0.4: training seeds 0, 2; ratios 0.6, 0.8, 1: "
        in text
    )
    assert "| pendulum | 2 min |  |  |  | 8 s (4) |" in text
    assert "![Return and cost / budget on SafePendulum-v0](images/results-pendulum.png)" in text
    assert (page.parent / "images" / "results-pendulum.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in (page.parent / "images").iterdir()] == ["results-pendulum.png"]
    assert "do not belong together" not in text
    path = cell_path(output, "pendulum", "calibrated-0.2", 1, 0.4)
    path.write_text(path.read_text().replace('"m1"', '"another"'))
    write_page(output, page)
    assert "do not belong together" in page.read_text()


def test_the_plot_of_methods_names_those_that_are_there(tmp_path):
    some = [Evaluation(tuple(records(budget))) for budget in (12.0, 24.0)]
    plot_methods({"first": some, "second": None, "third": some[:1]}, tmp_path / "plot.svg", title="Toy")
    texts = svg_texts(tmp_path / "plot.svg")
    assert {"first", "third", "Toy", "cost / budget, mean"} <= set(texts) and "second" not in texts


def test_a_budget_whose_mean_is_rounded_otherwise_is_one_place_in_the_plot_of_methods(tmp_path):
    some = [Evaluation(tuple(records(budget))) for budget in (12.0, 24.0)]
    near = [Evaluation(tuple(records(float(np.nextafter(budget, 99.0))))) for budget in (12.0, 24.0)]
    plot_methods({"first": some, "second": near}, tmp_path / "plot.svg")
    texts = svg_texts(tmp_path / "plot.svg")
    assert texts.count("12") == texts.count("24") == 2  # once for each of the two pictures


def test_the_page_says_which_cells_are_of_another_configuration_than_is_asked_for_now(tmp_path):
    output, page = tmp_path / "cells", tmp_path / "results.md"
    for task in ("pendulum", "hopper"):
        for seed in range(2):
            put(output, task, seed=seed)
            path = cell_path(output, task, "calibrated-0.2", seed, 0.2)
            document = json.loads(path.read_text())
            config = json.loads(json.dumps(config_of(TASKS[task], "default").to_dict()))
            del config["planner"][
                "retry_guide_scale"
            ]  # as if from before there was this; None is what it then did
            if task == "hopper" and seed:
                config["planner"]["guide_scale"] = 0.125
            document["request"]["config"] = config
            path.write_text(json.dumps(document))
    write_page(output, page)
    (said,) = [line for line in page.read_text().splitlines() if "earlier configuration" in line]
    assert said.startswith("    - hopper: ") and "--redo" in said
    assert "planner.retry_guide_scale was null, is 0.0" in said
    assert "planner.guide_scale was 0.125, is 0.3" in said
    assert Results(output).outdated().keys() == {"hopper"}

    put_data(output, "pendulum", [(1, 1)] * 5)
    asked = {"episodes": 100, "planned": [60.0 * ratio for ratio in TASKS["pendulum"].planned_ratios]}
    for episodes, flagged in ((100, False), (99, True)):
        request = asked | {"episodes": episodes}
        write_cell(
            part_path(output, "pendulum", "calibrate-pendulum-0"), request, {}, seconds=1.0, device="cpu"
        )
        assert ("pendulum" in Results(output).outdated()) == flagged
    asked["planned"][3] += 0.1
    write_cell(part_path(output, "pendulum", "calibrate-pendulum-0"), asked, {}, seconds=1.0, device="cpu")
    assert Results(output).outdated()["pendulum"].startswith("calibration.planned_ratios was [0.0, 0.18")
