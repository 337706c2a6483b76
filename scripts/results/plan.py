"""What ``make results`` measures: tasks, methods, budgets, seeds, and the agents that they need."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trebi_gym.agents.config import TREBIConfig
from trebi_gym.agents.presets import preset
from trebi_gym.datasets.recipes import RECIPES

RATIOS = (0.2, 0.4, 0.6, 0.8, 1.0)
SEEDS = (0, 1, 2)
EPISODES = 20
RISKS = (0.05, 0.2)
CALIBRATION_EPISODES = 100
FIRST_SEED = 50_000
"""Of evaluation episodes, far from those of calibration, which count from 1,000,000."""
SEED_STEP = 1_000
"""From one training seed's first evaluation episode to the next one's."""
TIMED_RATIO = 0.6
"""Of the budget under which decisions are timed."""
MOVED_METHOD, MOVED_RATIO = "calibrated-0.2", 0.6
"""What acts, and under which budget at the start, where budgets move in mid-episode."""
MOVED_SEEDS = 10_000
"""From the first seed of the evaluation episodes to that of episodes whose budgets move."""
REDUCED_RATIOS, REDUCED_EPISODES = (0.2, 0.6, 1.0), 6

JUST_BELOW = "costs hardly differ from what is planned, so these lie just below the measured ratios"


@dataclass(frozen=True)
class Task:
    """A task of the page, and the data that its agents learn from."""

    env_id: str
    dataset: str
    """A data set's name, or its file."""
    total_step: int
    """Steps that ``trebi generate`` is asked for where there is no such data set."""
    least_steps: int
    """Data of fewer are refused."""
    preset: str | TREBIConfig
    """Of our default's agents."""
    algo: str = "sac"
    """Of the training run that the data are recorded of."""
    paper_preset: str = "toy_safe_env"
    paper_dataset: str | None = None
    """The paper's data set of this task, for which it sets some things differently."""
    calibration_episodes: int = CALIBRATION_EPISODES
    """For each planned budget."""
    planned_ratios: tuple[float, ...] | None = None
    """Planned budgets of the calibration, as shares of the maximum budget; None: those that ``calibrate`` takes."""
    planned_because: str = ""
    """Why these planned budgets, for the page."""

    def planned(self, maximum: float) -> list[float] | None:
        """Return the planned budgets of the calibration, or None for those that ``calibrate`` takes."""
        return None if self.planned_ratios is None else [ratio * maximum for ratio in self.planned_ratios]


def _velocity(name: str, **options: Any) -> Task:
    options.setdefault("planned_because", JUST_BELOW)
    options.setdefault("calibration_episodes", 60)
    return Task(
        env_id=f"Safe{name}-v0",
        dataset=f"Safe{name}-medium-replay-v0",
        total_step=300_000,
        least_steps=100_000,
        preset=options.pop("preset", "fast_long"),
        algo="ppo",
        paper_preset="locomotion",
        paper_dataset=f"{name.lower()}-medium-replay-v2",
        **options,
    )


def _published(name: str, steps: int) -> Task:
    planned = (0.0, 0.18, 0.197, 0.37, 0.396, 0.56, 0.595, 0.75, 0.795, 0.94, 0.99)
    because = f"{JUST_BELOW}, and a step below"
    return Task(
        RECIPES[name].env_id, name, steps, steps, "fast", planned_ratios=planned, planned_because=because
    )


FEWER_CANDIDATES = preset("fast_long").replace(planner={"candidates": 16})

TASKS: dict[str, Task] = {
    "pendulum": _published("SafePendulum-medium-replay-v0", 20_000),
    "reacher": _published("SafeReacher-medium-replay-v0", 50_000),
    # fewer candidates, in half the time: here they earn 1 or 2% less
    "hopper": _velocity(
        "Hopper",
        preset=FEWER_CANDIDATES,
        planned_ratios=(0.0, 0.14, 0.18, 0.33, 0.38, 0.52, 0.57, 0.7, 0.765, 0.9, 0.96),
        planned_because=f"{JUST_BELOW}; and a step below, added when a first calibration had shown one agent to need it",
    ),
    "walker2d": _velocity(
        "Walker2d",
        planned_ratios=(0.0, 0.15, 0.27, 0.34, 0.45, 0.53, 0.66, 0.86),
        planned_because="it costs some ten more than planned under small budgets, so these lie below the measured ratios",
    ),
    # fewer candidates: its episodes never end early; a second search with moves: its cheapest plans are no logged ones
    "halfcheetah": _velocity(
        "HalfCheetah",
        preset=FEWER_CANDIDATES.replace(planner={"retry_guide_scale": None}),
        planned_ratios=(0.385, 0.58, 0.775, 0.97),
        planned_because=f"{JUST_BELOW}; no logged episode cost so little as the smallest",
    ),
}

Kind = Literal["default", "paper", "paper-reduced", "cloning", "data"]


@dataclass(frozen=True)
class Method:
    """What acts in a row of the page's tables."""

    label: str
    kind: Kind
    risk: float | None = None

    @property
    def learns_agent(self) -> bool:
        """Whether it acts by a ``TREBIAgent``, which the stage ``learn`` makes."""
        return self.kind in ("default", "paper", "paper-reduced")


METHODS: dict[str, Method] = {
    "calibrated-0.05": Method("default, calibrated at risk 0.05", "default", 0.05),
    "calibrated-0.2": Method("default, calibrated at risk 0.2", "default", 0.2),
    "uncalibrated": Method("default, uncalibrated", "default"),
    "paper-reduced": Method("the paper's networks and sampler, reduced", "paper-reduced"),
    "paper": Method("the paper's networks and sampler, full size", "paper"),
    "cloning": Method("cloning of the episodes within the budget", "cloning"),
    "best-episode": Method("best episode in the data within the budget", "data"),
}


NEEDED = {
    "time": ("milliseconds", "load"),
    "data": (
        "name",
        "steps",
        "episodes",
        "returns",
        "costs",
        "maximum_budget",
        "rule",
        "sides",
        "build_seconds",
    ),
}
"""What parts of a task must have found for the page."""


@dataclass(frozen=True)
class Request:
    """What is asked of one task; see ``results.Arguments``."""

    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    episodes: int
    calibration_episodes: int
    decisions: int
    source: str
    output: Path
    agents: Path
    redo: bool
    device: str


def grid(task: str, method: str) -> list[tuple[int, float]]:
    """Return the training seeds and ratios of a method's cells; what the data hold has only seed 0."""
    kind = METHODS[method].kind
    if kind == "paper-reduced":
        return [(0, ratio) for ratio in REDUCED_RATIOS] if task == "pendulum" else []
    return [(seed, ratio) for seed in ((0,) if kind == "data" else SEEDS) for ratio in RATIOS]


def episodes_of(method: str, asked: int = EPISODES) -> int:
    """Return the episodes of one cell of a method, where ``asked`` are wanted of the full ones."""
    kind = METHODS[method].kind
    return 1 if kind == "data" else min(asked, REDUCED_EPISODES) if kind == "paper-reduced" else asked


def reduced_paper(
    diffusion_updates: int = 10_000,
    critic_updates: int = 6_000,
    candidates: int = 64,
    control_interval: int = 5,
) -> TREBIConfig:
    """Return the paper's preset for toy tasks, learned for fewer updates, of 64 windows at once in the place of 2 x 32.

    Plans are ranked as the original does, by what the guide said at its last move.

    Args:
        diffusion_updates: of the trajectory model; published are 200,000.
        critic_updates: of each critic; published are 200,000.
        candidates: of the planner; published are 128.
        control_interval: actions of a plan that are executed before the next one is made; published is 1.
    """
    update = {"batch_size": 64, "accumulation": 1}
    return preset("toy_safe_env").replace(
        denoiser_training={"steps": diffusion_updates, **update},
        critic_training={"steps": critic_updates, **update},
        planner={"candidates": candidates, "control_interval": control_interval, "ranking": "original"},
    )


def config_of(task: Task, kind: Kind) -> TREBIConfig:
    """Return the configuration that a task's agents of this kind are learned with."""
    if kind == "paper-reduced":
        return reduced_paper()
    if kind == "default":
        return preset(task.preset)
    return preset(task.paper_preset, task.paper_dataset).replace(planner={"ranking": "original"})


def agent_name(task: str, kind: Kind, seed: int, *, calibrated: bool = False) -> str:
    """Return the file name of a learned agent: ``pendulum-0.zip``, ``pendulum-paper-0.zip``."""
    middle = "" if kind == "default" else f"{kind}-"
    return f"{task}-{middle}{seed}{'-calibrated' if calibrated else ''}.zip"
