"""Runs a program of which each rename of a file or a folder takes a while, as on a slow disk.

    python tests/drill/slow_disk.py train/train.py smoke

A save of a checkpoint takes some milliseconds on a good disk, in which nobody can aim. The program is not changed: the
interpreter tells of each rename before it is done.
"""

import runpy
import sys
import time

SECONDS = 0.02  # of a rename; a save makes five, the last of which commits it


def _wait_for_the_disk(event: str, _: tuple[object, ...]) -> None:
    if event == "os.rename":
        time.sleep(SECONDS)


if __name__ == "__main__":
    sys.addaudithook(_wait_for_the_disk)
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
