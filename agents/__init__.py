"""The agent: ``TREBIAgent`` and its configuration."""

from trebi_gym.agents.agent import TREBIAgent
from trebi_gym.agents.calibration.statistics import Calibration, HeldOutCalibration
from trebi_gym.agents.config import NetworkConfig, PlannerConfig, TrainingConfig, TREBIConfig
from trebi_gym.agents.planning.planner import Plan
from trebi_gym.agents.planning.state import PlanState
from trebi_gym.agents.presets import PRESETS, preset

__all__ = [
    "PRESETS",
    "Calibration",
    "HeldOutCalibration",
    "NetworkConfig",
    "Plan",
    "PlanState",
    "PlannerConfig",
    "TREBIAgent",
    "TREBIConfig",
    "TrainingConfig",
    "preset",
]
