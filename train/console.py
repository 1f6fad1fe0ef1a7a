"""What a command shows to people: its output on standard output, its progress on standard error."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from data.cache import cache_folder

_FIRST_LINE_SECONDS, _LINE_SECONDS = 3.0, 10.0  # where there is no terminal


class Console:
    """Shows text, tables and progress, on terminals and, without control codes, in files.

    Attributes:
        began: when the command began, in Unix seconds: before JAX was imported.
        quiet: shows nothing, as of many processes all but the first should.
        write_traceback: keeps the traceback of a failure, and returns where; a run keeps them in its own folder.
    """

    def __init__(self) -> None:
        self.began = time.time()
        self.quiet = False
        self.write_traceback: Callable[[str], os.PathLike[str]] = into_the_cache

    def write(self, text: str) -> None:
        """Shows text as it is, at once."""
        if self.quiet:
            return
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except BrokenPipeError:  # the reader has seen enough, as in `jumok recipes | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(141) from None  # what the shell says of programs that SIGPIPE ends

    def say(self, text: str = "") -> None:
        """Shows a line."""
        self.write(f"{text}\n")

    def table(self, title: str, headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Shows rows under their headers, which may all be empty; numbers stand right, and names unbroken."""
        table = Table(box=None, show_header=any(headers), pad_edge=False)
        for number, header in enumerate(headers):
            numeric = all(isinstance(row[number], int | float) for row in rows)
            justify: Literal["left", "right"] = "right" if numeric else "left"
            table.add_column(header, justify=justify, overflow="fold", no_wrap=numeric or number == 0)
        for row in rows:
            table.add_row(*(Text(f"{cell:,}" if isinstance(cell, int) else str(cell)) for cell in row))
        if title:  # rich's own is broken at the width of the table, which may be narrow
            self.show(Text(title, style="table.title"))
        self.show(table)

    def show(self, renderable: RenderableType) -> None:
        """Shows what rich renders."""
        screen = _screen()
        with screen.capture() as captured:
            screen.print(renderable)
        self.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))

    @property
    def is_styled(self) -> bool:
        """Whether colours and underlines reach whoever reads."""
        screen = _screen()
        return screen.is_terminal and not screen.is_dumb_terminal

    def probabilities(self, prompt: str, pieces: Sequence[str], probabilities: Sequence[float]) -> None:
        """Shows a continuation token by token, with the probability of each."""
        rows = [(repr(piece), f"{probability:8.2%}") for piece, probability in zip(pieces, probabilities, strict=True)]
        self.table(repr(prompt), ("token", "probability"), rows)

    @contextlib.contextmanager
    def progress(self, description: str) -> Iterator[Callable[[int, int], None]]:
        """Shows that something takes time: a bar on a terminal, in a file a line now and then.

        Yields:
            update(done, total), which may be called at any rate, or never where progress is not known.
        """
        screen = RichConsole(stderr=True)
        if self.quiet:
            yield lambda done, total: None
        elif screen.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(20), TaskProgressColumn(), TimeElapsedColumn())
            # Few refreshes: a small machine has better things to do.
            with Progress(*columns, console=screen, transient=True, refresh_per_second=4) as bar:
                task = bar.add_task(description, total=None)
                yield lambda done, total: bar.update(task, completed=done, total=total)
        else:
            due = time.monotonic() + _FIRST_LINE_SECONDS

            def update(done: int, total: int) -> None:
                nonlocal due
                if total and time.monotonic() >= due:
                    sys.stderr.write(f"{description}: {done / total:.0%}\n")
                    sys.stderr.flush()
                    due = time.monotonic() + _LINE_SECONDS

            yield update

    def result(self, value: Any) -> None:
        """Prints a command's result as one strict JSON value, with null for numbers that are not finite."""
        text = json.dumps(value, default=lambda scalar: scalar.item())
        finite = json.loads(text, parse_constant=lambda name: None)
        self.say(json.dumps(finite, ensure_ascii=False))


def _screen() -> RichConsole:
    screen = RichConsole(file=sys.stdout, highlight=False)
    if not screen.is_terminal and "COLUMNS" not in os.environ:
        screen.width = 120
    return screen


def printable(sentence: str) -> str:
    """A sentence as terminals may get it: no line feed or escape sequence of a name that came from a file."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in sentence)


def into_the_cache(text: str) -> Path:
    """Keeps a traceback where no run has a folder for it; raises OSError or ValueError where it cannot."""
    path = cache_folder("tracebacks") / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    path.write_text(text, encoding="utf-8")
    return path
