"""What tells a packed layer from the dense one that it stands for, beside the values of its weight."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from .attachments import PLAIN, attributes, marks
from .linear import OWN, SparseLinear
from .stand_in import ANSWERED, PackedWeight

Modules = frozenset[nn.Module]
NONE: Modules = frozenset()

LISTS = {
    **dict.fromkeys(("parameters", "named_parameters", "state_dict", "get_parameter"), "goes through its parameters"),
    **dict.fromkeys(("buffers", "named_buffers", "get_buffer"), "goes through its buffers"),
}
"""Methods that give the tensors of a module and of those in it, and what is said of a layer that they reach."""

PRINTS = frozenset(("__repr__", "__str__", "__format__", "extra_repr"))
"""Methods that show a module and those in it."""

_OWN_DATA = {
    *("__class__", "__dict__", "_parameters", "_buffers", "_non_persistent_buffers_set", "_get_name", "__dir__"),
    *("__getstate__", "__reduce__", "__reduce_ex__", "__getattr__", "__getattribute__", "__sizeof__", "__module__"),
}
_PACKED = OWN | {"in_features", "out_features", "bias", *nn.Module().__dict__}
# What tensors on one device, and those of one type there, answer alike.
_PLACE = {"device", "is_cuda", "is_cpu", "is_meta", "is_mps", "is_xpu", "get_device"}
_KIND = {
    *("dtype", "itemsize", "is_floating_point", "is_complex", "element_size", "layout", "is_sparse", "is_quantized"),
    *("is_nested", "new_empty", "new_zeros", "new_ones", "new_full", "new_tensor"),
}


def has_differently(layer: nn.Module, name: str) -> bool:
    """Whether a layer has an attribute that a packed one lacks, or the other way round."""
    return hasattr(layer, name) != (name in _PACKED or name in attributes(layer, PLAIN))


def answers_differently(layer: nn.Module, name: str) -> bool:
    """Whether a layer's attribute, not its weight, is another in a packed one, or might be."""
    return name in _OWN_DATA or name in LISTS or name in PRINTS or has_differently(layer, name)


def is_of_other_kind(layer: nn.Module, kinds: Any) -> bool:
    """Whether `isinstance` answers something else for a packed layer, or might."""
    try:
        return isinstance(layer, kinds) != issubclass(SparseLinear, kinds)
    except TypeError:
        return True


def weight_is_of_other_kind(layer: nn.Module, kinds: Any) -> bool:
    """The same for what stands for its weight."""
    try:
        return isinstance(layer.weight, kinds) != issubclass(PackedWeight, kinds)
    except TypeError:
        return True


def weight_answers(layer: nn.Module, name: str, *, asked: bool = False) -> bool:
    """Whether a weight's attribute is the same in what stands for it.

    Args:
        layer: The dense layer.
        name: The attribute.
        asked: Whether the code is content where there is none.
    """
    weight: Any = layer.weight
    if name in marks(weight):
        return True
    if name == "requires_grad":  # packed values do not learn
        return not weight.requires_grad
    if name in ("stride", "is_contiguous", "storage_offset"):
        return bool(weight.is_contiguous()) and weight.storage_offset() == 0
    return name in ANSWERED or (asked and not hasattr(weight, name) and not hasattr(PackedWeight, name))


def told_by_first(module: nn.Module, wanted: Modules, asked: Iterable[str]) -> Modules:
    """The layer that has to stay dense so that the first parameter of a module answers as it does.

    Args:
        module: The module whose parameters are asked for.
        wanted: The layers that may be packed; then their weights are no parameters.
        asked: What the first parameter is asked for.
    """
    weights = {id(layer.weight): layer for layer in module.modules() if layer in wanted}
    firsts: list[Tensor] = []
    for parameter in module.parameters():
        if not parameter.is_floating_point():
            continue  # which those that filter do not see, and others would not have
        firsts.append(parameter)
        if id(parameter) not in weights:
            if _same(firsts, asked):
                return NONE
            break
    return frozenset(weights[id(first)] for first in firsts[:1] if id(first) in weights)


def told_by_any(module: nn.Module, wanted: Modules, asked: Iterable[str], what: str) -> Modules:
    """The layers that have to stay dense so that a module's tensors, whatever their number, answer as they do.

    Args:
        module: The module whose tensors are asked for.
        wanted: The layers that may be packed.
        asked: What they are asked for.
        what: The method that gives them, one of `LISTS`.
    """
    layers = frozenset(layer for layer in module.modules() if layer in wanted)
    weights = [layer.weight for layer in layers]
    tensors = [*(module.buffers() if "buffer" in what else module.parameters())]
    if "buffer" in what and not _PLACE.issuperset(asked):  # packed streams are buffers of bytes
        return layers
    rest = {id(tensor) for tensor in tensors} - {id(weight) for weight in weights}
    return NONE if rest and _same([*tensors, *weights], asked) else layers


def _same(tensors: list[Any], asked: Iterable[str]) -> bool:
    """Whether tensors give one answer."""
    kinds = {(tensor.device, tensor.dtype, tensor.layout) for tensor in tensors}
    places = {tensor.device for tensor in tensors}
    return all((name in _KIND and len(kinds) == 1) or (name in _PLACE and len(places) == 1) for name in asked)


def inside(modules: Modules) -> Modules:
    """Modules, and all that are in them."""
    return frozenset(inner for module in modules for inner in module.modules())


def told_by_call(function: Any, given: Modules, wanted: Modules) -> tuple[Modules, str]:
    """The layers about which a function finds something out that is handed modules, and is not followed.

    Args:
        function: One of torch's, or of Python's library.
        given: What it is handed.
        wanted: The layers that may be packed.

    Returns:
        The layers, and what is to be said of them.
    """
    module, name = str(getattr(function, "__module__", "")), str(getattr(function, "__name__", ""))
    if module == "builtins" and name in _ASKING:
        return given & wanted, "asks for its class" if name == "type" else f"hands it to {name}"
    if (module, name) in _SHOWING or (module.startswith(_TAKES_APART) and not isinstance(function, type)):
        return inside(given) & wanted, f"hands it to {name}"
    return NONE, ""


def keeps(function: Any) -> bool:
    """Whether a function that is not followed may return modules that it is given."""
    module, name = str(getattr(function, "__module__", "")), str(getattr(function, "__name__", ""))
    return name in _PASSING if module == "builtins" else isinstance(function, type) or module in _KEEPING


_KEEPING = {"copy", "itertools", "functools", "_functools", "operator", "_operator", "typing", "weakref"}
_PASSING = {
    *("list", "tuple", "set", "frozenset", "dict", "iter", "next", "reversed", "enumerate", "zip", "map", "filter"),
    *("sorted", "max", "min", "vars", "super", "getattr"),
}
_ASKING = {"vars", "dir", "id", "type", "isinstance", "hasattr"}
_SHOWING = {
    *(("builtins", name) for name in ("repr", "str", "format", "ascii")),
    *(("_pickle", "dumps"), ("pickle", "dumps"), ("dataclasses", "asdict"), ("dataclasses", "astuple")),
}
# Functions of torch that go for the tensors of modules.
_TAKES_APART = (
    *("torch._functorch.functional_call", "torch._functorch.make_functional", "torch.nn.utils", "torch.serialization"),
    *("torch.func", "torch.ao", "torch.export", "torch.fx", "torch.onnx", "torch.optim"),
)
