"""What a user may get wrong with each kind of model is refused: one sentence, exit code 2, and nothing written."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.dataset import DataConfig
from data.images import ImagesConfig
from data.tokenizers.plain import ByteTokenizer
from launch.cli import COMMANDS
from model.decoder import DecoderConfig
from model.encoder import EncoderConfig
from model.encoder_decoder import EncoderDecoderConfig
from model.image_decoder import ImageDecoderConfig
from model.recurrent import RecurrentConfig
from model.vision import VisionConfig
from train.command import dispatch
from train.program import Program
from train.run_directory import RunDirectory
from train.train import _next_commands

pytestmark = pytest.mark.core

SIZES: dict[str, Any] = {"num_layers": 1, "model_dim": 16, "num_heads": 4}
DECODER = DecoderConfig(**SIZES, vocab_size=257, max_length=32)
ENCODER = EncoderConfig(**SIZES, vocab_size=258, max_length=128)
CLASSIFIER = replace(ENCODER, head="sequence_classification", classes=("ham", "spam"))
PAIRS = EncoderDecoderConfig(**SIZES, vocab_size=257, max_length=64, positions="sinusoidal")
VISION = VisionConfig(**SIZES, image_size=8, patch_size=4, channels=1, num_classes=2)
MASKING = ByteTokenizer(("mask",))
LABELLED = DataConfig(max_length=32, label_column="kind")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Data by name, good ones and bad ones, and the folder of a tokenizer that has no mask."""
    folder = tmp_path_factory.mktemp("files")
    lines = [f"line {number} of some text" for number in range(30)]
    for name, of_file in (
        ("text.txt", lines),
        ("three.txt", lines[:3]),
        ("long.txt", ["x" * 70, *lines[1:]]),
        ("mail.tsv", ["kind\ttext", *(f"{'ham' if n % 2 else 'spam'}\t{line}" for n, line in enumerate(lines))]),
        ("three.tsv", ["kind\ttext", *(f"{n % 3}\t{line}" for n, line in enumerate(lines))]),
        ("other.tsv", ["kind\ttext", "ham\thello", "phish\thello there"]),
        ("table.csv", ["text", *lines]),
    ):
        (folder / name).write_text("".join(f"{line}\n" for line in of_file))
    for name, shape, classes in (("small", (8, 8), 3), ("colour", (28, 28, 3), 2), ("digits", (28, 28), 2)):
        np.savez(folder / name, images=np.zeros((6, *shape), np.uint8), labels=np.arange(6) % classes)
    (folder / "images-idx3-ubyte").write_text("no image")
    for kind in ("cat", "dog"):
        (folder / "pictures" / kind).mkdir(parents=True)
        (folder / "pictures" / kind / "1.png").write_text("no picture")
    ByteTokenizer().save(folder / "tokenizer")
    return {file.name: str(file) for file in folder.iterdir()}


@pytest.fixture(scope="module")
def runs(write_run) -> dict[str, str]:
    """A run of each kind of model, by name."""
    plain, images = DataConfig(max_length=32), ImagesConfig("images")
    reader = ImageDecoderConfig(vision=replace(VISION, head="none"), decoder=DECODER, classes=("no", "yes"))
    made = {
        "decoder": (DECODER, ByteTokenizer(), plain),
        "encoder": (ENCODER, MASKING, plain),
        "maskless": (replace(ENCODER, vocab_size=257), ByteTokenizer(), plain),
        "pooler": (replace(ENCODER, head="pooler"), MASKING, plain),
        "classifier": (CLASSIFIER, MASKING, LABELLED),
        "imported_classifier": (replace(CLASSIFIER, classes=()), MASKING, plain),
        "pairs": (PAIRS, ByteTokenizer(), replace(plain, prompt="{source}", response="{target}")),
        "recurrent": (RecurrentConfig(num_layers=1, model_dim=16, vocab_size=257, max_length=64), MASKING, plain),
        "vision": (VISION, MASKING, images),
        "reader": (reader, ByteTokenizer(), replace(images, tokenizer="bytes")),
    }
    return {name: write_run(model, tokenizer, data=data) for name, (model, tokenizer, data) in made.items()}


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, files, runs):
    """A function: the sentence that refuses a command line, in which names in angle brackets stand for paths."""
    monkeypatch.setattr("train.command.prepare", lambda: None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Program, "compile_step", lambda *_: pytest.fail("it would have trained"))
    places = {f"<{name}>": path for name, path in (files | runs).items()}

    def refusal(line: str) -> str:
        words = [places.get(word, word) for word in line.split()]
        capsys.readouterr()
        code = dispatch(words, COMMANDS)
        out, err = capsys.readouterr()
        assert (code, err.count("\n")) == (2, 1), (code, err)
        assert not list(tmp_path.iterdir()), "something was written"
        assert err.startswith("jumok: ")
        assert out.count("\n") <= 1, out
        assert not out or out.endswith("\n"), f"{out!r} was shown before the refusal"
        return err.removeprefix("jumok: ").strip()

    return refusal


TRANSLATE = "train transformer-tiny --data.tokenizer bytes"
CLASSIFY = "train classify --data.tokenizer bytes --data.label-column kind"


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        # Pairs.
        (TRANSLATE, "data.path is empty; pass --data.source-path FILE and --data.target-path FILE"),
        (f"{TRANSLATE} --data.source-path <text.txt>", "data.source_path and data.target_path go together: give both"),
        (
            f"{TRANSLATE} --data.source-path <text.txt> --data.target-path <three.txt>",
            "text.txt has 30 lines and .*three.txt has 3; line by line they must belong together",
        ),
        (
            f"{TRANSLATE} --data.source-path <long.txt> --data.target-path <text.txt> --data.too-long refuse",
            "1 of 27 pairs have more than data.max_length=64 source tokens, the longest 71; pass --data.max-length 71, "
            "or --data.too-long drop or cut",
        ),
        (
            f"{TRANSLATE} --data.path <text.txt>",
            "nothing in this text is given; pass --data.source-path and --data.target-",
        ),
        (
            "train t5_tiny --data.tokenizer bytes --data.source-path <text.txt> --data.target-path <text.txt>",
            "the objective span_corruption makes pairs of plain text, and these data are pairs; take a recipe that",
        ),
        # Labels.
        ("train classify", "data.path is empty; pass --data.path"),
        (
            f"{CLASSIFY} --data.path <table.csv>",
            "has no column 'kind'; the columns there are 'text'; pass --data.label-column NAME",
        ),
        (f"{CLASSIFY} --data.path <text.txt>", "is one document of text, and has no labels; give .csv, .tsv"),
        (f"{CLASSIFY} --data.path <small.npz>", "small.npz has a suffix that is not read"),
        (
            f"{CLASSIFY} --data.path <mail.tsv> --data.valid-path <other.tsv>",
            "other.tsv.* has the label 'phish', which is not among the model's classes: ham, spam; correct the label",
        ),
        (
            "train tiny --data.path <mail.tsv> --data.label-column kind",
            "the objective causal_lm has no use for classes; leave --data.label-column out",
        ),
        ("train bert_tiny --data.label-column kind", "the objective masked_lm has no use for classes"),
        # Images.
        ("train vit_mnist", "data.path is empty; pass --data.path with a file or folder of images"),
        ("train vit_mnist --data.path <images-idx3-ubyte>", "images-idx3-ubyte is no IDX file"),
        ("train vit_mnist --data.path <text.txt>", "text.txt is no IDX file, which begins with two zero bytes; give"),
        ("train vit_mnist --data.path <small.npz>", "holds images of 8 x 8 pixels, and the model reads 28 x 28; pass"),
        ("train vit_mnist --data.path <colour.npz>", "with channels=3, and the model reads 1; pass --model.channels 3"),
        ("train vit_mnist --data.path <digits.npz> --data.valid-path <colour.npz>", "images with channels=3, and the"),
        ("train vit_mnist --data.path <digits.npz> --data.tokenizer bytes", "leave --data.tokenizer out"),
        ("train caption_mnist --data.path <digits.npz> --data.tokenizer=", "writes names; pass --data.tokenizer byt"),
        # Tokenizers.
        ("train bert_tiny --data.tokenizer <tokenizer>", "tokenizer has no mask token"),
        ("train bart_tiny --data.tokenizer <tokenizer>", "tokenizer has no mask token"),
        ("train t5_tiny --data.tokenizer <tokenizer>", "tokenizer has no sentinel"),
        ("train albert-base --data.tokenizer <tokenizer>", "tokenizer has no (mask|separator) token"),
        # Where a run starts from.
        (
            "train classify --from <decoder> --data.path <mail.tsv>",
            "--from names a model of the kind Decoder, and the recipe trains one of the kind Encoder; take a recipe of",
        ),
        ("train bert_tiny --from <vision>", "of the kind Vision, and the recipe trains one of the kind Encoder; take"),
        ("train bert_tiny --from nowhere", "there is no run directory nowhere"),
        (
            f"{CLASSIFY} --from <classifier> --data.path <other.tsv>",
            "has the label 'phish', which is not among the model's classes: ham, spam; correct the label",
        ),
        ("train distilbert_tiny", "objective.teacher is empty; pass --objective.teacher RUN"),
        ("train distilbert_tiny --objective.teacher <decoder>", "of the kind Decoder, and teachers are encoders; na"),
        (
            "train distilbert_tiny --objective.teacher <encoder> --from <encoder>",
            "starts from its teacher; leave --from out",
        ),
        # Evaluation.
        (
            "evaluate <pooler> --data.path <text.txt>",
            "with the head pooler, which has nothing that is scored; train it with",
        ),
        ("evaluate <maskless> --data.path <text.txt>", "tokenizer has no mask token"),
        (
            "evaluate <imported_classifier> --data.path <mail.tsv>",
            "needs the class of each text; pass --data.label-col",
        ),
        ("evaluate <imported_classifier> --data.path <mail.tsv> --data.label-column kind", "model's classes: 0, 1;"),
        ("evaluate <classifier> --data.path <other.tsv>", "has the label 'phish', which is not among"),
        ("evaluate <classifier> --data.path <small.npz>", "has a suffix that is not read"),
        (
            "evaluate <pairs> --data.path <text.txt>",
            "an encoder-decoder learns from pairs, and nothing in this text is",
        ),
        ("evaluate <pairs> --data.source-path <text.txt> --data.target-path <three.txt>", "has 30 lines and .* has 3"),
        (
            "evaluate <pairs> --data.source-path <long.txt> --data.target-path <text.txt>",
            "1 of 30 pairs have more than",
        ),
        ("evaluate <vision> --data.path <digits.npz>", "of 28 x 28 pixels, and the model reads 8 x 8"),
        (
            "evaluate <vision> --data.path <small.npz>",
            "has the label '2', which is not among the model's classes: 0, 1",
        ),
        ("evaluate <vision> --data.source-path <text.txt>", "--data.source-path is not for images, which"),
        ("evaluate <vision> --data.path <small.npz> --data.label-column kind", "--data.label-column is not for images"),
        (
            "evaluate <decoder> --data.path <text.txt> --data.label-path <text.txt>",
            "--data.label-path is not for text, which",
        ),
        ("evaluate <decoder>", "was not trained here and has no held-out data; name some with --data.path"),
        # Writing.
        ("generate <encoder> --prompt hello", "has no mask, and an encoder reads text and continues none; write"),
        ("generate <classifier> --prompt [MASK]", "head is sequence_classification, which predicts no tokens"),
        ("generate <maskless> --prompt [MASK]", "tokenizer has no mask token"),
        ("generate <decoder> --prompt [MASK]", "has a mask, and a decoder continues text and fills none; name an"),
        ("generate <recurrent> --prompt hello --temperature 1", "a recurrent model only searches"),
        (
            "generate <vision> --prompt hello",
            "holds a model that reads images, and a prompt is text; name the run of a",
        ),
        (
            "generate <reader> --prompt hello",
            "holds a model that reads images, and a prompt is text; name the run of a",
        ),
        ("export <recurrent> out", "transformers know no model of this structure"),
        # Data, before a run.
        ("data show tiny --data.path <mail.tsv> --data.label-column kind", "has no use for classes"),
        ("data prepare classify", "data.path is empty; pass --data.path"),
        (
            "train tiny --data.tokenizer bytes --data.path <text.txt> --sample.prompt [MASK]",
            "has a mask, and a decoder continues text and fills none",
        ),
    ],
)
def test_mistakes(refusal, line: str, sentence: str):
    assert re.search(sentence, refusal(line))


def test_a_picture_that_is_none(refusal):
    pytest.importorskip("PIL")
    line = "train vit_mnist --data.path <pictures>"
    assert re.search(r"cat/1\.png is no picture that can be read \(.*\); remove or replace it", refusal(line))


def test_labelled_text_is_prepared(files, monkeypatch, tmp_path, capsys):
    """Its classes are found first, as in training."""
    monkeypatch.setattr("train.command.prepare", lambda: None)
    line = f"data prepare classify --data.tokenizer bytes --data.label-column kind --data.path {files['mail.tsv']}"
    assert dispatch([*line.split(), "--run-dir", str(tmp_path / "run")], COMMANDS) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "commands"),
    [
        (DECODER, ["evaluate", "generate", "export"]),
        (ENCODER, ["evaluate", "generate", "export"]),
        (replace(ENCODER, head="replaced_token", pooler_activation="gelu"), ["evaluate", "export"]),
        (RecurrentConfig(num_layers=1, model_dim=16, vocab_size=257, max_length=64), ["evaluate", "generate"]),
        (VISION, ["evaluate", "export"]),
    ],
)
def test_what_would_be_refused_is_not_proposed(model, commands):
    assert [command.split()[0] for command in _next_commands(RunDirectory("run"), model)] == commands
