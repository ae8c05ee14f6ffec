"""Tiny seeded checkpoints in Hugging Face form, with tokenizer and chat template, made in milliseconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
EOS_ID = 2
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_CORPUS = (
    "The spider spins a thread of gossamer, and the thread holds the spider.\n",
    "Numbers: 0 1 2 3 10 42 1945; the weights of the weaver are the weights of the web.\n",
    "If the net is thin then the net is quick, and the thinner the net the quicker the net.\n",
)


def tiny_config(**overrides: Any) -> dict[str, Any]:
    """The config.json of a tiny Llama; `overrides` replace or add keys, and a value of None removes its key."""
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 320,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": EOS_ID,
        **overrides,
    }
    return {key: value for key, value in config.items() if value is not None}


def tiny_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of the checkpoint's tensors by their Hugging Face names."""
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head_dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    query, key = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        attention = {"q": (query, hidden), "k": (key, hidden), "v": (key, hidden), "o": (hidden, query)}
        mlp = {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
        for part, linears, bias in (
            ("self_attn", attention, config.get("attention_bias")),
            ("mlp", mlp, config.get("mlp_bias")),
        ):
            for name, shape in linears.items():
                shapes[f"{prefix}{part}.{name}_proj.weight"] = shape
                if bias:
                    shapes[f"{prefix}{part}.{name}_proj.bias"] = shape[:1]
        shapes[f"{prefix}input_layernorm.weight"] = (hidden,)
        shapes[f"{prefix}post_attention_layernorm.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (vocab, hidden)
    return shapes


def tiny_tensors(config: dict[str, Any], seed: int = 0, sparsity: float = 0.0) -> dict[str, NDArray[np.float32]]:
    """Seeded tensors whose logits are of order one.

    Args:
        config: As `tiny_config` makes it.
        seed: Of the values.
        sparsity: Fraction of exact zeros, at random places, in every linear of the blocks.
    """
    random = np.random.default_rng(seed)
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, shape in tiny_shapes(config).items():
        if len(shape) == 2:
            values = random.standard_normal(shape) * (1.0 if "embed" in name else 1.5 / np.sqrt(shape[1]))
            if "_proj" in name and sparsity:
                values[random.random(shape) < sparsity] = 0.0
        else:
            values = (0.0 if name.endswith("bias") else 1.0) + 0.1 * random.standard_normal(shape)
        tensors[name] = values.astype(np.float32)
    return tensors


def tiny_tokenizer(vocab: int = 300) -> Tokenizer:
    """A byte-level BPE of at most `vocab` tokens; the special tokens are ids 0, 1 and 2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return tokenizer


def save_tokenizer(path: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json."""
    tiny_tokenizer().save(str(path / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL_TOKENS[0],
        "eos_token": SPECIAL_TOKENS[EOS_ID],
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def tiny_llama(
    path: str | Path, *, seed: int = 0, sparsity: float = 0.0, dtype: str = "f32", shards: int = 1, **overrides: Any
) -> Path:
    """Writes a tiny checkpoint folder.

    Args:
        path: Folder to make.
        seed: Of the weights.
        sparsity: Fraction of exact zeros in the linears of the blocks.
        dtype: "f32", "f16" or "bf16".
        shards: Files that the tensors are spread over; more than one come with an index.
        **overrides: Keys of config.json, see `tiny_config`.

    Returns:
        The folder.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    config = tiny_config(**overrides)
    config["dtype"] = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}[dtype]
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    tensors = tiny_tensors(config, seed, sparsity)
    if shards == 1:
        save_safetensors(folder / "model.safetensors", tensors, dtype)
    else:
        names = list(tensors)
        weight_map: dict[str, str] = {}
        for shard in range(shards):
            file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
            part = {name: tensors[name] for name in names[shard::shards]}
            save_safetensors(folder / file, part, dtype)
            weight_map.update(dict.fromkeys(part, file))
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    save_tokenizer(folder)
    return folder


def made(
    folder: Path, config: dict[str, Any], *, base: bool = False, change: Callable[[Any], object] | None = None
) -> Path:
    """Writes a seeded model of transformers, all of its parameters moved from what they began with.

    Args:
        folder: Folder to make.
        config: Keys of config.json, `model_type` among them; others are transformers' own.
        base: Whether the head is left out.
        change: Is given the model before it is written.

    Returns:
        The folder.
    """
    import torch
    import transformers

    torch.manual_seed(0)
    values = dict(config)
    settings = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    settings.update({"bos_token_id": 0, "eos_token_id": EOS_ID, "pad_token_id": None})
    model = transformers.AutoModelForCausalLM.from_config(settings)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    if change:
        change(model)
    (model.base_model if base else model).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_safetensors(path: Path, tensors: dict[str, NDArray[np.float32]], dtype: str = "f32") -> None:
    """Writes tensors with the values rounded to `dtype`, byte by byte by the format's definition."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = bytearray()
    for name, values in tensors.items():
        raw = stored_bytes(values, dtype)
        header[name] = {
            "dtype": dtype.upper(),
            "shape": list(values.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def stored_bytes(values: NDArray[np.float32], dtype: str) -> bytes:
    """The little-endian bytes of values rounded to nearest even in `dtype`."""
    if dtype == "f32":
        return values.astype("<f4").tobytes()
    if dtype == "f16":
        return values.astype("<f2").tobytes()
    bits = values.astype("<f4").view("<u4").astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


# Of every variant that the config knows: grouped and plain heads, widths apart from hidden / heads, biases, tied heads,
# and rotary scaling with a factor on the cosines.
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "multi-head": {"num_key_value_heads": 4},
    "head_dim": {"head_dim": 32},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
    "mistral": {"model_type": "mistral", "architectures": ["MistralForCausalLM"]},
}


def tokens(count: int = 60) -> Any:
    return np.random.default_rng(5).integers(0, 300, count).astype(np.int32)
