"""The commands that write a run as a Hugging Face folder and read one as a run, there and back."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from train import evaluate
from train.checkpoint import Checkpoints
from train.console import Console
from train.exchange import ExportArguments, ImportArguments, export_main, import_main
from train.generate import Arguments
from train.generate import main as generate
from train.load import load_run
from train.run_directory import RunDirectory


@pytest.fixture(scope="module")
def exported(uninterrupted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run as a folder."""
    folder = tmp_path_factory.mktemp("exchange") / "folder"
    export_main(ExportArguments(uninterrupted[0].run_dir, str(folder)), Console())
    return folder


@pytest.fixture(scope="module")
def imported(exported: Path) -> Path:
    """And that folder as a run again."""
    run = exported.with_name("run")
    import_main(ImportArguments(str(exported), str(run)), Console())
    return run


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.core
def test_there_and_back_is_bit_equal(uninterrupted, imported):
    here, there = load_run(uninterrupted[0].run_dir), load_run(str(imported))
    assert here.params.keys() == there.params.keys()
    for name, array in here.params.items():
        assert np.asarray(array).tobytes() == np.asarray(there.params[name]).tobytes(), name
    assert there.weights_digest == here.weights_digest
    assert (there.tokenizer.digest, there.tokenizer.kind) == (here.tokenizer.digest, "bytes")
    own = files(Path(uninterrupted[0].run_dir) / "tokenizer")
    assert {name: content for name, content in files(imported / "tokenizer").items() if name in own} == own
    model: Any = there.config.model
    assert (there.step, model.max_length, there.config.data.lengths) == (0, 32, (32,))


@pytest.mark.core
def test_an_imported_run_is_a_run(uninterrupted, imported, licence):
    text = evaluate.HeldOutConfig(str(licence))
    receipts = [
        evaluate.main(evaluate.Arguments(run, text), Console()) for run in (uninterrupted[0].run_dir, str(imported))
    ]
    assert receipts[0] | {"step": 0} == receipts[1]
    values = [
        generate(Arguments(run, ("the ",), max_tokens=5), Console())
        for run in (uninterrupted[0].run_dir, str(imported))
    ]
    assert values[0] == values[1]
    with Checkpoints(imported / "checkpoints") as checkpoints:
        assert checkpoints.steps() == [0]


def test_an_imported_run_exports_the_same_files(exported, imported, tmp_path):
    receipt = export_main(ExportArguments(str(imported), str(tmp_path / "again")), Console())
    assert set(receipt) >= {"path", "architecture", "parameters", "max_logit_difference"}
    assert (receipt["architecture"], receipt["path"]) == ("GPT2LMHeadModel", str(tmp_path / "again"))
    again, before = files(tmp_path / "again"), files(exported)
    assert again.keys() == before.keys()
    assert {name for name in before if again[name] != before[name]} <= {"jumok_receipt.json"}
    assert {"config.json", "model.safetensors", "generation_config.json", "tokenizer.json"} <= before.keys()


def test_a_narrow_export_comes_back_as_narrow(uninterrupted, tmp_path, capsys):
    folder, run, again = (str(tmp_path / name) for name in ("folder", "run", "again"))
    receipt = export_main(ExportArguments(uninterrupted[0].run_dir, folder, dtype="bfloat16"), Console())
    assert receipt["dtype"] == "bfloat16"
    assert receipt["max_logit_difference"] <= 1e-5 * max(1, receipt["max_logit"])
    value = import_main(ImportArguments(folder, run), Console())
    assert value["parameters"] == receipt["parameters"]
    assert export_main(ExportArguments(run, again), Console())["dtype"] == "bfloat16"
    assert (Path(folder) / "model.safetensors").read_bytes() == (Path(again) / "model.safetensors").read_bytes()
    shown = capsys.readouterr().out
    assert f"wrote {folder}: GPT2LMHeadModel, 34,720 " in shown
    assert f"imported {folder} as {run}: GPT2LMHeadModel" in shown


def test_a_target_that_is_not_empty_is_refused(uninterrupted, exported, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    refusal = f"{tmp_path} already exists and is not an empty folder"
    with pytest.raises(ValueError, match=refusal):
        export_main(ExportArguments(uninterrupted[0].run_dir, str(tmp_path)), Console())
    with pytest.raises(ValueError, match=refusal):
        import_main(ImportArguments(str(exported), str(tmp_path)), Console())
    with pytest.raises(ValueError, match=r"mine.txt already exists and is not an empty folder"):
        import_main(ImportArguments(str(exported), str(tmp_path / "mine.txt")), Console())
    assert files(tmp_path) == {"mine.txt": b"mine"}
    (tmp_path / "empty").mkdir()
    import_main(ImportArguments(str(exported), str(tmp_path / "empty")), Console())
    assert RunDirectory(tmp_path / "empty").exists()


def test_what_is_no_run_is_refused(uninterrupted, exported, tmp_path):
    for spec, sentence in [
        (tmp_path / "nowhere", "there is no run directory"),
        (tmp_path, "is not a run directory: it has no config.json"),
        (exported, "architectures is not a field|config.json"),
        (f"{uninterrupted[0].run_dir}/checkpoints/7", r"there is no checkpoint 7 in .*; it has \[10\]"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            export_main(ExportArguments(str(spec), str(tmp_path / "out")), Console())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"architectures": ["GPT3LMHeadModel"]},
            "GPT3LMHeadModel is not known; the nearest that is known is GPT2LMHeadModel",
        ),
        ({"architectures": None}, "architectures=None must be a list of one name"),
        ({"n_layer": 3}, "are missing"),
        ({"n_embd": "wide"}, "n_embd"),
    ],
)
def test_a_foreign_folder_is_refused_and_leaves_no_trace(exported, tmp_path, change, sentence):
    folder = Path(shutil.copytree(exported, tmp_path / "folder"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=f"^{folder}: .*{sentence}"):
        import_main(ImportArguments(str(folder), str(tmp_path / "run")), Console())
    assert not (tmp_path / "run").exists()


def test_damaged_weights_are_refused(exported, tmp_path):
    folder = Path(shutil.copytree(exported, tmp_path / "folder"))
    data = (folder / "model.safetensors").read_bytes()
    for content in (data[: len(data) // 2], b"", b"\xff" * 100):
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=f"^{folder}: model.safetensors"):
            import_main(ImportArguments(str(folder), str(tmp_path / "run")), Console())
    assert not (tmp_path / "run").exists()


def test_a_folder_without_a_tokenizer_is_carried(exported, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(exported / name, bare / name)
    import_main(ImportArguments(str(bare), str(tmp_path / "run")), Console())
    export_main(ExportArguments(str(tmp_path / "run"), str(tmp_path / "again")), Console())
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (exported / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"tokenizer"):
        generate(Arguments(str(tmp_path / "run")), Console())
