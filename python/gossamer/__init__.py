"""gossamer runs pruned transformers fast on ordinary machines.

import gossamer
model = gossamer.load()
print(model.generate("What is the capital of France?"))
"""

from __future__ import annotations

import sys

# Nothing else is imported before it is used: the command answers Ctrl-C only once this module is there.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType
    from typing import Any

    from .errors import GossamerError
    from .finetune import finetune
    from .generation.model import Model
    from .generation.sampling_options import SamplingOptions
    from .loading import load
    from .machine.roofline import roofline
    from .packing.convert import convert
    from .pruning import prune

    __version__: str
else:
    ModuleType = type(sys)

__all__ = [
    "GossamerError",
    "Model",
    "SamplingOptions",
    "__version__",
    "convert",
    "finetune",
    "generate",
    "load",
    "prune",
    "roofline",
    "stream",
]

_HOMES = {
    "GossamerError": "errors",
    "load": "loading",
    "convert": "packing.convert",
    "prune": "pruning",
    "finetune": "finetune",
    "roofline": "machine.roofline",
    "Model": "generation.model",
    "SamplingOptions": "generation.sampling_options",
    "__version__": "_core",
}


class _Package(ModuleType):
    """Keeps names such as `gossamer.convert` the functions when modules of those names are imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _HOMES or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def stream(prompt: str, model: str = "", **options: Any) -> Iterator[str]:
    """Returns the text that a model writes after a prompt, piece by piece.

    Args:
        prompt: What the model answers or continues.
        model: As for `load`; empty for the built-in default.
        **options: As for `Model.stream`.
    """
    from .generation.sampling_options import OF_A_STREAM, check_names
    from .loading import load

    check_names(options, [*OF_A_STREAM, "sampling"])  # before the model is fetched or made
    return (load(model) if model else load()).stream(prompt, **options)


def generate(prompt: str, model: str = "", **options: Any) -> str:
    """Returns the text that a model writes after a prompt; arguments as for `stream`."""
    return "".join(stream(prompt, model, **options))
