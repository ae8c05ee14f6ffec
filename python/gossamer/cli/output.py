"""What commands print on stdout for other programs: one JSON document."""

from __future__ import annotations

import json
from typing import Any


def print_json(document: Any) -> None:
    """Prints one JSON document, in ASCII, so that it survives any terminal encoding."""
    print(json.dumps(document, indent=1))
