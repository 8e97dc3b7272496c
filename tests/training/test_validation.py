"""The bound of a split is the same number however its images come, and its card says how it was measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from noising.diffusion.likelihood.adaptive import Adaptive
from noising.diffusion.likelihood.decoders import DiscretizedGaussian
from noising.diffusion.likelihood.estimators import Stratified
from noising.diffusion.schedules import Cosine
from noising.training.validation import BoundEvaluation
from tests.diffusion.helpers import Crooked, denoiser_of, images
from tests.helpers import on_two_ranks, same


def evaluated(*parts: list[int], split: str = "val") -> BoundEvaluation:
    evaluation = BoundEvaluation(Stratified(8), DiscretizedGaussian(17), 50, split)
    x = images(6).float()
    evaluation.begin(denoiser_of(Crooked(), Cosine(50)), 6, lambda index: (x[index], None))
    for part in parts:
        evaluation.update(x[part], torch.tensor(part))
    return evaluation


def numbers(evaluation: BoundEvaluation) -> dict[str, float]:
    return evaluation.compute(torch.device("cpu")).numbers()


def test_images_carry_their_noise_with_them() -> None:
    whole, split = evaluated([0, 1, 2, 3, 4, 5]), evaluated([5, 2], [0], [1, 3, 4])
    assert numbers(split) == pytest.approx(numbers(whole), rel=1e-6, nan_ok=True)
    same(numbers(evaluated([0, 1, 2, 3, 4, 5])), numbers(whole))


def shared_out(rank: int) -> list[dict[str, float]]:
    """Three images a rank, then all on the first."""
    return [numbers(evaluated(*parts)) for parts in ([[[0, 2, 4]], [[1, 3, 5]]][rank], [[[3, 1, 5]], []][rank])]


def test_two_ranks_are_one(tmp_path: Path) -> None:
    """To the last bit what the sums of both give; a rank without images adds nothing."""
    first, second = on_two_ranks(shared_out, tmp_path)
    same(first, second)
    both = evaluated([0, 2, 4])
    both._meter.merge_state(evaluated([1, 3, 5])._meter)
    same(first, [numbers(both), numbers(evaluated([3, 1, 5]))])
    assert first[0] == pytest.approx(numbers(evaluated([0, 1, 2, 3, 4, 5])), rel=1e-6, nan_ok=True)


def test_splits_have_noise_of_their_own() -> None:
    assert numbers(evaluated([0, 1], split="test"))["steps"] != numbers(evaluated([0, 1]))["steps"]


class Convolved(Crooked):
    """Something that autocast would take to half precision."""

    def forward(self, x, noise_label, class_label=None):  # type: ignore[no-untyped-def]
        kernel = torch.linspace(-0.3, 0.5, 9).reshape(1, 1, 3, 3)
        return torch.nn.functional.conv2d(super().forward(x, noise_label), kernel, padding=1)


def test_autocast_does_not_reach_the_bound() -> None:
    denoiser = denoiser_of(Convolved(), Cosine(50))

    def bound() -> dict[str, float]:
        evaluation, x = BoundEvaluation(Adaptive(0.1), DiscretizedGaussian(17), 50, "val"), images(3).float()
        evaluation.begin(denoiser, 3, lambda index: (x[index], None))
        evaluation.update(x, torch.arange(3))
        return numbers(evaluation)

    whole = bound()
    with torch.autocast("cpu", torch.bfloat16):
        assert denoiser.model(images(1).float(), torch.ones(1)).dtype == torch.bfloat16
        assert bound() == whole


def test_it_begins_anew() -> None:
    evaluation, x = evaluated([0, 1, 2]), images(6).float()
    numbers(evaluation)
    assert evaluation.card()["images"] == 3
    evaluation.begin(denoiser_of(Crooked(), Cosine(50)), 6, lambda index: (x[index], None))
    evaluation.update(x[:2], torch.tensor([0, 1]))
    assert numbers(evaluation) == numbers(evaluated([0, 1]))
    assert evaluation.card()["images"] == 2
