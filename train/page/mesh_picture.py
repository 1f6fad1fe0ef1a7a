"""A run's mesh as a page shows it: the devices, and how each tensor lies on them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jax.sharding import AbstractMesh

from model.parameters import Declaration
from model.sharding import MESH_AXES
from train.config import RunConfig
from train.mesh import Dimension, dimensions
from train.page.markup import Html, element, join
from train.picture import COLOURS
from train.run_directory import count_of

_MOST_CELLS = 64


def mesh_of(start: Mapping[str, Any]) -> AbstractMesh | None:
    """The mesh that a start names; None where it names none."""
    shape = start.get("mesh")
    sizes = [count_of(shape, axis) for axis in MESH_AXES] if isinstance(shape, dict) else []
    return AbstractMesh(tuple(sizes), MESH_AXES) if sizes and all(sizes) else None


def mesh_picture(mesh: AbstractMesh, declared: Mapping[str, Declaration], config: RunConfig) -> Html:
    """The devices, those that hold the same part of the weights in one colour; and how each tensor lies on them."""
    shape = dict(mesh.shape)
    lying: dict[tuple[Dimension, ...], list[str]] = {}
    for name, each in declared.items():
        lying.setdefault(tuple(dimensions(each.axes, each.shape, mesh)), []).append(name)
    splitting = [axis for axis in shape if any(axis in d.split for tensor in lying for d in tensor)]
    lengths = [max(config.data.lengths)] if config.data.lengths else []
    batch = dimensions(("act_batch", "act_length")[: 1 + len(lengths)], (config.batch_size, *lengths), mesh)
    rows = [
        element("li", element("code", ", ".join(names)), element("span", *map(_chip, tensor), class_="chips"))
        for tensor, names in ((tuple(batch), ["a batch"]), *lying.items())
    ]
    tensors = element("ul", *rows, class_="tensors")
    if mesh.size == 1:
        return join(
            (
                element("p", "One device: every tensor lies whole on it.", class_="quiet"),
                element("details", element("summary", "the tensors and their axes"), tensors),
            )
        )
    drawn = dict(shape)
    while math.prod(drawn.values()) > _MOST_CELLS:
        longest = max(drawn, key=lambda axis: drawn[axis])
        drawn[longest] = -(-drawn[longest] // 2)
    parts = math.prod(shape[axis] for axis in splitting)
    said = f"{mesh.size:,} devices. " + (
        f"The weights lie in {parts:,} parts; devices of one number hold the same."
        if parts > 1
        else "Each holds all of the weights."
    )
    if drawn != shape:
        said += f" {math.prod(drawn.values())} of them are drawn."
    picture = element("div", _cells(shape, drawn, splitting, {}), class_="mesh")
    return join((element("p", said, class_="quiet"), picture, tensors))


def _cells(shape: Mapping[str, int], drawn: Mapping[str, int], splitting: Sequence[str], at: dict[str, int]) -> Html:
    """The devices whose coordinates begin with `at`: the axes that are left, one within the other."""
    left = [axis for axis in shape if axis not in at and shape[axis] > 1]
    if not left:
        part = 0
        for axis in splitting:
            part = part * shape[axis] + at.get(axis, 0)
        place = ", ".join(f"{axis} {index}" for axis, index in at.items())
        return element("span", part, class_=f"cell c{part % len(COLOURS)}", title=place)
    axis, rest = left[0], len(left) - 1
    label = element("span", f"{axis} {shape[axis]} {'→' if rest % 2 else '↓'}", class_="axis-name")
    cells = [_cells(shape, drawn, splitting, {**at, axis: index}) for index in range(drawn[axis])]
    within = element("div", *cells, class_="across" if rest % 2 else "down")
    return element("div", "" if any(at.values()) else label, within, class_="nest")


def _chip(dimension: Dimension) -> Html:
    name = f"{(dimension.logical or 'whole').removeprefix('act_')} {dimension.size:,}"
    if dimension.split:
        return element("span", f"{name} ÷ {' x '.join(dimension.split)}", class_="chip split")
    if dimension.copied:
        return element("span", f"{name}, copied over {' x '.join(dimension.copied)}", class_="chip copied")
    return element("span", name, class_="chip")
