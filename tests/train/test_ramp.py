"""A batch that grows: each example once, the same however a run is interrupted."""

import dataclasses
import json
from pathlib import Path

import pytest

from train.checkpoint import Checkpoints
from train.config import RunConfig, validate
from train.console import Console
from train.ramp import BatchSizes, RampConfig
from train.train import main


@pytest.mark.core
def test_sizes_double_in_equal_shares_of_the_ramp():
    batches = BatchSizes(32, 4, RampConfig(4, 9))
    assert [batches.of(step) for step in range(1, 12)] == [4, 4, 4, 8, 8, 8, 16, 16, 16, 32, 32]
    assert batches.sizes == [4, 8, 16, 32]
    assert [batches.parts(rows) for rows in batches.sizes] == [1, 1, 2, 4]
    assert [batches.examples(steps) for steps in (0, 3, 5, 11)] == [0, 12, 28, 148]
    assert list(batches.turns(8, 11, 76)) == [(9, 76, 16), (10, 92, 32), (11, 124, 32)]
    assert BatchSizes(160, 5, RampConfig(80, 9)).parts(80) == 4
    assert (batches.between(1, 7), batches.between(5, 99)) == ([4, 8, 16], [8, 16])
    constant = BatchSizes(32, 1, RampConfig())
    assert (constant.of(1), constant.sizes, constant.examples(7)) == (32, [32], 224)


@pytest.mark.core
def test_a_batch_that_does_not_come_to_its_size_is_refused(small: RunConfig):
    with pytest.raises(ValueError, match=r"ramp.batch_size=3 does not become batch_size=16 by doubling; take 2 and"):
        validate(dataclasses.replace(small, ramp=RampConfig(3, 5)))
    with pytest.raises(ValueError, match=r"ramp.batch_size=4 begins a ramp of no steps; pass --ramp.steps too"):
        validate(dataclasses.replace(small, ramp=RampConfig(4)))


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_ramp_goes_on_where_it_was_interrupted(
    small: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("train.console._FIRST_LINE_SECONDS", 0)
    config = dataclasses.replace(small, ramp=RampConfig(8, 4), mesh=dataclasses.replace(small.mesh, data=-1, tensor=2))
    main(dataclasses.replace(config, run_dir=str(tmp_path / "whole")), Console())
    assert "compiling the steps of smaller batches: 0%\n" in capsys.readouterr().err
    whole = rows(tmp_path / "whole")
    assert [row["tokens"] // 32 for row in whole] == [8, 16, 24, 32, 48, 64, 80, 96, 112, 128]
    parts = dataclasses.replace(config, run_dir=str(tmp_path / "parts"))
    for steps in (3, 2, None):
        main(dataclasses.replace(parts, stop_after=steps), Console())
    assert [row["learning/loss"] for row in rows(tmp_path / "parts")] == [row["learning/loss"] for row in whole]
    with Checkpoints(tmp_path / "whole" / "checkpoints") as one, Checkpoints(tmp_path / "parts" / "checkpoints") as two:
        assert one.digest(10, "params") == two.digest(10, "params")
        assert one.record(10)["examples_seen"] == 128
    few = dataclasses.replace(config, ramp=RampConfig(), batch_size=8, micro_batches=1, run_dir=str(tmp_path / "few"))
    main(dataclasses.replace(few, stop_after=4), Console())
    assert [row["learning/loss"] for row in rows(tmp_path / "few")] == [row["learning/loss"] for row in whole[:4]]
