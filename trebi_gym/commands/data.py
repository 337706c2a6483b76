"""The commands about data sets and saved files: what is in one, and the same in another format."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
import numpy.typing as npt
import tyro

from trebi_gym.agents import HeldOutCalibration, TREBIAgent
from trebi_gym.agents.calibration.statistics import AnyCalibration
from trebi_gym.datasets import EpisodeDataset
from trebi_gym.datasets.recipes import maximum_budget, published_recipe
from trebi_gym.errors import CalibrationError, ConfigError, DatasetError
from trebi_gym.evaluation.records import format_table
from trebi_gym.files import check_writable

RATIOS = (0.2, 0.4, 0.6, 0.8, 1.0)
BARS = " ▏▎▍▌▋▊▉█"
BAR_WIDTH = 40  # characters


def describe_dataset(episodes: EpisodeDataset, place: Path) -> str:
    """Return what a data set holds, for people: where it is from, its episodes, returns, costs and budgets.

    Args:
        episodes: the data set.
        place: its file or folder.
    """
    returns, costs = episodes.episode_returns, episodes.episode_costs
    budget = maximum_budget(episodes)
    recipe = published_recipe(episodes)
    found = episodes.metadata.get("notes")
    notes = found if isinstance(found, list) else []
    replaced = episodes.metadata.get("replaced_cost")
    if replaced:
        notes = [*notes, f"the costs are those of {replaced}, in the place of the stored ones"]
    lines = [
        repr(episodes),
        f"file           {place}",
        f"environment    {episodes.metadata.get('env_id', 'not recorded')}, "
        f"{episodes.episode_length} steps an episode at most",
        f"made by        {episodes.metadata.get('algorithm', 'not recorded')}, "
        f"seed {episodes.metadata.get('seed', 'not recorded')}",
        f"episodes       {len(episodes)}, of {episodes.lengths.min()} to {episodes.lengths.max()} steps; "
        f"{int(episodes.terminated.sum())} ended by the task",
        *(f"note           {note}" for note in notes),
        f"return         mean {returns.mean():.2f}, {returns.min():.2f} to {returns.max():.2f}",
        *histogram(returns),
        f"cost           mean {costs.mean():.2f}, {costs.min():.2f} to {costs.max():.2f}",
        *histogram(costs),
        f"maximum budget {budget.value:.4g} ({budget.rule})",
    ]
    if recipe is not None:
        lines.append(
            f"discounted     {recipe.discounted_maximum:.4g} (published); the original turns an undiscounted budget "
            f"into a discounted one by the factor {recipe.budget_factor:.4g}"
        )
        lines.append(f"preset         {recipe.preset} (the paper's); fast is the default")
    for ratio in RATIOS:
        within = costs <= ratio * budget.value
        best = f"best return {returns[within].max():.1f}" if within.any() else "none"
        lines.append(
            f"  ratio {ratio:.1f}    {int(within.sum())} episodes ({within.mean():.0%}) within "
            f"{ratio * budget.value:.4g}, {best}"
        )
    return "\n".join(lines)


def histogram(values: npt.NDArray[np.float64], bins: int = 10) -> list[str]:
    """Return lines that show how (n,) values are spread: a range, a bar and a count each."""
    # equal up to rounding: there would be more bins than numbers between them
    if values.max() - values.min() <= 1e-9 * np.abs(values).max():
        return [f"  all {values.min():.5g}"]
    counts, edges = np.histogram(values, bins=bins)
    names = [f"{low:.4g} to {high:.4g}" for low, high in itertools.pairwise(edges)]
    width = max(map(len, names))
    return [
        f"  {name:>{width}} {_bar(count / counts.max())} {count}".rstrip()
        for name, count in zip(names, counts.tolist(), strict=True)
    ]


def _bar(share: float) -> str:
    eighths = max(1, round(share * BAR_WIDTH * 8)) if share > 0 else 0
    full, rest = divmod(eighths, 8)
    return BARS[8] * full + (BARS[rest] if rest else "")


def describe_agent(path: Path) -> str:
    """Return what a saved agent is, for people."""
    agent = TREBIAgent.load(path)
    assert agent.task is not None
    planner = agent.config.planner
    parameters = {name: sum(p.numel() for p in model.parameters()) for name, model in agent.models.items()}
    learned = agent.learned_from
    return "\n".join(
        [
            repr(agent),
            f"learned from   {learned.get('name')} ({learned.get('episodes')} episodes, {learned.get('steps')} steps)",
            f"environment    {learned.get('env_id')}, {agent.task.episode_length} steps an episode",
            f"horizon        {agent.config.horizon} steps, {agent.config.diffusion_steps} noise levels",
            *(f"{name:<14} {count:,} parameters" for name, count in parameters.items()),
            f"planner        {planner.candidates} candidates, {planner.sampler} with "
            f"{planner.sampler_steps or agent.config.diffusion_steps} steps, {planner.guide_moves} guided moves each",
            f"budgets        rule {planner.budget_rule!r}, costs discounted by {agent.config.cost_discount}",
            *describe_calibration(agent),
        ]
    )


def describe_calibration(agent: TREBIAgent, risks: Sequence[float] = (0.05, 0.2)) -> list[str]:
    """Return lines on what an agent is calibrated for; ``risks`` that its episodes cannot support are left out."""
    found = agent.calibration
    if found is None:
        return ["calibration    none: budgets are kept as the planner does by itself; see trebi calibrate"]
    own = "none" if agent.risk is None else f"{agent.risk:g}"
    shown = [
        risk
        for risk in dict.fromkeys((*risks, *([agent.risk] if agent.risk else [])))
        if _supports(found, risk)
    ]
    if isinstance(found, HeldOutCalibration):
        reserves = ", ".join(f"{found.reserve(risk):.4g} at risk {risk:g}" for risk in shown)
        return [
            f"calibration    on {len(found.excesses)} held-out episodes of {found.dataset}; the agent's risk: {own}",
            f"  held back    {reserves or 'nothing: too few episodes'}",
            "  note         no guarantee: it covers the critic's error on logged episodes, not what the agent chooses",
        ]
    header = ["planned for", "mean cost", "greatest", "return", *(f"keeps, risk {risk:g}" for risk in shown)]
    return [
        f"calibration    {found.episodes} episodes of {found.env_id} for each planned budget, seeds {found.seed} on; "
        f"the agent's risk: {own}",
        f"  guarantee    with confidence {found.confidence:g} an episode that is planned for so costs more than is named "
        "under a risk with at most that chance",
        *("  " + line for line in format_table(header, found.table(shown)).splitlines()),
    ]


def _supports(found: AnyCalibration, risk: float) -> bool:
    try:
        found.planned_for(np.zeros(1), risk)
    except CalibrationError:
        return False
    return True


T = TypeVar("T")
Positional = Annotated[T, tyro.conf.Positional]


def info(
    what: Positional[str],
    plot: Path | None = None,
    cost: str | None = None,
    name: str | None = None,
    episode_length: int | None = None,
) -> None:
    """Tell what a data set or a saved agent holds.

    Args:
        what: a data set's name, file or folder, or an agent's file or folder.
        plot: a picture of the episodes' returns and costs, .png, .pdf or .svg.
        cost: "module:name" of a cost function that takes the place of the stored costs.
        name: the known name of what the file holds, where its own does not say so.
        episode_length: the task's time limit in steps, where the file does not tell it.
    """
    from trebi_gym.commands.data import describe_agent, describe_dataset

    path = Path(what)
    if path.suffix == ".zip" or (path.is_dir() and any(path.glob("*.zip"))):
        if plot is not None or cost is not None or name is not None or episode_length is not None:
            raise ConfigError("--plot, --cost, --name and --episode-length are for data sets; got an agent")
        print(describe_agent(path))
        return
    from trebi_gym.datasets import load, resolve
    from trebi_gym.datasets.recipes import maximum_budget
    from trebi_gym.evaluation.plots import plot_episodes

    if plot is not None:
        check_writable(plot)
    episodes = load(what, cost=cost, name=name, episode_length=episode_length)
    print(describe_dataset(episodes, resolve(what)))
    if plot is not None:
        plot_episodes(
            episodes.episode_returns,
            episodes.episode_costs,
            plot,
            maximum=maximum_budget(episodes).value,
            title=str(episodes.metadata.get("name", Path(what).name)),
        )
        print(f"drawn in {plot}")


def convert(
    dataset: str,
    output: Path,
    format: str = "native_hdf5",
    cost: str | None = None,
    name: str | None = None,
    episode_length: int | None = None,
    overwrite: bool = False,
) -> None:
    """Write a data set in another format, or with other costs.

    Args:
        dataset: a data set's name, file or folder, in any known format.
        output: the file; for Minari the folder, ROOT/NAMESPACE/NAME-vN.
        format: native_hdf5, dsrl, d4rl or minari.
        cost: "module:name" of a cost function that takes the place of the stored costs.
        name: the known name of what the file holds, where its own does not say so.
        episode_length: the task's time limit in steps, where the file does not tell it.
        overwrite: replace an existing file.
    """
    from trebi_gym.datasets import load, save
    from trebi_gym.datasets.sources import SOURCES

    if format not in SOURCES:
        raise DatasetError(f"--format must be one of {', '.join(SOURCES)}; got {format!r}")
    if output.exists() and (output.is_dir() or not overwrite):
        remedy = (
            "choose another --output" if output.is_dir() else "pass --overwrite or choose another --output"
        )
        raise DatasetError(f"{output} exists already; {remedy}")
    check_writable(output)
    episodes = load(dataset, cost=cost, name=name, episode_length=episode_length)
    save(episodes, output, format=format)
    print(f"{episodes}\nwritten to {output} as {format}")
