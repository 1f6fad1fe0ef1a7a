"""Finds a run that hangs, says where, and ends it, so that whatever started it can start it again."""

import contextlib
import faulthandler
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator

from train.run_directory import RunDirectory

_FIRST_SECONDS = 600.0  # before a step has ended, nothing is known of how long one takes
_TIMES = 3.0  # the median
_REMEMBERED = 101  # steps of which the median is taken
_FAILED = 1


class Watchdog:
    """While entered, ends the process where a step takes too long, with every thread's stack in the run directory.

    Too long is more than `least` seconds and than three times the median. Devices run behind the host, which learns
    that steps have ended when it reads what they measured: what it waits for may be several steps, and counts as such.

    Args:
        run: the run directory.
        least: seconds that any step may take; 0 watches nothing.
    """

    def __init__(self, run: RunDirectory, least: float):
        self._run, self._least = run, least
        self._seconds: deque[float] = deque(maxlen=_REMEMBERED)
        self._begun = self._ended = 0  # the last step that was begun, and the last that is known to have ended
        self._clock = 0.0  # seconds that this process has been running; written by the thread alone
        self._alive = 0.0  # when the run last showed that it lives; written by the loop alone
        self._paused = True
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        if self._least:
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        if self._least:
            self._thread.join()

    def begins(self, step: int) -> None:
        """A step is given to the devices."""
        if self._paused:
            self._ended, self._alive = step - 1, self._clock
        self._begun, self._paused = step, False

    def ended(self, step: int, seconds: float) -> None:
        """A step has ended; it and those before it took so long each."""
        self._seconds.append(seconds)
        self._ended, self._alive = step, self._clock

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Watches nothing until the next step begins: what is done here is no step."""
        self._paused = True
        yield

    def _watch(self) -> None:
        tick = min(1.0, self._least / 4)
        before = time.monotonic()
        while not self._over.wait(tick):
            now = time.monotonic()
            # A process that was suspended has not waited: it only sees a late tick.
            self._clock += min(now - before, 2 * tick)
            before = now
            waited = self._clock - self._alive
            if not self._paused and waited > self._allowed():
                self._end(waited)

    def _allowed(self) -> float:
        if not self._seconds:
            return max(self._least, _FIRST_SECONDS)
        return max(self._least, _TIMES * statistics.median(self._seconds) * max(1, self._begun - self._ended))

    def _end(self, waited: float) -> None:
        said = f"step {self._ended + 1} has not ended after {waited:.0f} s" + (
            f", where the median is {statistics.median(self._seconds):.3g} s" if self._seconds else ""
        )
        with tempfile.TemporaryFile("w+") as dump:  # the stacks are written by C code, to a file of this machine
            faulthandler.dump_traceback(dump, all_threads=True)
            dump.seek(0)
            stacks = dump.read()
        try:
            file = self._run.write_traceback(f"{said}\n\n{stacks}", "hang")
            where = f"every thread's stack is in {file}"
        except (OSError, ValueError) as error:
            where = (
                f"every thread's stack follows, since it could not be written to {self._run.path} ({error})\n{stacks}"
            )
        sys.stderr.write(f"jumok: {said}; {where}; the same command goes on from the last checkpoint\n")
        sys.stderr.flush()
        os._exit(_FAILED)
