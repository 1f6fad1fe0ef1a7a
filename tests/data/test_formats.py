"""Every format gives the documents that were written, whole or in ranges, and says in one sentence what is wrong."""

import csv
import gzip
import io
import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.reading import Part, Reading
from data.sources import Source, open_pairs, open_source, split_source

pytestmark = pytest.mark.core

BOM = b"\xef\xbb\xbf"


def documents(source: Source, refuse=None) -> list[tuple[str, str]]:
    """The given and the learned text of each document."""
    found, waiting = [], ["", ""]
    for block in source.blocks(refuse):
        waiting[not block.given] += block.text
        if block.last:
            found.append((waiting[0], waiting[1]))
            waiting = ["", ""]
    assert waiting == ["", ""]
    return found


def texts(source: Source, refuse=None) -> list[str]:
    return [learned for _, learned in documents(source, refuse)]


def write(path, content):
    """The content in a file, compressed as its name says, in two streams."""
    content = content.encode() if isinstance(content, str) else content
    half = len(content) // 2
    if path.suffix == ".gz":
        content = gzip.compress(content[:half]) + gzip.compress(content[half:])
    elif path.suffix == ".zst":
        zstandard = pytest.importorskip("zstandard")
        compress = zstandard.ZstdCompressor(write_checksum=True).compress
        content = compress(content[:half]) + compress(content[half:])
    path.write_bytes(content)
    return str(path)


def as_jsonl(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def as_json(rows):
    return json.dumps(rows, ensure_ascii=False, indent=2)


def as_csv(rows, **how):
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), **how)
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def as_tsv(rows):
    return "".join("\t".join(map(str, row)) + "\n" for row in [list(rows[0]), *(row.values() for row in rows)])


def parquet(path, columns, **how):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    write_table(pyarrow.table(columns), str(path), **how)
    return str(path)


WRITERS = {".jsonl": as_jsonl, ".json": as_json, ".csv": as_csv, ".tsv": as_tsv}
ROWS = [
    {"id": 1, "text": 'one, "two"', "title": "first"},
    {"id": 2, "text": "둘 셋 🎉", "title": ""},
    {"id": 3, "text": "e\u0301 \u2028 \x85 \x1c", "title": '"quoted"'},
    {"id": 4, "text": "", "title": "no text"},
    {"id": 5, "text": " a  b ", "title": "last"},
]


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("suffix", WRITERS)
def test_records(tmp_path, suffix, compression):
    path = write(tmp_path / f"a{suffix}{compression}", BOM + WRITERS[suffix](ROWS).encode())
    source = open_source(path)
    assert texts(source) == [row["text"] for row in ROWS]
    assert texts(open_source(path, Reading("title"))) == [row["title"] for row in ROWS]
    pairs = Reading(prompt="{id}. {title}\n", response="{{{text}}}")
    assert documents(open_source(path, pairs)) == [
        (f"{row['id']}. {row['title']}\n", "{" + row["text"] + "}") for row in ROWS
    ]
    reads = [block.read for block in source.blocks()]
    assert reads == sorted(reads)
    assert reads[-1] <= source.stored_bytes == os.path.getsize(path)


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("suffix", [".txt", ".MD", ".py"])
def test_text(tmp_path, suffix, compression, tricky):
    reading = Reading(suffixes=(".py",) if suffix == ".py" else ())
    text = "\r\n".join(text.replace("\0", "") for text in tricky) * 50
    path = write(tmp_path / f"a{suffix}{compression}", BOM + text.encode())
    source = open_source(path, reading)
    assert documents(source) == [("", text)]
    assert [block.read for block in source.blocks()] == [os.path.getsize(path)]
    assert documents(open_source(path, replace(reading, bad="skip"))) == [("", text)]
    assert documents(open_source(write(tmp_path / f"b{suffix}{compression}", ""), reading)) == [("", "")]


def test_tricky_texts_come_through(tmp_path, tricky):
    rows = [{"text": text} for text in tricky]
    assert texts(open_source(write(tmp_path / "a.jsonl", as_jsonl(rows) + "\n \n"))) == tricky
    assert texts(open_source(write(tmp_path / "a.json", as_json(rows)))) == tricky
    assert texts(open_source(write(tmp_path / "b.json", json.dumps(rows)))) == tricky
    rows = [row for row in rows if "\0" not in row["text"]]
    path = write(tmp_path / "a.csv", as_csv(rows, quoting=csv.QUOTE_ALL))
    assert texts(open_source(path)) == [row["text"] for row in rows]


def test_parquet(tmp_path, tricky):
    numbers = list(range(len(tricky)))
    path = parquet(tmp_path / "a.parquet", {"id": numbers, "text": tricky, "huge": [tricky] * len(tricky)})
    source = open_source(path)
    assert texts(source) == tricky
    assert [block.read for block in source.blocks()][-1] == source.stored_bytes
    pairs = documents(open_source(path, Reading(prompt="{id}", response="{text}")))
    assert pairs == [(str(number), text) for number, text in enumerate(tricky)]
    import pyarrow

    kinds = [pyarrow.large_string(), pyarrow.string_view(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())]
    for number, kind in enumerate(kinds):
        column = pyarrow.array(tricky).cast(kind)
        assert texts(open_source(parquet(tmp_path / f"{number}.parquet", {"text": column}))) == tricky


def test_no_row_group_is_held_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("data.formats._ROWS", 4)
    rows = [str(i) for i in range(50)]
    path = parquet(tmp_path / "a.parquet", {"text": rows}, row_group_size=7)
    assert texts(open_source(path)) == rows
    for start, stop in ((0, 7), (3, 4), (6, 30), (48, None), (50, None), (14, 21)):
        assert texts(Source((Part(path, start, stop),))) == rows[start:stop]
    pieces = open_source(path).divide(os.path.getsize(path) // 3, cuts=False)
    assert [(piece.parts[0].start, piece.parts[0].stop) for piece in pieces] == [
        (0, 14),
        (14, 28),
        (28, 42),
        (42, None),
    ]


@pytest.mark.parametrize("suffix", [".json", ".csv", ".tsv"])
def test_ranges_count_records(tmp_path, suffix):
    path = write(tmp_path / f"a{suffix}", WRITERS[suffix](ROWS))
    expected = [row["text"] for row in ROWS]
    for start, stop in ((0, 2), (1, 4), (3, None), (5, None), (2, 2)):
        assert texts(Source((Part(path, start, stop),))) == expected[start:stop]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=80, deadline=None)
@given(
    rows=st.lists(st.dictionaries(st.text(), JSON, max_size=3).map(lambda row: row | {"text": "t"}), max_size=6),
    ascii=st.booleans(),
    indent=st.sampled_from([None, 0, 3]),
    step=st.integers(1, 40),
)
def test_json_arrays_are_read_in_windows_of_any_size(tmp_path_factory, rows, ascii, indent, step):
    rows = [row | {"text": json.dumps(row)} for row in rows]
    path = write(tmp_path_factory.mktemp("json") / "a.json", json.dumps(rows, ensure_ascii=ascii, indent=indent))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data.formats.CHUNK_BYTES", step)
        assert texts(open_source(path)) == [row["text"] for row in rows]


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.lists(st.text(alphabet='a,"\n\r \t한'), min_size=2, max_size=2), max_size=6))
def test_csv_is_read_as_it_was_written(tmp_path_factory, rows):
    table = [{"text": text, "other": other} for text, other in rows]
    content = as_csv([{"text": "", "other": ""}, *table], quoting=csv.QUOTE_ALL)
    path = write(tmp_path_factory.mktemp("csv") / "a.csv", content)
    assert texts(open_source(path)) == ["", *(text for text, _ in rows)]


def test_large_fields_are_documents(tmp_path, monkeypatch):
    text = "a line of words\n" * 20_000  # longer than the csv module takes by itself
    path = write(tmp_path / "a.csv", as_csv([{"text": text}]))
    assert texts(open_source(path)) == [text]
    limit = csv.field_size_limit(1000)
    monkeypatch.setattr("data.formats._LONGEST_FIELD", 1000)
    with pytest.raises(
        ValueError, match=r"a.csv:2 begins a damaged record: a field has over 1,000 characters, as wher"
    ):
        texts(open_source(path))
    csv.field_size_limit(limit)


def test_lines_may_end_as_in_windows(tmp_path):
    for suffix in (".csv", ".tsv", ".jsonl"):
        content = (
            WRITERS[suffix]([{"text": "a", "id": 1}, {"text": "b", "id": 2}]).replace("\r", "").replace("\n", "\r\n")
        )
        source = open_source(write(tmp_path / f"a{suffix}", content))
        assert texts(source) == ["a", "b"]
        assert documents(Source(source.parts, Reading(response="{id}"))) == [("", "1"), ("", "2")]


def test_templates_take_what_there_is(tmp_path):
    rows = [
        {"instruction": "Add.", "input": "1 2", "output": 3},
        {"instruction": "Say hello.", "input": "", "output": "Hello"},
        {"instruction": "Say nothing.", "input": None, "output": None},
        {"instruction": "Half.", "input": True, "output": 0.5},
    ]
    path = write(tmp_path / "a.json", as_json(rows))
    reading = Reading(prompt="{instruction}\n{input}\n", response="{output}")
    assert documents(open_source(path, reading)) == [
        ("Add.\n1 2\n", "3"),
        ("Say hello.\n\n", "Hello"),
        ("Say nothing.\n\n", ""),
        ("Half.\ntrue\n", "0.5"),
    ]
    bare = replace(reading, prompt="{input}")
    assert documents(open_source(path, bare))[1:3] == [("", "Hello"), ("", "")]
    assert [block.given for block in open_source(path, bare).blocks()] == [True, False, False, False, True, False]
    # The braces of a text are text, and a text's braces are never templates.
    path = write(tmp_path / "b.json", as_json([{"a": "{b}", "b": "x"}]))
    assert documents(open_source(path, Reading(response="{{a}} {a}"))) == [("", "{a} {b}")]


# What is wrong is said


LONG = "가" * 700_000  # over two chunks, of which the first ends inside a character
GOOD = as_jsonl([{"text": "x"}])

# A document that can't be read: the file, the texts of the others, and the sentence.
UNREADABLE = [
    ("a.txt", b"abc\0def", [], r"a.txt is not text: it holds a zero byte at offset 3; give UTF-8 text"),
    ("a.txt", "text".encode("utf-16"), [], r"a.txt is not text: it holds a zero byte at offset 3"),
    ("a.txt", b"caf\xe9 au lait", [], r"a.txt is not UTF-8 text: at offset 3; convert it"),
    ("a.txt.gz", LONG.encode() + b"\xff", [], r"a.txt.gz is not UTF-8 text: at offset 2100000; convert it"),
    ("a.txt", LONG.encode()[:-1], [], r"a.txt is not UTF-8 text: at offset 2099997, where it ends in half a character"),
    ("a.jsonl", GOOD + "{bad\n" + GOOD, ["x", "x"], r"a.jsonl:2 is not JSON \(Expecting property name .*, column 2\)"),
    ("a.jsonl.gz", GOOD + '{"text": "half', ["x"], r"a.jsonl.gz:2 is not JSON \(Unterminated string"),
    ("a.jsonl", "[" * 100_000 + "\n" + GOOD, ["x"], r"a.jsonl:1 is not JSON \(it nests too deeply\); a .jsonl file"),
    ("a.jsonl", '{"text": "", "n": ' + "9" * 5000 + "}", [], r"a.jsonl:1 is not JSON \(Exceeds the limit"),
    ("a.jsonl", b'{"text": "ab\xff"}', [], r"a.jsonl:1 is not UTF-8 text in the column 'text': character 2 of it is a"),
    ("a.jsonl", '{"text": "a\\ud800"}', [], r"a.jsonl:1 is not UTF-8 text .* a wrong byte or half of a surrogate pair"),
    ("a.jsonl", "3\n" + GOOD, ["x"], r"a.jsonl:1 is not an object of columns but a number; give \{'text': \.\.\.\}"),
    ("a.jsonl", GOOD + '{"body": 1, "id": 1}', ["x"], r"a.jsonl:2 has no column 'text'; the columns there are 'body'"),
    (
        "a.jsonl",
        "{}\n" + GOOD,
        ["x"],
        r"has no column 'text'; the columns there are none; pass --data.text-column NAME",
    ),
    ("a.jsonl", '{"text": null}\n', [], r"a.jsonl:1 holds null in the column 'text', not text"),
    ("a.jsonl", '{"text": ["a"]}\n', [], r"a.jsonl:1 holds a list in the column 'text', not text"),
    ("a.json", '[{"text": "a"}, 3 ]', ["a"], r"a.json, record 2, is not an object of columns but a number"),
    ("a.json", '[{"body": 1}, {"text": "a"}]', ["a"], r"a.json, record 1, has no column 'text'; the columns there are"),
    (
        "a.json",
        b'[{"text": "\xff"}, {"text": "a"}]',
        ["a"],
        r"a.json, record 1, is not UTF-8 text in the column 'text'",
    ),
    (
        "a.csv",
        b"id,text\n1,a\n2,b\xe9\n",
        ["a"],
        r"a.csv:3 is not UTF-8 text in the column 'text': character 1 of it is",
    ),
    ("a.tsv.zst", b"id\ttext\n1\t\xff\n2\tb\n", ["b"], r"a.tsv.zst:2 is not UTF-8 text in the column 'text'"),
]

# A file whose structure is damaged, so that no one knows what else is missing.
DAMAGED = [
    ("a.json", GOOD, r"a.json holds no JSON array of objects, as a .json file must; call it .jsonl if each line is an"),
    ("a.json", "", r"a.json holds no JSON array of objects"),
    ("a.json", '[{"text": "a"}, {"text" "b"}]', r"a.json, record 2, is not JSON \(Expecting ':' delimiter\)"),
    ("a.json", '[{"text": "a"}, ]', r"a.json, record 2, is not JSON \(Expecting value\)"),
    ("a.json", '[{"text": "a"}', r"a.json: after record 1 stands the file's end instead of a comma or \]"),
    ("a.json", '[{"text": "a"} {"text": "b"}]', r"a.json: after record 1 stands '\{' instead of a comma or \]"),
    ("a.json", '[{"text": "a"}, {"text": "b', r"a.json, record 2, is not JSON \(Unterminated string"),
    ("a.json", '[{"text": "a"}] []', r"a.json goes on after its JSON array; a .json file holds one array of objects"),
    ("a.json", "[" * 100_000, r"a.json, record 1, is not JSON \(it nests too deeply\)"),
    ("a.csv", "", r"a.csv is empty; its first line must name the columns"),
    (
        "a.csv",
        "some words,0\n",
        r"a.csv has no column 'text'; the columns there are 'some words', '0'; pass --data.text",
    ),
    ("a.csv", "text,text\na,b\n", r"a.csv names the column 'text' twice; rename one"),
    ("a.csv", "id,text\n1,a\n2,b,c\n", r"a.csv:3 has 3 fields, and the first line names 2 columns; make the file anew"),
    ("a.csv", 'id,text\n1,"a\nb"\n\n2\n', r"a.csv:5 has 1 fields, and the first line names 2 columns"),
    (
        "a.csv",
        'id,text\n1,a\n2,"b\n3,c\n',
        r"a.csv:3 begins a damaged record: a quote opens a field and is never closed",
    ),
    ("a.csv", 'id,text\n1,"a"b"\n', r"a.csv:2 begins a damaged record: after the quote that closes a field stands"),
    ("a.csv", "id,text\n1,a\rb\n", r"a.csv:2 begins a damaged record: a carriage return stands outside of quotes"),
    ("a.csv", "id,text\n1,a\n2,b\0\n", r"a.csv:3 holds a zero byte; give UTF-8 text"),
    ("a.tsv", "id\ttext\n1\ta\tb\n", r"a.tsv:2 has 3 fields, and the first line names 2 columns"),
]


@pytest.mark.parametrize(("name", "content", "kept", "sentence"), UNREADABLE)
def test_a_document_that_cannot_be_read(tmp_path, name, content, kept, sentence):
    path = write(tmp_path / name, content)
    with pytest.raises(ValueError, match=sentence) as error:
        documents(open_source(path))
    assert "\n" not in str(error.value)
    # Or it is left out, and reported.
    refused = []
    skipping = open_source(path, Reading(bad="skip"))
    assert texts(skipping, refused.append) == kept
    assert refused == [str(error.value)]
    assert texts(skipping) == kept


@pytest.mark.parametrize("bad", ["stop", "skip"])
@pytest.mark.parametrize(("name", "content", "sentence"), DAMAGED)
def test_a_damaged_file(tmp_path, name, content, sentence, bad):
    with pytest.raises(ValueError, match=sentence) as error:
        documents(open_source(write(tmp_path / name, content), Reading(bad=bad)))
    assert "\n" not in str(error.value)


def test_nothing_of_a_bad_text_is_given_out(tmp_path, monkeypatch):
    monkeypatch.setattr("data.reading.BLOCK", 10)
    write(tmp_path / "a.txt", b"long enough for some blocks \xff")
    write(tmp_path / "b.txt", "good")
    refused = []
    assert texts(open_source(str(tmp_path), Reading(bad="skip")), refused.append) == ["good"]
    assert len(refused) == 1


def test_lines_are_numbered_from_the_beginning_of_the_file(tmp_path):
    lines = [*(as_jsonl([{"text": str(i)}]) for i in range(100)), "\n", "{bad\n", "{worse\n"]
    source = open_source(write(tmp_path / "a.jsonl", "".join(lines)), Reading(bad="skip"))
    for piece in (split_source(source)[1], source.divide(200, cuts=False)[-1]):
        assert piece.parts[0].start > 0
        refused = []
        assert texts(piece, refused.append)[-1] == "99"
        assert [sentence.partition(" ")[0] for sentence in refused] == [f"{tmp_path}/a.jsonl:{n}" for n in (102, 103)]


def test_templates_name_what_is_missing(tmp_path):
    path = write(tmp_path / "a.json", as_json([{"q": "1", "a": "2"}, {"q": "1", "a": [2]}, {"q": "1"}]))
    reading = Reading(prompt="{q}", response="{a}")
    with pytest.raises(ValueError, match=r"a.json, record 2, holds a list in the column 'a', not text or a number"):
        documents(open_source(path, reading))
    refused = []
    assert documents(open_source(path, replace(reading, bad="skip")), refused.append) == [("1", "2")]
    assert "record 3, has no column 'a'; the columns there are 'q'; name others in --data.prompt and" in refused[1]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.csv"])
@pytest.mark.parametrize("compression", [".gz", ".zst"])
@pytest.mark.parametrize("damage", ["plain", "torn", "flipped"])
def test_damaged_compression(tmp_path, name, compression, damage):
    rows = [{"text": f"some text {i * i}"} for i in range(20_000)]
    path = Path(write(tmp_path / f"{name}{compression}", WRITERS.get(Path(name).suffix, as_jsonl)(rows)))
    whole = bytearray(path.read_bytes())
    if damage == "plain":
        whole = b"not compressed at all"
    elif damage == "torn":
        whole = whole[:-100]
    else:
        whole[len(whole) // 2] ^= 0xFF
    path.write_bytes(whole)
    source = open_source(str(path), Reading(bad="skip"))
    with pytest.raises(
        ValueError, match=rf"{name}{compression} is damaged after byte (\d+) of its content \(.*; make"
    ) as e:
        documents(source)
    place = int(re.findall(r"byte (\d+)", str(e.value))[0])
    least, most = {"plain": (0, 0), "torn": (300_000, 1_000_000), "flipped": (100_000, 1_000_000)}[damage]
    assert least <= place <= most
    assert "\n" not in str(e.value)
    with pytest.raises(ValueError, match=r"is damaged after byte"):
        split_source(source)


def test_an_empty_compressed_file_is_an_empty_text(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(b"")
    assert texts(open_source(str(tmp_path / "a.txt.gz"))) == [""]
    (tmp_path / "zeros.txt.gz").write_bytes(bytes(100))
    with pytest.raises(ValueError, match=r"zeros.txt.gz is damaged after byte 0"):
        texts(open_source(str(tmp_path / "zeros.txt.gz")))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"one ") + bytes(5000) + gzip.compress(b"two") + bytes(100))
    assert texts(open_source(str(tmp_path / "b.txt.gz"))) == ["one two"]


def test_damaged_parquet(tmp_path):
    rows = [f"some text {i * i}" for i in range(3000)]
    path = Path(parquet(tmp_path / "a.parquet", {"text": rows}, row_group_size=1000, write_page_checksum=True))
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with pytest.raises(ValueError, match=r"a.parquet is damaged: it is not a whole .parquet file \(.*\); make it anew"):
        documents(open_source(str(path)))
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    path.write_bytes(flipped)
    read = []
    with pytest.raises(
        ValueError, match=r"a.parquet is damaged: row group 1 cannot be read after row 1000 \("
    ) as error:
        read.extend(open_source(str(path), Reading(bad="skip")).texts())
    assert "\n" not in str(error.value)
    with pytest.raises(
        ValueError, match=r"a.parquet has no column 'body'; the columns there are 'text'; pass --data.t"
    ):
        documents(open_source(str(path), Reading("body", bad="skip")))


def test_documents_of_a_parquet_that_cannot_be_read(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    binary = pyarrow.array([b"a", b"caf\xe9", None, b"d"])
    wrong = pyarrow.Array.from_buffers(pyarrow.string(), 4, binary.buffers())
    path = parquet(tmp_path / "a.parquet", {"text": wrong, "label": [1, 2, 3, 4], "raw": binary})
    refused = []
    assert texts(open_source(path, Reading(bad="skip")), refused.append) == ["a", "d"]
    assert re.search(r"a.parquet, row 2, is not UTF-8 text in the column 'text': character 3 of it", refused[0])
    assert re.search(r"a.parquet, row 3, holds null in the column 'text', not text", refused[1])
    with pytest.raises(ValueError, match=r"a.parquet, row 1, holds a number in the column 'label', not text"):
        texts(open_source(path, Reading("label")))
    with pytest.raises(ValueError, match=r"a.parquet, row 1, holds bytes in the column 'raw', not text"):
        texts(open_source(path, Reading("raw")))


@pytest.mark.parametrize(("name", "extra"), [("a.txt.zst", "zstd"), ("a.parquet", "parquet")])
def test_a_missing_extra_is_named(tmp_path, monkeypatch, name, extra):
    for module in ("zstandard", "pyarrow"):
        monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / name).write_bytes(b"something")
    with pytest.raises(ValueError, match=rf'need \w+; run pip install "jumok\[{extra}\]"'):
        documents(open_source(str(tmp_path / name)))


# Public data, where it is present (README of that folder: what, and how many lines)


def public(name):
    folder = Path(os.environ.get("JUMOK_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not (folder / name).exists():
        pytest.skip(f"{name} is not there; set JUMOK_TEST_DATA to the folder of public data")
    return str(folder / name)


@pytest.mark.parametrize(
    ("name", "reading", "count", "first", "last"),
    [
        ("classify/nsmc_test.tsv.gz", Reading("document"), 16_000, "내 인생의 드라마.", None),
        ("classify/nsmc_train.tsv.gz", Reading(response="{label}", prompt="{document}\n"), 120_000, None, None),
        (
            "classify/sms_spam.tsv",
            Reading("SMS"),
            5_574,
            "Go until jurong point, crazy..",
            "Rofl. Its true to its name",
        ),
        ("instruct/ko_chatbot.csv", Reading(prompt="{Q}\n", response="{A}"), 11_823, "하루가 또 가네요.", None),
        ("instruct/en_instructions.json", Reading("output"), 1_100, "The spelling of the given phrase", None),
        ("smiles/tox21.csv", Reading("smiles"), 7_831, "CCOc1ccc2nc(S(N)(=O)=O)sc2c1", None),
        ("smiles/qm9.csv.gz", Reading("smiles"), 133_885, "C", None),
        ("lm/wikitext2.test.txt.gz", Reading(), 1, " \n = Robert <unk> = \n", None),
    ],
)
def test_public_files(name, reading, count, first, last):
    found = texts(open_source(public(name), reading))
    assert len(found) == count
    assert found[0].startswith(first or "")
    assert found[-1].startswith(last or "")
    assert all(found[:100])


def test_public_pairs():
    pairs = documents(open_pairs(public("mt/multi30k/val.en.gz"), public("mt/multi30k/val.de.gz")))
    assert len(pairs) == 1014
    english, german = (
        gzip.decompress(Path(public(f"mt/multi30k/val.{language}.gz")).read_bytes()).decode().split("\n")
        for language in ("en", "de")
    )
    assert pairs[500] == (english[500] + "\n", german[500])
