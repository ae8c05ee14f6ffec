"""The picture of `gossamer bench`: tokens a second by texts at once and by depth, and what a token reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..pictures import legend_below, plain_ticks, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]


def draw(figure: Figure, rows: Sequence[Row], name: str, path: Path) -> None:
    """Draws rows of `gossamer.generation.speeds.measure`, and writes the picture.

    Decoding is drawn with what bandwidth allows, dashed, where `gossamer roofline` has measured that.
    """
    decode = [row for row in rows if row["bytes_per_token"]]
    prompts = [row for row in rows if not row["bytes_per_token"]]
    figure.clear()
    height = max(figure.get_figheight(), _BAR * len(decode) + _AROUND)
    panels: list[Callable[[Axes], None]] = []
    if decode:
        panels.append(lambda axes: _lines(axes, decode, "batch", "depth", "tab10"))
        panels.append(lambda axes: _lines(axes, decode, "depth", "batch", "Dark2"))
        panels.append(lambda axes: _bytes(axes, decode))
    if prompts:
        panels.append(lambda axes: _lines(axes, prompts, "depth", "batch", "Dark2"))
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        panel(axes)
    figure.suptitle(name if len(name) <= 80 else f"…{name[-79:]}", fontsize=9)
    found = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    legend_below(figure, list(found.values()), list(found), height)
    save_figure(figure, path)


_TICKS = 6
_BAR, _AROUND = 0.17, 1.2  # inches: of a bar, and of a panel beside its bars
_AXES = {"batch": "texts at once", "depth": "tokens of context before"}


def _lines(axes: Axes, rows: Sequence[Row], along: str, others: str, colours: str) -> None:
    """A line for each number of threads and each of what is not the axis."""
    import matplotlib as mpl

    kinds = list(dict.fromkeys((row["threads"], row[others]) for row in rows))
    several = len({threads for threads, _ in kinds}) > 1
    for colour, kind in enumerate(kinds):
        line = sorted((row for row in rows if (row["threads"], row[others]) == kind), key=lambda row: row[along])
        one = others == "batch" and kind[1] == 1
        said = f"{kind[1]:,} {'text alone' if one else _AXES[others]}" + (f", {kind[0]} threads" if several else "")
        style: dict[str, Any] = {"color": mpl.colormaps[colours](colour % 8)}
        at = [row[along] for row in line]
        axes.plot(at, [row["tokens_per_second"] for row in line], marker="o", markersize=4, label=said, **style)
        if all(row.get("percent_of_roof") for row in line):
            roof = [100 * row["tokens_per_second"] / row["percent_of_roof"] for row in line]
            axes.plot(at, roof, linestyle="--", linewidth=1, marker="_", **style)
            axes.plot([], [], linestyle="--", linewidth=1, color="0.4", label="what bandwidth allows")
    axes.set_xlabel(_AXES[along], fontsize=8)
    axes.set_ylabel("tokens/s" if "bytes_by_part" in rows[0] else "tokens/s of prompts", fontsize=8)
    axes.set_ylim(bottom=0)
    axes.tick_params(labelsize=7)
    if len(places := sorted({row[along] for row in rows})) <= _TICKS:
        axes.set_xticks(places, [f"{place:,}" for place in places])
    else:
        plain_ticks(axes.xaxis)


def _bytes(axes: Axes, rows: Sequence[Row]) -> None:
    """What a token reads by parts, a bar for each depth and number of texts; threads change nothing of it."""
    import matplotlib as mpl

    bars = list({(row["depth"], row["batch"]): row["bytes_by_part"] for row in rows}.items())[::-1]
    parts = list(dict.fromkeys(part for _, bar in bars for part in bar))
    left, colours = [0.0] * len(bars), mpl.colormaps["Pastel2"]
    for colour, part in enumerate(parts):
        sizes = [bar.get(part, 0.0) / 1e6 for _, bar in bars]
        axes.barh(range(len(bars)), sizes, left=left, height=0.7, color=colours(colour % 8), label=f"bytes: {part}")
        left = [before + size for before, size in zip(left, sizes, strict=True)]
    axes.set_yticks(range(len(bars)), [f"{batch} @ {depth:,}" for (depth, batch), _ in bars], fontsize=7)
    axes.set_ylabel("texts at once @ tokens of context before", fontsize=8)
    axes.set_xlabel("MB a token", fontsize=8)
    axes.tick_params(axis="x", labelsize=7)
    plain_ticks(axes.xaxis)
