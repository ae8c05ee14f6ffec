"""torchao's safetensors: parts of a tensor beside each other, and in the file's header its kind, as JSON text.

The parts of `weight` are called `_weight_qdata`, `_weight_scale` and `_weight_zero_point`.
"""

from __future__ import annotations

from ...errors import GossamerError
from ...files import parse_json
from .claims import Claims
from .scaled import ScaledTensor
from .tensor import StoredTensor, Tensor, Tensors

_KINDS = ("Float8Tensor", "Int8Tensor", "IntxUnpackedToInt8Tensor")
_PARTS = ("scale", "zero_point")
_MOST_TEXT = 1 << 16


def decode(tensors: Tensors, claims: Claims) -> None:
    """Puts the dense tensor in the place of every one that lies in parts.

    Raises:
        GossamerError: a part is missing or contradicts another, or a tensor is of a kind that is not supported.
    """
    for part in [name for name in tensors if name.endswith("_qdata") and name.rpartition(".")[2].startswith("_")]:
        module, _, own = part.removesuffix("_qdata").rpartition(".")
        name = f"{module}.{own[1:]}"
        values = tensors.pop(part)
        kind = _kind(values, name)
        if kind not in _KINDS:
            raise GossamerError(
                f"{values.path}: tensor {name} is torchao's {kind!r:.80}, which is not supported; there are: "
                f"{', '.join(_KINDS)}"
            )
        scale, zero = (tensors.pop(f"{module}.{own}_{one}", None) for one in _PARTS)
        if scale is None:
            raise values.bad("has no scale beside it")
        tensors.put(name, ScaledTensor(values, scale, zero, None, claims))
        claims.found("torchao")


def _kind(values: Tensor, name: str) -> object:
    text = values.file.metadata.get(name, "") if isinstance(values, StoredTensor) else ""
    try:
        found = parse_json(text) if len(text) <= _MOST_TEXT else None
    except ValueError:
        found = None
    return found.get("_type") if isinstance(found, dict) else None
