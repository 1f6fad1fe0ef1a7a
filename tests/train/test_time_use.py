"""Where the time went adds up to the time that went, over restarts too."""

import dataclasses
import json
import time
from pathlib import Path

import pytest

from train.config import RunConfig
from train.console import Console
from train.time_use import TimeUse
from train.train import main


def test_parts_nest_and_add_up():
    began = time.time() - 5
    use = TimeUse(began)
    with use.of("steps"):
        time.sleep(0.05)
        with use.of("evaluation"):
            time.sleep(0.1)
    items = list(use.waiting("data", (time.sleep(0.02) or n for n in range(3))))
    seconds = use.seconds()
    assert items == [0, 1, 2]
    assert 0.05 <= seconds["steps"] < 0.1 <= seconds["evaluation"] < 0.2
    assert 0.06 <= seconds["data"] < 0.1
    assert seconds["startup"] >= 5
    assert sum(seconds.values()) == pytest.approx(time.time() - began, abs=0.02)
    assert use.summary().startswith("startup 9")


def test_what_a_restart_repeats_is_lost():
    first = TimeUse(time.time() - 100)
    record = first.record() | {"until": time.time() - 60}
    again = TimeUse(time.time() - 10)
    again.go_on_from(json.loads(json.dumps(record)))
    assert again.seconds()["lost"] == pytest.approx(50, abs=0.1)
    assert again.seconds()["startup"] == pytest.approx(110, abs=0.1)
    back = TimeUse(time.time() - 10)
    back.go_on_from(record | {"until": time.time() + 1000})  # a clock that was set back
    assert back.seconds()["lost"] == 0


@pytest.mark.core
def test_a_run_says_where_its_time_went(small: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = dataclasses.replace(
        small,
        run_dir=str(tmp_path / "run"),
        stop_after=4,
        checkpoint=dataclasses.replace(small.checkpoint, every=2),
        evaluate=dataclasses.replace(small.evaluate, every=5),
    )
    began = time.time()
    main(config, Console())
    time.sleep(1)  # between two starts
    main(dataclasses.replace(config, stop_after=None), Console())
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    parts = [
        {name: value for name, value in row.items() if name.startswith("time/") and name != "time"} for row in rows
    ]
    for row, use in zip(rows, parts, strict=True):
        assert sum(use.values()) == pytest.approx(row["time"] - began, rel=0.01, abs=0.05)
        assert row["perf/goodput"] == pytest.approx(use["time/steps_seconds"] / sum(use.values()))
    assert parts[3]["time/lost_seconds"] == 0
    assert 1 < parts[-1]["time/lost_seconds"] < 3
    assert parts[-1]["time/compile_seconds"] > parts[3]["time/compile_seconds"] > 0
    assert parts[-1]["time/evaluation_seconds"] > 0
    assert parts[-1]["time/checkpoint_seconds"] > 0
    assert "where the time went: " in capsys.readouterr().out
