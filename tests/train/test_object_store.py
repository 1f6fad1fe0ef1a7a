"""Runs in an object store: what holds on a disk holds there, and what is local only says so."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.sharding import PartitionSpec
from object_store import ObjectStore

from train import evaluate
from train.checkpoint import CheckpointConfig, Checkpoints, _sha256
from train.config import RunConfig
from train.console import Console
from train.exchange import ExportArguments, ImportArguments, export_main, import_main
from train.mesh import MeshConfig, make_mesh
from train.run_directory import RunDirectory, StorageError
from train.train import main

RUN = "gs://bucket/run"


def train(config: RunConfig, **changes: Any) -> dict[str, Any]:
    return main(dataclasses.replace(config, run_dir=RUN, **changes), Console())


def learned(run: str) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (epath.Path(run) / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["learning/loss"]) for row in rows]


def digests(run: str, step: int) -> list[str]:
    with Checkpoints(epath.Path(run) / "checkpoints") as checkpoints:
        return [checkpoints.digest(step, item) for item in ("params", "opt_state", "progress")]


@pytest.mark.core
def test_a_run_there_is_the_run_on_a_disk(small, uninterrupted, bucket: ObjectStore, tmp_path: Path):
    config, result = uninterrupted
    train(small, stop_after=3)
    assert train(small) == result | {"run_dir": RUN}
    assert learned(RUN) == learned(config.run_dir)
    assert digests(RUN, 10) == digests(config.run_dir, 10)
    assert {name for name in bucket.store if "/checkpoints/" not in name} == {
        f"/bucket/run/{name}"
        for name in ("config.json", "metrics.jsonl", "starts.jsonl", "held_out.jsonl", "report.html")
    } | {name for name in bucket.store if "/tokenizer/" in name}

    text = Path(small.data.path).read_bytes()
    bucket.write("/bucket/text/a.jsonl", text)
    (tmp_path / "a.jsonl").write_bytes(text)
    figures, expected = (
        evaluate.main(evaluate.Arguments(run, evaluate.HeldOutConfig(path=str(path))), Console())
        for run, path in ((RUN, "gs://bucket/text/*.jsonl"), (config.run_dir, tmp_path / "a.jsonl"))
    )
    assert (figures["nats_per_token"], figures["digests"]) == (expected["nats_per_token"], expected["digests"])
    export_main(ExportArguments(RUN, str(tmp_path / "exported")), Console())
    import_main(ImportArguments(str(tmp_path / "exported"), "gs://bucket/again"), Console())
    assert digests("gs://bucket/again", 0)[0] == digests(RUN, 10)[0]


def test_what_has_to_be_local_says_so(bucket: ObjectStore):
    sentence = "^gs://bucket/x is in an object store; name a local folder, and copy it from there or to there$"
    with pytest.raises(ValueError, match=sentence):
        import_main(ImportArguments("gs://bucket/x", RUN), Console())
    assert not bucket.store


ITEMS = {"params": {"w": jnp.arange(24_000.0).reshape(8, 3000)}, "progress": {"step": jnp.int32(3)}}


def abstract(mesh: MeshConfig, spec: PartitionSpec) -> dict[str, Any]:
    devices = make_mesh(mesh)
    specs = {"params": {"w": spec}, "progress": {"step": PartitionSpec()}}
    return jax.tree.map(
        lambda array, spec: jax.ShapeDtypeStruct(
            array.shape, array.dtype, sharding=jax.sharding.NamedSharding(devices, spec)
        ),
        ITEMS,
        specs,
    )


def test_arrays_of_any_mesh_and_damage_to_them(bucket: ObjectStore):
    on_fsdp = abstract(MeshConfig(fsdp=8), PartitionSpec("fsdp"))
    on_tensor = abstract(MeshConfig(fsdp=2, tensor=4), PartitionSpec(None, "tensor"))
    placed = jax.tree.map(lambda array, to: jax.device_put(array, to.sharding), ITEMS, on_fsdp)
    reports: list[str] = []
    with Checkpoints(f"{RUN}/checkpoints", CheckpointConfig(keep_last=2), writer=True, report=reports.append) as saved:
        for step in (1, 2, 3):
            saved.save(step, placed, {})
        saved.wait()
        assert saved.steps() == [2, 3]
    assert not [name for name in bucket.store if "/checkpoints/1/" in name], "what is not kept is deleted"

    largest = max((name for name in bucket.store if "/3/params/" in name), key=lambda name: bucket.store[name].size)
    with Checkpoints(f"{RUN}/checkpoints", report=reports.append) as found:
        step, restored, _ = found.newest(on_tensor) or (0, {}, {})
        assert step == 3
        jax.tree.map(np.testing.assert_array_equal, restored, ITEMS)
        content = bytearray(bucket.store[largest].getvalue())
        content[len(content) // 2] ^= 1
        bucket.write(largest, bytes(content))
        step, restored, _ = found.newest(on_tensor) or (0, {}, {})
        assert step == 2
    assert [report[:44] for report in reports] == ["skipped checkpoint 3 cannot be used: params/"]


def test_a_store_that_takes_no_more(bucket: ObjectStore):
    reports: list[str] = []
    config = CheckpointConfig(keep_last=1, failures=1)
    with Checkpoints(f"{RUN}/checkpoints", config, writer=True, report=reports.append) as checkpoints:
        checkpoints.save(1, ITEMS, {})
        checkpoints.wait()
        bucket.is_full = True
        checkpoints.save(2, ITEMS, {})
        checkpoints.save(3, ITEMS, {})
        with pytest.raises(StorageError, match=r"^checkpoint 3 cannot be saved: "):
            checkpoints.wait()
        assert [report.split(":")[0] for report in reports] == ["checkpoint 2 cannot be saved"]
        bucket.is_full = False
        checkpoints.save(4, ITEMS, {})
        checkpoints.wait()
        assert checkpoints.steps() == [4]


def test_a_checkpoint_is_committed_by_a_file(bucket: ObjectStore, monkeypatch: pytest.MonkeyPatch):
    folder = epath.Path(f"{RUN}/checkpoints")
    for step in (1, 2, 3):
        manifest = {"format": 1, "step": step, "record": {"evaluation": step}, "arrays": {}}
        manifest["sha256"] = _sha256(manifest)
        (folder / str(step) / "manifest" / "metadata").write_text(json.dumps(manifest))
        if step < 3:
            (folder / str(step) / "commit_success.txt").write_text("")
    with Checkpoints(folder) as checkpoints:
        assert (checkpoints.steps(), checkpoints.best()) == ([1, 2], 1)
        with pytest.raises(
            ValueError, match=r"there is no checkpoint 3 in gs://bucket/run/checkpoints; it has \[1, 2\]"
        ):
            checkpoints.record(3)
    assert (folder / "3" / "manifest" / "metadata").exists()
    with Checkpoints(folder, writer=True) as checkpoints:
        assert not (folder / "3" / "manifest" / "metadata").exists(), "the leftovers of a killed save"
        with monkeypatch.context() as patch:  # killed in mid-deletion
            patch.setattr(type(folder), "rmtree", lambda path, **options: None)
            checkpoints._delete(folder / "1")
        assert checkpoints.steps() == [2]
    with Checkpoints(folder, writer=True):
        assert not (folder / "1" / "manifest" / "metadata").exists()


def test_the_commands_that_are_advised_name_local_folders(small, bucket: ObjectStore, capsys):
    train(small, steps=1)
    assert "export gs://bucket/run run-export" in capsys.readouterr().out
    assert not RunDirectory(RUN).is_written()
