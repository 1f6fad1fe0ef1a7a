"""The `jumok` program: its commands exist, and it is the same from every entry and from any folder."""

import ast
import importlib
import inspect
import json
import os
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from launch import data_command, devices, recipes_command
from launch.cli import COMMANDS
from train.command import dispatch
from train.console import Console
from train.recipes import RECIPES

pytestmark = pytest.mark.core

ROOT = Path(__file__).resolve().parents[2]
JUMOK = "import sys; from launch.cli import main; main()"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_can_be_run(name: str):
    module, _, function = COMMANDS[name].target.partition(":")
    main = getattr(importlib.import_module(module), function)
    assert list(inspect.signature(main).parameters)[1] == "console"
    assert typing.get_type_hints(main)["console"] is Console
    assert COMMANDS[name].summary


def test_the_list_of_commands_needs_no_jax():
    code = "import sys; import launch.cli; assert 'jax' not in sys.modules and 'tyro' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)


def test_the_three_entries_are_one_program_from_any_folder(tmp_path: Path):
    for name in ("data", "model", "train"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.py").write_text("raise SystemExit('the wrong file')")
    words = ["train", "smoke", "--steps", "3", "--print-config", "--json"]
    entries = [
        ["-c", JUMOK, *words],
        ["-m", "train.train", *words[1:]],
        [str(ROOT / "train" / "train.py"), *words[1:]],
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, *entry],
            cwd=tmp_path,
            env=environment if "train.py" not in entry[0] else {**environment, "PYTHONPATH": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for entry in entries
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert {err for _, err in outputs} == {""}
    assert len({out for out, _ in outputs}) == 1
    assert json.loads(outputs[0][0])["steps"] == 3


def test_recipes(capsys: pytest.CaptureFixture[str]):
    recipes = recipes_command.main(recipes_command.Arguments(), Console())
    assert [recipe["name"] for recipe in recipes] == list(RECIPES)
    by_name = {recipe["name"]: recipe for recipe in recipes}
    assert by_name["gpt2-124m"] == {
        "name": "gpt2-124m",
        "family": "gpt2",
        "objective": "causal_lm",
        "parameters": 124_439_808,
        "needs": [],
    }
    assert by_name["llama3.1-405b"]["parameters"] == 405_853_388_800
    assert by_name["char_shakespeare"]["needs"] == ["data.path"]
    smallest = min(recipes, key=lambda recipe: recipe["parameters"])
    assert (smallest["name"], smallest["needs"]) == ("smoke", [])
    shown = capsys.readouterr().out
    assert all(f"\n{name} " in shown for name in RECIPES)
    assert "\x1b" not in shown


def test_devices(capsys: pytest.CaptureFixture[str]):
    seen = devices.main(devices.Arguments(), Console())
    assert len(seen["devices"]) == 8
    assert {"jax", "python"} <= seen["versions"].keys()
    assert "cpu" in capsys.readouterr().out


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("train.command.prepare", lambda: None)

    def run(*words: str) -> typing.Any:
        code = dispatch([*words, "--json"], COMMANDS)
        out, err = capsys.readouterr()
        assert code == (0 if out else 2), err
        return json.loads(out) if out else err

    return run


def test_text_is_prepared_before_training(tmp_path: Path, run: typing.Any):
    (tmp_path / "a.txt").write_text("Some text.\n" * 100)
    prepared = run("data", "prepare", "smoke", "--data.path", str(tmp_path))
    assert {"path", "tokens", "documents", "digest"} <= prepared.keys()
    assert prepared["tokens"] + prepared["validation_tokens"] >= 1100
    assert Path(prepared["path"]).is_dir()
    assert run("data", "prepare", "smoke", "--data.path", str(tmp_path)) == prepared


def test_a_tokenizer_is_made_and_shown(tmp_path: Path, run: typing.Any):
    (tmp_path / "a.txt").write_text("the cat and the other cat and the hat\n" * 50)
    words = ["tokenizer", "train", str(tmp_path / "made"), "--path", str(tmp_path / "a.txt"), "--vocab-size", "290"]
    made = run(*words)
    assert made["vocab_size"] == 290
    assert "is not an empty folder" in run(*words)
    shown = run("tokenizer", "show", str(tmp_path / "made"), "the cat é")
    assert shown["bytes"] == 10
    assert len(shown["tokens"]) == len(shown["pieces"]) < 10
    assert shown["pieces"][-2:] == ["<0xC3>", "<0xA9>"]
    assert run("tokenizer", "show", "bytes", "ab")["tokens"] == [97, 98]
    assert "does not exist" in run("tokenizer", "show", str(tmp_path / "none"), "ab")


def test_what_is_prepared_is_where_it_is_said_to_be(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("train.command.prepare", lambda: None)
    text, shard = tmp_path / "a.txt", tmp_path / "a.bin"
    text.write_text("some text\n" * 50)
    shard.write_bytes(b"a\0b\0" * 50)
    paths = []
    for path in (text, shard):
        assert dispatch(["data", "prepare", "smoke", "--data.path", str(path), "--json"], COMMANDS) == 0
        paths.append(Path(json.loads(capsys.readouterr().out)["path"]))
    assert (paths[0] / "index.json").is_file()
    assert paths[1] == shard


def test_commands_say_what_their_options_are():
    for arguments in (data_command.TrainTokenizer, data_command.ShowTokenizer):
        documented = ast.get_docstring(ast.parse(f'"""{arguments.__doc__}"""')) or ""
        assert all(f"{name}:" in documented for name in arguments.__dataclass_fields__)
