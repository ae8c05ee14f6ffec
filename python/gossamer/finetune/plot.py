"""A picture of a run: the loss and its parts by step, and the perplexity on the documents set aside."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..pictures import save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(figure: Figure, report: dict[str, Any], path: Path) -> None:
    """Draws the fields of a `Report` and writes the picture.

    Raises:
        GossamerError: the picture cannot be written.
    """
    losses, perplexity = figure.subplots(2, 1, sharex=True)
    tokens = [entry["tokens"] for entry in report["log"]]
    for name in ("loss", "ce", "squarehead", "kl"):
        values = [entry[name] for entry in report["log"]]
        if any(values):
            losses.plot(tokens, values, label=name, linewidth=1)
    losses.set_ylabel("training loss")
    losses.legend()
    perplexity.plot(
        [entry["tokens"] for entry in report["curve"]], [entry["perplexity"] for entry in report["curve"]], marker="o"
    )
    perplexity.set_ylabel("perplexity, set aside")
    perplexity.set_xlabel("tokens")
    for axes in (losses, perplexity):
        axes.grid(alpha=0.3)
    save_figure(figure, path)
