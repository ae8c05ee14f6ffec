"""Models that processes of one host share: packed folders, whose pages the system maps once for all of them."""

from __future__ import annotations

from pathlib import Path

from ..errors import GossamerError
from ..loading import locate
from ..packing.folder import is_packed


def shared_folder(model: str | Path) -> Path:
    """Returns the packed folder that names a model.

    Raises:
        GossamerError: there is no such model, or it would be packed in the memory of each process.
    """
    path = locate(model)
    if not is_packed(path):
        raise GossamerError(
            f"{path}: is not packed, so that each replica would hold a copy of it; gossamer convert packs it"
        )
    return path.resolve()
