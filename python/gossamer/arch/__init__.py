"""Model families: a module named by its model_type maps a checkpoint's config and names onto the engine's."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any, Protocol, cast

from ..errors import GossamerError
from .spec import DecoderConfig

_HELPERS = {"fields", "keys", "rope"}  # modules of this folder that are no family

Tensors = dict[str, tuple[str, tuple[int, ...]]]


class Family(Protocol):
    """What a family's module has."""

    def decoder_config(self, config: dict[str, Any]) -> DecoderConfig:
        """Maps the content of config.json; raises `GossamerError` naming the key that is missing or unsupported."""

    def tensors(self, config: dict[str, Any]) -> Tensors:
        """Returns (checkpoint name, shape) of every tensor that the model needs, by canonical name.

        Weights are 2-D [outputs, inputs], vectors 1-D. Only sizes are read, and nothing is computed from them yet.
        """

    def biases(self, config: dict[str, Any]) -> dict[str, Tensors]:
        """Returns the biases that there may be, by the key of config.json that announces them."""

    def unread(self, config: dict[str, Any]) -> list[str]:
        """Returns the keys that ask for something and are not known; raises as `gossamer.arch.keys.unread` does."""


def families() -> list[str]:
    """Returns the supported model types."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _HELPERS)


def family(config: dict[str, Any]) -> Family:
    """Finds the family of a checkpoint.

    Args:
        config: Content of config.json.

    Raises:
        GossamerError: `model_type` is missing or not supported.
    """
    model_type = config.get("model_type")
    known = families()
    if model_type not in known:
        raise GossamerError(f"model_type {model_type!r} is not supported; there are: {', '.join(known)}")
    return cast("Family", importlib.import_module(f"{__name__}.{model_type}"))
