"""The progress of a run: optimizer steps, loss and images per second; a bar on a terminal, plain lines elsewhere.

The loss is read from the device only when the display is redrawn, at most four times a second: to read it at every step
would make the host wait for the device.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from multiprocessing import parent_process
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TimeRemainingColumn

from noising.training.throughput import Throughput

REFRESH_SECONDS = 0.25
LINES = 10  # plain lines a task, where there is no terminal


def error_console() -> Console:
    """Standard error as rich prints on it; a process that a notebook has forked cannot send it widgets."""
    return Console(stderr=True, force_jupyter=False if parent_process() is not None else None)


def draws_bars(console: Console) -> bool:
    """Whether bars can be drawn anew in place: on a terminal, and in a notebook that has ipywidgets.

    Not where the notebook captures its output, as `%%capture` does: widgets raise an error there.
    """
    if not console.is_jupyter:
        return console.is_terminal
    from IPython import get_ipython  # a notebook has it

    return find_spec("ipywidgets") is not None and hasattr(getattr(get_ipython(), "display_pub", None), "set_parent")


class StepProgress(ProgressBar):
    """Shows training by optimizer steps, and whatever else runs inside `task`. Only rank 0 displays."""

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._console, self._clock = console, clock
        self._enabled = True
        self._display: Progress | None = None
        self._drawn = -float("inf")
        self._training: TaskID | None = None
        self._evaluation = ExitStack()
        self._loss: torch.Tensor | None = None
        self._throughput = Throughput()  # the module's, as soon as there is one

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show something else, such as sampling, while the clock of the throughput stands still. Gives `advance(n)`."""
        with self._throughput.paused():
            task = self._open(description, total)
            try:
                yield lambda n: self._draw(task, self._due(), advance=n)
            finally:
                self._close(task)

    # --- the display: tasks inside each other share it, and the last one stays on the screen

    def _open(self, description: str, total: int, done: int = 0) -> TaskID:
        if self._display is None:  # not before: ddp_spawn cannot send its lock to the processes it starts
            console = self._console or error_console()
            left, right = "{task.description}", "{task.fields[text]}"
            columns = (left, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), right)
            hidden = not (self._enabled and draws_bars(console))
            # rich's own thread would slow down short steps
            self._display = Progress(*columns, console=console, auto_refresh=False, disable=hidden)
            self._display.start()
        line = LINES * done // (total or 1)
        return self._display.add_task(description, total=total, completed=done, text="", line=line)

    def _due(self) -> bool:
        now = self._clock()
        due = self._enabled and now - self._drawn >= REFRESH_SECONDS
        self._drawn = now if due else self._drawn
        return due

    def _draw(self, task: TaskID, due: bool = True, **changes: Any) -> None:
        """Change what is known of a task, and show it if that is due."""
        assert self._display is not None
        self._display.update(task, **changes, refresh=due)
        if not due:
            return
        (shown,) = (one for one in self._display.tasks if one.id == task)
        line = LINES * shown.completed // (shown.total or 1)
        if self._enabled and self._display.disable and line > shown.fields["line"]:
            text = f"{shown.description} {shown.completed:.0f}/{shown.total:.0f}  {shown.fields['text']}".rstrip()
            self._display.console.print(text, highlight=False, markup=False, soft_wrap=True)
            self._display.update(task, line=line)

    def _close(self, task: TaskID, **changes: Any) -> None:
        assert self._display is not None
        self._draw(task, **changes)
        if len(self._display.tasks) > 1:
            self._display.remove_task(task)
        else:
            self._display.stop()
            self._display = None

    def _draw_training(self) -> None:
        text = "" if self._loss is None else f"loss {float(self._loss):.4f}"  # the only wait for the device
        if not math.isnan(rate := self._throughput.images_per_second):
            text += f"  {rate:.{0 if rate >= 10 else 2}f} images/s"
        assert self._training is not None
        self._draw(self._training, completed=self.trainer.global_step, text=text)

    def _close_training(self) -> None:
        if self._training is not None:
            self._close(self._training, completed=self.trainer.global_step)
            self._training = None

    # --- Lightning's hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._throughput = pl_module.throughput  # type: ignore[assignment]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._training = self._open("training", trainer.max_steps, trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._loss = outputs["loss"].detach() * trainer.accumulate_grad_batches  # Lightning has divided it
        if self._due():
            self._draw_training()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._enabled:
            self._draw_training()
        self._close_training()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._evaluation.close()
        self._close_training()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        batches = trainer.num_test_batches if trainer.testing else trainer.num_val_batches
        task = self.task("test" if trainer.testing else "validation", int(sum(batches)))
        self._advance = self._evaluation.enter_context(task)

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._advance(1)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluation.close()

    on_test_start, on_test_batch_end = on_validation_start, on_validation_batch_end
    on_test_end = on_validation_end
