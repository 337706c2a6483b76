"""Building data sets of the usual kinds: from a Stable-Baselines3 training run, or from trained policies."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym

from trebi_gym.checks import check_seed
from trebi_gym.datasets.episode import EpisodeDataset
from trebi_gym.datasets.generation.algorithms import check_hyperparameters, make_model
from trebi_gym.datasets.generation.collect import (
    Progress,
    Share,
    check_counts,
    collect_shares,
    first_episodes,
)
from trebi_gym.datasets.generation.policies import RandomPolicy, StableBaselinesPolicy, load_policy
from trebi_gym.datasets.generation.provenance import find_spec, plain, with_metadata, with_statistics
from trebi_gym.datasets.generation.resumable import Parts
from trebi_gym.datasets.generation.training_run import TrainingRecord, record_training
from trebi_gym.datasets.recipes import dataset_name, recipe_for_env
from trebi_gym.errors import DatasetError

__all__ = ["generate", "generate_from_policies", "load_policy"]

SNAPSHOTS = 100
"""Policies that are kept of a run, from which the medium one is chosen."""

Folder = str | os.PathLike[str]


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
    parts_folder: Folder | None = None,
    run_folder: Folder | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> EpisodeDataset:
    """Build a data set of one of the usual kinds.

    ``random``: uniform actions. ``medium-replay``: every step of a Stable-Baselines3 training run. ``medium`` and
    ``expert``: episodes of the policy a third of the way to the run's best return, and of its final policy, with actions
    drawn from them. ``medium-expert``: half the steps of each, medium first.

    Args:
        env_id: an environment with ``info["cost"]``.
        datatype: the kind.
        steps: steps in the data set.
        seed: of everything that is drawn.
        algo: of the run: sac, td3, ppo, ddpg or a2c.
        training_steps: of the run; by default as many as the task's recipe says, else ``steps``, and for
            ``medium-replay`` always ``steps``. A ``medium-replay`` of a longer run holds its first episodes.
        hyperparameters: of the algorithm; by default the task's recipe's for SAC, else Stable-Baselines3's.
        n_envs: environments at once when a policy is recorded.
        progress: called with the number of new steps.
        parts_folder: where finished parts are kept, so that ``resume`` can go on with them; it stays.
        run_folder: where the training run is kept, and stays, so that other kinds can be made of the same run. A run that
            is there already is used, or gone on with.
        resume: go on with what is in ``parts_folder``.
        overwrite: delete what is in ``parts_folder``.

    Raises:
        DatasetError: the datatype, algorithm or a hyperparameter is not known, steps are too few, or a folder holds
            something else.
        EnvironmentContractError: the environment reports no cost, or its spaces are no one-dimensional boxes.
    """
    name = dataset_name(find_spec(env_id).id, datatype)
    check_counts(steps=steps, n_envs=n_envs, training_steps=1 if training_steps is None else training_steps)
    seed = check_seed(seed, error=DatasetError)
    information: dict[str, Any] = {"name": name, "datatype": datatype, "seed": seed}
    request: dict[str, Any] = {"env_id": env_id, "datatype": datatype, "steps": steps, "seed": seed}
    request["n_envs"] = n_envs
    run = None
    if datatype != "random":
        recipe = recipe_for_env(find_spec(env_id).id)
        if hyperparameters is None:
            hyperparameters = recipe.hyperparameters if recipe and algo == "sac" else {}
        check_hyperparameters(algo, hyperparameters)
        default = recipe.steps if recipe and datatype != "medium-replay" else steps
        run = _RunRequest(env_id, algo, training_steps or default, seed, hyperparameters)
        if datatype == "medium-replay" and run.steps < steps:
            raise DatasetError(
                f"a medium-replay holds the steps of the run; {steps} are asked for, and training_steps is {run.steps}"
            )
        request |= {"run": run.plain(), "run_folder": None if run_folder is None else str(run_folder)}
    with contextlib.ExitStack() as stack:
        parts = _parts(stack, parts_folder, request, resume, overwrite)
        if run is None:
            with gym.make(env_id) as env:
                shares = [Share(RandomPolicy(env.action_space, seed), steps)]
            information["algorithm"] = "uniform actions"
        else:
            record = _train(stack, run, progress, parts, run_folder)
            if datatype == "medium-replay":
                return _replay(record, steps, training_steps, information)
            keys = ("algorithm", "hyperparameters", "training_steps")
            information |= {key: record.dataset.metadata[key] for key in keys}
            if "resumed_at_steps" in record.dataset.metadata:
                information["resumed_at_steps"] = record.dataset.metadata["resumed_at_steps"]
            information["training_steps_per_second"] = record.dataset.metadata["steps_per_second"]
            shares = _shares_of(run, record, datatype, steps, information)
        return collect_shares(
            env_id,
            shares,
            # another seed than the training run's, so that the episodes are new ones
            seed=seed if run is None else seed + 1_000_000,
            n_envs=n_envs,
            progress=progress,
            parts=parts,
            metadata=information,
        )


def generate_from_policies(
    env_id: str,
    policies: Sequence[StableBaselinesPolicy],
    *,
    steps: int,
    seed: int,
    datatype: str = "policy",
    weights: Sequence[float] | None = None,
    n_envs: int = 8,
    progress: Progress | None = None,
    parts_folder: Folder | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> EpisodeDataset:
    """Build a data set from trained policies: each gives its share of the steps, in whole episodes.

    Args:
        env_id: an environment with ``info["cost"]``.
        policies: from ``load_policy``.
        steps: steps in the data set, at least.
        seed: of everything that is drawn.
        datatype: the middle of the data set's name.
        weights: the policies' shares of the steps, in any unit; equal by default.
        n_envs: environments at once.
        progress: called with the number of new steps.
        parts_folder: where finished parts are kept, so that ``resume`` can go on with them; it stays.
        resume: go on with what is in ``parts_folder``.
        overwrite: delete what is in ``parts_folder``.

    Raises:
        DatasetError: no policy, weights that do not fit them, a number that is out of range, or a folder that holds
            something else.
        EnvironmentContractError: the environment reports no cost, or its spaces are no one-dimensional boxes.
    """
    check_counts(steps=steps, n_envs=n_envs)
    seed = check_seed(seed, error=DatasetError)
    given = [1.0] * len(policies) if weights is None else [float(weight) for weight in weights]
    if not policies or len(given) != len(policies) or not all(0 < weight < math.inf for weight in given):
        raise DatasetError(
            f"every policy needs one positive weight; got {len(policies)} policies and the weights {given}"
        )
    portions = [weight / sum(given) for weight in given]
    # rounded first, so that 0.3 of 10 steps are 3 although 0.3 is not quite 0.3 to a computer
    shares = [
        Share(policy, math.ceil(round(steps * portion, 6)), portion)
        for policy, portion in zip(policies, portions, strict=True)
    ]
    described = [
        {**policy.description, "weight": share.weight} for policy, share in zip(policies, shares, strict=True)
    ]
    request = {"env_id": env_id, "datatype": datatype, "steps": steps, "seed": seed, "n_envs": n_envs}
    spec = find_spec(env_id)
    information = {
        "name": policies_name(spec.id, datatype),
        "datatype": datatype,
        "seed": seed,
        "algorithm": ", ".join(sorted({str(policy.get("algorithm")) for policy in described})),
    }
    with contextlib.ExitStack() as stack:
        return collect_shares(
            env_id,
            shares,
            seed=seed,
            n_envs=n_envs,
            progress=progress,
            parts=_parts(stack, parts_folder, request | {"policies": described}, resume, overwrite),
            metadata=information,
        )


def policies_name(env_id: str, datatype: str) -> str:
    """Return the name of a data set of trained policies; any word is a datatype.

    Raises:
        DatasetError: it is no word that can be in a file's name.
    """
    if not datatype or not all(letter.isalnum() or letter in "-_." for letter in datatype):
        raise DatasetError(f"datatype must be a word of letters, digits, '-', '_' and '.'; got {datatype!r}")
    stem, dash, version = env_id.rpartition("-v")
    return f"{stem}-{datatype}-v{version}" if dash else f"{env_id}-{datatype}"


@dataclasses.dataclass(frozen=True)
class _RunRequest:
    env_id: str
    algo: str
    steps: int
    seed: int
    hyperparameters: dict[str, Any]

    def plain(self) -> dict[str, Any]:
        return {key: plain(value) for key, value in dataclasses.asdict(self).items()}


def _train(
    stack: contextlib.ExitStack,
    run: _RunRequest,
    progress: Progress | None,
    parts: Parts | None,
    run_folder: Folder | None,
) -> TrainingRecord:
    folder = run_folder if run_folder is not None else None if parts is None else parts.folder / "run"
    return record_training(
        run.env_id,
        steps=run.steps,
        seed=run.seed,
        algo=run.algo,
        hyperparameters=run.hyperparameters,
        progress=progress,
        snapshots=SNAPSHOTS,
        parts=_parts(stack, folder, run.plain(), True, False),
    )


def _replay(
    record: TrainingRecord, steps: int, training_steps: int | None, information: dict[str, Any]
) -> EpisodeDataset:
    found = record.dataset
    if training_steps is not None:
        kept = first_episodes(dict(enumerate(found)), steps)
        found = EpisodeDataset.from_episodes(kept, found.metadata)
    return with_statistics(with_metadata(found, information))


def _shares_of(
    run: _RunRequest, record: TrainingRecord, datatype: str, steps: int, information: dict[str, Any]
) -> list[Share]:
    model, algorithm = record.model, information["algorithm"]
    chosen: list[tuple[int, Any]] = []
    if datatype in ("medium", "medium-expert"):
        step, weights = record.medium_policy()
        # a second model: a policy of Stable-Baselines3 that has acted cannot always be copied
        with gym.make(run.env_id) as env:
            medium = make_model(run.algo, env, run.seed, run.hyperparameters).policy
        medium.load_state_dict({**model.policy.state_dict(), **weights})
        chosen.append((step, medium))
    if datatype in ("expert", "medium-expert"):
        chosen.append((int(model.num_timesteps), model.policy))
    if len(chosen) == 1:
        information["policy_step"] = chosen[0][0]
    portion = 1 / len(chosen)
    return [
        Share(
            StableBaselinesPolicy(
                policy, description={"algorithm": algorithm, "policy_step": step, "stochastic": True}
            ),
            math.ceil(steps * portion),
            portion,
        )
        for step, policy in chosen
    ]


def _parts(
    stack: contextlib.ExitStack,
    folder: Folder | None,
    request: dict[str, Any],
    resume: bool,
    overwrite: bool,
) -> Parts | None:
    if folder is None:
        return None
    return stack.enter_context(Parts(Path(folder), request, resume=resume, overwrite=overwrite))
