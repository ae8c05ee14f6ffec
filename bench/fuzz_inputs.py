"""Small valid inputs of every reader, for bench/fuzz.py to change: each a folder of files below its kind."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from common import ROOT
from gguf import GGMLQuantizationType as Type
from gguf import quants

from gossamer import arch
from gossamer.checkpoints import open_checkpoint
from gossamer.checkpoints.lora import LowRank
from gossamer.checkpoints.low_rank import FOLDER, write_low_rank
from gossamer.packing.convert import pack_checkpoint
from gossamer.packing.folder import write_packed

sys.path.insert(0, str(ROOT / "tests" / "support"))

from bitmask_files import sparse_checkpoint
from gguf_cases import CASES
from gguf_families import write as write_family
from gguf_files import write_gguf
from tiny import CHAT_TEMPLATE, made, tiny_llama

SMALL: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "vocab_size": 300}
_ROPE = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}
_PACKED: tuple[dict[str, Any], ...] = (
    {"weights": "int8"},
    {"weights": "int4", "group": 32},
    {"weights": "f32", "format": "bitmap"},
    {"weights": "bf16", "format": "csr"},
    {"weights": "f16", "format": "nm"},
    {"weights": "int4", "format": "csr", "group": 0},
    {"weights": "int8", "format": "nm", "group": 128},
    {"weights": "int4", "format": "bitmap", "group": 64, "head": "int4"},
    {"weights": "bf16", "format": "dense", "head": "bf16"},
)
_QUANTIZED = (Type.F32, Type.F16, Type.BF16, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0)
_FIXED_SEED = 5  # of the inputs; their changes have one of their own


def make(folder: Path, kinds: list[str]) -> None:
    """Writes the inputs of these kinds, as folder/KIND/NAME."""
    for kind in kinds:
        (folder / kind).mkdir(parents=True)
        _MAKERS[kind](folder / kind)


def _safetensors(folder: Path) -> None:
    plain = tiny_llama(folder / "plain", **SMALL)
    (plain / "generation_config.json").write_text(json.dumps({"do_sample": True, "top_k": 5, "eos_token_id": [2]}))
    names = {"bos_token": "<|endoftext|>", "additional_special_tokens": ["<|im_start|>", {"content": "<x>"}]}
    (plain / "special_tokens_map.json").write_text(json.dumps(names))
    sharded = tiny_llama(folder / "sharded", shards=2, dtype="bf16", tie_word_embeddings=True, **SMALL)
    (sharded / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    (sharded / "added_tokens.json").write_text(json.dumps({"<more>": 298}))
    more = {"attention_bias": True, "mlp_bias": True, "rope_scaling": _ROPE}
    scaled = tiny_llama(folder / "scaled", dtype="f16", model_type="mistral", sliding_window=32, **more, **SMALL)
    random = np.random.default_rng(_FIXED_SEED)
    pair = [random.standard_normal(shape).astype(np.float32) for shape in ((64, 2), (2, 64))]
    write_low_rank(scaled, {"model.layers.0.self_attn.q_proj.weight": LowRank(*pair)})
    assert (scaled / FOLDER).is_dir()


def _compressed(folder: Path) -> None:
    for kind in ("everything", "modules", "24"):
        sparse_checkpoint(folder / kind, kind)


def _packed(folder: Path) -> None:
    for number, options in enumerate(_PACKED):
        source = folder / "source"
        tiny_llama(source, sparsity=0.7, attention_bias=bool(number % 2), tie_word_embeddings=number % 3 == 0, **SMALL)
        if number == 1:
            random = np.random.default_rng(_FIXED_SEED)
            pair = [random.standard_normal(shape).astype(np.float32) for shape in ((64, 3), (3, 64))]
            write_low_rank(source, {"model.layers.0.self_attn.q_proj.weight": LowRank(*pair)})
        write_packed(folder / str(number), pack_checkpoint(open_checkpoint(source), **options))
        _remove(source)


def _remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


def _gguf(folder: Path) -> None:
    for kind in _QUANTIZED:
        (folder / kind.name).mkdir()
        write_gguf(folder / kind.name / "m.gguf", kind=kind, **SMALL)
    (folder / "scaled").mkdir()
    keys = {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 2.0, "llama.attention.key_length": 16}
    write_gguf(folder / "scaled" / "m.gguf", keys=keys, pre="llama-bpe", attention_bias=True, **SMALL)
    (folder / "split").mkdir()
    for number in range(2):
        split = {"split.no": number, "split.count": 2, "split.tensors.count": 12}
        write_gguf(
            folder / "split" / f"m-{number + 1:05}-of-00002.gguf",
            keys=split,
            only=lambda name, number=number: name.startswith("blk.") == bool(number),
            **SMALL,
        )
    for kind in Type:
        if kind.name.startswith(("I", "F", "Q8_1", "Q8_K")) and kind.name[:2] != "IQ":
            continue
        if kind not in _QUANTIZED and kind in quants._type_traits:
            (folder / kind.name).mkdir()
            _blocks(folder / kind.name / "m.gguf", kind)


def _blocks(path: Path, kind: Type) -> None:
    """A file whose matrices are random blocks of a type that the package only reads, with SentencePiece's tokens."""
    random = np.random.default_rng(_FIXED_SEED)
    hidden, vocab = 256, 300
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(hidden)
    writer.add_block_count(1)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghij", "ab", "▁a"]
    tokens += [f"t{number}" for number in range(vocab - len(tokens))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(number) for number in range(vocab)])
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * (vocab - 259)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    for name in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.0.{name}.weight", np.ones(hidden, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(hidden, np.float32))
    matrices = [f"blk.0.{name}.weight" for name in ("attn_q", "attn_k", "attn_v", "attn_output")]
    matrices += [f"blk.0.{name}.weight" for name in ("ffn_gate", "ffn_up", "ffn_down")]
    for name, rows in (*((name, hidden) for name in matrices), ("token_embd.weight", vocab)):
        data = random.integers(0, 60, (rows, hidden // block * size), np.uint8)  # small exponents of 16-bit scales
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _torch(folder: Path) -> None:
    from fuzz_use import LAYERS, torch_model

    import gossamer.torch

    for name, options in LAYERS.items():
        (folder / name).mkdir()
        model = torch_model()
        assert gossamer.torch.sparsify(model, **options).packed
        gossamer.torch.save(model, folder / name / "model.safetensors")


def _transformers(folder: Path) -> None:
    import torch
    import transformers

    import gossamer.torch

    sizes = {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
    for name, options in (("bitmap", {"format": "bitmap"}), ("int4", {"format": "csr", "weights": "int4"})):
        torch.manual_seed(_FIXED_SEED)
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(num_attention_heads=4, **sizes)).eval()
        gossamer.torch.prune_linears(model, method="magnitude", sparsity=0.6)
        assert gossamer.torch.sparsify(model, exclude="lm_head", **options).packed, "so small that it needs a format"
        model.save_pretrained(folder / name)


def _families(folder: Path) -> None:
    """Every family as transformers saves it, and as a GGUF file where there are such files."""
    for case, (architecture, config, keys) in CASES.items():
        if config["model_type"] in arch.families():
            name = case.replace(" ", "-")
            made(folder / name, config)
            (folder / f"{name}-gguf").mkdir()
            write_family(folder / name, folder / f"{name}-gguf" / "m.gguf", architecture, keys)


_MAKERS = {
    "gguf": _gguf,
    "safetensors": _safetensors,
    "compressed": _compressed,
    "packed": _packed,
    "torch": _torch,
    "transformers": _transformers,
    "families": _families,
}
KINDS = tuple(_MAKERS)


def read(folder: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yields KIND/NAME and files of each input below a folder, sorted."""
    for place in sorted(folder.glob("*/*")):
        files = {path.relative_to(place).as_posix(): path.read_bytes() for path in sorted(place.rglob("*.*"))}
        yield place.relative_to(folder).as_posix(), files
