"""A folder's tokenizer with other settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gossamer.text.tokenizer import Tokenizer


def settings(folder: Path, **changes: Any) -> Tokenizer:
    path = folder / "tokenizer_config.json"
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return Tokenizer.from_folder(folder)
