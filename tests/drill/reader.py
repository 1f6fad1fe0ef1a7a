"""Reads files as the commands do, for `foreign_files.py`: a process of its own, since reading may crash, hang or swell.

`reader.py FOLDER` makes the originals in FOLDER where there are none, reads each of them once, and says where they are.
Then it answers lines of JSON, {"kind", "folder", "bytes"}, each by one: what became of that folder, why, and how much
memory the process has had at its highest.
"""

import json
import os
import resource
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from originals import TARGETS, make
from watch import Watch

from data.foreign_shards import open_foreign
from data.image_files import Shape, find_images
from data.reading import Reading
from data.sources import open_source, split_source
from data.tokenizers.export import to_files
from data.tokenizers.load import load_tokenizer
from data.tokenizers.plain import ByteTokenizer, CharacterTokenizer
from train.command import _is_ours
from train.export import import_folder
from train.load import load_run

_MOST_ABOVE = 200_000_000  # bytes above the process's own at its start, and twice the input
_ADDRESSES = 6 << 30  # bytes of address space above that at its start: a guard for the machine
_TEXT = "The cat sees 12 old houses,\n\tcaf\N{LATIN SMALL LETTER E WITH ACUTE}  \N{SNOWMAN} and [MASK] </s>"
_LABELLED = Reading(label_column="kind")
_PAIRS = Reading(prompt="{kind} ", response="{text}{number}")


def read_model(path: str) -> None:
    """As `jumok import` and `--from` do."""
    import_folder(path)


def read_tokenizer(path: str) -> None:
    """As whatever reads or writes text does, and `jumok export`."""
    tokenizer = load_tokenizer(path)
    to_files(tokenizer)
    _ = tokenizer.loss
    tokens = tokenizer.encode(tokenizer.characters if isinstance(tokenizer, CharacterTokenizer) else _TEXT)
    tokenizer.decode(tokens)
    tokenizer.decode([*range(0, tokenizer.vocab_size, max(1, tokenizer.vocab_size // 300)), -1])


def read_run(path: str) -> None:
    """As `jumok generate` does."""
    run = load_run(path)
    read_tokenizer(str(run.directory.tokenizer))


def read_text(path: str) -> None:
    """As `jumok data prepare` does, of plain text or of records as texts, labelled texts and pairs."""
    readings = [Reading()] if ".txt" in path else [Reading(), _LABELLED, _PAIRS]
    for reading in readings:
        source = open_source(path, reading)
        for part in split_source(source):
            for block in part.blocks():
                block.text.encode()
        if reading.label_column:
            list(source.labels())
        _ = source.digest, source.divide(1000, True)


def read_images(path: str) -> None:
    """As a run of a vision transformer does."""
    images = find_images(path)
    labels = images.labels(images.classes)
    shape = Shape(8, 3, resize=True) if os.path.isdir(path) else Shape(6, 1)
    images.check(shape)
    images.take(np.arange(len(labels)), shape)


def read_shards(path: str) -> None:
    """As a run does that reads the shards of other programs."""
    corpus = open_foreign(path, ByteTokenizer())
    corpus.split()
    corpus.slice(0, corpus.num_tokens)
    _ = corpus.longest, corpus.num_bytes, corpus.num_words


READERS: dict[str, Callable[[str], None]] = {
    "model": read_model,
    "sentencepiece": read_tokenizer,
    "tokenizer": read_tokenizer,
    "run": read_run,
    "pictures": read_images,
    **dict.fromkeys(("idx", "idx.gz", "npz"), read_images),
    **dict.fromkeys(("megatron", "llm.c"), read_shards),
    **dict.fromkeys(("txt", "txt.zst", "jsonl", "jsonl.gz", "json", "csv", "tsv", "parquet"), read_text),
}


def read(kind: str, folder: str) -> tuple[str, str]:
    """What becomes of a folder: it is "read", "refused" with a sentence, or it "fell", and by what."""
    try:
        READERS[kind](os.path.join(folder, TARGETS.get(kind, "")).rstrip("/"))
    except ValueError as error:
        sentence = str(error)
        if not _is_ours(error):
            return "fell", _described(error)
        if not any(name in sentence for name in _names(folder)):
            return "fell", f"a sentence that names nothing: {sentence!r:.300}"
        return "refused", sentence
    except Exception as error:
        return "fell", _described(error)
    return "read", ""


def _names(folder: str) -> list[str]:
    """What a sentence may name: the folder, a file of it, or a field of a configuration."""
    return [folder, "model.", "data.", "objective.", *(path.name for path in Path(folder).rglob("*") if path.is_file())]


def _described(error: Exception) -> str:
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "site-packages" not in frame.filename]
    where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(ours[-3:]))
    return f"{type(error).__name__}: {error!s:.200} ({where})"


def main(folder: Path) -> None:
    """Answers until standard input ends."""
    originals = folder / "originals"
    if not originals.is_dir():
        make(originals)
    kinds = {kind.name: sorted(map(str, kind.iterdir())) for kind in sorted(originals.iterdir())}
    _read_all(kinds)  # which imports and compiles what is needed
    compiled = [Path(place) for place in (os.environ.get("JAX_COMPILATION_CACHE_DIR"),) if place]
    watch = Watch([Path(os.environ["JUMOK_CACHE"]), folder / "inputs", *compiled])
    _read_all(kinds)
    if seen := watch.seen():
        raise RuntimeError(f"to read the originals, this was done: {'; '.join(seen)}")
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + _ADDRESSES, size + _ADDRESSES))
    start = _peak()
    _say(originals=kinds)
    for line in sys.stdin:
        request = json.loads(line)
        outcome, why = read(request["kind"], request["folder"])
        above = _peak() - start
        if seen := watch.seen():
            outcome, why = "fell", "; ".join(seen)
        if above > _MOST_ABOVE + 2 * request["bytes"]:
            outcome, why = "fell", f"{above >> 20} MiB of memory above the process's own"
        _say(outcome=outcome, why=why, above=above)


def _read_all(kinds: dict[str, list[str]]) -> None:
    for kind, places in kinds.items():
        for place in places:
            if (found := read(kind, place)) != ("read", ""):
                raise RuntimeError(f"the original {place} was not read: {found}")


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _say(**values: Any) -> None:
    os.write(_ANSWERS, f"{json.dumps(values)}\n".encode())


if __name__ == "__main__":
    _ANSWERS = os.dup(1)
    os.dup2(2, 1)  # what libraries print is no answer
    warnings.simplefilter("ignore")
    main(Path(sys.argv[1]))
