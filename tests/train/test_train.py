"""Whole runs, small: what is interrupted goes on bit for bit, and what is refused leaves no trace."""

import dataclasses
import itertools
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.dataset import DataConfig
from data.packing import ConcatenatedRows
from train import evaluate
from train.checkpoint import CheckpointConfig, Checkpoints
from train.config import EvaluateConfig, LogConfig, ProfileConfig, RunConfig, SampleConfig, from_json, to_json
from train.console import Console
from train.exchange import ExportArguments, export_main
from train.load import load_run
from train.mesh import MeshConfig
from train.optimizer import OptimizerConfig
from train.perplexity import PerplexityMeter
from train.report import Profile, StepReport
from train.run_directory import RunDirectory
from train.signals import Stopped
from train.spikes import Diverged
from train.train import main

MIXED_MESH = MeshConfig(data=2, fsdp=2, tensor=2)


def train(config: RunConfig, run: Path | str, **changes: Any) -> dict[str, Any]:
    return main(dataclasses.replace(config, run_dir=str(run), **changes), Console())


def with_value(config: RunConfig, field: str, value: Any) -> RunConfig:
    """The configuration with another value of a field, whose name may be of a section: "section.field"."""
    section, _, name = field.rpartition(".")
    if not section:
        return dataclasses.replace(config, **{name: value})
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **{name: value})})


def rows(run: Path | str) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; a torn line would not parse."""
    return [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path | str) -> dict[int, float]:
    measured = rows(run)
    assert [row["step"] for row in measured] == sorted({row["step"] for row in measured}), "a row twice or out of order"
    return {row["step"]: row["learning/loss"] for row in measured}


def state_digests(run: Path | str, step: int) -> dict[str, str]:
    """Digests of every bit of the state that was saved (tests/train/test_checkpoint.py proves them)."""
    with Checkpoints(Path(run) / "checkpoints") as checkpoints:
        return {item: checkpoints.digest(step, item) for item in ("params", "opt_state", "progress")}


def saved_steps(run: Path | str) -> list[int]:
    with Checkpoints(Path(run) / "checkpoints") as checkpoints:
        return checkpoints.steps()


def contents(run: Path) -> dict[str, bytes]:
    """Every file of a run but the lock, which names its last holder."""
    files = (path for path in run.rglob("*") if path.is_file())
    return {str(path.relative_to(run)): path.read_bytes() for path in files if path.name != "lock"}


def flip_bits(run: Path, step: int) -> None:
    """Flips one bit in a thousand bytes of a checkpoint's weights; tests/train/test_checkpoint.py flips just one."""
    files = [path for path in (run / "checkpoints" / str(step) / "params").rglob("d/*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    for place in range(500, len(data), 1000):
        data[place] ^= 0x10
    largest.write_bytes(data)


@pytest.fixture(scope="session")
def begun(small: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small run, stopped after steps 3 and 6: within an epoch and within the next. Not to be written to."""
    run = tmp_path_factory.mktemp("runs") / "begun"
    for _ in range(2):
        train(small, run, stop_after=3)
    return run


@pytest.fixture
def run(begun: Path, tmp_path: Path) -> Path:
    """A copy of the run that was begun, to go on with."""
    return Path(shutil.copytree(begun, tmp_path / "run"))


@pytest.mark.core
def test_interrupted_and_resumed_is_uninterrupted(small, run, uninterrupted):
    assert saved_steps(run) == [3, 6]
    config, result = uninterrupted
    resumed = train(small, run)
    assert resumed == result | {"run_dir": str(run)}
    assert state_digests(run, 10) == state_digests(config.run_dir, 10)
    assert losses(run) == losses(config.run_dir)
    assert [row["tokens"] for row in rows(run)] == [512 * step for step in range(1, 11)]


def test_a_mixture_goes_on_where_it_stopped(small, licence, tmp_path):
    mixture = (f"paragraphs=3:{small.data.path}", f"licence=1:{licence}")
    mixed = with_value(with_value(small, "data.path", ""), "data.mixture", mixture)
    result = train(mixed, tmp_path / "whole", steps=4)
    assert [(source["name"], source["drawn"], source["share"]) for source in result["sources"]] == [
        ("paragraphs", 48, 0.75),
        ("licence", 16, 0.25),
    ]
    train(mixed, tmp_path / "parts", steps=4, stop_after=1)
    assert train(mixed, tmp_path / "parts", steps=4)["loss"] == result["loss"]
    assert state_digests(tmp_path / "parts", 4) == state_digests(tmp_path / "whole", 4)


@pytest.mark.core
def test_sigterm_saves_at_the_next_step(small, tmp_path, monkeypatch, capsys, uninterrupted):
    after = StepReport.after

    def report_then_ask(self, turn, metrics):
        after(self, turn, metrics)
        if turn.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(StepReport, "after", report_then_ask)
    with pytest.raises(Stopped) as stopped:
        train(small, tmp_path)
    monkeypatch.undo()
    assert stopped.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) == before
    assert saved_steps(tmp_path) == [5]
    assert "stopped after step 5, saved" in capsys.readouterr().err

    train(small, tmp_path)
    assert state_digests(tmp_path, 10) == state_digests(uninterrupted[0].run_dir, 10)
    assert losses(tmp_path) == losses(uninterrupted[0].run_dir)


def test_rows_behind_the_checkpoint_are_written_again_once(small, run, uninterrupted):
    with (run / "metrics.jsonl").open("a") as file:  # as a kill after step 7 leaves it
        file.write('{"step": 7, "tokens": 3584, "learning/loss": 9.9}\n{"step": 8, "tok')
    train(small, run)
    assert losses(run) == losses(uninterrupted[0].run_dir)
    assert (run / "metrics.jsonl").read_bytes().endswith(b"}\n")


def test_any_mesh_goes_on_from_any_mesh(small, run, uninterrupted):
    there = load_run(f"{run}/checkpoints/6").params
    here = load_run(f"{run}/checkpoints/6", MIXED_MESH).params
    assert {name for name, array in here.items() if not array.sharding.is_fully_replicated} > {"embedding.table"}
    for name, array in there.items():
        assert np.asarray(here[name]).tobytes() == np.asarray(array).tobytes(), name

    train(small, run, mesh=MIXED_MESH, stop_after=2)
    train(small, run, mesh=MeshConfig(data=1, fsdp=8))
    expected = losses(uninterrupted[0].run_dir)
    assert losses(run) == pytest.approx(expected, rel=1e-4)
    assert all(losses(run)[step] == expected[step] for step in range(1, 7))


@pytest.mark.core
def test_a_finished_run_says_so(uninterrupted, tmp_path, capsys):
    config, result = uninterrupted
    copy = Path(shutil.copytree(config.run_dir, tmp_path / "run"))
    before = contents(copy)
    assert train(config, copy) == result | {"run_dir": str(copy)}
    assert f"{copy}: nothing left to do, 10 of 10 steps are done" in capsys.readouterr().out
    assert contents(copy) == before


def test_what_all_the_held_out_text_said_is_kept(small, tmp_path):
    run = tmp_path / "run"
    config = dataclasses.replace(small, evaluate=dataclasses.replace(small.evaluate, tokens=40), steps=1)
    result = train(config, run)
    assert result["evaluation"]["tokens"] > rows(run)[-1]["eval/tokens"]
    assert train(config, run) == result
    assert f"<dd>{result['evaluation']['nats_per_token']:.4g}</dd>" in (run / "report.html").read_text()


@pytest.mark.core
def test_flipped_bits_are_found_and_the_run_goes_on_from_before(small, run, capsys, uninterrupted):
    flip_bits(run, 6)
    train(small, run)
    assert "skipped checkpoint 6 cannot be used: " in capsys.readouterr().out
    assert losses(run) == losses(uninterrupted[0].run_dir)
    assert state_digests(run, 10) == state_digests(uninterrupted[0].run_dir, 10)


def test_where_every_checkpoint_is_damaged_each_is_named(small, run):
    flip_bits(run, 3)
    shutil.rmtree(run / "checkpoints" / "6" / "opt_state")
    before = contents(run)
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be used \(6: .*; 3: .*\)"):
        train(small, run)
    assert contents(run) == before


@pytest.mark.parametrize(
    ("file", "old", "new", "sentence"),
    [
        ("config.json", "{", "", "config.json is not valid JSON"),
        ("config.json", '"seed"', '"sead"', "sead is not a field of this version; the nearest is seed"),
        ("tokenizer/jumok_tokenizer.json", '"bytes"', '"bites"', "tokenizer"),
        ("tokenizer/jumok_tokenizer.json", "{", "", "tokenizer"),
        ("checkpoints/6/manifest/metadata", '"format": 1', '"format": 2', "was written by a newer jumok"),
    ],
)
def test_a_damaged_or_newer_run_is_refused(small, run, file, old, new, sentence):
    text = (run / file).read_text()
    assert old in text
    (run / file).write_text(text.replace(old, new, 1))
    before = contents(run)
    with pytest.raises(ValueError, match=sentence):
        train(small, run)
    assert contents(run) == before


@pytest.mark.core
@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("seed", 1, "seed was 0 and is now 1"),
        ("steps", 20, "steps was 10 and is now 20"),
        ("optimizer.learning_rate", 0.02, "optimizer.learning_rate was 0.01 and is now 0.02"),
        ("model.num_layers", 3, "model.num_layers was 2 and is now 3"),
    ],
)
def test_another_configuration_is_refused(small, run, field, value, sentence):
    before = contents(run)
    with pytest.raises(ValueError, match=f"{run} holds a run of another configuration .*{sentence}"):
        train(with_value(small, field, value), run)
    assert contents(run) == before


def test_how_it_is_computed_may_change(small, run, uninterrupted):
    train(small, run, stop_after=1, micro_batches=1, batch_size=8, log=LogConfig(every=5, tensorboard=True))
    last = rows(run)[-1]
    assert (last["step"], last["tokens"]) == (7, (6 * 16 + 8) * 32)
    with Checkpoints(run / "checkpoints") as checkpoints:
        assert (checkpoints.record(7)["examples_seen"], checkpoints.record(7)["tokens"]) == (104, last["tokens"])
    train(small, run, stop_after=1)
    assert rows(run)[-1]["tokens"] == (7 * 16 + 8) * 32


def test_changed_text_is_refused_unless_allowed(small, run, tmp_path):
    text = Path(shutil.copy(small.data.path, tmp_path / "text.jsonl"))
    config = with_value(small, "data.path", str(text))
    directory = RunDirectory(run)
    directory.write_config(directory.read_config() | {"data": to_json(config.data)})
    text.write_text(text.read_text().replace("License", "Lizenz"))
    before = contents(run)
    with pytest.raises(
        ValueError, match=r"the data of .* learned from so far \(digest \w+, now \w+\); .*allow-changed"
    ):
        train(config, run)
    assert contents(run) == before
    assert train(with_value(config, "data.allow_changed", True), run, stop_after=1)["step"] == 7
    assert train(config, run, stop_after=1)["step"] == 8, "from then on it is the run's text"


@pytest.mark.parametrize("kind", ["run", "folder"])
def test_starts_from_a_run_or_a_hugging_face_folder(small, uninterrupted, tmp_path, kind):
    source = tmp_path / "source"
    if kind == "run":
        shutil.copytree(uninterrupted[0].run_dir, source)
    else:
        export_main(ExportArguments(uninterrupted[0].run_dir, str(source)), Console())
    weights = {name: np.asarray(array) for name, array in load_run(uninterrupted[0].run_dir).params.items()}
    config = dataclasses.replace(
        with_value(small, "model.num_layers", 1),  # the source's architecture counts
        optimizer=OptimizerConfig(learning_rate=0.0),  # so that a step leaves what it began with
        init_from=str(source),
        mesh=MIXED_MESH,
    )

    def is_source(run: Path) -> bool:
        params = load_run(str(run)).params
        return weights.keys() == params.keys() and all(np.array_equal(weights[n], params[n]) for n in weights)

    run = tmp_path / "run"
    train(config, run, stop_after=1)
    assert is_source(run)
    assert losses(run)[1] < 4, "it goes on from what was learned"

    shutil.rmtree(run / "checkpoints")  # as if it had died before its first checkpoint
    train(config, run, stop_after=1)
    assert is_source(run)

    shutil.rmtree(source)
    assert train(config, run, stop_after=1)["step"] == 2
    assert is_source(run)


def test_it_learns(tiny_llama, small, licence, tmp_path, capsys):
    model = dataclasses.replace(tiny_llama, vocab_size=257, max_length=24)  # rotary positions do not end there
    result = train(
        small,
        tmp_path,
        data=DataConfig(path=str(licence), max_length=32),
        model=model,
        steps=80,
        micro_batches=1,
        evaluate=EvaluateConfig(every=40),
        log=LogConfig(every=10, tensorboard=False),
        checkpoint=CheckpointConfig(every=30),
    )
    measured = rows(tmp_path)
    assert [row["step"] for row in measured] == [1, *range(10, 81, 10)]
    assert measured[-1]["learning/loss"] < measured[0]["learning/loss"] - 2
    held_out = [row["eval/nats_per_token"] for row in measured if "eval/nats_per_token" in row]
    assert len(held_out) == 2
    assert held_out[1] < held_out[0] - 0.1
    assert result["evaluation"]["nats_per_token"] == held_out[1]
    unigram = float(capsys.readouterr().out.split("a unigram model of the same tokens: ")[1].split()[0])
    assert result["evaluation"]["bits_per_byte"] < unigram - 0.2
    assert saved_steps(tmp_path) == [30, 60, 80]
    assert from_json(RunConfig, RunDirectory(tmp_path).read_config()).steps == 80


def test_what_diverges_ends_with_the_step(small, tmp_path):
    with pytest.raises(Diverged, match="the last 3 steps up to 4 had gradients that were not finite"):
        train(small, tmp_path, optimizer=OptimizerConfig(learning_rate=1e30, warmup_steps=0), nonfinite_limit=3)
    assert [row["learning/nonfinite_in_row"] for row in rows(tmp_path)] == [0, 1, 2, 3]


@pytest.mark.core
@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("batch_size", 20, "batch_size=20 must be a multiple of"),
        ("mesh.data", 3, "takes 3 devices, and 8 are here"),
        ("mesh.tensor", 8, "heads=4 must be a multiple of 8"),
        ("steps", 0, "steps=0 must be at least 1"),
        ("model.vocab_size", 256, "more than vocab_size=256; pass --model.vocab-size 257"),
        ("data.max_length", 64, "data.max_length=64 is longer than the model's max_length=32"),
        ("data.path", "nowhere.txt", "nowhere.txt.* does not exist"),
        ("data.tokenizer", "nowhere", "nowhere"),
        ("init_from", "nowhere", "there is no run directory nowhere"),
        ("freeze", ("head.*",), "matches no parameter"),
        ("sample.prompt", "long " * 7, "the prompt has 36 tokens, more than the model's max_length=32"),
        ("sample.temperature", -1.0, "temperature=-1.0 must be at least 0"),
    ],
)
def test_what_is_refused_leaves_no_trace(small, tmp_path, field, value, sentence):
    sampling = dataclasses.replace(small, sample=SampleConfig())
    with pytest.raises(ValueError, match=sentence):
        train(with_value(sampling, field, value), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b"", "no text|too small"), (b"\x00\x01" * 99, "not text"), (b"\xff" * 99, "not UTF-8")],
)
def test_text_that_is_none_is_refused_and_leaves_no_trace(small, tmp_path, content, sentence):
    text = tmp_path / "text.txt"
    text.write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        train(with_value(small, "data.path", str(text)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_data_that_cannot_be_read_any_more_end_the_run(small, tmp_path, monkeypatch, uninterrupted):
    take, batches = ConcatenatedRows.take, itertools.count()

    def take_or_refuse(self, indices):
        if len(indices) > 1 and next(batches) == 6:  # the step is compiled for a single row
            raise ValueError("the disk is gone")
        return take(self, indices)

    with monkeypatch.context() as patch:
        patch.setattr(ConcatenatedRows, "take", take_or_refuse)
        with pytest.raises(RuntimeError, match=r"^the data after 96 examples cannot be read: the disk is gone$"):
            train(small, tmp_path, checkpoint=CheckpointConfig(every=3))
    assert saved_steps(tmp_path) == [3, 6]
    train(small, tmp_path)
    assert state_digests(tmp_path, 10) == state_digests(uninterrupted[0].run_dir, 10)
    assert losses(tmp_path) == losses(uninterrupted[0].run_dir)


def test_a_signal_breaks_an_evaluation_off(small, tmp_path, monkeypatch):
    score = PerplexityMeter.score

    def ask_and_score(self, *arguments, between, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return score(self, *arguments, between=between, **options)

    monkeypatch.setattr(PerplexityMeter, "score", ask_and_score)
    with pytest.raises(Stopped):
        train(small, tmp_path, steps=3, evaluate=EvaluateConfig(every=2))
    assert saved_steps(tmp_path) == [2]
    assert "eval/nats_per_token" not in rows(tmp_path)[-1]


def test_evaluations_that_choose_the_best_score_the_same_text(small, tmp_path):
    every = {"checkpoint": CheckpointConfig(every=2, keep_last=9), "evaluate": EvaluateConfig(every=2, tokens=50)}
    result = train(small, tmp_path, steps=5, **every)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert [checkpoints.record(step)["figures"]["tokens"] for step in checkpoints.steps()] == [50, 50, 50]
    assert result["evaluation"]["tokens"] > 50, "at the end, all of the held-out text counts"


def test_a_sample_is_written_on_a_context_mesh(small, tmp_path, capsys):
    train(small, tmp_path, steps=1, mesh=MeshConfig(data=4, context=2), sample=SampleConfig(tokens=4))
    assert "what it writes" in capsys.readouterr().out


def test_a_profile_that_a_restart_cuts_in_two(small, tmp_path):
    profile = ProfileConfig(start=2, steps=3)
    train(small, tmp_path, steps=6, stop_after=3, profile=profile)
    train(small, tmp_path, steps=6, profile=profile)
    assert list((tmp_path / "tensorboard").rglob("*.xplane.pb"))


def test_a_profile_holds_whole_steps(tmp_path, monkeypatch):
    happened = []

    class Behind:
        """The state before a step, which the devices have not computed yet."""

        def __init__(self, step: int):
            self.step = step

        def block_until_ready(self) -> None:
            happened.append(f"step {self.step - 1} has ended")

    monkeypatch.setattr("jax.profiler.start_trace", lambda folder: happened.append("begins"))
    monkeypatch.setattr("jax.profiler.stop_trace", lambda: happened.append("ends"))
    with Profile(ProfileConfig(start=3, steps=2), RunDirectory(tmp_path)) as profile:
        for step in range(1, 8):
            profile.of(step, Behind(step))
    assert happened == ["step 2 has ended", "begins", "step 4 has ended", "ends"]


def test_held_out_text_that_changed_is_not_scored_as_if_it_had_not(small, licence, tmp_path):
    text = shutil.copy(licence, tmp_path / "text.jsonl")
    train(small, tmp_path / "run", steps=1, data=DataConfig(path=str(text), max_length=32))
    assert evaluate.main(evaluate.Arguments(str(tmp_path / "run")), Console())["tokens"] > 0
    text.write_text(text.read_text() * 2)
    with pytest.raises(
        ValueError, match=r"the held-out data of .* are not what they were .*; name the data with --data.path"
    ):
        evaluate.main(evaluate.Arguments(str(tmp_path / "run")), Console())
