"""Sparse finetuning: accuracy back for a pruned model, from its dense teacher; needs the [torch] extra to train."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .options import Options, Parts
    from .pipeline import Report, finetune
    from .samples import sample

__all__ = ["Options", "Parts", "Report", "finetune", "sample"]

_HOMES = {"Options": "options", "Parts": "options", "Report": "pipeline", "finetune": "pipeline", "sample": "samples"}


def __getattr__(name: str) -> Any:
    # Imported where used: sampling needs no torch.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
