"""The agents of ``make results``: loaded from their files only if they are what the results ask for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trebi_gym.agents import TREBIAgent
from trebi_gym.agents.accounting import OriginalAccounting
from trebi_gym.agents.acting import AtRisk
from trebi_gym.agents.calibrating import fingerprint
from trebi_gym.agents.checked import plain
from trebi_gym.agents.config import TREBIConfig
from trebi_gym.errors import ConfigError
from trebi_gym.rollout import Policy


@dataclass(frozen=True)
class Expected:
    """What an agent's file must hold."""

    config: TREBIConfig
    seed: int
    episodes: int
    """Of the data that it learned from."""
    steps: int
    """Of these data."""
    calibration: tuple[str, int] | None = None
    """Environment, and episodes of each planned budget; None where it need not be calibrated."""
    planned: list[float] | None = None
    """Planned budgets of the calibration; None for any."""
    weights: str | None = None
    """Mark of the weights; None for any."""


def load_agent(path: Path, expected: Expected, device: str) -> tuple[TREBIAgent, str]:
    """Load an agent, set to plan as its configuration says, and return it with a mark of its weights.

    How it plans is not learned: the configuration's planner is measured, whatever it was when the agent learned. A
    calibration holds for one planner, which therefore must be that one.

    Raises:
        ConfigError: it is not there, or is another one than its name says.
    """
    if not path.is_file():
        stage = "learn" if expected.calibration is None else "calibrate"
        raise ConfigError(f"{path} is not there; run --stages {stage}")
    agent = TREBIAgent.load(path, device=device)
    pairs: dict[str, tuple[Any, Any]] = {
        "configuration": _compared(plain(agent.config), plain(expected.config)),
        "seed": (agent.seed, expected.seed),
        "episodes in its data": (agent.learned_from.get("episodes"), expected.episodes),
        "steps in its data": (agent.learned_from.get("steps"), expected.steps),
    }
    mark = fingerprint(agent)
    if expected.calibration is not None:
        found = [getattr(agent.calibration, name, None) for name in ("env_id", "episodes")]
        names = ("environment of its calibration", "episodes of its calibration")
        pairs |= dict(zip(names, zip(found, expected.calibration, strict=True), strict=True))
        pairs["planner of its calibration"] = (plain(agent.config.planner), plain(expected.config.planner))
    if expected.planned is not None:
        found = list(getattr(agent.calibration, "planned", ()))
        pairs["planned budgets of its calibration"] = (found, expected.planned)
    if expected.weights is not None:
        pairs["weights"] = (mark, expected.weights)
    wrong = [f"{name}: {found}, not {asked}" for name, (found, asked) in pairs.items() if found != asked]
    if wrong:
        raise ConfigError(f"{path} is not this task's agent ({'; '.join(wrong)}); move it away")
    return agent.set_planner(**vars(expected.config.planner)), mark


def counted_as_original(agent: TREBIAgent) -> Policy:
    """Return an agent of the paper's as a policy whose undiscounted budgets are counted as the original does."""
    _, task = agent.ready()
    return OriginalAccounting(AtRisk(agent, None), task.budget_factor, agent.config.cost_discount)


def _compared(found: dict[str, Any], asked: dict[str, Any]) -> tuple[Any, Any]:
    """Return those fields of two configurations in which they differ, but for the planner, which is not learned."""
    differing = [name for name in asked if name != "planner" and found.get(name) != asked[name]]
    return {name: found.get(name) for name in differing}, {name: asked[name] for name in differing}
