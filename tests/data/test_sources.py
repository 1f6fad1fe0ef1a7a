"""Files become documents in a fixed order, wherever they lie; a tenth is held out; pieces are the whole, divided."""

import glob
import gzip
import json
import os
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import embedded, files, reading
from data.cache import digest_of
from data.embedded import embedded_corpus
from data.reading import Part, Reading
from data.sources import Source, find_files, open_pairs, open_source, split_source

pytestmark = pytest.mark.core


def documents(*pieces: Source) -> list[tuple[str, str]]:
    """The given and the learned text of each document, over pieces of which the next may continue the last document."""
    found = []
    for piece in pieces:
        ended = not piece.parts[0].continues
        for block in piece.blocks():
            if ended:
                found.append(["", ""])
            assert not (block.given and (block.last or found[-1][1])), "a prompt comes first and ends no document"
            found[-1][not block.given] += block.text
            ended = block.last
        assert ended
    return [(given, learned) for given, learned in found]


def texts(*pieces: Source) -> list[str]:
    assert all(not given for given, _ in documents(*pieces))
    return [learned for _, learned in documents(*pieces)]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


def records(*texts):
    return "".join(json.dumps({"text": text, "title": "t"}, ensure_ascii=False) + "\n" for text in texts)


def test_a_folder_is_read_in_order(tmp_path):
    write(tmp_path / "b.txt", "b")
    write(tmp_path / "a" / "z.jsonl.gz", records("z1", "z2"))
    write(tmp_path / "a.md", "a")
    source = open_source(str(tmp_path))
    assert texts(source) == ["a", "z1", "z2", "b"]
    assert list(source.texts()) == ["a", "z1", "z2", "b"]
    reads = [block.read for block in source.blocks()]
    assert reads == sorted(reads)
    assert reads[-1] == source.stored_bytes == sum(os.path.getsize(part.path) for part in source.parts)
    assert str(source).endswith("a.md and 2 more files")


def test_folders_and_globs(tmp_path, monkeypatch):
    for name in ("z.txt", "deep/er/a.md", "deep/b.jsonl.gz", "deep/.hidden.txt", "deep/image.png", ".git/c.txt"):
        write(tmp_path / name, records("x"))
    found = [path[len(str(tmp_path)) + 1 :] for path in find_files(str(tmp_path))]
    assert found == ["deep/b.jsonl.gz", "deep/er/a.md", "z.txt"]
    assert find_files(f"{tmp_path}/**/*.md") == [f"{tmp_path}/deep/er/a.md"]
    assert find_files(f"{tmp_path}/[a-z].txt") == [f"{tmp_path}/z.txt"]
    literal = write(tmp_path / "deep" / "part[1].txt", "a name, not a glob")
    assert find_files(literal) == [literal]
    (tmp_path / "deep" / "part[1].txt").unlink()
    monkeypatch.chdir(tmp_path)
    assert find_files("deep") == ["deep/b.jsonl.gz", "deep/er/a.md"]
    with pytest.raises(ValueError, match=r"image.png has a suffix that is not read; the readable ones are \.txt, \.md"):
        find_files("deep/*.*")


@pytest.mark.parametrize(
    "pattern",
    ["*", "*/*", "**", "**/*", "**/*.txt", "?/b/**", "**/b/*.txt", "[!a]/**/*", "a/**/c.[tx]*", "**/**/c.txt", "*/.h*"],
)
def test_globs_match_as_pythons_own(tmp_path, monkeypatch, pattern):
    for name in ("c.txt", "a/c.txt", "a/b/c.txt", "a/b/d.md", "b/c.xt", "b/b/b/c.txt", "b/.h.txt", ".h/c.txt"):
        write(tmp_path / name, "")
    monkeypatch.chdir(tmp_path)
    for place in (pattern, f"{tmp_path}/{pattern}"):
        expected = sorted({path for path in glob.glob(place, recursive=True) if os.path.isfile(path)})
        assert expected
        assert files.found(place) == expected


def test_links_between_folders_end(tmp_path):
    write(tmp_path / "real" / "a.txt", "once")
    (tmp_path / "real" / "up").symlink_to(tmp_path)
    (tmp_path / "real" / "self").symlink_to(tmp_path / "real")
    (tmp_path / "twin").symlink_to(tmp_path / "real")
    assert texts(open_source(str(tmp_path))) == ["once"]
    assert find_files(f"{tmp_path}/**/*.txt") == [f"{tmp_path}/real/a.txt"]
    other = write(tmp_path.with_name("elsewhere") / "b.txt", "linked")
    (tmp_path / "z").symlink_to(os.path.dirname(other))
    assert texts(open_source(str(tmp_path))) == ["once", "linked"]


def test_folders_of_code_are_filtered_by_suffix(tmp_path):
    for name in ("a.py", "b.C", "c.txt", "d.jsonl", "e.tar.py", "f.py.gz"):
        write(tmp_path / name, name)
    assert texts(open_source(str(tmp_path), Reading(suffixes=(".py", ".c")))) == ["a.py", "b.C", "e.tar.py", "f.py.gz"]
    # Even what elsewhere holds records is then a document of text.
    assert texts(open_source(str(tmp_path), Reading(suffixes=(".jsonl",)))) == ["d.jsonl"]
    # What is named itself is read as what it is.
    assert texts(open_source(str(tmp_path / "c.txt"), Reading(suffixes=(".py",)))) == ["c.txt"]
    with pytest.raises(ValueError, match=r"holds only files with .c, .jsonl, .py, .txt; the ones to read are .rs, as"):
        open_source(str(tmp_path), Reading(suffixes=(".rs",)))
    with pytest.raises(ValueError, match=r"a.py has a suffix that is not read; .* --data.suffixes names others"):
        open_source(str(tmp_path / "a.py"))


# Held-out text


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_text_file_holds_out_its_last_tenth_at_a_line(tmp_path, suffix):
    text = "".join(f"line {i}\n" for i in range(1000))
    train, valid = split_source(open_source(write(tmp_path / f"a.txt{suffix}", text)))
    (first,), (second,) = texts(train), texts(valid)
    assert first + second == text
    assert first.endswith("\n")
    assert 0.08 < len(second) / len(text) <= 0.1
    assert train.digest != valid.digest


def test_a_text_file_without_lines_is_cut_between_characters(tmp_path):
    for text in ("한글만" * 5000, "ab"):
        train, valid = split_source(open_source(write(tmp_path / "a.txt", text)))
        (first,), (second,) = texts(train), texts(valid)
        assert first + second == text
        assert second


@settings(max_examples=60, deadline=None)
@given(
    lines=st.lists(st.sampled_from(["", "a", "bb" * 20, "c" * 300]), max_size=12), name=st.sampled_from(["l", "l.gz"])
)
def test_lines_hold_out_about_a_tenth_of_the_bytes(tmp_path_factory, lines, name):
    content = "".join(records(line) if line else " \n" for line in lines)
    source = open_source(write(tmp_path_factory.mktemp("split") / f"a.json{name}", content))
    whole = texts(source)
    if len(whole) < 2:
        with pytest.raises(ValueError, match=r"too small to hold out a tenth"):
            split_source(source)
        return
    train, valid = split_source(source)
    assert texts(train) + texts(valid) == whole
    assert texts(train)
    held = texts(valid)
    assert held
    # No more than a tenth, unless that were no whole line.
    assert len(held) == 1 or len(records(*held)) <= len(content) / 10 + content.count(" \n") * 2 + 1


def test_lines_are_split_without_reading_them_all(tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl", records(*map(str, range(10_000))))
    monkeypatch.setattr("data.formats.chunks", None)
    train, valid = split_source(open_source(path))
    assert [len(part.path) for part in (*train.parts, *valid.parts)] == [len(path)] * 2
    assert train.stored_bytes + valid.stored_bytes == os.path.getsize(path)
    assert texts(train) + texts(valid) == [str(i) for i in range(10_000)]
    reads = [block.read for block in valid.blocks()]
    assert 0 < reads[0] <= len(records("9999"))
    assert reads[-1] == valid.stored_bytes


@pytest.mark.parametrize("name", ["a.csv", "a.tsv.gz", "a.json"])
def test_records_hold_out_their_last_tenth(tmp_path, name):
    def content(count):
        if name == "a.json":
            return json.dumps([{"text": str(i)} for i in range(count)])
        return "text\n" + "".join(f"{i}\n" for i in range(count))

    source = open_source(write(tmp_path / name, content(25)))
    train, valid = split_source(source)
    assert texts(train) == [str(i) for i in range(23)]
    assert texts(valid) == ["23", "24"]
    assert train.stored_bytes + valid.stored_bytes == source.stored_bytes
    assert [block.read for block in valid.blocks()][-1] == valid.stored_bytes
    with pytest.raises(ValueError, match=r"too small to hold out a tenth"):
        split_source(open_source(write(tmp_path / name, content(1))))


def test_files_are_held_out_whole(tmp_path):
    for i in range(40):
        write(tmp_path / f"{i}.txt", f"text {i:03d}")
    train, valid = split_source(open_source(str(tmp_path)))
    assert len(valid.parts) == 4
    assert sorted(texts(train) + texts(valid)) == [f"text {i:03d}" for i in range(40)]
    digest = valid.digest
    # The same ones wherever the folder lies.
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert split_source(open_source(str(moved)))[1].digest == digest
    write(tmp_path / "big.txt", "x" * 100)
    write(tmp_path / "small.txt", "y" * 10)
    train, valid = split_source(open_source(str(tmp_path)))
    assert (texts(train), texts(valid)) == (["x" * 100], ["y" * 10])


def test_of_few_files_each_holds_out_its_last_tenth(tmp_path):
    for i, name in enumerate(("a.txt", "b.jsonl.gz")):
        content = [f"{i} {line}" for line in range(1000)]
        write(tmp_path / name, records(*content) if "jsonl" in name else "\n".join(content))
    write(tmp_path / "too small.txt", "z")
    source = open_source(str(tmp_path))
    train, valid = split_source(source)
    assert [part.path for part in valid.parts] == [part.path for part in source.parts[:2]]
    assert 0.08 < valid.stored_bytes / source.stored_bytes < 0.12
    assert "".join(texts(train)[:1] + texts(valid)[:1]) == texts(source)[0]
    assert texts(train)[1:-1] + texts(valid)[1:] == texts(source)[1:-1]
    assert texts(train)[-1] == "z"
    # Where no file has a tenth, whole ones are held out, however much that is.
    write(tmp_path / "tiny" / "a.txt", "a")
    write(tmp_path / "tiny" / "b.txt", "b")
    assert sorted(map(texts, split_source(open_source(str(tmp_path / "tiny"))))) == [["a"], ["b"]]


@pytest.mark.parametrize(
    ("name", "content"), [("a.txt", "x"), ("a.txt", ""), ("a.jsonl", records("x")), ("a.jsonl", ""), ("a.json", "[]")]
)
def test_too_little_to_hold_out(tmp_path, name, content):
    with pytest.raises(
        ValueError, match=r"too small to hold out a tenth of it for validation; give more text, or pass"
    ):
        split_source(open_source(write(tmp_path / name, content)))


# What a source is known by


def test_the_digest_is_of_names_order_content_and_ranges(tmp_path):
    write(tmp_path / "here" / "x" / "a.txt", "same")
    write(tmp_path / "here" / "b.txt", "b")
    folder = open_source(str(tmp_path / "here"))
    digest = folder.digest
    assert replace(folder, parts=folder.parts[::-1]).digest != digest
    assert Source(folder.parts[:1]).digest != digest
    (tmp_path / "here").rename(tmp_path / "there")
    assert open_source(str(tmp_path / "there")).digest == digest
    (tmp_path / "there" / "b.txt").rename(tmp_path / "there" / "c.txt")
    assert open_source(str(tmp_path / "there")).digest != digest
    (tmp_path / "there" / "c.txt").rename(tmp_path / "there" / "b.txt")
    write(tmp_path / "there" / "b.txt", "c")  # the same size within the clock's tick
    assert open_source(str(tmp_path / "there")).digest != digest

    text = Part(write(tmp_path / "a.txt", "some text"))
    parts = [text, replace(text, stop=4), replace(text, start=4), replace(text, start=4, continues=True)]
    assert len({Source((part,)).digest for part in parts}) == 4


def test_the_digest_is_of_how_files_are_read(tmp_path):
    lines = write(tmp_path / "a.jsonl", records("x"))
    readings = [
        Reading(),
        Reading("title"),
        Reading(response="{text}"),
        Reading(response="{text}", prompt="{title}"),
        Reading(bad="skip"),
        Reading(suffixes=(".jsonl",)),
    ]
    assert len({open_source(lines, reading).digest for reading in readings}) == len(readings)
    text = write(tmp_path / "a.txt", "x")
    assert len({open_source(text, reading).digest for reading in (*readings[:2], Reading(suffixes=(".txt",)))}) == 1


def test_sources_travel_as_json(tmp_path):
    path = write(tmp_path / "a.jsonl", records(*"abcdefghijkl"))
    source = open_source(path, Reading(prompt="{title}", response="{text}", suffixes=(), bad="skip"))
    for piece in (source, *split_source(source), open_source(path, Reading(suffixes=(".jsonl", ".py")))):
        assert Source.from_json(json.loads(json.dumps(piece.to_json()))) == piece


def test_other_json_is_no_source():
    value = json.loads(json.dumps(Source((Part("a.txt"),)).to_json()))
    assert Source.from_json(value) == Source((Part("a.txt"),))
    (part,), how = value["parts"], value["reading"]
    for wrong in (
        [],
        value | {"more": 1},
        value | {"parts": []},
        value | {"parts": [{"path": "a.txt"}]},
        value | {"parts": [part | {"start": -1}]},
        value | {"parts": [part | {"stop": "3"}]},
        value | {"parts": [part | {"start": 3, "stop": 2}]},
        value | {"reading": how | {"bad": "never"}},
        value | {"reading": how | {"suffixes": [1]}},
    ):
        with pytest.raises(ValueError, match=r"does not describe a source of text; make the file that holds it anew"):
            Source.from_json(wrong)


# Pieces


def stored(path, kind, rows):
    """The rows, which hold no line feeds but in .jsonl and text, in a file of a kind."""
    match kind:
        case "txt" | "txt.gz":
            return write(path.with_suffix(f".{kind}"), "".join(rows))
        case "jsonl" | "jsonl.gz":
            return write(path.with_suffix(f".{kind}"), records(*rows))
        case "json":
            return write(path.with_suffix(".json"), json.dumps([{"text": row} for row in rows]))
        case "csv":
            quoted = "".join('"' + row.replace('"', '""') + '"\n' for row in rows)
            return write(path.with_suffix(".csv"), "text\n" + quoted)
    import pyarrow
    import pyarrow.parquet

    file = str(path.with_suffix(".parquet"))
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array(rows, "string")}), file, row_group_size=3)
    return file


KINDS = ["txt", "txt.gz", "jsonl", "jsonl.gz", "json", "csv", "parquet"]
ROWS = st.lists(st.text(alphabet="a \n한\r", max_size=12), max_size=14)


@settings(max_examples=150, deadline=None)
@given(
    files=st.lists(st.tuples(st.sampled_from(KINDS), ROWS), min_size=1, max_size=4),
    size=st.sampled_from([1, 7, 40, 200, 100_000]),
    cuts=st.booleans(),
    hold_out=st.booleans(),
)
def test_the_pieces_are_the_whole(tmp_path_factory, files, size, cuts, hold_out):
    if any(kind == "parquet" for kind, _ in files):
        pytest.importorskip("pyarrow")
    folder = tmp_path_factory.mktemp("pieces")
    for number, (kind, rows) in enumerate(files):
        stored(folder / str(number), kind, rows)
    sources = [open_source(str(folder))]
    if hold_out:
        try:
            sources = list(split_source(sources[0]))
        except ValueError:  # too little
            return
    for source in sources:
        pieces = source.divide(size, cuts)
        assert documents(*pieces) == documents(source)
        assert sum(piece.stored_bytes for piece in pieces) == source.stored_bytes
        assert [source.to_json() for source in source.divide(size, cuts)] == [piece.to_json() for piece in pieces]
        together = replace(source, parts=tuple(part for piece in pieces for part in piece.parts))
        assert documents(together) == documents(source)
        for piece in pieces:
            continuing = [part for part in piece.parts if part.continues]
            assert len(continuing) <= 1
            assert cuts or not continuing
            if continuing:  # cut after a run of line feeds, where no token crosses
                with open(continuing[0].path, "rb") as file:
                    content = file.read()
                place = continuing[0].start
                assert content[place - 1 : place] == b"\n" != content[place : place + 1]


def test_pieces_are_about_as_large_as_they_should_be(tmp_path):
    small = [write(tmp_path / f"{i}.txt", "x" * 10) for i in range(25)]
    write(tmp_path / "long.jsonl", records(*("y" * 50 for _ in range(100))))
    write(tmp_path / "long.txt", "".join(f"line {i}\n" for i in range(1000)))
    source = open_source(str(tmp_path))
    pieces = source.divide(100, cuts=True)
    sizes = [piece.stored_bytes for piece in pieces]
    assert [len(piece.parts) for piece in pieces[:3]] == [10, 10, 5]
    assert len(small) == 25
    assert len(sizes) > 100
    assert max(sizes) < 250
    assert texts(*pieces) == texts(source)
    whole = source.divide(100, cuts=False)
    assert [piece.parts for piece in whole][-1] == (Part(str(tmp_path / "long.txt")),)
    # Text that is checked before any of it is given out can't be given out in pieces.
    skipping = replace(source, reading=Reading(bad="skip"))
    assert skipping.divide(100, cuts=True)[-1].parts == whole[-1].parts
    assert len(source.divide(1 << 30, cuts=True)) == 1


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz", "a.json", "a.csv", "a.tsv"])
def test_what_stays_whole_is_not_read_to_be_divided(tmp_path, name, monkeypatch):
    source = open_source(write(tmp_path / name, records(*map(str, range(100)))))
    monkeypatch.setattr("data.formats.opened", lambda *_: pytest.fail("read"))
    monkeypatch.setattr("data.files.opened", lambda *_: pytest.fail("read"))
    assert source.divide(10, cuts=True) == [source]


def test_long_documents_come_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "BLOCK", 50)
    monkeypatch.setattr("data.formats.CHUNK_BYTES", 7)  # characters of several bytes then straddle chunks
    text = "여러 바이트 글자 and words, " * 40
    for name in ("a.txt", "b.txt.gz"):
        source = open_source(write(tmp_path / name, text))
        blocks = list(source.blocks())
        assert len(blocks) > 10
        assert max(len(block.text) for block in blocks) <= 50
        assert "".join(block.text for block in blocks) == text
        assert [block.last for block in blocks] == [False] * (len(blocks) - 1) + [True]
    path = write(tmp_path / "c.jsonl", records(text, "", "short"))
    assert texts(open_source(path)) == [text, "", "short"]
    assert max(len(block.text) for block in open_source(path).blocks()) <= 50
    pairs = open_source(path, Reading(prompt="{text}", response="{title}{text}"))
    assert documents(pairs) == [(text, "t" + text), ("", "t"), ("short", "tshort")]
    assert sum(block.given for block in pairs.blocks()) > 10


# Pairs of files


def test_pairs_of_files(tmp_path):
    source = write(tmp_path / "train.en", "one\n\nthree\r\nfour")
    target = write(tmp_path / "train.ko.gz", "하나\n둘\n셋\n넷\n")
    pairs = open_pairs(source, target)
    expected = [("one\n", "하나"), ("\n", "둘"), ("three\n", "셋"), ("four\n", "넷")]
    assert documents(pairs) == expected
    reads = [block.read for block in pairs.blocks()]
    assert reads[-1] == pairs.stored_bytes == os.path.getsize(source) + os.path.getsize(target)
    train, valid = split_source(pairs)
    assert (documents(train), documents(valid)) == (expected[:3], expected[3:])
    assert len({pairs.digest, open_pairs(target, source).digest, train.digest}) == 3
    assert Source.from_json(json.loads(json.dumps(train.to_json()))) == train
    templates = Reading(prompt="en: {source} ko:", response=" {target}!")
    assert documents(open_pairs(source, target, templates))[0] == ("en: one ko:", " 하나!")
    plain = open_pairs(source, write(tmp_path / "train.ko", "하나\n둘\n셋\n넷"))
    assert plain.divide(1, cuts=True) == [plain]  # a line of both is only found by reading all before it
    with pytest.raises(
        ValueError, match=r"train.en:1, with .*train.ko.gz, has no column 'x'; the columns there are 's"
    ):
        documents(open_pairs(source, target, Reading(response="{x}")))
    one = write(tmp_path / "one", "1\n")
    with pytest.raises(ValueError, match=r"or pass --data.valid-source-path FILE and --data.valid-target-path FILE$"):
        split_source(open_pairs(one, one))


def test_several_pairs_of_files(tmp_path):
    for name, content in (("a.en", "A\n"), ("b.en", "B\n"), ("a.de", "a\n"), ("b.de", "b\n")):
        write(tmp_path / name, content)
    pairs = open_pairs(f"{tmp_path}/*.en", f"{tmp_path}/*.de")
    assert documents(pairs) == [("A\n", "a"), ("B\n", "b")]
    train, valid = split_source(pairs)
    assert sorted(documents(train) + documents(valid)) == documents(pairs)
    with pytest.raises(ValueError, match=r"\*.en holds 2 files and .*a.de 1; every file needs its partner"):
        open_pairs(f"{tmp_path}/*.en", f"{tmp_path}/a.de")
    write(tmp_path / "b.de", "b\nmore\n")
    with pytest.raises(ValueError, match=r"b.en has 1 lines and .*b.de has 2; line by line they must belong together"):
        open_pairs(f"{tmp_path}/*.en", f"{tmp_path}/*.de")
    with pytest.raises(ValueError, match=r"b.en and .*b.de have not the same number of lines; make them anew"):
        documents(pairs)


# The embedded corpus


def test_the_embedded_corpus(monkeypatch, tmp_path):
    copy = embedded_corpus()
    content = copy.read_bytes()
    assert 4_000_000 < len(content) < 12_000_000
    names = [json.loads(line)["name"] for line in content.splitlines()]
    assert len(set(names)) == len(names) > 300
    assert "library/argparse.py" in names
    assert not any("test" in name.split("/") for name in names)
    assert names == sorted(names, key=digest_of)
    assert open_source("embedded").parts == (Part(str(copy)),)
    assert texts(open_source("embedded", Reading(suffixes=(".py",)))) == texts(open_source("embedded"))
    # Another copy from the same Python is the same, and a copy stays what it is, whatever becomes of its Python.
    monkeypatch.setenv("JUMOK_CACHE", str(tmp_path))
    assert embedded_corpus().read_bytes() == content
    monkeypatch.setattr(embedded, "_python_documents", lambda: iter([("none", "")]))
    with monkeypatch.context() as read_only:
        read_only.setattr(os, "access", lambda path, mode: mode != os.W_OK)
        assert embedded_corpus().read_bytes() == content
    monkeypatch.setenv("JUMOK_CACHE", str(tmp_path / "new"))
    with pytest.raises(
        ValueError, match=r"does not carry the sources that the embedded corpus is made of; pass --data.path"
    ):
        embedded_corpus()


# Bad input


def test_missing_paths(tmp_path):
    with pytest.raises(
        ValueError, match=r"the data path '.*absent.txt' does not exist; give a file, a folder or a glob"
    ):
        open_source(str(tmp_path / "absent.txt"))
    with pytest.raises(ValueError, match=r"no file matches '.*absent\*'; give a file, a folder or a glob"):
        open_source(str(tmp_path / "absent*"))
    with pytest.raises(ValueError, match=r"holds no files"):
        open_source(str(tmp_path))
    write(tmp_path / "a.png", "")
    write(tmp_path / "b", "")
    with pytest.raises(
        ValueError, match=re.escape("holds only files with .png, no suffix; the readable ones are .txt")
    ):
        open_source(str(tmp_path))
    with pytest.raises(ValueError, match=r"a.png has a suffix that is not read"):
        open_source(str(tmp_path / "a.png"))
    with pytest.raises(ValueError, match=r"a.parquet.gz has a suffix that is not read; .* and .parquet"):
        open_source(write(tmp_path / "a.parquet.gz", ""))


def test_a_file_that_is_gone(tmp_path):
    source = open_source(write(tmp_path / "a.txt", "text"))
    (tmp_path / "a.txt").unlink()
    for read in (lambda: list(source.blocks()), lambda: source.digest):
        with pytest.raises(ValueError, match=r"a.txt cannot be read: No such file or directory"):
            read()


@pytest.mark.parametrize(
    ("reading", "sentence"),
    [
        (Reading(""), r"the text column has no name; pass --data.text-column NAME"),
        (
            Reading(prompt="{a}"),
            r"the prompt '\{a\}' stands without a response to learn; pass --data.response TEMPLATE",
        ),
        (Reading(response="all the same"), r"the response 'all the same' names no column in braces"),
        (Reading(response="{a.b}"), r"the template '\{a.b\}' must hold only names of columns in braces"),
        (Reading(response="{a[0]}"), r"must hold only names of columns in braces, such as \{input\}"),
        (Reading(response="{a!r}"), r"must hold only names of columns"),
        (Reading(response="{a:>9}"), r"must hold only names of columns"),
        (Reading(response="{}"), r"must hold only names of columns"),
        (
            Reading(response="{a}", prompt="{"),
            r"the template '\{' is not well-formed \(.*\); write a brace itself twice",
        ),
        (Reading(suffixes=("py",)), r"the suffix 'py' must be a dot and letters, such as .py"),
        (replace(Reading(), bad="ask"), r"bad='ask' must be stop or skip"),
    ],
)
def test_readings_that_cannot_be(reading, sentence):
    with pytest.raises(ValueError, match=sentence):
        Source((Part("a.txt"),), reading)
