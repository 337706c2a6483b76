"""An agent to and from its file, and a learning run that goes on from one."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import NoneType
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import nn

from trebi_gym.agents.agent_state import AgentState, with_data
from trebi_gym.agents.calibration import statistics
from trebi_gym.agents.config import TREBIConfig
from trebi_gym.agents.models import EVERY_PART, Task, make_model, parts_of
from trebi_gym.agents.spaces import resolve_seed, spaces_of_dataset
from trebi_gym.agents.storage import checkpoint
from trebi_gym.agents.storage.checkpoint import Checkpoint
from trebi_gym.agents.storage.diffuser import read_published
from trebi_gym.agents.torch_settings import usual_settings
from trebi_gym.agents.training.loop import SavedRun
from trebi_gym.datasets import AffineNormalizer, EpisodeDataset
from trebi_gym.datasets.recipes import RECIPES
from trebi_gym.errors import CheckpointError, ConfigError, NotLearnedError, TrebiError, shown


@usual_settings()
def save(
    state: AgentState, path: str | os.PathLike[str], names: Sequence[str] | None, run: SavedRun | None
) -> Path:
    """Write an agent; see ``TREBIAgent.save``.

    Args:
        state: what the agent knows.
        path: of the file.
        names: of the models to write; None: all there are.
        run: a learning run that has not ended.

    Raises:
        ConfigError: a name is not one of the configuration's models, or the file cannot be written.
        NotLearnedError: there is nothing to save yet.
    """
    known = parts_of(state.config)
    listed = isinstance(names, Collection) and not isinstance(names, (str, bytes))
    if names is not None and not (listed and all(isinstance(name, str) and name in known for name in names)):
        raise ConfigError(f"parts must be a list of {', '.join(known)}; got {shown(names)}")
    chosen = [name for name in known if name in state.models and (names is None or name in names)]
    if run is not None and names is not None and run.name not in names:
        run = None
    if state.task is None or (not chosen and run is None):
        raise NotLearnedError(
            "there is nothing to save: the agent has learned no model yet; call learn(dataset)"
        )
    assert state.observation_space is not None
    assert state.action_space is not None
    task = state.task
    description: dict[str, Any] = {
        "config": state.config.to_dict(),
        "seed": state.seed,
        "parts": chosen,
        "learned_from": dict(state.learned_from),
        "task": {
            "episode_length": task.episode_length,
            "cost_scale": task.cost_scale,
            "budget_factor": task.budget_factor,
        },
        "spaces": {
            "observation": str(state.observation_space.dtype),
            "action": str(state.action_space.dtype),
        },
        "trebi_gym": version("trebi-gym"),
        "torch": torch.__version__,
    }
    if state.calibration is not None and len(chosen) == len(known):
        description |= {"calibration": state.calibration.to_dict(), "risk": state.risk}
    tensors = {
        "observations.center": torch.from_numpy(task.observations.center),
        "observations.scale": torch.from_numpy(task.observations.scale),
        "actions.center": torch.from_numpy(task.actions.center),
        "actions.scale": torch.from_numpy(task.actions.scale),
        "spaces.observation_low": torch.from_numpy(np.asarray(state.observation_space.low, np.float64)),
        "spaces.observation_high": torch.from_numpy(np.asarray(state.observation_space.high, np.float64)),
        "spaces.action_low": torch.from_numpy(np.asarray(state.action_space.low, np.float64)),
        "spaces.action_high": torch.from_numpy(np.asarray(state.action_space.high, np.float64)),
    }
    for name in chosen:
        tensors |= {f"model.{name}.{key}": value for key, value in state.models[name].state_dict().items()}
    if run is not None:
        tensors |= {f"run.{key}": value for key, value in run.tensors.items()}
        description["run"] = {
            "parts": list(run.names),
            "steps": dict(run.steps),
            "part": run.name,
            "num_timesteps": run.num_timesteps,
        }
    return checkpoint.write(path, description, tensors)


@usual_settings()
def load(path: str | os.PathLike[str], device: torch.device) -> AgentState:
    """Read an agent; see ``TREBIAgent.load``.

    Raises:
        CheckpointError: it is not a saved agent, or the files in a folder do not belong together.
    """
    try:
        files = _files(Path(path))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    state: AgentState | None = None
    for file in files:
        found = checkpoint.read(file)
        try:
            if state is None:
                state, first = _without_models(found), file
            elif _identity(found) != _identity(checkpoint.read(first)):
                raise CheckpointError(
                    f"{file} and {first} do not belong together: their configuration or normalisers differ; "
                    "train all parts with the same --config, --horizon and --dataset"
                )
            state = replace(state, models={**state.models, **_models(state, found, device)})
            if "calibration" in found.description and len(files) == 1:
                state = replace(
                    state,
                    calibration=statistics.from_dict(found.description["calibration"]),
                    risk=_risk(found.description.get("risk")),
                )
        except TrebiError:
            raise
        except (LookupError, AttributeError, ArithmeticError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{file} does not hold what a saved agent needs: {error}") from error
    assert state is not None
    return state


def _risk(value: Any) -> float | None:
    return None if value is None else statistics.check_share(value, "risk")


@usual_settings()
def load_run(
    state: AgentState, path: str | os.PathLike[str], names: Sequence[str], device: torch.device
) -> tuple[dict[str, nn.Module], SavedRun]:
    """Return the finished models, and the running one's state, from a file that was saved while learning.

    Args:
        state: of the agent that goes on, with the task of the data that it goes on with.
        path: of the file.
        names: of the models that it is to learn.
        device: of the models.

    Raises:
        CheckpointError: it belongs to another configuration or other data, or nothing in it is unfinished.
    """
    found = checkpoint.read(path)
    mine = {
        "config": state.config.to_dict(),
        "learned_from": dict(state.learned_from),
        "seed": state.seed,
    }
    theirs = {name: found.description.get(name) for name in mine} | {"config": _config(found).to_dict()}
    mine = json.loads(json.dumps(mine))
    differing = [name for name in mine if mine[name] != theirs[name]]
    if differing == ["learned_from"] and _brief(mine["learned_from"]) == _brief(theirs["learned_from"]):
        raise CheckpointError(f"{path} cannot be resumed here: it was learned from other episodes")
    if differing:
        raise CheckpointError(
            f"{path} cannot be resumed here: its {', '.join(differing)} differ "
            f"({', '.join(f'{_brief(theirs[name])} there, {_brief(mine[name])} here' for name in differing)})"
        )
    run = found.description.get("run")
    if run is None:
        raise CheckpointError(f"{path} holds no unfinished learning run; load it with TREBIAgent.load(path)")
    if sorted(run["parts"]) != sorted(names):
        raise CheckpointError(
            f"{path} was saved while learning {', '.join(run['parts'])}, not {', '.join(names)}; "
            "resume it with the method that it was learned with"
        )
    assert state.task is not None
    for name, normalizer in (("observations", state.task.observations), ("actions", state.task.actions)):
        stored = found.part(name)
        if not all(
            np.array_equal(stored[key].numpy(), getattr(normalizer, key)) for key in ("center", "scale")
        ):
            raise CheckpointError(f"{path} cannot be resumed here: it was learned from other {name}")
    models = _models(state, found, device)
    models.pop(run["part"], None)  # one that was stopped is in the file as it was then
    saved = SavedRun(
        tuple(run["parts"]), dict(run["steps"]), run["part"], int(run["num_timesteps"]), found.part("run")
    )
    return models, saved


def _brief(value: Any) -> Any:
    """Return a value without its longest part, the fingerprints of single episodes."""
    if not isinstance(value, Mapping):
        return value
    return {key: _brief(item) for key, item in value.items() if key != "marks"}


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


def _without_models(found: Checkpoint) -> AgentState:
    """Return what a file says of an agent, but for its models and its calibration."""
    description = found.description
    spaces = (_box(found, "observation", "float64"), _box(found, "action", "float32"))
    kept = description["task"]
    task = Task(
        observations=_normalizer(found, "observations"),
        actions=_normalizer(found, "actions"),
        episode_length=kept["episode_length"],
        cost_scale=float(kept["cost_scale"]),
        budget_factor=float(kept["budget_factor"]),
    )
    sizes = (task.observation_size,), (task.action_size,)
    if sizes != tuple(box.shape for box in spaces):
        raise CheckpointError(
            f"the file's spaces have shapes {[box.shape for box in spaces]}, its normalisers {list(sizes)}"
        )
    return AgentState(
        config=_config(found),
        seed=resolve_seed(description["seed"]),
        observation_space=spaces[0],
        action_space=spaces[1],
        task=task,
        learned_from=_learned_from(description["learned_from"]),
    )


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


def _models(state: AgentState, found: Checkpoint, device: torch.device) -> dict[str, nn.Module]:
    """Return the models in a file."""
    assert state.task is not None
    models = {}
    for name in found.description["parts"]:
        if name not in parts_of(state.config):
            raise CheckpointError(
                f"unknown part {name!r}; an agent of this configuration has {', '.join(parts_of(state.config))}"
            )
        weights = found.part(f"model.{name}")
        models[name] = filled(name, state.config, state.task, weights, "the file").to(device)
    return models


def filled(
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
    folder: Path, dataset: EpisodeDataset, options: Mapping[str, Any], *, seed: int, device: torch.device
) -> AgentState:
    """Return what an agent of published Diffuser models knows; see ``TREBIAgent.from_diffuser``.

    Raises:
        CheckpointError: the folder is not what is published, or does not fit the data.
    """
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
    spaces = spaces_of_dataset(dataset)
    state = with_data(AgentState(found.config, seed, spaces[0], spaces[1]), dataset)
    assert state.task is not None
    models = {
        name: filled(name, state.config, state.task, weights, folder).to(device)
        for name, weights in found.weights.items()
    }
    return replace(state, models=models, learned_from={**state.learned_from, "imported": found.source})
