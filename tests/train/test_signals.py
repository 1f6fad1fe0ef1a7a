"""Of many processes each tells the others that it was asked to stop, and still counts how often it was."""

import ctypes
import os
import signal

import pytest

from train.signals import hearing_sigterm, held

pytestmark = pytest.mark.core


def test_a_handler_in_c_hears_of_sigterm_beside_python():
    told: list[int] = []
    of_c = ctypes.CFUNCTYPE(None, ctypes.c_int)(told.append)
    before = signal.getsignal(signal.SIGTERM)
    heard, written = os.pipe()
    os.set_blocking(written, False)
    pipe = signal.set_wakeup_fd(written)
    try:
        with hearing_sigterm():
            signal.signal(signal.SIGTERM, before)
        assert signal.getsignal(signal.SIGTERM) is before, "where nothing was changed, nothing is"
        with hearing_sigterm():
            ctypes.pythonapi.PyOS_setsig(signal.SIGTERM, of_c)  # as JAX does when a process joins others
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
        assert told == [signal.SIGTERM] * 2
        assert os.read(heard, 9) == bytes([signal.SIGTERM] * 2)
    finally:
        signal.set_wakeup_fd(pipe)
        signal.signal(signal.SIGTERM, before)
        os.close(heard)
        os.close(written)


def test_a_signal_waits_while_it_is_held_and_is_heard_then():
    reached: list[str] = []

    def compile_something() -> None:
        with held():
            signal.raise_signal(signal.SIGINT)
            reached.append("the end")

    with pytest.raises(KeyboardInterrupt):
        compile_something()
    assert reached == ["the end"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
