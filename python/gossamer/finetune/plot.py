"""A picture of a run: the loss and its parts by step, and the perplexity on the documents set aside."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..pictures import plain_ticks, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAMES = {
    "ce": "cross-entropy,\nnats a token",
    "kl": "divergence from\nthe teacher, nats a token",
    "squarehead": "SquareHead,\nrelative squared error",
}
_PANEL_HEIGHT = 1.8  # inches


def draw(figure: Figure, report: dict[str, Any], path: Path) -> None:
    """Draws the fields of a `Report`, each on a scale of its own, and writes the picture.

    Parts of the loss that it gives no weight are left out.

    Raises:
        GossamerError: the picture cannot be written.
    """
    weights = {name: weight for name, weight in report["options"]["loss"].items() if weight}
    formula = " + ".join(f"{weight:g} {name}" for name, weight in weights.items())
    panels = [(f"training loss,\n{formula}", "log", "loss")] if list(weights.values()) != [1] else []
    panels += [(f"{_NAMES[name]}", "log", name) for name in weights]
    if report["curve"]:
        panels.append(("perplexity on the\ndocuments set aside", "curve", "perplexity"))
    figure.clear()
    figure.set_size_inches(figure.get_figwidth(), _PANEL_HEIGHT * len(panels) + 0.4)
    every = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (label, records, name) in zip(every, panels, strict=True):
        places = [(entry["tokens"], entry[name]) for entry in report[records]]
        style = {"marker": "o"} if records == "curve" else {"marker": "." if len(places) < 2 else ""}
        axes.plot([x for x, _ in places], [y for _, y in places], linewidth=1, **style)
        axes.set_ylabel(label, fontsize=8)
        axes.grid(alpha=0.3)
        plain_ticks(axes.yaxis)
    every[-1].set_xlabel("training tokens")
    plain_ticks(every[-1].xaxis)
    save_figure(figure, path)
