"""Paragraphs and tables of Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any


def filled(text: str, **values: Any) -> str:
    """A paragraph in lines."""
    return textwrap.fill(text.format(**values), 120, break_long_words=False, break_on_hyphens=False)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table whose columns behind the first `left` are right-aligned."""
    marks = ["---" if index < left else "---:" for index in range(len(header))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, marks, *rows))
