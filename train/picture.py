"""Line charts as SVG, made without a library: text that every browser shows, by itself or within a page."""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from typing import Literal, NamedTuple

from train.units import UNITS

# In the middle between black and white, so that they can be read on both: blue, orange, green, magenta, teal, violet.
COLOURS = ("#2f7fd1", "#b8641c", "#4d8a1f", "#c2489f", "#1f8a86", "#8567d6")
_MOST_STEPS = 6  # of an axis
_LETTER, _LINE = 6.8, 15  # the width of a letter and the height of a line, about, in pixels
_SAME, _LEAST = 1e-9, 1e-290  # a difference, of the numbers themselves, and a number that an axis does not tell from 0
_NEAR = 3  # pixels within which events are one mark
_SMOOTHED = 1 / 60  # of the width, over which a noisy line is averaged
# What no HTML or XML file may hold, and readers could not see, becomes the sign for what cannot be shown.
_UNSEEN = dict.fromkeys((*range(9), 11, 12, *range(13, 32), *range(127, 160), 0xFFFE, 0xFFFF), "\ufffd")


class Point(NamedTuple):
    """A point of a line; `note` is shown where the pointer rests on it."""

    x: float
    y: float
    note: str = ""


class Line(NamedTuple):
    """What is drawn in one colour: plainly, with every point as one of `dots`, or where they are `noisy` their mean."""

    name: str
    points: Sequence[Point]
    kind: Literal["plain", "dots", "noisy"] = "plain"


class Mark(NamedTuple):
    """What happened at `x`: an event is a dashed line from top to bottom, an alarm a short one on the axis."""

    x: float
    note: str
    kind: Literal["event", "alarm"] = "event"


@dataclass(frozen=True)
class Axis:
    """What lies between the ends of a chart, and the round numbers that are written on it."""

    low: float
    high: float
    ticks: tuple[float, ...]
    is_log: bool = False

    @classmethod
    def across(cls, values: Iterable[float], *, is_log: bool = False) -> "Axis":
        """An axis that ends where the values do, those above 0 where it is logarithmic."""
        values = [value for value in values if value > 0 or not is_log]
        low, high = (min(values), max(values)) if values else (1.0, 1.0)
        if low == high:
            high = low + 1 if not is_log else low * 10
        ticks = _round_log_numbers(low, high) if is_log else _round_numbers(low, high)
        return cls(low, high, tuple(tick for tick in ticks if low <= tick <= high), is_log)

    @classmethod
    def up(cls, values: Iterable[float], *, is_log: bool = False, from_zero: bool = False) -> "Axis":
        """An axis that ends at round numbers around the values; it begins at 0 if `from_zero`."""
        values = [value for value in values if value > 0 or not is_log]
        low, high = (min(values), max(values)) if values else (0.0, 0.0)
        if is_log and values:
            ends = [multiple * 10.0**power for power in _powers(low, high) for multiple in (1, 2, 5, 10)]
            low, high = max(end for end in ends if end <= low), min(end for end in ends if end >= high)
            return cls(low, high * (1 + 9 * (low == high)), tuple(_round_log_numbers(low, high)), True)
        if from_zero:
            low, high = min(0.0, low), max(0.0, high)
        if high - low <= max(_LEAST, _SAME * max(abs(low), abs(high))):
            high = low + (abs(low) if abs(low) > _LEAST else 1)
        ticks = _round_numbers(low, high)
        return cls(ticks[0], ticks[-1], tuple(ticks))

    def place(self, value: float) -> float:
        """Where a value lies: 0 at the low end, 1 at the high one."""
        if self.is_log:
            return math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def style() -> str:
    """The CSS of charts, in the light and in the dark."""
    colours = "".join(f".c{number} {{ color: {colour} }}\n" for number, colour in enumerate(COLOURS))
    return resources.files("train").joinpath("picture.css").read_text(encoding="utf-8") + colours


def line_chart(title: str, x_label: str, y_label: str, lines: Mapping[str, Sequence[Point]]) -> str:
    """An SVG document: a line with dots for each name, over axes that begin at 0."""
    points = [point for line in lines.values() for point in line]
    x = Axis.up((point.x for point in points), from_zero=True)
    y = Axis.up((point.y for point in points), from_zero=True)
    drawn = [Line(name, line, "dots") for name, line in lines.items()]
    return chart(800, 440, x, y, drawn, title=title, x_label=x_label, y_label=y_label, document=True) + "\n"


def chart(
    width: int,
    height: int,
    x: Axis,
    y: Axis,
    lines: Sequence[Line],
    *,
    title: str = "",
    label: str = "",
    x_label: str = "",
    y_label: str = "",
    marks: Iterable[Mark] = (),
    looks: Sequence[Point] = (),
    document: bool = False,
) -> str:
    """An SVG element of `width` x `height` pixels, for a page with `style`; or a `document`, which has it inside.

    `label` is what those hear who do not see it. Lines are named at their ends where there are several. `looks` are
    places whose notes are shown wherever the pointer rests above or below them.
    """
    named = [line for line in lines if line.points] if len(lines) > 1 else []
    left = 10 + _LETTER * max(len(number(tick)) for tick in y.ticks)
    right = width - (10 + _LETTER * max((len(line.name) for line in named), default=1))
    top = 12 + 26 * bool(title) + _LINE * bool(y_label)
    base = height - 22 - 18 * bool(x_label)

    def across(value: float) -> float:
        return left + (right - left) * x.place(value)

    def down(value: float) -> float:
        return base + (top - base) * min(1.0, max(0.0, y.place(value)))

    def place(point: Point) -> tuple[float, float]:
        return across(point.x), down(point.y)

    drawn = [_text(left, 18, title, "title"), _text(left, top - 10, y_label), _text(right, height - 6, x_label, "end")]
    for tick in y.ticks:
        drawn.append(f'<path class="grid" d="M{left:.1f} {down(tick):.1f}H{right:.1f}"/>')
        drawn.append(_text(left - 6, down(tick) + 4, number(tick), "end"))
    for tick in x.ticks:
        drawn.append(f'<path class="axis" d="M{across(tick):.1f} {base}v4"/>')
        drawn.append(_text(across(tick), base + 17, number(tick), "middle"))
    drawn.append(f'<path class="axis" d="M{left:.1f} {base}H{right:.1f}"/>')
    for at, kind, note in _gathered((across(mark.x), mark) for mark in marks):
        path = f"M{at:.1f} {top}V{base}" if kind == "event" else f"M{at:.1f} {base}v-10"
        drawn.append(f'<path class="{kind}" d="{path}"><title>{escape(visible(note))}</title></path>')
    drawn += _looks([(across(look.x), look.note) for look in looks], left, right, top, base)
    ends = []
    for index, line in enumerate(lines):
        if not line.points:
            continue
        colour, places = f"c{index % len(COLOURS)}", [place(point) for point in line.points]
        mean = list(_mean(places, _SMOOTHED * (right - left))) if line.kind == "noisy" else places
        noisy = len(places) > 2 * len(mean)
        drawn.append(f'<polyline class="{"each" if noisy else "line"} {colour}" points="{_path(places)}"/>')
        if noisy:
            drawn.append(f'<polyline class="line {colour}" points="{_path(mean)}"/>')
        for point, (at, height_of) in zip(line.points, places, strict=True) if line.kind == "dots" else ():
            dot = f'<circle class="dot {colour}" cx="{at:.1f}" cy="{height_of:.1f}" r="3.5">'
            drawn.append(f"{dot}<title>{escape(visible(point.note))}</title></circle>")
        if line in named:
            ends.append((mean[-1][1], line.name, colour))
    for at, name, colour in _apart(sorted(ends), top, base):
        drawn.append(_text(right + 8, at + 4, name, f"name {colour}"))
    namespace = ' xmlns="http://www.w3.org/2000/svg"' if document else ""
    frame = f'<svg{namespace} viewBox="0 0 {width} {height}" role="img" aria-label="{escape(visible(label or title))}">'
    return "\n".join([frame, *([f"<style>\n{style()}</style>"] if document else []), *filter(None, drawn), "</svg>"])


def visible(text: str) -> str:
    """The text without control characters and halves of characters."""
    return text.translate(_UNSEEN).encode("utf-8", "replace").decode()


def number(value: float) -> str:
    """A tick's number: 0.05, 2e-5, 40, 1.5k, 2M."""
    for least, unit in UNITS:
        if abs(value) >= least:
            return f"{value / least:g}{unit}"
    return f"{value:g}".replace("e-0", "e-")


def _gathered(events: Iterable[tuple[float, Mark]]) -> Iterator[tuple[float, str, str]]:
    """Where marks are drawn, of which kind, and their notes: those that would cover each other are one."""
    ordered = sorted(events, key=lambda event: (event[1].kind, event[0] // _NEAR))
    for (kind, _), group in itertools.groupby(ordered, key=lambda event: (event[1].kind, event[0] // _NEAR)):
        together = list(group)
        more = f"\nand {len(together) - 4} more" if len(together) > 4 else ""
        yield together[0][0], kind, "\n".join(mark.note for _, mark in together[:4]) + more


def _looks(places: Sequence[tuple[float, str]], left: float, right: float, top: float, base: float) -> Iterator[str]:
    """A column of the chart around each place, which has its note."""
    borders = [left, *((a + b) / 2 for (a, _), (b, _) in itertools.pairwise(places)), right]
    for (start, end), (_, note) in zip(itertools.pairwise(borders), places, strict=False):
        shape = f'x="{start:.1f}" y="{top}" width="{max(0.0, end - start):.1f}" height="{base - top}"'
        yield f'<rect class="look" {shape}><title>{escape(visible(note))}</title></rect>'


def _mean(places: Sequence[tuple[float, float]], width: float) -> Iterator[tuple[float, float]]:
    """The middle of the places within each so many pixels."""
    for _, group in itertools.groupby(places, key=lambda place: place[0] // width):
        xs, ys = zip(*group, strict=True)
        yield sum(xs) / len(xs), sum(ys) / len(ys)


def _apart(ends: Sequence[tuple[float, str, str]], top: float, base: float) -> Iterator[tuple[float, str, str]]:
    """The names at the ends of lines, moved so that none stands on another: `ends` come from above to below."""
    floor = top - _LINE
    for position, (at, name, colour) in enumerate(ends):
        room_below = (len(ends) - 1 - position) * _LINE
        floor = max(floor + _LINE, min(at, base - room_below))
        yield floor, name, colour


def _path(places: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{across:.1f},{down:.1f}" for across, down in places)


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{named}>{escape(visible(text))}</text>' if text else ""


def _powers(low: float, high: float) -> range:
    return range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)


def _round_numbers(low: float, high: float) -> list[float]:
    """Round numbers, evenly spaced, from the last that is at most `low` to the first that is at least `high`."""
    power = 10.0 ** math.floor(math.log10((high - low) / _MOST_STEPS))
    for step in (power, 2 * power, 5 * power, 10 * power, 20 * power):
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if last - first <= _MOST_STEPS:
            break
    return [float(f"{step * index:.12g}") for index in range(first, last + 1)]


def _round_log_numbers(low: float, high: float) -> list[float]:
    """Round numbers between two that are more than 0, as many as have room on a logarithmic axis."""
    powers = _powers(low, high)
    for multiples in ((1, 2, 5), (1, 3), (1,)):
        ticks = [multiple * 10.0**power for power in powers for multiple in multiples]
        ticks = [float(f"{tick:.12g}") for tick in ticks if low <= tick * (1 + 1e-9) and tick <= high * (1 + 1e-9)]
        if len(ticks) <= _MOST_STEPS + 1:
            return ticks
    return ticks[:: -(-len(ticks) // _MOST_STEPS)]
