"""Building data sets of the usual kinds: from a Stable-Baselines3 training run, or from trained policies."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym

from trebi_gym.datasets.behaviour import LoadedPolicy, RandomPolicy, StableBaselinesPolicy
from trebi_gym.datasets.collect import Progress, Share, check_counts, collect_shares
from trebi_gym.datasets.episode import EpisodeDataset
from trebi_gym.datasets.parts import Parts
from trebi_gym.datasets.provenance import describe_env, find_spec, with_metadata, with_statistics
from trebi_gym.datasets.recipes import dataset_name, recipe_for_env
from trebi_gym.datasets.training_run import TrainingRecord, record_training
from trebi_gym.errors import DatasetError


def generate(
    env_id: str,
    datatype: str,
    *,
    steps: int,
    seed: int,
    algo: str = "sac",
    training_steps: int | None = None,
    hyperparameters: dict[str, Any] | None = None,
    n_envs: int = 8,
    progress: Progress | None = None,
    parts_folder: Path | None = None,
    run_folder: Path | None = None,
    resume: bool = False,
) -> EpisodeDataset:
    """Build a data set of one of the usual kinds.

    ``random``: uniform actions. ``medium-replay``: every step of a Stable-Baselines3 training run. ``medium`` and
    ``expert``: episodes of the policy a third of the way to the run's best return, and of its final policy.
    ``medium-expert``: half the steps of each.

    Args:
        env_id: an environment with ``info["cost"]``.
        datatype: the kind.
        steps: steps in the data set.
        seed: of everything that is drawn.
        algo: sac, td3 or ppo.
        training_steps: of the run, except for ``medium-replay``; as many as the task's recipe, else ``steps``.
        hyperparameters: of the algorithm; the recipe's for SAC, else Stable-Baselines3's defaults.
        n_envs: environments at once when a policy is recorded.
        progress: called with the number of new steps.
        parts_folder: where finished parts are kept until the data set is done.
        run_folder: where the training run is kept, and stays, so that other kinds can be made of the same run.
        resume: go on with what is in ``parts_folder``.

    Raises:
        DatasetError: the datatype, algorithm or a hyperparameter is not known, or steps are too few.
        EnvironmentContractError: the environment reports no cost.
    """
    name = dataset_name(find_spec(env_id).id, datatype)
    check_counts(steps=steps, n_envs=n_envs)
    recipe = recipe_for_env(find_spec(env_id).id)
    if hyperparameters is None:
        hyperparameters = recipe.hyperparameters if recipe and algo == "sac" else {}
    information: dict[str, Any] = {"name": name, "datatype": datatype, "seed": seed}
    request = {"env_id": env_id, "datatype": datatype, "steps": steps, "seed": seed, "n_envs": n_envs}
    parts = _parts(parts_folder, request | {"algo": algo, "hyperparameters": _plain(hyperparameters)}, resume)
    if datatype == "random":
        with gym.make(env_id) as env:
            shares = [Share(RandomPolicy(env.action_space, seed), steps)]
        information["algorithm"] = "uniform actions"
    else:
        run_steps = steps
        if datatype != "medium-replay":
            run_steps = training_steps or (recipe.steps if recipe else steps)
        record = _train(env_id, algo, run_steps, seed, hyperparameters, progress, datatype, parts, run_folder)
        if datatype == "medium-replay":
            return with_metadata(record.dataset, information)
        keys = ("algorithm", "hyperparameters", "training_steps")
        information |= {key: record.dataset.metadata[key] for key in keys}
        shares = _shares_of(record, datatype, steps, run_steps, information)
    # another seed than the training run's, so that the episodes are new ones
    found = collect_shares(
        env_id, shares, seed=seed + 1_000_000, n_envs=n_envs, progress=progress, parts=parts
    )
    return with_statistics(with_metadata(found, describe_env(env_id) | information))


def generate_from_policies(
    env_id: str,
    policies: Sequence[LoadedPolicy],
    *,
    steps: int,
    seed: int,
    datatype: str = "policy",
    weights: Sequence[float] | None = None,
    n_envs: int = 8,
    progress: Progress | None = None,
    parts_folder: Path | None = None,
    resume: bool = False,
) -> EpisodeDataset:
    """Build a data set from trained policies: each gives its share of the steps, in whole episodes.

    Args:
        env_id: an environment with ``info["cost"]``.
        policies: from ``load_policy``.
        steps: steps in the data set, at least.
        seed: of everything that is drawn.
        datatype: the middle of the data set's name.
        weights: of the policies; equal by default.
        n_envs: environments at once.
        progress: called with the number of new steps.
        parts_folder: where finished parts are kept until the data set is done.
        resume: go on with what is in ``parts_folder``.

    Raises:
        DatasetError: no policy, weights that do not fit them, or a number that is not positive.
        EnvironmentContractError: the environment reports no cost.
    """
    check_counts(steps=steps, n_envs=n_envs)
    chosen = [1.0] * len(policies) if weights is None else [float(weight) for weight in weights]
    if not policies or len(chosen) != len(policies) or not all(0 < weight < math.inf for weight in chosen):
        raise DatasetError(
            f"every policy needs a positive weight; got {len(policies)} policies and the weights {chosen}"
        )
    counts = [math.ceil(steps * weight / sum(chosen)) for weight in chosen]
    used = [
        policy.description | {"weight": weight / sum(chosen)}
        for policy, weight in zip(policies, chosen, strict=True)
    ]
    request = {"env_id": env_id, "steps": steps, "seed": seed, "n_envs": n_envs, "policies": used}
    found = collect_shares(
        env_id,
        [Share(policy.policy, count) for policy, count in zip(policies, counts, strict=True)],
        seed=seed,
        n_envs=n_envs,
        progress=progress,
        parts=_parts(parts_folder, request, resume),
    )
    stem, dash, version = find_spec(env_id).id.rpartition("-v")
    information = {
        "name": f"{stem}-{datatype}-v{version}" if dash else f"{env_id}-{datatype}",
        "datatype": datatype,
        "seed": seed,
        "algorithm": ", ".join(sorted({str(policy["algorithm"]) for policy in used})),
        "policies": used,
    }
    return with_statistics(with_metadata(found, describe_env(env_id) | information))


def _train(
    env_id: str,
    algo: str,
    steps: int,
    seed: int,
    hyperparameters: dict[str, Any],
    progress: Progress | None,
    datatype: str,
    parts: Parts | None,
    run_folder: Path | None,
) -> TrainingRecord:
    request = {
        "env_id": env_id,
        "algo": algo,
        "training_steps": steps,
        "seed": seed,
        "hyperparameters": _plain(hyperparameters),
    }
    folder = run_folder if run_folder is not None else None if parts is None else parts.folder / "run"
    return record_training(
        env_id,
        steps=steps,
        seed=seed,
        algo=algo,
        hyperparameters=hyperparameters,
        progress=progress,
        snapshots=100 if datatype != "medium-replay" or run_folder is not None else 0,
        parts=None if folder is None else Parts(folder, request, resume=True),
    )


def _shares_of(
    record: TrainingRecord, datatype: str, steps: int, run_steps: int, information: dict[str, Any]
) -> list[Share]:
    shares = []
    expert, half = record.model, math.ceil(steps / 2)
    if datatype in ("medium", "medium-expert"):
        information["policy_step"], weights = record.medium_policy()
        medium = copy.copy(expert)
        medium.policy = copy.deepcopy(expert.policy)
        medium.policy.load_state_dict(weights)
        shares.append(Share(StableBaselinesPolicy(medium), steps if datatype == "medium" else half))
    if datatype in ("expert", "medium-expert"):
        information.setdefault("policy_step", run_steps)
        shares.append(Share(StableBaselinesPolicy(expert), steps if datatype == "expert" else half))
    return shares


def _parts(folder: Path | None, request: dict[str, Any], resume: bool) -> Parts | None:
    return None if folder is None else Parts(folder, request, resume=resume)


def _plain(hyperparameters: dict[str, Any]) -> dict[str, str]:
    return {key: repr(value) for key, value in sorted(hyperparameters.items())}
