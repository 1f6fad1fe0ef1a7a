"""`jumok data show`: the rows that a run will see at a position, so that a person can check what it is taught."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table
from rich.text import Text

from data.dataset import prepare_dataset
from data.loader import Batch
from data.tokenizers.base import Tokenizer
from train.config import RunConfig, validate
from train.console import Console
from train.load import tokenizer_of
from train.objectives.table import make_objective

# In the middle between black and white, so that they can be read on both: blue, orange, green, magenta, teal, violet.
COLOURS = ("#2f7fd1", "#b8641c", "#4d8a1f", "#c2489f", "#1f8a86", "#8567d6")
_GIVEN = "underline"  # for those whom colours don't reach


@dataclass(frozen=True)
class Show(RunConfig):
    """The run whose rows are shown."""

    at: int = 0  # examples seen before the first row that is shown; after N steps, N x batch size
    rows: int = 1  # how many are shown


class Piece(NamedTuple):
    """Tokens in a row that are all learned or all given."""

    tokens: list[int]
    learned: bool


def main(config: Show, console: Console) -> list[dict[str, Any]]:
    """The `data show` command."""
    for name, least in (("at", 0), ("rows", 1)):
        if getattr(config, name) < least:
            raise ValueError(f"{name}={getattr(config, name)} must be at least {least}; pass --{name} {least}")
    validate(config)
    objective = make_objective(config.objective)
    tokenizer = tokenizer_of(config)
    vocab_size = max(
        config.model.vocab_size, tokenizer.vocab_size if tokenizer else 0
    )  # the model is that of its weights
    with console.progress("reading the text") as progress:
        dataset = prepare_dataset(config.data, vocab_size, config.seed, tokenizer, progress, roles=objective.roles)
    loader = dataset.loader(config.data, config.seed, objective.preparation(dataset.tokenizer))
    batch = _whole(loader.rows_for(config.at, range(config.rows)))
    located = loader.locate(config.at + np.arange(config.rows))

    given = "underlined text is" if console.is_styled else "[[this]] is"
    console.say(f"Each number at the left is a segment; {given} given and not learned; ↵ is a line feed.")
    shown = []
    for place in range(config.rows):
        source, epoch, row = (int(values[place]) for values in located)
        segments = list(_segments({name: values[place] for name, values in batch.items()}))
        padding = int(np.count_nonzero(batch["segments"][place] == 0))
        learned = int(batch["scored"][place].sum())
        of_source = f"{loader.names[source]}, " if len(loader.sources) > 1 else ""
        console.say(
            f"\nnumber {config.at + place:,}: {of_source}epoch {epoch}, row {row:,} of "
            f"{len(loader.sources[source]):,}; segments: {len(segments):,}, learned tokens: {learned:,}, "
            f"padding: {padding:,} of {config.data.max_length:,} places"
        )
        console.show(_rendered(segments, dataset.tokenizer, console.is_styled))
        shown.append(
            {
                "number": config.at + place,
                "source": loader.names[source],
                "epoch": epoch,
                "row": row,
                "padding": padding,
                "segments": [_json(segment, dataset.tokenizer) for segment in segments],
            }
        )
    return shown


def _whole(batch: Batch) -> Batch:
    """A batch whose targets and scored have a place for each token; of masked rows, those of the others are its own."""
    if "places" not in batch:
        return batch
    targets, scored = batch["tokens"].copy(), np.zeros(batch["tokens"].shape, bool)
    rows, chosen = np.nonzero(batch["scored"])
    at = rows, batch["places"][rows, chosen]
    targets[at], scored[at] = batch["targets"][rows, chosen], True
    return {**batch, "targets": targets, "scored": scored} | {"masked": np.ones_like(scored)}


def _segments(row: Batch) -> Iterator[Batch]:
    for number in range(1, int(row["segments"].max()) + 1):
        at = row["segments"] == number
        yield {name: values[at] for name, values in row.items() if len(values) == len(at)}


def _json(segment: Batch, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "text": tokenizer.decode(segment["tokens"]),
        "learned": tokenizer.decode(segment["targets"][segment["scored"]]),
        **{name: segment[name].tolist() for name in ("tokens", "targets", "scored")},
    }


def pieces(segment: Batch) -> list[Piece]:
    """What a segment says, in order: its targets, and before them those inputs that are the target of nothing."""
    said: list[tuple[int, bool]] = []
    if "masked" in segment:  # each place is its own target
        said = list(zip(segment["targets"].tolist(), segment["scored"].tolist(), strict=True))
        return _grouped(said)
    before = -1
    for token, target, scored in zip(
        *(segment[name].tolist() for name in ("tokens", "targets", "scored")), strict=True
    ):
        if token != before:
            said.append((token, False))
        said.append((target, scored))
        before = target
    return _grouped(said)


def _grouped(said: list[tuple[int, bool]]) -> list[Piece]:
    return [
        Piece([token for token, _ in group], learned)
        for learned, group in itertools.groupby(said, lambda each: each[1])
    ]


def readable(piece: Piece, tokenizer: Tokenizer) -> str:
    """Text in which everything can be seen: special tokens by their names, line feeds, and what does not print."""
    text = b""
    shown = []
    for token in piece.tokens:
        text += (one := tokenizer.token_bytes(token))
        if not one:
            shown += [_visible(text), f"⟨{_name(token, piece.learned, tokenizer)}⟩"]
            text = b""
    return "".join([*shown, _visible(text)])


def _name(token: int, learned: bool, tokenizer: Tokenizer) -> str:
    """The role of a special token; one that both starts and ends documents ends them where it is learned."""
    roles = [role for role, special in tokenizer.specials.items() if special == token]
    likely = "end" if learned else "start"
    return likely if likely in roles else roles[0] if roles else str(token)


def _visible(text: bytes) -> str:
    marks = {"\n": "↵\n", "\t": "⇥\t"}
    return "".join(
        marks.get(character, character if character.isprintable() else ascii(character)[1:-1])
        for character in text.decode("utf-8", "backslashreplace")
    )


def _rendered(segments: list[Batch], tokenizer: Tokenizer, styled: bool) -> Table:
    """The segments of a row, each beside its number."""
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right")
    table.add_column(overflow="fold")
    for number, segment in enumerate(segments, 1):
        colour = COLOURS[(number - 1) % len(COLOURS)]
        text = Text()
        for piece in pieces(segment):
            said = readable(piece, tokenizer)
            if not styled:
                text.append(said if piece.learned else f"[[{said}]]")
            else:
                text.append(said, colour if piece.learned else _GIVEN)
        table.add_row(Text(f"{number} |", colour), text)
    return table
