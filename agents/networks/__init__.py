"""The networks, by name: denoisers read (B, H, D) and give (B, H, D), critics give (B,), outcome critics also quantiles."""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, get_args, get_origin, get_type_hints

from torch import Tensor, nn

from trebi_gym.agents.networks.budget_critic import BudgetCritic
from trebi_gym.agents.networks.mlp import MLPCritic, MLPDenoiser
from trebi_gym.agents.networks.outcome import OutcomeCritic
from trebi_gym.agents.networks.temporal_critic import TemporalCritic
from trebi_gym.agents.networks.temporal_unet import TemporalUnet

MOST_ITEMS = 64
"""Of an option that is a list, such as the resolutions of a network."""


class PlanCritic(Protocol):
    """What every outcome critic can do: judge finished plans."""

    def judge(self, x: Tensor, steps_left: Tensor, budgets: Tensor, level: float) -> tuple[Tensor, Tensor]:
        """Return what follows plans x (B, H, D) earns (B,) within budgets (B,), and what it can be held to cost (B,)."""
        ...


DENOISERS: dict[str, type[nn.Module]] = {"temporal_unet": TemporalUnet, "mlp": MLPDenoiser}
CRITICS: dict[str, type[nn.Module]] = {"temporal": TemporalCritic, "mlp": MLPCritic}
OUTCOME_CRITICS: dict[str, type[nn.Module]] = {"mlp": OutcomeCritic, "budget": BudgetCritic}
NETWORKS: dict[str, dict[str, type[nn.Module]]] = {
    "denoiser": DENOISERS,
    "critic": CRITICS,
    "outcome critic": OUTCOME_CRITICS,
}

__all__ = [
    "CRITICS",
    "DENOISERS",
    "NETWORKS",
    "OUTCOME_CRITICS",
    "BudgetCritic",
    "MLPCritic",
    "MLPDenoiser",
    "OutcomeCritic",
    "PlanCritic",
    "TemporalCritic",
    "TemporalUnet",
    "check_options",
    "make_critic",
    "make_denoiser",
    "make_outcome_critic",
]


def make_denoiser(name: str, *, horizon: int, transition_dim: int, **options: object) -> nn.Module:
    """Build the denoiser called name; raise ValueError for an unknown name or option."""
    return _make("denoiser", name, horizon, transition_dim, options)


def make_critic(name: str, *, horizon: int, transition_dim: int, **options: object) -> nn.Module:
    """Build the critic called name; raise ValueError for an unknown name or option."""
    return _make("critic", name, horizon, transition_dim, options)


def make_outcome_critic(name: str, *, horizon: int, transition_dim: int, **options: object) -> nn.Module:
    """Build the outcome critic called name; raise ValueError for an unknown name or option."""
    return _make("outcome critic", name, horizon, transition_dim, options)


def _make(kind: str, name: str, horizon: int, transition_dim: int, options: dict[str, object]) -> nn.Module:
    known = NETWORKS[kind]
    if name not in known:
        raise ValueError(f"there is no {kind} called {name!r}; known: {', '.join(sorted(known))}")
    network = known[name]
    accepted = [
        key for key in inspect.signature(network).parameters if key not in ("horizon", "transition_dim")
    ]
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        raise ValueError(
            f"the {kind} {name!r} takes no {', '.join(unknown)}; its options: {', '.join(accepted)}"
        )
    check_options(network, options)
    return network(horizon=horizon, transition_dim=transition_dim, **options)


def check_options(network: type[nn.Module], options: Mapping[str, object]) -> None:
    """Raise ValueError where an option is of another kind than the network's constructor says."""
    hints = get_type_hints(network.__init__)
    for key, value in options.items():
        if key in hints and not _fits(value, hints[key]):
            raise ValueError(
                f"the option {key} must be {_KINDS.get(hints[key], hints[key])}; got {value!r:.80}"
            )


_KINDS: dict[Any, str] = {
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    int | None: "a whole number, or none",
    Sequence[int]: f"a list of at most {MOST_ITEMS} whole numbers",
    Sequence[float]: f"a list of at most {MOST_ITEMS} finite numbers",
}


def _fits(value: object, hint: Any) -> bool:
    """Return whether a value is of the kind that an option's annotation names."""
    if get_origin(hint) is Sequence:
        if not isinstance(value, (list, tuple)) or len(value) > MOST_ITEMS:
            return False
        return all(_fits(item, get_args(hint)[0]) for item in value)
    if hint == int | None:
        return value is None or _fits(value, int)
    if hint is bool or isinstance(value, bool):
        return hint is bool and isinstance(value, bool)
    if hint is int:
        return isinstance(value, numbers.Integral)
    try:
        return isinstance(value, numbers.Real) and math.isfinite(value)
    except OverflowError:
        return False
