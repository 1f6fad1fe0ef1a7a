"""A run's curves as a page shows them, by step and by tokens, and what happened to it on the way."""

import bisect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from train.page.history import MFU, SPEED, History, Measured, figure, moment
from train.page.markup import Html, element, join
from train.picture import Axis, Line, Mark, Point, chart
from train.run_directory import count_of
from train.units import count

LOSS = "learning/loss"
_GRADIENT, _RATE, _SKIPPED = "learning/grad_norm", "learning/current_learning_rate", "learning/nonfinite_steps"
_COUNTS = (_SKIPPED, "learning/nonfinite_in_row", "learning/targets")
_TRAINING, HELD_OUT, _SET = "training", "held-out", "set"
_KINDS: dict[str, Literal["noisy", "dots", "plain"]] = {_TRAINING: "noisy", HELD_OUT: "dots", _SET: "plain"}
_WAYS = {"step": "by step", "tokens": "by tokens", "log": "by step, logarithmic"}
_MOST_POINTS, _MOST_DOTS, _MOST_LOOKS = 640, 160, 48  # of a line
_SPREAD, _LEAST = 30, 1e-12  # an axis is logarithmic from so many times the lowest on, if that is more than the least


class _Event(NamedTuple):
    """What is marked on every chart, by step and by tokens."""

    step: int
    tokens: float
    note: str
    kind: Any


def curves(history: History, starts: Sequence[Mapping[str, Any]]) -> Html:
    """A chart for each of a run's curves; restarts and steps that changed nothing are marked on all of them."""
    if not history.last:
        return element("p", "No step has been logged yet.", class_="quiet")
    events = list(_events(history, starts))
    learned = [name for name in history.curves if name.startswith("learning/")]
    terms = [name for name in learned if name not in (LOSS, _GRADIENT, _RATE, *_COUNTS)]
    evaluated = evaluations(history)
    # Of several terms it is not the loss itself that held-out data are scored by.
    beside = [name for name in evaluated if name.startswith("eval/nats_per_")][: 0 if terms else 1]
    loss = {_TRAINING: LOSS} | ({HELD_OUT: beside[0]} if beside else {})
    shown = [("Loss", title_of(beside[0])[1] if beside else "nats", loss, False)]
    shown += [(*title_of(name), {_TRAINING: name}, False) for name in terms]
    for name in evaluated[len(beside) :]:
        title, unit = title_of(name)
        shown.append((f"Held-out {title[:1].lower()}{title[1:]}", unit, {HELD_OUT: name}, False))
    shown += [
        ("Learning rate", "", {_SET: _RATE}, True),
        ("Gradient norm", "", {_TRAINING: _GRADIENT}, False),
        ("Speed", "tokens/s a device", {_TRAINING: SPEED}, True),
        ("MFU", "of the peak", {_TRAINING: MFU}, True),
    ]
    across = _axes(history)
    figures = []
    for title, unit, names, from_zero in shown:
        drawn = {
            kind: history.curve(name, _MOST_DOTS if kind == HELD_OUT else _MOST_POINTS) for kind, name in names.items()
        }
        if drawn := {kind: curve for kind, curve in drawn.items() if curve}:
            figures.append(_chart(title, unit, drawn, across, events, from_zero=from_zero, main=title == "Loss"))
    ways = []
    for way, label in _WAYS.items():
        ways.append(element("input", type="radio", name="way", id=f"by-{way}", checked="" if way == "step" else None))
        ways.append(element("label", label, for_=f"by-{way}"))
    told = [
        element("span", element("i", class_=f"mark-{kind}"), f" {label}")
        for kind, label in (("event", "restarted"), ("alarm", "steps whose gradients were not finite"))
        if any(event.kind == kind for event in events)
    ]
    legend = element("p", *told, class_="quiet legend") if told else ""
    return join((*ways, legend, element("div", *figures, class_="charts")))


def _events(history: History, starts: Sequence[Mapping[str, Any]]) -> Iterator[_Event]:
    rows = history.curve(_SKIPPED)
    for start in starts[1:]:
        step = count_of(start, "step")
        at = bisect.bisect_left(rows, (step,))
        tokens = rows[min(at, len(rows) - 1)].tokens if at and rows else 0
        yield _Event(step, tokens, f"restarted behind step {step:,} at {moment(start)}", "event")
    for point, more in history.rises(_SKIPPED):
        many = "1 step" if more == 1 else f"{more:,.0f} steps"
        note = f"{many} up to step {point.step:,} had gradients that were not finite, and changed nothing"
        yield _Event(point.step, point.tokens, note, "alarm")


def _chart(
    title: str,
    unit: str,
    curves: Mapping[str, Sequence[Measured]],
    across: Mapping[str, Axis],
    events: Sequence[_Event],
    *,
    from_zero: bool = False,
    main: bool = False,
) -> Html:
    """A figure with a chart for each way to look across, of which the page shows one; the main one in two widths."""
    points = [point for curve in curves.values() for point in curve]
    values = [point.value for point in points]
    is_log = not from_zero and max(values) > _SPREAD * min(values) > _SPREAD * _LEAST
    y = Axis.up(values, is_log=is_log, from_zero=from_zero)
    sizes = (("wide", 1056, 300), ("narrow", 344, 260)) if main else ((None, 344, 200),)
    drawn = []
    for kind, width, height in sizes:
        ways = [
            element("div", _drawing(title, way, x, y, curves, events, width, height), class_=f"by-{way}")
            for way, x in across.items()
        ]
        drawn.append(element("div", *ways, class_=kind))
    last = element("b", figure(next(iter(curves.values()))[-1].value))
    caption = element("figcaption", element("span", title), " ", last, " ", element("small", unit))
    return element("figure", caption, *drawn, class_="main" if main else None)


def _drawing(
    title: str,
    way: str,
    x: Axis,
    y: Axis,
    curves: Mapping[str, Sequence[Measured]],
    events: Sequence[_Event],
    width: int,
    height: int,
) -> Html:
    """The curves in one of the ways to look across."""

    def point(item: Measured, name: str = "") -> Point:
        note = f"step {item.step:,} · {count(item.tokens)} tokens\n{name} {figure(item.value)}" if name else ""
        return Point(item.tokens if way == "tokens" else item.step, item.value, note)

    lines = [
        Line(name, [point(item, name if name == HELD_OUT else "") for item in curve], _KINDS[name])
        for name, curve in curves.items()
    ]
    marks = [Mark(event.tokens if way == "tokens" else event.step, event.note, event.kind) for event in events]
    name, first = next(iter(curves.items()))
    looks = [point(item, name) for item in first[:: -(-len(first) // _MOST_LOOKS)]] if name != HELD_OUT else []
    return Html(chart(width, height, x, y, lines, label=f"{title} {_WAYS[way]}", marks=marks, looks=looks))


def _axes(history: History) -> dict[str, Axis]:
    """What lies across in each of the ways, the same for all curves."""
    steps, tokens = ((count_of(history.first, name), count_of(history.last, name)) for name in ("step", "tokens"))
    return {
        "step": Axis.across((0, steps[1])),
        "tokens": Axis.across((0, tokens[1])),
        "log": Axis.across(steps, is_log=True),
    }


def evaluations(history: History) -> list[str]:
    """The figures of held-out data that say how good it is: what is whole in every row only counts."""
    names = (name for name in history.curves if name.startswith("eval/"))
    return [name for name in names if any(isinstance(point.value, float) for point in history.curves[name])]


def title_of(name: str) -> tuple[str, str]:
    """A figure's name in words, and its unit: "eval/nats_per_token" is a loss in nats per token."""
    words = name.rpartition("/")[2].replace("_", " ")
    if words.startswith("nats per "):
        return "Loss", words
    return words[:1].upper() + words[1:], "nats" if words.endswith("nats") else ""
