"""From a command line's words to the arguments of a command, by tyro, with each mistake said in one sentence."""

import contextlib
import dataclasses
import difflib
import inspect
import io
import itertools
import os
import re
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from train.config import RunConfig, resolve, to_json
from train.recipes import DEFAULT, find_recipe

_TYRO = (tyro.conf.AvoidSubcommands, tyro.conf.PositionalMetavarFromFieldName)


@dataclass(frozen=True)
class Request:
    """What was asked for: `arguments` of a command, and the options that all commands have."""

    arguments: Any
    json: bool
    print_config: bool


def parse(command: Callable[..., Any], words: Sequence[str], name: str) -> Request:
    """Reads the words behind a command's name, for a function command(arguments, console).

    The annotation of its first parameter says what they are: a dataclass of options; or a RunConfig, and then the
    first word may be a recipe, whose values the options override, beside options that a subclass adds.

    Raises:
        ValueError: unknown options, naming the nearest, bad or missing values, and words that are not UTF-8.
        SystemExit: `--help` was shown.
    """
    for word in words:
        if any("\ud800" <= letter <= "\udfff" for letter in word):  # which Python makes of bytes that are no text
            raise ValueError(
                f"the word {os.fsencode(word)!r} is not UTF-8; neither texts nor names of files may be other"
            )
    kind = next(iter(typing.get_type_hints(command).values()))
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    description = inspect.cleandoc(kind.__doc__ or "").split("\n\nAttributes:")[0]
    program, remedy = f"jumok {name}", "--help lists what it takes"
    if issubclass(kind, RunConfig):
        recipe = words[0] if words and not words[0].startswith("-") else None
        words = words[1:] if recipe else words
        found = find_recipe(recipe or DEFAULT)
        config = found if isinstance(found, kind) else kind(**vars(found))
        program, remedy = f"{program} RECIPE", "a recipe stands before the options"
        description = (
            f"RECIPE is a name that `jumok recipes` lists, module:function, or a config.json; without one it is "
            f"{DEFAULT}. The defaults below are those of {recipe or DEFAULT}."
        )
        fields.append(("arguments", Annotated[type(config), tyro.conf.arg(name="")], config))
        fields.append(("print_config", _flag("show the whole configuration as JSON, and do nothing"), False))
    else:
        fields.append(("arguments", Annotated[kind, tyro.conf.arg(name="")]))
    fields.append(("json", _flag("print one JSON value on standard output, and all else on standard error"), False))
    options = dataclasses.make_dataclass("Options", fields)

    _refuse_unknown_options(option_names(options), words, name)
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            parsed, rest = tyro.cli(
                options,
                prog=program,
                description=description,
                args=list(words),
                config=_TYRO,
                return_unknown_args=True,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(_sentence(messages.getvalue())) from None
    if rest:
        raise ValueError(f"{rest[0]!r} is one word too many for `jumok {name}`; {remedy}")
    return Request(parsed.arguments, parsed.json, getattr(parsed, "print_config", False))


def resolved_json(config: RunConfig) -> dict[str, Any]:
    """The whole configuration as `--print-config` shows it, and as a run keeps it."""
    return to_json(resolve(config))


def option_names(kind: Any) -> list[str]:
    """The options that tyro makes of a dataclass, with their leading dashes."""
    messages = io.StringIO()
    with contextlib.redirect_stdout(messages), contextlib.suppress(SystemExit):
        tyro.cli(kind, args=["--help"], config=_TYRO)
    return sorted(set(re.findall(r"--[a-z][a-z0-9.-]*", messages.getvalue())))


def refuse_given(arguments: Any, names: Iterable[str], why: str) -> None:
    """Refuses options of a command that would have no effect, where they are given; `why` says why not."""
    defaults = {field.name: field.default for field in dataclasses.fields(arguments)}
    for name in names:
        if getattr(arguments, name) != defaults[name]:
            raise ValueError(f"--{name.replace('_', '-')} {why}; leave it out")


def _flag(help_text: str) -> Any:
    return Annotated[bool, tyro.conf.arg(help=help_text), tyro.conf.FlagCreatePairsOff]


def _refuse_unknown_options(known: Sequence[str], words: Sequence[str], name: str) -> None:
    for word in words:
        option = word.split("=", 1)[0]
        if not option.startswith("--") or option in known:
            continue
        # What is meant may be the whole option or, as in --num-layers, its last part, or the initials of that, as --lr.
        meant = sorted(known, key=lambda long: -long.count("."))  # of two with one last part the shorter
        last_parts = {f"--{_last_part(long)}": long for long in meant}
        initials = {"".join(part[:1] for part in _last_part(long).split("-")): long for long in meant}
        near = difflib.get_close_matches(option, known, 1) or difflib.get_close_matches(option, last_parts, 1)
        nearest = near[0] if near and near[0] in known else last_parts[near[0]] if near else None
        nearest = initials.get(_last_part(option), nearest)
        hint = f"the nearest is {nearest}" if nearest else f"`jumok {name} --help` lists all"
        raise ValueError(f"there is no option {option} of `jumok {name}`; {hint}")


def _last_part(option: str) -> str:
    return option.removeprefix("--").rsplit(".", 1)[-1]


def _sentence(box: str) -> str:
    """The first paragraph in the box that tyro draws around its messages."""
    lines = [line.strip("│").removeprefix(" ").rstrip() for line in box.splitlines()[1:]]
    paragraph = list(itertools.takewhile(lambda line: not line.startswith(("─", "╰")), lines))
    said = (line.strip() for line in paragraph if not line.startswith(" " * 8))  # so far in stands help
    return " ".join(said).removeprefix("Error parsing ").rstrip(".") or box.strip()
