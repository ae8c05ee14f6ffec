"""The picture of `gossamer inspect`: zeros and formats by block and by part, whatever the family calls its parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..pictures import legend_below, plain_ticks, save_figure
from .layers import Layer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROW = 0.19  # inches
_AROUND = 1.1  # inches of a panel beside its rows
_NAME = 40  # characters

Cells = dict[str, dict[int, list[Layer]]]


def cells(layers: Sequence[Layer]) -> tuple[Cells, Cells]:
    """Sorts matrices into parts and blocks by their names alone.

    The first number in a name is its block; what is left, without what all names of parts share, is its part. Further
    numbers (experts) are counted together.

    Returns:
        Matrices by part and block, and those outside of blocks by name, as block 0.
    """
    blocks: dict[tuple[str, ...], dict[int, list[Layer]]] = {}
    single: Cells = {}
    for layer in layers:
        words = layer.name.split(".")
        numbers = [place for place, word in enumerate(words) if word.isdecimal()]
        if not numbers:
            single.setdefault(layer.name, {}).setdefault(0, []).append(layer)
            continue
        part = tuple("*" if i in numbers[1:] else word for i, word in enumerate(words) if i != numbers[0])
        blocks.setdefault(part, {}).setdefault(int(words[numbers[0]]), []).append(layer)
    keys = list(blocks)
    shortest = min(map(len, keys), default=1) - 1
    front = next((i for i in range(shortest) if len({key[i] for key in keys}) > 1), shortest)
    shortest -= front
    back = next((i for i in range(shortest) if len({key[-1 - i] for key in keys}) > 1), shortest)
    return {".".join(key[front : len(key) - back]): found for key, found in blocks.items()}, single


def draw(figure: Figure, layers: Sequence[Layer], path: Path) -> None:
    """Draws zeros and formats by block and part, and writes the picture."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    parts, single = cells(layers)
    rows = {**parts, **single}
    blocks = 1 + max((block for found in parts.values() for block in found), default=0)
    kinds = list(dict.fromkeys(_kind(layer) for layer in layers))
    palette = [_colour(index) for index in range(len(kinds) + 1)]
    mixed = len(kinds)  # experts of one block, stored in several ways

    def zeros(found: list[Layer]) -> float:
        return 100 * sum(one.zeros * one.rows * one.cols for one in found) / sum(one.rows * one.cols for one in found)

    def kind(found: list[Layer]) -> float:
        several = {_kind(layer) for layer in found}
        return kinds.index(several.pop()) if len(several) == 1 else mixed

    every = {name: [layer for found in row.values() for layer in found] for name, row in rows.items()}
    figure.clear()
    height = 2 * (_ROW * max(len(rows), 3) + _AROUND)
    figure.set_size_inches(figure.get_figwidth(), height)
    above, below = figure.subplots(2, 1, sharex=True)
    image = _heatmap(above, rows, single, blocks, zeros, cmap="viridis", vmin=0, vmax=100)
    figure.colorbar(image, ax=above, label="zeros, %", pad=0.01)
    above.set_title("zeros; at the right, of the whole row", fontsize=9)
    _right(above, [f"{zeros(found):.1f}%" for found in every.values()])
    _heatmap(below, rows, single, blocks, kind, cmap=ListedColormap(palette), vmin=-0.5, vmax=mixed + 0.5)
    below.set_title("format and type; at the right, MB of the whole row", fontsize=9)
    _right(below, [f"{sum(layer.bytes for layer in found) / 1e6:,.3g}" for found in every.values()])
    below.set_xlabel("block" + (" (rows of matrices outside of blocks are filled)" if single and parts else ""))
    plain_ticks(below.xaxis)
    below.xaxis.get_major_locator().set_params(integer=True)
    names = [*kinds, "several"] if any(kind(f) == mixed for row in rows.values() for f in row.values()) else kinds
    handles = [Patch(color=colour) for colour, _ in zip(palette, names, strict=False)]
    legend_below(figure, handles, names, height)
    save_figure(figure, path)


def _heatmap(
    axes: Axes, rows: Cells, single: Cells, blocks: int, value: Callable[[list[Layer]], float], **style: Any
) -> Any:
    values: NDArray[np.float64] = np.full((len(rows), blocks), np.nan)
    for place, (name, row) in enumerate(rows.items()):
        for block, found in row.items():
            values[place, slice(None) if name in single else block] = value(found)
    axes.set_facecolor("0.9")  # where a block has no such part
    image = axes.imshow(values, aspect="auto", interpolation="nearest", **style)
    shown = [name if len(name) <= _NAME else f"…{name[1 - _NAME :]}" for name in rows]
    axes.set_yticks(range(len(rows)), shown, fontsize=7)
    axes.set_ylabel("matrix")
    return image


def _right(axes: Axes, texts: list[str]) -> None:
    """Writes a text at the right of every row."""
    beside = axes.twinx()
    beside.set_ylim(axes.get_ylim())
    beside.set_yticks(range(len(texts)), texts, fontsize=7)
    beside.tick_params(length=0)


def _kind(layer: Layer) -> str:
    return f"{layer.format} {layer.type}"


def _colour(index: int) -> Any:
    import matplotlib as mpl

    return mpl.colormaps["tab20"](index % 20)
