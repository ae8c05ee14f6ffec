"""XLM-RoBERTa: RoBERTa with a vocabulary of a hundred languages."""

from __future__ import annotations

from .roberta import PREFIX, biases, describe, sources, unread

__all__ = ["PREFIX", "biases", "describe", "sources", "unread"]
