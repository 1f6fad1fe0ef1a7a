"""How good translations are: BLEU (Papineni et al. 2002) and chrF (Popović 2015), as sacrebleu has them (Post 2018)."""

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np

MISSING = 'BLEU and chrF need sacrebleu; install it with pip install "jumok[translation]"'

_WORDS = 5  # by how many words sources are told apart
_FEWEST = 20  # sentences of which BLEU says something


def is_installed() -> bool:
    """Whether sacrebleu is there."""
    return importlib.util.find_spec("sacrebleu") is not None


def quality(outputs: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """The "bleu" and "chrf" of all sentences together, 0 to 100, and "signatures" of how they were computed."""
    bleu, chrf = _metrics()
    return {
        "bleu": bleu.corpus_score(outputs, [references]).score,
        "chrf": chrf.corpus_score(outputs, [references]).score,
        "signatures": {"bleu": str(bleu.get_signature()), "chrf": str(chrf.get_signature())},
    }


def bleu_by_length(
    sources: Sequence[str], outputs: Sequence[str], references: Sequence[str]
) -> list[dict[str, float | int]]:
    """BLEU of the sentences whose sources have 1 to 5 words, 6 to 10, and so on.

    Few sentences are joined with the next longer ones, and the longest with those before them. Of each group: the
    "shortest", the "longest" and the mean "length" of its sources in words, its number of "sentences", and their
    "bleu".
    """
    bleu, _ = _metrics()
    lengths = np.array([len(source.split()) for source in sources])
    fives = (np.maximum(lengths, 1) - 1) // _WORDS
    groups: list[np.ndarray] = []
    few = np.zeros(0, np.int64)
    for number in np.unique(fives):
        few = np.append(few, np.flatnonzero(fives == number))
        if len(few) >= _FEWEST:
            groups.append(few)
            few = few[:0]
    if len(few):
        groups[-1:] = [np.concatenate([*groups[-1:], few])]
    return [
        {
            "shortest": int(lengths[group].min()),
            "longest": int(lengths[group].max()),
            "length": float(lengths[group].mean()),
            "sentences": len(group),
            "bleu": bleu.corpus_score([outputs[i] for i in group], [[references[i] for i in group]]).score,
        }
        for group in groups
    ]


def _metrics() -> tuple[Any, Any]:
    metrics = importlib.import_module("sacrebleu.metrics")  # checked without this extra, too
    return metrics.BLEU(), metrics.CHRF()
