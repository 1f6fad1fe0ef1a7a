"""HTML from Python: whatever is put into an element is text, and escaped, unless it was made here."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

from train.picture import visible
from train.units import share

_EMPTY = ("meta", "input", "br")


class Html(str):
    """Text that is HTML already."""


class Share(NamedTuple):
    """A part of a stacked bar: how much it is, that in words, and its colour, which is a class of the page."""

    name: str
    amount: float
    shown: str
    colour: str


def element(name: str, /, *contents: object, **attributes: object) -> Html:
    """An element. Attributes are named as in HTML, with `class_` and "_" for "-"; those that are None are left out."""
    words = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(visible(str(value)))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _EMPTY:
        return Html(f"<{name}{words}/>")
    return Html(f"<{name}{words}>{join(contents)}</{name}>")


def join(contents: Iterable[object]) -> Html:
    """Contents one after another."""
    return Html("".join(part if isinstance(part, Html) else escape(visible(str(part))) for part in contents))


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> Html:
    """Rows under their headers, in a frame that scrolls where it is narrow."""
    head = element("tr", *(element("th", header) for header in headers))
    body = (element("tr", *(element("td", cell) for cell in row)) for row in rows)
    return element("div", element("table", element("thead", head), element("tbody", *body)), class_="wide-table")


def stacked_bar(parts: Sequence[Share]) -> Html:
    """A bar of the parts, and below it their names and amounts."""
    total = sum(part.amount for part in parts) or 1
    bar, names = [], []
    for name, amount, shown, colour in parts:
        said = f"{shown} · {share(amount / total)}"
        bar.append(element("span", class_=colour, style=f"width: {amount / total:.3%}", title=f"{name} {said}"))
        names.append(element("li", element("i", class_=colour), element("b", name), " ", element("small", said)))
    return join((element("div", *bar, class_="bar"), element("ul", *names, class_="names")))
