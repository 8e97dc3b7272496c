"""A pilot tells the variances that were put into its rows, and what it fits is least squares, each value left out."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from noising.diffusion.levels import NoiseLevel
from noising.diffusion.likelihood.controls import ControlVariates
from noising.diffusion.likelihood.image_set import ImageSet
from noising.diffusion.likelihood.pilot import (
    Pilot,
    PilotRows,
    _fit,
    _image_spread,
    _least_squares,
    evaluate_rows,
    run_pilot,
    summarize,
)
from noising.diffusion.likelihood.terms import BoundTerms, Term
from noising.diffusion.schedules import Cosine
from tests.diffusion.helpers import normals

EDGES = torch.tensor([1, 2, 6, 16])
WIDTHS = EDGES.diff().double()


def set_of(size: int, dims: int = 4) -> ImageSet:
    return ImageSet(size, lambda index: (index.double().reshape(-1, 1, 1, 1).expand(-1, 1, 1, dims), None), "", 3)


def no_variates(size: int) -> Any:
    return SimpleNamespace(of_images=torch.zeros(size, 2, dtype=torch.float64))


def test_least_squares_and_each_value_left_out() -> None:
    values, columns = normals(2, 9), normals(2, 9, 3, seed=1)
    found = _least_squares(values, columns)
    for k in range(2):
        a, b = columns[k].numpy(), values[k].numpy()
        coefficients = np.linalg.lstsq(a, b, rcond=None)[0]
        np.testing.assert_allclose(found.coefficients[k], coefficients)
        np.testing.assert_allclose(found.residuals[k], b - a @ coefficients)
        assert found.freedom[k].item() == pytest.approx(6)
        assert found.variance[k].item() == pytest.approx(((b - a @ coefficients) ** 2).sum() / 6)
        errors = []
        for left in range(9):
            kept = np.arange(9) != left
            errors.append(b[left] - a[left] @ np.linalg.lstsq(a[kept], b[kept], rcond=None)[0])
        assert found.left_out[k].item() == pytest.approx(np.mean(np.square(errors)))


def test_two_values_leave_one_degree_of_freedom() -> None:
    found = _least_squares(torch.tensor([[1.0, 4.0]]).double(), torch.ones(1, 2, 1).double())
    assert (found.freedom.item(), found.variance.item()) == (pytest.approx(1), pytest.approx(4.5))
    through = _least_squares(torch.tensor([[1.0, 4.0]]).double(), torch.eye(2).double()[None])
    assert (through.freedom.item(), through.variance.item()) == (1, pytest.approx(0))


def test_optional_columns_are_taken_where_values_left_out_are_foreseen_better_by_a_margin() -> None:
    """By (1 + 4/J) in the sum over the strata; else their coefficients are 0, and the variance is without them."""
    taken = 0
    for seed in range(60):
        always, optional = normals(2, 10, 1, seed=seed), normals(2, 10, 1, seed=seed + 100)
        values = normals(2, 10, seed=seed + 200) + (0.3 + seed / 60) * optional[..., 0]
        both = _least_squares(values, torch.cat([always, optional], 2))
        alone = _least_squares(values, always)
        found = _fit(values, always, optional)
        if float(both.left_out.sum()) * 1.4 < float(alone.left_out.sum()):
            taken += 1
            torch.testing.assert_close(found.coefficients, both.coefficients[:, 1:])
            torch.testing.assert_close(found.variance, both.left_out)
        else:
            assert not found.coefficients.any()
            torch.testing.assert_close(found.variance, alone.variance)
    assert 15 < taken < 45


def rows_of(seed: int, images: Tensor, between: float, noise: float) -> PilotRows:
    """A term of a row is its image's number, a line in the step, and noise of its own, twice."""
    count = len(images)
    uniform = torch.rand(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    steps = EDGES[:-1] + (uniform * WIDTHS).long()
    of_image = between * normals(100, seed=seed + 10_000)[images]
    nats = (5 + of_image[:, None] - 0.7 * steps)[..., None] + noise * normals(count, 3, 2, seed=seed + 20_000)
    return PilotRows(images, steps, nats, torch.zeros(count, 3, 2, dtype=torch.float64))


def averages(found: list[list[float]]) -> tuple[Tensor, Tensor]:
    table = torch.tensor(found, dtype=torch.float64)
    return table.mean(0), 4.5 * table.std(0) / math.sqrt(len(found))


@pytest.mark.parametrize(("between", "noise"), [(2.0, 0.5), (1.5, 1.5)])
def test_the_variances_that_were_put_in_are_told(between: float, noise: float) -> None:
    """σ² of the noise, τ² between images that add to all steps alike; over 1,000 pilots of 16 rows."""
    found = []
    for seed in range(1000):
        pilot = summarize(rows_of(seed, torch.arange(16), between, noise), set_of(40), no_variates(40), EDGES)
        assert pilot.image_spread is not None
        spread = pilot.image_spread
        found.append([*pilot.noise, *pilot.spread, pilot.image_variance, spread.variance, spread.raw])
        assert (pilot.rows, pilot.dims, pilot.evaluations) == (16, 4, 2 * 16 * 3)
        assert not pilot.coefficients.any()
        assert 12.5 < spread.freedom < 14  # of 15, the slopes of three lines have taken one to two
    mean, error = averages(found)
    square = (WIDTHS**2).tolist()
    of_images, of_noise = between**2 * sum(WIDTHS.tolist()) ** 2, noise**2 * sum(square) / 2
    cautious = (of_images + of_noise) * (1 - math.sqrt(2 / 14)) - of_noise  # less a standard error of 14 degrees
    expected = [*(noise**2 * w for w in square), *((noise**2 + between**2) * w for w in square)]
    expected += [cautious, of_images, of_images + of_noise]
    assert bool(((mean - torch.tensor(expected)).abs() < error).all()), (mean, expected, error)


def test_what_is_told_is_in_the_units_of_the_terms() -> None:
    """A thousandth of the terms has a millionth of the variances, with the same degrees of freedom."""
    rows = rows_of(1, torch.arange(16), 1.0, 1.0)
    one, other = (
        summarize(rows._replace(nats=scale * rows.nats), set_of(40), no_variates(40), EDGES) for scale in (1.0, 1e-3)
    )
    assert one.image_spread is not None
    assert other.image_spread is not None
    for name in ("noise", "spread"):
        torch.testing.assert_close(getattr(other, name), 1e-6 * getattr(one, name))
    assert other.image_variance == pytest.approx(1e-6 * one.image_variance)
    assert other.image_spread == pytest.approx((*(1e-6 * v for v in one.image_spread[:2]), one.image_spread.freedom))
    torch.testing.assert_close(other.shares, one.shares)
    assert other.variance == pytest.approx(1e-6 * one.variance)
    nothing = summarize(rows._replace(nats=torch.ones(16, 3, 2).double()), set_of(40), no_variates(40), EDGES)
    assert nothing.image_variance < 1e-20
    assert nothing.image_spread is not None
    assert nothing.image_spread.variance < 1e-20


def test_few_rows_tell_little() -> None:
    """Of two no line through the steps is told, of fewer than eight nothing that the features foresee."""
    variates: Any = SimpleNamespace(of_images=normals(40, 2))
    for count in (2, 3, 7, 8):
        rows = rows_of(0, torch.arange(count), 0.0, 0.0)  # nothing but a line
        foreseen = (variates.of_images[:count] @ torch.tensor([3.0, 2.0]).double())[:, None, None]
        for nats, told in ((rows.nats, count > 2), (rows.nats + foreseen, count == 8)):
            pilot = summarize(rows._replace(nats=nats), set_of(40), variates, EDGES)
            assert bool((pilot.spread[1:] < 1e-9).all()) == told, (count, pilot.spread)
            assert bool(pilot.coefficients[:, 1:].any()) == (count == 8 and nats is not rows.nats)


def test_few_images_come_twice_and_have_means_of_their_own() -> None:
    """Then what differs between images is no spread, and nothing is told of them."""
    found = []
    for seed in range(400):
        images = torch.arange(5).repeat_interleave(2)
        pilot = summarize(rows_of(seed, images, 2.0, 0.5), set_of(5), no_variates(5), EDGES)
        assert pilot.image_spread is None
        found.append([*pilot.noise, *pilot.spread])
    mean, error = averages(found)
    square = (WIDTHS**2).tolist()
    expected = torch.tensor([*(0.25 * w for w in square), *(0.25 * w for w in square)])
    # a spread is never below that of the noise: what the rows have less than half of it is lost
    assert bool(((mean - expected)[:3].abs() < error[:3]).all()), (mean, expected, error)
    assert bool((mean[3:] > expected[3:]).all())
    assert bool((mean[3:] < 1.25 * expected[3:]).all())


def test_what_control_variates_foresee_is_taken_off() -> None:
    """Of the noise by its own variate, of the images by their features, with coefficients a step."""
    rows = rows_of(0, torch.arange(30), 0.0, 0.01)
    control, features = normals(30, 3, 2, seed=5), normals(40, 2, seed=6)
    features = (features - features.mean(0)) / features.std(0, correction=0)
    of_noise, of_images = torch.tensor([2.0, -1.0, 0.5]).double(), normals(3, 2, seed=7)
    nats = rows.nats + of_noise[:, None] * control + (features[:30] @ of_images.T)[..., None]
    pilot = summarize(
        rows._replace(nats=nats, control=control),
        set_of(40),
        SimpleNamespace(of_images=features),
        EDGES,  # type: ignore[arg-type]
    )
    torch.testing.assert_close(pilot.coefficients[:, 0], of_noise, atol=0.01, rtol=0)
    torch.testing.assert_close(pilot.coefficients[:, 1:], of_images, atol=0.02, rtol=0)
    assert bool((pilot.spread < 1e-3 * WIDTHS**2).all())
    # the spread of the bounds is that which the features foresee of all forty images, but for the lines' own share
    assert pilot.image_spread is not None
    truth = float((features @ (of_images * WIDTHS[:, None]).sum(0)).square().mean())
    assert pilot.image_spread.variance == pytest.approx(truth, rel=0.08)


def test_what_features_foresee_of_the_bounds_is_known_of_every_image() -> None:
    """Bounds Fβ + e of 12 of 200 images: their spread is that of all Fβ, and that of e less the draws' share."""
    features = normals(200, 2, seed=3)
    features = (features - features.mean(0)) / features.std(0, correction=0)
    foreseen, found = features @ torch.tensor([2.0, 1.0]).double(), []
    variates: Any = SimpleNamespace(of_images=features)
    for seed in range(1500):
        bounds = foreseen[:12] + 0.8 * normals(12, seed=seed)
        spread = _image_spread(bounds, features[:12], variates, 0.14, 0.0)
        found.append([spread.variance, spread.raw])
    mean, error = averages(found)
    truth = float(foreseen.square().mean())
    assert bool(((mean - torch.tensor([truth + 0.64 - 0.14, truth + 0.64])).abs() < error).all()), (mean, error)

    columns = np.column_stack([np.ones(12), features[:12].numpy()])
    coefficients, squares = np.linalg.lstsq(columns, bounds.numpy(), rcond=None)[:2]
    for lost in (0.0, 1.5):
        spread = _image_spread(bounds, features[:12], variates, 0.14, lost)
        raw = squares[0] / (9 - lost)
        of_all = np.mean((features.numpy() @ coefficients[1:]) ** 2) - 2 * raw / 12  # less what chance adds to it
        assert spread.raw == pytest.approx(of_all + raw)
        variance = 4 * of_all * raw / 12 + 2 * raw**2 / (9 - lost)
        assert spread.freedom == pytest.approx(2 * (of_all + raw) ** 2 / variance)
    few = _image_spread(bounds, features[:12], variates, 0.0, 8.5)  # a degree of freedom at least
    assert few.raw == pytest.approx(
        max(np.mean((features.numpy() @ coefficients[1:]) ** 2) - squares[0] / 6, 0) + squares[0]
    )
    alike = _image_spread(torch.zeros(12).double(), 0 * features[:12], variates, 0.0, 0.0)
    assert (alike.variance, alike.raw, alike.freedom) == (0, 0, math.inf)


def test_variance_of_a_sum_by_strata() -> None:
    """The sum of w terms of variance v/w² each is v/w; degrees of freedom by Satterthwaite, one a row and stratum."""
    noise = torch.tensor([1.0, 8.0, 30.0], dtype=torch.float64)
    pilot = Pilot(EDGES, noise, noise, torch.zeros(3, 3), 0.0, None, rows=6, dims=1)
    whole, first = pilot.noise_of_sum(slice(None)), pilot.noise_of_sum(slice(0, 1))
    assert (whole.value, first.value) == (1 + 2 + 3, 1)
    assert whole.freedom == pytest.approx(36 / ((1 + 4 + 9) / 6))
    assert first.freedom == pytest.approx(6)
    nothing = pilot._replace(noise=torch.zeros(3)).noise_of_sum(slice(None))
    assert (nothing.value, nothing.freedom) == (0, math.inf)


class Noted(BoundTerms):
    """Notes what it is asked; a term is the mean of the noise."""

    timesteps = 15

    def __init__(self) -> None:
        self.asked: list[tuple[float, int, float]] = []

    def prior(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    floor = lambda self, x, noise: self.prior(x)  # noqa: E731

    def level(self, steps: Tensor) -> NoiseLevel:
        return Cosine(15)(steps.double() / 15)

    def at(self, x: Tensor, steps: Tensor, noise: Tensor, class_label: Tensor | None = None) -> Term:
        assert noise.shape == x.shape  # a number of its own for every pixel
        nats = noise.flatten(1).mean(1).double()
        self.asked += [(float(a[0, 0, 0]), int(s), float(v)) for a, s, v in zip(x, steps, nats, strict=True)]
        return Term(nats, nats)


@pytest.mark.parametrize("size", [7, 8, 40])
def test_a_row_is_an_image_with_a_step_of_each_stratum_and_two_noises(size: int) -> None:
    terms, images = Noted(), set_of(size)
    rows = evaluate_rows(terms, images, ControlVariates(images), EDGES, range(100))
    order = rows.images.tolist()
    first = order[: 2 * size : 2] if size < 8 else order[:size]
    assert sorted(first) == list(range(size))  # each once before one comes again, if few, in two rows
    if size < 8:
        assert order[::2] == order[1::2]
    assert order == (order[: (2 if size < 8 else 1) * size] * 100)[:100]
    asked = torch.tensor([step for _, step, _ in terms.asked]).reshape(100, 3, 2)
    assert torch.equal(asked[..., 0], rows.steps)
    assert torch.equal(asked[..., 1], rows.steps)
    for k in range(3):  # every step of a stratum, and none beside
        assert sorted({*rows.steps[:, k].tolist()}) == list(range(int(EDGES[k]), int(EDGES[k + 1])))
    noises = torch.tensor([noise for _, _, noise in terms.asked])
    assert len(noises.unique()) == len(noises)
    torch.testing.assert_close(rows.nats.flatten(), noises.double())
    some = evaluate_rows(Noted(), images, ControlVariates(images), EDGES, range(40, 60))
    torch.testing.assert_close(some.nats, rows.nats[40:60])  # a row is its own, whenever it is asked for


def test_a_pilot_grows_by_what_it_tells_and_at_most_doubles() -> None:
    terms, images = Noted(), set_of(40)
    told: list[int] = []

    def enough(pilot: Pilot) -> int:
        told.append(pilot.rows)
        return {3: 100, 6: 11, 11: 5}[pilot.rows]

    pilot = run_pilot(terms, images, ControlVariates(images), EDGES, 3, enough)
    assert (told, pilot.rows) == ([3, 6, 11], 11)
    assert len(terms.asked) == 2 * 3 * 11
    together = evaluate_rows(Noted(), images, ControlVariates(images), EDGES, range(11))
    torch.testing.assert_close(pilot.noise, summarize(together, images, ControlVariates(images), EDGES).noise)
