"""The throughput of a training: images per second over all ranks, by a clock that runs in training only."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


class Throughput:
    """Counts the images of optimizer steps and the seconds they take.

    The clock starts at the end of the first step, which compiles, allocates and starts workers, and stands still
    within `paused`. The host waits for the device only where the clock stops.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._images = 0  # of the steps that ended while the clock ran
        self._seconds = 0.0
        self._running_since: float | None = None

    @property
    def images_per_second(self) -> float:
        """Images per second up to now; nan before the end of the second step."""
        seconds = self._seconds + (0.0 if self._running_since is None else self._clock() - self._running_since)
        return self._images / seconds if self._images and seconds > 0 else math.nan

    def count(self, images: int) -> None:
        """Count the images of all ranks in a step that has ended; start the clock if it does not run."""
        if self._running_since is None:
            self._running_since = self._clock()
        else:
            self._images += images

    def stop(self) -> None:
        """Stop the clock, after the steps that the device has yet to do."""
        if self._running_since is None:
            return
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
        self._seconds += self._clock() - self._running_since
        self._running_since = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock, if it runs, for something else than training, and let it run again afterwards."""
        running = self._running_since is not None
        self.stop()
        try:
            yield
        finally:
            if running:
                self._running_since = self._clock()
