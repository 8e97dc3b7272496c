"""Whole trajectories x_0, x_1, …, x_T and their joint densities: the bound before it is split into terms.

    q(x_{1:T} | x_0) = ∏ q(x_t | x_(t−1))            Ho et al. (2020), equation 2
    p(x_{0:T})       = p(x_T) ∏ p(x_(t−1) | x_t)     equation 1
    L_VLB            = E_q[log q(x_{1:T} | x_0) − log p(x_{0:T})]   equation 3

The average of `trajectory_bound` over trajectories is the total of `variational_bound`.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from noising.diffusion.denoiser import Denoiser
from noising.diffusion.gaussian import Gaussian
from noising.diffusion.likelihood.decoders import Decoder
from noising.diffusion.transitions import Chain


def forward_trajectory(chain: Chain, x: Tensor, noise: Callable[[], Tensor]) -> Tensor:
    """Sample q(x_{1:T} | x_0) step by step: (T + 1, B, C, H, W), x itself first."""
    path = [x]
    for step in range(1, len(chain) + 1):
        path.append(chain[step].forward(path[-1]).sample(noise()))
    return torch.stack(path)


def forward_log_prob(chain: Chain, path: Tensor) -> Tensor:
    """log q(x_{1:T} | x_0) of a trajectory (T + 1, B, C, H, W): (B,) nats."""
    steps = range(1, len(chain) + 1)
    return torch.stack([chain[step].forward(path[step - 1]).log_prob(path[step]) for step in steps]).sum(0)


def reverse_log_prob(
    denoiser: Denoiser, chain: Chain, path: Tensor, decoder: Decoder, clip: float | None = None
) -> Tensor:
    """log p(x_{0:T}) of a trajectory (T + 1, B, C, H, W), with the decoder's p(x_0 | x_1): (B,) nats."""
    log_prior_variance = torch.tensor(2 * math.log(chain.schedule.prior_std), dtype=torch.float64)
    noisiest = path[len(chain)]
    total = Gaussian(torch.zeros_like(noisiest), log_prior_variance).log_prob(noisiest)
    for step in range(len(chain), 0, -1):
        transition, x_t, x_s = chain[step], path[step], path[step - 1]
        reverse = denoiser.reverse(transition, x_t, denoiser.at(x_t, transition.later, clip))
        last = step == 1
        total = total + (decoder.log_prob(x_s, reverse, x_t, transition.later) if last else reverse.log_prob(x_s))
    return total


def trajectory_bound(
    denoiser: Denoiser, chain: Chain, path: Tensor, decoder: Decoder, clip: float | None = None
) -> Tensor:
    """log q(x_{1:T} | x_0) − log p(x_{0:T}) of a trajectory drawn from q: (B,) nats, with expectation L_VLB."""
    return forward_log_prob(chain, path) - reverse_log_prob(denoiser, chain, path, decoder, clip)
