"""Built-in models, models of the hub, and synthetic ones."""

from __future__ import annotations
