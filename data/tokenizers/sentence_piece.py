"""SentencePiece (Kudo and Richardson 2018, https://arxiv.org/abs/1808.06226): trained here, or made elsewhere.

What is trained here is lossless, by byte fallback: `decode(encode(text)) == text` for any text.
"""

import heapq
import io
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import sentencepiece

from data.text import cut
from data.tokenizers.base import REPLACEMENT, Tokenizer
from data.tokenizers.roles import find_specials, usual_name
from data.tokenizers.sentence_piece_model import ModelType, has_user_defined_pieces, model_type, with_scores
from data.tokenizers.trial import note_model

# What SentencePiece writes for a space. In a text it means itself, and is encoded by its bytes.
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_SPACE_BYTES = tuple(_SPACE.encode())


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model, made here by `train_sentencepiece` or taken from elsewhere.

    `verbatim` says that the model takes texts as they are, and what it has no piece for by its bytes.

    Args:
        model: the bytes of a `tokenizer.model`.
        files: other files of the folder that it came from.

    Raises:
        ValueError: not a SentencePiece model, or one without a token that could start and end documents.
    """

    kind = "sentencepiece"
    _PART = 2048  # characters: short parts encode faster, since merging costs n log n, and on all cores

    def __init__(self, model: bytes, files: Mapping[str, bytes] | None = None):
        processor = sentencepiece.SentencePieceProcessor()
        try:
            processor.load_from_serialized_proto(model)
            size = processor.vocab_size()
            pieces = [processor.id_to_piece(token) for token in range(size)]
            byte_ids = {bytes.fromhex(pieces[token][3:-1]): token for token in range(size) if processor.is_byte(token)}
        except (RuntimeError, ValueError) as error:  # pieces that are not UTF-8 or not bytes are ValueErrors
            raise ValueError(
                "this is not a SentencePiece model, or a damaged one; give the file as it was made"
            ) from error
        ids = {"start": processor.bos_id(), "end": processor.eos_id()}
        ids |= {"pad": processor.pad_id(), "unknown": processor.unk_id()}
        marks = {pieces[token]: token for token in range(size) if processor.is_control(token)}
        specials = find_specials(files or {}, marks, {role: i for role, i in ids.items() if 0 <= i < size})
        if "start" not in specials:
            raise ValueError(
                "this SentencePiece model has neither a token that starts nor one that ends a document; "
                "train it with bos_id and eos_id"
            )
        super().__init__(size, specials, {**(files or {}), "tokenizer.model": model})
        self.pieces, self.processor = pieces, processor
        self._bytes = [self._bytes_of(token) for token in range(size)]
        for byte, token in byte_ids.items():
            self._bytes[token] = byte
        self.byte_ids = {byte[0]: token for byte, token in byte_ids.items() if len(byte) == 1}
        normal = (pieces[token] for token in range(size) if self.is_normal(token))
        # Spaces, line feeds and every form of a letter come through.
        probe = " a  \n\n\N{LATIN SMALL LIGATURE FI} e\N{COMBINING ACUTE ACCENT} "
        self.verbatim = self._exact = len(self.byte_ids) == 256 and processor.normalize(probe) == probe.replace(
            " ", _SPACE
        )
        self._adds_space = processor.normalize("a") != "a"
        self.cuts = self.verbatim and not any(re.search(f"[^{_SPACE}]{_SPACE}|\n[^\n]", piece) for piece in normal)

    @cached_property
    def model_type(self) -> ModelType:
        """How the model cuts text into pieces."""
        return model_type(self.files["tokenizer.model"])

    @cached_property
    def exportable(self) -> bool:
        """Whether a tokenizer.json can say the same."""
        model = self.files["tokenizer.model"]
        return self.verbatim and self.model_type in ("bpe", "unigram") and not has_user_defined_pieces(model)

    def is_normal(self, token: int) -> bool:
        """Whether an id stands for text of its own, rather than a byte or a mark."""
        process = self.processor
        return not (
            process.is_control(token) or process.is_unknown(token) or process.is_byte(token) or process.is_unused(token)
        )

    def _identity(self) -> Any:
        # Of the pieces and not of the file, which also records how many threads trained it.
        score = self.processor.get_score
        pieces = [(piece, score(token), self.is_normal(token)) for token, piece in enumerate(self.pieces)]
        return self.verbatim, pieces, self.start_id, self.end_id

    def _encode(self, texts: Sequence[str], threads: int | None) -> list[np.ndarray]:
        # All parts of all texts go through one call, which spreads them over the threads.
        parts: list[str | None] = []
        counts = []
        for text in texts:
            before = len(parts)
            parts.extend(self._parts(text))
            counts.append(len(parts) - before)
        known = [part for part in parts if part is not None]
        encoded = iter(self.processor.encode_as_numpy(known, num_threads=threads or -1))
        space = np.array([self.byte_ids[byte] for byte in _SPACE_BYTES] if self.verbatim else [], np.int32)
        tokens = iter([space if part is None else np.asarray(next(encoded), np.int32) for part in parts])
        none = np.zeros(0, np.int32)
        return [np.concatenate([none, *(next(tokens) for _ in range(count))]) for count in counts]

    def _parts(self, text: str) -> Iterator[str | None]:
        """The parts of a text that are encoded apart; None is the character that SentencePiece takes for a space."""
        if not self.verbatim:
            yield text
            return
        for number, section in enumerate(text.split(_SPACE)):
            if number:
                yield None
            yield from cut(section, self._PART) if self.cuts else (section,)

    def _token_bytes(self, token: int) -> bytes:
        return self._bytes[token]

    def _bytes_of(self, token: int) -> bytes:
        piece, process = self.pieces[token], self.processor
        if process.is_unknown(token):
            return REPLACEMENT
        return piece.replace(_SPACE, " ").encode() if self.is_normal(token) else b""

    def _description(self) -> dict[str, Any]:
        return {"start": self.pieces[self.start_id], "end": self.pieces[self.end_id]}


def train_sentencepiece(
    texts: Iterable[str],
    vocab_size: int,
    model_type: Literal["bpe", "unigram"] = "bpe",
    *,
    seed: int = 0,
    roles: Sequence[str] = (),
    sample_characters: int = 32_000_000,
) -> SentencePieceTokenizer:
    """A lossless SentencePiece tokenizer of exactly `vocab_size` ids, trained on a seeded sample of the texts.

    Ids 0, 1, 2 are <unk>, <s>, </s>, then come the special tokens for other `roles`, such as "mask", and then the
    bytes. The result depends on texts, sizes, roles and seed alone.

    Raises:
        ValueError: a vocabulary larger than the text allows, or too small for its characters; or no text at all.
    """
    if vocab_size < 260:
        raise ValueError(
            f"vocab_size={vocab_size} is too small for SentencePiece, which needs 3 marks, 256 bytes and the text's "
            f"characters; pass --model.vocab-size 512 or more, or --data.tokenizer bytes"
        )
    marks = [usual_name(role) for role in roles]
    writer = io.BytesIO()
    sample = _sample(texts, sample_characters, seed)  # what cannot be read says so itself
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(sample),
            model_writer=writer,
            vocab_size=vocab_size,
            model_type=model_type,
            control_symbols=marks,
            required_chars="".join(sorted({*_MARK_CHARACTERS, *"".join(marks)})) if model_type == "unigram" else "",
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            add_dummy_prefix=False,
            max_sentence_length=1 << 24,  # bytes: _sentences bounds them, nothing is dropped
            num_threads=4,  # the pieces of unigram models depend on it, so it's the same everywhere
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            minloglevel=2,
        )
    except (RuntimeError, OSError, ValueError) as error:
        raise ValueError(_reason(str(error), vocab_size)) from error
    model = writer.getvalue()
    if model_type == "unigram":
        model = with_scores(model, lambda score: round(score * _SCORE_STEPS) / _SCORE_STEPS)
    note_model(model)
    return SentencePieceTokenizer(model)


# A unigram model cuts a text where the sum of the scores is largest. SentencePiece adds them up in float32 and Hugging
# Face's library in float64; sums of whole 64ths are exact in both, so that both cut alike (data/tokenizers/export.py).
_SCORE_STEPS = 64

# The letters of <0x..>, <unk>, <s> and </s>: as pieces of their own, a text with such a name in it is read by them.
_MARK_CHARACTERS = "<>/0123456789ABCDEFxsunk"


def _reason(message: str, vocab_size: int) -> str:
    if most := re.search(r"value <= (\d+)", message):
        return (
            f"vocab_size={vocab_size} is larger than the text allows for SentencePiece, which finds {most[1]} pieces "
            f"in it; pass --model.vocab-size {most[1]} or less, or give more text"
        )
    if needed := re.search(r"required_chars\. \d+ vs (\d+)", message):
        return (
            f"vocab_size={vocab_size} is smaller than the {needed[1]} marks, bytes and characters that SentencePiece "
            f"needs for the text; pass --model.vocab-size {needed[1]} or more"
        )
    return (
        f"SentencePiece could not make {vocab_size} pieces from the text, which is too short or empty; give more text"
    )


_BLOCK = 1 << 16  # characters: what the sample takes or leaves
_SENTENCE = 1 << 13


def _sample(texts: Iterable[str], size: int, seed: int) -> list[str]:
    """Blocks of the texts, in their order, of about `size` characters in all; all of them where they are fewer.

    Each block draws a number, and the largest stay; once a block has gone, so do all that draw less.
    """
    generator = random.Random(seed)
    kept: list[tuple[float, int, str]] = []  # a heap, the smallest number first
    held, gone = 0, -1.0
    for place, block in enumerate(block for text in texts for block in cut(text, _BLOCK)):
        number = generator.random()
        if number < gone:
            continue
        heapq.heappush(kept, (number, place, block))
        held += len(block)
        while held > size and len(kept) > 1:
            gone, _, left_out = heapq.heappop(kept)
            held -= len(left_out)
    return [block for _, _, block in sorted(kept, key=lambda entry: entry[1])]


def _sentences(blocks: Iterable[str]) -> Iterator[str]:
    """What SentencePiece learns from: lines with the line feeds after them, so that no piece crosses into a line."""
    for block in blocks:
        # Both characters have a meaning inside SentencePiece, which would skip or misread lines that hold them.
        for section in re.split(f"[{_SPACE}\N{LOWER FIVE EIGHTHS BLOCK}\0]", block):
            for line in re.findall("[^\n]*\n+|[^\n]+", section):
                for sentence in cut(line, _SENTENCE):
                    # Line feeds at the very end would be stripped; a space there shields them.
                    yield sentence + " "
