"""Batches from memory-mapped tokens, shuffled, beside PyTorch's DataLoader over the same tokens."""

import importlib.util
from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
from timing import interleaved

from data.dataset import DataConfig, prepare_dataset
from data.loader import Loader
from data.packing import ConcatenatedRows
from data.shards import Corpus

_ROWS = 32


def measure(packing: str, repetitions: int) -> dict[str, Any]:
    """The row of one packing: seconds a batch, on one thread."""
    config = DataConfig(packing="contiguous" if packing == "contiguous" else "isolated")
    dataset = prepare_dataset(config, vocab_size=257, seed=0)
    corpus, length = dataset.train, config.max_length
    loader = Loader(ConcatenatedRows(corpus, length, config.packing, dataset.tokenizer.end_id), seed=0)
    positions = count(step=_ROWS)
    systems: dict[str, Callable[[], Any]] = {"jumok": lambda: loader.rows_for(next(positions), range(_ROWS))}
    if importlib.util.find_spec("torch"):
        systems["torch DataLoader"] = _data_loader(corpus, length)
    return {
        "what": f"{_ROWS} rows of {length} tokens a batch, {packing}, {corpus.num_tokens / corpus.num_documents:.0f} "
        "tokens a document; ours with segments and positions, torch's tokens and targets alone",
        "columns": [
            ("rows / CPU-s", "cpu", _ROWS),
            ("rows / s", "wall", _ROWS),
            ("tokens / CPU-s", "cpu", _ROWS * length),
        ],
        "samples": interleaved(systems, repetitions),
        "agreement": None,
    }


def _data_loader(corpus: Corpus, length: int) -> Callable[[], Any]:
    import torch
    from torch.utils.data import DataLoader, Dataset

    stream = corpus.slice(0, corpus.num_tokens)  # of one shard: still the mapped file

    class Windows(Dataset):
        def __len__(self) -> int:
            return (len(stream) - 1) // length

        def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
            window = torch.from_numpy(stream[row * length : (row + 1) * length + 1].astype(np.int64))
            return window[:-1], window[1:]

    def batches():
        while True:
            yield from DataLoader(Windows(), batch_size=_ROWS, shuffle=True, drop_last=True)

    endless = batches()
    return lambda: next(endless)
