"""The cache: whole or absent, and never trusted over a file that changed."""

import errno
import os
import time
from pathlib import Path

import pytest
from object_store import ObjectStore

from data import cache
from data.cache import cache_folder, cache_path, file_fact, written_atomically
from data.fitting import FittedRows
from data.labelled import find_classes
from data.prepare import prepare_corpus
from data.reading import Reading
from data.sources import open_source
from data.tokenizers.plain import ByteTokenizer

pytestmark = pytest.mark.core


def test_a_failed_write_leaves_nothing(tmp_path):
    def write(folder):
        with written_atomically(tmp_path / "target") as temporary:
            if folder:
                temporary.mkdir()
            (temporary / "a" if folder else temporary).write_text("half")
            raise RuntimeError

    for folder in (False, True):
        with pytest.raises(RuntimeError):
            write(folder)
    assert list(tmp_path.iterdir()) == []


def test_the_first_of_two_writers_of_a_folder_stays(tmp_path):
    target = tmp_path / "folder"
    with written_atomically(target) as late:
        late.mkdir()
        (late / "a").write_text("late")
        with written_atomically(target) as early:
            early.mkdir()
            (early / "a").write_text("early")
    assert (target / "a").read_text() == "early"
    assert list(tmp_path.iterdir()) == [target]


def test_what_a_killed_writer_left_is_removed_after_a_day(tmp_path):
    for name, age in (("old", 90_000), ("new", 10)):
        left = tmp_path / f"folder.tmp-{name}"
        left.mkdir()
        (left / "tokens").write_text("half")
        os.utime(left, (time.time() - age, time.time() - age))
    with written_atomically(tmp_path / "folder") as temporary:
        temporary.mkdir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "folder.tmp-new"]


def test_what_is_written_elsewhere_is_moved_in_whole(tmp_path):
    (tmp_path / "target").mkdir()
    with written_atomically(tmp_path / "target" / "file", within=tmp_path) as temporary:
        temporary.write_text("all")
        assert temporary.parent == tmp_path
        assert not any((tmp_path / "target").iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert (tmp_path / "target" / "file").read_text() == "all"


def test_facts_are_remembered_until_the_file_changes(tmp_path):
    path, asked = tmp_path / "file", []

    def fact():
        asked.append(path.read_text())
        return len(asked)

    path.write_text("one")
    old = time.time() - 60
    os.utime(path, (old, old))
    assert [file_fact(str(path), "fact", fact) for _ in range(3)] == [1, 1, 1]
    assert file_fact(str(path), "another fact", fact) == 2
    path.write_text("two")  # of this very moment: it might change again within the clock's tick
    assert [file_fact(str(path), "fact", fact) for _ in range(2)] == [3, 4]
    os.utime(path, (old + 1, old + 1))
    assert [file_fact(str(path), "fact", fact) for _ in range(2)] == [5, 5]
    time.sleep(0.02)  # another tick
    path.write_text("six")
    os.utime(path, (old + 1, old + 1))  # as programs that copy do, or a clock that was set back
    assert file_fact(str(path), "fact", fact) == 6


def test_facts_of_a_file_elsewhere_are_remembered_by_the_process(monkeypatch):
    store, path = ObjectStore(), "gs://bucket/file"
    store.replace_gs(monkeypatch)
    monkeypatch.setattr(cache, "_remote_facts", {})
    store.write("/bucket/file", b"one")
    assert file_fact(path, "fact", lambda: "first") == "first"
    assert file_fact(path, "fact", lambda: pytest.fail("asked again")) == "first"
    assert file_fact(path, "another fact", lambda: "other") == "other"
    store.write("/bucket/file", b"three")
    assert file_fact(path, "fact", lambda: "second") == "second"
    store.store.clear()
    assert file_fact(path, "fact", lambda: "gone") == "gone"


def test_damaged_memory_is_no_memory(tmp_path, monkeypatch):
    monkeypatch.setenv("JUMOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_SETTLED_SECONDS", -1.0)
    (tmp_path / "file").write_text("text")
    assert file_fact(str(tmp_path / "file"), "fact", lambda: "right") == "right"
    (memo,) = cache_path("files").glob("??/*")
    for damage in ("", "{", "[]", "{}"):
        memo.write_text(damage)
        assert file_fact(str(tmp_path / "file"), "fact", lambda: "right") == "right"


def test_a_cache_that_cannot_be_written_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("JUMOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_SETTLED_SECONDS", -1.0)
    for name in ("one", "two"):
        (tmp_path / name).write_text("text")
    assert file_fact(str(tmp_path / "one"), "fact", lambda: "known") == "known"
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    assert file_fact(str(tmp_path / "one"), "fact", lambda: pytest.fail("asked again")) == "known"
    assert file_fact(str(tmp_path / "two"), "fact", lambda: "not kept") == "not kept"
    assert len(list(cache_path("files").glob("??/*"))) == 1
    with pytest.raises(ValueError, match=r"cannot be used \(no permission to write\)"):
        cache_folder("files")


def test_a_full_disk_forgets_and_goes_on(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setenv("JUMOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_SETTLED_SECONDS", -1.0)
    (tmp_path / "file").write_text("text")
    monkeypatch.setattr(Path, "write_text", full)
    assert file_fact(str(tmp_path / "file"), "fact", lambda: "not kept") == "not kept"
    assert not list(cache_path("files").glob("??/*"))


def test_a_full_disk_is_said_whatever_is_written(tmp_path, monkeypatch):
    path, really_open = tmp_path / "a.jsonl", Path.open
    path.write_text('{"text": "some text", "label": "one"}\n' * 9 + '{"text": "more", "label": "two"}\n')
    plain, labelled = open_source(str(path)), open_source(str(path), Reading(label_column="label"))
    corpus = prepare_corpus(plain, ByteTokenizer())

    def full(path, mode="r", **options):
        return really_open(Path("/dev/full") if mode == "wb" else path, mode, **options)

    monkeypatch.setenv("JUMOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Path, "open", full)
    for write in (
        lambda: prepare_corpus(plain, ByteTokenizer(), workers=1),
        lambda: find_classes(labelled),
        lambda: FittedRows(corpus, 32, "isolated", 256),
    ):
        with pytest.raises(ValueError, match=r"takes no more \(No space left on device\); make room there, or set"):
            write()
    assert not list((tmp_path / "cache").glob("**/*.tmp-*"))
    with pytest.raises(OSError, match="torn"), written_atomically(tmp_path / "file"):
        raise OSError(errno.EIO, "torn")


def test_where_the_cache_lies(tmp_path, monkeypatch):
    monkeypatch.setenv("JUMOK_CACHE", str(tmp_path / "mine"))
    assert cache_path("x") == tmp_path / "mine" / "x"
    assert not (tmp_path / "mine").exists()
    assert cache_folder("x") == tmp_path / "mine" / "x"
    assert (tmp_path / "mine" / "x").is_dir()
    monkeypatch.delenv("JUMOK_CACHE")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    assert cache_folder("x") == tmp_path / "home" / ".cache" / "jumok" / "x"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JUMOK_CACHE", str(tmp_path / "file"))
    with pytest.raises(ValueError, match=r"cannot be used .*; set JUMOK_CACHE to one that can"):
        cache_folder("x")
