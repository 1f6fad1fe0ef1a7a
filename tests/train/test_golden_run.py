"""A run that an earlier version saved (golden/make_checkpoint.py) holds the same numbers, and is gone on with."""

import dataclasses
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from train.checkpoint import Checkpoints
from train.config import RunConfig, from_json
from train.console import Console
from train.load import load_run
from train.mesh import make_mesh
from train.program import Program
from train.run_directory import RunDirectory
from train.train import _items, main

pytestmark = pytest.mark.core

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def test_an_older_run_is_verified_and_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.unpack_archive(GOLDEN / "run.zip", tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("abcabd" * 40)
    config = from_json(RunConfig, RunDirectory("run").read_config())
    with Checkpoints("run/checkpoints") as checkpoints:
        found = checkpoints.newest(_items(Program.of(config, make_mesh(config.mesh)).abstract))
    assert found is not None
    step, items, record = found
    assert (step, record["examples_seen"]) == (2, 16)
    with np.load(GOLDEN / "run.npz") as expected:
        leaves = jax.tree_util.tree_leaves_with_path(items)
        arrays = {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}
        assert arrays.keys() == set(expected)
        for name, array in arrays.items():
            assert array.dtype == expected[name].dtype
            np.testing.assert_array_equal(array, expected[name], err_msg=name)
    assert main(dataclasses.replace(config, stop_after=1), Console())["step"] == 3
    assert load_run("run").step == 3
