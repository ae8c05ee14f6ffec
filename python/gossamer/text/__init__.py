"""Tokenizers, chat templates, messages, and texts to calibrate and evaluate on."""

from __future__ import annotations
