"""The beginning and end of a run: its lock, its status, and the line that says how to go on."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from noising.errors import ConfigError, UsageError, printable
from noising.runs.folder import Run
from noising.runs.results import Results

log = logging.getLogger(__name__)

INTERRUPTED = 130  # exit code, the shell's 128 + number of the signal


@contextmanager
def _alone(run: Run) -> Iterator[None]:
    """Keep other processes from writing this run. The lock ends with the process, however that ends."""
    run.path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run.path / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"{os.path.relpath(run.path)} is being written by another process: wait for it, or end it first"
        ) from None
    except (OSError, NotImplementedError):
        pass  # a file system without locks
    try:
        yield
    finally:
        lock.release()
        with suppress(OSError):
            Path(lock.lock_file).unlink(missing_ok=True)


@contextmanager
def run_status(results: Results, config: Any, writes: bool = True) -> Iterator[Run]:
    """Mark the run as running, and afterwards as finished, interrupted (Ctrl-C, SIGTERM, SIGUSR1) or failed.

    Ends the loggers, and leaves the table and the summary of all numbers. writes: whether this rank writes files.
    """
    run = results.run
    with _alone(run) if writes else nullcontext():
        if writes:
            _start(run, config)
        status = "failed"
        try:
            yield run
            status = "finished"
        except Exception as error:
            _log_to_file(error)
            raise
        except (KeyboardInterrupt, SystemExit) as stop:  # Lightning turns Ctrl-C into exit 1
            status = "interrupted"
            raise SystemExit(stop.code if isinstance(stop, Preempted) else INTERRUPTED) from None
        finally:
            try:
                results.close_loggers(status != "finished")
            except Exception as error:
                if status == "finished":
                    raise
                log.warning("a logger has failed as the run ended: %s", error)  # the first error is the one to see
            finally:
                if writes:
                    results.finish(status)
                    _flush_logs(run)
                    if status != "finished":
                        can_resume = status == "interrupted" and "resume" in (config or {})
                        hint = f"; go on with {run.resuming}" if can_resume else ""
                        hint += f"; {_unwritten(run)}" if run.unwritten else ""
                        with suppress(OSError):  # on a full disk
                            line = printable(f"{status}: {os.path.relpath(run.path)}{hint}")
                            print(line, file=sys.stderr, flush=True)
    if writes and run.unwritten:
        raise UnwrittenError(run)


def _start(run: Run, config: Any) -> None:
    try:
        run.start(config)
    except OSError as error:
        raise ConfigError(
            f"{os.path.relpath(run.path)} cannot be written ({error.strerror}): make room first"
        ) from error


class UnwrittenError(UsageError):
    """The run has finished, and some of its files could not be written."""

    exit_code = 1

    def __init__(self, run: Run) -> None:
        super().__init__(f"{os.path.relpath(run.path)} is finished, but {_unwritten(run)}")


def _unwritten(run: Run) -> str:
    """The files that could not be written, in words."""
    files = ", ".join(os.path.relpath(file, run.path) for file in run.unwritten)
    return f"these files are incomplete: {files} ({'; '.join(dict.fromkeys(run.unwritten.values()))})"


def _flush_logs(run: Run) -> None:
    """Write the lines of the log that a full disk did not take."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler) and Path(handler.baseFilename).parent == run.path.absolute():
            with run.writing(Path(handler.baseFilename)), suppress(ValueError):  # closed
                handler.flush()


def _log_to_file(error: Exception) -> None:
    """Log to the files alone: whoever ends the process prints the error."""
    mistake = isinstance(error, UsageError)
    traceback = None if mistake else (type(error), error, error.__traceback__)
    record = log.makeRecord(log.name, logging.ERROR, __file__, 0, str(error) if mistake else "failed", (), traceback)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


def record_failure(run: Run, error: Exception) -> None:
    """Leave the reason why a job of a sweep failed in its summary, and in its log if it failed before its run began."""
    try:
        status = run.status
    except ConfigError:  # damaged
        return
    if status == "none":
        _log_to_file(error)
    if status in ("none", "failed"):
        words = " ".join(str(error).split())
        reason = words if isinstance(error, UsageError) else f"{type(error).__name__}: {words}"
        run.update({"status": "failed", "error": reason})


class Preempted(SystemExit):
    """A signal asked the run to stop. The exit code is the shell's, 128 + its number, so it can be requeued."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
