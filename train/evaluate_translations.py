"""What `evaluate` says of translations: BLEU, chrF, BLEU by source length, and that of several runs as one picture."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from etils import epath

from data.cache import digest_of
from data.dataset import Dataset, open_sources
from data.sources import Source
from model.beam import Beam
from train.console import Console
from train.picture import Point, line_chart
from train.run_directory import write_atomically
from train.translate import LONGER, Translator
from train.translation_metrics import bleu_by_length, quality

_SAMPLES = 3  # translations that are shown


def score_translations(
    translator: Translator,
    dataset: Dataset,
    beam: Beam,
    console: Console,
    *,
    batch_size: int,
    sentences: int | None = None,
    allow_code: bool = False,
) -> tuple[dict[str, Any], str]:
    """Translates held-out sources, the first `sentences` of them; returns figures and the digest of the references.

    References are the texts as they are in the files, not what a tokenizer leaves of them. `allow_code` is that of
    `open_sources`.
    """
    _, source = open_sources(dataset.config, allow_code)
    sources, references = map(list, zip(*islice(_pairs(source), sentences), strict=True))
    end_id = dataset.tokenizer.special("end")
    ids = [np.append(tokens, end_id) for tokens in dataset.tokenizer.encode_batch(sources)]
    with console.progress("translating") as progress:
        translations = translator.translate(ids, beam, batch_size=batch_size, progress=progress)
    outputs = [translation.text for translation in translations]
    by_length = bleu_by_length(sources, outputs, references)
    for lines in islice(zip(sources, references, outputs, strict=True), _SAMPLES):
        console.table("", ("", ""), list(zip(("source", "reference", "translation"), lines, strict=True)))
    rows = [(f"{each['shortest']}-{each['longest']}", each["sentences"], f"{each['bleu']:.2f}") for each in by_length]
    console.table("BLEU by source length", ("words", "sentences", "BLEU"), rows)
    figures = quality(outputs, references)
    figures["signatures"]["search"] = (
        f"{beam.num_beams} beams, length penalty {beam.length_penalty} ({beam.penalty}), at most {LONGER} tokens more "
        "than the source"
    )
    return figures | {"sentences": len(outputs), "by_length": by_length}, digest_of(references)


def draw_by_length(by_length: Mapping[str, Sequence[Mapping[str, float]]], path: epath.Path) -> None:
    """Writes an SVG file: BLEU by source length, as `score_translations` reports it of each run."""
    lines = {
        name: [
            Point(each["length"], each["bleu"], f"{each['sentences']} sentences, {each['bleu']:.1f} BLEU")
            for each in groups
        ]
        for name, groups in by_length.items()
    }
    write_atomically(path, line_chart("BLEU by source length", "words of the source", "BLEU", lines))


def _pairs(source: Source) -> Iterator[tuple[str, str]]:
    """What is given and what is learned, of each document in which there is something to learn."""
    texts = {True: "", False: ""}
    for block in source.blocks():
        texts[block.given] += block.text
        if block.last:
            if texts[False]:
                yield texts[True], texts[False]
            texts = {True: "", False: ""}
