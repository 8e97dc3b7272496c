"""The table of where the bits lie: rate and distortion as Ho et al. count them, λ at both ends, splits side by side."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from noising.diffusion.likelihood.meter import BoundCurve
from noising.diffusion.schedules import LinearLogSNR
from noising.diffusion.transitions import Chain
from noising.plots.likelihood import (
    bound_by_log_snr,
    bound_by_step,
    rate_distortion,
    read_bins,
    step_bins,
    with_others,
    write_bins,
)

pytestmark = pytest.mark.usefixtures("figures")


def curve() -> BoundCurve:
    """Ten steps in three bins: the decoder's, 2..4 and 5..10."""
    bits = torch.tensor([0.5, 0.2, 0.01], dtype=torch.float64)
    error = torch.tensor([0.01, 0.04, 0.25], dtype=torch.float64)
    return BoundCurve(torch.tensor([1, 2, 5, 11]), bits, bits / 10, error)


def chain() -> Chain:
    return Chain.uniform(LinearLogSNR(10.0, -10.0), 10)  # λ = 10 − 2 i at step i


def test_rate_is_what_was_sent_before() -> None:
    decoder, middle, noisy = step_bins(curve(), chain(), "test", prior=0.001)
    assert noisy.rate == pytest.approx(0.001 + 0.06 / 2)  # L_T, and half of its own six steps
    assert middle.rate == pytest.approx(0.001 + 0.06 + 0.6 / 2)
    assert decoder.rate == pytest.approx(0.001 + 0.06 + 0.6)  # without L_0, which is the distortion's
    assert decoder.bits + middle.bits + noisy.bits == pytest.approx(0.5 + 0.6 + 0.06)


def test_distortion_is_in_grey_levels_of_255() -> None:
    rmse = [row.rmse_of_255 for row in step_bins(curve(), chain(), "test", 0.0)]
    assert rmse == pytest.approx([12.75, 25.5, 63.75])


def test_bins_lie_between_their_levels() -> None:
    decoder, middle, noisy = step_bins(curve(), chain(), "test", 0.0)
    assert decoder.log_snr_high == math.inf
    assert (decoder.log_snr_low, middle.log_snr_high) == pytest.approx((8, 8))
    assert (middle.log_snr_low, noisy.log_snr_high, noisy.log_snr_low) == pytest.approx((2, 2, -10))
    assert middle.log_snr_width == pytest.approx(6)


def test_splits_stand_side_by_side_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "bound_by_step.csv"
    test, train = (step_bins(curve(), chain(), split, 0.0) for split in ("test", "train"))
    write_bins(path, with_others(path, test))
    write_bins(path, with_others(path, train))
    write_bins(path, with_others(path, test))  # again: in its own place, the others stay
    assert sorted(read_bins(path)) == sorted([*test, *train])


@pytest.mark.parametrize("splits", [("test",), ("train",), ("test", "train")])
def test_figures_are_drawn_of_what_there_is(splits: tuple[str, ...], tmp_path: Path) -> None:
    bins = [row for split in splits for row in step_bins(curve(), chain(), split, 0.0)]
    bound_by_step(tmp_path / "step.png", bins, "title", 0.1)
    bound_by_log_snr(tmp_path / "log_snr.png", bins, "title")
    rate_distortion(tmp_path / "rate.png", bins, "title")
    assert all((tmp_path / f"{name}.png").stat().st_size > 5000 for name in ("step", "log_snr", "rate"))


def test_chain_of_one_step_has_a_decoder_alone(tmp_path: Path) -> None:
    one = torch.ones(1, dtype=torch.float64)
    bins = step_bins(
        BoundCurve(torch.tensor([1, 2]), one, one / 10, one), Chain.uniform(LinearLogSNR(), 1), "test", 0.0
    )
    for draw in (lambda path: bound_by_step(path, bins, "", 0.1), lambda path: bound_by_log_snr(path, bins, "")):
        draw(tmp_path / "one.png")
    rate_distortion(tmp_path / "one.png", bins, "")
