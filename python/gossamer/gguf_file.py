"""GGUF files of the Llama family, read through the `gguf` package, under Hugging Face names."""

from __future__ import annotations

import logging
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .checkpoint import Checkpoint
from .errors import GossamerError
from .gguf_tokenizer import rebuild
from .tokenizer import Tokenizer

_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ROPE_FACTORS = "rope_freqs.weight"  # divisors of the rotary frequencies: Llama 3's scaling, evaluated
# Keys of the file, without the architecture's prefix, by the name in config.json; those after the gap may be absent.
_SIZES = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
_OPTIONAL = {
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rope_theta": "rope.freq_base",
}


class GgufCheckpoint(Checkpoint):
    """A GGUF file whose architecture is "llama"."""

    def __init__(self, path: Path) -> None:
        """Reads the keys and the list of tensors.

        Raises:
            GossamerError: the file is not a valid GGUF file, or holds a model of another family.
        """
        import gguf

        self.path = path
        reader = _open(path)
        self._keys = {name: _value(field) for name, field in reader.fields.items()}
        architecture = self._keys.get("general.architecture")
        if architecture != "llama":
            raise GossamerError(f"{path}: architecture {architecture!r:.80} is not supported in GGUF files; only llama")
        if self._keys.get("llama.expert_count"):
            raise GossamerError(f"{path}: mixtures of experts (llama.expert_count) are not supported")
        stored = {tensor.name: tensor for tensor in reader.tensors}
        factors = stored.pop(_ROPE_FACTORS, None)
        self._tensors = {_checkpoint_name(path, name): tensor for name, tensor in stored.items()}
        self._types: type[gguf.GGMLQuantizationType] = gguf.GGMLQuantizationType
        self.config = self._config(None if factors is None else self._read(factors).reshape(-1).tolist())

    def _config(self, rope_factors: list[float] | None) -> dict[str, Any]:
        """The file's keys as the content of a config.json."""
        keys = self._keys

        def get(key: str) -> Any:
            return keys.get(f"llama.{key}")

        config = {own: get(key) for own, key in _SIZES.items()}
        for own, key in _SIZES.items():
            if config[own] is None:
                raise GossamerError(f"{self.path}: key llama.{key} is missing")
        config |= {own: get(key) for own, key in _OPTIONAL.items() if get(key) is not None}
        embedding = self._tensors.get("model.embed_tokens.weight")
        if embedding is None or len(embedding.shape) != 2:
            raise GossamerError(f"{self.path}: tensor token_embd.weight is missing or no matrix")
        heads = config["num_attention_heads"]
        if not isinstance(heads, int) or heads < 1 or not isinstance(config["hidden_size"], int):
            raise GossamerError(f"{self.path}: llama.attention.head_count must be one whole number, got {heads!r:.80}")
        head_dim = config.get("head_dim", config["hidden_size"] // heads)
        for key in ("attention.value_length", "rope.dimension_count"):
            if get(key) not in (None, head_dim):
                raise GossamerError(f"{self.path}: llama.{key} {get(key)} is not the width of a head, {head_dim}")
        scaling = self._rope_scaling(rope_factors, config["max_position_embeddings"])
        tokens = {name: keys.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")}
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            **config,
            **({"rope_scaling": scaling} if scaling else {}),
            "hidden_act": "silu",
            "vocab_size": int(embedding.shape[1]),
            "tie_word_embeddings": "lm_head.weight" not in self._tensors,
            "attention_bias": any(name.endswith("_proj.bias") and ".self_attn." in name for name in self._tensors),
            "mlp_bias": any(name.endswith("_proj.bias") and ".mlp." in name for name in self._tensors),
            **{f"{name}_token_id": token for name, token in tokens.items() if token is not None},
            "torch_dtype": "float32",
        }

    def _rope_scaling(self, factors: list[float] | None, context: int) -> dict[str, Any]:
        kind = self._keys.get("llama.rope.scaling.type", "none")
        if factors is not None:
            # Under this type config.json holds such divisors as they are; equal lists mean the same for every length.
            return {
                "rope_type": "longrope",
                "short_factor": factors,
                "long_factor": factors,
                "factor": 1.0,
                "original_max_position_embeddings": context,
            }
        if kind == "none":
            return {}
        if self._keys.get("llama.rope.scaling.attn_factor", 1.0) != 1.0:
            raise GossamerError(f"{self.path}: llama.rope.scaling.attn_factor is not supported")
        scaling = {"rope_type": kind, "factor": self._keys.get("llama.rope.scaling.factor")}
        original = self._keys.get("llama.rope.scaling.original_context_length")
        return scaling | ({"original_max_position_embeddings": original} if original else {})

    def names(self) -> list[str]:  # noqa: D102 - as in the base class, as are those below
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:  # noqa: D102
        return tuple(int(size) for size in reversed(self._tensor(name).shape))  # the file has inputs first

    def dtype(self, name: str) -> str:  # noqa: D102
        kind: str = self._tensor(name).tensor_type.name
        return kind.lower() if kind in ("F32", "F16", "BF16") else kind

    def tensor(self, name: str) -> NDArray[np.float32]:  # noqa: D102
        values = self._read(self._tensor(name))
        part = name.rpartition(".")[0].rpartition(".")[2]
        if part in ("q_proj", "k_proj"):
            heads = self.config["num_attention_heads"]
            values = _unpermute(values, heads if part == "q_proj" else self.config.get("num_key_value_heads", heads))
        return values

    def _tensor(self, name: str) -> Any:
        try:
            return self._tensors[name]
        except KeyError:
            raise GossamerError(f"{self.path}: tensor {name} is missing") from None

    def _read(self, tensor: Any) -> NDArray[np.float32]:
        from gguf import quants

        try:
            values = quants.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError:
            kind = tensor.tensor_type.name
            raise GossamerError(
                f"{self.path}: tensor {tensor.name} is of type {kind}, which is not supported"
            ) from None
        shape = tuple(int(size) for size in reversed(tensor.shape))
        return np.ascontiguousarray(values, np.float32).reshape(shape)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return rebuild(self.path, self._keys)

    def tokenizer(self) -> Tokenizer:  # noqa: D102
        return self._tokenizer

    def copy_companions(self, dst: Path) -> None:  # noqa: D102
        self._tokenizer.save(dst)


def _open(path: Path) -> Any:
    """Opens the package's reader, with the file's end respected: it would read on with empty arrays."""
    import gguf

    logging.getLogger("gguf").setLevel(logging.ERROR)

    class Reader(gguf.GGUFReader):
        def _get(self, offset: int, dtype: DTypeLike, count: int = 1, override_order: Any = None) -> Any:
            if offset + np.dtype(dtype).itemsize * int(count) > len(self.data):
                raise EOFError(f"truncated: it has {len(self.data)} bytes, too few for its list of keys and tensors")
            return super()._get(offset, dtype, count, override_order)

        def _build_tensors(self, start_offs: int, fields: list[Any]) -> None:
            for field in fields:
                name, dims, kind, offset = (field.parts[index] for index in (1, 3, 4, 5))
                block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind[0])]
                count = 1
                for dim in dims.tolist():
                    count *= dim
                if start_offs + int(offset[0]) + count // block * size > len(self.data):
                    text = bytes(name).decode("utf-8", "replace")
                    raise EOFError(f"truncated: tensor {text} ends beyond the file's {len(self.data)} bytes")
            super()._build_tensors(start_offs, fields)

    try:
        return Reader(path)
    except OSError as error:
        raise GossamerError(f"{path}: {error.strerror or error}") from None
    except EOFError as error:
        raise GossamerError(f"{path}: {error}") from None
    except Exception as error:  # whatever garbage leads the package into
        raise GossamerError(f"{path}: not a valid GGUF file: {error}") from None


def _value(field: Any) -> Any:
    """A key's value: text, number, or a list of them."""
    import gguf

    if not field.types:
        return None
    if field.types[-1] == gguf.GGUFValueType.STRING:
        values = [bytes(field.parts[index]).decode("utf-8", "replace") for index in field.data]
    else:
        values = [field.parts[index].tolist()[0] for index in field.data]
    return values if field.types[0] == gguf.GGUFValueType.ARRAY else values[0]


def _checkpoint_name(path: Path, name: str) -> str:
    """The Hugging Face name of a tensor of the file."""
    stem, _, kind = name.rpartition(".")
    own = _TOP.get(stem)
    if stem.startswith("blk."):
        _, layer, part = stem.split(".", 2) if stem.count(".") == 2 else ("", "", "")
        own = f"model.layers.{layer}.{_BLOCK[part]}" if layer.isdecimal() and part in _BLOCK else None
    if own is None or kind not in ("weight", "bias"):
        raise GossamerError(f"{path}: tensor {name} has no place in the Llama family")
    return f"{own}.{kind}"


def _unpermute(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Puts the rows of a query or key back: the file has each rotary pair side by side, we have halves of a head."""
    pairs = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)
