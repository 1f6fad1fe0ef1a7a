"""Checkpoints on toy pytrees: bit-equal on every mesh, every damage found, nothing lost by a kill."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from train.checkpoint import CheckpointConfig, Checkpoints, DamagedCheckpoint, _sha256
from train.digest import array_digest, hexadecimal
from train.run_directory import StorageError

SPECS = {
    "embedding": PartitionSpec("fsdp", "tensor"),
    "layers.attention.query": PartitionSpec(None, "fsdp", "tensor"),
    "layers.attention": PartitionSpec("tensor"),
    "scale": PartitionSpec(),
}


def make_mesh(fsdp: int, tensor: int) -> jax.sharding.Mesh:
    devices = np.array(jax.devices()[: fsdp * tensor]).reshape(fsdp, tensor)
    return jax.sharding.Mesh(devices, ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)


def make_items(mesh: jax.sharding.Mesh, seed: int = 0) -> dict:
    """A small state as a real one is made: dotted names, one a prefix of another; optimizer state; 0-d counts."""
    generator = np.random.default_rng(seed)
    arrays = {
        "embedding": generator.standard_normal((512, 32)).astype(jnp.bfloat16),
        "layers.attention.query": generator.standard_normal((3, 16, 8)).astype(np.float32),
        "layers.attention": generator.standard_normal(8).astype(np.float16),
        "scale": np.array([1.0, -0.0, np.nan, np.inf], np.float32),
    }
    params = {name: jax.device_put(array, NamedSharding(mesh, SPECS[name])) for name, array in arrays.items()}
    replicated = NamedSharding(mesh, PartitionSpec())
    opt_state = optax.tree_utils.tree_map_params(
        optax.adam(1e-3), lambda _, param: param + 1, optax.adam(1e-3).init(params), params
    )
    progress = {
        "step": np.int32(7),
        "examples_seen": np.uint32(2**31 + 3),
        "flags": np.array([True, False]),
        "bytes": np.arange(5, dtype=np.int8),
    }
    opt_state, progress = jax.tree.map(
        lambda leaf: (
            leaf if isinstance(getattr(leaf, "sharding", None), NamedSharding) else jax.device_put(leaf, replicated)
        ),
        (opt_state, progress),
    )
    return {"params": params, "opt_state": opt_state, "progress": progress}


def make_abstract(items: dict) -> dict:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), items)


def assert_bit_equal(restored: dict, saved: dict) -> None:
    assert jax.tree.structure(restored) == jax.tree.structure(saved)
    for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(saved), strict=True):
        assert ours.dtype == theirs.dtype
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


@pytest.fixture(scope="module")
def mesh() -> jax.sharding.Mesh:
    return make_mesh(8, 1)


@pytest.fixture(scope="module")
def items(mesh: jax.sharding.Mesh) -> dict:
    return make_items(mesh)


@pytest.fixture(scope="module")
def saved_folder(tmp_path_factory: pytest.TempPathFactory, mesh: jax.sharding.Mesh) -> Path:
    """Checkpoints of steps 1 and 2, of different values; tests that do damage work on a copy."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    with Checkpoints(folder, writer=True) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, make_items(mesh, step), {"evaluation": 1.0 / step, "examples_seen": 10 * step})
    return folder


@pytest.fixture
def folder(saved_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved_folder, tmp_path / "checkpoints"))


def flip_byte(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)


def data_files(step_folder: Path, item: str = "params") -> list[Path]:
    """The files of an item that hold arrays, the largest first."""
    files = [path for path in (step_folder / item).rglob("*") if path.is_file() and path.parent.name == "d"]
    return sorted(files, key=lambda path: path.stat().st_size, reverse=True)


def set_manifest(folder: Path, step: int, **changes: object) -> None:
    path = folder / str(step) / "manifest" / "metadata"
    manifest = json.loads(path.read_text()) | changes
    del manifest["sha256"]
    path.write_text(json.dumps(manifest | {"sha256": _sha256(manifest)}))


@pytest.mark.core
def test_digest_is_the_same_on_every_mesh_and_sees_any_change() -> None:
    values = np.random.default_rng(0).standard_normal((8, 6, 4)).astype(np.float32)

    def digest(array: np.ndarray, *spec: str | None, shape: tuple[int, int] = (1, 1)) -> str:
        return hexadecimal(array_digest(jax.device_put(array, NamedSharding(make_mesh(*shape), PartitionSpec(*spec)))))

    expected = digest(values)
    assert digest(values, "fsdp", shape=(8, 1)) == expected
    assert digest(values, "fsdp", None, "tensor", shape=(2, 4)) == expected
    assert digest(values, shape=(4, 2)) == expected
    flipped = values.copy()
    flipped.view(np.uint32)[3, 2, 1] ^= 1
    swapped = values.copy()
    swapped[0, 0, 0], swapped[5, 3, 2] = values[5, 3, 2], values[0, 0, 0]
    others = [
        digest(flipped),
        digest(swapped),
        digest(values[::-1]),
        digest(values.transpose(0, 2, 1)),
        digest(-values),
    ]
    zeros = [digest(np.zeros(shape, dtype)) for shape in ((), (1,), (2, 3), (3, 2)) for dtype in (np.float32,)]
    assert len({expected, *others, *zeros}) == 1 + len(others) + len(zeros)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "uint32", "int8", "uint8", "bool"])
def test_digest_sees_one_bit_of_every_dtype(dtype: str) -> None:
    array = np.zeros(16, dtype)
    changed = array.copy()
    changed.view(np.uint8)[array.itemsize * 5] = 1
    assert hexadecimal(array_digest(jnp.asarray(array))) != hexadecimal(array_digest(jnp.asarray(changed)))


def test_digest_of_elements_is_a_bijection_and_costs_no_copy() -> None:
    many = np.arange(2**16, dtype=np.uint32)
    digests = {hexadecimal(digest) for digest in zip(*map(np.asarray, jax.vmap(array_digest)(many)), strict=True)}
    assert len(digests) == len(many)
    compiled = array_digest.lower(jax.ShapeDtypeStruct((512, 1024), jnp.float32)).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 4096


@pytest.mark.core
@pytest.mark.parametrize("shape", [(8, 1), (2, 4), (1, 1)])
def test_restores_bit_equal_on_any_mesh(folder: Path, shape: tuple[int, int]) -> None:
    there = make_items(make_mesh(*shape), seed=2)
    with Checkpoints(folder) as checkpoints:
        restored = checkpoints.restore(2, make_abstract(there))
    assert_bit_equal(restored, there)
    assert jax.tree.map(lambda leaf: leaf.sharding, restored) == jax.tree.map(lambda leaf: leaf.sharding, there)


def test_restores_what_was_there_when_save_was_called(tmp_path: Path, mesh: jax.sharding.Mesh) -> None:
    step = jax.jit(lambda array: array * 2 + 1, donate_argnums=0)
    array = jax.device_put(
        np.random.default_rng(0).standard_normal((64, 4096)).astype(np.float32),
        NamedSharding(mesh, PartitionSpec("fsdp")),
    )
    expected, abstract = np.array(array), make_abstract({"params": {"w": array}})
    with Checkpoints(tmp_path, writer=True) as checkpoints:
        checkpoints.save(1, {"params": {"w": array}}, {})
        for _ in range(5):
            array = step(array)
        checkpoints.wait()
        np.testing.assert_array_equal(checkpoints.restore(1, abstract)["params"]["w"], expected)


def test_a_relative_folder_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, items: dict) -> None:
    monkeypatch.chdir(tmp_path)
    with Checkpoints("runs/a/checkpoints", writer=True) as checkpoints:
        checkpoints.save(1, {"params": items["params"]}, {})
        checkpoints.wait()
        monkeypatch.chdir("/")
        assert_bit_equal(checkpoints.restore(1, make_abstract({"params": items["params"]}))["params"], items["params"])


def test_reads_only_what_is_wanted(folder: Path, items: dict) -> None:
    shutil.rmtree(folder / "2" / "opt_state")
    with Checkpoints(folder) as checkpoints:
        restored = checkpoints.restore(2, make_abstract({"params": items["params"]}))
        assert restored.keys() == {"params"}
        with pytest.raises(DamagedCheckpoint, match=r"checkpoint 2 cannot be used: opt_state/.* cannot be read \("):
            checkpoints.restore(2, make_abstract(items))
        shutil.rmtree(folder / "2" / "params")
        assert checkpoints.record(2) == {"evaluation": 0.5, "examples_seen": 20}


def test_a_flipped_byte_is_found_and_the_older_checkpoint_taken(folder: Path, mesh: jax.sharding.Mesh) -> None:
    saved = make_items(mesh, seed=2)
    abstract = make_abstract(saved)
    silent = 0
    for path in data_files(folder / "2")[:3]:
        for position in np.linspace(0, path.stat().st_size - 1, 6, dtype=int):
            flip_byte(path, position)
            with Checkpoints(folder) as checkpoints:
                try:
                    assert_bit_equal(checkpoints.restore(2, abstract), saved)  # a byte that means nothing
                except DamagedCheckpoint as damage:
                    silent += "holds other values than were saved" in damage.reason
            flip_byte(path, position)
    assert silent, "no flip was in an array: Orbax alone found them all, and the digests were not tried"

    flip_byte(data_files(folder / "2")[0], data_files(folder / "2")[0].stat().st_size // 2)
    reports = []
    with Checkpoints(folder, report=reports.append) as checkpoints:
        found = checkpoints.newest(abstract)
    assert found is not None
    step, restored, record = found
    assert (step, record["examples_seen"]) == (1, 10)
    assert_bit_equal(restored, make_items(mesh, seed=1))
    assert len(reports) == 1
    assert reports[0].startswith("skipped checkpoint 2 cannot be used: ")


def test_none_usable_names_each_and_none_saved_is_none(folder: Path, tmp_path: Path, items: dict) -> None:
    (folder / "1" / "manifest" / "metadata").write_text("{")
    for path in data_files(folder / "2"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with Checkpoints(folder) as checkpoints:
        with pytest.raises(
            ValueError, match=r"no checkpoint in .* can be used \(2: .*; 1: it has no readable manifest\)"
        ):
            checkpoints.newest(make_abstract(items))
        assert checkpoints.best() == 2  # by what can be read of it
    with Checkpoints(tmp_path / "nothing") as checkpoints:
        assert checkpoints.newest(make_abstract(items)) is None
        assert (checkpoints.steps(), checkpoints.best()) == ([], None)
        with pytest.raises(ValueError, match=r"there is no checkpoint 3 in .*; it has none"):
            checkpoints.record(3)
    assert not (tmp_path / "nothing").exists()


def test_every_damaged_file_ends_in_one_sentence(folder: Path, items: dict) -> None:
    abstract = make_abstract(items)
    expected = make_items(make_mesh(8, 1), seed=2)
    step = folder / "2"
    files = [path for path in step.rglob("*") if path.is_file()]
    with Checkpoints(folder) as checkpoints:
        for path in files:
            whole = path.read_bytes()
            for damage in (None, whole[: len(whole) // 2], b"", b"\x00" * len(whole), b"{}"):
                path.unlink() if damage is None else path.write_bytes(damage)
                with contextlib.suppress(DamagedCheckpoint):
                    assert_bit_equal(checkpoints.restore(2, abstract), expected)  # the file holds nothing needed
                path.write_bytes(whole)
        shutil.rmtree(step)
        step.mkdir()
        (step / "holiday.jpg").write_bytes(b"\xff\xd8")
        with pytest.raises(DamagedCheckpoint, match="checkpoint 2 cannot be used: it has no readable manifest"):
            checkpoints.restore(2, abstract)
        shutil.copytree(folder / "1", step, dirs_exist_ok=True)
        with pytest.raises(DamagedCheckpoint, match="its manifest is that of step 1"):
            checkpoints.restore(2, abstract)


def test_a_changed_manifest_is_found(folder: Path, items: dict) -> None:
    path = folder / "2" / "manifest" / "metadata"
    path.write_text(path.read_text().replace('"examples_seen": 20', '"examples_seen": 30'))
    with (
        Checkpoints(folder) as checkpoints,
        pytest.raises(DamagedCheckpoint, match="its manifest is not what was saved"),
    ):
        checkpoints.record(2)


def test_a_newer_format_is_refused_rather_than_skipped(folder: Path, items: dict) -> None:
    set_manifest(folder, 2, format=2)
    with Checkpoints(folder) as checkpoints, pytest.raises(ValueError, match="newer jumok") as error:
        checkpoints.newest(make_abstract(items))
    assert str(error.value) == (
        "checkpoint 2 was written by a newer jumok (format 2, this program reads up to 1); update jumok"
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda params: params.pop("scale"), "it holds params/scale, which this run does not have"),
        (lambda params: params.update(bias=params["scale"]), "it has no params/bias"),
        (
            lambda params: params.update(scale=params["embedding"]),
            "params/scale has dtype float32, and this run needs bfloat16",
        ),
        (
            lambda params: params.update(scale=params["scale"].update(shape=(5,))),
            r"params/scale has shape \[4\], and this run needs \[5\]",
        ),
    ],
)
def test_what_does_not_fit_is_named(folder: Path, items: dict, change, reason: str) -> None:
    params = make_abstract(items)["params"]
    change(params)
    with (
        Checkpoints(folder) as checkpoints,
        pytest.raises(DamagedCheckpoint, match=f"^checkpoint 2 cannot be used: {reason}$"),
    ):
        checkpoints.restore(2, {"params": params})


def test_keeps_the_last_the_best_and_every_kth(tmp_path: Path) -> None:
    array = {"params": {"w": jnp.ones(2)}}
    evaluations = {1: 3.0, 2: 1.0, 3: 1.0, 4: float("nan"), 5: None, 6: 2.0, 7: 2.5}
    seen = []
    with Checkpoints(tmp_path, CheckpointConfig(keep_last=2, keep_best=1, keep_every=3), writer=True) as checkpoints:
        for step, evaluation in evaluations.items():
            checkpoints.save(step, array, {"evaluation": evaluation})
            checkpoints.wait()
            seen.append(checkpoints.steps())
        assert checkpoints.best() == 2
    assert seen == [[1], [1, 2], [2, 3], [2, 3, 4], [2, 3, 4, 5], [2, 3, 5, 6], [2, 3, 6, 7]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3", "6", "7"]


def test_damaged_ones_neither_count_nor_are_deleted_and_are_replaced(folder: Path, mesh: jax.sharding.Mesh) -> None:
    (folder / "2" / "manifest" / "metadata").unlink()
    items = make_items(mesh, seed=3)
    with Checkpoints(folder, CheckpointConfig(keep_last=1, keep_best=0), writer=True) as checkpoints:
        found = checkpoints.newest(make_abstract(items))
        assert found is not None
        assert found[0] == 1
        checkpoints.save(1, items, {})  # seen whole: left as it is
        checkpoints.save(2, items, {"evaluation": None})
        checkpoints.wait()
        assert checkpoints.steps() == [2]
        assert_bit_equal(checkpoints.restore(2, make_abstract(items)), items)
        (folder / "3").mkdir()
        checkpoints.save(4, items, {})
        checkpoints.wait()
        assert checkpoints.steps() == [3, 4]


def test_only_the_writer_removes_leftovers(folder: Path) -> None:
    leftovers = [folder / "3.orbax-checkpoint-tmp", folder / "1.deleting"]
    for path in leftovers:
        path.mkdir()
        (path / "half").touch()
    (folder / "notes").mkdir()
    (folder / "007").mkdir()
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.steps() == [1, 2]
        with pytest.raises(RuntimeError, match="opened for reading"):
            checkpoints.save(3, {}, {})
    assert all(path.exists() for path in leftovers)
    with Checkpoints(folder, writer=True) as checkpoints:
        assert checkpoints.steps() == [1, 2]
    assert sorted(path.name for path in folder.iterdir()) == ["007", "1", "2", "notes"]


def check_for_seconds(checkpoints: Checkpoints, seconds: float) -> None:
    for _ in range(int(seconds * 100)):
        checkpoints.check()
        time.sleep(0.01)


def test_a_failed_save_surfaces_at_the_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_space(path: object) -> None:
        raise OSError(28, "No space left on device")

    array = {"params": {"w": jnp.ones(2)}}
    with Checkpoints(tmp_path, CheckpointConfig(keep_last=1), writer=True) as checkpoints:
        checkpoints.save(1, array, {})
        checkpoints.wait()
        with monkeypatch.context() as patch:
            patch.setattr(ocp.path.atomicity.AtomicRenameTemporaryPath, "finalize", no_space)
            checkpoints.save(2, array, {})
            with pytest.raises(StorageError, match="checkpoint 2 cannot be saved: No space left"):
                check_for_seconds(checkpoints, 20)
            checkpoints.save(3, array, {})
            with pytest.raises(StorageError, match="checkpoint 3 cannot be saved"):
                checkpoints.save(4, array, {})
        assert checkpoints.steps() == [1]
        shutil.rmtree(tmp_path)
        tmp_path.write_text("a file")
        checkpoints.save(5, array, {})
        with pytest.raises(StorageError, match="checkpoint 5 cannot be saved"):
            checkpoints.check()
        tmp_path.unlink()


SAVE_AND_HANG = """
import asyncio, sys
import jax.numpy as jnp
import orbax.checkpoint as ocp
from train.checkpoint import Checkpoints

async def hang(path):
    print("all is written, nothing committed", flush=True)
    await asyncio.sleep(100)

checkpoints = Checkpoints(sys.argv[1], writer=True)
checkpoints.save(1, {"params": {"w": jnp.full(1000, 1.0)}}, {})
checkpoints.wait()
ocp.path.atomicity.AtomicRenameTemporaryPath.finalize = hang
checkpoints.save(2, {"params": {"w": jnp.full(1000, 2.0)}}, {})
checkpoints.wait()
"""


def test_a_kill_in_mid_save_leaves_the_older_one(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SAVE_AND_HANG, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("all is written")
        process.send_signal(signal.SIGKILL)
    assert any("orbax-checkpoint-tmp" in path.name for path in tmp_path.iterdir())
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = {"params": {"w": jax.ShapeDtypeStruct((1000,), jnp.float32, sharding=one)}}
    with Checkpoints(tmp_path, writer=True) as checkpoints:
        found = checkpoints.newest(abstract)
        assert found is not None
        assert found[0] == 1
        np.testing.assert_array_equal(found[1]["params"]["w"], np.full(1000, 1.0, np.float32))
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


@pytest.mark.parametrize(
    ("field", "value"), [("every", 0), ("keep_last", 0), ("keep_best", -1), ("keep_every", -1), ("failures", -1)]
)
def test_meaningless_numbers_are_refused(tmp_path: Path, field: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"checkpoint.{field} must be at least {value + 1}, got {value}"):
        Checkpoints(tmp_path, CheckpointConfig(**{field: value}))
