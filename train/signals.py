"""Stopping on request: SIGTERM and Ctrl-C end the training loop at a step boundary, saved.

A second one ends the process at once.
"""

import contextlib
import ctypes
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils

from train.spikes import Spike


class Stopped(Exception):
    """The run was asked to stop, and did. `exit_code` is the shell's for the signal."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


@contextlib.contextmanager
def held() -> Iterator[None]:
    """While entered, signals that ask to stop wait: an exception out of XLA's compiler has JAX crash as Python ends."""
    if threading.current_thread() is not threading.main_thread():  # where Python allows no handlers
        yield
        return
    heard: list[int] = []
    before = {signum: signal.signal(signum, lambda signum, _: heard.append(signum)) for signum in _ours()}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        if heard:
            signal.raise_signal(heard[0])


def _ours() -> tuple[signal.Signals, ...]:
    """Of many processes, the handler of SIGTERM that `hearing_sigterm` left tells the others, and so has to stay."""
    return (signal.SIGINT,) if jax.process_count() > 1 else (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """While entered, remembers the first signal that asks to stop, for the loop to see between steps."""

    def __init__(self) -> None:
        self._signum: int | None = None

    def __enter__(self) -> "StopRequest":
        self._before = {signum: signal.signal(signum, self._ask) for signum in _ours()}
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        # A run that goes back to a checkpoint has not stopped: who listens next is told.
        if kind is Spike and self._signum is not None:
            signal.raise_signal(self._signum)

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        self._signum = self._signum or signum
        if jax.process_count() > 1:
            signal.raise_signal(signal.SIGTERM)

    @property
    def heard(self) -> Stopped | None:
        """Whether to stop at once what is done between steps; never one of many processes, which have to agree."""
        return Stopped(self._signum) if jax.process_count() == 1 and self._signum is not None else None

    def break_off(self) -> None:
        """Raises Stopped where a signal was heard."""
        if self.heard:
            raise self.heard

    def at(self, step: int) -> Stopped | None:
        """Whether to stop after `step`: on many hosts the same answer at the same step on each of them."""
        if jax.process_count() > 1:
            reached = multihost_utils.reached_preemption_sync_point(step)
            return Stopped(self._signum or signal.SIGTERM) if reached else None
        return None if self._signum is None else Stopped(self._signum)


@contextlib.contextmanager
def hearing_sigterm() -> Iterator[None]:
    """Python goes on hearing of SIGTERM where what is done here puts a handler in C in the place of its own.

    JAX does so when a process joins others: its handler tells them that this one was asked to stop, and Python, which
    counts how often it was asked, would hear of none. From then on both do.
    """
    before = _handler_in_c()
    yield
    if (after := _handler_in_c()) != before:
        tell = ctypes.CFUNCTYPE(None, ctypes.c_int)(after)
        signal.signal(signal.SIGTERM, lambda signum, frame: tell(signum))


def _handler_in_c() -> int:
    """The address of the function that the process has for SIGTERM; 0 for none."""
    address = ctypes.pythonapi.PyOS_getsig
    address.restype = ctypes.c_void_p
    return address(signal.SIGTERM) or 0
