"""Files become documents, a tenth is held out, and what is wrong with a file is one sentence with its place."""

import gzip
import json
import re

import pytest

from data import sources
from data.sources import Part, Source, embedded_corpus, find_files, open_source, split_source

pytestmark = pytest.mark.core


def documents(source: Source) -> list[str]:
    texts, waiting = [], ""
    for block in source.blocks():
        waiting += block.text
        if block.last:
            texts.append(waiting)
            waiting = ""
    assert waiting == ""
    return texts


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


def records(*texts):
    return "".join(json.dumps({"text": text, "title": "t"}, ensure_ascii=False) + "\n" for text in texts)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_kinds_of_files(tmp_path, suffix, tricky):
    text = write(tmp_path / f"a.txt{suffix}", "one\r\n두 번째\n")
    marked = write(tmp_path / f"b.md{suffix}", b"\xef\xbb\xbf# Title\n")
    lines = write(tmp_path / f"c.jsonl{suffix}", records(*tricky) + "\n")
    assert documents(open_source(text)) == ["one\r\n두 번째\n"]
    assert documents(open_source(marked)) == ["# Title\n"]
    assert documents(open_source(lines)) == tricky
    assert documents(open_source(lines, "title")) == ["t"] * len(tricky)
    folder = open_source(str(tmp_path))
    assert documents(folder) == ["one\r\n두 번째\n", "# Title\n", *tricky]
    reads = [block.read for block in folder.blocks()]
    assert reads == sorted(reads)
    assert folder.stored_bytes - 1 <= reads[-1] <= folder.stored_bytes  # a blank line is the last byte


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


def test_long_documents_come_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_BLOCK", 50)
    monkeypatch.setattr(sources, "_CHUNK_BYTES", 7)  # characters of several bytes then straddle chunks
    text = "여러 바이트 글자 and words, " * 40
    for name in ("a.txt", "b.txt.gz"):
        source = open_source(write(tmp_path / name, text))
        blocks = list(source.blocks())
        assert len(blocks) > 10
        assert "".join(block.text for block in blocks) == text
        assert [block.last for block in blocks] == [False] * (len(blocks) - 1) + [True]
    source = open_source(write(tmp_path / "c.jsonl", records(text, "", "short")))
    assert documents(source) == [text, "", "short"]


# Held-out text


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_text_file_holds_out_its_last_tenth_at_a_line(tmp_path, suffix):
    text = "".join(f"line {i}\n" for i in range(1000))
    train, valid = split_source(open_source(write(tmp_path / f"a.txt{suffix}", text)))
    (first,), (second,) = documents(train), documents(valid)
    assert first + second == text
    assert first.endswith("\n")
    assert 0.08 < len(second) / len(text) <= 0.1
    assert train.digest != valid.digest


def test_a_text_file_without_lines_is_cut_between_characters(tmp_path):
    for text in ("한글만" * 5000, "ab"):
        train, valid = split_source(open_source(write(tmp_path / "a.txt", text)))
        (first,), (second,) = documents(train), documents(valid)
        assert first + second == text
        assert second


def test_records_hold_out_their_last_tenth(tmp_path):
    path = write(tmp_path / "a.jsonl", records(*map(str, range(25))))
    train, valid = split_source(open_source(path))
    assert documents(train) == [str(i) for i in range(23)]
    assert documents(valid) == ["23", "24"]
    train, valid = split_source(open_source(write(tmp_path / "b.jsonl", records("a", "b"))))
    assert (documents(train), documents(valid)) == (["a"], ["b"])


def test_files_are_held_out_whole(tmp_path):
    for i in range(40):
        write(tmp_path / f"{i}.txt", f"text {i:03d}")
    train, valid = split_source(open_source(str(tmp_path)))
    assert len(valid.parts) == 4
    assert sorted(documents(train) + documents(valid)) == [f"text {i:03d}" for i in range(40)]
    digest = valid.digest
    # The same ones wherever the folder lies.
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert split_source(open_source(str(moved)))[1].digest == digest
    write(tmp_path / "big.txt", "x" * 1000)
    write(tmp_path / "small.txt", "y")
    train, valid = split_source(open_source(str(tmp_path)))
    assert (documents(train), documents(valid)) == (["x" * 1000], ["y"])


@pytest.mark.parametrize(
    ("name", "content"), [("a.txt", "x"), ("a.txt", ""), ("a.jsonl", records("x")), ("a.jsonl", "")]
)
def test_too_little_to_hold_out(tmp_path, name, content):
    with pytest.raises(
        ValueError, match=r"too small to hold out a tenth of it for validation; give more text, or pass"
    ):
        split_source(open_source(write(tmp_path / name, content)))


def test_the_digest_is_of_the_content(tmp_path):
    a = open_source(write(tmp_path / "a.txt", "same"))
    b = open_source(write(tmp_path / "other" / "b.txt", "same"))
    assert a.digest == b.digest
    write(tmp_path / "a.txt", "diff")  # the same size within the clock's tick
    assert a.digest != b.digest
    path = write(tmp_path / "c.jsonl", records("x"))
    assert open_source(path, "text").digest != open_source(path, "title").digest


# The embedded corpus


def test_the_embedded_corpus(monkeypatch, tmp_path):
    copy = embedded_corpus()
    content = copy.read_bytes()
    assert 4_000_000 < len(content) < 12_000_000
    names = [json.loads(line)["name"] for line in content.splitlines()]
    assert len(set(names)) == len(names) > 300
    assert "library/argparse.py" in names
    assert not any("test" in name.split("/") for name in names)
    assert open_source("embedded").parts == (Part(str(copy)),)
    # Another copy from the same Python is the same, and a copy stays what it is, whatever becomes of its Python.
    monkeypatch.setenv("JUMOK_CACHE", str(tmp_path))
    assert embedded_corpus().read_bytes() == content
    monkeypatch.setattr(sources, "_python_documents", lambda: iter([("none", "")]))
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
    with pytest.raises(ValueError, match=r"no file matches '.*absent"):
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


LONG = "가" * 700_000  # over two chunks, of which the first ends inside a character


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.txt", b"abc\0def", r"a.txt is not text: it holds a zero byte at offset 3"),
        ("a.txt", "text".encode("utf-16"), r"a.txt is not UTF-8 text: at offset 0|zero byte"),
        ("a.txt", b"caf\xe9 au lait", r"a.txt is not UTF-8 text: at offset 3; convert it"),
        ("a.txt.gz", LONG.encode() + b"\xff", r"a.txt.gz is not UTF-8 text: at offset 2100000; convert it"),
        ("a.txt", LONG.encode()[:-1], r"at offset 2099997, where it ends in half a character"),
        ("a.jsonl", records("x") + "{bad\n", r"a.jsonl:2 is not JSON \(Expecting property name .*, column 2\)"),
        ("a.jsonl", records("x") + '{"text": "half', r"a.jsonl:2 is not JSON"),
        ("a.jsonl", "[" * 100_000, r"a.jsonl:1 is not JSON \(it nests too deeply\)"),
        ("a.jsonl", b'{"text": "\xff"}', r"a.jsonl:1 is not UTF-8 text: at byte 10 of the line"),
        ("a.jsonl", "3\n", r"a.jsonl:1 is not a JSON object but int; give lines like \{'text': \.\.\.\}"),
        ("a.jsonl", '{"body": "", "id": 1}\n', r"a.jsonl:1 has no column 'text'; the columns there are 'body', 'id'"),
        ("a.jsonl", '{"text": null}\n', r"a.jsonl:1: the column 'text' holds NoneType, not text"),
        ("a.jsonl", '{"text": "a\\ud800"}\n', r"a.jsonl:1 holds half of a surrogate pair at character 1"),
    ],
)
def test_bad_content(tmp_path, name, content, sentence):
    source = open_source(write(tmp_path / name, content))
    with pytest.raises(ValueError, match=sentence):
        list(source.blocks())


@pytest.mark.parametrize("damage", ["plain", "truncated", "flipped"])
@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz"])
def test_damaged_gzip(tmp_path, name, damage):
    whole = bytearray(gzip.compress(records(*(f"some text {i * i}" for i in range(500))).encode()))
    if damage == "plain":
        whole = b"no gzip at all"
    elif damage == "truncated":
        whole = whole[:-100]
    else:
        whole[len(whole) // 2] ^= 0xFF
    path = tmp_path / name
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=rf"{name} is not a whole gzip file|{name}:[0-9]+ is not") as error:
        list(open_source(str(path)).blocks())
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=rf"{name} is not a whole gzip file"):
        split_source(open_source(str(path)))


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = write(tmp_path / "a.txt", "text")
    source = open_source(path)
    (tmp_path / "a.txt").unlink()
    with pytest.raises(ValueError, match=r"a.txt cannot be read: No such file or directory"):
        list(source.blocks())
