"""A corpus holds its documents' tokens and counts, and is the same whoever made it, however often they were killed."""

import errno
import gzip
import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from data import cache, plan, prepare, reading, shard_writer
from data.cache import cache_folder
from data.engines import prepare_with_ray
from data.prepare import prepare_corpus, prepare_with
from data.reading import Reading
from data.sources import open_source
from data.tokenizers.plain import ByteTokenizer, CharacterTokenizer
from data.tokenizers.sentence_piece import SentencePieceTokenizer, train_sentencepiece

pytestmark = pytest.mark.core
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """A cache of the test's own, in which small files are divided, too."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("JUMOK_CACHE", str(folder))
    monkeypatch.setattr(plan, "_SMALLEST_PIECE", 1 << 10)
    return folder


def source_of(folder, documents, **fields):
    path = folder / "documents.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return open_source(str(path), Reading(**fields))


def contents(folder):
    """The SHA-256 of every file of a corpus."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def check(corpus, tokenizer, documents):
    documents = [text for text in documents if text]
    assert corpus.num_documents == len(documents)
    expected = [[tokenizer.start_id, *tokenizer.encode(text).tolist()] for text in documents]
    assert [corpus.document(i).tolist() for i in range(len(documents))] == expected
    stream = [token for tokens in expected for token in tokens]
    assert corpus.num_tokens == len(stream)
    assert corpus.num_scored == len(stream) - len(documents)
    assert corpus.longest == max(map(len, expected))
    assert corpus.learned_only
    assert corpus.document_given.tolist() == [1] * len(documents)
    assert corpus.slice(0, corpus.num_tokens).tolist() == stream
    assert corpus.document_bytes[:].tolist() == [len(text.encode()) for text in documents]
    assert corpus.document_words[:].tolist() == [len(text.split()) for text in documents]
    assert (corpus.num_bytes, corpus.num_words) == (sum(corpus.document_bytes[:]), sum(corpus.document_words[:]))
    starts = np.arange(corpus.num_tokens)
    windows = corpus.windows(starts, 5)
    padded = [*stream, 0, 0, 0, 0]
    assert windows.tolist() == [padded[start : start + 5] for start in starts]


@pytest.mark.parametrize("smallest", [64, 1 << 24])
@pytest.mark.parametrize("kind", ["bytes", "characters", "sentencepiece", "whole"])
def test_what_is_stored(tmp_path, monkeypatch, tricky, english, smallest, kind):
    documents = [*tricky, english[:300], "", "last"]
    monkeypatch.setattr(plan, "_SMALLEST_PIECE", smallest)
    monkeypatch.setattr(reading, "BLOCK", 40)
    monkeypatch.setattr(shard_writer, "_BATCH", 100)
    match kind:
        case "bytes":
            tokenizer = ByteTokenizer()
        case "characters":
            tokenizer = CharacterTokenizer.of(documents)
        case _:
            tokenizer = train_sentencepiece([english], 400)
            tokenizer.cuts = kind != "whole"  # a tokenizer that needs documents whole gets them whole
    source = source_of(tmp_path, documents)
    seen = []
    corpus = prepare_corpus(source, tokenizer, lambda done, total: seen.append((done, total)), workers=1)
    check(corpus, tokenizer, documents)
    assert corpus.empty == documents.count("")
    assert seen == sorted(seen)
    assert seen[-1] == (source.stored_bytes, source.stored_bytes)
    again = prepare_corpus(source, tokenizer, lambda done, total: pytest.fail("tokenized twice"))
    check(again, tokenizer, documents)
    assert again.digest == corpus.digest


@hypothesis_settings(max_examples=30)
@given(documents=st.lists(st.text(alphabet="ab \n\u2003🎉", max_size=30), min_size=1, max_size=5).filter(any))
def test_words_and_bytes_are_of_the_text_however_it_is_cut(tmp_path_factory, documents):
    folder = tmp_path_factory.mktemp("d")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "BLOCK", 4)
        patch.setattr(plan, "_SMALLEST_PIECE", 16)
        check(prepare_corpus(source_of(folder, documents), ByteTokenizer(), workers=1), ByteTokenizer(), documents)


def test_words_are_those_of_split():
    every = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
    text = "x".join(every)
    assert shard_writer._count_words(text, False) == (len(text.split()), True)
    assert shard_writer._count_words("one  two ", True) == (1, False)


@hypothesis_settings(max_examples=30)
@given(
    texts=st.lists(st.text(alphabet="ab \n\u2003\ufeff", min_size=1, max_size=80), min_size=1, max_size=3),
    smallest=st.integers(1, 40),
)
def test_long_texts_are_one_document_however_they_are_divided(tmp_path_factory, texts, smallest):
    folder = tmp_path_factory.mktemp("d")
    for number, text in enumerate(texts):
        (folder / f"{number}.txt").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "_SMALLEST_PIECE", smallest)
        patch.setattr(prepare, "_ROWS", 2)
        texts = [text.removeprefix("\ufeff") for text in texts]
        if any(texts):
            check(prepare_corpus(open_source(str(folder)), ByteTokenizer(), workers=1), ByteTokenizer(), texts)


def test_prompts_are_given(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "BLOCK", 4)
    pairs = [
        ("to add", "1 + 1"),
        ("", "no prompt"),
        ("nothing to learn", ""),
        ("a long prompt here", "an answer, long"),
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"q": q, "a": a}) + "\n" for q, a in pairs * 40))
    corpus = prepare_corpus(open_source(str(path), Reading(prompt="{q}", response="{a}")), ByteTokenizer())
    kept = [(q, a) for q, a in pairs if a] * 40
    assert corpus.num_documents == len(kept)
    assert corpus.empty == 40
    for number, (q, a) in enumerate(kept):
        assert corpus.document(number).tolist() == [256, *q.encode(), *a.encode()]
    assert corpus.document_given.tolist() == [1 + len(q) for q, _ in kept]
    assert corpus.document_bytes[:].tolist() == [len(a) for _, a in kept]
    assert corpus.document_words[:].tolist() == [len(a.split()) for _, a in kept]
    assert corpus.num_scored == corpus.num_bytes == sum(len(a) for _, a in kept)
    assert not corpus.learned_only


def test_what_cannot_be_read_is_left_out_and_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = ['{"text": "fine"}', '{"text": 3}', "no json", '{"other": "x"}']
    path.write_text("".join(f"{line}\n" for line in lines * 60))
    corpus = prepare_corpus(open_source(str(path), Reading(bad="skip")), ByteTokenizer(), workers=1)
    assert len(corpus._shards) > 2
    assert (corpus.num_documents, corpus.refused, corpus.empty) == (60, 180, 0)
    assert len(corpus.refusals) == 5
    assert all("a.jsonl" in sentence for sentence in corpus.refusals)
    path.write_text("no json\n")
    with pytest.raises(
        ValueError, match=r"a.jsonl holds no text that can be read \(.*a.jsonl.*\); give a file with some"
    ):
        prepare_corpus(open_source(str(path), Reading(bad="skip")), ByteTokenizer())


def test_large_vocabularies_take_four_bytes(tmp_path, english):
    tokenizer = train_sentencepiece([english], 400)
    tokenizer.vocab_size = 70_000
    corpus = prepare_corpus(source_of(tmp_path, ["four bytes a token"]), tokenizer)
    assert corpus.slice(0, 3).dtype == np.uint32
    assert prepare_corpus(source_of(tmp_path, ["two bytes"]), ByteTokenizer()).slice(0, 3).dtype == np.uint16


def test_changed_content_is_another_corpus(tmp_path):
    first = prepare_corpus(source_of(tmp_path, ["one"]), ByteTokenizer())
    second = prepare_corpus(source_of(tmp_path, ["two"]), ByteTokenizer())
    assert first.digest != second.digest
    assert ByteTokenizer().decode(second.document(0)) == "two"


@pytest.mark.parametrize("documents", [[""], ["", ""]])
def test_no_text(tmp_path, documents):
    with pytest.raises(ValueError, match=r"documents.jsonl holds no text; give a file with some"):
        prepare_corpus(source_of(tmp_path, documents), ByteTokenizer())
    assert not any(cache_folder("corpora").iterdir())


def test_a_failure_leaves_nothing_behind(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "fine"}\n{"text": 3}\n'))
    with pytest.raises(ValueError, match=r"a.jsonl.gz:2"):
        prepare_corpus(open_source(str(path)), ByteTokenizer())
    assert not any(cache_folder("corpora").iterdir())


def test_two_that_refuse_the_same_file_both_say_why(tmp_path):
    def engine(plan, tally):
        shutil.rmtree(plan.folder)  # as the other one does, which was faster
        raise ValueError("the sentence")

    with pytest.raises(ValueError, match=r"the sentence"):
        prepare_with(engine, source_of(tmp_path, ["text"]), ByteTokenizer(), None)


def test_a_sentencepiece_corpus_is_the_same_prepared_in_any_blocks(tmp_path, english, monkeypatch):
    tokenizer = train_sentencepiece([english], 400)
    assert isinstance(tokenizer, SentencePieceTokenizer)
    path = tmp_path / "a.txt"
    path.write_text(english)
    streams = []
    for block, smallest in ((64, 1 << 24), (1000, 2000), (1 << 22, 500)):
        monkeypatch.setenv("JUMOK_CACHE", str(tmp_path / str(block)))
        monkeypatch.setattr(reading, "BLOCK", block)
        monkeypatch.setattr(plan, "_SMALLEST_PIECE", smallest)
        corpus = prepare_corpus(open_source(str(path)), tokenizer, workers=1)
        streams.append(corpus.slice(0, corpus.num_tokens).tolist())
    assert streams[0] == streams[1] == streams[2] == [1, *tokenizer.processor.encode(english)]


@pytest.fixture
def documents(english):
    return [f"{number} {english[: number * 7 % 500]}" for number in range(200)]


def test_any_number_of_processes_makes_the_same_corpus(tmp_path, documents, monkeypatch, own_cache):
    source, tokenizer = source_of(tmp_path, documents), CharacterTokenizer.of(documents)
    made = []
    for workers in (1, 2, 3):
        monkeypatch.setenv("JUMOK_CACHE", str(own_cache / str(workers)))
        seen = []
        corpus = prepare_corpus(source, tokenizer, lambda *progress, seen=seen: seen.append(progress), workers)
        check(corpus, tokenizer, documents)
        assert len(corpus._shards) > 10
        assert [path.name for path in cache_folder("corpora").iterdir()] == [corpus.digest]  # and nothing else
        assert seen == sorted(seen)
        assert seen[-1] == (source.stored_bytes, source.stored_bytes)
        made.append(contents(cache_folder("corpora") / corpus.digest))
    assert made[0] == made[1] == made[2]
    index = json.loads((cache_folder("corpora") / corpus.digest / "index.json").read_text())
    assert {shard["file"]: shard["sha256"] for shard in index["shards"]}.items() <= made[0].items()


def test_without_locks_everybody_makes_what_is_missing(tmp_path, documents, monkeypatch):
    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(plan.fcntl, "flock", refuse)
    source = source_of(tmp_path, documents)
    threads = [threading.Thread(target=prepare_corpus, args=(source, ByteTokenizer(), None, 1)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check(prepare_corpus(source, ByteTokenizer()), ByteTokenizer(), documents)


def test_a_shard_in_other_hands_is_waited_for(tmp_path, documents, monkeypatch):
    monkeypatch.setattr(prepare, "_POLL_SECONDS", 0.01)
    source, written = source_of(tmp_path, documents), []
    write = shard_writer._write
    monkeypatch.setattr(shard_writer, "_write", lambda *args: (written.append(args[1]), write(*args)))
    target = cache_folder("corpora") / "target"
    made = plan.make_plan(target, source, ByteTokenizer())
    made.corpus.mkdir(parents=True)
    thread = threading.Thread(target=prepare._prepare, args=(lambda *_: None, made, None))
    with plan.locked(made.folder / "lock-00002") as ours:
        assert ours
        thread.start()
        while len(written) < len(made.pieces) - 1:
            time.sleep(0.01)
        thread.join(0.1)
        assert thread.is_alive()
        assert 2 not in written
        assert not target.exists()
    thread.join()  # the holder is gone, and the shard taken over
    assert sorted(written) == list(range(len(made.pieces)))
    assert target.exists()


def test_a_shard_that_is_not_whole_is_made_anew(tmp_path, documents):
    source = source_of(tmp_path, documents)
    made = plan.make_plan(cache_folder("corpora") / "target", source, ByteTokenizer())
    made.corpus.mkdir(parents=True)
    assert shard_writer.write_shard(made, 1)
    whole = made.tokens(1).read_bytes()
    for damage in (lambda: made.tokens(1).write_bytes(whole[:-1]), made.tokens(1).unlink, made.documents(1).unlink):
        damage()
        assert made.made(1) is None
        assert shard_writer.write_shard(made, 1)
        assert made.tokens(1).read_bytes() == whole
    made.record(1).write_text("{")
    assert made.made(1) is None


def test_what_is_there_is_opened_without_a_write(tmp_path, documents, monkeypatch):
    source = source_of(tmp_path, documents)
    corpus = prepare_corpus(source, ByteTokenizer(), workers=1)
    for module in (cache, plan):
        monkeypatch.setattr(module, "cache_folder", lambda name: pytest.fail("asked for a folder to write in"))
    monkeypatch.setattr(os, "open", lambda *_, **__: pytest.fail("opened a lock"))
    assert prepare_corpus(source, ByteTokenizer()).digest == corpus.digest


def test_no_workers(tmp_path):
    with pytest.raises(ValueError, match=r"workers=0 must be at least 1"):
        prepare_corpus(source_of(tmp_path, ["text"]), ByteTokenizer(), workers=0)


def test_what_a_worker_refuses_is_one_sentence(tmp_path, documents, capfd):
    path = tmp_path / "documents.jsonl"
    source_of(tmp_path, documents)
    path.write_text(path.read_text() + '{"text": 3}\n')
    with pytest.raises(ValueError, match=r"documents.jsonl.*holds a number in the column 'text'") as error:
        prepare_corpus(open_source(str(path)), ByteTokenizer(), workers=2)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("kill -9 $$", "was ended by SIGKILL, probably for want of memory; run again to go on"),
        ("exit 3", "failed with exit code 3; run again to go on: finished shards are kept"),
    ],
)
def test_a_worker_that_dies_is_said(tmp_path, documents, monkeypatch, script, sentence):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    source = source_of(tmp_path, documents)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", str(python))
        with pytest.raises(RuntimeError, match=f"a process that prepares tokens {sentence}"):
            prepare_corpus(source, ByteTokenizer(), workers=2)
    check(prepare_corpus(source, ByteTokenizer(), workers=1), ByteTokenizer(), documents)


# What a process of its own does: prepares `path` with small pieces, and says how many shards it wrote itself.
PROGRAM = """
import sys
from data import plan, prepare, shard_writer
from data.sources import open_source
from data.tokenizers.load import load_tokenizer

plan._SMALLEST_PIECE = 1 << 18
write, wrote = shard_writer._write, []

def counted(plan, number, *others):
    wrote.append(number)
    write(plan, number, *others)

shard_writer._write = counted
path, tokenizer, workers = sys.argv[1:]
corpus = prepare.prepare_corpus(open_source(path), load_tokenizer(tokenizer), workers=int(workers))
print(corpus.digest, len(wrote), len(corpus._shards))
"""


class Program:
    """PROGRAM on a text that takes it a second or two, and the corpus that it makes undisturbed."""

    def __init__(self, folder: Path, english: str):
        self.text, self.tokenizer = folder / "text.jsonl", folder / "tokenizer"
        train_sentencepiece([english], 400).save(self.tokenizer)
        lines = (json.dumps({"text": f"{number} {english[number % 900 :][:3000]}"}) + "\n" for number in range(1500))
        self.text.write_text("".join(lines))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("JUMOK_CACHE", str(folder / "cache"))
            with self.start(1) as process:
                assert process.stdout
                self.digest, _, self.shards = process.stdout.read().split()
            (self.folder,) = cache_folder("corpora").iterdir()

    def start(self, workers: int) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", PROGRAM, str(self.text), str(self.tokenizer), str(workers)]
        pipe = subprocess.PIPE
        return subprocess.Popen(words, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=pipe, stderr=pipe, text=True)

    def records(self) -> list[Path]:
        return sorted(cache_folder("corpora").glob("*.partial/shard-*.json"))


@pytest.fixture(scope="module")
def program(tmp_path_factory, english):
    return Program(tmp_path_factory.mktemp("program"), english)


def children(process: subprocess.Popen[str]) -> list[int]:
    return [int(number) for number in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def is_running(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("workers", "stop"),
    [(1, signal.SIGKILL), (2, signal.SIGKILL), (2, signal.SIGTERM), (2, signal.SIGINT)],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_stopped_process_leaves_no_orphans_and_repeats_no_finished_shard(program, workers, stop):
    with program.start(workers) as process:
        while len(program.records()) < 3:
            assert process.poll() is None, "it ended too early to be interrupted"
            time.sleep(0.01)
        workers_of_it = children(process)
        assert len(workers_of_it) == (workers if workers > 1 else 0)
        process.send_signal(stop)
    assert process.returncode != 0
    deadline = time.monotonic() + 60
    while any(map(is_running, workers_of_it)):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.01)
    finished = [f"tokens-{record.stem[6:]}.bin" for record in program.records()]
    (partial,) = cache_folder("corpora").iterdir()
    if partial.name == program.digest:
        pytest.skip("this machine was too busy: the signal came when all was done")
    before = {name: os.stat(partial / "corpus" / name) for name in finished}

    with program.start(1) as process:
        output, errors = process.communicate()
    assert errors == ""
    assert output.split() == [program.digest, str(int(program.shards) - len(finished)), program.shards]
    folder = cache_folder("corpora") / program.digest
    for name, status in before.items():
        after = os.stat(folder / name)
        assert (after.st_ino, after.st_mtime_ns) == (status.st_ino, status.st_mtime_ns)
    assert list(cache_folder("corpora").iterdir()) == [folder]
    assert contents(folder) == contents(program.folder)


def test_processes_at_the_same_time_share_the_work(program):
    with program.start(1) as one, program.start(1) as other:
        results = [process.communicate()[0].split() for process in (one, other)]
    wrote = [int(count) for _, count, _ in results]
    assert sum(wrote) == int(program.shards)
    assert min(wrote) > 0
    assert contents(cache_folder("corpora") / program.digest) == contents(program.folder)


def test_workers_import_this_package_alone(tmp_path, documents, monkeypatch):
    """Neither a folder `data` in the working directory nor one on the user's path is taken for ours; nor JAX."""
    for folder in (tmp_path, tmp_path / "library"):
        (folder / "data").mkdir(parents=True)
        (folder / "data" / "__init__.py").write_text("raise SystemExit('not this one')")
    (tmp_path / "library" / "jax.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "library"))
    source = source_of(tmp_path, documents)
    check(prepare_corpus(source, ByteTokenizer(), workers=2), ByteTokenizer(), documents)


def test_what_a_worker_says_of_its_progress(tmp_path, documents):
    made = plan.make_plan(cache_folder("corpora") / "target", source_of(tmp_path, documents), ByteTokenizer())
    made.corpus.mkdir(parents=True)
    program = """
import sys
from data.prepare_worker import main
main(3, 1)
assert not {"jax", "torch", "multiprocessing"} & set(sys.modules)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(json.dumps(made.to_json()) + "\n")
        process.stdin.flush()
        said = [json.loads(line) for line in process.stdout]
        assert process.wait() == 0
    count = len(made.pieces)
    assert [line["shard"] for line in said] == [*range(3, count), 0, 1, 2]
    assert all(0 < line["read"] <= made.sizes[line["shard"]] for line in said)


# What a driver of Ray does: makes the corpus of `path`, and then that of a text that can't be read.
DRIVER = """
import sys
import ray
from data import plan
from data.engines import prepare_with_ray
from data.sources import open_source
from data.tokenizers.load import load_tokenizer

plan._SMALLEST_PIECE = 1 << 18
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
path, tokenizer, bad = sys.argv[1:]
seen = []
prepare_with_ray(open_source(path), load_tokenizer(tokenizer), lambda *progress: seen.append(progress))
assert seen == sorted(seen) and seen[-1][0] == seen[-1][1], seen
try:
    prepare_with_ray(open_source(bad), load_tokenizer(tokenizer))
except ValueError as error:
    print(f"refused: {error}")
"""


@pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="needs Ray: pip install 'jumok[ray]'")
def test_ray_makes_the_same_corpus(program, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine"}\n{"text": 3}\n')
    words = [sys.executable, "-c", DRIVER, program.text.name, str(program.tokenizer), str(bad)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, cwd=program.text.parent)
    assert done.returncode == 0, done.stderr
    assert contents(cache_folder("corpora") / program.digest) == contents(program.folder)
    assert [path.name for path in cache_folder("corpora").iterdir()] == [program.digest]
    (sentence,) = [line for line in done.stdout.splitlines() if line.startswith("refused: ")]
    assert re.search(r"bad.jsonl:2 holds a number in the column 'text'", sentence)


def test_ray_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r'Ray is not installed; run pip install "jumok\[ray\]"'):
        prepare_with_ray(source_of(tmp_path, ["text"]), ByteTokenizer())
    assert not any(cache_folder("corpora").iterdir())
