"""A run's page: RUN/report.html, one file without scripts or requests, made of what the run directory holds."""

import dataclasses
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from typing import Any, get_args

import jax

from model.cost import count_parameters
from model.parameters import Declaration
from model.presets import family_name
from model.structures import kept_config
from train.config import RunConfig, resolve, to_json
from train.page.curves import HELD_OUT, LOSS, curves, evaluations, title_of
from train.page.history import MEMORY, MFU, SPEED, History, figure, moment
from train.page.markup import Html, Share, element, join, stacked_bar, table
from train.page.mesh_picture import mesh_of, mesh_picture
from train.picture import COLOURS, style
from train.recipes import RECIPES
from train.run_directory import RunDirectory, count_of, first_line, is_number, number_of, read_rows, write_atomically
from train.spikes import Spike
from train.time_use import CURVE, Part
from train.units import count, duration, share, size

_MOST_ROWS, _MOST_LETTERS = 24, 4_000  # of a table, and of a text
_MOST_SHARE = 0.02  # of a run's time that its page may take
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_COLOURS = tuple(f"c{number}" for number in range(len(COLOURS)))


class Page:
    """Writes a run's page as it goes on; of many processes the first does.

    That it could not be written is said once, and never ends a run.

    Args:
        run: the run directory.
        config: the run.
        declared: its weights.
        report: is told, in a sentence, why the page could not be written.
    """

    def __init__(
        self, run: RunDirectory, config: RunConfig, declared: Mapping[str, Declaration], report: Callable[[str], None]
    ):
        self._run, self._config, self._declared, self._report = run, config, declared, report
        self._history = History()
        self._due = -math.inf
        self._failed = False

    def write(self, status: str | None = "running") -> None:
        """Writes the page, unless the run goes on and that would take more than its share of the time."""
        began = time.monotonic()
        if jax.process_index() != 0 or (status == "running" and began < self._due):
            return
        try:
            write_page(self._run, self._config, self._declared, status, self._history)
        except Exception as error:  # whatever it is: what is learned matters more
            if not self._failed:
                self._report(f"{self._run.page} could not be written ({first_line(error)}); the run goes on without it")
            self._failed = True
        now = time.monotonic()
        self._due = now + (now - began) / _MOST_SHARE

    def __enter__(self) -> "Page":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *rest: object) -> None:
        if isinstance(error, Spike):  # behind which the run goes on
            return
        failed = isinstance(error, Exception) and not hasattr(error, "exit_code")  # which those have that ask to stop
        self.write(f"failed: {first_line(error)}" if error and failed else "stopped")


def write_page(
    run: RunDirectory,
    config: RunConfig,
    declared: Mapping[str, Declaration],
    status: str | None = None,
    history: History | None = None,
) -> None:
    """Writes RUN/report.html, whole or not at all; raises OSError where that cannot be.

    `status` is what the run does ("running", "stopped", "failed: ..."), found out where it is not given; `history` is
    what was read of its rows before.
    """
    history = history or History()
    history.read_on(run.metrics)
    status = status or ("running" if run.is_written() else "stopped")
    if status == "stopped" and count_of(history.last, "step") >= config.steps:
        status = "finished"
    starts = [row for row in read_rows(run.starts) if "step" in row]
    figures = run.read_figures(count_of(history.last, "step"))
    text = page_of(str(run), config, declared, history, status, starts, read_rows(run.samples), figures)
    write_atomically(run.page, text)


def page_of(
    name: str,
    config: RunConfig,
    declared: Mapping[str, Declaration],
    history: History,
    status: str,
    starts: Sequence[Mapping[str, Any]],
    samples: Sequence[Mapping[str, Any]],
    figures: Mapping[str, Any],
) -> str:
    """The page as HTML; `starts` and `samples` are the rows of their files, `figures` those of all held-out data."""
    mesh = mesh_of(starts[-1]) if starts else None
    sections = {
        "Curves": curves(history, starts),
        "Samples": _samples(samples, count_of(history.last, "step")),
        "Where the time went": _time_use(history.last),
        "Memory of a device": _memory(starts[-1] if starts else {}, history),
        "Mesh": mesh_picture(mesh, declared, config) if mesh else None,
        "Configuration": _configuration(config),
        "Starts": _starts(starts),
    }
    css = Html(style() + resources.files("train.page").joinpath("page.css").read_text(encoding="utf-8"))
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"{name} · jumok"),
        element("style", css),
    )
    body = [element("section", element("h2", title), content) for title, content in sections.items() if content]
    page = element("html", head, element("body", _header(name, config, history, status, figures), *body), lang="en")
    return f"<!DOCTYPE html>\n{page}\n"


def _header(name: str, config: RunConfig, history: History, status: str, figures: Mapping[str, Any]) -> Html:
    """What the run is, how far it is, and its last figures."""
    model, step, (state, _, reason) = kept_config(config.model), count_of(history.last, "step"), status.partition(": ")
    kind = f"{config.name} · {family_name(model).replace('_', ' ')} · {count_parameters(model):,} parameters"
    tiles = [
        element("div", element("dt", label), element("dd", value), element("small", unit))
        for label, value, unit in _tiles(config, history, figures, runs=state == "running")
    ]
    written = f"Written {time.strftime('%Y-%m-%d %H:%M:%S %Z')}. "
    if state == "running":
        written += (
            "Training writes this page again at evaluations and checkpoints: reload it then, or make it anew now: "
        )
    else:
        written += "Make it anew: "
    return element(
        "header",
        element("p", kind, class_="quiet"),
        element("h1", name.rstrip("/").rpartition("/")[2], " ", element("span", state, class_=f"state {state}")),
        element("p", reason, class_="reason") if reason else "",
        element("div", element("span", style=f"width: {min(1.0, step / max(1, config.steps)):.2%}"), class_="progress"),
        element("dl", *tiles, class_="tiles"),
        element("p", written, element("code", f"jumok report {name}"), class_="quiet"),
    )


def _tiles(
    config: RunConfig, history: History, figures: Mapping[str, Any], *, runs: bool
) -> Iterator[tuple[str, str, str]]:
    """The last figures: what each is, its value, and its unit."""
    last, step = history.last, count_of(history.last, "step")
    yield "Step", f"{step:,}", f"of {config.steps:,}"
    yield "Tokens seen", count(count_of(last, "tokens")), ""
    yield "Training loss", figure(last.get(LOSS)), "nats"
    for name in [name for name in evaluations(history) if name != "eval/perplexity"][:2]:
        title, unit = title_of(name)
        value = figures.get(name.removeprefix("eval/"), history.curves[name][-1].value)
        of = f"all {HELD_OUT}" if figures else HELD_OUT  # the curves may be of a part
        yield title.replace("Loss", "Held-out loss"), figure(value), unit or of
    yield "Speed", figure(last.get(SPEED)), "tokens/s a device"
    if is_number(utilisation := last.get(MFU)):
        yield "MFU", share(utilisation), "of the peak"
    spent = sum(_seconds(last).values()) or number_of(last, "time") - number_of(history.first, "time")
    yield "Time", duration(spent), ""
    if runs and step < config.steps:
        yield "Left, about", duration((config.steps - step) * number_of(last, "perf/step_time_seconds")), ""


def _samples(samples: Sequence[Mapping[str, Any]], last: int) -> Html | None:
    shown = [sample for sample in samples if count_of(sample, "step") <= last][::-1][:_MOST_ROWS]
    if not shown:
        return None
    texts = []
    for number, sample in enumerate(shown):
        prompt, text = (str(sample.get(part, ""))[:_MOST_LETTERS] for part in ("prompt", "text"))
        written = element("pre", element("b", prompt), text, dir="auto")
        summary = element("summary", f"after step {count_of(sample, 'step'):,}")
        texts.append(element("details", summary, written, open="" if number < 2 else None))
    return join(texts)


def _time_use(row: Mapping[str, Any]) -> Html | None:
    seconds = _seconds(row)
    if not seconds:
        return None
    colours = dict(zip(get_args(Part), (*_COLOURS, "other", "lost"), strict=True))
    shares = [Share(part, value, duration(value), colours.get(part, "other")) for part, value in seconds.items()]
    total = duration(sum(seconds.values()))
    said = f"Of {total} since the first start, {share(number_of(row, 'perf/goodput'))} were steps."
    return join((stacked_bar(shares), element("p", said, class_="quiet")))


def _memory(start: Mapping[str, Any], history: History) -> Html | None:
    memory = start.get("memory")
    memory = memory if isinstance(memory, dict) else {}
    parameters, optimizer, step, limit = (count_of(memory, n) for n in ("parameters", "optimizer", "step", "limit"))
    if not step:
        return None
    rest = max(0, step - parameters - optimizer)
    named = {"parameters": parameters, "optimizer": optimizer, "activations and temporaries": rest}
    bar = stacked_bar(
        [Share(*part, size(part[1]), colour) for part, colour in zip(named.items(), _COLOURS[:3], strict=True)]
    )
    said, gauge = f"A step needs {size(step)}, as its compiler says", Html()
    if limit:
        said += f": {share(step / limit)} of the limit of {size(limit)}"
        gauge = element("div", element("span", style=f"width: {min(1.0, step / limit):.2%}"), class_="progress")
    if peak := max((point.value for point in history.curve(MEMORY)), default=0):
        whole = ", the whole process with all its devices" if start.get("platform") == "cpu" else ""
        said += f". The most in use was {size(peak)}{whole}"
    return join((bar, gauge, element("p", f"{said}.", class_="quiet")))


def _configuration(config: RunConfig) -> Html:
    """What differs from the recipe's, and all of it by section."""
    values, recipe = _flat(to_json(resolve(config))), _recipe_values(config)
    changed = [name for name, value in values.items() if recipe is not None and recipe.get(name) != value]
    rows = [
        (element("code", name), element("b", _value(values[name])), _value((recipe or {}).get(name)))
        for name in changed
    ]
    parts: list[Html] = []
    if recipe is None:
        said = f"{config.name} is no recipe that comes with jumok, so nothing is marked as changed."
        parts.append(element("p", said, class_="quiet"))
    elif changed:
        parts.append(table(("changed", "here", f"in the recipe {config.name}"), rows))
    else:
        parts.append(element("p", f"All is as the recipe {config.name} has it.", class_="quiet"))
    sections = []
    for section, group in itertools.groupby(values.items(), key=lambda item: item[0].rpartition(".")[0]):
        listed = [
            (element("code", name.rpartition(".")[2], class_="changed" if name in changed else None), _value(value))
            for name, value in group
        ]
        sections.append(element("div", table((section or "the run", ""), listed)))
    everything = element("div", *sections, class_="sections")
    parts.append(element("details", element("summary", "the whole configuration"), everything))
    return join(parts)


def _recipe_values(config: RunConfig) -> dict[str, Any] | None:
    """The values that the run's recipe begins with; None where it is not one of ours. What names code is never run."""
    if config.name not in RECIPES:
        return None
    recipe = RECIPES[config.name]()
    if recipe.precision == "auto":  # as the devices of the run had it
        recipe = dataclasses.replace(recipe, precision=config.precision)
    return _flat(to_json(resolve(recipe)))


def _starts(starts: Sequence[Mapping[str, Any]]) -> Html | None:
    if not starts:
        return None
    last = starts[-1]
    rows = [
        (
            moment(start),
            f"{count_of(start, 'step'):,}",
            f"{count_of(start, 'devices'):,} x {_value(start.get('device_kind'))}",
            " x ".join(f"{axis} {n}" for axis, n in _items(start, "mesh") if n != 1) or "one device",
            _value(start.get("host")),
        )
        for start in starts[-_MOST_ROWS:]
    ]
    environment = [
        *_items(last, "versions"),
        ("processes", last.get("processes")),
        ("XLA_FLAGS", last.get("xla_flags")),
    ]
    versions = [(element("code", name), _value(value)) for name, value in environment if value]
    left = len(starts) - len(rows)
    return join(
        (
            element("p", f"The {left:,} before these are left out.", class_="quiet") if left else "",
            table(("when", "behind step", "devices", "mesh", "host"), rows),
            element("details", element("summary", "the environment of the last"), table(("", ""), versions)),
        )
    )


def _items(row: Mapping[str, Any], name: str) -> list[tuple[str, Any]]:
    value = row.get(name)
    return list(value.items())[:_MOST_ROWS] if isinstance(value, dict) else []


def _seconds(row: Mapping[str, Any]) -> dict[str, float]:
    """The seconds of each part of the time."""
    return {
        name.removeprefix(CURVE).removesuffix("_seconds"): value
        for name, value in row.items()
        if name.startswith(CURVE) and is_number(value) and value >= 0
    }


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted name; those without a section come first."""
    flat = {prefix + name: inner for name, inner in value.items() if not isinstance(inner, dict)}
    for name, inner in value.items():
        if isinstance(inner, dict):
            flat |= _flat(inner, f"{prefix}{name}.")
    return flat


def _value(value: Any) -> str:
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= _MOST_LETTERS else f"{shown[:_MOST_LETTERS]} …"
