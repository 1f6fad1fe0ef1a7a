"""A piece of a source to a shard: its text to tokens, and what is known of its documents."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import repeat, takewhile
from typing import BinaryIO, NamedTuple

import numpy as np

from data.cache import written_atomically
from data.loader import prefetch
from data.plan import Plan, locked
from data.reading import Block

REFUSALS_KEPT = 5
_BATCH = 1 << 21  # characters that are encoded together: enough for every core, little enough for a moving bar
_SPACES = np.array([chr(code).isspace() for code in range(0x3002)])  # of all beyond, none is one


def write_shard(
    plan: Plan, number: int, threads: int | None = None, progress: Callable[[int, int], None] | None = None
) -> bool:
    """Makes a shard unless it is there, and returns whether it is; False where another process has it in hand.

    Args:
        plan: of which corpus.
        number: of the shard.
        threads: that the tokenizer may use; all cores by default.
        progress: called with `number` and the stored bytes read so far.

    Raises:
        ValueError: something is wrong with a file, or the tokenizer can't encode its text.
    """
    if plan.target.exists() or plan.made(number):
        return True
    with locked(plan.folder / f"lock-{number:05d}") as ours:
        if ours and not plan.made(number):
            _write(plan, number, threads, progress or (lambda number, read: None))
        return ours


class _Text(NamedTuple):
    """Text that is encoded in one go; `opens` where a document begins with it."""

    text: str
    opens: bool
    given: bool
    words: int
    read: int


def _write(plan: Plan, number: int, threads: int | None, progress: Callable[[int, int], None]) -> None:
    piece, refusals, refused = plan.pieces[number], [], 0

    def refuse(sentence: str) -> None:
        nonlocal refused
        refused += 1
        if refused <= REFUSALS_KEPT:
            refusals.append(sentence)

    texts = _Texts(piece.blocks(refuse), plan.tokenizer.cuts, piece.parts[0].continues)
    batches = _batches(texts)
    with (
        # Each batch is read while the one before it is encoded.
        closing(prefetch(lambda _: next(batches, []), repeat(None), depth=1)) as read_ahead,
        written_atomically(plan.tokens(number), plan.folder) as tokens_path,
        written_atomically(plan.documents(number)) as documents_path,
        tokens_path.open("wb") as tokens,
        documents_path.open("wb") as documents,
    ):
        writer = _ShardWriter(tokens, documents, plan.dtype, plan.tokenizer.start_id)
        for batch in takewhile(bool, read_ahead):
            writer.write(batch, plan.tokenizer.encode_batch([text.text for text in batch], threads))
            progress(number, batch[-1].read)
        writer.close()
    record = {
        "tokens": writer.position,
        "sha256": writer.sha256.hexdigest(),
        "rows": writer.rows,
        "documents": writer.documents,
        "given": writer.given,
        "bytes": writer.bytes,
        "words": writer.words,
        "empty": texts.empty,
        "refused": refused,
        "refusals": refusals,
    }
    with written_atomically(plan.record(number)) as temporary:
        temporary.write_text(json.dumps(record))


class _Texts:
    """The blocks that hold text, joined to documents unless the tokenizer cuts.

    A document without text to learn is left out, and counted in `empty`. `continues` says that the first one began
    in the piece before.
    """

    def __init__(self, blocks: Iterator[Block], cuts: bool, continues: bool):
        self._blocks, self._cuts, self._continues = blocks, cuts, continues
        self.empty = 0

    def __iter__(self) -> Iterator[_Text]:
        begun, in_word = self._continues, False
        prompt: list[str] = []
        waiting: list[str] = []
        for block in self._blocks:
            (prompt if block.given else waiting).append(block.text)
            if block.last or (self._cuts and not block.given):
                text = "".join(waiting)
                waiting.clear()
                if text:
                    if given := "".join(prompt):
                        yield _Text(given, True, True, 0, block.read)
                        begun = True
                        prompt.clear()
                    words, in_word = _count_words(text, in_word)
                    yield _Text(text, not begun, False, words, block.read)
                    begun = True
            if block.last:
                self.empty += not begun
                prompt.clear()
                begun = in_word = False


def _count_words(text: str, in_word: bool) -> tuple[int, bool]:
    """How many words begin in a text, which goes on within one or not; and whether it ends within one.

    The words of `str.split`, counted eight times as fast.
    """
    spaces = _SPACES.take(np.frombuffer(text.encode("utf-32-le"), "<u4"), mode="clip")
    begun = np.count_nonzero(spaces[:-1] > spaces[1:]) + (not spaces[0] and not in_word)
    return int(begun), not spaces[-1]


def _batches(texts: _Texts) -> Iterator[list[_Text]]:
    batch: list[_Text] = []
    held = 0
    for text in texts:
        batch.append(text)
        held += len(text.text)
        if held >= _BATCH:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


class _ShardWriter:
    """Appends a shard's tokens and, for each document, a row: where it starts, tokens given, bytes and words learned.

    The first row starts at -1 where the shard begins within a document.
    """

    def __init__(self, tokens: BinaryIO, documents: BinaryIO, dtype: np.dtype, start_id: int):
        self._tokens, self._documents, self._dtype = tokens, documents, dtype
        self._start = np.array([start_id])
        self._row: list[int] | None = None
        self.position = self.rows = self.documents = self.given = self.bytes = self.words = 0
        self.sha256 = hashlib.sha256()

    def write(self, texts: Sequence[_Text], encoded: Sequence[np.ndarray]) -> None:
        """Appends texts and their tokens."""
        stream: list[np.ndarray] = []
        rows: list[list[int]] = []
        for (text, opens, given, words, _), tokens in zip(texts, encoded, strict=True):
            if opens or self._row is None:
                if self._row:
                    rows.append(self._row)
                self._row = [self.position if opens else -1, int(opens), 0, 0]
            if opens:
                stream.append(self._start)
                self.position += 1
            if given:
                self._row[1] += len(tokens)
            else:
                self._row[2] += len(text) if text.isascii() else len(text.encode())
                self._row[3] += words
            stream.append(tokens)
            self.position += len(tokens)
        content = np.concatenate(stream, dtype=self._dtype, casting="unsafe")
        self.sha256.update(content.data)
        self._tokens.write(content.data)
        self._write_rows(rows)

    def close(self) -> None:
        """Appends the row of the last document."""
        if self._row:
            self._write_rows([self._row])

    def _write_rows(self, rows: list[list[int]]) -> None:
        self._documents.write(np.array(rows, "<i8").data)
        self.rows += len(rows)
        for start, given, size, words in rows:
            self.documents += start >= 0
            self.given += given
            self.bytes += size
            self.words += words
