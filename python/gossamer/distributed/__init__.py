"""gossamer on Ray: replicas of a model behind one HTTP front, and files of prompts answered by many machines.

`serve run gossamer.distributed:app model=FOLDER` serves; `answer_file` answers a file. Each replica has the whole
model: one that is spread over machines (tensor parallelism) is out of scope.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import GossamerError

if TYPE_CHECKING:
    from .answers import answer_file
    from .deployment import app

__all__ = ["answer_file", "app"]

_HOMES = {"app": "deployment", "answer_file": "answers"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    try:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    except ModuleNotFoundError as error:
        raise GossamerError(f"gossamer.distributed needs {error.name}: pip install 'gossamer[ray]'") from None
