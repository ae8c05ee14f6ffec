"""`sparsify` and `desparsify`: a model's dense linear layers for packed ones, in place, and back."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from ..errors import GossamerError
from ..formats import INTEGER_TYPES, Shape
from ..kinds import check_kind
from ..packing.planner import Choice, Machine
from .attachments import COMPUTED, PLAIN, buffers_without_values, carry_over, held_outside, obstacle
from .dense import (
    CONV1D,
    as_kind,
    check_options,
    check_weight,
    dense_parts,
    is_linear,
    is_patched,
    kind_of,
    machine_of,
    round_layer,
)
from .linear import OWN, SparseLinear, pack_layer
from .readers import readers
from .report import LayerReport, Report, model_bytes, other_weights
from .training import trained_layers

# Below so many positions the call costs more than the product, dense or sparse.
_SMALL = 1 << 15


Patterns = str | Iterable[str] | None


def sparsify(
    model: nn.Module,
    *,
    weights: str = "auto",
    format: str = "auto",
    group: int = 64,
    include: Patterns = None,
    exclude: Patterns = None,
    min_zeros: float | None = None,
    activations: str = "auto",
    trainable: bool = False,
) -> Report:
    """Replaces the linear layers that get faster by it with `SparseLinear`, in place.

    Looks at every `torch.nn.Linear` and every `Conv1D` of transformers. With float values a layer is packed where its
    zeros promise a gain by estimate, and stays as it is otherwise; with integer values it is packed at any number of
    zeros, since fewer bits pay by themselves. A weight that another module has too (tied embeddings) is left alone, and
    so is one that the model's own code reads, and a layer with more to it than hooks and attributes, which go over. So
    is what is still being trained: adapters, layers that are all zero and require gradients, and, unless `trainable`,
    layers that require gradients while others do not.

    Args:
        model: Any module; its other modules are not touched.
        weights: Type of the stored values: "f32", "bf16", "f16", "int8", "int4", or "auto": each layer's own, exactly.
        format: One of `gossamer.formats.FORMATS` for every layer, or "auto": the fastest here by estimate.
        group: Inputs that a scale of integer values serves: 32, 64, 128, or 0 for a whole row.
        include: Glob patterns of qualified names, one or several; only layers that match one are looked at.
        exclude: Glob patterns of layers to leave alone.
        min_zeros: Fraction of zeros from which on a layer is packed, besides the rules above.
        activations: How inputs are multiplied; see `Layout`.
        trainable: Whether the values that are not zero can be trained; float types only.

    Returns:
        What was done with each layer, and why, and which large parameters are no linear layer's.

    Raises:
        TypeError: the model itself is a linear layer.
        ValueError: an option is unknown, or a weight has no values or holds NaN (with integer values, infinity), or a
            buffer that no state brings has none (device meta); then no layer was replaced.
    """
    check_options(format, weights, group, activations, trainable)
    check_kind("min_zeros", min_zeros, "float", "None")
    if min_zeros is not None and not 0 <= min_zeros <= 1:
        raise ValueError(f"min_zeros must be between 0 and 1, got {min_zeros}")
    if kind_of(model):
        raise TypeError(
            "the model is a linear layer itself and cannot be replaced in place; use SparseLinear.from_dense"
        )
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ValueError(f"{name}: has no shape yet, as in lazy modules; call the model once first")
    linears = {name: module for name, module in model.named_modules() if is_linear(module)}
    wanted = ("*",) if include is None else listed("include", include, linears)
    unwanted = listed("exclude", exclude, linears)
    reasons = _reasons(model, linears, wanted, unwanted, trainable)
    for name, module in linears.items():
        if not reasons[name]:
            check_weight(dense_parts(module, name)[0], weights, name)
    if empty := buffers_without_values(model):
        raise ValueError(
            f"{', '.join(empty)}: on device meta, which has no values; set this buffer first, since no state brings it"
        )
    others, before = other_weights(model, linears.values()), model_bytes(model)
    machine, asked = functools.cache(machine_of), _Asked(weights, format, group, min_zeros, activations, trainable)
    rows = [_swapped(model, name, module, reasons[name], asked, machine) for name, module in linears.items()]
    return Report(tuple(rows), others, before, model_bytes(model))


def _reasons(
    model: nn.Module, linears: dict[str, nn.Module], wanted: tuple[str, ...], unwanted: tuple[str, ...], trainable: bool
) -> dict[str, str]:
    """Why each linear layer is left alone, whatever its values are; "" where nothing speaks against packing it."""
    owners = owners_of(model)
    trained = trained_layers(model, linears, trainable)
    reasons = {
        name: _left_alone(name, module, owners, wanted, unwanted) or trained.get(name, "")
        for name, module in linears.items()
    }
    asked = [module for name, module in linears.items() if not reasons[name]]
    read = held_outside(model, asked) | readers(model, asked)
    return {name: read.get(module, reasons[name]) for name, module in linears.items()}


@dataclass(frozen=True)
class _Asked:
    """How layers are to be packed: options of `sparsify`."""

    weights: str
    format: str
    group: int
    min_zeros: float | None
    activations: str
    trainable: bool


def _swapped(
    model: nn.Module,
    name: str,
    module: nn.Module,
    reason: str,
    asked: _Asked,
    machine: Callable[[torch.device], Machine],
) -> LayerReport:
    """Puts a packed layer in the place of one, where that pays and nothing speaks against it; tells what was done."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    size = weight.numel() * weight.element_size()
    shape = weight.shape if weight.dim() == 2 else (size, 1)
    out, inn = reversed(shape) if kind_of(module) == CONV1D else shape
    own = str(weight.dtype).removeprefix("torch.")
    if reason:
        return LayerReport(name, out, inn, None, "", own, size, size, reason)
    rounded = round_layer(dense_parts(module, name)[0], asked.weights, asked.group, name)
    choice = rounded.choose(asked.format, machine(weight.device))
    zeros = rounded.shape.zeros
    if refusal := _does_not_pay(rounded.shape, choice, asked.format, asked.weights, asked.min_zeros):
        return LayerReport(name, out, inn, zeros, "", own, size, size, refusal)
    parts = dense_parts(module, name)
    layer = pack_layer(rounded, choice, *parts, activations=asked.activations, trainable=asked.trainable, name=name)
    layer.kind = kind_of(module)
    why = "; ".join(filter(None, (choice.reason, carry_over(module, layer))))
    replace(model, module, layer)
    layout = layer.layout
    return LayerReport(name, out, inn, zeros, layout.format, layout.type, size, layer.nbytes, why)


def desparsify(model: nn.Module) -> int:
    """Replaces every `SparseLinear` of a model with the dense layer of the same values, in place.

    Returns:
        How many layers were replaced.

    Raises:
        GossamerError: a layer has tensors beside its own, as pruning masks are; then no layer was replaced.
    """
    layers = [module for module in model.modules() if isinstance(module, SparseLinear) and module is not model]
    for layer in layers:
        if besides := [name for name in (*layer._parameters, *layer._buffers) if name not in OWN | {"bias"}]:
            raise GossamerError(
                f"{layer.name}: it has {', '.join(besides)} beside its own tensors: make that permanent"
            )
    for layer in layers:
        dense = as_kind(layer.to_dense(), layer.kind)
        carry_over(layer, dense, OWN | PLAIN)
        replace(model, layer, dense)
    return len(layers)


def replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Puts a module at every place of a model where another one is."""
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new


def owners_of(model: nn.Module) -> dict[int, list[str]]:
    """Returns names of the parameters of modules that are one tensor or lie in the same memory, by a tensor's id."""
    found: dict[int, list[str]] = {}
    spans: dict[int, tuple[int, int, int]] = {}
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                found.setdefault(id(parameter), []).append(f"{name}.{key}" if name else key)
                if type(parameter) is nn.Parameter and parameter.layout == torch.strided and parameter.numel():
                    spans[id(parameter)] = (*_span(parameter), id(parameter))
    names = {one: list(of) for one, of in found.items()}
    open_: list[tuple[int, int, int]] = []
    for span in sorted(spans.values()):
        open_ = [before for before in open_ if before[1] > span[0]]
        for _, _, other in open_:
            found[span[2]] += names[other]
            found[other] += names[span[2]]
        open_.append(span)
    return found


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """Where a tensor's memory begins and ends; nowhere on device meta."""
    begin = 0 if tensor.is_meta else tensor.data_ptr()
    length = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return begin, begin + length * tensor.element_size() if begin else begin


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a name matches one of the patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def listed(option: str, patterns: Patterns, names: Iterable[str]) -> tuple[str, ...]:
    """Returns patterns as a tuple; one that no linear layer's name matches does nothing, and is told.

    Args:
        option: What the patterns are given as.
        patterns: One or several, or none.
        names: Of the linear layers.
    """
    found = () if patterns is None else (patterns,) if isinstance(patterns, str) else tuple(patterns)
    for pattern in found:
        if not any(fnmatchcase(name, pattern) for name in names):
            logging.getLogger("gossamer").warning("%s: no linear layer is called %r", option, pattern)
    return found


def _left_alone(
    name: str, module: nn.Module, owners: dict[int, list[str]], include: tuple[str, ...], exclude: tuple[str, ...]
) -> str:
    """Why a layer is not looked at; empty where it is."""
    if not matches(name, include):
        return "not included"
    if matches(name, exclude):
        return "excluded"
    if not kind_of(module):
        return f"a {type(module).__name__}, which is more than a Linear"
    if is_patched(module):
        return f"the forward of {type(module).__name__} is not that of its class's own file"
    weight = module._parameters.get("weight")
    if weight is None:
        return COMPUTED
    others = [owner for owner in owners[id(weight)] if owner != f"{name}.weight"]
    if others:
        return f"tied to {', '.join(others)}"
    if weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"{str(weight.dtype).removeprefix('torch.')} cannot be packed"
    if 0 in weight.shape:
        return "it is empty"
    return obstacle(module, OWN)


def _does_not_pay(shape: Shape, choice: Choice, format: str, weights: str, min_zeros: float | None) -> str:
    """Why a layer stays dense; empty where it is packed."""
    if min_zeros is not None and shape.zeros < min_zeros:
        return f"{shape.zeros:.1%} zeros, fewer than the {min_zeros:.1%} asked for"
    if format != "auto":
        return ""
    if shape.rows * shape.cols < _SMALL:
        return "too small to pay"
    return choice.reason if choice.format == "dense" and weights not in INTEGER_TYPES else ""
