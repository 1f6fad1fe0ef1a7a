"""`jumok data show`: the rows that a run will see at a position, so that a person can check what it is taught."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table
from rich.text import Text

from data.dataset import Dataset
from data.loader import Batch
from data.tokenizers.base import Tokenizer
from train.config import RunConfig, validate
from train.console import Console
from train.load import open_dataset, preparation_of, tokenizer_of, with_classes
from train.objectives.table import make_objective
from train.picture import COLOURS

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
    config = with_classes(config)
    objective = make_objective(config.objective)
    with console.progress("reading the text") as progress:
        dataset = open_dataset(config, tokenizer_of(config), progress)
    if not isinstance(dataset, Dataset):
        raise ValueError("these data are images, which `jumok data show` does not show; look at the files")
    loader = dataset.loader(config.seed, objective.rows, preparation_of(objective, dataset))
    batch = loader.rows_for(config.at, range(config.rows))
    is_shifted = "targets" in batch and "places" not in batch
    batch = batch if is_shifted else _whole(batch)
    classes = getattr(config.model, "classes", ())
    located = loader.locate(config.at + np.arange(config.rows))

    given = "underlined text is" if console.is_styled else "[[this]] is"
    console.say(f"Each number at the left is a segment; {given} given and not learned; ↵ is a line feed.")
    shown = []
    for place in range(config.rows):
        source, epoch, row = (int(values[place]) for values in located)
        segments = list(_segments({name: values[place] for name, values in batch.items()}))
        padding = int(np.count_nonzero(batch["segments"][place] == 0))
        learned = int(batch["scored"][place].sum())
        label = f", class: {classes[batch['labels'][place]]}" if objective.rows == "labelled" else ""
        of_source = f"{loader.names[source]}, " if len(loader.sources) > 1 else ""
        console.say(
            f"\nnumber {config.at + place:,}: {of_source}epoch {epoch}, row {row:,} of "
            f"{len(loader.sources[source]):,}; segments: {len(segments):,}, learned tokens: {learned:,}, "
            f"padding: {padding:,} of {batch['tokens'].shape[1]:,} places{label}"
        )
        said = [pieces(segment, is_shifted) for segment in segments]
        console.show(_rendered(said, dataset.tokenizer, console.is_styled))
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
    """A batch with a target for each place: what a mask hides, and elsewhere the place's own token, unscored."""
    targets, scored = batch["tokens"].copy(), np.zeros(batch["tokens"].shape, bool)
    if "places" in batch:
        rows, chosen = np.nonzero(batch["scored"])
        at = rows, batch["places"][rows, chosen]
        targets[at], scored[at] = batch["targets"][rows, chosen], True
    return {**batch, "targets": targets, "scored": scored}


def _segments(row: Batch) -> Iterator[Batch]:
    """What a row has of each of its segments: tokens, targets, scored and, of a pair, source_tokens."""
    for number in range(1, int(row["segments"].max()) + 1):
        at = row["segments"] == number
        segment = {name: row[name][at] for name in ("tokens", "targets", "scored")}
        if "source_tokens" in row:
            segment["source_tokens"] = row["source_tokens"][row["source_segments"] == number]
        yield segment


def _json(segment: Batch, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "text": tokenizer.decode(segment.get("source_tokens", segment["tokens"])),
        "learned": tokenizer.decode(segment["targets"][segment["scored"]]),
        **{name: segment[name].tolist() for name in ("tokens", "targets", "scored")},
    }


def pieces(segment: Batch, is_shifted: bool = True) -> list[Piece]:
    """What a segment says, in order: its targets, and before them those inputs that are the target of nothing.

    Of a pair these are the source's tokens; where targets are not shifted, each place is its own.
    """
    targets = list(zip(segment["targets"].tolist(), segment["scored"].tolist(), strict=True))
    if "source_tokens" in segment:
        return _grouped([(token, False) for token in segment["source_tokens"].tolist()] + targets)
    if not is_shifted:
        return _grouped(targets)
    said: list[tuple[int, bool]] = []
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


def _rendered(segments: list[list[Piece]], tokenizer: Tokenizer, styled: bool) -> Table:
    """What the segments of a row say, each beside its number."""
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right")
    table.add_column(overflow="fold")
    for number, segment in enumerate(segments, 1):
        colour = COLOURS[(number - 1) % len(COLOURS)]
        text = Text()
        for piece in segment:
            said = readable(piece, tokenizer)
            if not styled:
                text.append(said if piece.learned else f"[[{said}]]")
            else:
                text.append(said, colour if piece.learned else _GIVEN)
        table.add_row(Text(f"{number} |", colour), text)
    return table
