"""What the command promises whatever it runs: one sentence for each mistake, exit codes, and pure JSON."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from train import environment
from train.command import Command, dispatch
from train.config import RunConfig, from_json, resolve, to_json, validate
from train.console import Console
from train.options import parse
from train.recipes import find_recipe, smoke
from train.run_directory import StorageError

pytestmark = pytest.mark.core

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Arguments:
    """Says something.

    Attributes:
        what: to say.
        often: how often.
    """

    what: str = "nothing"
    often: int = 1


class Stopped(Exception):
    exit_code = 143


def say(arguments: Arguments, console: Console) -> dict[str, Any]:
    for _ in range(arguments.often):
        console.say(arguments.what)
    print("a library prints")
    return {"said": arguments.what, "nan": float("nan"), "infinite": [float("inf")]}


def refuse(arguments: Arguments, console: Console) -> None:
    validate(replace(smoke(), steps=0))


def mistaken(arguments: Arguments, console: Console) -> None:
    raise ValueError("shapes (3,) and (4,) do not match\nand more lines")


def fail(arguments: Arguments, console: Console) -> None:
    raise RuntimeError("the device is gone")


def stop(arguments: Arguments, console: Console) -> None:
    raise Stopped


def interrupt(arguments: Arguments, console: Console) -> None:
    raise KeyboardInterrupt


def terminate(arguments: Arguments, console: Console) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)


def train(config: RunConfig, console: Console) -> dict[str, Any]:
    return {"config": to_json(config)}


FUNCTIONS: list[Callable[..., Any]] = [say, refuse, mistaken, fail, stop, interrupt, terminate, train]
COMMANDS = {
    function.__name__: Command(f"stand_in:{function.__name__}", f"{function.__name__}s") for function in FUNCTIONS
}
COMMANDS |= {"group one": COMMANDS["say"], "group two": COMMANDS["fail"]}


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The commands above can be imported, in a process that stays as it is."""
    module = types.ModuleType("stand_in")
    vars(module).update({function.__name__: function for function in FUNCTIONS})
    monkeypatch.setitem(sys.modules, "stand_in", module)
    monkeypatch.setattr("train.command.prepare", lambda: None)
    monkeypatch.setenv("JUMOK_CACHE", str(tmp_path / "cache"))


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = dispatch(words, COMMANDS)
    out, err = capsys.readouterr()
    return code, out, err


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one sentence with which these words are refused."""
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith("jumok: ")
    assert err.count("\n") == 1, err
    return err.removeprefix("jumok: ").strip()


def test_output_for_people(capsys: pytest.CaptureFixture[str]):
    assert run(capsys, "say", "--what", "[bold]hello", "--often", "2") == (
        0,
        "[bold]hello\n[bold]hello\na library prints\n",
        "",
    )


def test_json_is_alone_on_standard_output(capsys: pytest.CaptureFixture[str]):
    code, out, err = run(capsys, "say", "--what", "hello", "--json")
    assert code == 0
    assert json.loads(out) == {"said": "hello", "nan": None, "infinite": [None]}
    assert out.count("\n") == 1
    assert err == "hello\na library prints\n"


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_errors_leave_standard_output_empty(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]):
    assert refusal(capsys, "refuse", *words) == "steps=0 must be at least 1"
    assert run(capsys, "stop", *words) == (143, "", "")
    assert run(capsys, "interrupt", *words) == (130, "", "")
    assert run(capsys, "fail", *words)[:2] == (1, "")


@pytest.mark.parametrize(
    ("command", "said"),
    [("fail", "RuntimeError: the device is gone"), ("mistaken", "ValueError: shapes (3,) and (4,) do not match")],
)
def test_a_failure_is_one_sentence_and_a_file(capsys: pytest.CaptureFixture[str], command: str, said: str):
    code, out, err = run(capsys, command)
    assert (code, out) == (1, "")
    sentence, _, path = err.strip().partition("; the traceback is in ")
    assert sentence == f"jumok: {said}"
    assert "Traceback (most recent call last)" in Path(path).read_text()


def full(arguments: Arguments, console: Console) -> None:
    console.write_traceback = unwritable
    raise StorageError("checkpoint 4 cannot be saved: No space left on device")


def unwritable(text: str) -> Path:
    raise OSError(28, "No space left on device")


def test_where_a_run_has_no_room_the_cache_keeps_the_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: Any, tmp_path: Path
):
    monkeypatch.setattr(sys.modules["stand_in"], "full", full, raising=False)
    monkeypatch.setitem(COMMANDS, "full", Command("stand_in:full", "fails"))
    said = "jumok: StorageError: checkpoint 4 cannot be saved: No space left on device; the traceback"
    code, _, err = run(capsys, "full")
    assert code == 1
    assert err.startswith(f"{said} is in {tmp_path / 'cache'}")
    assert err.count("\n") == 1
    (tmp_path / "file").touch()
    monkeypatch.setenv("JUMOK_CACHE", str(tmp_path / "file"))
    code, _, err = run(capsys, "full")
    assert code == 1
    assert err.startswith(f"{said} could not be kept in a file (")
    assert err.count("\n") == 1


def test_a_failure_is_told_even_where_nothing_can_be_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: Any, tmp_path: Path
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("JUMOK_CACHE", str(tmp_path / "file"))
    code, out, err = run(capsys, "fail")
    assert (code, out) == (1, "")
    assert "Traceback" in err
    assert "the device is gone" in err.splitlines()[-1]


def test_sigterm_before_the_loop_ends_the_command(capsys: pytest.CaptureFixture[str]):
    before = signal.getsignal(signal.SIGTERM)
    assert run(capsys, "terminate") == (143, "", "")
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_the_list_of_commands(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]):
    code, out, err = run(capsys, *words)
    assert (code, err) == (0, "")
    assert all(f"jumok {name} " in out and command.summary in out for name, command in COMMANDS.items())


def test_a_group_lists_its_commands(capsys: pytest.CaptureFixture[str]):
    code, out, _ = run(capsys, "group")
    assert code == 0
    assert "group one" in out
    assert "interrupt" not in out


def test_help_of_a_command(capsys: pytest.CaptureFixture[str]):
    code, out, err = run(capsys, "say", "--help")
    assert (code, err) == (0, "")
    assert all(word in out for word in ("jumok say", "Says something.", "--what", "how often", "--json"))


def test_a_title_is_not_broken_at_the_width_of_its_table(capsys: pytest.CaptureFixture[str]):
    Console().table("runs/transformer-tiny at step 20", ("", ""), [("tokens", 617)])
    assert capsys.readouterr().out == "runs/transformer-tiny at step 20\ntokens  617\n"


def test_mistakes_in_the_words_are_refused(capsys: pytest.CaptureFixture[str]):
    assert "no command 'sya'; the nearest is 'say'" in refusal(capsys, "sya")
    assert "no command 'group tow'; the nearest is 'group two'" in refusal(capsys, "group", "tow")
    assert "no option --waht of `jumok say`; the nearest is --what" in refusal(capsys, "say", "--waht=x")
    assert "--help` lists all" in refusal(capsys, "say", "--zzzzzz")
    assert "'more' is one word too many" in refusal(capsys, "say", "more")
    assert "--often: invalid literal for int() with base 10: 'x'" in refusal(capsys, "say", "--often", "x")
    assert "--often" in refusal(capsys, "say", "--often")


def test_mistakes_in_the_words_of_a_recipe_are_refused(capsys: pytest.CaptureFixture[str]):
    assert "no recipe 'smok'; the nearest is 'smoke'" in refusal(capsys, "train", "smok")
    assert "no recipe 'gpt2'; the nearest is 'gpt2-124m'" in refusal(capsys, "train", "gpt2")
    assert "no recipe 'smokey'; the nearest is 'smoke'" in refusal(capsys, "train", "smokey")
    assert "--model.num-layers" in refusal(capsys, "train", "smoke", "--model.num_layer", "3")
    assert "the nearest is --model.num-layers" in refusal(capsys, "train", "smoke", "--num-layers", "3")
    assert "the nearest is --optimizer.learning-rate" in refusal(capsys, "train", "--learning-rate", "3")
    assert "the nearest is --optimizer.learning-rate" in refusal(capsys, "train", "--optimizer.lr", "3")
    assert "the nearest is --batch-size" in refusal(capsys, "train", "--bs", "3")
    assert "a recipe stands before the options" in refusal(capsys, "train", "--steps", "3", "smoke")
    assert "'rsm'" in refusal(capsys, "train", "smoke", "--model.norm", "rsm")
    assert "nowhere.json cannot be read" in refusal(capsys, "train", "nowhere.json")
    assert "cannot be found" in refusal(capsys, "train", "no.such.module:run")
    assert "cannot be found" in refusal(capsys, "train", "train.recipes:nothing")
    assert "must return a RunConfig, got list" in refusal(capsys, "train", "builtins:list")


def test_words_that_are_no_text_are_refused(capsys: pytest.CaptureFixture[str]):
    assert r"the word b'\xffab' is not UTF-8" in refusal(capsys, "train", "smoke", "--sample.prompt", "\udcffab")


def test_a_run_in_the_place_of_a_recipe(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    assert f"the nearest is '{tmp_path}/config.json'" in refusal(capsys, "train", str(tmp_path))


def options(command: Callable[..., Any], *words: str) -> Any:
    return parse(command, words, "train").arguments


def test_options_override_the_recipe():
    given = """
        --steps 7 --model.num-layers 3 --mesh.fsdp -1 --mesh.data 1 --from run --optimizer.learning-rate 3e-4
        --deterministic --model.tie-embeddings --optimizer.decayed matrix bias
    """
    config = options(train, "smoke", *given.split())
    expected = replace(
        smoke(),
        steps=7,
        model=replace(smoke().model, num_layers=3),
        mesh=replace(smoke().mesh, fsdp=-1, data=1),
        init_from="run",
        optimizer=replace(smoke().optimizer, learning_rate=3e-4, decayed=("matrix", "bias")),
        deterministic=True,
    )
    assert config == expected
    assert options(train) == find_recipe("tiny")


def test_a_recipe_may_be_a_file_or_a_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "config.json").write_text(json.dumps(to_json(resolve(smoke()))))
    assert options(train, str(tmp_path / "config.json"), "--steps", "3") == replace(resolve(smoke()), steps=3)
    (tmp_path / "my_recipes.py").write_text("from train.recipes import smoke\ndef mine():\n    return smoke()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert options(train, "my_recipes:mine") == smoke()
    importlib.invalidate_caches()
    sys.modules.pop("my_recipes")


def test_the_printed_configuration_is_the_whole_of_it(capsys: pytest.CaptureFixture[str]):
    code, out, _ = run(capsys, "train", "smoke", "--print-config", "--steps", "3")
    assert code == 0
    assert from_json(RunConfig, json.loads(out)) == resolve(replace(smoke(), steps=3))
    assert run(capsys, "train", "smoke", "--print-config", "--steps", "3", "--json")[1].count("\n") == 1


PROMISED = """
    run-dir steps stop-after seed batch-size micro-batches precision deterministic from print-config json help
    data.path data.valid-path data.text-column data.max-length data.packing
    mesh.data mesh.fsdp mesh.context mesh.tensor
    optimizer.name optimizer.learning-rate optimizer.schedule
    checkpoint.every checkpoint.keep-last log.every evaluate.every profile.start profile.steps
    model.num-layers model.model-dim model.num-heads model.num-kv-heads model.vocab-size model.max-length
"""


@pytest.mark.parametrize("name", ["tiny", "char_shakespeare", "smoke", "gpt2-124m", "llama3.1-8b"])
def test_every_recipe_has_the_promised_options(name: str, capsys: pytest.CaptureFixture[str]):
    code, out, _ = run(capsys, "train", name, "--help")
    assert code == 0
    for option in PROMISED.split():
        assert f"--{option} " in out or f"--{option}\n" in out or f"--{option}," in out, option


def prepared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **given: str) -> dict[str, str]:
    values = {"JUMOK_CACHE": str(tmp_path), "JUMOK_NO_MALLOPT": "1", **given}
    monkeypatch.setattr(os, "environ", values)
    environment.prepare()
    return values


def test_compiled_programs_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    assert prepared(monkeypatch, tmp_path)["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "xla")
    assert prepared(monkeypatch, tmp_path, JAX_COMPILATION_CACHE_DIR="x")["JAX_COMPILATION_CACHE_DIR"] == "x"


@pytest.mark.parametrize("before", ["", "--xla_cpu_enable_fast_math=false "])
def test_deterministic_runs_set_the_flag(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], before: str
):
    monkeypatch.setenv("XLA_FLAGS", before.strip())
    assert run(capsys, "train", "smoke", "--print-config")[0] == 0
    assert os.environ["XLA_FLAGS"] == before.strip()
    assert run(capsys, "train", "smoke", "--print-config", "--deterministic")[0] == 0
    assert os.environ["XLA_FLAGS"] == f"{before}--xla_gpu_deterministic_ops=true"


def test_a_cache_that_cannot_be_written_is_done_without(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "file").touch()
    assert "JAX_COMPILATION_CACHE_DIR" not in prepared(monkeypatch, tmp_path, JUMOK_CACHE=str(tmp_path / "file"))


FAULTS = """
import ctypes, resource, sys, threading
from train.environment import prepare

prepare()
assert "jax" not in sys.modules
c = ctypes.CDLL(None)
c.malloc.restype = ctypes.c_void_p
c.malloc.argtypes = [ctypes.c_size_t]
c.free.argtypes = [ctypes.c_void_p]
c.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    memory = c.malloc(1 << 27)
    c.memset(memory, 1, 1 << 27)
    c.free(memory)
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

counts = []
threads = [threading.Thread(target=faults) for _ in range(3)]
for thread in threads:
    thread.start()
    thread.join()
print(counts[-1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_large_buffers_stay_mapped_in_every_thread():
    def faults(**given: str) -> int:
        values = {**os.environ, "PYTHONPATH": str(ROOT), **given}
        done = subprocess.run([sys.executable, "-c", FAULTS], env=values, capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert faults(JUMOK_NO_MALLOPT="1") > 1000
    assert faults() < 100


STUCK = """
import hashlib
from train.command import _stopped_by_signals

with _stopped_by_signals():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 1 << 30)  # as long as a compilation, and as deaf
"""


def test_a_second_sigterm_ends_the_process_wherever_it_is():
    values = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", STUCK], env=values, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)  # as `timeout` does: still the first request
        time.sleep(1.2)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=5) == 143
