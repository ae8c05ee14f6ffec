"""Texts from models: conversations, sampling, statistics, perplexity."""

from __future__ import annotations
