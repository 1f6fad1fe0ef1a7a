"""`jumok data show` shows what a run is taught, token by token, with and without colours."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from rich.color import Color

from data.dataset import DataConfig
from data.tokenizers.plain import ByteTokenizer
from launch.cli import COMMANDS
from launch.show_command import Piece, Show, main, pieces, readable
from model.decoder import DecoderConfig
from model.encoder import EncoderConfig
from model.encoder_decoder import EncoderDecoderConfig
from train.command import dispatch
from train.config import SampleConfig
from train.console import Console
from train.objectives.classify import ClassifyConfig
from train.objectives.masked_lm import MaskedLMConfig
from train.objectives.seq2seq import Seq2SeqConfig
from train.picture import COLOURS

pytestmark = pytest.mark.core
END = 256
MODEL = DecoderConfig(num_layers=1, model_dim=32, num_heads=4, vocab_size=257, max_length=64)


@pytest.fixture
def show(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """A function: what the command returns and what it writes, for documents of these texts."""
    monkeypatch.chdir(tmp_path)
    for name in ("FORCE_COLOR", "NO_COLOR", "COLUMNS", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)

    def show(*texts: str, length: int = 64, packing: str = "isolated", **options):
        train, valid = tmp_path / "train.jsonl", tmp_path / "valid.jsonl"
        train.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        valid.write_text('{"text": "held out"}\n')
        data = DataConfig(path=str(train), valid_path=str(valid), max_length=length, packing=packing)  # pyright: ignore[reportArgumentType]
        shown = main(Show(model=MODEL, data=data, **options), Console())
        json.dumps(shown)
        return shown, capsys.readouterr().out

    return show


def test_a_row_as_text(show):
    (row,), out = show("Ann\nis in.\n", "언어", length=24)
    assert out.splitlines()[1:] == [
        "",
        "number 0: epoch 0, row 0 of 1; segments: 2, learned tokens: 19, padding: 5 of 24 places",
        "1 | [[⟨start⟩]]Ann↵",
        "    is in.↵",
        "    ⟨end⟩",
        "2 | [[⟨start⟩]]언어⟨end⟩",
    ]
    assert "[[this]] is given and not learned" in out.splitlines()[0]
    assert "\x1b" not in out
    assert {name: row[name] for name in ("number", "epoch", "row", "padding")} == {
        "number": 0,
        "epoch": 0,
        "row": 0,
        "padding": 5,
    }
    first, second = row["segments"]
    assert (first["text"], first["learned"]) == ("Ann\nis in.\n", "Ann\nis in.\n")
    assert first["tokens"] == [END, *b"Ann\nis in.\n"]
    assert first["targets"] == [*b"Ann\nis in.\n", END]
    assert first["scored"] == [True] * 11 + [True]
    assert second["text"] == "언어"


def test_the_rows_of_a_position(show):
    texts = [f"text {number:04d}" for number in range(20)]
    rows, _ = show(*texts, length=10, at=15, rows=30)
    assert [row["number"] for row in rows] == list(range(15, 45))
    assert [row["epoch"] for row in rows] == [0] * 5 + [1] * 20 + [2] * 5
    assert sorted(row["row"] for row in rows[5:25]) == list(range(20))
    assert all(row["segments"][0]["learned"] == texts[row["row"]] for row in rows)
    assert show(*texts, length=10, at=17)[0] == rows[2:3]


def test_pairs_of_a_mixture(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("train.command.prepare", lambda: None)
    for name, answers in (("sums", ("4", "6")), ("words", ("yes", "no", "maybe"))):
        pairs = [{"q": f"{name} {number}?", "a": answer} for number, answer in enumerate(answers)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    words = ["data", "show", "smoke", "--at", "1", "--rows", "3", "--data.prompt", "{q} ", "--data.response", "{a}"]
    words += ["--data.mixture", *(f"{name}=1:{tmp_path}/{name}.jsonl" for name in ("sums", "words"))]
    words += ["--data.valid-path", f"{tmp_path}/sums.jsonl", "--data.max-length", "32", "--run-dir", f"{tmp_path}/run"]
    assert dispatch(words, COMMANDS) == 0
    out = capsys.readouterr().out
    assert dispatch([*words, "--json"], COMMANDS) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [row["source"] for row in shown] == ["words", "sums", "words"]
    assert [row["epoch"] for row in shown] == [0, 1, 0]  # the words take two rows
    assert [segment["learned"] for segment in shown[1]["segments"]] == ["4", "6"]
    assert [segment["text"] for segment in shown[1]["segments"]] == ["sums 0? 4", "sums 1? 6"]
    assert "number 2: sums, epoch 1, row 0 of 1; segments: 2, learned tokens: 4, padding: 12 of 32 places" in out
    assert "\n1 | [[⟨start⟩sums 0? ]]4⟨end⟩\n2 | [[⟨start⟩sums 1? ]]6⟨end⟩\n" in out
    assert not (tmp_path / "run").exists()


def test_contiguous_rows_are_one_segment(show):
    (row,), out = show("one", "two", packing="contiguous", length=8)
    assert len(row["segments"]) == 1
    # The start token of the second document is the end token that was the target before, in this tokenizer.
    assert out.splitlines()[3:] == ["1 | [[⟨start⟩]]one⟨end⟩two⟨end⟩"]


def test_colours_on_a_terminal(show, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("TERM", "xterm-256color")
    _, out = show("one", "two", length=8)
    assert "underlined text is given" in out
    assert "[[" not in out
    assert "\x1b[4m⟨start⟩\x1b[0m" in out
    red, green, blue = Color.parse(COLOURS[1]).get_truecolor()
    assert f"\x1b[38;2;{red};{green};{blue}mtwo⟨end⟩\x1b[0m" in out
    monkeypatch.setenv("NO_COLOR", "1")
    _, out = show("one", "two", length=8)
    assert "\x1b[4m⟨start⟩\x1b[0m" in out  # what colours say is said without them
    assert "38;2" not in out


@pytest.mark.parametrize("colour", COLOURS)
def test_colours_can_be_read_on_black_and_on_white(colour):
    """At least 4:1 by the contrast ratio of the Web Content Accessibility Guidelines."""
    channels = np.array(Color.parse(colour).get_truecolor()) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    assert min(1.05 / (luminance + 0.05), (luminance + 0.05) / 0.05) > 4


def segment(tokens, targets, scored):
    return {"tokens": np.array(tokens), "targets": np.array(targets), "scored": np.array(scored)}


def test_what_is_given_and_what_is_learned():
    prompt_and_answer = segment([9, 1, 2, 3, 4], [1, 2, 3, 4, 8], [False, False, True, True, True])
    assert pieces(prompt_and_answer) == [Piece([9, 1, 2], False), Piece([3, 4, 8], True)]
    cut_and_begun_within = segment([5, 6, 9, 7], [6, 8, 7, 8], [True] * 4)
    assert pieces(cut_and_begun_within) == [
        Piece([5], False),
        Piece([6, 8], True),
        Piece([9], False),
        Piece([7, 8], True),
    ]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\r\n", "a⇥\tb\\r↵\n"),
        ("\x1b[31m\x00\x9b", "\\x1b[31m\\x00\\x9b"),  # nothing that could steer a terminal
        ("\u00a0\u200b\u2028", "\\xa0\\u200b\\u2028"),
        ("é 언 🎉 [bold]", "é 언 🎉 [bold]"),
    ],
)
def test_everything_can_be_seen(text, shown):
    assert readable(Piece([*text.encode()], True), ByteTokenizer()) == shown


def test_half_characters_and_special_tokens():
    assert (
        readable(Piece([*"é".encode()[1:], END, *b"x", *"é".encode()[:1]], True), ByteTokenizer()) == "\\xa9⟨end⟩x\\xc3"
    )
    assert readable(Piece([END], False), ByteTokenizer()) == "⟨start⟩"


@pytest.mark.parametrize(
    ("options", "sentence"), [({"at": -1}, "at=-1 must be at least 0"), ({"rows": 0}, "rows=0 must")]
)
def test_refusals(show, options, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        show("one", **options)


def test_a_masked_row_shows_what_is_to_be_found(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = "".join(f"line {number} of some text that is long enough\n" for number in range(200))
    (tmp_path / "text.txt").write_text(text)
    config = Show(
        model=EncoderConfig(num_layers=1, model_dim=32, num_heads=4, vocab_size=320, max_length=64),
        data=DataConfig("text.txt", "text.txt", tokenizer="sentencepiece", max_length=64),
        objective=MaskedLMConfig(),
        sample=SampleConfig(tokens=0),
        at=3,
    )
    (row,) = main(config, Console())
    (segment,) = row["segments"]
    out = capsys.readouterr().out
    assert sum(segment["scored"]) in (9, 10)  # 15 % of 64, start tokens aside
    whole = re.sub(r"\[\[|\]\]|⟨start⟩|↵|^ *(1 \|)? ", "", out.split("\n", 3)[3], flags=re.MULTILINE)
    assert re.sub(r"\s", "", whole) in re.sub(r"\s", "", text)
    assert segment["learned"] not in segment["text"]


def test_a_pair_shows_its_source_and_what_is_made_of_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, lines in (("source", ("one", "two")), ("target", ("eins", "zwei"))):
        (tmp_path / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
    config = Show(
        model=EncoderDecoderConfig(num_layers=1, model_dim=32, num_heads=4, vocab_size=257, max_length=16),
        data=DataConfig(
            "", None, (), *["source.txt", "target.txt"] * 2, prompt="{source}", response="{target}", max_length=16
        ),
        objective=Seq2SeqConfig(),
        sample=SampleConfig(tokens=0),
    )
    (row,) = main(config, Console())
    assert sorted((segment["text"], segment["learned"]) for segment in row["segments"]) == [
        ("one", "eins"),
        ("two", "zwei"),
    ]
    assert "[[one⟨start⟩]]eins⟨end⟩" in capsys.readouterr().out  # which in this tokenizer is the end token, too


def test_a_text_shows_its_class(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mail.csv").write_text("label,text\nham,hello\nspam,buy\n")
    config = Show(
        model=EncoderConfig(
            num_layers=1, model_dim=32, num_heads=4, vocab_size=257, max_length=8, head="sequence_classification"
        ),
        data=DataConfig("mail.csv", "mail.csv", label_column="label", max_length=8),
        objective=ClassifyConfig(),
        sample=SampleConfig(tokens=0),
        rows=2,
    )
    main(config, Console())
    out = capsys.readouterr().out
    for text, label in (("hello", "ham"), ("buy", "spam")):
        assert re.search(rf"places, class: {label}\n1 \| \[\[⟨start⟩{text}⟨start⟩\]\]", out)
