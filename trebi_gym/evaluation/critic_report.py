"""How far the critics can be trusted: their errors on held-out windows and in closed loop, as rows, table and files."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from trebi_gym.agents import TREBIAgent
from trebi_gym.agents.calibration.fingerprints import count_learned
from trebi_gym.agents.diffusion.denoising import add_noise, pin_first_observation
from trebi_gym.agents.diffusion.schedule import NoiseSchedule
from trebi_gym.agents.models import OUTCOME, make_windows
from trebi_gym.agents.networks import BudgetCritic, OutcomeCritic
from trebi_gym.agents.planning.budgets import geometric_sum
from trebi_gym.agents.spaces import check_dataset
from trebi_gym.agents.torch_settings import usual_settings
from trebi_gym.budget import Budget, check_budget
from trebi_gym.checks import check_count, check_seed
from trebi_gym.datasets import EpisodeDataset
from trebi_gym.errors import TrebiError
from trebi_gym.evaluation.records import format_table
from trebi_gym.files import replacing
from trebi_gym.rollout import envs_for, rollout

Floats = npt.NDArray[np.float64]

REWARD_WITHIN = "outcome_critic, most reward within the cost"
LEAST_COST = "outcome_critic, least cost"
"""What a budget critic says of logged windows."""
CHOSEN_COST = "cost of the chosen plan, undiscounted"
CHOSEN_LEAST = "least cost after the chosen plan, undiscounted"
CHOSEN_REWARD = "reward of the chosen plan, undiscounted"
"""What is said of chosen plans in closed loop."""

BINS = 5


@dataclass(frozen=True)
class Prediction:
    """What one critic says of windows, and what then came; B numbers each."""

    name: str
    predicted: Floats
    target: Floats
    steps_left: Floats
    nominal: float | None = None  # the quantile that it predicts; None for a mean


@dataclass(frozen=True)
class Row:
    """The error of one critic within one bin. Errors are prediction minus target, in the critic's units."""

    critic: str
    by: str  # "all", "steps left", "prediction" or "noise level"
    low: float  # of the bin
    high: float
    count: int
    rmse: float
    bias: float
    nominal: float | None = None  # share of targets that should lie at or below the prediction
    coverage: float | None = None  # share that do


@dataclass(frozen=True)
class CriticsReport:
    """All rows; ``held_out`` of logged windows, ``closed_loop`` of the agent's own episodes, if any were run."""

    held_out: tuple[Row, ...]
    closed_loop: tuple[Row, ...] = ()
    points: tuple[Prediction, ...] = field(
        default=(), compare=False, repr=False
    )  # closed loop, decision by decision
    metadata: dict[str, Any] = field(default_factory=dict)

    def table(self) -> str:
        """Return tables for people."""
        blocks = [("held-out windows", self.held_out), ("closed loop", self.closed_loop)]
        return "\n\n".join(f"{title}\n{_table(rows)}" for title, rows in blocks if rows)

    def to_json(self) -> str:
        """Return the rows and the metadata as JSON."""
        return json.dumps(
            {
                "metadata": self.metadata,
                "held_out": [dataclasses.asdict(row) for row in self.held_out],
                "closed_loop": [dataclasses.asdict(row) for row in self.closed_loop],
            },
            indent=2,
            allow_nan=False,
        )

    def to_csv(self) -> str:
        """Return one line a row as CSV."""
        buffer = io.StringIO()
        names = ["where", *(item.name for item in dataclasses.fields(Row))]
        writer = csv.DictWriter(buffer, names, lineterminator="\n")
        writer.writeheader()
        for where, rows in (("held out", self.held_out), ("closed loop", self.closed_loop)):
            writer.writerows({"where": where} | dataclasses.asdict(row) for row in rows)
        return buffer.getvalue()

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write critics.json and critics.csv into a folder."""
        for ending, text in ((".json", self.to_json()), (".csv", self.to_csv())):
            with replacing(Path(folder) / f"critics{ending}") as temporary:
                temporary.write_text(text)


def row_of(
    found: Prediction,
    by: str,
    low: float | None = None,
    high: float | None = None,
    chosen: npt.NDArray[np.bool_] | None = None,
) -> Row:
    """Return the error over the chosen windows; without any choice, over all."""
    which = np.ones(len(found.predicted), dtype=np.bool_) if chosen is None else chosen
    predicted, target = found.predicted[which], found.target[which]
    error = predicted - target
    return Row(
        critic=found.name,
        by=by,
        low=float(predicted.min() if low is None else low),
        high=float(predicted.max() if high is None else high),
        count=len(error),
        rmse=float(np.sqrt(np.mean(error**2))),
        bias=float(error.mean()),
        nominal=found.nominal,
        coverage=None if found.nominal is None else float((target <= predicted).mean()),
    )


def bins_of(found: Prediction, by: str) -> Iterator[Row]:
    """Yield a row for each of five bins that hold about as many windows each; equal values share one."""
    values = found.steps_left if by == "steps left" else found.predicted
    edges = np.unique(np.quantile(values, np.linspace(0, 1, BINS + 1)))
    if len(edges) == 1:
        yield row_of(found, by, float(edges[0]), float(edges[0]))
    for index in range(len(edges) - 1):
        low, high = edges[index], edges[index + 1]
        chosen = (values >= low) & ((values < high) | (index == len(edges) - 2))
        if chosen.any():
            yield row_of(found, by, float(low), float(high), chosen)


def _table(rows: Sequence[Row]) -> str:
    def share(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    header = ("critic", "by", "from", "to", "n", "RMSE", "bias", "nominal", "at or below")
    return format_table(
        header,
        [
            (
                row.critic,
                row.by,
                f"{row.low:.4g}",
                f"{row.high:.4g}",
                str(row.count),
                f"{row.rmse:.3g}",
                f"{row.bias:+.3g}",
                share(row.nominal),
                share(row.coverage),
            )
            for row in rows
        ],
    )


BATCH = 4_096


@usual_settings()
def report_critics(
    agent: TREBIAgent,
    dataset: EpisodeDataset,
    *,
    windows: int = 8_192,
    env_id: str | None = None,
    budgets: Sequence[float] = (),
    episodes: int = 10,
    seed: int = 0,
) -> CriticsReport:
    """Compare the critics with held-out episodes and, with an environment, with what plans then cost.

    Args:
        agent: that has learned.
        dataset: of episodes that it did not learn from.
        windows: to draw from them, with repetition.
        env_id: also run episodes in this environment, uncalibrated.
        budgets: of those episodes.
        episodes: for each budget.
        seed: of the draws; the episodes' environments count on from it.

    Warns:
        UserWarning: the agent learned from some of the episodes; the report's metadata count them.

    Raises:
        DatasetError: the data do not fit the agent.
        TrebiError: no windows, or an environment without budgets.
    """
    windows, episodes, seed = (
        check_count(windows, "windows"),
        check_count(episodes, "episodes"),
        check_seed(seed),
    )
    if env_id is not None and len(budgets) == 0:
        raise TrebiError("give at least one budget for the episodes in the environment")
    agent.fingerprint()  # refused where a model is missing
    assert agent.observation_space is not None
    assert agent.action_space is not None
    check_dataset(dataset, agent.observation_space, agent.action_space)
    learned = count_learned(agent.learned_from, dataset)
    if learned:
        warnings.warn(
            f"the agent learned from {learned} of these {len(dataset)} episodes: its critics look better on them than on "
            "others; learn from one part and look at the other: learned, held_out = dataset.split(0.2)",
            UserWarning,
            stacklevel=3,
        )
    rows: list[Row] = []
    for found in _clean(agent, dataset, windows, seed):
        rows += [row_of(found, "all"), *bins_of(found, "steps left"), *bins_of(found, "prediction")]
    rows += _by_noise(agent, dataset, windows, seed)
    points = () if env_id is None else _closed_loop(agent, env_id, budgets, episodes, seed)
    closed = [row for found in points for row in (row_of(found, "all"), *bins_of(found, "steps left"))]
    metadata = {
        "agent": repr(agent),
        "dataset": str(dataset.metadata.get("name")),
        "held_out_episodes": len(dataset),
        "learned_episodes": learned,  # of these; None where the agent's file does not tell
        "windows": windows,
        "env_id": env_id,
        "budgets": [float(budget) for budget in budgets],
        "episodes": episodes if env_id is not None else 0,
        "seed": seed,
    }
    return CriticsReport(tuple(rows), tuple(closed), points, metadata)


def _drawn(agent: TREBIAgent, dataset: EpisodeDataset, part: str, count: int, seed: int) -> Iterator[Any]:
    """Yield windows as a model sees them, the same ones for every model, in batches."""
    assert agent.task is not None
    windows = make_windows(dataset, agent.config, agent.task, agent.device, part)
    index = np.random.default_rng(seed).integers(len(windows), size=count)
    for first in range(0, count, BATCH):
        yield windows[torch.as_tensor(index[first : first + BATCH], device=agent.device)]


@torch.no_grad()
def _clean(agent: TREBIAgent, dataset: EpisodeDataset, count: int, seed: int) -> Iterator[Prediction]:
    """Predict from windows without noise, as finished plans are scored."""
    quantile = agent.config.cost_quantile
    for part, nominal in (("reward_critic", None), ("cost_critic", quantile)):
        found = []
        for window in _drawn(agent, dataset, part, count, seed):
            clean = torch.zeros(len(window.trajectory), dtype=torch.long, device=agent.device)
            value = agent.models[part](window.trajectory, clean, window.steps_left)
            target = window.return_to_go if part == "reward_critic" else window.cost_to_go
            found.append((value, target, window.steps_left))
        yield Prediction(part, *_joined(found), nominal=nominal)
    if OUTCOME not in agent.models:
        return
    batches = list(_drawn(agent, dataset, OUTCOME, count, seed))
    judging = agent.models[OUTCOME]
    if isinstance(judging, BudgetCritic):
        yield from _judged(judging, batches)
        return
    critic = cast(OutcomeCritic, judging)
    quantiles = [critic.costs(w.trajectory, w.steps_left) for w in batches]
    for column, level in enumerate(critic.levels):
        found = [(q[:, column], w.cost_to_go, w.steps_left) for q, w in zip(quantiles, batches, strict=True)]
        yield Prediction(f"outcome_critic, cost quantile {level:g}", *_joined(found), level)
    earned = [
        (critic.rewards(w.trajectory, w.steps_left, w.cost_to_go), w.return_to_go, w.steps_left)
        for w in batches
    ]
    yield Prediction("outcome_critic, reward given the cost", *_joined(earned))


def _judged(critic: BudgetCritic, batches: list[Any]) -> Iterator[Prediction]:
    """Judge logged windows as plans, with what the episode then cost as the budget.

    The best that the data allow earns more than what was logged, and the least costs less: bias that is meant.
    """
    told = [critic.judge(w.trajectory, w.steps_left, w.cost_to_go) for w in batches]
    for name, place, sums in (
        (REWARD_WITHIN, 0, [w.return_to_go for w in batches]),
        (LEAST_COST, 1, [w.cost_to_go for w in batches]),
    ):
        found = [(t[place], came, w.steps_left) for t, came, w in zip(told, sums, batches, strict=True)]
        yield Prediction(name, *_joined(found))


@torch.no_grad()
def _by_noise(agent: TREBIAgent, dataset: EpisodeDataset, count: int, seed: int) -> list[Row]:
    """Return the errors of the critics that guide, at every noise level."""
    assert agent.task is not None
    schedule = NoiseSchedule.cosine(agent.config.diffusion_steps).to(agent.device)
    size, rows = agent.task.action_size, []
    for part in ("reward_critic", "cost_critic"):
        for step in range(agent.config.diffusion_steps):
            noise = torch.Generator(device=agent.device).manual_seed(seed)
            found = []
            for window in _drawn(agent, dataset, part, min(count, BATCH), seed):
                x0 = window.trajectory
                t = torch.full((len(x0),), step, dtype=torch.long, device=agent.device)
                drawn = torch.randn(x0.shape, generator=noise, device=agent.device)
                noisy = pin_first_observation(add_noise(schedule, x0, t, drawn), x0[:, 0, size:], size)
                target = window.return_to_go if part == "reward_critic" else window.cost_to_go
                found.append((agent.models[part](noisy, t, window.steps_left), target, window.steps_left))
            nominal = agent.config.cost_quantile if part == "cost_critic" else None
            rows.append(row_of(Prediction(part, *_joined(found), nominal), "noise level", step, step))
    return rows


def _closed_loop(
    agent: TREBIAgent, env_id: str, budgets: Sequence[float], episodes: int, seed: int
) -> tuple[Prediction, ...]:
    """Run episodes; return what every chosen plan was predicted to cost to the end, and what the rest then cost.

    Where plans are ranked by an outcome critic, whose rewards are undiscounted, the second are the same of the reward.
    """
    assert agent.task is not None
    jobs = [Budget(check_budget(budget)) for budget in budgets for _ in range(episodes)]
    seeds = [seed + index for _ in budgets for index in range(episodes)]
    agent.set_random_seed(seed)
    # of every decision: steps left, cost and reward as predicted, cost and reward so far
    told: list[list[tuple[float, ...]]] = [[] for _ in jobs]
    spent, earned = np.zeros(len(jobs)), np.zeros(len(jobs))
    length, discount = agent.task.episode_length, agent.config.cost_discount
    envs, _ = envs_for(agent, env_id, len(jobs))
    try:
        for step in rollout(agent.with_risk(None), envs, budgets=jobs, seed=seeds):
            state = step.policy_state
            assert step.policy_rows is not None
            for place, row in enumerate(step.policy_rows):
                if not step.active[row] or state.position[place] != 1:
                    continue  # idle, or going on with an older plan
                job, left = int(step.episode[row]), float(max(1, length - step.step[row]))
                cost = float(state.costs[place]) * left / float(geometric_sum(discount, np.array(left)))
                told[job].append(
                    (left, cost, float(state.rewards[place]), step.budgets[row].spent, earned[job])
                )
            for row in np.flatnonzero(step.active):
                spent[int(step.episode[row])] = step.budgets_after[row].spent
                earned[int(step.episode[row])] += step.rewards[row]
    finally:
        envs.close()
    rows = [(*found, spent[job], earned[job]) for job, each in enumerate(told) for found in each]
    left_of, cost_of, reward_of, spent_by, earned_by, cost, reward = np.array(rows, dtype=np.float64).T
    by_outcome = agent.config.planner.ranking == "outcome"
    nominal = agent.config.planner.cost_level if by_outcome else agent.config.cost_quantile
    said = CHOSEN_COST
    if by_outcome and isinstance(agent.models[OUTCOME], BudgetCritic):
        said, nominal = CHOSEN_LEAST, None  # the least that the rest can cost is no quantile
    costs = Prediction(said, cost_of, cost - spent_by, left_of, nominal)
    return (
        (costs, Prediction(CHOSEN_REWARD, reward_of, reward - earned_by, left_of)) if by_outcome else (costs,)
    )


def _joined(found: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> tuple[Floats, Floats, Floats]:
    predicted, target, left = (
        torch.cat(column).double().cpu().numpy() for column in zip(*found, strict=True)
    )
    return predicted, target, left
