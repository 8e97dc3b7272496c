"""Noise schedules: the noise level as a function of time t in [0, 1].

A schedule is a curve λ(t) = log α²/σ², falling from clean (t = 0) to noise (t = 1), and a geometry that turns λ into
(α, σ). Four kinds follow the interface:

    formulas     λ(t) in closed form
    tables       T variances β_i, with ᾱ_i = ∏_{j≤i} (1 − β_j), λ = log ᾱ/(1 − ᾱ), and log ᾱ linear between t = i/T
    wrappers     another schedule, moved or stretched
    learned      a monotone network between two fixed ends, or a straight line between two that are learned
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from noising.diffusion.levels import Geometry, NoiseLevel, Straight, VarianceExploding, VariancePreserving
from noising.errors import require

MAX_WIDTH = 2**16  # upper limit of the width of `LearnedLogSNR`


class Schedule(nn.Module, ABC):
    """A curve λ(t), t in [0, 1], and the geometry that turns λ into (α, σ); variance-preserving by default.

    learns_ends: λ(0) and λ(1) are trained, by the whole bound and not only by the part between them.
    """

    learns_ends: bool = False

    def __init__(self, geometry: Geometry | None = None) -> None:
        super().__init__()
        self.geometry = geometry or VariancePreserving()

    @abstractmethod
    def log_snr(self, t: Tensor) -> Tensor:
        """λ(t), strictly falling; +∞ where σ = 0, −∞ where α = 0. t: float64, of any shape."""

    def scales(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """(α, σ) of λ in the declared geometry."""
        return self.geometry.scales(log_snr)

    @property
    def prior_std(self) -> float:
        """Standard deviation of p(x_T) = N(0, prior_std²)."""
        return self.geometry.prior_std(self.log_snr(torch.ones((), dtype=torch.float64)))

    @torch.no_grad()
    def time(self, log_snr: Tensor) -> Tensor:
        """The inverse of `log_snr`: t in [0, 1] with λ(t) = log_snr, by bisection to float64's last bits."""
        low, high = torch.zeros_like(log_snr), torch.ones_like(log_snr)
        for _ in range(64):
            middle = (low + high) / 2
            too_clean = self.log_snr(middle).to(log_snr.device) > log_snr
            low, high = torch.where(too_clean, middle, low), torch.where(too_clean, high, middle)
        return (low + high) / 2

    def log_snr_rate(self, t: Tensor) -> Tensor:
        """dλ/dt by automatic differentiation, differentiable where the schedule is learned. t: of any shape."""
        learned = torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())
        with torch.enable_grad():
            t = t.detach().requires_grad_()
            (rate,) = torch.autograd.grad(self.log_snr(t).sum(), t, create_graph=learned)
        return rate

    def forward(self, t: Tensor) -> NoiseLevel:
        """The level at times t: fields of (B, 1, 1, 1) for t (B,), scalars for a scalar."""
        t = t.double().reshape(-1, 1, 1, 1) if t.dim() else t.double()
        log_snr = self.log_snr(t)
        return NoiseLevel(t, log_snr, *self.scales(log_snr))


class LinearLogSNR(Schedule):
    """λ falls on a straight line from log_snr_max to log_snr_min.

    Kingma et al., "Variational Diffusion Models" (2021), appendix H; with these ends, their fixed schedule.
    https://arxiv.org/abs/2107.00630
    """

    def __init__(self, log_snr_max: float = 13.3, log_snr_min: float = -5.0, geometry: Geometry | None = None) -> None:
        super().__init__(geometry)
        _require_falling(log_snr_max, log_snr_min)
        self.log_snr_max = log_snr_max
        self.log_snr_min = log_snr_min

    def log_snr(self, t: Tensor) -> Tensor:
        return self.log_snr_max + (self.log_snr_min - self.log_snr_max) * t

    def time(self, log_snr: Tensor) -> Tensor:
        return ((log_snr - self.log_snr_max) / (self.log_snr_min - self.log_snr_max)).clamp(0, 1)


class GreyLevelLogSNR(LinearLogSNR):
    """λ falls on a straight line that begins where three standard deviations of the noise are half a grey level.

    With K grey levels over [−1, 1] half a level is 1/(K − 1), so that λ_max = 2 log(3 (K − 1)): 7.7 for 17 levels, and
    for 256 the 13.3 of Kingma et al. (2021). Finer noise would hide nothing of the image.
    """

    def __init__(self, levels: int, log_snr_min: float = -5.0) -> None:
        super().__init__(2 * math.log(3 * (levels - 1)), log_snr_min)


class LogLinearSigma(LinearLogSNR):
    """log σ rises on a straight line from log sigma_min to log sigma_max, variance-exploding: σ = e^(−λ/2).

    The levels of Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models" (2022), spaced as
    Song et al.'s variance-exploding path; training times and sampling grid are chosen apart from them.
    https://arxiv.org/abs/2206.00364
    """

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0) -> None:
        message = f"sigma_min must be in (0, sigma_max), got {sigma_min} and sigma_max {sigma_max}"
        require(0 < sigma_min < sigma_max, message)
        super().__init__(-2 * math.log(sigma_min), -2 * math.log(sigma_max), VarianceExploding())


class VPSDE(Schedule):
    """β(t) rises linearly in a continuous t: log ᾱ(t) = −∫β = −(β_max − β_min) t²/2 − β_min t.

    Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations" (2021), equation 33.
    `LinearBeta` is its chain of T steps, for T to infinity. https://arxiv.org/abs/2011.13456
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0, geometry: Geometry | None = None) -> None:
        super().__init__(geometry)
        message = f"beta_min must be in (0, beta_max), got {beta_min} and beta_max {beta_max}"
        require(0 < beta_min < beta_max, message)
        self.beta_min, self.beta_max = beta_min, beta_max

    def log_snr(self, t: Tensor) -> Tensor:
        integral = ((self.beta_max - self.beta_min) * t / 2 + self.beta_min) * t
        return -torch.log(torch.expm1(integral))  # ᾱ/(1 − ᾱ) = 1/(e^∫β − 1)

    def time(self, log_snr: Tensor) -> Tensor:
        integral = torch.nn.functional.softplus(-log_snr, threshold=50)  # log(1 + e^−λ)
        slope = self.beta_max - self.beta_min
        # the positive root of slope t²/2 + β_min t = integral, without cancellation near t = 0
        root = torch.sqrt(self.beta_min**2 + 2 * slope * integral)
        return (2 * integral / (self.beta_min + root)).clamp(0, 1)


class RectifiedFlow(Schedule):
    """σ = t, α = 1 − t: the straight line at constant speed from the image to pure noise.

    Liu et al., "Flow Straight and Fast" (2022). https://arxiv.org/abs/2209.03003
    """

    def __init__(self) -> None:
        super().__init__(Straight())

    def log_snr(self, t: Tensor) -> Tensor:
        return 2 * (torch.log1p(-t) - torch.log(t))

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr / 2)


class SigmoidAlphaBar(Schedule):
    """α² falls as a sigmoid between start and end, rescaled to run from 1 to 0 and kept at or above `smallest`.

    In `SigmoidBeta` β is a sigmoid instead. Jabri et al., "Scalable Adaptive Computation for Iterative Generation"
    (2022). https://arxiv.org/abs/2212.11972
    """

    def __init__(
        self,
        start: float = -3.0,
        end: float = 3.0,
        temperature: float = 1.0,
        smallest: float = 1e-9,
        geometry: Geometry | None = None,
    ) -> None:
        super().__init__(geometry)
        require(start < end, f"start must be below end, got {start} and {end}")
        require(temperature > 0, f"temperature must be positive, got {temperature}")
        message = f"start and end must lie within 1000 temperatures of 0, got {start}, {end} and {temperature}"
        require(max(abs(start), abs(end)) <= 1000 * temperature, message)
        require(0 < smallest < 1, f"smallest must be between 0 and 1, got {smallest}")
        self.start, self.end = start / temperature, end / temperature
        self.log_snr_min = math.log(smallest) - math.log1p(-smallest)

    def log_snr(self, t: Tensor) -> Tensor:
        # differences of sigmoids through sinh, which keep their digits at both ends
        before, after = (self.end - self.start) * (1 - t) / 2, (self.end - self.start) * t / 2
        before = before.clamp(min=1e-300)  # below `smallest` anyway; log 0 would have no derivative
        ends = math.log(math.cosh(self.start / 2)) - math.log(math.cosh(self.end / 2))
        return (torch.sinh(before).log() - torch.sinh(after).log() + ends).clamp(min=self.log_snr_min)


class TabulatedBeta(Schedule, ABC):
    """A chain of T variances β_1..β_T, made continuous: log ᾱ is exact at t = i/T and linear between the steps.

    Ho et al., "Denoising Diffusion Probabilistic Models" (2020), section 2. https://arxiv.org/abs/2006.11239
    """

    def __init__(self, beta: Tensor, geometry: Geometry | None = None) -> None:
        """beta: (T,) float64 in (0, 1)."""
        super().__init__(geometry)
        self.timesteps = len(beta)
        # A plain attribute, not a buffer: it must stay float64 on the host when the module is moved or halved.
        self._log_alpha_bar = torch.cat([beta.new_zeros(1), torch.log1p(-beta).cumsum(0)])

    def _segment(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log ᾱ at the start and the end of the step that t lies in, and the fraction of it that has passed."""
        index = (t * self.timesteps).floor().long().clamp(0, self.timesteps - 1)
        return self._log_alpha_bar[index], self._log_alpha_bar[index + 1], t * self.timesteps - index

    def log_snr(self, t: Tensor) -> Tensor:
        log_alpha_bar = torch.lerp(*self._segment(t))
        return log_alpha_bar - torch.log(-torch.expm1(log_alpha_bar))

    def time(self, log_snr: Tensor) -> Tensor:
        log_alpha_bar, falling = F.logsigmoid(log_snr), -self._log_alpha_bar
        index = (torch.searchsorted(falling, -log_alpha_bar.contiguous()) - 1).clamp(0, self.timesteps - 1)
        start, end = self._log_alpha_bar[index], self._log_alpha_bar[index + 1]
        return ((index + (log_alpha_bar - start) / (end - start)) / self.timesteps).clamp(0, 1)

    def log_snr_rate(self, t: Tensor) -> Tensor:
        start, end, fraction = self._segment(t)
        # dλ/d log ᾱ = 1/(1 − ᾱ)
        return (end - start) * self.timesteps / -torch.expm1(torch.lerp(start, end, fraction))


class RisingBeta(TabulatedBeta, ABC):
    """β rises from β_start to β_end, the ends for T = 1000, scaled by 1000/T so that the noise at T is the same.

    The scaling is that of Nichol & Dhariwal, "Improved DDPM" (2021).
    """

    def __init__(
        self, timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02, geometry: Geometry | None = None
    ) -> None:
        require(timesteps >= 1, f"timesteps must be at least 1, got {timesteps}")
        message = f"beta_start must be in (0, beta_end], got {beta_start} and beta_end {beta_end}"
        require(0 < beta_start <= beta_end, message)
        scale = 1000 / timesteps
        message = f"beta_end times 1000/timesteps must be below 1, got {scale * beta_end:g}: lower beta_end or raise "
        require(scale * beta_end < 1, message + f"timesteps above {1000 * beta_end:g}")
        super().__init__(self.rise(scale * beta_start, scale * beta_end, timesteps), geometry)

    @staticmethod
    @abstractmethod
    def rise(start: float, end: float, timesteps: int) -> Tensor:
        """β from start to end: (timesteps,) float64."""


class LinearBeta(RisingBeta):
    """β rises linearly. Ho et al., "Denoising Diffusion Probabilistic Models" (2020), section 4.

    https://arxiv.org/abs/2006.11239
    """

    @staticmethod
    def rise(start: float, end: float, timesteps: int) -> Tensor:
        return torch.linspace(start, end, timesteps, dtype=torch.float64)


class ScaledLinearBeta(RisingBeta):
    """√β rises linearly: more slowly near clean.

    Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (2021).
    https://arxiv.org/abs/2112.10752
    """

    def __init__(
        self,
        timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        geometry: Geometry | None = None,
    ) -> None:
        super().__init__(timesteps, beta_start, beta_end, geometry)

    @staticmethod
    def rise(start: float, end: float, timesteps: int) -> Tensor:
        return torch.linspace(math.sqrt(start), math.sqrt(end), timesteps, dtype=torch.float64) ** 2


class SigmoidBeta(RisingBeta):
    """β rises as a sigmoid over (−6, 6).

    In `SigmoidAlphaBar` α² is a sigmoid instead. Xu et al., "GeoDiff" (2022). https://arxiv.org/abs/2203.02923
    """

    @staticmethod
    def rise(start: float, end: float, timesteps: int) -> Tensor:
        return start + (end - start) * torch.sigmoid(torch.linspace(-6, 6, timesteps, dtype=torch.float64))


class Cosine(TabulatedBeta):
    """ᾱ(t) ∝ cos²((t + s)/(1 + s) π/2), each β clamped to max_beta: fewer steps of almost pure noise.

    Nichol & Dhariwal, "Improved DDPM" (2021), equation 17. https://arxiv.org/abs/2102.09672
    """

    def __init__(
        self, timesteps: int = 1000, offset: float = 0.008, max_beta: float = 0.999, geometry: Geometry | None = None
    ) -> None:
        require(timesteps >= 1, f"timesteps must be at least 1, got {timesteps}")
        require(offset >= 0, f"offset must not be negative, got {offset}")
        require(0 < max_beta < 1, f"max_beta must be between 0 and 1, got {max_beta}")
        t = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
        alpha_bar = torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2
        super().__init__((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=max_beta), geometry)


class ZeroTerminalSNR(Schedule):
    """A schedule whose √ᾱ is shifted and rescaled so that no signal is left at t = 1: λ(1) = −∞.

        √ᾱ'(t) = (√ᾱ(t) − √ᾱ(1))/(1 − √ᾱ(1)),    √ᾱ = √sigmoid(λ)

    The clean end is unchanged; the paper keeps √ᾱ of the first step instead, which for T = 1000 differs in α by 3e-7
    for `linear` and by 3.1e-5 for `scaled_linear_beta`. The network must not predict ε, which does not determine x at
    t = 1. Lin et al., "Common Diffusion Noise Schedules and Sample Steps Are Flawed" (2023), algorithm 1.
    https://arxiv.org/abs/2305.08891
    """

    def __init__(self, schedule: Schedule) -> None:
        """Raises ValueError for a variance-exploding schedule, which would need infinite noise."""
        super().__init__(schedule.geometry)
        finite = math.isfinite(schedule.geometry.prior_std(torch.tensor(-math.inf, dtype=torch.float64)))
        require(finite, "a variance-exploding schedule cannot end without signal: wrap a schedule of another geometry")
        self.schedule = schedule

    def log_snr(self, t: Tensor) -> Tensor:
        root, complement = self._root(t)
        end_root, end_complement = self._root(torch.ones_like(t))
        new_root, new_complement = (root - end_root) / end_complement, complement / end_complement
        return 2 * new_root.clamp(min=0).log() - (new_complement * (1 + new_root)).log()

    def _root(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """√ᾱ and 1 − √ᾱ, each to full precision."""
        alpha, sigma = VariancePreserving().scales(self.schedule.log_snr(t))
        return alpha, sigma**2 / (1 + alpha)


class ResolutionShift(Schedule):
    """A schedule shifted by 2 log(base_resolution/resolution) in λ: larger images need more noise to be hidden.

    Hoogeboom et al., "simple diffusion: End-to-end diffusion for high resolution images" (2023), section 3.
    https://arxiv.org/abs/2301.11093
    """

    def __init__(self, schedule: Schedule, resolution: int, base_resolution: int = 64) -> None:
        super().__init__(schedule.geometry)
        require(base_resolution >= 1, f"base_resolution must be at least 1, got {base_resolution}")
        self.schedule = schedule
        self.shift = 2 * math.log(base_resolution / resolution)

    def log_snr(self, t: Tensor) -> Tensor:
        return self.schedule.log_snr(t) + self.shift

    def time(self, log_snr: Tensor) -> Tensor:
        return self.schedule.time(log_snr - self.shift)


class LearnedLogSNR(Schedule):
    """λ(t) by a monotone network, rescaled so that its ends are log_snr_max and log_snr_min for any weights.

        f(t) = w₁ t + w₃ · sigmoid(w₂ t + b),  all w > 0
        λ(t) = λ_max − (λ_max − λ_min) (f(t) − f(0))/(f(1) − f(0))

    In the limit of infinitely many steps the bound depends on the ends alone. The curve between them sets the variance
    of its estimate and is trained to minimize that (`ContinuousBound`), beginning as a straight line. It is computed in
    float64 on the weights' device, or on the host where the device has no float64. Kingma et al., "Variational
    Diffusion Models" (2021), appendix H. https://arxiv.org/abs/2107.00630
    """

    def __init__(
        self, log_snr_max: float = 13.3, log_snr_min: float = -5.0, width: int = 128, geometry: Geometry | None = None
    ) -> None:
        super().__init__(geometry)
        _require_falling(log_snr_max, log_snr_min)
        require(1 <= width <= MAX_WIDTH, f"width must be at least 1 and at most {MAX_WIDTH}, got {width}")
        self.log_snr_max = log_snr_max
        self.log_snr_min = log_snr_min
        # softplus keeps them positive; the sigmoids are centred evenly over [0, 1], and small beside the line at first
        self.line = nn.Parameter(torch.zeros(()))
        self.heights = nn.Parameter(torch.full((width,), -6.0))
        self.slopes = nn.Parameter(torch.full((width,), 10.0))
        self.offsets = nn.Parameter(-10 * torch.linspace(0, 1, width))

    def _rise(self, t: Tensor) -> Tensor:
        """f(t), in float64."""
        parameters = (self.line, self.heights, self.slopes, self.offsets)
        line, heights, slopes, offsets = (weight.to(t.device).double() for weight in parameters)
        steps = torch.sigmoid(t[..., None] * F.softplus(slopes) + offsets)
        return F.softplus(line) * t + steps @ F.softplus(heights)

    def log_snr(self, t: Tensor) -> Tensor:
        device = self.line.device
        t = t.to("cpu" if device.type == "mps" else device, non_blocking=True)
        start, end = self._rise(t.new_zeros(())), self._rise(t.new_ones(()))
        return self.log_snr_max - (self.log_snr_max - self.log_snr_min) * ((self._rise(t) - start) / (end - start))


class LearnedLine(Schedule):
    """λ falls on a straight line whose ends are learned: −λ(t) = offset + |slope| t, of the images as they are scaled.

    The bound itself trains them: more noise at t = 0 is easier to reach and harder to decode, less at t = 1 is easier
    to reach and further from the prior. Kingma et al., "Variational Diffusion Models" (2021), section 3.2; their code
    has it for CIFAR-10. https://arxiv.org/abs/2107.00630
    """

    learns_ends = True

    def __init__(self, log_snr_max: float = 13.3, log_snr_min: float = -5.0, image_scale: float = 1.0) -> None:
        """log_snr_max, log_snr_min: λ(0) and λ(1) of scaled images at first; image_scale: 255/256 in VDM."""
        geometry = VariancePreserving(image_scale)
        super().__init__(geometry)
        _require_falling(log_snr_max, log_snr_min)
        self.shift = geometry.shift
        self.offset = nn.Parameter(torch.tensor(-log_snr_max))
        self.slope = nn.Parameter(torch.tensor(log_snr_max - log_snr_min))

    def log_snr(self, t: Tensor) -> Tensor:
        device = self.offset.device
        t = t.to("cpu" if device.type == "mps" else device, non_blocking=True)
        offset, slope = (parameter.to(t.device).double() for parameter in (self.offset, self.slope))
        return self.shift - offset - slope.abs() * t


def _require_falling(log_snr_max: float, log_snr_min: float) -> None:
    if not log_snr_max > log_snr_min:
        raise ValueError(f"log_snr_max must be above log_snr_min, got {log_snr_max} and {log_snr_min}")
