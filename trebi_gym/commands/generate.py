"""The command that builds a data set: from a training run, or from trained policies."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import tyro
from tqdm import tqdm

from trebi_gym.errors import ConfigError, DatasetError
from trebi_gym.files import check_writable, read_json

WARNING = "Stable-Baselines3 unpickles {}, which can run code that is in such a file: load only files that you trust"
WORDS = {"True": True, "False": False, "None": None}


def generate(
    dataset: str,
    datatype: str | None = None,
    total_step: int = 20_000,
    seed: int = 0,
    output: Path | None = None,
    algo: str | None = None,
    hyperparameters: Path | None = None,
    learning_rate: float | None = None,
    set: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = (),
    training_steps: int | None = None,
    keep_run: Path | None = None,
    policy: tuple[Path, ...] = (),
    weights: tuple[float, ...] = (),
    stochastic: bool = False,
    noise: float = 0.0,
    normalize: tuple[Path, ...] = (),
    n_envs: int = 8,
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Record a data set: of a Stable-Baselines3 training run, of policies from it, or of trained policies.

    --policy and --normalize: Stable-Baselines3 unpickles these files, which can run code that is in them. Load only files
    that you trust.

    Args:
        dataset: the environment's id, such as SafePendulum-v0.
        datatype: random, medium-replay (the default), medium, expert or medium-expert; with --policy any word.
        total_step: steps in the data set, at least: episodes are whole.
        seed: of everything that is drawn.
        output: the file; default: the data folder, from which its name loads it.
        algo: sac (the default), td3, ppo, ddpg or a2c; with --policy by default what the file says.
        hyperparameters: a JSON file, an object of the algorithm's constructor arguments; default: the task's recipe.
        learning_rate: the algorithm's, over the file's.
        set: more of them, over the file's, as NAME=VALUE with a JSON value; may be given again and again.
        training_steps: of the run; default: the recipe's, else --total-step.
        keep_run: a folder for the training run, which stays, so that other datatypes can be made of the same run.
        policy: trained Stable-Baselines3 agents, zips, in the place of a training run.
        weights: the policies' shares of the steps; equal by default.
        stochastic: these policies draw their actions instead of taking the most likely.
        noise: standard deviation of Gaussian noise on their actions, in units of half the action range.
        normalize: VecNormalize statistics, one file for all policies or one for each; default: vecnormalize.pkl beside
            a policy, if there is one.
        n_envs: environments at once when policies are recorded.
        resume: go on where an interrupted build of the same data set stopped.
        overwrite: replace an existing file, and what an interrupted build left.
    """
    from trebi_gym.datasets import resolve
    from trebi_gym.datasets.generation.generate import generate as build
    from trebi_gym.datasets.generation.generate import generate_from_policies, policies_name
    from trebi_gym.datasets.generation.provenance import find_spec
    from trebi_gym.datasets.generation.resumable import finish, has_parts
    from trebi_gym.datasets.recipes import dataset_name, known_name, recipe_for_env, user_data_folder

    spec_id = find_spec(dataset).id
    kind = datatype or ("policy" if policy else "medium-replay")
    name = policies_name(spec_id, kind) if policy else dataset_name(spec_id, kind)
    target = output or user_data_folder() / f"{name}.hdf5"
    parts_folder = target.with_name(f"{target.stem}.parts")
    if target.exists() and not overwrite:
        raise DatasetError(f"{target} exists already; pass --overwrite to replace it, or another --output")
    _check_numbers(
        total_step=total_step,
        seed=seed,
        n_envs=n_envs,
        training_steps=training_steps,
        learning_rate=learning_rate,
    )
    training = {
        "--hyperparameters": hyperparameters,
        "--learning-rate": learning_rate,
        "--set": set or None,
        "--training-steps": training_steps,
        "--keep-run": keep_run,
    }
    rolling = {
        "--weights": weights or None,
        "--stochastic": stochastic or None,
        "--noise": noise or None,
        "--normalize": normalize or None,
    }
    _refuse(
        training if policy else rolling, "a training run" if policy else "trained policies: pass --policy"
    )
    if kind == "random" and not policy:
        _refuse({"--algo": algo, **training}, "a training run, and random actions need none")
    check_writable(target)
    kept = [parts_folder, *([] if keep_run is None else [keep_run])]
    if resume and not any(map(has_parts, kept)):
        raise ConfigError(
            f"there is nothing to resume: no finished part is in {' or '.join(map(str, kept))}; leave --resume away"
        )
    common: dict[str, Any] = {
        "steps": total_step,
        "seed": seed,
        "n_envs": n_envs,
        "parts_folder": parts_folder,
        "resume": resume,
        "overwrite": overwrite,
    }
    recipe = recipe_for_env(spec_id)
    total = total_step
    if kind in ("medium", "expert", "medium-expert") and not policy:
        total += training_steps or (recipe.steps if recipe else total_step)
    try:
        if policy:
            policies = _load(policy, dataset, algo, normalize, stochastic, noise)
            with tqdm(total=total, unit="step", desc=name) as bar:
                episodes = generate_from_policies(
                    dataset, policies, datatype=kind, weights=weights or None, progress=bar.update, **common
                )
        else:
            recipes = recipe.hyperparameters if recipe and algo in (None, "sac") else {}
            given = _hyperparameters(recipes, hyperparameters, learning_rate, sum(set, ()))
            with tqdm(total=total, unit="step", desc=name) as bar:
                episodes = build(
                    dataset,
                    kind,
                    algo=algo or "sac",
                    hyperparameters=given,
                    training_steps=training_steps,
                    run_folder=keep_run,
                    progress=bar.update,
                    **common,
                )
        if target.exists() and not overwrite:
            raise ConfigError(
                f"{target} appeared while this was built; what was built is kept: --resume --overwrite replaces the file"
            )
        finish(episodes, target, parts_folder)
    except (KeyboardInterrupt, SystemExit):
        for folder in kept:
            if has_parts(folder):
                print(f"what was done is kept in {folder}; --resume goes on with it", file=sys.stderr)
        raise
    print(f"{episodes}\nwritten to {target} ({target.stat().st_size / 1e6:.2f} MB)")
    print(f"{episodes.metadata['steps_per_second']:.0f} steps a second")
    loaded = resolve(name) if known_name(name) else target
    if loaded.resolve() != target.resolve():
        print(f"note: the name {name} stands for {loaded}; what was built is loaded by its path, {target}")


def _check_numbers(**numbers: float | None) -> None:
    for name, number in numbers.items():
        flag = "--" + name.replace("_", "-")
        if name == "learning_rate":
            if number is not None and not number > 0:
                raise ConfigError(f"{flag} must be positive; got {number}")
        elif number is not None and number < (least := 0 if name == "seed" else 1):
            raise ConfigError(f"{flag} must be at least {least}; got {number}")


def _refuse(flags: dict[str, Any], what: str) -> None:
    misplaced = [flag for flag, value in flags.items() if value is not None]
    if misplaced:
        verb = "is" if len(misplaced) == 1 else "are"
        raise ConfigError(f"{', '.join(misplaced)} {verb} for {what}")


def _load(
    paths: tuple[Path, ...],
    env_id: str,
    algo: str | None,
    normalize: tuple[Path, ...],
    stochastic: bool,
    noise: float,
) -> list[Any]:
    from trebi_gym.datasets.generation.policies import find_statistics, load_policy, read_description

    if len(normalize) not in (0, 1, len(paths)):
        raise ConfigError(
            f"--normalize takes one file for all policies or one for each; got {len(normalize)} for {len(paths)}"
        )
    for path in paths:
        read_description(path)  # what is no policy at all is refused before anything is unpickled
    given = normalize if len(normalize) == len(paths) else normalize * len(paths)
    statistics = list(given) if given else [find_statistics(path) for path in paths]
    unpickled = dict.fromkeys(str(file) for file in (*paths, *statistics) if file is not None)
    print(WARNING.format(", ".join(unpickled)))
    for path, found in zip(paths, statistics, strict=True):
        if found is not None:
            print(f"{path.name} sees observations normalised by {found}")
    return [
        load_policy(path, env_id, algo=algo, normalize=found, stochastic=stochastic, noise=noise)
        for path, found in zip(paths, statistics, strict=True)
    ]


def _hyperparameters(
    recipes: dict[str, Any], file: Path | None, learning_rate: float | None, changes: tuple[str, ...]
) -> dict[str, Any]:
    """Return the recipe's hyperparameters, or the file's, with the flags' over them."""
    found = dict(recipes)
    if file is not None:
        found = read_json(file, "what --hyperparameters takes, a file of JSON", ConfigError)
        if not isinstance(found, dict):
            raise ConfigError(
                f"--hyperparameters {file} must hold a JSON object of constructor arguments; found {found!r}"
            )
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set takes NAME=VALUE, such as batch_size=512; got {change!r}")
        try:
            found[key] = json.loads(text)
        except ValueError:
            found[key] = WORDS.get(text, text)
    if learning_rate is not None:
        found["learning_rate"] = learning_rate
    return found
