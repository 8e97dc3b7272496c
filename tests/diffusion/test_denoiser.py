"""The denoiser is its parts put together, the same however it is asked."""

from __future__ import annotations

import pytest
import torch

from noising.diffusion.denoiser import Denoiser
from noising.diffusion.grids import uniform as uniform_grid
from noising.diffusion.likelihood.adaptive import Adaptive
from noising.diffusion.likelihood.decoders import DiscretizedGaussian
from noising.diffusion.likelihood.estimators import BoundEstimator, Exact, Stratified, evaluate_draws
from noising.diffusion.likelihood.image_set import ImageSet
from noising.diffusion.likelihood.terms import ModelTerms, variational_bound
from noising.diffusion.noise_labels import DiscreteStep, LogSNR, NoiseLabel, QuarterLogSigma, ScaledLogSNR, ScaledTime
from noising.diffusion.objectives import Regression
from noising.diffusion.parameterizations import Epsilon, Velocity
from noising.diffusion.samplers import DDIM, Ancestral
from noising.diffusion.schedules import Cosine, Schedule
from noising.diffusion.transitions import Chain
from noising.diffusion.variances import FixedLarge, FixedSmall
from noising.diffusion.weightings import uniform
from tests.diffusion.helpers import Classed, Crooked, close, denoiser_of, final_classes, images, in_turn, normals, pair


def test_asked_by_time_or_by_level(schedule: Schedule) -> None:
    denoiser = denoiser_of(Crooked(), schedule, Velocity())
    x_t = normals(3, 1, 3, 3)
    t = torch.tensor([0.4, 0.4, 0.4], dtype=torch.float64)
    by_time, by_level = denoiser(x_t, t), denoiser.at(x_t, schedule(t[0]))
    for one, other in zip(by_time[:3], by_level[:3], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)


def test_prediction_explains_x_t_clipped_or_not(schedule: Schedule) -> None:
    denoiser = denoiser_of(Crooked(), schedule)
    x_t, level = 2 * normals(5, 1, 3, 3), schedule(torch.tensor(0.6))
    for clip in (None, 0.5):
        prediction = denoiser.at(x_t, level, clip)
        torch.testing.assert_close(level.perturb(prediction.x, prediction.noise), x_t, rtol=1e-12, atol=1e-12)
        assert (prediction.x.abs().max() <= 0.5) == (clip is not None)


def _everything(denoiser: Denoiser, label: torch.Tensor | None) -> list[torch.Tensor]:
    """What the package makes of a denoiser, with a class for each of three images."""
    x, noise = images(3), normals(9, 3, 1, 3, 3)
    chain, decoder = Chain.uniform(denoiser.schedule, 8), DiscretizedGaussian(17)
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    made = [
        denoiser(x, t, class_label=label).x,
        Regression(uniform)(denoiser, x, t, noise[0], class_label=label)["loss"],
        variational_bound(denoiser, chain, x, decoder, in_turn(noise), class_label=label).total,
    ]
    for sampler in (Ancestral(8, uniform_grid), DDIM(8, uniform_grid)):
        made.append(sampler(denoiser, in_turn(noise), class_label=label))
    return made


def test_class_reaches_the_network_everywhere() -> None:
    schedule, label = Cosine(8), torch.tensor([0, 2, 5])
    given = _everything(denoiser_of(Classed(), schedule), label)
    built_in = _everything(denoiser_of(Classed(label), schedule), None)
    unclassed = _everything(denoiser_of(Crooked(), schedule), None)
    for one, other, without in zip(given, built_in, unclassed, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one[0], without[0])
        assert not torch.equal(one[1:], without[1:])


@pytest.mark.parametrize("estimator", [Exact(), Stratified(4), Adaptive(100.0)])
def test_class_reaches_the_network_in_every_estimate(estimator: BoundEstimator) -> None:
    schedule, label, x = Cosine(8), torch.tensor([0, 2, 5]), images(3)
    chosen = ImageSet(3, lambda index: (x[index], label[index]), "bound")

    def nats(model: Crooked, given: torch.Tensor | None) -> torch.Tensor:
        terms = ModelTerms(denoiser_of(model, schedule), Chain.uniform(schedule, 8), DiscretizedGaussian(17))
        plan = estimator.plan(ModelTerms(denoiser_of(Classed(), schedule), terms.chain, terms.decoder), chosen)
        draws = evaluate_draws(terms, plan, chosen, torch.arange(3), x, given, at_once=5)
        rows.append(draws.places.row)
        return draws.nats

    rows: list[torch.Tensor] = []
    given, without = nats(Classed(), label), nats(Crooked(), None)
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(given == without, rows[0] == 0)  # class 0 alone adds nothing


def test_network_is_told_its_label() -> None:
    assert final_classes(NoiseLabel) == {ScaledTime, DiscreteStep, LogSNR, ScaledLogSNR, QuarterLogSigma}
    told = []

    class Listening(Crooked):
        def forward(self, x, noise_label, class_label=None):  # type: ignore[no-untyped-def]
            told.append((noise_label, class_label))
            return super().forward(x, noise_label, class_label)

    chain, _ = pair("linear", 1000)
    x_t, step = normals(2, 1, 3, 3), torch.tensor([1, 500])
    on_log_snr = (LogSNR(), ScaledLogSNR(10, -10), QuarterLogSigma())
    for label in (ScaledTime(), DiscreteStep(1000), DiscreteStep(4000), *on_log_snr):
        denoiser = Denoiser(Listening(), chain.schedule, Epsilon(), FixedSmall(), label)
        denoiser.at(x_t, chain.level(step), class_label=torch.tensor([3, 4]))
    labels = [label.tolist() for label, _ in told]
    close(torch.tensor(labels[0], dtype=torch.float64), torch.tensor([1.0, 500.0]).double().numpy(), rtol=1e-12)
    close(
        torch.tensor(labels[1], dtype=torch.float64),
        torch.tensor([0.0, 499.0]).double().numpy(),
        rtol=1e-12,
        atol=1e-12,
    )
    close(
        torch.tensor(labels[2], dtype=torch.float64),
        torch.tensor([0.75, 499.75]).double().numpy(),
        rtol=1e-12,
    )
    close(torch.tensor(labels[3], dtype=torch.float64), chain.level(step).log_snr.flatten().numpy(), rtol=1e-12)
    log_snr = chain.level(step).log_snr.flatten()
    close(torch.tensor(labels[4], dtype=torch.float64), (500 - 50 * log_snr.clamp(-10, 10)).numpy(), rtol=1e-12)
    close(torch.tensor(labels[5], dtype=torch.float64), (-log_snr / 8).numpy(), rtol=1e-12)
    assert all(given.tolist() == [3, 4] for _, given in told)


def test_reverse_step_is_the_papers() -> None:
    """Ho et al., equation 11, from ε̂ as the network gives it; and with x̂ clipped."""
    for name in ("linear", "cosine"):
        chain, reference = pair(name, 1000)
        denoiser = denoiser_of(Crooked(), chain.schedule, variance=FixedLarge())
        x_t = normals(3, 1, 3, 3)
        for t in (1, 2, 400, 1000):
            level = chain.level(t)
            noise = denoiser.at(x_t, level).output
            for clip in (None, 1.0):
                reverse = denoiser.reverse(chain[t], x_t, denoiser.at(x_t, level, clip))
                expected = reference.reverse_mean(x_t.numpy(), t, noise.numpy(), clip=clip is not None)
                close(reverse.mean, expected, rtol=1e-7, atol=1e-9)
                close(reverse.log_variance, reference.fixed_large[t], rtol=1e-9)


def test_half_precision_output_is_solved_in_the_images_type(schedule: Schedule) -> None:
    class Half(Crooked):
        def forward(self, x, noise_label, class_label=None):  # type: ignore[no-untyped-def]
            return super().forward(x, noise_label, class_label).bfloat16()

    prediction = denoiser_of(Half(), schedule).at(normals(2, 1, 3, 3).float(), schedule(torch.tensor(0.3)))
    assert prediction.x.dtype == prediction.noise.dtype == prediction.output.dtype == torch.float32


def test_reference_agrees_on_the_closed_form() -> None:
    chain, reference = pair("linear", 1000)
    x, noise = normals(2, 1, 3, 3), normals(2, 1, 3, 3, seed=1)
    for t in (1, 30, 1000):
        close(chain.level(t).perturb(x, noise), reference.noised(x.numpy(), t, noise.numpy()))
