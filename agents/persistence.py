"""An agent to and from its file, and a learning run that goes on from one."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeVar

import gymnasium as gym
import numpy as np
import torch

from trebi_gym.agents import calibration, checkpoint
from trebi_gym.agents.checkpoint import Checkpoint
from trebi_gym.agents.config import TREBIConfig
from trebi_gym.agents.diffuser_import import read_published
from trebi_gym.agents.learning import Run
from trebi_gym.agents.models import EVERY_PART, Task, make_model, parts_of
from trebi_gym.agents.settings import usual_settings
from trebi_gym.agents.spaces import agent_spaces, spaces_of_dataset
from trebi_gym.datasets import AffineNormalizer, EpisodeDataset
from trebi_gym.datasets.recipes import RECIPES
from trebi_gym.errors import CheckpointError, ConfigError, NotLearnedError, TrebiError, shown

if TYPE_CHECKING:
    from trebi_gym.agents.trebi import TREBIAgent

A = TypeVar("A", bound="TREBIAgent")


@usual_settings()
def save(agent: TREBIAgent, path: str | os.PathLike[str], parts: Sequence[str] | None) -> Path:
    """Write the agent; see ``TREBIAgent.save``."""
    known = parts_of(agent.config)
    listed = isinstance(parts, Collection) and not isinstance(parts, (str, bytes))
    if parts is not None and not (listed and all(isinstance(part, str) and part in known for part in parts)):
        raise ConfigError(f"parts must be a list of {', '.join(known)}; got {shown(parts)}")
    chosen = [part for part in known if part in agent.models and (parts is None or part in parts)]
    run = agent.run if agent.run is not None and (parts is None or agent.run.part in parts) else None
    if agent.task is None or (not chosen and run is None):
        raise NotLearnedError(
            "there is nothing to save: the agent has learned no model yet; call learn(dataset)"
        )
    assert agent.observation_space is not None
    assert agent.action_space is not None
    task = agent.task
    description: dict[str, Any] = {
        "config": agent.config.to_dict(),
        "seed": agent.seed,
        "parts": chosen,
        "learned_from": agent.learned_from,
        "task": {
            "episode_length": task.episode_length,
            "cost_scale": task.cost_scale,
            "budget_factor": task.budget_factor,
        },
        "spaces": {
            "observation": str(agent.observation_space.dtype),
            "action": str(agent.action_space.dtype),
        },
        "trebi_gym": version("trebi-gym"),
        "torch": torch.__version__,
    }
    if agent.calibration is not None and len(chosen) == len(known):
        description |= {"calibration": agent.calibration.to_dict(), "risk": agent.risk}
    tensors = {
        "observations.center": torch.from_numpy(task.observations.center),
        "observations.scale": torch.from_numpy(task.observations.scale),
        "actions.center": torch.from_numpy(task.actions.center),
        "actions.scale": torch.from_numpy(task.actions.scale),
        "spaces.observation_low": torch.from_numpy(np.asarray(agent.observation_space.low, np.float64)),
        "spaces.observation_high": torch.from_numpy(np.asarray(agent.observation_space.high, np.float64)),
        "spaces.action_low": torch.from_numpy(np.asarray(agent.action_space.low, np.float64)),
        "spaces.action_high": torch.from_numpy(np.asarray(agent.action_space.high, np.float64)),
    }
    for part in chosen:
        tensors |= {f"model.{part}.{name}": value for name, value in agent.models[part].state_dict().items()}
    if run is not None:
        state = run.fit.state() if run.fit is not None else run.state or {}
        tensors |= {f"run.{name}": value for name, value in state.items()}
        description["run"] = {
            "parts": list(run.parts),
            "steps": run.steps,
            "part": run.part,
            "num_timesteps": agent.num_timesteps,
        }
    return checkpoint.write(path, description, tensors)


@usual_settings()
def load(cls: type[A], path: str | os.PathLike[str], env: Any, device: torch.device | str) -> A:
    """Read an agent; see ``TREBIAgent.load``."""
    try:
        files = _files(Path(path))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    agent: A | None = None
    for file in files:
        found = checkpoint.read(file)
        try:
            if agent is None:
                agent = _shell(cls, found, env, device)
                first = file
            elif _identity(found) != _identity(checkpoint.read(first)):
                raise CheckpointError(
                    f"{file} and {first} do not belong together: their configuration or normalisers differ; "
                    "train all parts with the same --config, --horizon and --dataset"
                )
            _take_models(agent, found)
            if "calibration" in found.description and len(files) == 1:
                agent.calibration = calibration.from_dict(found.description["calibration"])
                agent.risk = _risk(found.description.get("risk"))
        except TrebiError:
            raise
        except (LookupError, AttributeError, ArithmeticError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{file} does not hold what a saved agent needs: {error}") from error
    assert agent is not None
    return agent


def _risk(value: Any) -> float | None:
    return None if value is None else calibration.check_share(value, "risk")


def resume(agent: TREBIAgent, path: str | os.PathLike[str], parts: Sequence[str]) -> None:
    """Take finished models and the state of the running fit from a file that was saved while learning.

    Raises:
        CheckpointError: it belongs to another configuration or other data, or nothing in it is unfinished.
    """
    found = checkpoint.read(path)
    mine = {
        "config": agent.config.to_dict(),
        "learned_from": _unmarked(agent.learned_from),
        "seed": agent.seed,
    }
    theirs = {name: found.description.get(name) for name in mine} | {"config": _config(found).to_dict()}
    theirs["learned_from"] = _unmarked(theirs["learned_from"])
    mine = json.loads(json.dumps(mine))
    differing = [name for name in mine if mine[name] != theirs[name]]
    if differing:
        raise CheckpointError(
            f"{path} cannot be resumed here: its {', '.join(differing)} differ "
            f"({', '.join(f'{theirs[name]} there, {mine[name]} here' for name in differing)})"
        )
    run = found.description.get("run")
    if run is None:
        raise CheckpointError(f"{path} holds no unfinished learning run; load it with TREBIAgent.load(path)")
    if sorted(run["parts"]) != sorted(parts):
        raise CheckpointError(
            f"{path} was saved while learning {', '.join(run['parts'])}, not {', '.join(parts)}; "
            "resume it with the method that it was learned with"
        )
    assert agent.task is not None
    for name, normalizer in (("observations", agent.task.observations), ("actions", agent.task.actions)):
        stored = found.part(name)
        if not all(
            np.array_equal(stored[key].numpy(), getattr(normalizer, key)) for key in ("center", "scale")
        ):
            raise CheckpointError(f"{path} cannot be resumed here: it was learned from other {name}")
    agent.models.clear()
    _take_models(agent, found)
    agent.models.pop(run["part"], None)  # one that was stopped is in the file as it was then
    agent.num_timesteps = int(run["num_timesteps"])
    agent.run = Run(
        parts=tuple(run["parts"]), steps=dict(run["steps"]), part=run["part"], state=found.part("run")
    )


def _unmarked(value: Any) -> Any:
    """Return what an agent keeps of its data without the marks of single episodes: files from before have none."""
    if not isinstance(value, Mapping):
        return value
    return {key: _unmarked(item) for key, item in value.items() if key != "marks"}


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = [path / f"{part}.zip" for part in EVERY_PART if (path / f"{part}.zip").is_file()]
    if not files and (path / "agent.zip").is_file():
        files = [path / "agent.zip"]
    if not files:
        expected = ", ".join(f"{part}.zip" for part in EVERY_PART)
        raise CheckpointError(f"the folder {path} holds no part of an agent ({expected}) and no agent.zip")
    return files


def _identity(found: Checkpoint) -> tuple[str, dict[str, list[float]]]:
    arrays = {
        name: value.tolist()
        for name, value in found.tensors.items()
        if name.startswith(("observations.", "actions."))
    }
    return json.dumps([_config(found).to_dict(), found.description["task"]], sort_keys=True), arrays


def _config(found: Checkpoint) -> TREBIConfig:
    """Return the configuration of a file, with what has been added since it was written."""
    return TREBIConfig.from_dict(found.description["config"])


def _shell(cls: type[A], found: Checkpoint, env: Any, device: torch.device | str) -> A:
    description = found.description
    spaces = (_box(found, "observation", "float64"), _box(found, "action", "float32"))
    if env is not None:
        asked, found_there = ([box.shape for box in boxes] for boxes in (spaces, agent_spaces(env)))
        if asked != found_there:
            raise CheckpointError(
                f"the agent's observations and actions have shapes {asked}, the environment's {found_there}"
            )
    agent = cls(spaces, _config(found), device=device, seed=description["seed"])
    if env is not None:
        agent._env = env
    task = description["task"]
    agent.task = Task(
        observations=_normalizer(found, "observations"),
        actions=_normalizer(found, "actions"),
        episode_length=task["episode_length"],
        cost_scale=float(task["cost_scale"]),
        budget_factor=float(task["budget_factor"]),
    )
    sizes = (agent.task.observation_size,), (agent.task.action_size,)
    if sizes != tuple(box.shape for box in spaces):
        raise CheckpointError(
            f"the file's spaces have shapes {[box.shape for box in spaces]}, its normalisers {list(sizes)}"
        )
    agent.learned_from = _learned_from(description["learned_from"])
    return agent


def _box(found: Checkpoint, name: str, dtype: str) -> gym.spaces.Box:
    """Return a space; ``dtype`` is that of files from before it was kept."""
    kept = found.description.get("spaces", {}).get(name, dtype)
    if kept not in ("float16", "float32", "float64") and (name == "action" or kept not in _WHOLE):
        raise CheckpointError(
            f"the file's {name}s are of {kept!r}, which is no kind of number that is planned with"
        )
    sides = [_floats(found, f"spaces.{name}_{side}").to(torch.float64).numpy() for side in ("low", "high")]
    if sides[0].ndim != 1 or sides[0].shape != sides[1].shape or not (sides[0] <= sides[1]).all():
        raise CheckpointError(
            f"the file's bounds of the {name}s must be two rows of numbers, the lower ones first"
        )
    low, high = (side.astype(kept) for side in sides)
    return gym.spaces.Box(low, high, dtype=np.dtype(kept).type)


_WHOLE = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


def _normalizer(found: Checkpoint, name: str) -> AffineNormalizer:
    return AffineNormalizer(
        *(_floats(found, f"{name}.{key}").double().numpy() for key in ("center", "scale"))
    )


def _floats(found: Checkpoint, name: str) -> torch.Tensor:
    tensor = found.tensors[name]
    if not tensor.dtype.is_floating_point:
        raise CheckpointError(f"the file's {name} must be floating-point numbers; it is of {tensor.dtype}")
    return tensor


def _learned_from(found: Any) -> dict[str, Any]:
    """Return what a file keeps of an agent's data, if its entries are of the kinds that ``described`` gives.

    Raises:
        CheckpointError: one is not.
    """
    kinds: dict[str, type | tuple[type, ...]] = {
        "name": (str, NoneType),
        "env_id": (str, NoneType),
        "episodes": int,
        "steps": int,
        "maximum_budget": (int, float, NoneType),
        "marks": list,
        "parts": dict,
    }
    if not isinstance(found, dict):
        raise CheckpointError(f"what the agent was learned from must be an object; got {found!r:.80}")
    for key, kind in kinds.items():
        value = found.get(key)
        wrong = key in found and (not isinstance(value, kind) or isinstance(value, bool))
        if wrong or (isinstance(value, float) and not math.isfinite(value)):
            raise CheckpointError(f"what the agent was learned from has the wrong {key} {value!r:.80}")
    for data in found.get("parts", {}).values():
        _learned_from(data)
    return dict(found)


def _take_models(agent: TREBIAgent, found: Checkpoint) -> None:
    assert agent.task is not None
    for part in found.description["parts"]:
        if part not in parts_of(agent.config):
            raise CheckpointError(
                f"unknown part {part!r}; an agent of this configuration has {', '.join(parts_of(agent.config))}"
            )
        model = _filled(part, agent.config, agent.task, found.part(f"model.{part}"), "the file")
        agent.models[part] = model.to(agent.device)


def _filled(
    part: str, config: TREBIConfig, task: Task, weights: Mapping[str, torch.Tensor], place: Path | str
) -> torch.nn.Module:
    """Return a model with these weights.

    Raises:
        CheckpointError: they do not fit, or are not all finite.
    """
    wrong = CheckpointError(f"the weights of {part} in {place} do not fit its configuration")
    try:
        # sizes without numbers first: a configuration may ask for more than memory holds
        with torch.device("meta"):
            asked = make_model(part, config, task, seed=0).state_dict()
        differing = sorted(
            name
            for name in {*asked, *weights}
            if name not in asked
            or name not in weights
            or (asked[name].shape, asked[name].dtype) != (weights[name].shape, weights[name].dtype)
        )
        if differing:
            name = differing[0]
            kept, needed = (
                f"{tuple(found[name].shape)} of {found[name].dtype}" if name in found else "no such tensor"
                for found in (weights, asked)
            )
            raise CheckpointError(
                f"{wrong}: {name} is {kept}, and by the configuration {needed} ({len(differing)} tensors differ)"
            )
        model = make_model(part, config, task, seed=0)
        model.load_state_dict(weights)
    except (RuntimeError, MemoryError) as error:
        raise CheckpointError(f"{wrong}: {error}") from error
    if not all(bool(value.isfinite().all()) for value in model.state_dict().values()):
        raise CheckpointError(f"the weights of {part} in {place} are not all finite numbers: learn it again")
    return model


@usual_settings()
def from_diffuser(
    cls: type[A], folder: Path, dataset: EpisodeDataset, options: dict[str, Any], **agent: Any
) -> A:
    """Make an agent of published Diffuser models; see ``TREBIAgent.from_diffuser``."""
    try:
        found = read_published(folder, **options)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror or error}") from error
    sizes = {"observation": (found.observation_size, dataset.observation_size)}
    sizes["action"] = (found.action_size, dataset.action_size)
    for name, (theirs, ours) in sizes.items():
        if theirs != ours:
            raise CheckpointError(
                f"{folder} was learned from {name}s of {theirs} numbers, the data set has {ours}; "
                f"name the data set that it was learned from, {found.source['task']}"
            )
    task, named = str(found.source["task"]), str(dataset.metadata.get("name"))
    if task != named and task in RECIPES and named in RECIPES:
        raise CheckpointError(
            f"{folder} was learned from {task}, but the data set is {named}; name the one that it was learned from"
        )
    made = cls(spaces_of_dataset(dataset), found.config, **agent)
    made.take_up(dataset)
    made.learned_from["imported"] = found.source
    assert made.task is not None
    for part, weights in found.weights.items():
        made.models[part] = _filled(part, made.config, made.task, weights, folder).to(made.device)
    return made
