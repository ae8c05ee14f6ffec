"""Ties packed layers to `save_pretrained` and `from_pretrained` of transformers, once somebody imports it.

Importing transformers takes longer than importing torch, and most who use this package do not need it.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

_MODULE = "transformers.modeling_utils"  # is there before any model is, and everything that it needs before it


def _tie() -> None:
    with contextlib.suppress(ImportError):  # a transformers in which others cannot register
        importlib.import_module(".quantizer", __package__)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds one module as everybody else does, and adds something to do after it has been executed."""

    def __init__(self) -> None:
        self._asks_others = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Returns the module's spec, for other modules None."""
        del path, target
        if fullname != _MODULE or self._asks_others:
            return None
        self._asks_others = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._asks_others = False
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            loader.exec_module = self._followed(loader.exec_module)
        return spec

    def _followed(self, execute: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
        def both(module: ModuleType) -> None:
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            _tie()

        return both


def tie() -> None:
    """Ties now where transformers' models are imported already, otherwise when they are."""
    if _MODULE in sys.modules:
        _tie()
    else:
        sys.meta_path.insert(0, _Finder())
