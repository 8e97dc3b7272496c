"""A schedule that is learned with the denoiser."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from noising.diffusion.levels import Geometry
from noising.diffusion.schedules import Schedule, require_falling

__all__ = ["LearnedLogSNR"]


MOST_WIDTH = 2**16


class LearnedLogSNR(Schedule):
    """λ(t) by a monotone network, stretched so that its ends are log_snr_max and log_snr_min whatever its weights.

        f(t) = w₁ t + w₃ · sigmoid(w₂ t + b),  all w > 0
        λ(t) = λ_max − (λ_max − λ_min) (f(t) − f(0))/(f(1) − f(0))

    At infinitely many steps the bound depends on the ends alone; what lies between them sets how noisy its estimate
    is, and is trained to make that least (`ContinuousBound`). It starts as a straight line. Computed in float64 on the
    weights' device (on the host, where that device has none). Kingma et al., "Variational Diffusion Models" (2021),
    appendix H. https://arxiv.org/abs/2107.00630
    """

    def __init__(
        self,
        log_snr_max: float = 13.3,
        log_snr_min: float = -5.0,
        width: int = 128,
        geometry: Geometry | None = None,
    ) -> None:
        super().__init__(geometry)
        require_falling(log_snr_max, log_snr_min)
        if not 1 <= width <= MOST_WIDTH:
            raise ValueError(f"width must be at least 1 and at most {MOST_WIDTH}, got {width}")
        self.log_snr_max = log_snr_max
        self.log_snr_min = log_snr_min
        # positive through softplus; the steps of the sum lie evenly over [0, 1] and begin small beside the line
        self.line = nn.Parameter(torch.zeros(()))
        self.heights = nn.Parameter(torch.full((width,), -6.0))
        self.slopes = nn.Parameter(torch.full((width,), 10.0))
        self.offsets = nn.Parameter(-10 * torch.linspace(0, 1, width))

    def _rise(self, t: Tensor) -> Tensor:
        def precise(weight: Tensor) -> Tensor:
            return weight.to(t.device).double()

        steps = torch.sigmoid(t[..., None] * F.softplus(precise(self.slopes)) + precise(self.offsets))
        return F.softplus(precise(self.line)) * t + steps @ F.softplus(precise(self.heights))

    def log_snr(self, t: Tensor) -> Tensor:
        device = self.line.device
        t = t.to("cpu" if device.type == "mps" else device, non_blocking=True)
        start, end = self._rise(t.new_zeros(())), self._rise(t.new_ones(()))
        risen = (self._rise(t) - start) / (end - start)
        return self.log_snr_max - (self.log_snr_max - self.log_snr_min) * risen
