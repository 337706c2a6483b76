"""The noise schedule: how much of a trajectory is left at every denoising step."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """Coefficients of T noising steps, each a float32 tensor (T,); the names follow arXiv 2006.11239.

    Here `alphas = 1 - betas`, `alphas_cumprod` is their running product and `alphas_cumprod_prev` the
    product one step less noisy, which is 1 for the first step. Step 0 is the least noisy, step T - 1 the
    noisiest.
    """

    betas: Tensor
    alphas_cumprod: Tensor
    alphas_cumprod_prev: Tensor
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor
    log_one_minus_alphas_cumprod: Tensor
    sqrt_recip_alphas_cumprod: Tensor
    sqrt_recipm1_alphas_cumprod: Tensor
    posterior_variance: Tensor
    posterior_log_variance_clipped: Tensor
    posterior_mean_coef1: Tensor
    posterior_mean_coef2: Tensor

    @classmethod
    def cosine(cls, n_steps: int, offset: float = 0.008) -> NoiseSchedule:
        """Build the cosine schedule (arXiv 2102.09672, eq. 17) of n_steps steps; raise ValueError below 1.

        As in the published Diffuser and TREBI weights, the cosine is evaluated on n_steps + 1 points from 0
        to n_steps + 1, so that its last point is n_steps + 1 and not n_steps. The betas are computed in
        float64, clipped to 0.999 and rounded to float32; everything else is derived from the rounded ones.
        """
        if n_steps < 1:
            raise ValueError(f"a noise schedule needs at least one step, got {n_steps}")
        points = n_steps + 1
        progress = np.linspace(0, points, points) / points
        kept = np.cos((progress + offset) / (1 + offset) * np.pi / 2) ** 2
        betas = np.clip(1 - kept[1:] / kept[:-1], 0, 0.999)
        return cls.from_betas(torch.tensor(betas, dtype=torch.float32))

    @classmethod
    def from_betas(cls, betas: Tensor) -> NoiseSchedule:
        """Derive every coefficient from the noising variances betas (T,) (arXiv 2006.11239, eq. 4 to 7)."""
        alphas = 1 - betas
        kept = torch.cumprod(alphas, dim=0)
        kept_prev = torch.cat([torch.ones_like(kept[:1]), kept[:-1]])
        variance = betas * (1 - kept_prev) / (1 - kept)
        return cls(
            betas=betas,
            alphas_cumprod=kept,
            alphas_cumprod_prev=kept_prev,
            sqrt_alphas_cumprod=kept.sqrt(),
            sqrt_one_minus_alphas_cumprod=(1 - kept).sqrt(),
            log_one_minus_alphas_cumprod=(1 - kept).log(),
            sqrt_recip_alphas_cumprod=(1 / kept).sqrt(),
            sqrt_recipm1_alphas_cumprod=(1 / kept - 1).sqrt(),
            posterior_variance=variance,
            # The variance of the last denoising step is 0, whose logarithm is not finite.
            posterior_log_variance_clipped=variance.clamp(min=1e-20).log(),
            posterior_mean_coef1=betas * kept_prev.sqrt() / (1 - kept),
            posterior_mean_coef2=(1 - kept_prev) * alphas.sqrt() / (1 - kept),
        )

    @property
    def n_steps(self) -> int:
        """T, the number of noising steps."""
        return self.betas.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the coefficients are."""
        return self.betas.device

    def to(self, device: torch.device | str) -> NoiseSchedule:
        """Return the same schedule on another device."""
        return NoiseSchedule(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})
