"""Writes the shape of a named model with random weights as a GGUF file, for llama.cpp to run beside our own.

    python bench/synthetic_gguf.py llama-3.2-1b Q4_0 llama-3.2-1b.Q4_0.gguf

Values are drawn in their quantized form, so no quantizer runs. Their types are those that llama.cpp's quantizer picks
without an importance matrix: in a Q4_0 file the head, or the embedding where it is the head, is Q6_K, or Q8_0 at widths
that blocks of 256 do not divide.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from gossamer import arch
from gossamer.arch.llama import Sizes
from gossamer.zoo import synthetic

TYPES = {"Q4_0": Type.Q4_0, "Q8_0": Type.Q8_0}
_FILE_TYPES = {"Q4_0": gguf.LlamaFileType.MOSTLY_Q4_0, "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}

# Place of a block's float16 scale, and the root mean square of values from random bytes at a scale of 1.
_SCALES = {Type.Q4_0: (0, 4.6), Type.Q8_0: (0, 73.9), Type.Q6_K: (208, 18.5 * 73.9)}


def write(path: Path, name: str, kind: str, seed: int = 0) -> None:
    """Writes the file, or nothing.

    Args:
        path: The file; an old one is replaced.
        name: One of `gossamer.zoo.synthetic.CONFIGS`.
        kind: One of `TYPES`.
        seed: The same seed draws the same values.
    """
    config = synthetic.config(name)
    tensors = {source.tensor: source.shape for source in arch.family(config).sources(config).values()}
    head = "lm_head.weight" if "lm_head.weight" in tensors else "model.embed_tokens.weight"
    types = {tensor: _type(shape, kind, tensor == head) for tensor, shape in tensors.items()}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    random = np.random.default_rng(seed)
    part = path.with_name(f".{path.name}.part")
    writer = gguf.GGUFWriter(part, "llama")
    try:
        _add_keys(writer, name, kind)
        for tensor, shape in tensors.items():
            own = names.get_name(tensor, (".weight",))
            assert own is not None
            writer.add_tensor_info(own, shape, np.dtype(np.float32), _bytes(shape, types[tensor]), types[tensor])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor, shape in tensors.items():
            writer.write_tensor_data(_draw(random, shape, types[tensor]))
        writer.close()
        part.replace(path)
    finally:
        writer.close()
        part.unlink(missing_ok=True)


def head_type(path: Path) -> str:
    """Returns the type that a file's head is stored in: of the embedding, where no head of its own is there."""
    types = {tensor.name: str(tensor.tensor_type.name) for tensor in gguf.GGUFReader(path).tensors}
    return types.get("output.weight", types["token_embd.weight"])


def _type(shape: tuple[int, ...], kind: str, is_head: bool) -> Type:
    if len(shape) == 1:
        return Type.F32
    if is_head and kind == "Q4_0":
        return Type.Q8_0 if shape[1] % gguf.QK_K else Type.Q6_K
    return TYPES[kind]


def _bytes(shape: tuple[int, ...], type_: Type) -> int:
    block, size = gguf.GGML_QUANT_SIZES[type_]
    return math.prod(shape) // block * size


def _draw(random: np.random.Generator, shape: tuple[int, ...], type_: Type) -> NDArray[np.generic]:
    """Norms of one; else random bytes in blocks whose scale keeps products as large as the inputs."""
    if type_ == Type.F32:
        return np.ones(shape, np.float32)
    size = gguf.GGML_QUANT_SIZES[type_][1]
    place, spread = _SCALES[type_]
    blocks = random.integers(0, 256, (_bytes(shape, type_) // size, size), np.uint8)
    scale = np.float16(1 / spread / np.sqrt(shape[1]))
    blocks[:, place : place + 2] = np.frombuffer(scale.tobytes(), np.uint8)
    return blocks


def _add_keys(writer: gguf.GGUFWriter, name: str, kind: str) -> None:
    """Sizes, and the smallest vocabulary that spells every text: a token for each byte and one for the space."""
    config = synthetic.config(name)
    sizes = Sizes.of(arch.family(config).describe(config))
    writer.add_name(f"synthetic {name}")
    writer.add_file_type(_FILE_TYPES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(sizes.vocab)
    writer.add_context_length(sizes.context)
    writer.add_embedding_length(sizes.hidden)
    writer.add_block_count(sizes.layers)
    writer.add_feed_forward_length(sizes.intermediate)
    writer.add_head_count(sizes.heads)
    writer.add_head_count_kv(sizes.kv_heads)
    writer.add_layer_norm_rms_eps(sizes.norm_eps)
    writer.add_rope_dimension_count(sizes.head_dim)
    writer.add_rope_freq_base(config["rope_theta"])
    special = ["<unk>", "<s>", "</s>"]
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    kinds = [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 2, *[gguf.TokenType.BYTE] * 256]
    names = [f"<{index}>" for index in range(sizes.vocab - len(tokens))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens + names)
    writer.add_token_scores([0.0] * sizes.vocab)
    writer.add_token_types(kinds + [gguf.TokenType.NORMAL] * (sizes.vocab - len(kinds)))
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=tuple(synthetic.CONFIGS))
    parser.add_argument("kind", choices=tuple(TYPES))
    parser.add_argument("path", type=Path)
    args = parser.parse_args()
    write(args.path, args.name, args.kind)


if __name__ == "__main__":
    main()
