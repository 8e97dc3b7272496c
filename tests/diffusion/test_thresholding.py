"""Clipping and dynamic thresholding, on images whose quantiles are known, and against diffusers' own."""

from __future__ import annotations

import pytest
import torch

from noising.diffusion.grids import uniform
from noising.diffusion.samplers import DDIM
from noising.diffusion.schedules import Cosine
from tests.diffusion.conftest import Crooked, denoiser_of, in_turn, normals


def kept(sampler: DDIM, x: torch.Tensor) -> torch.Tensor:
    return sampler._clip_clean(x.clone())


def test_a_quantile_by_hand() -> None:
    """|x̂| of 0, ½, …, 4 has the quantile 3 at ¾; a second image, all within 1, is left as it is."""
    strong = torch.linspace(0, 4, 9, dtype=torch.float64).reshape(1, 1, 3, 3) * torch.tensor([1, -1, 1])
    weak = torch.linspace(-0.9, 0.9, 9, dtype=torch.float64).reshape(1, 1, 3, 3)
    found = kept(DDIM(1, uniform, clip=1.0, clip_quantile=0.75), torch.cat([strong, weak]))
    torch.testing.assert_close(found[:1], strong.clamp(-3, 3) / 3)
    torch.testing.assert_close(found[1:], weak)
    wide = kept(DDIM(1, uniform, clip=2.0, clip_quantile=0.75), strong)
    torch.testing.assert_close(wide, strong.clamp(-3, 3) / 3 * 2)
    between = kept(DDIM(1, uniform, clip=1.0, clip_quantile=0.8), strong)
    torch.testing.assert_close(between, strong.clamp(-3.2, 3.2) / 3.2)


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.995, 1.0])
def test_it_is_diffusers(quantile: float) -> None:
    from diffusers import DDIMScheduler

    x = 2 * normals(5, 3, 8, 8)
    theirs = DDIMScheduler(thresholding=True, dynamic_thresholding_ratio=quantile, sample_max_value=100.0)
    ours = kept(DDIM(1, uniform, clip=1.0, clip_quantile=quantile), x)
    torch.testing.assert_close(ours, theirs._threshold_sample(x.clone()))


def test_it_keeps_contrast_where_clipping_saturates() -> None:
    x = 3 * normals(4, 1, 16, 16)
    clipped, thresholded = (kept(DDIM(1, uniform, clip_quantile=q), x) for q in (None, 0.995))
    assert (clipped.abs() == 1).double().mean() > 0.7
    assert (thresholded.abs() == 1).double().mean() < 0.02


def test_every_step_of_a_path_is_within_bounds() -> None:
    denoiser = denoiser_of(Crooked(), Cosine(100))
    for sampler in (DDIM(6, uniform, clip=0.5), DDIM(6, uniform, clip=0.5, clip_quantile=0.9)):
        points = list(sampler.path(denoiser, in_turn(normals(7, 2, 1, 3, 3))))
        assert len(points) == 6
        assert all(float(point.clean.abs().max()) <= 0.5 + 1e-12 for point in points)


@pytest.mark.parametrize(("clip", "quantile"), [(None, 0.9), (1.0, 0.0), (1.0, 1.5)])
def test_bad_quantiles_are_refused(clip: float | None, quantile: float) -> None:
    with pytest.raises(ValueError, match=r"^clip_quantile must be in \(0, 1\] and needs a clip, got "):
        DDIM(5, uniform, clip, quantile)
