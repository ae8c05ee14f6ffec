"""Model families: a module named by its model_type maps a checkpoint's config onto a description, its names onto ours.

`mistral` is among the shortest, `llama` a whole one. Beside them stands what they use: `spec` is the description,
`sources` where a tensor lies in a checkpoint, `fields` and `keys` read configs, `rope`, `alibi` and `relative` are
arithmetic, and `relatives`, `experts`, `encoders` and `pairs` have what families share.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any, Protocol, cast

from ..errors import GossamerError
from .sources import Source, parts_of
from .spec import Transformer

_HELPERS = {
    "alibi",
    "encoders",
    "experts",
    "fields",
    "keys",
    "pairs",
    "relative",
    "relatives",
    "rope",
    "sources",
    "spec",
}  # no families

Sources = dict[str, Source]
"""Where each canonical tensor lies: weights [outputs, inputs] and vectors."""


class Family(Protocol):
    """What a family's module has."""

    PREFIX: str
    """What the names of all tensors begin with but the head's."""

    def describe(self, config: dict[str, Any]) -> Transformer:
        """Maps the content of config.json; raises `GossamerError` naming the key that is missing or unsupported."""

    def sources(self, config: dict[str, Any]) -> Sources:
        """Returns where every tensor that the description asks for lies in a checkpoint.

        Only sizes are read, and nothing is computed from them yet.
        """

    def biases(self, config: dict[str, Any]) -> dict[str, Sources]:
        """Returns the biases that there may be, by the key of config.json that announces them."""

    def unread(self, config: dict[str, Any]) -> list[str]:
        """Returns the keys that ask for something and are not known; raises as `gossamer.arch.keys.unread` does."""


def beside(config: dict[str, Any]) -> tuple[str, ...]:
    """Returns what the names of tensors begin with that are of other parts than the text, of a model that has some.

    Raises:
        GossamerError: as `family`.
    """
    return cast("tuple[str, ...]", getattr(family(config), "BESIDE", ()))


def settled(config: dict[str, Any]) -> dict[str, Any] | None:
    """Returns a config in which nothing follows from whether the head is tied, so that a file's tensors may decide it.

    Returns:
        None where a head that is not tied must be there; otherwise the embedding stands for one that is missing.

    Raises:
        GossamerError: as `family`, or a key has another type.
    """
    settle = getattr(family(config), "settle", None)
    return None if settle is None else cast("dict[str, Any]", settle(config))


def stored(sources: Sources) -> dict[str, Sources]:
    """Returns what lies in each stored tensor: the canonical tensors of some sources, by stored name."""
    found: dict[str, Sources] = {}
    for name, source in sources.items():
        found.setdefault(source.tensor, {})[name] = source
    return found


def label(name: str, sources: Sources) -> str:
    """Returns what people call a canonical tensor: its stored name, and its own where that holds others, too."""
    source = sources[name]
    return source.tensor if source.whole else f"{source.tensor} ({parts_of(name)[1]})"


def families() -> list[str]:
    """Returns the supported model types, with underscores where they have hyphens."""
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
    module = model_type.replace("-", "_") if isinstance(model_type, str) else model_type
    if module not in known:
        raise GossamerError(f"model_type {model_type!r} is not supported; there are: {', '.join(known)}")
    return cast("Family", importlib.import_module(f"{__name__}.{module}"))
