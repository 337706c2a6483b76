"""The agent: ``TREBIAgent`` and its configuration."""

from trebi_gym.agents.calibration import Calibration, HeldOutCalibration
from trebi_gym.agents.config import NetworkConfig, PlannerConfig, TrainingConfig, TREBIConfig
from trebi_gym.agents.plans import Plan
from trebi_gym.agents.presets import PRESETS, preset
from trebi_gym.agents.state import PlanState
from trebi_gym.agents.trebi import TREBIAgent

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
