"""Packed folders whose gossamer.json says something else, as its writer could have left it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gossamer.packing.folder import document_digest


def read_document(folder: Path) -> dict[str, Any]:
    """What a folder's gossamer.json says."""
    document: dict[str, Any] = json.loads((folder / "gossamer.json").read_text("utf-8"))
    return document


def write_document(folder: Path, document: dict[str, Any]) -> None:
    """Writes a folder's gossamer.json, with the checksum of what it says now."""
    stamped = document | {"document_sha256": document_digest(document)}
    (folder / "gossamer.json").write_text(json.dumps(stamped), "utf-8")
