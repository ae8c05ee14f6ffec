"""Pictures: an empty figure before the work, the file behind it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .errors import GossamerError
from .parts import new_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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

    try:
        with new_file(path, ending=path.suffix) as part, mpl.rc_context({"svg.hashsalt": "gossamer"}):
            figure.savefig(part.path, metadata={"Date": None} if path.suffix == ".svg" else None)
    except OSError as error:
        raise GossamerError(f"--plot {path}: cannot write: {error.strerror or error}") from None
