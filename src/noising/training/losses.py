"""The mean losses of the training, and those by quartile of t, from sums over batches and ranks."""

import torch
from torch import Tensor

from noising.diffusion.likelihood.sums import SumsOverRanks
from noising.runs.declarations import Declaration

LOSSES = {
    "loss": Declaration("training loss", better="lower"),
    **{f"loss_q{i}": Declaration(f"training loss, quarter {i} of t", shown=False) for i in range(1, 5)},
}
"""Declarations of the mean losses."""
BORDERS = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
"""Largest t of each quartile but the last."""


class QuartileLosses(SumsOverRanks):
    """Sums and counts of the losses by quartile of t, on the losses' device, so that no step waits for a number.

    sums: (2, 4), losses and their number, clean images first. A state, not a buffer: DDP would overwrite each rank's
    buffers with the first's.
    """

    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_sums("sums", 2, len(BORDERS) + 1)

    def update(self, t: Tensor, loss: Tensor) -> None:
        """Add the losses (B,) at times t (B,), float64 on the host; losses that are not finite are left out."""
        quartile = torch.bucketize(t, BORDERS).to(loss.device, non_blocking=True)
        total, count = self.sums
        # losses that are not finite belong to a step that is left out, or end the training before the sums are read
        total.index_add_(0, quartile, loss.to(total.dtype).nan_to_num(0, 0, 0))
        count.index_add_(0, quartile, loss.isfinite().to(count.dtype))

    def compute(self) -> dict[str, float]:
        """train/loss and train/loss_q1..q4, means over the losses of all ranks; nan where there was none."""
        total, count = self.sums.cpu()
        by_quartile = {f"train/loss_q{i}": mean for i, mean in enumerate((total / count).tolist(), 1)}
        return {"train/loss": float(total.sum() / count.sum()), **by_quartile}
