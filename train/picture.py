"""Line charts as SVG, made without a library: one file of text that every browser shows."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

# In the middle between black and white, so that they can be read on both: blue, orange, green, magenta, teal, violet.
COLOURS = ("#2f7fd1", "#b8641c", "#4d8a1f", "#c2489f", "#1f8a86", "#8567d6")
_WIDTH, _HEIGHT = 800, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 200, 64, 50  # the margins of the plot; lines are named at its right
_MOST_STEPS = 6  # of an axis


class Point(NamedTuple):
    """A point of a line; `note` is shown where the pointer rests on it."""

    x: float
    y: float
    note: str


def line_chart(title: str, x_label: str, y_label: str, lines: Mapping[str, Sequence[Point]]) -> str:
    """An SVG document: a line for each name, over axes that begin at 0."""
    points = [point for line in lines.values() for point in line]
    x_ticks, y_ticks = _ticks(max(point.x for point in points)), _ticks(max(point.y for point in points))
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def across(value: float) -> str:
        return f"{_LEFT + width * value / x_ticks[-1]:.1f}"

    def down(value: float) -> str:
        return f"{_TOP + height * (1 - value / y_ticks[-1]):.1f}"

    middle, base, end = _LEFT + width / 2, _TOP + height, _LEFT + width
    drawn = [_text(_LEFT, 26, title, 'font-size="17"')]
    drawn.append(_text(middle, _HEIGHT - 12, x_label, 'text-anchor="middle"'))
    drawn.append(_text(_LEFT, _TOP - 12, y_label, 'text-anchor="end"'))
    for tick in y_ticks:
        drawn.append(f'<path d="M{_LEFT} {down(tick)}H{end}" stroke="#ddd"/>')
        drawn.append(_text(_LEFT - 8, down(tick), f"{tick:g}", 'text-anchor="end" dy="4"'))
    for tick in x_ticks:
        drawn.append(f'<path d="M{across(tick)} {base}v5" stroke="#888"/>')
        drawn.append(_text(across(tick), base + 20, f"{tick:g}", 'text-anchor="middle"'))
    drawn.append(f'<path d="M{_LEFT} {_TOP}V{base}H{end}" fill="none" stroke="#888"/>')
    for number, (name, line) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{across(point.x)},{down(point.y)}" for point in line)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for point in line:
            circle = f'<circle cx="{across(point.x)}" cy="{down(point.y)}" r="4" fill="{colour}">'
            drawn.append(f"{circle}<title>{escape(point.note)}</title></circle>")
        place = _TOP + 20 * number
        drawn.append(f'<path d="M{end + 16} {place}h20" stroke="{colour}" stroke-width="3"/>')
        drawn.append(_text(end + 42, place, name, 'dy="4"'))
    frame = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif"'
    ground = '<rect width="100%" height="100%" fill="#fff"/>'
    return "\n".join([f'{frame} font-size="13">', ground, *drawn, "</svg>", ""])


def _text(x: float | str, y: float | str, text: str, attributes: str) -> str:
    return f'<text x="{x}" y="{y}" fill="#222" {attributes}>{escape(text)}</text>'


def _ticks(largest: float) -> list[float]:
    """Round numbers from 0 to the first one that is at least `largest`, and more than 0."""
    if largest <= 0:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(largest / _MOST_STEPS))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if math.ceil(largest / step) <= _MOST_STEPS)
    return [step * number for number in range(math.ceil(largest / step) + 1)]
