"""Lines that a user writes with `import noising as nz`, for mypy alone: right ones have types, wrong ones are errors.

An ignored error that mypy does not find is an error of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

import noising as nz


def right(model: nn.Module) -> Iterator[Tensor | float]:
    denoiser = nz.Denoiser(model, nz.Cosine(), nz.Epsilon(), nz.FixedSmall(), nz.ScaledTime())
    yield nz.draw_images(denoiser, nz.DDIM(steps=5), (1, 8, 8), seed=0, indices=range(4))
    run: nz.Run = nz.load("runs/1")
    yield run.bound(stderr=0.02).numbers()["bound"]


def wrong() -> None:
    schedule: int = nz.Cosine()  # type: ignore[assignment]
    nz.Cosine(timestep=5)  # type: ignore[call-arg]
    nz.Cosin  # type: ignore[attr-defined]  # noqa: B018
    nz.grids.karras(schedule)  # type: ignore[call-arg]
    nz.weightings.min_snar  # type: ignore[attr-defined]  # noqa: B018
