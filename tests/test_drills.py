"""The short forms of the drills; `make drill` runs longer ones."""

import json
import subprocess
import sys
from pathlib import Path

DRILLS = Path(__file__).parent / "drill"


def test_a_run_that_is_killed_becomes_what_an_unbroken_one_is():
    command = [sys.executable, str(DRILLS / "kill.py"), "--kills", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kills"] == 3
