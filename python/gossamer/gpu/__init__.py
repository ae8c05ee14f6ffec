"""Packed weights on GPUs."""

from __future__ import annotations
