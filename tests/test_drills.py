"""The short forms of the drills; `make drill` runs longer ones."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

DRILLS = Path(__file__).parent / "drill"


def found_by(drill: str, *options: str) -> dict[str, Any]:
    """What a drill says that it has found."""
    command = [sys.executable, str(DRILLS / drill), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_run_that_is_killed_becomes_what_an_unbroken_one_is():
    assert found_by("kill.py", "--kills", "2")["kills"] == 2


def test_a_run_that_is_asked_to_stop_becomes_what_an_unbroken_one_is():
    assert found_by("signals.py", "--phases", "save").keys() == {"generation", "save", "evaluation"}
