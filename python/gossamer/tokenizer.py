"""`Tokenizer` where programs look for it that were written before the package stood in folders."""

from __future__ import annotations

from .text.tokenizer import Tokenizer

__all__ = ["Tokenizer"]
