"""The classes of labelled examples: which there are, in what order they are numbered, and what is none of them."""

import re
from collections.abc import Iterable, Sequence

_SHOWN = 10


def order_classes(labels: Iterable[str], where: str) -> tuple[str, ...]:
    """The classes that some labels name, each once: in order of their numbers where all are whole ones, or by name.

    Raises:
        ValueError: there are fewer than two; `where` names what the labels are of.
    """
    names = sorted(set(labels))
    if len(names) < 2:
        found = f"all of it has the label {names[0]!r}" if names else "there is none"
        raise ValueError(f"{where} must have labels of at least two classes, and {found}")
    if all(re.fullmatch(r"-?\d{1,18}", name) for name in names):
        names.sort(key=int)
    return tuple(names)


def no_class(label: str, classes: Sequence[str]) -> str:
    """The rest of a sentence that begins with what has a label: it is none of the model's classes."""
    known = ", ".join(classes[:_SHOWN]) + (f" and {len(classes) - _SHOWN} more" if len(classes) > _SHOWN else "")
    return (
        f"has the label {label!r}, which is not among the model's classes: {known}; correct the label, leave that out, "
        f"or train a new head for other --model.classes"
    )
