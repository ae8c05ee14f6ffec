"""Pictures: an empty figure before the work, the file behind it, and what makes them readable in between."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import GossamerError, naming
from .part_files import new_file

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

_NEAR = 14.0  # points that a label may be away from what it names without a line to it
_LABEL = 60  # characters of a line in a legend


def new_figure(path: Path, width: float = 8.0, height: float = 6.0) -> Figure:
    """Returns an empty figure, after checking all that can be checked before the work that it is to show.

    Args:
        path: Where it will be saved.
        width: In inches.
        height: In inches.

    Raises:
        GossamerError: matplotlib is not installed, the path's ending names no kind of picture, or there is no folder.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise GossamerError("--plot needs matplotlib: pip install 'gossamer[plot]'") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    kinds = sorted(figure.canvas.get_supported_filetypes())
    if path.suffix[1:].lower() not in kinds:
        raise GossamerError(f"--plot {path}: its ending must be one of {', '.join(kinds)}")
    if not path.parent.is_dir():
        raise GossamerError(f"--plot {path}: there is no folder {path.parent}")
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure whole or not at all, and the same file for the same picture.

    Raises:
        GossamerError: it cannot be written.
    """
    import matplotlib as mpl

    settings = mpl.rc_context({"svg.hashsalt": "gossamer"})
    with naming(f"--plot {path}", "cannot write"), new_file(path, ending=path.suffix) as part, settings:
        figure.savefig(part.path, metadata={"Date": None} if path.suffix == ".svg" else None)


def plain_ticks(axis: Axis) -> None:
    """Lets an axis show few ticks, as plain numbers, on a logarithmic scale as on a linear one.

    Call it when everything is drawn: a logarithmic axis over less than a decade has no powers of ten to show.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    low, high = sorted(axis.get_view_interval())
    if axis.get_scale() == "log" and high >= 4 * low:
        many, few = (1.0, 2.0, 3.0, 5.0, 7.0), (1.0, 2.0, 5.0)
        axis.set_major_locator(LogLocator(subs=many if high < 20 * low else few if high < 2000 * low else (1.0,)))
    else:
        axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def place_labels(
    axes: Axes, points: Sequence[tuple[float, float]], labels: Sequence[str], colours: Sequence[Any]
) -> None:
    """Writes a label beside each point, away from all points and other labels; a line leads to those further away.

    The rest of the figure has to be complete: the layout is fixed here, because places are found on it.

    Args:
        axes: What the points were drawn into.
        points: In data coordinates.
        labels: Of the points, short.
        colours: Of the labels.
    """
    from matplotlib.transforms import Bbox

    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    pixels = figure.dpi / 72
    inside = axes.get_window_extent()
    places = axes.transData.transform(points)
    taken = [Bbox.from_bounds(x - 3 * pixels, y - 3 * pixels, 6 * pixels, 6 * pixels) for x, y in places]
    for line in axes.lines:
        ends = axes.transData.transform(line.get_xydata())
        for (x0, y0), (x1, y1) in itertools.pairwise(ends):
            steps = max(1, int(math.hypot(x1 - x0, y1 - y0) / (2 * pixels)))
            taken += [
                Bbox.from_bounds(x0 + (x1 - x0) * i / steps, y0 + (y1 - y0) * i / steps, 1, 1) for i in range(steps)
            ]
    for point, (x, y), label, colour in zip(points, places, labels, colours, strict=True):
        style = {"fontsize": 7, "color": colour, "ha": "center", "va": "center"}
        text = axes.annotate(label, point, (0, 0), "data", "offset points", **style)
        size = text.get_window_extent()
        width, height = size.width + 2 * pixels, size.height + 2 * pixels
        for dx, dy in _offsets():
            bounds = (x + dx * pixels - width / 2, y + dy * pixels - height / 2, width, height)
            box = Bbox.from_bounds(*bounds)
            within = inside.x0 <= box.x0 and inside.y0 <= box.y0 and box.x1 <= inside.x1 and box.y1 <= inside.y1
            if within and not any(box.overlaps(other) for other in taken):
                break
        else:
            text.remove()
            raise GossamerError(f"a picture of {len(points)} points: no room for the label {label!r}")
        taken.append(box)
        text.set_position((dx, dy))
        if math.hypot(dx, dy) > _NEAR:
            leader = {"arrowstyle": "-", "linewidth": 0.5, "color": colour, "shrinkA": 0, "shrinkB": 0}
            text.remove()
            axes.annotate(label, point, (dx, dy), "data", "offset points", leader, **style)


def _offsets() -> Iterator[tuple[float, float]]:
    """Where a label's centre may lie about its point, in points: nearer places first."""
    for radius in (8.0, 11.0, *range(14, 600, 6)):
        steps = max(8, int(radius / 2))
        for step in range(steps):
            angle = math.pi / 4 + 2 * math.pi * step / steps
            yield radius * math.cos(angle), radius * math.sin(angle)


def legend_below(figure: Figure, handles: Sequence[Artist], labels: Sequence[str], height: float) -> None:
    """Writes a legend below all axes, in as many columns as the width holds; the figure grows by what it takes.

    Args:
        figure: The figure.
        handles: What the labels are of.
        labels: The labels.
        height: Of the rest of the figure, in inches.
    """
    lines = [textwrap.fill(label, _LABEL) for label in labels]
    width = figure.get_figwidth()
    for columns in range(min(4, len(lines)), 0, -1):
        legend = figure.legend(handles, lines, loc="outside lower center", ncols=columns, fontsize=7, frameon=False)
        extent = legend.get_window_extent().transformed(figure.dpi_scale_trans.inverted())
        if extent.width <= width or columns == 1:
            break
        legend.remove()
    figure.set_size_inches(width, height + extent.height)
