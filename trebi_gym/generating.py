"""The command that builds a data set: from a training run, or from trained policies."""

from __future__ import annotations

import ast
import json
import shutil
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from trebi_gym.errors import ConfigError, DatasetError
from trebi_gym.files import check_writable

UNPICKLING = (
    "note: Stable-Baselines3 unpickles the policy's file, which can run code that is in it; "
    "load only files that you trust"
)


def generate(
    dataset: str,
    datatype: str | None = None,
    total_step: int = 20_000,
    seed: int = 0,
    output: Path | None = None,
    algo: str | None = None,
    hyperparameters: Path | None = None,
    learning_rate: float | None = None,
    set: tuple[str, ...] = (),
    training_steps: int | None = None,
    keep_run: Path | None = None,
    policy: tuple[Path, ...] = (),
    weights: tuple[float, ...] = (),
    stochastic: bool = False,
    noise: float = 0.0,
    normalize: Path | None = None,
    n_envs: int = 8,
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Record a data set: of a Stable-Baselines3 training run, of policies from it, or of trained policies.

    A policy's file is unpickled by Stable-Baselines3, which can run code that is in it: load only files that you trust.

    Args:
        dataset: the environment's id, such as SafePendulum-v0.
        datatype: random, medium-replay (the default), medium, expert or medium-expert; with --policy any word.
        total_step: steps in the data set.
        seed: of everything that is drawn.
        output: the file; default: the data folder, from which its name loads it.
        algo: sac (the default), td3 or ppo; with --policy also ddpg and a2c, by default what the file says.
        hyperparameters: a JSON file of the algorithm's constructor arguments; default: the task's recipe.
        learning_rate: the algorithm's, over the file's.
        set: more of them, over the file's, such as batch_size=512 gamma=0.98.
        training_steps: of the run, for medium, expert and medium-expert; default: the recipe's, else --total-step.
        keep_run: a folder for the training run, which stays, so that other datatypes can be made of the same run.
        policy: trained Stable-Baselines3 agents, zips, in the place of a training run.
        weights: of the policies; equal by default.
        stochastic: the policies draw their actions instead of taking the most likely.
        noise: standard deviation of noise on every action, in units of half the action range.
        normalize: VecNormalize statistics of the policy; default: vecnormalize.pkl beside it, if there is one.
        n_envs: environments at once when policies are recorded.
        resume: go on where an interrupted build stopped.
        overwrite: replace an existing file, or what an interrupted build left.
    """
    from trebi_gym.datasets import save
    from trebi_gym.datasets.building import generate as build
    from trebi_gym.datasets.building import generate_from_policies
    from trebi_gym.datasets.provenance import find_spec
    from trebi_gym.datasets.recipes import dataset_name, user_data_folder

    env_id = find_spec(dataset).id
    kind = datatype or ("policy" if policy else "medium-replay")
    stem, _, version = env_id.rpartition("-v")
    name = f"{stem}-{kind}-v{version}" if policy and stem else dataset_name(env_id, kind)
    target = output or user_data_folder() / f"{name}.hdf5"
    parts_folder = target.with_name(f"{target.stem}.parts")
    if target.exists() and not overwrite:
        raise DatasetError(f"{target} exists already; pass --overwrite to replace it, or another --output")
    _check(
        total_step,
        seed,
        learning_rate,
        policy,
        weights,
        hyperparameters,
        set,
        training_steps,
        keep_run,
        noise,
    )
    check_writable(target)
    given = _hyperparameters(dataset, algo, hyperparameters, learning_rate, set)
    if overwrite and not resume:
        shutil.rmtree(parts_folder, ignore_errors=True)
    if resume and not parts_folder.is_dir():
        raise ConfigError(f"there is nothing to resume: {parts_folder} does not exist; leave --resume away")
    loaded = [_load(path, dataset, algo, normalize, stochastic, noise) for path in policy]
    began = time.monotonic()
    trains = not policy and kind in ("medium", "expert", "medium-expert")
    with tqdm(total=None if trains else total_step, unit="step", desc=name) as bar:
        common: dict[str, Any] = {
            "steps": total_step,
            "seed": seed,
            "n_envs": n_envs,
            "progress": bar.update,
            "parts_folder": parts_folder,
            "resume": resume,
        }
        try:
            if policy:
                episodes = generate_from_policies(
                    dataset, loaded, datatype=kind, weights=weights or None, **common
                )
            else:
                episodes = build(
                    dataset,
                    kind,
                    algo=algo or "sac",
                    hyperparameters=given,
                    training_steps=training_steps,
                    run_folder=keep_run,
                    **common,
                )
        except BaseException as error:
            if not any(parts_folder.rglob("part-*.hdf5")):
                shutil.rmtree(parts_folder, ignore_errors=True)
            elif isinstance(error, (KeyboardInterrupt, SystemExit)):
                bar.write(f"interrupted; what was recorded is kept in {parts_folder}: --resume goes on")
            raise
    seconds = time.monotonic() - began
    save(episodes, target)
    shutil.rmtree(parts_folder, ignore_errors=True)
    print(f"{episodes}\nwritten to {target} ({target.stat().st_size / 1e6:.2f} MB)")
    print(f"{seconds:.0f} s, {episodes.n_steps / seconds:.0f} steps a second")


def _check(
    total_step: int,
    seed: int,
    learning_rate: float | None,
    policy: tuple[Path, ...],
    weights: tuple[float, ...],
    hyperparameters: Path | None,
    changes: tuple[str, ...],
    training_steps: int | None,
    keep_run: Path | None,
    noise: float,
) -> None:
    if total_step < 1:
        raise DatasetError(f"--total-step must be at least 1; got {total_step}")
    if training_steps is not None and training_steps < 1:
        raise DatasetError(f"--training-steps must be at least 1; got {training_steps}")
    if seed < 0:
        raise ConfigError(f"--seed must be at least 0; got {seed}")
    if learning_rate is not None and not learning_rate > 0:
        raise ConfigError(f"--learning-rate must be positive; got {learning_rate}")
    training = {
        "--hyperparameters": hyperparameters,
        "--learning-rate": learning_rate,
        "--set": changes or None,
        "--training-steps": training_steps,
        "--keep-run": keep_run,
    }
    misplaced = [flag for flag, value in training.items() if value is not None] if policy else []
    if misplaced:
        raise ConfigError(
            f"{', '.join(misplaced)} are for a training run, and --policy is in the place of one"
        )
    if not policy and (weights or noise):
        raise ConfigError("--weights and --noise are for trained policies; pass --policy too")


def _load(
    path: Path, env_id: str, algo: str | None, normalize: Path | None, stochastic: bool, noise: float
) -> Any:
    from trebi_gym.datasets.behaviour import find_statistics, load_policy

    print(UNPICKLING)
    statistics = normalize or (find_statistics(path) if path.is_file() else None)
    if statistics is not None:
        print(f"observations are normalised for {path} by {statistics}")
    return load_policy(path, env_id, algo=algo, normalize=statistics, stochastic=stochastic, noise=noise)


def _hyperparameters(
    env_id: str, algo: str | None, file: Path | None, learning_rate: float | None, changes: tuple[str, ...]
) -> dict[str, Any]:
    """Return the recipe's hyperparameters, or the file's, with the flags' over them."""
    from trebi_gym.datasets.provenance import find_spec
    from trebi_gym.datasets.recipes import recipe_for_env

    recipe = recipe_for_env(find_spec(env_id).id)
    found: dict[str, Any] = dict(recipe.hyperparameters) if recipe and algo in (None, "sac") else {}
    if file is not None:
        try:
            found = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(f"--hyperparameters {file} is not a JSON file: {error}") from error
        if not isinstance(found, dict):
            raise ConfigError(
                f"--hyperparameters {file} must hold a JSON object of constructor arguments; found {found!r}"
            )
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set takes NAME=VALUE, such as batch_size=512; got {change!r}")
        try:
            found[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found[key] = text
    if learning_rate is not None:
        found["learning_rate"] = learning_rate
    return found
