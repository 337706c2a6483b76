"""The commands that make, calibrate, evaluate and film an agent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from trebi_gym.commands.common import learn_with_checkpoints, parse_change, resolve_env, resolve_maximum
from trebi_gym.errors import ConfigError
from trebi_gym.files import check_writable

T = TypeVar("T")
Positional = Annotated[T, tyro.conf.Positional]


def learn(
    dataset: str,
    output: Path,
    config: str = "fast",
    total_steps: int | None = None,
    seed: int = 0,
    device: str = "auto",
    log_folder: Path | None = None,
    checkpoint_every: int = 2_000,
    horizon: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Learn an agent from logged episodes, without touching the system.

    Args:
        dataset: a data set's name or file.
        output: the agent's file, a zip.
        config: a preset: fast, fast_long, toy_safe_env or locomotion.
        total_steps: optimiser steps of the models together; default: the preset's.
        seed: of weights and training.
        device: auto, cpu, cuda, ...
        log_folder: for the training log, as TensorBoard events and CSV.
        checkpoint_every: optimiser steps between two copies that --resume can go on from; 0 for none.
        horizon: steps of a plan, at most those of an episode; default: the preset's.
        resume: go on where an interrupted run stopped.
        overwrite: replace an existing agent.
    """
    from trebi_gym.agents import TREBIAgent
    from trebi_gym.agents.presets import preset
    from trebi_gym.datasets.recipes import known_name

    target = _free_zip(output, overwrite)
    chosen = preset(config, known_name(dataset))
    if horizon is not None:
        chosen = chosen.replace(horizon=horizon)
    agent = TREBIAgent(config=chosen, seed=seed, device=device, tensorboard_log=log_folder)
    learn_with_checkpoints(
        agent,
        agent.learn,
        dataset,
        target,
        total_steps=total_steps,
        every=checkpoint_every,
        resume=resume,
        overwrite=overwrite,
    )
    _say_written(agent, target)


def import_agent(
    format: Positional[Literal["diffuser"]],
    folder: Positional[Path],
    output: Path,
    dataset: str | None = None,
    epoch: str = "latest",
    experiment: str | None = None,
    optimised: bool = False,
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
) -> None:
    """Take published models of another project as an agent; what it still lacks is learned by trebi learn-part.

    Args:
        format: diffuser: the trajectory model and the value that Diffuser publishes.
        folder: of one task, with diffusion/EXPERIMENT and values/EXPERIMENT inside.
        output: the agent's file, a zip.
        dataset: what the models were learned from, a name or file; default: the folder's name.
        epoch: of state_EPOCH.pt; latest takes the last.
        experiment: which, where there are several.
        optimised: take the weights that were optimised instead of their average.
        seed: of learning and planning.
        device: auto, cpu, cuda, ...
        overwrite: replace an existing agent.
    """
    from trebi_gym.agents import TREBIAgent

    target = _free_zip(output, overwrite)
    if epoch != "latest" and not epoch.isdecimal():
        raise ConfigError(f"--epoch is a number or latest; got {epoch!r}")
    check_writable(target)
    agent = TREBIAgent.from_diffuser(
        folder,
        dataset or folder.resolve().name,
        "latest" if epoch == "latest" else int(epoch),
        experiment=experiment,
        ema=not optimised,
        device=device,
        seed=seed,
    )
    agent.save(target)
    _say_written(agent, target)
    print(f"still to do: trebi learn-part cost_critic --agent {target}")


def learn_part(
    part: Positional[Literal["diffusion", "reward_critic", "cost_critic", "outcome_critic"]],
    agent: Path,
    dataset: str | None = None,
    output: Path | None = None,
    total_steps: int | None = None,
    device: str = "auto",
    log_folder: Path | None = None,
    checkpoint_every: int = 2_000,
    resume: bool = False,
) -> None:
    """Learn one of an agent's models, and keep the others.

    Args:
        part: diffusion, reward_critic, cost_critic, or outcome_critic where the agent has one.
        agent: the agent's file.
        dataset: a data set's name or file; default: the name that the agent keeps of its own, if that is still the same.
        output: the file of the agent with the new model; default: the agent's own.
        total_steps: optimiser steps; default: the configuration's.
        device: auto, cpu, cuda, ...
        log_folder: for the training log, as TensorBoard events and CSV.
        checkpoint_every: optimiser steps between two copies that --resume can go on from; 0 for none.
        resume: go on where an interrupted run stopped.
    """
    from trebi_gym.agents import TREBIAgent
    from trebi_gym.agents.storage.checkpoint import zip_path

    loaded = TREBIAgent.load(agent, device=device, tensorboard_log=log_folder)
    target = zip_path(output or agent)
    learn_with_checkpoints(
        loaded,
        getattr(loaded, f"learn_{part}"),
        dataset or _own_data(loaded),
        target,
        total_steps=total_steps,
        every=checkpoint_every,
        resume=resume,
    )
    _say_written(loaded, target)


def calibrate(
    agent: Positional[Path],
    env: str | None = None,
    dataset: str | None = None,
    risk: tuple[float, ...] = (0.05, 0.2),
    budgets: tuple[float, ...] | None = None,
    episodes: int = 100,
    confidence: float = 0.95,
    seed: int = 1_000_000,
    output: Path | None = None,
    n_envs: int | None = None,
    asynchronous: Annotated[bool, tyro.conf.arg(name="async")] = False,
    device: str = "auto",
) -> None:
    """Find out what budgets must be planned as, so that episodes keep them at a stated risk; kept in the agent's file.

    What is finished is kept beside the file: the same command goes on after a crash.

    Args:
        agent: the agent's file.
        env: the environment's id; default: the one that the data came from.
        dataset: held-out episodes instead of an environment; they promise nothing of what the agent chooses. Of the
            options below only risk, output and device go with it.
        risk: the first is the agent's own from here on, all must be supported by the episodes.
        budgets: to plan for; default: 17, from 0 over 1.25 times the data's maximum to no limit, up to the first that no
            budget up to the maximum lets pass at any of the risks.
        episodes: for each of them; 59 can support risk 0.05.
        confidence: of the guarantee.
        seed: of the first episode; evaluate with others.
        output: the file of the calibrated agent; default: the agent's own.
        n_envs: environments at once; default: all episodes, 100 at the most and as many as memory allows.
        asynchronous: run every environment in a process of its own, for heavy ones; the result is the same.
        device: auto, cpu, cuda, ...
    """
    from trebi_gym.agents import TREBIAgent
    from trebi_gym.agents.storage.checkpoint import zip_path
    from trebi_gym.commands.data import describe_calibration

    loaded = TREBIAgent.load(agent, device=device)
    target = zip_path(output or agent)
    check_writable(target)
    if dataset is not None:
        if env is not None:
            raise ConfigError("give --env or --dataset, not both")
        keep = None
    else:
        env = env or resolve_env(loaded)
        keep = target.with_name(target.stem + ".calibration.json")
    loaded.calibrate(
        env,
        dataset=dataset,
        risk=risk,
        budgets=budgets,
        episodes=episodes,
        confidence=confidence,
        n_envs=n_envs,
        asynchronous=asynchronous,
        keep=keep,
        seed=seed,
    )
    loaded.save(target)
    if keep is not None:
        keep.unlink(missing_ok=True)
    print("\n".join(describe_calibration(loaded, risk)))
    _say_written(loaded, target)


def _own_data(agent: Any) -> Any:
    """Return the data set that the agent's own goes by, if it is still that one.

    Raises:
        ConfigError: it has no name, or the name stands for other data by now.
    """
    from trebi_gym.datasets import load

    name = agent.learned_from.get("name")
    if not name or agent.learned_from.get("replaced_cost"):
        raise ConfigError("the agent's file does not say what it was learned from; pass --dataset")
    found = load(name)
    kept = [agent.learned_from.get(key) for key in ("episodes", "steps")]
    if kept != [len(found), found.n_steps]:
        raise ConfigError(
            f"the agent was learned from {name} of {kept[0]} episodes and {kept[1]} steps, but that name stands for "
            f"{len(found)} episodes and {found.n_steps} steps here; pass --dataset FILE"
        )
    return found


def _free_zip(output: Path, overwrite: bool) -> Path:
    from trebi_gym.agents.storage.checkpoint import zip_path

    target = zip_path(output)
    if target.exists() and not overwrite:
        raise ConfigError(f"{target} exists already; pass --overwrite to replace it, or another --output")
    return target


def _say_written(agent: Any, target: Path) -> None:
    print(f"{agent}\nwritten to {target} ({target.stat().st_size / 1e6:.2f} MB)")


def critics(
    agent: Positional[Path],
    dataset: str,
    windows: int = 8_192,
    env: str | None = None,
    budgets: tuple[float, ...] = (),
    episodes: int = 10,
    seed: int = 0,
    output: Path | None = None,
    device: str = "auto",
) -> None:
    """Tell how far off the critics are: on held-out episodes and, with budgets, on the agent's own.

    Args:
        agent: the agent's file.
        dataset: a data set's name or file, of episodes that the agent did not learn from.
        windows: to draw from them.
        env: the environment of the agent's own episodes; default: the one that the data came from.
        budgets: run episodes under these budgets, and compare what plans predict with what the rest of an episode costs.
        episodes: for each budget.
        seed: of the draws, and of the first episode.
        output: folder for critics.json, critics.csv, critics.png and closed_loop.png.
        device: auto, cpu, cuda, ...
    """
    from trebi_gym.agents import TREBIAgent
    from trebi_gym.datasets import load
    from trebi_gym.evaluation.critic_plots import plot_closed_loop, plot_critics
    from trebi_gym.evaluation.critic_report import report_critics

    if env is not None and not budgets:
        raise ConfigError("--env is for episodes, which need --budgets")
    if output is not None:
        check_writable(output / "critics.json")
    loaded = TREBIAgent.load(agent, device=device)
    report = report_critics(
        loaded,
        load(dataset),
        windows=windows,
        env_id=(env or resolve_env(loaded)) if budgets else None,
        budgets=budgets,
        episodes=episodes,
        seed=seed,
    )
    print(report.table())
    if output is not None:
        report.save(output)
        plot_critics(report, output / "critics.png", title=agent.name)
        if report.points:
            plot_closed_loop(report, output / "closed_loop.png", title=agent.name)
        print(f"written to {output}")


def evaluate(
    agent: Positional[Path],
    env: str | None = None,
    ratios: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 1.0),
    budgets: tuple[float, ...] | None = None,
    maximum: float | None = None,
    episodes: int = 20,
    seed: int = 0,
    change: tuple[str, ...] = (),
    schedule: str | None = None,
    risk: float | None = None,
    uncalibrated: bool = False,
    n_envs: int | None = None,
    asynchronous: Annotated[bool, tyro.conf.arg(name="async")] = False,
    output: Path | None = None,
    device: str = "auto",
) -> None:
    """Run an agent under several budgets and tell whether it keeps them.

    Args:
        agent: the agent's file.
        env: the environment's id; default: the one that the data came from.
        ratios: budgets as shares of the maximum.
        budgets: budgets as they are, instead of ratios.
        maximum: the budget at ratio 1; default: that of the data set that the agent learned from.
        episodes: for each budget, all with the same seeds.
        seed: of the first episode.
        change: changes in mid-episode, as STEP:REMAINING, for example 100:6.
        schedule: changes that every episode draws for itself: drop, drops, raise, walk or late, with options as in
            drop:share=0.2,step=100, drops:times=3, walk:size=0.2,every=20.
        risk: the chance of an episode over its budget, one that the agent is calibrated for; default: the agent's own.
        uncalibrated: leave the agent's calibration aside.
        n_envs: environments at once; default: all episodes, 100 at the most and as many as memory allows.
        asynchronous: run every environment in a process of its own, for heavy ones; the result is the same.
        output: folder for evaluation.json, evaluation.csv and evaluation.png.
        device: auto, cpu, cuda, ...
    """
    from trebi_gym.agents import TREBIAgent
    from trebi_gym.evaluation.evaluate import evaluate_budgets
    from trebi_gym.evaluation.plots import plot_budgets
    from trebi_gym.evaluation.schedules import parse_schedule

    if schedule is not None and change:
        raise ConfigError("give --change or --schedule, not both")
    moving = [parse_change(text) for text in change] if schedule is None else parse_schedule(schedule)
    if output is not None:
        check_writable(output / "evaluation.json")
    loaded = _at_risk(TREBIAgent.load(agent, device=device), risk, uncalibrated)
    chosen = (
        budgets
        if budgets is not None
        else tuple(ratio * resolve_maximum(loaded, maximum) for ratio in ratios)
    )
    result = evaluate_budgets(
        loaded,
        env or resolve_env(loaded),
        budgets=chosen,
        episodes=episodes,
        n_envs=n_envs,
        asynchronous=asynchronous,
        seed=seed,
        schedule=moving,
        progress_bar=True,
    )
    print(result.table())
    print(f"{result.metadata['milliseconds_per_decision']:.1f} ms a decision")
    if output is not None:
        for ending in (".json", ".csv"):
            result.save(output / f"evaluation{ending}")
        print(f"written to {output}/evaluation.json and .csv")
        plot_budgets(result, output / "evaluation.png", title=f"{env or resolve_env(loaded)}: {agent.name}")
        print(f"written to {output}/evaluation.png")


def record(
    agent: Positional[Path],
    budget: float,
    output: Path = Path("rollout.mp4"),
    env: str | None = None,
    seed: int = 0,
    change: tuple[str, ...] = (),
    risk: float | None = None,
    uncalibrated: bool = False,
    device: str = "auto",
) -> None:
    """Write a video of one episode, with the remaining budget drawn in.

    Args:
        agent: the agent's file.
        budget: what the episode may cost.
        output: the video, an mp4.
        env: the environment's id; default: the one that the data came from.
        seed: of the episode.
        change: changes in mid-episode, as STEP:REMAINING, for example 100:6.
        risk: the chance of an episode over its budget, one that the agent is calibrated for; default: the agent's own.
        uncalibrated: leave the agent's calibration aside.
        device: auto, cpu, cuda, ...
    """
    from trebi_gym.agents import TREBIAgent
    from trebi_gym.evaluation.video import record_video

    check_writable(output)
    loaded = _at_risk(TREBIAgent.load(agent, device=device), risk, uncalibrated)
    schedule = [parse_change(text) for text in change]
    result = record_video(
        loaded, env or resolve_env(loaded), output, budget=budget, seed=seed, schedule=schedule
    )
    kept = "kept" if result.kept else "broken"
    print(
        f"{result.path}: {result.frames} frames, return {result.episode_return:.1f}, "
        f"cost {result.cost:.2f} of budget {result.budget:g}, {kept}"
    )


def _at_risk(agent: Any, risk: float | None, uncalibrated: bool) -> Any:
    if risk is not None and uncalibrated:
        raise ConfigError("give --risk or --uncalibrated, not both")
    if uncalibrated or risk is not None:
        agent.set_risk(risk)
    return agent
