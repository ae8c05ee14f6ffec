"""Checkpoints as others store them: opened, read, written."""

from __future__ import annotations

from .base import Checkpoint, refuse_branches
from .open import open_checkpoint
from .write import refuse_unwritable, write_checkpoint

__all__ = ["Checkpoint", "open_checkpoint", "refuse_branches", "refuse_unwritable", "write_checkpoint"]
