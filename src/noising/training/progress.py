"""How far a run is: optimizer steps, loss and images per second, a bar on a terminal, plain lines elsewhere.

The loss is read from the device only when the display is redrawn, at most four times a second: to read it on
every step would make the host wait for the device.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

__all__ = ["StepProgress"]

_REFRESH = 0.25  # seconds
_LINES = 10  # plain lines in a whole, where there is no terminal


class StepProgress(ProgressBar):
    """Shows training by optimizer steps, and whatever else runs inside `task`. Only rank 0 displays."""

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._given_console = console
        self._clock = clock
        self._enabled = True
        self._display: _Display | None = None
        self._users = 0  # open displays share one: a validation inside the training
        self._training: _Task | None = None
        self._evaluation: _Task | None = None
        self._drawn = -float("inf")
        self._loss: torch.Tensor | None = None
        self._images = 0  # seen since the clock of the throughput started
        self._seconds = 0.0
        self._running_since: float | None = None

    @cached_property
    def _console(self) -> Console:
        """Made when first needed: it holds a lock, which cannot go to the processes that ddp_spawn starts."""
        return self._given_console or Console(stderr=True)

    @property
    def images_per_second(self) -> float:
        """Training images per second over all ranks; validation, sampling and the first step do not count.

        nan before the second step.
        """
        since = self._running_since
        seconds = self._seconds + (0.0 if since is None else self._clock() - since)
        return self._images / seconds if self._images and seconds > 0 else float("nan")

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        if self._enabled:
            self._console.print(*args, **kwargs)

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        """Shows something else, such as sampling, while training time stands still. Gives `advance(n)`."""
        was_running = self._pause()
        task = self._open(description, total)
        try:
            yield lambda n: self._advance(task, n)
        finally:
            self._close(task)
            if was_running:
                self._running_since = self._clock()

    # --- throughput

    def _pause(self) -> bool:
        if self._running_since is None:
            return False
        if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()  # the steps still queued belong to the training
        self._seconds += self._clock() - self._running_since
        self._running_since = None
        return True

    # --- display

    def _open(self, description: str, total: int, done: int = 0) -> _Task:
        if self._display is None:
            self._display = _Bar(self._console) if self._console.is_terminal else _Lines(self._console)
        self._users += 1
        return _Task(self._display if self._enabled else None, description, total, done)

    def _advance(self, task: _Task, n: int = 1) -> None:
        task.done += n
        if self._due():
            task.draw()

    def _due(self) -> bool:
        now = self._clock()
        if now - self._drawn < _REFRESH:
            return False
        self._drawn = now
        return True

    def _close(self, task: _Task | None) -> None:
        if task is None:
            return
        task.close()
        self._users -= 1
        if self._users == 0 and self._display is not None:
            self._display.stop()
            self._display = None

    def _close_all(self) -> None:
        self._pause()
        self._close(self._evaluation)
        self._close(self._training)
        self._evaluation = self._training = None

    def _draw_training(self) -> None:
        if self._training is None:
            return
        parts = []
        if self._loss is not None:
            parts.append(f"loss {float(self._loss):.4f}")  # the one place where the host waits for the device
        if (rate := self.images_per_second) == rate:
            parts.append(f"{rate:.0f} images/s" if rate >= 10 else f"{rate:.2f} images/s")
        self._training.draw("  ".join(parts))

    # --- Lightning's hooks

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._images, self._seconds, self._running_since, self._loss = 0, 0.0, None, None
        self._first_step = trainer.global_step + 1
        self._training = self._open("training", trainer.max_steps, trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert self._training is not None
        if self._running_since is not None:
            self._images += len(batch["image"]) * trainer.world_size
        elif trainer.global_step >= self._first_step:  # the first step compiles, allocates, starts workers
            self._running_since = self._clock()
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, torch.Tensor):
            self._loss = loss.detach() * trainer.accumulate_grad_batches  # Lightning has divided it
        self._training.done = trainer.global_step
        if self._enabled and self._due():
            self._draw_training()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._enabled:
            self._draw_training()
        self._close_all()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close_all()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._begin_evaluation("validation", trainer.num_val_batches)

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        if self._evaluation is not None:
            self._advance(self._evaluation)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end_evaluation()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin_evaluation("test", trainer.num_test_batches)

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        if self._evaluation is not None:
            self._advance(self._evaluation)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end_evaluation()

    def _begin_evaluation(self, description: str, batches: Any) -> None:
        self._was_running = self._pause()
        self._evaluation = self._open(description, int(sum(batches) if isinstance(batches, list) else batches))

    def _end_evaluation(self) -> None:
        if self._evaluation is not None:
            self._close(self._evaluation)
            self._evaluation = None
            if self._was_running:
                self._running_since = self._clock()


class _Task:
    """One thing in progress. Without a display it only counts."""

    def __init__(self, display: _Display | None, description: str, total: int, done: int) -> None:
        self.done = done
        self.total = total
        self._display = display
        self._key = None if display is None else display.add(description, total, done)

    def draw(self, text: str = "") -> None:
        if self._display is not None and self._key is not None:
            self._display.draw(self._key, self.done, text)

    def close(self) -> None:
        if self._display is not None and self._key is not None:
            self._display.remove(self._key, self.done)
            self._key = None


class _Display(ABC):
    """A place to show tasks by key."""

    @abstractmethod
    def add(self, description: str, total: int, done: int) -> TaskID: ...

    @abstractmethod
    def draw(self, key: TaskID, done: int, text: str) -> None: ...

    @abstractmethod
    def remove(self, key: TaskID, done: int) -> None: ...

    def stop(self) -> None:  # noqa: B027
        """Nothing is shown any more."""


class _Bar(_Display):
    """One bar a task, redrawn only when asked: rich's own thread would slow down short steps."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
        )
        self._progress = Progress(*columns, console=console, auto_refresh=False)
        self._progress.start()

    def add(self, description: str, total: int, done: int) -> TaskID:
        return self._progress.add_task(description, total=total, completed=done, text="")

    def draw(self, key: TaskID, done: int, text: str) -> None:
        self._progress.update(key, completed=done, text=text)
        self._progress.refresh()

    def remove(self, key: TaskID, done: int) -> None:
        self._progress.update(key, completed=done)
        if len(self._progress.tasks) > 1:  # the last one stays on the screen, as a record
            self._progress.remove_task(key)
        self._progress.refresh()

    def stop(self) -> None:
        self._progress.stop()


class _Lines(_Display):
    """One line every tenth of a task, for log files: no control characters."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tasks: dict[TaskID, tuple[str, int]] = {}
        self._printed: dict[TaskID, int] = {}

    def add(self, description: str, total: int, done: int) -> TaskID:
        key = TaskID(len(self._printed))
        self._tasks[key], self._printed[key] = (description, total), done * _LINES // max(total, 1)
        return key

    def draw(self, key: TaskID, done: int, text: str) -> None:
        description, total = self._tasks[key]
        part = done * _LINES // max(total, 1)
        if part > self._printed[key]:
            self._printed[key] = part
            line = f"{description} {done}/{total}  {text}".rstrip()
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def remove(self, key: TaskID, done: int) -> None:
        self.draw(key, done, "")
        del self._tasks[key]
