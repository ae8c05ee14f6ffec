"""The picture of docs/performance.md: kernels under the roof that the measured bandwidth makes."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from gossamer.pictures import legend_below, new_figure, plain_ticks, save_figure

Document = dict[str, Any]


def roof(document: Document) -> float:
    """The bandwidth of the better kind of reads, in the median of the rows."""
    return float(statistics.median(max(row["plain_reads"], row["prefetched_reads"]) for row in document["rows"]))


def points(document: Document) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """Returns (bits a position, G positions a second) by format and type, for one token.

    Of the kernels that ran with the same weight, the fastest counts.
    """
    best: dict[tuple[Any, ...], Document] = {}
    for row in document["rows"]:
        if row["batch"] == 1:
            key = tuple(row[name] for name in ("format", "type", "rows", "cols", "zeros"))
            if row["positions_per_second"] >= best.get(key, row)["positions_per_second"]:
                best[key] = row
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in best.values():
        place = (8 * row["bytes"] / (row["rows"] * row["cols"]), row["positions_per_second"])
        found.setdefault((row["format"], row["type"]), []).append(place)
    return found


def plot(document: Document, path: Path) -> None:
    """Draws the points under the roof that the measured bandwidth makes; SVG, the same bytes for the same results."""
    figure = new_figure(path)
    axes = figure.add_subplot()
    series = points(document)
    formats, types = (list(dict.fromkeys(kind[place] for kind in series)) for place in (0, 1))
    for (format, type), places in series.items():
        color, marker = f"C{formats.index(format)}", "osD^v"[types.index(type)]
        axes.scatter(*zip(*places, strict=True), s=16, alpha=0.7, c=color, marker=marker, label=f"{format} {type}")
    every = [bits for places in series.values() for bits, _ in places]
    reads, ends = roof(document), (min(every), max(every))
    axes.plot(ends, [8 * reads / bits for bits in ends], "k-", label=f"reads, {reads:.1f} GB/s")
    axes.set(xscale="log", yscale="log", xlabel="bits a weight position", ylabel="weight positions a second, 10⁹")
    axes.set_title(f"One token, weights beyond every cache, {document['threads']} threads")
    plain_ticks(axes.xaxis)
    plain_ticks(axes.yaxis)
    axes.grid(alpha=0.2)
    legend_below(figure, *axes.get_legend_handles_labels(), height=4.5)
    save_figure(figure, path)
