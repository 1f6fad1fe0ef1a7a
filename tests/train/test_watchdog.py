"""A hang is found, said and ended; and nothing else is one."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from train.run_directory import RunDirectory
from train.watchdog import Watchdog

pytestmark = pytest.mark.core

HANG = """
import sys, time
from train.run_directory import RunDirectory
from train.watchdog import Watchdog

def wait_for_a_host_that_died():
    time.sleep(60)

with Watchdog(RunDirectory(sys.argv[1]), 0.4) as watchdog:
    watchdog.begins(7)
    watchdog.ended(7, 0.01)
    watchdog.begins(8)
    wait_for_a_host_that_died()
"""


def test_a_hang_ends_the_process_and_says_where_it_was(tmp_path: Path):
    done = subprocess.run([sys.executable, "-c", HANG, str(tmp_path)], capture_output=True, text=True, timeout=50)
    (file,) = tmp_path.glob("hang-*.txt")
    assert done.returncode == 1
    assert done.stderr.startswith("jumok: step 8 has not ended after ")
    assert f"where the median is 0.01 s; every thread's stack is in {file}; the same command" in done.stderr
    assert "wait_for_a_host_that_died" in file.read_text()


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    ends: list[str] = []
    monkeypatch.setattr(Watchdog, "_end", lambda self, waited: ends.append("hang"))
    return ends


def test_steps_that_end_are_no_hang(tmp_path: Path, ends: list[str]):
    with Watchdog(RunDirectory(tmp_path), 0.4) as watchdog:
        for step in range(1, 9):
            watchdog.begins(step)
            time.sleep(0.1)
            watchdog.ended(step, 0.1)
        with watchdog.pause():
            time.sleep(0.8)  # an evaluation
        watchdog.begins(9)
    assert not ends


@pytest.mark.parametrize(("steps_read_at_once", "is_hang"), [(1, True), (10, False)])
def test_a_wait_for_many_steps_may_take_as_long_as_they(tmp_path, ends, steps_read_at_once, is_hang):
    with Watchdog(RunDirectory(tmp_path), 0.2) as watchdog:
        watchdog.begins(1)
        watchdog.ended(1, 0.1)
        for step in range(2, 2 + steps_read_at_once):
            watchdog.begins(step)
        time.sleep(0.8)
    assert bool(ends) == is_hang


def test_a_first_step_and_an_unwatched_run_may_take_long(tmp_path: Path, ends: list[str]):
    for least in (0.2, 0.0):
        with Watchdog(RunDirectory(tmp_path), least) as watchdog:
            watchdog.begins(1)
            time.sleep(0.5)
            if not least:
                watchdog.ended(1, 0.001)
                watchdog.begins(2)
                time.sleep(0.5)
    assert not ends
