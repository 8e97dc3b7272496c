"""Estimators are unbiased, their standard errors are true, and how images are split up does not matter."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noising.diffusion.bound import variational_bound
from noising.diffusion.bound_estimators import BoundEstimator, BoundMeter, Exact, Stratified
from noising.diffusion.decoders import DiscretizedGaussian
from noising.diffusion.tabulated_schedules import Cosine
from noising.diffusion.transition import Chain
from noising.randomness import Streams
from tests.diffusion.conftest import Crooked, denoiser_of, final_classes, images

DECODER = DiscretizedGaussian(17)


def setup(timesteps: int):  # type: ignore[no-untyped-def]
    schedule = Cosine(timesteps)
    return denoiser_of(Crooked(), schedule), Chain.uniform(schedule, timesteps)


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 100), st.integers(1, 5000))
def test_strata_part_the_steps(half: int, timesteps: int) -> None:
    edges = Stratified(2 * half).edges(timesteps)
    assert (edges[0].item(), edges[-1].item()) == (2, timesteps + 1)
    if timesteps > 1:
        assert bool((edges.diff() >= 1).all())
        assert len(edges) - 1 == min(half - 1, timesteps - 1)
    assert torch.equal(Exact().edges(timesteps), torch.arange(2, timesteps + 2))


def test_every_final_class_is_tested() -> None:
    assert final_classes(BoundEstimator) == {Exact, Stratified}


def test_exact_is_the_sum_of_all_terms() -> None:
    denoiser, chain = setup(30)
    x = images(3)
    meter = BoundMeter()
    meter.update(Exact()(denoiser, chain, x, DECODER, Streams(0, "bound", range(3))))
    streams = Streams(0, "bound", range(3))
    streams.uniform((1, 29))
    bound = variational_bound(denoiser, chain, x, DECODER, lambda: streams.normal(x.shape[1:]).to(x), clip=1.0)
    numbers, bits = meter.compute(), bound.bits_per_dim
    assert numbers["bound"] == pytest.approx(bits.total.mean().item(), rel=1e-12)
    assert numbers["prior"] == pytest.approx(bits.prior.mean().item(), rel=1e-12)
    assert numbers["decoder"] == pytest.approx(bits.decoder.mean().item(), rel=1e-12)
    assert numbers["bound_image_se"] == pytest.approx(bits.total.std().item() / math.sqrt(3), rel=1e-9)
    assert math.isnan(numbers["bound_mc_se"])  # one draw each tells nothing of its own error
    torch.testing.assert_close(meter.by_step()[1], bits.steps.mean(0), rtol=1e-12, atol=0)


def test_stratified_is_unbiased_and_knows_its_error() -> None:
    """400 repetitions of a bound of 8 images, against 400 of the exact sum; and the error it states."""
    denoiser, chain = setup(60)
    x = images(8)

    def repeat(estimator: Exact | Stratified, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        found = []
        for repetition in range(count):
            meter = BoundMeter()
            streams = Streams(repetition, "repetition", range(8))
            meter.update(estimator(denoiser, chain, x, DECODER, streams))
            numbers = meter.compute()
            found.append((numbers["bound"], numbers["bound_mc_se"]))
        values, errors = torch.tensor(found, dtype=torch.float64).unbind(1)
        return values, errors

    estimated, stated = repeat(Stratified(8), 400)
    exact, _ = repeat(Exact(), 40)
    error = math.sqrt(estimated.var().item() / 400 + exact.var().item() / 40)
    assert abs(estimated.mean().item() - exact.mean().item()) < 3.5 * error
    # the variance over 400 repetitions is known to a tenth; five of its standard deviations
    ratio = (stated**2).mean().item() / estimated.var().item()
    assert 0.65 < ratio < 1.5


def test_batches_and_ranks_add_up() -> None:
    denoiser, chain = setup(40)
    x, estimator = images(6), Stratified(8)

    def meter_of(*parts: list[int]) -> BoundMeter:
        meter = BoundMeter()
        for part in parts:
            meter.update(estimator(denoiser, chain, x[part], DECODER, Streams(5, "bound", part)))
        return meter

    whole = meter_of([0, 1, 2, 3, 4, 5])
    split = meter_of([3, 1], [0, 2, 4, 5])
    ranks = [meter_of([0, 2, 4]), meter_of([1, 3, 5])]
    ranks[0].merge(ranks[0].sums + ranks[1].sums)
    for other in (split, ranks[0]):
        assert other.images == 6
        assert other.compute() == pytest.approx(whole.compute(), rel=1e-11)


def test_what_cannot_be_told_is_not_a_number() -> None:
    denoiser, chain = setup(40)
    meter = BoundMeter()
    meter.update(Stratified(8)(denoiser, chain, images(1), DECODER, Streams(0, "bound", [0])))
    assert math.isnan(meter.compute()["bound_image_se"])
    with pytest.raises(ValueError, match="seen no image"):
        _ = BoundMeter().sums


def test_evaluations_are_counted_as_they_are_made() -> None:
    calls = []

    class Counted(Crooked):
        def forward(self, x, noise_label, class_label=None):  # type: ignore[no-untyped-def]
            calls.append(len(x))
            return super().forward(x, noise_label, class_label)

    for estimator, timesteps in ((Stratified(16), 100), (Stratified(64), 20), (Exact(), 30)):
        schedule = Cosine(timesteps)
        calls.clear()
        estimator(
            denoiser_of(Counted(), schedule),
            Chain.uniform(schedule, timesteps),
            images(3),
            DECODER,
            Streams(0, "", range(3)),
        )
        assert sum(calls) == 3 * estimator.evaluations(timesteps)


@pytest.mark.parametrize("options", [{"times": 7}, {"times": 2}, {"clip": 0.0}])
def test_bad_options_are_named(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Stratified(**options)  # type: ignore[arg-type]
