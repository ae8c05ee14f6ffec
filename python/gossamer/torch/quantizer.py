"""Packed layers as a quantization method of transformers, which calls whatever replaces linear layers so.

`save_pretrained` writes `config.json` with a `quantization_config` that says which layers are packed and how, and the
streams beside the other tensors; `from_pretrained` puts `SparseLinear` in their places and fills it. Where this package
is not imported, transformers says that it does not know the method and goes on without, and then stumbles over the
tensors `weight` of packed layers' states, which have no weight's shape.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..errors import GossamerError
from .layout import Layout
from .linear import SparseLinear
from .state import layer_for, place_of
from .swap import replace

METHOD = "gossamer"
VERSION = 1


@register_quantization_config(METHOD)
class GossamerConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """What `quantization_config` of a saved `config.json` says.

    Attributes:
        quant_method: "gossamer".
        version: Of what follows.
        layers: By qualified name: "layout", the numbers of `Layout`; "values", the type of the values' tensor, "uint8"
            unless they are trained; and "streams", length and CRC-32 of each by name. Numbers as texts, since JSON of
            transformers puts each of a list on a line.
    """

    def __init__(self, layers: dict[str, Any] | None = None, version: int = VERSION, **others: Any) -> None:
        """Takes what a `config.json` has.

        Raises:
            GossamerError: it is of another version or has something that this one does not know.
        """
        others.pop("quant_method", None)
        if version != VERSION or others:
            what = f"version {version}" if version != VERSION else ", ".join(map(str, others))
            raise GossamerError(f"quantization_config: {what} is nothing that this version of gossamer knows")
        self.quant_method = METHOD
        self.version = version
        self.layers = layers or {}

    @classmethod
    def of(cls, state: Mapping[str, Tensor], packed: Iterable[str]) -> GossamerConfig:
        """Describes a state with the packed layers of these names."""
        layers = {}
        for name in packed:
            layout = Layout.from_numbers([int(n) for n in state[f"{name}.layout_numbers"].tolist()])
            streams = {key: state[f"{name}.{key}"] for key in ("values", *layout.index)}
            layers[name] = {
                "layout": " ".join(map(str, layout.numbers())),
                "values": _type(streams["values"]),
                "streams": {key: f"{len(stream)} {_checksum(stream, name)}" for key, stream in streams.items()},
            }
        return cls(layers)


@register_quantizer(METHOD)
class GossamerQuantizer(HfQuantizer):  # type: ignore[misc]
    """Puts packed layers into a model that is being loaded, and their streams into files."""

    requires_calibration = True  # of dense weights `sparsify` makes packed ones, not this
    state: dict[str, Tensor] | None = None
    """What is being saved."""

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        """Says that such models can be saved."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether gradients flow through such models."""
        return True

    def get_state_dict_and_metadata(self, *_: Any, **__: Any) -> tuple[dict[str, Tensor] | None, dict[str, str]]:
        """Returns the state that is being saved."""
        return self.state, {}

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **_: Any) -> PreTrainedModel:
        layers = self.quantization_config.layers
        if not isinstance(layers, dict):
            raise GossamerError("quantization_config: layers must be an object")
        places = {name: _resolve(model, name) for name in layers}
        found = {place: layers[name] for name, place in places.items() if place is not None}
        if not found and any("." in name for name in layers):
            raise GossamerError("quantization_config: the model has none of the layers that were packed")
        for name, entry in found.items():
            _put(model, name, entry)
        # The tensors that dense layers would stumble over are not missed.
        ignored = {rf"(^|\.){re.escape(name)}\.weight$" for name in found}
        model._keys_to_ignore_on_load_unexpected = ignored | set(model._keys_to_ignore_on_load_unexpected or ())
        self._found = found
        return model

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> PreTrainedModel:
        for name, entry in self._found.items():
            layer = model.get_submodule(name)
            assert isinstance(layer, SparseLinear)
            _check(layer, name, entry)
        # From here on it is a model like one after `sparsify`: it can be converted, trained, packed again or unpacked.
        _forget(model)
        return model


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _checksum(stream: Tensor, name: str) -> int:
    if stream.is_meta:
        raise GossamerError(f"{name}: its tensors are on device meta, and cannot be saved")
    return zlib.crc32(stream.detach().cpu().contiguous().view(torch.uint8).numpy().data)


def _resolve(model: PreTrainedModel, name: str) -> str | None:
    """What a layer is called in a model that may have another head than the one that was saved, or none.

    None where it belongs to a part that the model does not have, which transformers leaves out, too.
    """
    prefix = f"{model.base_model_prefix}." if model.base_model_prefix else ""
    bare = name.removeprefix(prefix)
    for place in (name, prefix + name, bare):
        with contextlib.suppress(AttributeError):
            model.get_submodule(place)
            return place
    part = bare.partition(".")[0]
    if hasattr(model, part) or hasattr(model.base_model, part):
        raise GossamerError(f"{name}: a packed layer was saved under this name, and the model has none")
    return None


def _put(model: nn.Module, name: str, entry: dict[str, Any]) -> None:
    """Puts a packed layer without values into a model that is being loaded."""
    try:
        old = place_of(model, name)
        layout = Layout.from_numbers([int(n) for n in entry["layout"].split()])
        weight = old.weight
        assert isinstance(weight, Tensor)
        sizes = {key: int(told.split()[0]) for key, told in entry["streams"].items()}
        streams = {key: torch.empty(size, dtype=torch.uint8, device="meta") for key, size in sizes.items()}
        if entry["values"] != "uint8":
            streams["values"] = streams["values"].to(weight.dtype)
        layer = layer_for(old, layout, streams, name)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        told = str(error) if name in str(error) else f"{name}: {type(error).__name__}: {error}"
        raise GossamerError(f"quantization_config: {told}") from None
    replace(model, old, layer)


def _check(layer: SparseLinear, name: str, entry: dict[str, Any]) -> None:
    """Refuses a layer of which something is missing or is not what was saved."""
    if hasattr(layer, "_hf_hook"):  # accelerate has put its tensors elsewhere
        return
    for key in ("values", *layer.layout.index):
        stream = getattr(layer, key)
        converted = key == "values" and _type(stream) != entry["values"]
        if stream.is_meta or (not converted and entry["streams"][key] != f"{len(stream)} {_checksum(stream, name)}"):
            raise GossamerError(f"{name}: stream '{key}' is not what was saved, or missing")
    if layer.layout_numbers.tolist()[:-1] != layer.layout.numbers():
        raise GossamerError(f"{name}: the stored layout is not that of quantization_config")
    layer._handle()


def _is_ours(config: Any) -> bool:
    """Whether a quantization config, as an object or as it stands in a file, is of this method."""
    return isinstance(config, GossamerConfig) or (isinstance(config, dict) and config.get("quant_method") == METHOD)


def _forget(model: PreTrainedModel) -> None:
    """Takes away what marks a model as quantized."""
    keys = ("hf_quantizer", "is_quantized", "quantization_method")
    for owner, key in (*((model, key) for key in keys), (model.config, "quantization_config")):
        if key in owner.__dict__:
            delattr(owner, key)


def _saving(save: Any) -> Any:
    """`save_pretrained`, with a config that says what is packed."""
    signature = inspect.signature(save)

    @functools.wraps(save)
    def save_pretrained(self: PreTrainedModel, *arguments: Any, **options: Any) -> Any:
        packed = [name for name, module in self.named_modules() if isinstance(module, SparseLinear)]
        method = getattr(getattr(self, "hf_quantizer", None), "quantization_config", None)
        if _is_ours(method or getattr(self.config, "quantization_config", None)):
            _forget(self)
        elif packed and method is not None:
            raise GossamerError(f"a model quantized with {method.quant_method} cannot be saved with packed layers, too")
        if not packed:
            return save(self, *arguments, **options)
        call = signature.bind(self, *arguments, **options)
        state = dict(call.arguments.get("state_dict") or self.state_dict())
        self.config.quantization_config = GossamerConfig.of(state, packed)
        self.hf_quantizer = GossamerQuantizer(self.config.quantization_config)
        self.hf_quantizer.state = call.arguments["state_dict"] = state
        try:
            return save(*call.args, **call.kwargs)
        finally:
            _forget(self)

    return save_pretrained


# A layer may have become packed in any way, in any part of the model: what is packed is looked up when it is saved.
PreTrainedModel.save_pretrained = _saving(PreTrainedModel.save_pretrained)
