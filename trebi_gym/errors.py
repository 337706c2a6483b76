"""The errors that trebi-gym raises on purpose: each says what was asked, what was found and what to do."""

from __future__ import annotations


def shown(value: object) -> str:
    """Return a value as a message shows it: its repr, cut short; its type where it has none."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 (of some tensors, PyTorch's own repr fails)
        return f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= 200 else f"{text[:200]}..."


class TrebiError(Exception):
    """Base class: catch it to catch every error that this package raises on purpose."""


class BudgetError(TrebiError, ValueError):
    """A budget that cannot be used: negative, not a number, of the wrong shape, or missing."""


class DatasetError(TrebiError, ValueError):
    """A data set that cannot be read, or that does not hold what its format promises."""


class ConfigError(TrebiError, ValueError):
    """A configuration that cannot work, found when it is made."""


class CheckpointError(TrebiError, ValueError):
    """A file that is not a saved agent, or that does not fit this one."""


class NotLearnedError(TrebiError, RuntimeError):
    """The agent was asked for something that it has not learned yet."""


class CalibrationError(TrebiError, ValueError):
    """A risk that is not calibrated for, or that its episodes cannot support."""


class ObservationError(TrebiError, ValueError):
    """An observation that does not fit the agent's observation space."""


class EnvironmentContractError(TrebiError, TypeError):
    """An environment that does not offer what is needed, such as ``info["cost"]``."""


class RenderingError(TrebiError, RuntimeError):
    """Nothing can be drawn on this machine as it is set up."""


class StorageError(TrebiError, OSError):
    """A file that cannot be written or read where it is asked for."""
