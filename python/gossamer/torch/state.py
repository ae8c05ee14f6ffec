"""Saved models: states with packed layers, in memory or as one safetensors file, back into a freshly built model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import GossamerError
from ..safetensors_io import SafetensorsFile, SafetensorsWriter
from .attachments import buffers_without_values, carry_over, held_outside, obstacle
from .dense import CONV1D, kind_of
from .handles import handle_of
from .layout import Layout
from .linear import OWN, SparseLinear
from .swap import replace

_ALIASES = "aliases"  # metadata: names that share another one's tensor, as JSON
_KIND = "gossamer.torch"
_LAYOUT = "layout_numbers"


def save(model: nn.Module, path: str | Path) -> None:
    """Writes a model's state as one safetensors file, which `load` reads; written beside its place, then renamed.

    Args:
        model: Any module, sparsified or not. Tensors that are tied are written once.
        path: File to write; replaced if it exists.

    Raises:
        GossamerError: a tensor is on the meta device or of a type that the file cannot hold, or the file cannot be
            written; then nothing is left behind.
    """
    state: dict[str, Any] = model.state_dict()
    first: dict[tuple[Any, ...], str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor) or tensor.is_meta or tensor.layout != torch.strided:
            raise GossamerError(f"{path}: {name} is no tensor with values, and cannot be saved")
        if tensor.numel():
            key = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            if first.setdefault(key, name) != name:
                aliases[name] = first[key]
    names = [name for name in state if name not in aliases]
    metadata = {"format": "pt", "kind": _KIND, _ALIASES: json.dumps(aliases)}
    with SafetensorsWriter(Path(path), names, metadata=metadata) as writer:
        for name in names:
            tensor = state[name].detach().cpu().contiguous()
            if tensor.dtype == torch.bfloat16:
                writer.add(name, tensor.view(torch.int16).numpy().view(np.uint16), "BF16")
                continue
            try:
                values = tensor.numpy()
                writer.add(name, values)
            except (TypeError, KeyError):
                raise GossamerError(f"{path}: {name} is of type {tensor.dtype}, which cannot be saved") from None


def load(model: nn.Module, path: str | Path, *, strict: bool = True) -> nn.Module:
    """Reads what `save` wrote into a freshly built model of the same kind.

    Linear layers that were packed when the model was saved become `SparseLinear`, straight from the file, which is
    mapped: indices are read and checked here, and a weight's values come from the disk when they are first used.

    Args:
        model: The model, dense or sparsified, with weights of any values, or on the meta device. Changed in place.
        path: The file.
        strict: Whether every tensor must be in both the model and the file.

    Returns:
        The model.

    Raises:
        GossamerError: the file is missing, broken, or does not fit the model.
    """
    file = SafetensorsFile(path)
    memory = np.memmap(file.path, np.uint8, "c")  # pages are private once written to, so tensors may be
    state: dict[str, Tensor] = {}
    for name, info in file.tensors.items():
        array = memory[info.start : info.stop]
        dtype = file.raw(name).dtype
        if array.size and array.ctypes.data % dtype.itemsize:
            array = array.copy()
        tensor = torch.from_numpy(np.asarray(array).view(np.int16 if info.dtype == "BF16" else dtype))
        tensor = tensor.view(torch.bfloat16) if info.dtype == "BF16" else tensor
        state[name] = tensor.reshape(info.shape)
    try:
        own = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
        for alias, name in json.loads(file.metadata.get(_ALIASES, "{}")).items():
            # A model in which these are two may write to one of them.
            apart = alias in own and name in own and own[alias] is not own[name]
            state[alias] = state[name].clone() if apart else state[name]
        load_state_dict(model, state, strict=strict, assign=True)
    except (GossamerError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise GossamerError(f"{file.path}: {error}") from None
    return model


def load_state_dict(
    model: nn.Module, state: Mapping[str, Any], *, strict: bool = True, assign: bool = False
) -> nn.Module:
    """Loads a state dict with packed layers, as `model.state_dict()` gives it, into a dense or sparsified model.

    Args:
        model: Changed in place.
        state: By name.
        strict: As for `torch.nn.Module.load_state_dict`.
        assign: Whether the model takes the tensors themselves instead of copies.

    Returns:
        The model.

    Raises:
        ValueError: a packed layer stands where the model has no linear layer of its size, or its streams contradict
            each other, or (strict) a buffer that is in no state is on the meta device; nothing was changed.
        RuntimeError: as for `torch.nn.Module.load_state_dict`.
    """
    swaps = []
    for key in state:
        name, _, last = key.rpartition(".")
        if last == _LAYOUT:
            swaps.append(_swap(model, name, state, assign))
    for why in held_outside(model, [old for old, new in swaps if new is not None]).values():
        raise ValueError(f"a packed layer was saved where the model's cannot be replaced: {why}")
    empty = [name for name in buffers_without_values(model) if name not in state]
    if strict and empty:
        raise ValueError(
            f"{', '.join(empty)}: on device meta, which has no values, and the state has none for it either; "
            "build the model where it has values, or set this buffer first"
        )
    for old, new in swaps:
        if new is not None:
            replace(model, old, new)
    tied: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                tied.setdefault(id(parameter), []).append((module, key))
    model.load_state_dict(state, strict=strict, assign=assign)
    for (first, first_key), *others in tied.values():
        for module, key in others:
            module._parameters[key] = first._parameters[first_key]
    return model


def _copied(stream: Tensor, like: Tensor) -> Tensor:
    """A copy where a layer's weight lies, unless that is nowhere."""
    return stream.detach().to(stream.device if like.is_meta else like.device, copy=True)


def _swap(model: nn.Module, name: str, state: Mapping[str, Any], assign: bool) -> tuple[nn.Module, SparseLinear | None]:
    """The module that a packed layer of the state replaces, and a layer to put there, or None where one is already."""
    old = place_of(model, name)
    layout, streams = _checked(name, state)
    if isinstance(old, SparseLinear):
        return old, None
    weight = old.weight
    assert isinstance(weight, Tensor)
    streams = {key: stream.detach() if assign else _copied(stream, weight) for key, stream in streams.items()}
    return old, layer_for(old, layout, streams, name)


def _checked(name: str, state: Mapping[str, Any]) -> tuple[Layout, dict[str, Tensor]]:
    """What a packed layer of the state consists of; where it is assigned, the first call need not check it again."""
    layout = Layout.from_numbers([int(n) for n in state[f"{name}.{_LAYOUT}"].tolist()])
    streams = {}
    for stream in ("values", *layout.index):
        if not isinstance(state.get(f"{name}.{stream}"), Tensor):
            raise ValueError(f"{name}: stream '{stream}' is missing from the saved layer")
        streams[stream] = state[f"{name}.{stream}"]
    try:
        handle_of(streams["values"], [streams[stream] for stream in layout.index], layout.numbers())
    except (ValueError, GossamerError) as error:
        raise ValueError(f"{name}: {error}") from None
    return layout, streams


def place_of(model: nn.Module, name: str) -> nn.Module:
    """Returns the linear layer, packed or not, where a packed one was saved.

    Raises:
        ValueError: there is none, or it has more to it than a packed one can take over.
    """
    try:
        old = model.get_submodule(name)
    except AttributeError:
        raise ValueError(f"{name}: a packed layer was saved under this name, and the model has none") from None
    if isinstance(old, SparseLinear):
        return old
    if not kind_of(old):
        raise ValueError(f"{name}: a packed layer was saved under this name, and the model has a {type(old).__name__}")
    if why := obstacle(old, OWN):
        raise ValueError(f"{name}: a packed layer was saved under this name, and the model's cannot be replaced: {why}")
    return old


def layer_for(old: nn.Module, layout: Layout, streams: dict[str, Tensor], name: str) -> SparseLinear:
    """Makes the packed layer that takes the place of a dense one, with its bias, type, mode, hooks and attributes.

    Args:
        old: The dense layer.
        layout: What the streams hold.
        streams: By name; see `SparseLinear`.
        name: What errors call the layer.

    Raises:
        ValueError: the dense layer is of another size.
    """
    weight, bias = old.weight, old.bias
    assert isinstance(weight, Tensor)
    shape = tuple(reversed(weight.shape)) if kind_of(old) == CONV1D else tuple(weight.shape)
    if shape != (layout.rows, layout.cols):
        raise ValueError(
            f"{name}: the saved layer is {layout.rows} x {layout.cols}, the model's {shape[0]} x {shape[1]}"
        )
    layer = SparseLinear(layout, streams, bias if isinstance(bias, Tensor) else None, dtype=weight.dtype, name=name)
    layer.kind = kind_of(old)
    carry_over(old, layer)
    return layer
