"""Noising, the posterior of one denoising step, and the two training losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from trebi_gym.agents.diffusion.schedule import NoiseSchedule

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(noisy x (B, H, D), steps t (B,)) -> predicted clean trajectory (B, H, D)."""

Pin = Callable[[Tensor], Tensor]
"""x (B, H, D) -> x with what is known written into it; x itself is left as it was."""


class Critic(Protocol):
    """(noisy x (B, H, D), steps t (B,), steps left (B,) or None) -> predicted sum (B,)."""

    def __call__(self, x: Tensor, t: Tensor, steps_left: Tensor | None = None, /) -> Tensor:
        """Predict (B,)."""
        ...


def add_noise(schedule: NoiseSchedule, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Noise clean trajectories x0 (B, H, D) to steps t (B,): `sqrt(a_t) x0 + sqrt(1 - a_t) noise`.

    This is a sample of q(x_t | x_0), arXiv 2006.11239, eq. 4, with a_t = alphas_cumprod[t].
    """
    kept = schedule.sqrt_alphas_cumprod[t][:, None, None]
    return kept * x0 + schedule.sqrt_one_minus_alphas_cumprod[t][:, None, None] * noise


def posterior(schedule: NoiseSchedule, x0: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean (B, H, D) and clipped log variance (B, 1, 1) of q(x_{t-1} | x_t, x_0).

    arXiv 2006.11239, eq. 6 and 7, for clean trajectories x0 and noisy x_t (B, H, D) at steps t (B,).
    """
    mean = (
        schedule.posterior_mean_coef1[t][:, None, None] * x0
        + schedule.posterior_mean_coef2[t][:, None, None] * x_t
    )
    return mean, schedule.posterior_log_variance_clipped[t][:, None, None]


def pin_first_observation(x: Tensor, observation: Tensor, action_dim: int) -> Tensor:
    """Return x (B, H, D) with its first observation, x[:, 0, A:], set to observation (B or 1, O).

    x itself is not changed, and gradients flow through everything but the entries that were set.
    """
    pinned = x.clone()
    pinned[:, 0, action_dim:] = observation
    return pinned


def loss_weights(
    horizon: int, action_dim: int, transition_dim: int, first_action_weight: float = 10.0
) -> Tensor:
    """Return weights (H, D) of the squared errors: 1, but first_action_weight for the first action."""
    weights = torch.ones(horizon, transition_dim)
    weights[0, :action_dim] = first_action_weight
    return weights


def denoising_loss(
    denoise: Denoise,
    schedule: NoiseSchedule,
    x0: Tensor,
    t: Tensor,
    noise: Tensor,
    pin: Pin,
    weights: Tensor,
    mask: Tensor | None = None,
    *,
    action_dim: int,
) -> tuple[Tensor, Tensor]:
    """Return the weighted squared error of predicted trajectories and, unweighted, of their first actions.

    `mean(weights * (pin(f(pin(x_t), t)) - x0) ** 2)`, where f predicts x0 (arXiv 2205.09991, sec. 3). The
    inputs are x0 and noise (B, H, D), t (B,), weights (H, D) and optionally mask (B, H), true in the rows of
    a window that count: the mean is over those alone. Both results are scalars; the second has no gradient.
    """
    predicted = pin(denoise(pin(add_noise(schedule, x0, t, noise)), t))
    squared = (predicted - x0) ** 2
    first_action = squared[:, 0, :action_dim].detach().mean()
    if mask is None:
        return (squared * weights).mean(), first_action
    counted = mask[:, :, None].to(squared.dtype)
    # With no row that counts the sum is zero, and so is the loss.
    total = (counted.sum() * x0.shape[-1]).clamp(min=1)
    return (squared * weights * counted).sum() / total, first_action


def critic_loss(
    critic: Critic,
    schedule: NoiseSchedule,
    x0: Tensor,
    t: Tensor,
    noise: Tensor,
    target: Tensor,
    pin: Pin,
    steps_left: Tensor | None = None,
    quantile: float | None = None,
) -> Tensor:
    """Return the mean squared error of what the critic reads from the noisy, pinned trajectories.

    `mean((critic(pin(x_t), t) - target) ** 2)` (arXiv 2306.00603): x0 and noise (B, H, D), t (B,), and
    target (B,), the sum of rewards or costs to the episode's end. With a quantile q in (0, 1) it is the mean
    of `max(q e, (q - 1) e)` with `e = target - critic(...)` instead, whose minimum is the target's q-quantile
    (Koenker and Bassett 1978).
    """
    noisy = pin(add_noise(schedule, x0, t, noise))
    predicted = critic(noisy, t) if steps_left is None else critic(noisy, t, steps_left)
    if quantile is not None:
        error = target - predicted
        return torch.maximum(quantile * error, (quantile - 1) * error).mean()
    return ((predicted - target) ** 2).mean()
