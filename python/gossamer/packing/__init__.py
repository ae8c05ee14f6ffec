"""Packed models: formats chosen, matrices packed, folders written and read."""

from __future__ import annotations
