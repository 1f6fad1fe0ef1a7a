"""The rows about data: text to tokens, tokens to batches, and what that takes. Without JAX, as the data room is.

The text is what Python itself carries, so that the rows run anywhere; JUMOK_BENCH_TEXT names another file or folder.
"""

import importlib
import importlib.util
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from data.dataset import DataConfig, prepare_dataset
from data.prepare import prepare_corpus
from data.sources import EMBEDDED, open_source
from data.tokenizers.sentence_piece import SentencePieceTokenizer

_TEXT = os.environ.get("JUMOK_BENCH_TEXT", EMBEDDED)
_CONFIG = DataConfig(_TEXT, tokenizer="sentencepiece")
_VOCAB_SIZE = 4096
_MEGABYTE = 1 << 20


def load(packing: Any) -> dict[str, Any]:
    """Shuffled batches out of memory-mapped shards, as bytes."""
    config, rows = DataConfig(_TEXT, packing=packing), 32
    dataset, length = prepare_dataset(config, vocab_size=257, seed=0), config.max_length
    loader = dataset.loader(seed=0)
    positions = count(step=rows)
    systems: dict[str, Callable] = {"jumok": lambda: loader.rows_for(next(positions), range(rows))}
    if importlib.util.find_spec("torch") is not None:
        torch: Any = importlib.import_module("torch")
        corpus = dataset.corpora[0]
        stream = corpus.slice(0, corpus.num_tokens)

        class Windows(list):
            """Rows as (tokens, targets), read when they are asked for."""

            def __getitem__(self, row):
                window = torch.from_numpy(stream[row * length : (row + 1) * length + 1].astype(np.int64))
                return window[:-1], window[1:]

        read, windows = torch.utils.data.DataLoader, Windows(range((len(stream) - 1) // length))
        batches = (batch for _ in count() for batch in read(windows, rows, shuffle=True, drop_last=True))
        systems["torch DataLoader"] = partial(next, batches)  # tokens and targets alone
    return {
        "what": f"{rows} x {length} tokens a batch, {packing}",
        "systems": systems,
        "columns": [("rows / CPU-s", "cpu", rows), ("tokens / CPU-s", "cpu", rows * length)],
    }


def encode(_: str) -> dict[str, Any]:
    """Text to tokens by SentencePiece, beside the library's own call on the same list of documents."""
    texts, tokenizer = _documents_and_tokenizer()
    threads = len(os.sched_getaffinity(0))
    bare = partial(tokenizer.processor.encode, texts, num_threads=threads)
    ours = [tokens.tolist() for tokens in tokenizer.encode_batch(texts)]
    equal = sum(a == b for a, b in zip(ours, bare(), strict=True))
    return {
        "what": f"{len(texts):,} documents, {_megabytes(texts):.1f} MB, {_VOCAB_SIZE} pieces",
        "systems": {"jumok": partial(tokenizer.encode_batch, texts), "sentencepiece": bare},
        "columns": [("MB / CPU-s", "cpu", _megabytes(texts)), ("MB / s", "wall", _megabytes(texts))],
        "agreement": f"{equal:,} of {len(texts):,} documents have the same ids",
    }


def prepare(_: str) -> dict[str, Any]:
    """A corpus into an empty cache (read, hashed, tokenized, counted and written), beside the encoder alone."""
    texts, tokenizer = _documents_and_tokenizer()
    source = open_source(_TEXT)

    def into_an_empty_cache() -> None:
        cache = os.environ.get("JUMOK_CACHE")
        with tempfile.TemporaryDirectory(prefix="jumok-bench-") as folder:
            os.environ["JUMOK_CACHE"] = folder
            try:
                prepare_corpus(source, tokenizer)
            finally:
                del os.environ["JUMOK_CACHE"]
                os.environ.update({"JUMOK_CACHE": cache} if cache else {})

    return {
        "what": f"{_megabytes(texts):.1f} MB to tokens on disk",
        "systems": {"jumok": into_an_empty_cache, "its encoder": partial(tokenizer.encode_batch, texts)},
        "columns": [("MB / CPU-s", "cpu", _megabytes(texts)), ("MB / s", "wall", _megabytes(texts))],
    }


def cold(_: str) -> dict[str, Any]:
    """From nothing to the first batch of text that is prepared: Python's start, imports, opening and reading."""
    prepare_dataset(_CONFIG, _VOCAB_SIZE, 0)
    code = (
        "from data.dataset import DataConfig, prepare_dataset; "
        f"config = DataConfig({_TEXT!r}, tokenizer='sentencepiece'); "
        f"prepare_dataset(config, {_VOCAB_SIZE}, 0).loader(0).rows_for(0, range(32))"
    )
    start = partial(subprocess.run, [sys.executable, "-c", code], check=True)
    return {"what": "a process of its own", "systems": {"jumok": start}, "columns": [("ms", "wall", None)]}


def memory(size: str) -> dict[str, Any]:
    """The most memory that preparing a text of so many MB takes, as bytes, in any of its processes."""
    with tempfile.TemporaryDirectory(prefix="jumok-bench-") as folder:
        file = Path(folder) / "text.jsonl"
        line = b'{"text": "' + b"It was a dark night, and somewhere a clock struck. " * 80 + b'"}\n'
        with file.open("wb") as text:
            for _ in range(int(size) * _MEGABYTE // len(line)):
                text.write(line)
        code = (
            "import sys; from data.dataset import DataConfig, prepare_dataset; "
            "prepare_dataset(DataConfig(sys.argv[1]), 257, 0)"
        )
        environment = os.environ | {"JUMOK_CACHE": str(Path(folder) / "cache")}
        subprocess.run([sys.executable, "-c", code, str(file)], check=True, env=environment)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {"what": f"{size} MB of text", "figures": {"MiB at most": peak}}


def _documents_and_tokenizer() -> tuple[list[str], SentencePieceTokenizer]:
    texts = [text for text in open_source(_TEXT).texts() if text]
    tokenizer = prepare_dataset(_CONFIG, _VOCAB_SIZE, 0).tokenizer
    assert isinstance(tokenizer, SentencePieceTokenizer)
    return texts, tokenizer


def _megabytes(texts: list[str]) -> float:
    return sum(len(text.encode()) for text in texts) / 1e6
