"""The callback that draws samples: grids while training, at the end samples.png and the reverse process."""

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from noising.data.image_data import ImageData
from noising.diffusion.drawing import PathFrames, class_labels_for, draw_images
from noising.diffusion.samplers import PathPoint, Sampler
from noising.plots.grids import sample_grid, save_animation, save_png, side_by_side
from noising.runs.results import Results
from noising.training.ema import EMA
from noising.training.module import DiffusionModule

PATH_IMAGES = 16
MAX_IMAGES = 10_000


class SampleGrid(Callback):
    """Draws `count` images with the averaged weights, always from the same noise, shared among the ranks."""

    def __init__(
        self,
        results: Results,
        data: ImageData,
        sampler: Sampler,
        ema: EMA,
        seed: int,
        every_n_steps: int,
        count: int = 64,
        classes: int = 0,
    ) -> None:
        """every_n_steps: optimizer steps between grids while training, 0 for none; classes: how many take turns."""
        if every_n_steps < 0:
            raise ValueError(f"every_n_steps must not be negative, got {every_n_steps}")
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        if count > MAX_IMAGES:
            raise ValueError(f"count must be at most {MAX_IMAGES}, for one picture, got {count}")
        self.results, self.data, self.sampler, self.ema, self.seed = results, data, sampler, ema, seed
        self.every_n_steps, self.count, self.classes = every_n_steps, count, classes
        self._shape = data.channels, data.resolution, data.resolution

    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> Tensor:
        """(count, C, H, W) uint8 for viewing, on every rank."""
        world, rank = trainer.world_size, trainer.global_rank
        share = -(-self.count // world)
        images = self._images(pl_module, range(rank, share * world, world))
        gathered: Tensor = pl_module.all_gather(images)  # type: ignore[assignment]
        # rank r drew the indices r, r + world, ...: put them in order again
        ordered = gathered.reshape(world, share, *self._shape).transpose(0, 1).flatten(0, 1)[: self.count]
        return self.data.to_8bit(self.data.unscale(ordered))

    def _images(
        self, pl_module: LightningModule, indices: range, on_step: Callable[[int, PathPoint], None] | None = None
    ) -> Tensor:
        assert isinstance(pl_module, DiffusionModule)
        class_label = class_labels_for(indices, self.classes, device=pl_module.device)
        return draw_images(pl_module.denoiser, self.sampler, self._shape, self.seed, indices, class_label, on_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, unfinished = trainer.global_step, (batch_idx + 1) % trainer.accumulate_grad_batches
        if not self.every_n_steps or step % self.every_n_steps or unfinished:
            return
        assert isinstance(pl_module, DiffusionModule)
        with pl_module.throughput.paused():
            with self.ema.swapped(pl_module.denoiser):
                grid = sample_grid(self._draw(trainer, pl_module), self.classes, self.count)
            if trainer.is_global_zero:
                file = self.results.run.samples_at(step)
                with self.results.run.writing(file):
                    save_png(file, grid)
                self.results.write_image("samples", grid, step, self._caption(step))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the final grid and the reverse process; during the test the averaged weights are in place."""
        images = self._draw(trainer, pl_module)
        if trainer.is_global_zero:
            grid = sample_grid(images, self.classes, self.count)
            assert isinstance(pl_module, DiffusionModule)
            step, run = pl_module.trained_steps, self.results.run
            with run.writing(run.samples_image):
                save_png(run.samples_image, grid)
            self.results.write_image("samples_final", grid, step, self._caption(step))
            frames = PathFrames(self.sampler.steps, PATH_IMAGES)
            self._images(pl_module, range(min(self.count, PATH_IMAGES)), on_step=frames)
            path = self.data.to_8bit(self.data.unscale(frames.tensor))
            with run.writing(run.reverse_process):
                save_animation(run.reverse_process, [side_by_side(*frame) for frame in path])
        trainer.strategy.barrier()

    def _caption(self, step: int) -> str:
        rows = ", one class per row" if self.classes else ""
        return f"{type(self.sampler).__name__}, {self.sampler.steps} steps, EMA weights of step {step}{rows}"
