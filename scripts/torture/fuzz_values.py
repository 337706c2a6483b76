"""Calibrations, budgets, observations, arguments and command lines made hostile."""

from __future__ import annotations

import contextlib
import io
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trebi_gym import Budget
from trebi_gym.agents import TREBIAgent
from trebi_gym.commands.cli import main
from trebi_gym.datasets import EpisodeDataset, save
from trebi_gym.errors import TrebiError
from trebi_gym.evaluation.evaluate import evaluate_budgets

from . import fuzz_agents, hostile
from .cases import Case, kind, must, mutator
from .material import ENV, Made, make_agent

OBSERVATION, BUDGET = fuzz_agents.OBSERVATION, fuzz_agents.BUDGET
HELD_OUT = {
    "kind": "held-out", "excesses": [0.5, 1.0, 2.0], "dataset": "torture", "discount": 1.0, "greatest_step_cost": None,
}  # fmt: skip


# calibration files


@kind("calibrations", "calibrations in agents' files, and files of interrupted ones", make_agent)
def calibrations(case: Case) -> None:
    made: Made = case.material
    if case.rng.random() < 0.7:
        saved = fuzz_agents.pieces(made.path)
        if case.rng.random() < 0.3:
            kept = {name: saved.document["calibration"][name] for name in ("planner", "models")}
            saved.document["calibration"] = {**HELD_OUT, **kept}
        before = json.dumps(saved.document)
        case.mutate(saved.document["calibration"], most=3)
        if case.rng.random() < 0.3:
            saved.document["risk"] = hostile.value(case)
        path = case.folder / "agent.zip"
        path.write_bytes(saved.pack())
        agent = TREBIAgent.load(path, device="cpu")
        action = fuzz_agents.act(agent)
        if json.dumps(saved.document) == before:
            must(np.array_equal(action, fuzz_agents.act(made.agent)), f"acts with {action}")
        _check_promise(agent)
    else:
        agent = TREBIAgent.load(made.path, device="cpu")
        keep = case.folder / "agent.calibration.json"
        keep.write_bytes(_interrupted(case))
        case.write_notes()
        ask = {"risk": 0.5, "confidence": 0.5, "episodes": 4, "budgets": [0.0, 20.0], "progress_bar": False}
        agent.calibrate(ENV, keep=keep, **ask)
        _check_promise(agent)


def _check_promise(agent: TREBIAgent) -> None:
    """What is planned for at a risk is a number or no limit, never below zero, and the reserve fits it."""
    if agent.calibration is None:
        return
    for risk in (0.5, 0.9):
        planned, _ = agent.calibration.planned_for(np.array([0.0, 5.0, 1e6]), risk)
        must(not np.isnan(planned).any() and (planned >= 0).all(), f"budgets are planned for as {planned}")


def _interrupted(case: Case) -> bytes:
    tree = {
        "request": {"env_id": ENV, "planned": [0.0, 20.0], "episodes": 4, "seed": 1_000_000},
        "cells": {"0": {"costs": [1.0, 2.0, 3.0, 4.0], "return": 5.0, "greatest_step_cost": 2.0}},
    }
    if case.rng.random() < 0.3:
        return hostile.spoil_json(json.dumps(tree), case)
    hostile.spoil_tree(tree if case.rng.random() < 0.5 else tree["cells"], case)
    return json.dumps(tree).encode()


@mutator("calibrations")
def entry(tree: Any, case: Case) -> None:
    hostile.spoil_tree(tree, case)


@mutator("calibrations")
def numbers(tree: Any, case: Case) -> None:
    name = case.pick([name for name in tree if name in ("planned", "costs", "returns", "excesses")])
    row = case.pick(tree[name]) if name == "costs" else tree[name]
    row[int(case.rng.integers(len(row)))] = hostile.value(case)
    case.note(f"{name}: {str(row)[:60]}")


@mutator("calibrations")
def lengths(tree: Any, case: Case) -> None:
    name = case.pick([name for name in tree if name in ("planned", "costs", "returns", "excesses")])
    tree[name] = case.pick((tree[name][:-1], tree[name] + tree[name], [], tree[name][::-1]))
    case.note(f"{name}: {len(tree[name])}")


# budgets and observations


def _prepare_budgets(folder: Path) -> Made:
    return make_agent(folder)


@kind("budgets", "budgets given to predict, and Budget itself", _prepare_budgets)
def budgets(case: Case) -> None:
    agent = case.material.agent
    made = case.pick((_scalar, _array, _budget, _object))(case)
    case.note(repr(made))
    case.write_notes()
    agent.set_risk(case.pick((None, 0.5)))
    action, state = agent.predict(OBSERVATION, budget=made, deterministic=True)
    must(np.isfinite(action).all(), f"acts with {action}")
    for name in ("rewards", "costs", "limits", "least"):
        must(not np.isnan(getattr(state, name)).any(), f"state.{name} is {getattr(state, name)}")
    plain = _plain(made)
    must(plain is not None, "took something that is no budget")
    if math.isfinite(plain):  # the same as a plain number
        same, _ = agent.predict(OBSERVATION, budget=plain, deterministic=True)
        if not isinstance(made, Budget | list | tuple):
            must(np.array_equal(same, action), f"acts with {action}; {same} for the plain {plain}")


def _plain(made: Any) -> float | None:
    if isinstance(made, Budget):
        return float(made.remaining)
    if isinstance(made, (list, tuple)) and len(made) == 1 and isinstance(made[0], Budget):
        return float(made[0].remaining)
    try:
        array = np.asarray(made.detach() if hasattr(made, "detach") else made)
        real = (
            array.dtype.kind in "fiuO"
            and array.size == 1
            and not isinstance(array.reshape(-1)[0], (str, bool))
        )
        return float(array.reshape(-1)[0]) if real else None
    except (TypeError, ValueError, OverflowError):
        return None


def _scalar(case: Case) -> Any:
    word = case.pick((*hostile.NUMBERS, 3.0, 8, 1e12, 1e13, -5.0, 2**53 + 1))
    with contextlib.suppress(OverflowError, ValueError, TypeError), np.errstate(all="ignore"):
        return case.pick(
            (float, int, np.float32, np.float64, np.int64, np.float16, np.longdouble, lambda x: x)
        )(word)
    return word


def _array(case: Case) -> Any:
    with contextlib.suppress(OverflowError, ValueError, TypeError), np.errstate(all="ignore"):
        array = np.full(case.pick(((), (1,), (1, 1), (2,), (0,), (1, 1, 1))), _scalar(case))
        dtype = case.pick((None, np.float32, np.int32, bool, complex, object, "S3", "datetime64[s]"))
        array = array if dtype is None else array.astype(dtype)
        return case.pick(
            (
                lambda x: x,
                lambda x: x,
                np.ndarray.tolist,
                lambda x: torch.tensor(x, requires_grad=x.dtype.kind == "f"),
            )
        )(array)
    return None


def _budget(case: Case) -> Any:
    words = [_scalar(case) if case.rng.random() < 0.5 else good for good in (8.0, 1.0, 2.0, 1)]
    budget = Budget(*words)
    if case.rng.random() < 0.3:
        budget = budget.charge(_scalar(case))
    return case.pick((budget, [budget], (budget, budget), [budget, 1.0]))


def _object(case: Case) -> Any:
    return case.pick(
        (*hostile.OTHERS, object(), lambda: 3.0, b"3", range(1), {3.0}, np.array([None]), float, "inf", "nan")
    )


@kind("observations", "observations given to predict, plan and smallest_budget", _prepare_budgets)
def observations(case: Case) -> None:
    agent = case.material.agent
    made = case.pick((_numbers, _numbers, _mapping, _object))(case)
    case.note(repr(made))
    case.write_notes()
    verb = case.pick(("predict", "predict", "plan", "smallest_budget"))
    case.note(verb)
    if verb == "smallest_budget":
        found = np.asarray(agent.smallest_budget(made))
        must(np.isfinite(found).all() and (found >= 0).all(), f"the smallest budget is {found}")
    elif verb == "plan":
        plan = agent.plan(made, budget=BUDGET)
        must(np.isfinite(np.asarray(plan.actions)).all(), "plans actions that are not finite")
    else:
        carry = case.pick((None, None, "state", 3))
        state = agent.predict(OBSERVATION, budget=BUDGET)[1] if carry == "state" else carry
        start = case.pick((None, None, [True], np.array([False]), np.array([True, False]), "x", 1.5))
        case.note(f"state {carry} start {start}")
        given = None if isinstance(made, dict) and "budget" in made else BUDGET
        action, told = agent.predict(made, state, start, deterministic=True, budget=given)
        must(np.isfinite(action).all(), f"acts with {action}")
        for name in ("rewards", "costs", "limits", "least"):
            must(np.isfinite(getattr(told, name)).all(), f"state.{name} is {getattr(told, name)}")
        array = np.asarray(
            made["observation"]
            if isinstance(made, dict)
            else made.detach()
            if hasattr(made, "detach")
            else made
        )
        must(action.shape[:-1] == array.shape[:-1], f"{action.shape} for observations {array.shape}")


def _numbers(case: Case) -> Any:
    shape = case.pick(((3,), (3,), (1, 3), (5, 3), (0, 3), (2,), (3, 1), (1, 1, 3), ()))
    array = np.array(case.rng.normal(size=shape))
    if array.size and case.rng.random() < 0.6:
        word = case.pick((np.nan, np.inf, 1e30, 1e300, -1e12, 1e6, 5e-324, 1e38))
        array.reshape(-1)[int(case.rng.integers(array.size))] = word
    dtype = case.pick((None, None, "f4", "f2", "i8", "?", "c16", "O", "S5", ">f8", "g"))
    with np.errstate(all="ignore"), contextlib.suppress(TypeError, ValueError):
        array = array.astype(dtype) if dtype else array
    way = case.pick(("array", "array", "list", "tensor", "strided", "masked"))
    if way == "list":
        return array.tolist()
    if way == "tensor":
        with contextlib.suppress(TypeError, ValueError):
            return torch.as_tensor(array)
    if way == "strided" and array.ndim:
        return np.repeat(array, 2, axis=0)[::2]
    if way == "masked":
        return np.ma.masked_array(array, mask=array != array)
    return array


def _mapping(case: Case) -> Any:
    tree: dict[str, Any] = {"observation": _numbers(case), "budget": 8.0, "steps_left": 3.0}
    for name in list(tree):
        if case.rng.random() < 0.3:
            tree[name] = case.pick((hostile.value(case), _numbers(case)))
        if case.rng.random() < 0.1:
            del tree[name]
    return tree


# arguments of the verbs


@kind(
    "arguments",
    "arguments of evaluate_budgets, calibrate, select, learn, set_planner, save, the constructors",
    _prepare_budgets,
)
def arguments(case: Case) -> None:
    verb = case.pick(sorted(VERBS))
    base = dict(VERBS[verb][0])
    for _ in range(int(case.rng.integers(1, 3))):
        name = case.pick(base)
        base[name] = _of_kind(base[name], case)
        case.note(f"{verb}({name}={base[name]!r})")
    case.write_notes()
    VERBS[verb][1](case, base)


def _evaluate(case: Case, given: dict[str, Any]) -> None:
    for name in ("episodes", "n_envs"):
        _bounded(given, name, 50)
    if isinstance(given["budgets"], (list, tuple, np.ndarray)) and np.size(given["budgets"]) > 20:
        return
    result = evaluate_budgets(case.material.agent, ENV, **given)
    again = [record.cost for record in result.records]
    must(np.isfinite(again).all(), f"costs {again}")
    must(all(record.length > 0 for record in result.records), "an episode without a step")


def _of_kind(good: Any, case: Case) -> Any:
    """Return something hostile that could be meant for what ``good`` is: a number, a list of numbers or a text."""
    if isinstance(good, str):
        return case.pick(
            ("", "x", "x" * 300, "é\u202e", "../x", "cuda", "cpu:99", "a.ZIP", "a\0b", ".", "a/b/c")
        )
    if isinstance(good, list) and good and isinstance(good[0], str):
        return case.pick(([], ["x"], "diffusion", ["diffusion"], [None], ["diffusion", "diffusion"], {}))
    return case.pick(
        (_scalar, _array, lambda _: case.pick((None, True, "3", "nan", [], [1.0], [None], ["x"], {})))
    )(case)


def _bounded(given: dict[str, Any], name: str, most: float) -> None:
    """Leave out what would be honest work for hours."""
    with contextlib.suppress(TypeError, ValueError, RuntimeError):
        if float(given[name]) > most and not math.isinf(float(given[name])):
            given[name] = most if isinstance(given[name], int) else given[name] % most


def _select(case: Case, given: dict[str, Any]) -> None:
    dataset: EpisodeDataset = case.material.dataset
    wanted = np.asarray(given["indices"])
    try:
        found = dataset.select(given["indices"])
    except IndexError as error:  # Python's own word for a place that is not there
        raise TrebiError(str(error)) from error
    if wanted.dtype.kind in "iu" and wanted.ndim == 1:
        must(np.array_equal(found.episode_costs, dataset.episode_costs[wanted]), "selects other episodes")
    elif wanted.dtype.kind == "b":
        must(wanted.shape == (len(dataset),), f"takes a mask of shape {wanted.shape}")
        must(
            np.array_equal(found.episode_costs, dataset.episode_costs[wanted]), "does not select by the mask"
        )
    else:
        must(wanted.dtype.kind not in "fc", f"selects by {given['indices']!r}")


def _split(case: Case, given: dict[str, Any]) -> None:
    learned, held = case.material.dataset.split(**given)
    must(len(learned) + len(held) == len(case.material.dataset), "episodes are lost in the split")


def _calibrate(case: Case, given: dict[str, Any]) -> None:
    for name in ("episodes", "n_envs"):
        _bounded(given, name, 30)
    if np.size(given["budgets"]) > 20:
        return
    agent = TREBIAgent.load(case.material.path, device="cpu")
    agent.calibrate(ENV, progress_bar=False, **given)
    _check_promise(agent)


def _learn(case: Case, given: dict[str, Any]) -> None:
    for name in ("total_steps", "log_interval"):
        _bounded(given, name, 50)
    agent = TREBIAgent(config=case.material.agent.config, seed=0, device="cpu")
    agent.learn(case.material.dataset, progress_bar=False, **given)
    asked = given["total_steps"]
    if asked is not None:
        must(agent.num_timesteps == asked, f"{agent.num_timesteps} steps where {asked!r} were asked for")


def _planner(case: Case, given: dict[str, Any]) -> None:
    _bounded(given, "candidates", 500)
    agent = TREBIAgent.load(case.material.path, device="cpu").set_planner(**given)
    agent.set_risk(None)
    fuzz_agents.act(agent)


def _construct(case: Case, given: dict[str, Any]) -> None:
    TREBIAgent(config=case.material.agent.config, **given)


def _seeded(case: Case, given: dict[str, Any]) -> None:
    agent = TREBIAgent.load(case.material.path, device="cpu")
    agent.set_random_seed(given["seed"])
    fuzz_agents.act(agent)


def _save(case: Case, given: dict[str, Any]) -> None:
    agent = TREBIAgent.load(case.material.path, device="cpu")
    path = given["path"]
    if isinstance(path, str) and path.startswith(("..", "/")):
        return
    found = agent.save(path, parts=given["parts"])
    if len(given["parts"]) == 4:
        fuzz_agents.act(TREBIAgent.load(found, device="cpu"))


VERBS: dict[str, tuple[dict[str, Any], Callable[[Case, dict[str, Any]], None]]] = {
    "evaluate_budgets": ({"budgets": [3.0], "episodes": 1, "n_envs": 1, "seed": 0, "discount": 1.0}, _evaluate),
    "select": ({"indices": [0, 2]}, _select),
    "split": ({"share": 0.3, "seed": 0}, _split),
    "calibrate": (
        {"risk": 0.5, "confidence": 0.5, "episodes": 3, "budgets": [1.0], "seed": 7, "discount": 1.0, "n_envs": 1},
        _calibrate,
    ),
    "learn": ({"total_steps": 8, "log_interval": 100}, _learn),
    "set_planner": (
        {"candidates": 4, "sampler": "ddim", "sampler_steps": 2, "guide_scale": 0.1, "cost_weight": 1.0, "guide_moves": 1,
         "margin": 0.1, "control_interval": 1, "cost_level": 0.1, "precision": "float32", "ranking": "outcome"}, _planner),
    "TREBIAgent": ({"seed": 0, "device": "cpu"}, _construct),
    "set_random_seed": ({"seed": 0}, _seeded),
    "save": ({"path": "agent", "parts": ["diffusion", "reward_critic", "cost_critic", "outcome_critic"]}, _save),
}  # fmt: skip


# command lines


def _prepare_commands(folder: Path) -> tuple[Made, Path]:
    made = make_agent(folder)
    dataset = folder / "data.hdf5"
    save(made.dataset, dataset)
    return made, dataset


ACT = f"AGENT --env {ENV} --episodes 1"
COMMANDS = {
    "info": "info DATA",
    "info agent": "info AGENT",
    "info plot": "info DATA --plot OUT/plot.png",
    "convert": "convert --dataset DATA --output OUT/new.hdf5 --format dsrl",
    "convert minari": "convert --dataset DATA --output OUT/new-v0 --format minari",
    "evaluate": f"evaluate {ACT} --budgets 3 --n-envs 1 --seed 3",
    "evaluate schedule": f"evaluate {ACT} --budgets 9 --schedule drop:share=0.2,step=2",
    "evaluate change": f"evaluate {ACT} --ratios 0.5 --change 2:4 --risk 0.5",
    "record": f"record AGENT --env {ENV} --budget 5 --output OUT/film.mp4 --seed 1",
    "calibrate": (
        f"calibrate AGENT --env {ENV} --episodes 3 --risk 0.5 --confidence 0.5 --budgets 0 9 --output OUT/agent.zip"
    ),
    "critics": "critics AGENT --dataset DATA --windows 20 --output OUT/critics",
    "learn": "learn --dataset DATA --output OUT/agent.zip --total-steps 4 --checkpoint-every 0",
    "learn-part": "learn-part cost_critic --agent AGENT --dataset DATA --output OUT/agent.zip --total-steps 2",
    "generate": (
        f"generate --dataset {ENV} --datatype random --total-step 20 --output OUT/made.hdf5 --n-envs 1"
    ),
}
WORDS = (
    "", " ", "-1", "0", "1", "nan", "inf", "-inf", "1e300", "1e-300", "0.5", "2", "999999999999999999999", "x" * 300,
    "é\u202e",
    "../..", "/", ".", "OUT", "AGENT", "DATA", "/dev/null", "/proc/self/mem", "--", "-h", "--help", "None", "True", "drop:",
    "no_such_module:run", "no_such_module:Env-v0", "walk:size=nan,every=0", "100:6", "1:-1", ":", "1e3:2", "CartPole-v1",
    "SafePendulum-v0", "NoSuch-v0", "arrow", "OUT/a/b/c.zip", "OUT/" + "y" * 250 + ".zip", "cuda", "cpu:99", "file://x",
)  # fmt: skip
WORK = (
    "--episodes",
    "--total-step",
    "--total-steps",
    "--windows",
    "--n-envs",
    "--checkpoint-every",
    "--budgets",
    "--ratios",
)


@kind("commands", "command lines of trebi", _prepare_commands)
def commands(case: Case) -> None:
    made, dataset = case.material
    agent, data, out = case.folder / "agent.zip", case.folder / "data.hdf5", case.folder / "out"
    shutil.copy(made.path, agent)
    shutil.copy(dataset, data)
    line = COMMANDS[case.pick(sorted(COMMANDS))].split()
    case.mutate(line, most=2)
    names = {"AGENT": str(agent), "DATA": str(data)}
    line = [names.get(word, word.replace("OUT", str(out))) for word in line]
    case.note(" ".join(line))
    case.write_notes()
    before = {path: path.read_bytes() for path in (agent, data)}
    stdout, stderr, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            main(line)
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 2
            if ended.__cause__ is not None and not isinstance(ended.__cause__, (TrebiError, OSError)):
                cause = ended.__cause__
                must("gymnasium" in type(cause).__module__, f"{type(cause).__name__}: {cause}", "foreign")
    said = stderr.getvalue() + stdout.getvalue()
    must("Traceback" not in said, said[-300:], "foreign")
    must(code in (0, 2), f"exit status {code}")
    litter = [
        path.name
        for path in case.folder.rglob("*")
        if ".tmp" in path.name or path.name.endswith(".partial.zip")
    ]
    must(not litter, f"left {litter}", "litter")
    if code == 2:
        must(said.strip(), "refused without a word", "foreign")
        for path, content in before.items():
            must(path.is_file() and path.read_bytes() == content, f"refused, but changed {path.name}", "lost")
        raise TrebiError(said.strip()[-300:])


@mutator("commands")
def word(line: list[str], case: Case) -> None:
    at = int(case.rng.integers(1, len(line)))
    if line[at - 1] in WORK:
        line[at] = case.pick(("", "-1", "0", "x", "nan", "1.5", "1e3"))
    else:
        line[at] = case.pick(WORDS)


@mutator("commands")
def more(line: list[str], case: Case) -> None:
    flag = case.pick(
        ("--seed", "--device", "--risk", "--change", "--schedule", "--cost", "--name", "--episode-length", "--config",
         "--env",
         "--maximum", "--log-folder", "--policy", "--hyperparameters", "--set", "--learning-rate", "--keep-run", "--noise",
         "--algo", "--dataset", "--output", "--format", "--budget", "--plot", "--confidence", "--unknown")
    )  # fmt: skip
    line += [flag, case.pick(WORDS)]


@mutator("commands")
def fewer(line: list[str], case: Case) -> None:
    del line[int(case.rng.integers(len(line)))]


@mutator("commands")
def twice(line: list[str], case: Case) -> None:
    line += line[-2:]


@mutator("commands")
def switch(line: list[str], case: Case) -> None:
    line.append(case.pick(("--resume", "--overwrite", "--uncalibrated", "--stochastic", "--optimised", "-x")))
