"""The original's three training stages and its planning stage, which the scripts call with the original's flags.

Each stage writes its model into one agent folder, ``<logbase>/<dataset>/<config>``, where planning finds them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from trebi_gym.agents import TREBIAgent, TREBIConfig
from trebi_gym.agents.models import LEARNERS, parts_of
from trebi_gym.agents.planning.policies import OriginalAccounting
from trebi_gym.agents.presets import PRESETS, preset
from trebi_gym.agents.spaces import resolve_seed
from trebi_gym.commands.common import learn_with_checkpoints, resolve_env, resolve_maximum
from trebi_gym.datasets.recipes import RECIPES, known_name
from trebi_gym.errors import ConfigError, NotLearnedError
from trebi_gym.evaluation.evaluate import evaluate_budgets, evaluate_episodes
from trebi_gym.rollout import Policy


@dataclass(frozen=True)
class StageArguments:
    """One training stage."""

    dataset: str
    """A data set's name or file."""
    config: str | None = None
    """config.toy_safe_env, config.locomotion, config.fast or config.fast_long; default: the paper's for the data set."""
    logbase: Path = Path("logs")
    """Agent folders are made in here."""
    total_steps: Annotated[int | None, tyro.conf.arg(aliases=("--n-train-steps",))] = None
    """Optimiser steps; default: the preset's, which for the paper's presets takes days on a CPU."""
    seed: int = 0
    """Of weights and training."""
    device: str = "auto"
    """auto, cpu, cuda, ..."""
    checkpoint_every: int = 1_000
    """Optimiser steps between two copies that --resume can go on from; 0 for none."""
    horizon: int | None = None
    """Steps of a plan, at most those of an episode, the same in every stage; default: the preset's."""
    resume: bool = False
    """Go on where an interrupted run of this stage stopped."""


@dataclass(frozen=True)
class PlanArguments:
    """Planning within a budget."""

    dataset: str
    """The data set that the agent was learned from."""
    config: str | None = None
    """The preset that the three stages were run with; default: the paper's for the data set."""
    logbase: Path = Path("logs")
    """Where the agent folder is."""
    ratio_of_maxthreshold: float = 1.0
    """The budget as a share of the data set's maximum."""
    random_budget: int = 0
    """1: every episode draws its ratio from U(0.1, 1)."""
    control_interval: int = 1
    """Actions of a plan that are executed before planning again."""
    episodes: int = 20
    """Episodes to run."""
    seed: int = 0
    """Of the first episode, and of the agent's draws."""
    env: str | None = None
    """The environment; default: the one that the data came from."""
    maximum: float | None = None
    """The budget at ratio 1; default: the data set's."""
    cost_grad_weight: float | None = None
    """w, the weight of the cost's gradient; default: the preset's."""
    candidates: Annotated[int | None, tyro.conf.arg(aliases=("--batch-size",))] = None
    """Plans for each decision; default: the preset's."""
    guide_type: Literal[0, 1] | None = None
    """0 or 1, see PlannerConfig; default: the preset's."""
    guide_scale: Annotated[float | None, tyro.conf.arg(aliases=("--scale",))] = None
    """How far one guided move goes; default: the preset's."""
    guide_stop: Annotated[int | None, tyro.conf.arg(aliases=("--t-stopgrad",))] = None
    """No guided move in denoising steps below this one; default: the preset's."""
    guide_moves: Annotated[int | None, tyro.conf.arg(aliases=("--n-guide-steps",))] = None
    """Guided moves in every denoising step; default: the preset's."""
    test_cost_with_discount: bool | None = None
    """Budgets and costs discounted as the cost critic's; default: as the paper scores the preset's tasks."""
    device: str = "auto"
    """auto, cpu, cuda, ..."""


SUFFIXES = (".hdf5", ".h5")


def stage_config(dataset: str, config: str | None) -> TREBIConfig:
    """Return the configuration of a stage: the named preset, else the paper's, with what it sets for the data set.

    Raises:
        ConfigError: no such preset, or none is named and the paper has none for the data set.
    """
    name = known_name(dataset)
    if config is None and name is None:
        raise ConfigError(
            f"the paper has no preset for {dataset}; pass --config, one of "
            f"{', '.join(f'config.{known}' for known in PRESETS)}"
        )
    return preset(config or RECIPES[str(name)].preset, name)


def agent_folder(logbase: Path, dataset: str, config: str | None) -> Path:
    """Return the folder where the stages leave their models."""
    # of a path only its last part, so that models are below logbase wherever the data lie
    name = Path(dataset).resolve().name
    name = name.removesuffix(Path(name).suffix) if Path(name).suffix in SUFFIXES else name
    return logbase / name / stage_config(dataset, config).preset


def train_stage(part: str, arguments: StageArguments) -> None:
    """Learn one of the models and put it into the agent folder.

    Raises:
        ConfigError: no such preset, or nothing to resume.
        DatasetError: the data cannot be used.
    """
    folder = agent_folder(arguments.logbase, arguments.dataset, arguments.config)
    target = folder / f"{part}.zip"
    config = stage_config(arguments.dataset, arguments.config)
    if arguments.horizon is not None:
        config = config.replace(horizon=arguments.horizon)
    agent = TREBIAgent(
        config=config,
        seed=arguments.seed,
        device=arguments.device,
        tensorboard_log=folder / f"{part}-log",
    )
    learn_with_checkpoints(
        agent,
        getattr(agent, f"learn_{part}"),
        arguments.dataset,
        target,
        total_steps=arguments.total_steps,
        every=arguments.checkpoint_every,
        resume=arguments.resume,
    )
    missing = [name for name in parts_of(agent.config) if not (folder / f"{name}.zip").is_file()]
    print(f"written to {target}")
    for name in missing:
        print(f"still to do: {LEARNERS[name][1]}")


def plan_stage(arguments: PlanArguments) -> None:
    """Run the agent of a folder under budgets, print the table and save it beside the models.

    Raises:
        NotLearnedError: a model is missing; the message names its script.
        BudgetError: the ratio is no budget.
    """
    folder = agent_folder(arguments.logbase, arguments.dataset, arguments.config)
    wanted = parts_of(stage_config(arguments.dataset, arguments.config))
    missing = [part for part in wanted if not (folder / f"{part}.zip").is_file()]
    if missing:
        todo = ", ".join(f"{part} (python {LEARNERS[part][1]})" for part in missing)
        chosen = f" --config {arguments.config}" if arguments.config else ""
        raise NotLearnedError(f"{folder} lacks {todo}; run it with --dataset {arguments.dataset}{chosen}")
    resolve_seed(arguments.seed)
    if arguments.random_budget not in (0, 1):
        raise ConfigError(f"--random_budget is 0 or 1; got {arguments.random_budget}")
    agent = TREBIAgent.load(folder, device=arguments.device)
    given = {
        "cost_weight": arguments.cost_grad_weight,
        "candidates": arguments.candidates,
        "guide_type": arguments.guide_type,
        "guide_scale": arguments.guide_scale,
        "guide_stop": arguments.guide_stop,
        "guide_moves": arguments.guide_moves,
        "control_interval": arguments.control_interval,
    }
    agent.set_planner(**{name: value for name, value in given.items() if value is not None})
    policy, discount, maximum = _accounting(agent, arguments)
    env_id = arguments.env or resolve_env(agent)
    if arguments.random_budget:
        ratios = np.random.default_rng(arguments.seed).uniform(0.1, 1.0, arguments.episodes)
        result = evaluate_episodes(
            policy,
            env_id,
            budgets=[float(ratio * maximum) for ratio in ratios],
            seeds=[arguments.seed + index for index in range(arguments.episodes)],
            seed=arguments.seed,
            discount=discount,
            progress_bar=True,
        )
        whole = result.summary()
        print(
            f"{whole.episodes} episodes, ratios from U(0.1, 1): return {whole.return_mean:.1f}, "
            f"cost {whole.cost_mean:.2f} of a mean budget of {whole.budget:.2f}, share over {whole.share_over:.2f}, "
            f"worst excess {whole.worst_excess:.2f}"
        )
        name = "plan-random"
    else:
        budget = arguments.ratio_of_maxthreshold * maximum
        result = evaluate_budgets(
            policy,
            env_id,
            budgets=[budget],
            episodes=arguments.episodes,
            seed=arguments.seed,
            discount=discount,
            progress_bar=True,
        )
        print(result.table())
        name = f"plan-{arguments.ratio_of_maxthreshold:g}"
    if arguments.control_interval != 1:
        name += f"-interval-{arguments.control_interval}"
    result.save(folder / f"{name}.json")
    print(f"written to {folder / name}.json")


def _accounting(agent: TREBIAgent, arguments: PlanArguments) -> tuple[Policy, float, float]:
    """Return what acts, the discount of budgets, and the budget at ratio 1: as the paper counts for its presets.

    Its toy tasks are scored undiscounted, with the budget turned into a discounted one by the data set's factor; its
    MuJoCo tasks are scored discounted, against the discounted maximum.
    """
    assert agent.task is not None
    config = agent.config
    recipe = RECIPES.get(str(known_name(arguments.dataset)))
    discounted = arguments.test_cost_with_discount
    if discounted is None:
        discounted = config.preset == "locomotion"
    if discounted:
        maximum = arguments.maximum
        if maximum is None and recipe is not None:
            maximum = recipe.discounted_maximum
        if maximum is None:
            raise ConfigError(
                f"no discounted maximum budget is published for {arguments.dataset}; pass --maximum, in discounted cost"
            )
        return agent, config.cost_discount, maximum
    maximum = resolve_maximum(agent, arguments.maximum)
    if config.planner.budget_rule == "constant":
        return OriginalAccounting(agent, agent.task.budget_factor, config.cost_discount), 1.0, maximum
    return agent, 1.0, maximum
