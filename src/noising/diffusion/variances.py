"""Variances Σ of the reverse step p(x_s | x_t), with c = 1 − e^(λ_t − λ_s) as in transitions.py."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from noising.diffusion.levels import NoiseLevel, cast_to
from noising.diffusion.transitions import Transition
from noising.errors import require


class ReverseVariance(ABC):
    """The log-variance of a reverse step, linear in the network's variance channels, if it has any.

    outputs: network outputs per image channel, 2 where the variance is learned; fitted: to a trained denoiser, and so
    not known during training.
    """

    outputs: int = 1
    fitted: bool = False

    @abstractmethod
    def line(self, step: Transition) -> tuple[Tensor, Tensor]:
        """Intercept and slope of log Σ in the network's variance channels: float64, of the step's shape."""

    def log_variance(self, step: Transition, raw: Tensor | None) -> Tensor:
        """log Σ of p(x_s | x_t); raw: the network's variance channels (B, C, H, W), None if it has none."""
        intercept, slope = self.line(step)
        return intercept if raw is None else cast_to(intercept, raw) + cast_to(slope, raw) * raw


class FixedSmall(ReverseVariance):
    """c σ_s², the posterior's variance (β̃_t), optimal for data of a single point; the second step's where s is clean.

    Ho et al., "Denoising Diffusion Probabilistic Models" (2020), section 3.2. https://arxiv.org/abs/2006.11239
    """

    def line(self, step: Transition) -> tuple[Tensor, Tensor]:
        return step.small_log_variance, torch.zeros_like(step.c)


class FixedLarge(ReverseVariance):
    """c σ_t², the forward step's variance (β_t), optimal for white noise; the second posterior's where s is clean.

    Ho et al. (2020), section 3.2.
    """

    def line(self, step: Transition) -> tuple[Tensor, Tensor]:
        large = torch.where(step.earlier.sigma > 0, step.large_log_variance, step.first_log_variance)
        return large, torch.zeros_like(step.c)


class Learned(ReverseVariance):
    """The network's variance channels are log Σ itself."""

    outputs = 2

    def line(self, step: Transition) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(step.c), torch.ones_like(step.c)


class LearnedRange(ReverseVariance):
    """log Σ = f log c σ_t² + (1 − f) log c σ_s² with f = (v + 1)/2, v the network's variance channels.

    v is not clamped to [−1, 1]: the optimal variance may lie outside the range. Where s is clean, c σ_s² is replaced
    by the second step's. Nichol & Dhariwal, "Improved DDPM" (2021), equation 15. https://arxiv.org/abs/2102.09672
    """

    outputs = 2

    def line(self, step: Transition) -> tuple[Tensor, Tensor]:
        small, large = step.small_log_variance, step.large_log_variance
        return (small + large) / 2, (large - small) / 2


class DenoisingError(nn.Module):
    """E‖x − x̂‖²/D as a function of λ: measured at some levels, with its logarithm linear between them.

    Its table, float64 on the host, is part of the state_dict and so of every checkpoint.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_snr = torch.zeros(0, dtype=torch.float64)
        self.log_error = torch.zeros(0, dtype=torch.float64)

    def __bool__(self) -> bool:
        """Whether the error has been measured."""
        return bool(len(self.log_snr))

    def set(self, log_snr: Tensor, error: Tensor) -> None:
        """Set positive errors (K,) measured at rising λ (K,)."""
        self.log_snr, self.log_error = log_snr.double().cpu(), error.double().cpu().log()

    def forward(self, level: NoiseLevel) -> Tensor:
        """E‖x − x̂‖²/D at a level, constant beyond the noisiest measured one: float64, of the level's shape."""
        log_snr = level.log_snr.clamp(min=float(self.log_snr[0]))
        right = torch.searchsorted(self.log_snr, log_snr.contiguous()).clamp(1, len(self.log_snr) - 1)
        (x0, x1), (y0, y1) = ((table[right - 1], table[right]) for table in (self.log_snr, self.log_error))
        return (y0 + (log_snr - x0) / (x1 - x0) * (y1 - y0)).exp()

    def get_extra_state(self) -> dict[str, Tensor]:
        return {"log_snr": self.log_snr, "log_error": self.log_error}

    def set_extra_state(self, state: Any) -> None:
        """Raises ValueError for what is not two lines of equally many numbers."""
        knots = [state.get(name) for name in ("log_snr", "log_error")] if isinstance(state, dict) else []
        lines = [line for line in knots if isinstance(line, Tensor) and line.ndim == 1 and line.is_floating_point()]
        usable = len(lines) == 2 and lines[0].shape == lines[1].shape
        require(usable, "the checkpoint stores no error by log SNR")
        self.log_snr, self.log_error = lines


class Optimal(nn.Module, ReverseVariance):
    """c σ_s² + (α_s c)² E‖x − x̂‖²/D: optimal for the bound with any denoiser, and needs no training.

    For a perfect denoiser it is the optimal variance of Bao et al., "Analytic-DPM" (2022), theorem 1. Since the error
    is measured and not derived from ‖ε̂‖², it is optimal for an imperfect one too: Bao et al., "Estimating the Optimal
    Covariance with Imperfect Mean" (2022). https://arxiv.org/abs/2201.06503 https://arxiv.org/abs/2206.07309
    """

    fitted = True

    def __init__(self, knots: int = 32, images: int = 128, error: Callable[[NoiseLevel], Tensor] | None = None) -> None:
        """knots, images: numbers of noise levels and of images on which `Denoiser.fit_variance` measures the error.

        error: E‖x − x̂‖²/D of a level, where known in closed form. Until it is measured the variance is the posterior's.
        """
        super().__init__()
        require(knots >= 2, f"knots must be at least 2, got {knots}")
        require(images >= 1, f"images must be at least 1, got {images}")
        self.knots = knots
        self.images = images
        self.error = error or DenoisingError()

    def line(self, step: Transition) -> tuple[Tensor, Tensor]:
        if not self.error:
            return step.small_log_variance, torch.zeros_like(step.c)
        best = step.posterior_variance + (step.earlier.alpha * step.c) ** 2 * self.error(step.later)
        return best.log(), torch.zeros_like(step.c)
