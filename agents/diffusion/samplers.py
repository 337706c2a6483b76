"""Samplers: from noise to plans, one denoising step after another, each preceded by guided moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from trebi_gym.agents.diffusion.denoising import Denoise, Pin, posterior
from trebi_gym.agents.diffusion.guidance import Guide, Scores
from trebi_gym.agents.diffusion.schedule import NoiseSchedule

DrawNoise = Callable[[tuple[int, ...]], Tensor]
"""shape -> standard normal noise of that shape, on the schedule's device."""


@dataclass(frozen=True)
class Guidance:
    """How far and how often a guide moves the plans."""

    scale: float = 0.1
    """Length of a move, in units of the posterior variance times the guide's direction."""
    moves: int = 2
    """Guided moves before each denoising step."""
    stop_below: int = 2
    """No plan is moved at steps t < stop_below."""
    score: bool = True
    """Whether to ask the guide for scores where it moves nothing; without, a sampler's scores may be None."""


class Sampler(Protocol):
    """What an entry of SAMPLERS can be called with."""

    def __call__(
        self,
        denoise: Denoise,
        schedule: NoiseSchedule,
        shape: tuple[int, int, int],
        *,
        guide: Guide | None,
        pin: Pin,
        draw_noise: DrawNoise,
        guidance: Guidance = ...,
        n_steps: int | None = None,
    ) -> tuple[Tensor, Scores | None]:
        """Draw plans of the shape (B, H, D)."""
        ...


def guided_moves(
    x: Tensor,
    t: Tensor,
    variance: Tensor,
    *,
    guide: Guide,
    pin: Pin,
    guidance: Guidance,
) -> tuple[Tensor, Scores | None]:
    """Move plans x (B, H, D) at steps t (B,) `guidance.moves` times by `scale * variance * direction`.

    arXiv 2205.09991, alg. 1, with the direction of the guide. Returns the pinned plans and what the guide
    said of them before the last move, or None where there is no move.
    """
    scores = None
    for _ in range(guidance.moves):
        direction, scores = guide(x, t)
        x = pin(x + guidance.scale * variance * direction)
    return x, scores


def ddpm_step(
    denoise: Denoise,
    schedule: NoiseSchedule,
    x: Tensor,
    step: int,
    noise: Tensor,
    *,
    guide: Guide | None,
    pin: Pin,
    guidance: Guidance,
) -> tuple[Tensor, Scores | None]:
    """Take plans x (B, H, D) from step to step - 1: guided moves, then a sample of the posterior.

    `x <- mean(f(x, t), x) + exp(log_variance / 2) * noise` (arXiv 2006.11239, alg. 2, with f predicting x0),
    without the noise at step 0. At steps below `guidance.stop_below` the guide is only asked for scores, and
    with `guidance.score` false not even for those. Returns the pinned plans, and the scores before the last
    guided move, or None where the guide was not asked.
    """
    t = _expanded(step, x)
    scores = None
    if guide is not None:
        if step >= guidance.stop_below and guidance.moves > 0:
            variance = schedule.posterior_log_variance_clipped[step].exp()
            x, scores = guided_moves(x, t, variance, guide=guide, pin=pin, guidance=guidance)
        elif guidance.score:
            scores = guide.scores(x, t)
    with torch.no_grad():
        mean, log_variance = posterior(schedule, denoise(x, t), x, t)
        spread = (0.5 * log_variance).exp() if step > 0 else 0.0
        return pin(mean + spread * noise), scores


def ddpm(
    denoise: Denoise,
    schedule: NoiseSchedule,
    shape: tuple[int, int, int],
    *,
    guide: Guide | None,
    pin: Pin,
    draw_noise: DrawNoise,
    guidance: Guidance = Guidance(),
    n_steps: int | None = None,
) -> tuple[Tensor, Scores | None]:
    """Sample plans (B, H, D) by all the schedule's steps (arXiv 2006.11239, alg. 2, guided as in 2306.00603).

    The noise is drawn in the order of the original: the initial plans, then once a step, the last of which is
    unused. Returns the plans and the guide's scores in its last evaluation, at
    step 0 before the last denoising.

    Raises:
        ValueError: where n_steps is given and is not the schedule's number of steps.
    """
    if n_steps not in (None, schedule.n_steps):
        raise ValueError(
            f"ddpm takes all {schedule.n_steps} steps of its schedule, but n_steps is {n_steps}; "
            "use ddim for fewer"
        )
    x = pin(draw_noise(shape))
    scores = None
    for step in reversed(range(schedule.n_steps)):
        x, scores = ddpm_step(
            denoise, schedule, x, step, draw_noise(shape), guide=guide, pin=pin, guidance=guidance
        )
    return x, scores


def ddim_steps(n_train_steps: int, n_steps: int) -> list[int]:
    """Return n_steps of the steps T - 1 ... 0, evenly spaced, noisiest first, both ends included.

    Raises:
        ValueError: where n_steps is below 1 or above T.
    """
    if not 1 <= n_steps <= n_train_steps:
        raise ValueError(f"ddim can take 1 to {n_train_steps} steps of this schedule, got n_steps={n_steps}")
    return [round(step) for step in np.linspace(n_train_steps - 1, 0, n_steps).tolist()]


def ddim(
    denoise: Denoise,
    schedule: NoiseSchedule,
    shape: tuple[int, int, int],
    *,
    guide: Guide | None,
    pin: Pin,
    draw_noise: DrawNoise,
    guidance: Guidance = Guidance(),
    n_steps: int | None = None,
    eta: float = 0.0,
) -> tuple[Tensor, Scores | None]:
    """Sample plans (B, H, D) by n_steps of the schedule's steps (arXiv 2010.02502, eq. 12 and 16).

    From a noise level with a = alphas_cumprod to the next with b > a (the last b is 1), e the noise in x:
    `x <- sqrt(b) x0 + sqrt(1 - b - s^2) e + s noise`, s = eta sqrt(v), `v = (1 - b) / (1 - a) * (1 - a / b)`.
    The guided moves use v, clipped as in the schedule: with all steps and eta = 1 this is `ddpm`. No noise is
    drawn after the first where eta is 0. n_steps = None takes all. Returns the plans and the guide's scores
    at the last step, before the last denoising.

    Raises:
        ValueError: where n_steps is below 1 or above the schedule's number of steps, or eta is negative.
    """
    if eta < 0:
        raise ValueError(f"eta must not be negative, got {eta}")
    return _few_steps(denoise, schedule, shape, guide, pin, draw_noise, guidance, n_steps, eta, False)


def dpm_solver(
    denoise: Denoise,
    schedule: NoiseSchedule,
    shape: tuple[int, int, int],
    *,
    guide: Guide | None,
    pin: Pin,
    draw_noise: DrawNoise,
    guidance: Guidance = Guidance(),
    n_steps: int | None = None,
) -> tuple[Tensor, Scores | None]:
    """Sample plans (B, H, D) by DPM-Solver++(2M) (arXiv 2211.01095, alg. 2) in n_steps of the schedule's steps.

    It is ``ddim`` without noise, with the predicted x0 of a step and of the one before extrapolated along
    `log(a / (1 - a)) / 2`; the last step is of first order. Guided moves, steps and results are those of ``ddim``.

    Raises:
        ValueError: where n_steps is below 1 or above the schedule's number of steps.
    """
    return _few_steps(denoise, schedule, shape, guide, pin, draw_noise, guidance, n_steps, 0.0, True)


def _few_steps(
    denoise: Denoise,
    schedule: NoiseSchedule,
    shape: tuple[int, int, int],
    guide: Guide | None,
    pin: Pin,
    draw_noise: DrawNoise,
    guidance: Guidance,
    n_steps: int | None,
    eta: float,
    second_order: bool,
) -> tuple[Tensor, Scores | None]:
    steps = ddim_steps(schedule.n_steps, schedule.n_steps if n_steps is None else n_steps)
    # Indexing by a list would copy it to the device, which a CUDA graph cannot record.
    noisy = torch.stack([schedule.alphas_cumprod[step] for step in steps])
    cleaner = torch.cat([noisy[1:], torch.ones_like(noisy[:1])])
    variance = (1 - cleaner) / (1 - noisy) * (cleaner - noisy) / cleaner
    spread = eta * variance.sqrt()
    # x is made of sqrt(a) x0 + sqrt(1 - a) e, so the step is linear in x0 and x.
    of_x = ((1 - cleaner - spread**2).clamp(min=0) / (1 - noisy)).sqrt()
    of_x0 = cleaner.sqrt() - of_x * noisy.sqrt()
    move = variance.clamp(min=1e-20)
    # how far the predicted x0 is extrapolated: half the ratio of this step's length to that of the one before
    length = (noisy / (1 - noisy)).log().diff()
    beyond = torch.cat(
        [torch.zeros_like(noisy[:1]), 0.5 * length[1:] / length[:-1], torch.zeros_like(noisy[:1])]
    )

    x = pin(draw_noise(shape))
    scores: Scores | None = None
    before: Tensor | None = None
    for i, step in enumerate(steps):
        t = _expanded(step, x)
        scores = None
        if guide is not None:
            if step >= guidance.stop_below and guidance.moves > 0:
                x, scores = guided_moves(x, t, move[i], guide=guide, pin=pin, guidance=guidance)
            elif guidance.score and i == len(steps) - 1:
                scores = guide.scores(x, t)
        with torch.no_grad():
            clean = denoise(x, t)
            best = clean + beyond[i] * (clean - before) if second_order and before is not None else clean
            before = clean
            x = of_x0[i] * best + of_x[i] * x
            x = pin(x + spread[i] * draw_noise(shape) if eta > 0 else x)
    return x, scores


def _expanded(step: int, x: Tensor) -> Tensor:
    """Return the step for every row of x, as a view of one number that networks may embed once."""
    return torch.full((1,), step, dtype=torch.long, device=x.device).expand(x.shape[0])


SAMPLERS: dict[str, Sampler] = {"ddpm": ddpm, "ddim": ddim, "dpm_solver": dpm_solver}


def count_draws(sampler: Sampler, schedule: NoiseSchedule, n_steps: int | None) -> int:
    """Return how often a sampler draws noise for its plans, so that it can be drawn beforehand."""
    drawn = 0

    def draw_noise(shape: tuple[int, ...]) -> Tensor:
        nonlocal drawn
        drawn += 1
        return torch.zeros(shape, device=schedule.device)

    sampler(
        lambda x, t: x,
        schedule,
        (1, 1, 1),
        guide=None,
        pin=lambda x: x,
        draw_noise=draw_noise,
        n_steps=n_steps,
    )
    return drawn
