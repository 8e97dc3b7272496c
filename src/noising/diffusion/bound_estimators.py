"""The bound at a price: which steps are evaluated for each image, and how sure the average then is.

The steps 2..T are cut into strata; from each stratum an image evaluates one step, drawn uniformly, and counts it as
often as the stratum has steps. That is unbiased whatever the strata. Independent replicates of the whole draw give the
Monte Carlo standard error; the spread from image to image gives the standard error over images.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from noising.diffusion.bound import decoder_term, posterior_term, prior_term
from noising.diffusion.decoders import Decoder
from noising.diffusion.denoiser import Denoiser
from noising.diffusion.transition import Chain
from noising.randomness import Streams

__all__ = ["BoundDraws", "BoundEstimator", "BoundMeter", "Exact", "Stratified"]


class BoundDraws(NamedTuple):
    """What an estimator evaluated for B images, in nats, float64 on the host."""

    prior: Tensor
    """(B,), exact."""
    steps: Tensor
    """(B, R, K): L_t at the step drawn in each of K strata, in each of R replicates."""
    decoder: Tensor
    """(B, R)."""
    edges: Tensor
    """(K + 1,): stratum k holds the steps edges[k] .. edges[k + 1] − 1."""
    dims: int


class BoundEstimator(ABC):
    """Chooses the strata and replicates; evaluates them."""

    replicates: int

    def __init__(self, clip: float | None) -> None:
        """clip: x̂ is kept in [−clip, clip], which changes the model that is bounded; recorded beside the number."""
        if clip is not None and clip <= 0:
            raise ValueError(f"clip must be positive or null, got {clip}")
        self.clip = clip

    @abstractmethod
    def edges(self, timesteps: int) -> Tensor:
        """The strata of the steps 2..T: rising integers from 2 to T + 1."""

    def evaluations(self, timesteps: int) -> int:
        """Network evaluations an image."""
        return self.replicates * len(self.edges(timesteps))

    def __call__(
        self,
        denoiser: Denoiser,
        chain: Chain,
        x: Tensor,
        decoder: Decoder,
        streams: Streams,
        class_label: Tensor | None = None,
    ) -> BoundDraws:
        """Evaluate a batch x (B, C, H, W); streams: one per image, so that its draws are its own."""
        edges = self.edges(len(chain))
        widths = edges.diff()
        places = torch.from_numpy(streams.uniform((self.replicates, len(widths))))  # (B, R, K)
        drawn = edges[:-1] + (places * widths).long()
        condition = (self.clip, class_label)
        decoder_terms, step_terms = [], []
        for replicate in range(self.replicates):
            noise = streams.normal(x.shape[1:]).to(x)
            decoder_terms.append(decoder_term(denoiser, chain, x, noise, decoder, *condition))
            for stratum in range(len(widths)):
                step = drawn[:, replicate, stratum]
                noise = streams.normal(x.shape[1:]).to(x)
                step_terms.append(posterior_term(denoiser, chain, x, step, noise, *condition))
        shape = (len(x), self.replicates, len(widths))
        steps = torch.stack(step_terms, 1) if step_terms else x.new_zeros(len(x), 0)
        return BoundDraws(
            prior_term(chain, x).double().cpu(),
            steps.double().cpu().reshape(shape),
            torch.stack(decoder_terms, 1).double().cpu(),
            edges,
            x[0].numel(),
        )


class Exact(BoundEstimator):
    """Every step of every image, once: T evaluations an image. No Monte Carlo error can be told from one draw each."""

    replicates = 1

    def __init__(self, clip: float | None = 1.0) -> None:
        super().__init__(clip)

    def edges(self, timesteps: int) -> Tensor:
        return torch.arange(2, timesteps + 2)


class Stratified(BoundEstimator):
    """A fixed number of times an image, in strata of equal log t: the terms fall about as 1/t.

    Half of the times are one replicate, half the other, each with the decoder's term and one time a stratum.
    """

    replicates = 2

    def __init__(self, times: int = 64, clip: float | None = 1.0) -> None:
        super().__init__(clip)
        if times < 4 or times % 2:
            raise ValueError(f"times must be an even number from 4, got {times}")
        self.times = times

    def edges(self, timesteps: int) -> Tensor:
        strata = self.times // 2 - 1
        if timesteps - 1 <= strata:
            return torch.arange(2, timesteps + 2)
        edges = [2]
        for left in range(strata, 0, -1):  # the steps that are left, in strata of equal ratio and at least one step
            ratio = ((timesteps + 1) / edges[-1]) ** (1 / left)
            edges.append(max(edges[-1] + 1, round(edges[-1] * ratio)))
        return torch.tensor([*edges[:-1], timesteps + 1])


class BoundMeter:
    """Sums over images, from which the bound, its terms and its standard errors follow; sums of ranks add up."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None
        self._edges = torch.zeros(0)

    def update(self, draws: BoundDraws) -> None:
        """Add a batch of images."""
        nats = draws.dims * math.log(2)
        widths = draws.edges.diff().double()
        prior, decoder = draws.prior / nats, draws.decoder / nats
        steps = (draws.steps * widths).sum(2) / nats  # (B, R)
        replicates = prior[:, None] + steps + decoder
        moments = [prior, steps.mean(1), decoder.mean(1), replicates.mean(1), replicates.mean(1) ** 2]
        moments += [_variance_of_mean(terms) for terms in (steps, decoder, replicates)]
        by_stratum = (draws.steps / nats).mean(1).sum(0)
        sums = torch.cat([torch.stack([prior.new_tensor(len(prior)), *(m.sum() for m in moments)]), by_stratum])
        self._sums = sums if self._sums is None else self._sums + sums
        self._edges = draws.edges

    def merge(self, sums: Tensor) -> None:
        """Replace the sums by those over all ranks."""
        self._sums = sums

    @property
    def sums(self) -> Tensor:
        """Everything this meter knows, one vector: add those of several ranks."""
        if self._sums is None:
            raise ValueError("the bound has seen no image")
        return self._sums

    @property
    def images(self) -> int:
        """How many images were seen."""
        return int(self.sums[0])

    def compute(self) -> dict[str, float]:
        """bits/dim: bound, prior, steps, decoder; *_mc_se over the draws of times and noise; image_se over images.

        A standard error that cannot be told (one replicate, one image) is nan.
        """
        n, prior, steps, decoder, total, square, var_steps, var_decoder, var_total = self.sums[:9].tolist()
        spread = max(square / n - (total / n) ** 2, 0.0) * n / (n - 1) if n > 1 else math.nan
        return {
            "bound": total / n,
            "bound_mc_se": math.sqrt(var_total) / n,
            "bound_image_se": math.sqrt(spread / n),
            "prior": prior / n,
            "steps": steps / n,
            "steps_mc_se": math.sqrt(var_steps) / n,
            "decoder": decoder / n,
            "decoder_mc_se": math.sqrt(var_decoder) / n,
        }

    def by_step(self) -> tuple[Tensor, Tensor]:
        """(edges (K + 1,), mean L_t within each stratum (K,) in bits/dim a step)."""
        return self._edges, self.sums[9:] / self.sums[0]


def _variance_of_mean(replicates: Tensor) -> Tensor:
    """The variance of the mean over replicates, (B, R) -> (B,); nan for one replicate."""
    if replicates.shape[1] == 1:
        return torch.full_like(replicates[:, 0], math.nan)
    return replicates.var(1) / replicates.shape[1]
