"""Runs a command: words in, exit code out. Shared by `jumok`, `python -m train.train` and `python train/train.py`.

0 done; 2 refused, in one sentence; 1 failed, in one sentence, with the traceback in a file; 130 stopped by Ctrl-C and
143 by SIGTERM. JAX is imported only with the command itself, after the process is prepared for it.
"""

import contextlib
import difflib
import importlib
import json
import linecache
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import NamedTuple, NoReturn

from train.console import Console, into_the_cache, printable
from train.environment import make_deterministic, prepare

DONE, FAILED, REFUSED, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143


class Command(NamedTuple):
    """A command: `target` "module:function" takes (arguments, console) and returns the value that `--json` prints."""

    target: str
    summary: str


TRAIN = {"train": Command("train.train:main", "train a recipe, or go on with a run")}

_OURS = ("model", "data", "train", "launch")
_SAME_REQUEST_SECONDS = 1.0  # `timeout` sends its signal to the process and to its group: two, and one request


def dispatch(words: Sequence[str], commands: Mapping[str, Command] = TRAIN) -> int:
    """Runs the command that the first words name, with the words behind them, and returns the exit code."""
    console = Console()
    try:
        with _stopped_by_signals():
            return _run(words, commands, console)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else DONE
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        code = getattr(error, "exit_code", None)  # of Stopped in train/signals.py, which has said what was saved
        if code is not None:
            return code
        if isinstance(error, ValueError) and _is_ours(error):
            _complain(str(error))
            return REFUSED
        _complain(_failure(error, console))
        return FAILED


def _run(words: Sequence[str], commands: Mapping[str, Command], console: Console) -> int:
    name, rest = _find(words, commands)
    if name not in commands:
        console.write(_overview(name, commands))
        return DONE
    prepare()
    module, _, function = commands[name].target.partition(":")
    command = getattr(importlib.import_module(module), function)
    options = importlib.import_module("train.options")  # imports JAX
    request = options.parse(command, rest, name)
    if getattr(request.arguments, "deterministic", False):
        make_deterministic()
    if request.print_config:
        console.say(json.dumps(options.resolved_json(request.arguments), indent=None if request.json else 2))
    elif request.json:
        with contextlib.redirect_stdout(sys.stderr):
            value = command(request.arguments, console)
        console.result(value)
    else:
        command(request.arguments, console)
    return DONE


def _find(words: Sequence[str], commands: Mapping[str, Command]) -> tuple[str, Sequence[str]]:
    """The command that the first words name, and the words behind; the name of a group, or none, where help is due."""
    for count in (2, 1):
        if (name := " ".join(words[:count])) in commands:
            return name, words[count:]
    groups = {name.split(" ")[0] for name in commands if " " in name}
    group = words[0] if words and words[0] in groups else ""
    behind = words[1:] if group else words
    if not behind or behind[0] in ("-h", "--help"):
        return group, ()
    wrong = f"{group} {behind[0]}".strip()
    nearest = difflib.get_close_matches(wrong, commands, 1, 0)[0]
    raise ValueError(f"there is no command {wrong!r}; the nearest is {nearest!r}, and `jumok --help` lists all")


def _overview(group: str, commands: Mapping[str, Command]) -> str:
    listed = {name: command for name, command in commands.items() if name.startswith(group)}
    width = max(map(len, listed))
    lines = [f"  jumok {name:{width}}   {command.summary}" for name, command in listed.items()]
    return "\n".join(["usage: jumok COMMAND ... [--help] [--json]", "", *lines, ""])


def _is_ours(error: ValueError) -> bool:
    """Whether this project raised it, with a sentence for the user: raised by others it shows a mistake of ours."""
    frame, line = list(traceback.walk_tb(error.__traceback__))[-1]
    ours = frame.f_globals.get("__name__", "").split(".")[0] in _OURS
    # Python's own functions raise it too, and have no frame: only a line that says "raise" has a sentence.
    return ours and linecache.getline(frame.f_code.co_filename, line).lstrip().startswith("raise ")


def _failure(error: Exception, console: Console) -> str:
    """What to say of a failure, after keeping its traceback in the run's folder, or else in the cache."""
    first_line = next(iter(str(error).strip().splitlines()), "")
    said = f"{type(error).__name__}: {first_line[:300]}" if first_line else type(error).__name__
    text = "".join(traceback.format_exception(error))
    reason = None
    for keep in (console.write_traceback, into_the_cache):
        try:
            return f"{said}; the traceback is in {os.fspath(keep(text))}"
        except (OSError, ValueError) as unwritable:  # no space left, or no cache folder
            reason = unwritable
    if isinstance(error, OSError):  # it says itself what cannot be read or written
        return f"{said}; the traceback could not be kept in a file ({reason})"
    sys.stderr.write(text)
    return f"{said}; the traceback above could not be kept in a file ({reason})"


def _complain(sentence: str) -> None:
    sys.stderr.write(f"jumok: {printable(sentence)}\n")


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Until the training loop takes over, SIGTERM ends the command as soon as control returns to Python.

    A second SIGTERM or Ctrl-C ends the process at once, wherever it is, even while XLA compiles and Python runs no
    handlers: a thread hears of signals through a pipe.
    """
    if threading.current_thread() is not threading.main_thread():  # where Python allows no handlers
        yield
        return
    heard, told = os.pipe()
    os.set_blocking(told, False)
    handler = signal.signal(signal.SIGTERM, _terminate)
    pipe = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    threading.Thread(target=_end_at_the_second, args=(heard,), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(pipe)
        signal.signal(signal.SIGTERM, handler)
        os.close(told)  # ends the thread


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(TERMINATED)


def _end_at_the_second(heard: int) -> None:
    first: float | None = None
    while numbers := os.read(heard, 64):
        stops = [number for number in numbers if number in (signal.SIGTERM, signal.SIGINT)]
        if stops and first is not None and time.monotonic() - first > _SAME_REQUEST_SECONDS:
            os._exit(128 + stops[0])
        first = first or (time.monotonic() if stops else None)
    os.close(heard)
