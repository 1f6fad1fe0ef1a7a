"""The `evaluate` command beyond perplexity: translations, classes of texts and of images, and several runs at once."""

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

import train.evaluate
from data.dataset import DataConfig
from data.images import ImagesConfig
from data.tokenizers.plain import ByteTokenizer
from model.encoder import EncoderConfig
from model.encoder_decoder import EncoderDecoderConfig
from model.parameters import merge
from model.recurrent import RecurrentConfig
from model.vision import VisionConfig
from train.console import Console
from train.evaluate import Arguments, HeldOutConfig
from train.load import load_run
from train.picture import Point, line_chart
from train.translate import Translation, Translator
from train.translation_metrics import MISSING, bleu_by_length

evaluate = train.evaluate.main
PAIRS = EncoderDecoderConfig(
    num_layers=1,
    model_dim=16,
    num_heads=4,
    vocab_size=257,
    max_length=64,
    positions="sinusoidal",
    init="normal",
    init_std=0.4,
)
SOURCES = [f"Satz {number} mit {'viel ' * (number % 7)}Wort." for number in range(30)]
TARGETS = [f"Sentence {number} with {'many ' * (number % 7)}words." for number in range(30)]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> HeldOutConfig:
    """Parallel files, of whose pairs the last has no target."""
    folder = tmp_path_factory.mktemp("pairs")
    (folder / "a.de").write_text("\n".join([*SOURCES, "leer"]) + "\n")
    (folder / "a.en").write_text("\n".join([*TARGETS, ""]) + "\n")
    return HeldOutConfig(source_path=str(folder / "a.de"), target_path=str(folder / "a.en"))


DATA = DataConfig(max_length=64, prompt="{source}", response="{target}")


@pytest.fixture(scope="module")
def run_dir(write_run) -> str:
    return write_run(PAIRS, ByteTokenizer(), data=DATA)


@pytest.fixture
def dictionary(monkeypatch):
    """What `Translator` makes of each source, in place of searching: every third one is translated wrongly."""
    known = dict(zip(SOURCES, TARGETS, strict=True))
    asked = []

    def translate(self: Translator, sources: list[np.ndarray], *_: Any, **options: Any) -> list[Translation]:
        assert all(source[-1] == self.tokenizer.end_id for source in sources)
        texts = [self.tokenizer.decode(source) for source in sources]
        asked.append(texts)
        return [
            Translation(known[text] if number % 3 else f"Words many with {number}.", [])
            for number, text in enumerate(texts)
        ]

    monkeypatch.setattr(Translator, "translate", translate)
    return asked


@pytest.fixture
def sacrebleu() -> Any:
    return pytest.importorskip("sacrebleu")


def test_translations_are_scored_as_sacrebleu_scores_them(run_dir, files, dictionary, sacrebleu, capsys):
    receipt = evaluate(Arguments(run_dir, files), Console())
    assert dictionary == [SOURCES]
    outputs = [TARGETS[number] if number % 3 else f"Words many with {number}." for number in range(30)]
    bleu = sacrebleu.corpus_bleu(outputs, [TARGETS])
    assert 20 < bleu.score < 95
    assert receipt["bleu"] == pytest.approx(bleu.score)
    assert receipt["chrf"] == pytest.approx(sacrebleu.corpus_chrf(outputs, [TARGETS]).score)
    assert receipt["sentences"] == 30
    assert receipt["signatures"]["bleu"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert receipt["signatures"]["search"].startswith("4 beams, length penalty 0.6 (gnmt)")
    assert receipt["perplexity"] == pytest.approx(np.exp(receipt["nats_per_token"]))
    assert receipt["tokens"] == sum(len(target.encode()) for target in TARGETS)
    assert set(receipt["digests"]) == {"text", "references", "tokenizer", "weights"}
    assert sum(group["sentences"] for group in receipt["by_length"]) == 30
    json.dumps(receipt)
    shown = capsys.readouterr().out
    assert all(text in shown for text in (SOURCES[0], TARGETS[2], outputs[0], "BLEU by source length", "tok:13a"))

    prefixed = replace(files, prompt="{source} =>")
    with pytest.raises(KeyError, match=r"Satz 1 mit viel Wort\. =>"):
        evaluate(Arguments(run_dir, prefixed), Console())
    first = evaluate(Arguments(run_dir, files, sentences=7), Console())
    assert first["sentences"] == 7
    assert first["bleu"] == pytest.approx(sacrebleu.corpus_bleu(outputs[:7], [TARGETS[:7]]).score)
    assert first["nats_per_token"] == receipt["nats_per_token"]


@pytest.mark.core
def test_without_sacrebleu_there_is_perplexity_and_the_way_to_more(run_dir, files, monkeypatch, capsys):
    monkeypatch.setattr(train.evaluate, "is_installed", lambda: False)
    receipt = evaluate(Arguments(run_dir, files), Console())
    assert "perplexity" in receipt
    assert "bleu" not in receipt
    assert MISSING in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"BLEU and chrF need sacrebleu; install it with pip install"):
        evaluate(Arguments(run_dir, files, picture="x.svg"), Console())


def test_several_runs_in_one_picture(run_dir, write_run, files, dictionary, sacrebleu, tmp_path, capsys):
    recurrent = RecurrentConfig(num_layers=1, model_dim=16, vocab_size=257, max_length=64)
    other = write_run(recurrent, ByteTokenizer(), data=DATA)
    path = tmp_path / "bleu.svg"
    arguments = Arguments(run_dir, files, against=(other,), picture=str(path))
    receipt = evaluate(arguments, Console())
    (against,) = receipt["against"]
    assert against["run"] == other
    assert against["bleu"] == receipt["bleu"]
    assert against["nats_per_token"] != receipt["nats_per_token"]
    assert str(path) in capsys.readouterr().out
    texts = [element.text for element in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")]
    assert {run_dir, other} <= set(texts)
    lines = list(ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}polyline"))
    assert len(lines) == 2


def test_runs_that_were_scored_on_other_pairs_are_not_compared(run_dir, files, monkeypatch):
    digests = iter("ab")
    monkeypatch.setattr(train.evaluate, "is_installed", lambda: True)
    monkeypatch.setattr(train.evaluate, "score_translations", lambda *_, **options: ({"bleu": 1.0}, next(digests)))
    with pytest.raises(
        ValueError, match=r"were scored on different data; name the same for both with --data.source-path"
    ):
        evaluate(Arguments(run_dir, files, against=(run_dir,)), Console())


@pytest.mark.core
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"sentences": 0}, "sentences=0 must be at least 1"),
        (
            {"data": HeldOutConfig(path="x", max_length=65)},
            "rows of 65 tokens are longer than the model's max_length=64",
        ),
        ({"window": 8}, "--window is for text in windows, and .* is scored by rows; leave it out"),
        ({"picture": "nowhere/x.svg"}, "there is no folder for the picture nowhere/x.svg; make it, or name another"),
        ({"data": HeldOutConfig()}, "was not trained here and has no held-out data; name some with --data.path"),
        ({"data": HeldOutConfig(label_column="a")}, "--data.label-column says how data are read, and none are named"),
    ],
)
def test_what_cannot_be_scored_is_refused(run_dir, files, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        evaluate(Arguments(**({"run": run_dir, "data": files} | options)), Console())


def test_a_picture_is_of_translations(uninterrupted):
    with pytest.raises(ValueError, match=r"--picture is about translations, and .* translates nothing; leave it"):
        evaluate(Arguments(uninterrupted[0].run_dir, picture="x.svg"), Console())
    with pytest.raises(ValueError, match=r"--num-beams is about translations"):
        evaluate(Arguments(uninterrupted[0].run_dir, num_beams=2), Console())


@pytest.mark.core
def test_texts_are_classified(write_run, tmp_path):
    classes = ("ham", "spam")
    model = EncoderConfig(
        num_layers=1,
        model_dim=16,
        num_heads=4,
        vocab_size=257,
        max_length=32,
        head="sequence_classification",
        init_std=0.4,
        classes=classes,
    )
    texts = [("ham", "see you"), ("spam", "win a prize now"), ("spam", "free"), ("ham", "ok")]
    (tmp_path / "a.tsv").write_text("kind\ttext\n" + "".join(f"{label}\t{text}\n" for label, text in texts))
    run_dir = write_run(model, ByteTokenizer(), data=DataConfig(max_length=32, label_column="kind"))
    receipt = evaluate(Arguments(run_dir, HeldOutConfig(str(tmp_path / "a.tsv"))), Console())
    run = load_run(run_dir)
    tokens = np.array([[256, *text.encode().ljust(20, b"\0")] for _, text in texts], np.int32)
    for row, (_, text) in zip(tokens, texts, strict=True):
        row[1 + len(text)] = 256
    classify = jax.jit(lambda tokens, segments: merge(run.plan.skeleton, run.params)(tokens, segments_BL=segments))
    chosen = classify(tokens, (tokens > 0).astype(np.int32))["class_logits"].argmax(-1)
    right = [classes[number] == label for number, (label, _) in zip(chosen, texts, strict=True)]
    assert receipt["accuracy"] == sum(right) / 4
    assert receipt["examples"] == 4
    assert set(receipt["digests"]) == {"text", "tokenizer", "weights"}


@pytest.mark.core
def test_images_are_classified(write_run, tmp_path):
    model = VisionConfig(
        num_layers=1,
        model_dim=16,
        num_heads=4,
        image_size=8,
        patch_size=4,
        channels=1,
        num_classes=2,
        classes=("0", "1"),
    )
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.array([0, 1, 1, 0, 1]))
    run_dir = write_run(model, ByteTokenizer(), data=ImagesConfig(path="elsewhere.npz"))
    receipt = evaluate(Arguments(run_dir, HeldOutConfig(str(tmp_path / "a.npz"))), Console())
    assert receipt["examples"] == 5
    assert 0 <= receipt["accuracy"] <= 1
    assert set(receipt["digests"]) == {"images", "weights"}


# BLEU by length, and the picture


def test_sentences_are_told_apart_by_their_sources_lengths(sacrebleu):
    lengths = [3] * 5 + [7] * 25 + [11] * 20 + [13] * 4 + [40] * 3
    sources = ["x " * length for length in lengths]
    references = [f"the reference of sentence number {number} is this" for number in range(len(lengths))]
    outputs = [
        text if length < 10 else text.replace("the", "a") for text, length in zip(references, lengths, strict=True)
    ]
    groups = bleu_by_length(sources, outputs, references)
    assert [(group["shortest"], group["longest"], group["sentences"]) for group in groups] == [(3, 7, 30), (11, 40, 27)]
    assert groups[0]["length"] == pytest.approx((5 * 3 + 25 * 7) / 30)
    assert groups[0]["bleu"] == pytest.approx(100)
    assert groups[1]["bleu"] == pytest.approx(sacrebleu.corpus_bleu(outputs[30:], [references[30:]]).score)
    assert [group["sentences"] for group in bleu_by_length(sources[:3], outputs[:3], references[:3])] == [3]


@pytest.mark.core
def test_a_chart_is_svg_with_points_where_they_belong():
    lines = {"a <b>": [Point(0, 0, "x"), Point(10, 50, "3 & 4")], "c": [Point(5, 25, "")]}
    root = ElementTree.fromstring(line_chart("T", "across", "up", lines))
    places = [(float(c.get("cx", "")), float(c.get("cy", ""))) for c in root.iter("{http://www.w3.org/2000/svg}circle")]
    (left, base), (right, top), middle = places
    assert left < right
    assert top < base, "more stands higher"
    assert middle == pytest.approx(((left + right) / 2, (top + base) / 2))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a <b>", "c", "T", "across", "up", "0", "10", "50"} <= set(texts)
    notes = [element.text for element in root.iter("{http://www.w3.org/2000/svg}title")]
    assert "3 & 4" in notes
