"""Latents: inversion against the flow that is known of Gaussian data, there and back, and arcs between two noises."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from noising.diffusion.denoiser import Denoiser
from noising.diffusion.grids import leading, uniform
from noising.diffusion.guidance import classifier_free
from noising.diffusion.inversion import interpolate, invert
from noising.diffusion.levels import Straight, VarianceExploding
from noising.diffusion.parameterizations import Velocity
from noising.diffusion.samplers import DDIM
from noising.diffusion.schedules import Cosine, RectifiedFlow, Schedule
from noising.diffusion.transitions import Chain
from noising.diffusion.variances import FixedSmall
from noising.oracles.oracle import oracle_denoiser
from tests.diffusion.helpers import SCHEDULES, Classed, Crooked, denoiser_of, gaussian_denoiser, mixture, normals

STD = 0.5
GEOMETRIES = {
    "preserving": Cosine(1000),
    "straight": Cosine(1000, geometry=Straight()),
    "exploding": Cosine(1000, geometry=VarianceExploding()),
    "rectified_flow": RectifiedFlow(),
}


def images(count: int = 4) -> Tensor:
    return STD * normals(count, 1, 2, 2)


def bending_denoiser(schedule: Schedule) -> Denoiser:
    """The optimum for pixels from two Gaussians, whose flow is no mere scaling."""
    return oracle_denoiser(mixture(), schedule, Velocity(), FixedSmall())


def known(chain: Chain, x: Tensor) -> Tensor:
    """Where the flow of N(0, std²) leads: x_t keeps its place in units of its standard deviation."""
    end = chain.level(len(chain))
    return x / STD * (end.alpha**2 * STD**2 + end.sigma**2).sqrt()


def order(errors: list[float]) -> float:
    """Of the last two, the second of twice as many steps."""
    return math.log2(errors[-2] / errors[-1])


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("schedule", GEOMETRIES.values(), ids=GEOMETRIES)
def test_inversion_converges_to_the_known_flow(schedule: Schedule) -> None:
    denoiser = gaussian_denoiser(STD, schedule, Velocity())
    errors = []
    for steps in (100, 200, 400):
        chain = DDIM(steps, uniform, None).chain(schedule)
        errors.append(relative(invert(denoiser, chain, images()), known(chain, images())))
    assert errors[-1] < 0.02
    assert order(errors) == pytest.approx(1, abs=0.1)


def test_first_step_is_of_second_order_in_its_length() -> None:
    """As long a step as σ/α of the first level, whose slope is that of its end: the error is ½ (σ/(α std))²."""
    for time in (0.02, 0.04):
        chain = Chain(Cosine(1000), torch.tensor([time]))
        level = chain.level(1)
        ratio = float(level.sigma / (level.alpha * STD))
        found = invert(gaussian_denoiser(STD, Cosine(1000)), chain, images())
        # exactly: (1 + r²/(1 + r²))/√(1 + r²) − 1, with r = σ/(α std)
        expected = (1 + ratio**2 / (1 + ratio**2)) / math.sqrt(1 + ratio**2) - 1
        assert expected == pytest.approx(ratio**2 / 2, rel=0.05)
        torch.testing.assert_close(found / known(chain, images()) - 1, torch.full_like(found, expected))


def test_first_step_asks_at_its_end_for_the_image_without_noise() -> None:
    asked = []

    class Noting(nn.Module):
        def forward(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
            asked.append((x, noise_label))
            return 0.3 + 0.1 * x

    schedule, x = Cosine(1000), images()
    denoiser = denoiser_of(Noting(), schedule)  # predicts ε, is told λ
    chain = Chain(schedule, torch.tensor([0.1, 0.5, 1.0]))
    x_t = invert(denoiser, chain, x)
    one, two, three = (chain.level(step) for step in (1, 2, 3))
    for (_, label), level in zip(asked, (one, one, two), strict=True):
        torch.testing.assert_close(label, level.log_snr.expand(4))
    torch.testing.assert_close(asked[0][0], one.alpha * x)
    x_1 = one.alpha * x + one.sigma * (0.3 + 0.1 * one.alpha * x)
    torch.testing.assert_close(asked[1][0], x_1)
    noise = 0.3 + 0.1 * x_1
    x_2 = two.alpha * (x_1 - one.sigma * noise) / one.alpha + two.sigma * noise
    torch.testing.assert_close(asked[2][0], x_2)
    noise = 0.3 + 0.1 * x_2
    torch.testing.assert_close(x_t, three.alpha * (x_2 - two.sigma * noise) / two.alpha + three.sigma * noise)


@pytest.mark.parametrize("grid", [uniform, partial(leading, timesteps=1000)], ids=["uniform", "leading"])
def test_a_geometry_only_scales_the_latent(grid: Any) -> None:
    """Euler in x/α against σ/α knows nothing of the line that α and σ walk along."""
    found = []
    for schedule in (SCHEDULES["cosine"], SCHEDULES["cosine_exploding"], Cosine(1000, geometry=Straight())):
        denoiser = bending_denoiser(schedule)
        chain = DDIM(30, grid, None).chain(schedule)
        found.append(invert(denoiser, chain, images()) / chain.level(30).sigma)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-9, atol=1e-9)


def there_and_back(denoiser: Denoiser, steps: int, x: Tensor, label: Tensor | None = None) -> Tensor:
    sampler = DDIM(steps, uniform, None)
    x_t = invert(denoiser, sampler.chain(denoiser.schedule), x, label)
    return sampler(denoiser, lambda: x_t / denoiser.schedule.prior_std, label)


@pytest.mark.parametrize("schedule", GEOMETRIES.values(), ids=GEOMETRIES)
def test_sampling_leads_back_to_the_image(schedule: Schedule) -> None:
    """To first order."""
    denoiser = bending_denoiser(schedule)
    errors = [relative(there_and_back(denoiser, steps, images()), images()) for steps in (50, 100, 200)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.03
    assert order(errors) == pytest.approx(1, abs=0.1)


def test_every_schedule_leads_there_and_back(schedule: Schedule) -> None:
    """Those that leave no signal, or never reach clean, as well."""
    denoiser = gaussian_denoiser(STD, schedule, Velocity())
    errors = [relative(there_and_back(denoiser, steps, images()), images()) for steps in (15, 30)]
    assert errors[-1] < 0.17
    assert order(errors) == pytest.approx(0.85, abs=0.2)  # coarse steps, on the way to 1


def test_class_and_guidance_are_heard_both_ways() -> None:
    label = torch.tensor([0, 1, 2, 3])
    schedule = Cosine(1000)

    def classed(built_in: Tensor | None = None) -> Denoiser:
        return denoiser_of(Classed(built_in), schedule, Velocity())

    chain = DDIM(20, uniform, None).chain(schedule)
    told = invert(classed(), chain, images(), label)
    torch.testing.assert_close(told, invert(classed(built_in=label), chain, images()))
    assert relative(told, invert(classed(), chain, images(), label.flip(0))) > 0.01

    class Hearing(Crooked):
        def forward(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
            said = super().forward(x, noise_label)
            return said if class_label is None else said + 0.1 * class_label.reshape(-1, 1, 1, 1).to(x)

    guided = [
        invert(classifier_free(denoiser_of(Hearing(), schedule, Velocity()), scale), chain, images(), label)
        for scale in (1.0, 2.0)
    ]
    assert relative(*guided) > 0.01
    # twice as far from the classless is the same as a class of twice the number, where the network is linear in it
    doubled = invert(denoiser_of(Hearing(), schedule, Velocity()), chain, images(), 2 * label)
    torch.testing.assert_close(guided[1], doubled)


def test_a_step_is_a_few_operations_and_no_wait() -> None:
    class Counted(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    class Silent(nn.Module):
        def forward(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
            seen.append("look")
            return said

    said, seen = torch.zeros(2, 1, 4, 4), list[str]()
    denoiser = denoiser_of(Silent(), Cosine(1000), Velocity())
    with Counted():
        invert(denoiser, Chain.uniform(Cosine(1000), 10), said)
    looks = [place for place, name in enumerate(seen) if name == "look"] + [len(seen)]
    assert len(looks) == 11
    for start, end in pairwise(looks):
        assert end - start - 1 <= 6, seen[start:end]
        assert "aten._local_scalar_dense.default" not in seen[start:end]


def test_one_step_to_no_signal_is_refused() -> None:
    with pytest.raises(ValueError, match="a chain of one step that leaves no signal"):
        invert(gaussian_denoiser(STD, RectifiedFlow(), Velocity()), Chain.uniform(RectifiedFlow(), 1), images())


# Arcs


def test_ends_are_reproduced_bitwise() -> None:
    a, b = normals(3, 2, 4, 4).float(), normals(3, 2, 4, 4, seed=1).float()
    for first, second in ((a, b), (a, 2 * a), (a, -a)):
        assert torch.equal(interpolate(first, second, 0.0), first)
        assert torch.equal(interpolate(first, second, 1.0), second)


def test_arc_is_even_and_keeps_the_length() -> None:
    """Latents of one length: the angle to the start grows evenly, each image's over all its own pixels."""
    a, b = (
        x / x.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1) for x in (normals(5, 2, 3, 3), normals(5, 2, 3, 3, seed=1))
    )
    whole = torch.acos((a * b).sum((1, 2, 3)))
    for fraction in (0.1, 0.25, 0.5, 0.9):
        between = interpolate(a, b, fraction)
        torch.testing.assert_close(between.flatten(1).norm(dim=1), torch.ones(5, dtype=torch.float64))
        torch.testing.assert_close(torch.acos((a * between).sum((1, 2, 3))), fraction * whole)
    right = interpolate(
        torch.tensor([3.0, 0.0]).reshape(1, 1, 1, 2), torch.tensor([0.0, 3.0]).reshape(1, 1, 1, 2), 1 / 3
    )
    torch.testing.assert_close(right.flatten(), torch.tensor([3 * math.sqrt(0.75), 1.5]))


def test_between_two_noises_is_noise() -> None:
    """Half-way the straight line would have half the variance."""
    between = interpolate(normals(4, 1, 128, 128), normals(4, 1, 128, 128, seed=1), 0.5)
    assert between.mean().item() == pytest.approx(0, abs=0.02)  # five standard errors of 65,536 draws
    assert between.square().mean().item() == pytest.approx(1, abs=0.03)
    assert between.pow(4).mean().item() == pytest.approx(3, abs=0.2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_latents_without_an_arc_are_joined_by_a_line(dtype: torch.dtype) -> None:
    a = normals(2, 1, 4, 4).to(dtype)
    torch.testing.assert_close(interpolate(a, a, 0.3), a)
    torch.testing.assert_close(interpolate(a, 3 * a, 0.5), 2 * a)
    torch.testing.assert_close(interpolate(a, -a, 0.25), a / 2)
    close = a + 1e-4 * normals(2, 1, 4, 4, seed=1).to(dtype)
    torch.testing.assert_close(interpolate(a, close, 0.5), (a + close) / 2, rtol=1e-5, atol=1e-6)
    assert interpolate(a, close, 0.5).dtype == dtype
