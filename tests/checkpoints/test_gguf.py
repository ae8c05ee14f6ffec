from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from gguf_files import write_gguf
from gossamer import arch
from gossamer.arch.llama import Sizes
from gossamer.checkpoints import open_checkpoint, write_checkpoint
from gossamer.errors import GossamerError
from gossamer.packing.convert import pack_checkpoint
from gossamer.text.tokenizer import Tokenizer
from gossamer.zoo import builtin
from tiny import EOS_ID, tiny_config, tiny_llama, tiny_tensors


@pytest.mark.parametrize(
    "overrides",
    [{}, {"tie_word_embeddings": True}, {"attention_bias": True, "mlp_bias": True}, {"num_key_value_heads": 4}],
)
def test_a_file_is_the_checkpoint_that_it_was_made_from(tmp_path: Path, overrides: dict[str, Any]) -> None:
    folder = open_checkpoint(tiny_llama(tmp_path / "m", **overrides))
    file = open_checkpoint(write_gguf(tmp_path / "m.gguf", **overrides))
    assert sorted(file.names()) == sorted(folder.names())
    for name in folder.names():
        assert (file.shape(name), file.dtype(name)) == (folder.shape(name), "f32")
        np.testing.assert_array_equal(file.tensor(name), folder.tensor(name))
    family = arch.family(file.config)
    expected = Sizes.of(family.describe(folder.config))
    got = Sizes.of(family.describe(file.config))
    assert got.norm_eps == np.float32(expected.norm_eps)
    assert replace(got, norm_eps=expected.norm_eps) == expected


@pytest.mark.parametrize(("kind", "bits"), [("F16", 10), ("BF16", 7), ("Q8_0", 7), ("Q4_1", 4)])
def test_quantized_tensors_are_what_the_package_makes_of_them(tmp_path: Path, kind: str, bits: int) -> None:
    quantized = gguf.GGMLQuantizationType[kind]
    file = open_checkpoint(write_gguf(tmp_path / "m.gguf", kind=quantized))
    name = "model.layers.0.mlp.down_proj.weight"
    values = tiny_tensors(tiny_config())[name]
    assert file.dtype(name) == (kind.lower() if kind in ("F16", "BF16") else kind)
    assert file.tensor(name).shape == values.shape == file.shape(name)
    expected = gguf.quants.dequantize(gguf.quants.quantize(values, quantized), quantized)
    np.testing.assert_array_equal(file.tensor(name), expected)
    assert np.abs(file.tensor(name) - values).max() < np.abs(values).max() * 2.0**-bits


@pytest.mark.parametrize(
    ("kind", "options", "told"),
    [
        ("Q4_1", {}, "Q4_1: they become int8, rounded once more"),
        ("Q4_1", {"weights": "int8"}, "Q4_1: they become int8, rounded once more"),
        ("Q8_0", {"group": 32}, None),  # whose numbers are those of int8
        ("Q8_0", {"weights": "stored"}, "Q8_0: they become f32, which holds their values"),
        ("Q8_0", {"weights": "f32", "head": "f32"}, None),
        ("F16", {}, None),
    ],
)
def test_what_is_rounded_a_second_time_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, options: dict[str, Any], told: str | None
) -> None:
    file = open_checkpoint(write_gguf(tmp_path / "m.gguf", kind=gguf.GGMLQuantizationType[kind]))
    packed = pack_checkpoint(file, **options)
    assert caplog.messages == ([f"m.gguf: 16 matrices are not kept as {told}"] if told else [])
    if not told and kind == "Q8_0":
        name = "model.layers.0.mlp.down_proj.weight"
        np.testing.assert_array_equal(packed.weights["layers.0.down"].unpack(), file.tensor(name))


def test_the_tokenizer_is_rebuilt(tmp_path: Path) -> None:
    ours = open_checkpoint(write_gguf(tmp_path / "m.gguf")).tokenizer()
    theirs = Tokenizer.from_folder(tiny_llama(tmp_path / "m"))
    for text in ("The thread holds 42 spiders.", "<|im_start|>a  b\n\n<|im_end|>", "don't 🙂"):
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))
    assert ours.eos_ids == {EOS_ID, 0}  # what <|endoftext|> ends by its name
    assert ours.chat([{"role": "user", "content": "x"}]) == theirs.chat([{"role": "user", "content": "x"}])


@pytest.mark.parametrize(
    ("pre", "text", "words"),
    [
        ("gpt-2", "ab 1234 don't", ["ab", " 1234", " don", "'t"]),
        ("smollm", "ab 1234 don't", ["ab", " ", "1", "2", "3", "4", " don", "'t"]),
        ("llama-bpe", "ab 1234 DON'T\n\n x", ["ab", " ", "123", "4", " DON", "'T", "\n\n", " x"]),
        ("qwen2", "ab 12 DON'T", ["ab", " ", "1", "2", " DON", "'T"]),
        ("stablelm2", "ab 12 DON'T", ["ab", " ", "1", "2", " DON", "'T"]),
        ("smaug-bpe", "ab 1234", ["ab", " ", "123", "4"]),
        ("tekken", "aBc 12 don't", ["a", "Bc", " ", "1", "2", " don", "'t"]),
        ("gpt-4o", "aBc 1234 DON'T", ["a", "Bc", " ", "123", "4", " DON'T"]),
        ("falcon", "a`b 1234 don't", ["a", "`", "b", " ", "123", "4", " don", "'", "t"]),
        ("bloom", "ab, 12 c", ["ab", ",", " 12", " c"]),
        ("command-r", "ab 12", ["ab", " ", "1", "2"]),
        ("default", "a+b 1234", ["a", "+", "b", " ", "123", "4"]),
        (None, "a+b 1234", ["a", "+", "b", " ", "123", "4"]),
    ],
)
def test_words_are_cut_as_the_file_says(tmp_path: Path, pre: str | None, text: str, words: list[str]) -> None:
    backend = open_checkpoint(write_gguf(tmp_path / "m.gguf", pre=pre)).tokenizer()._backend
    cut = [text[start:end] for _, (start, end) in backend.pre_tokenizer.pre_tokenize_str(text)]
    assert cut == words


@pytest.mark.parametrize(("key", "begins"), [(None, False), (True, True), (False, False)])
def test_a_begin_token_is_added_when_the_file_says_so(tmp_path: Path, key: bool | None, begins: bool) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, keys={"tokenizer.ggml.add_bos_token": key})
    assert (open_checkpoint(path).tokenizer().encode("net")[0] == 0) is begins


def test_sentencepiece_like_tokenizers(tmp_path: Path) -> None:
    pieces = ["th", "▁th", "the", "▁the", "in", "▁n", "et", "▁net"]
    letters = ["t", "h", "e", "i", "n", "▁"]
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, *letters]
    keys: dict[str, Any] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * 14,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(rank) for rank in range(14)],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    from gossamer.checkpoints.gguf_tokenizer import rebuild

    tokenizer = rebuild(tmp_path, keys)

    def shown(text: str) -> list[str]:
        return [texts[token] for token in tokenizer.encode(text)]

    assert shown("the thin net") == ["<s>", "▁the", "▁th", "in", "▁net"]
    assert shown("é") == ["<s>", "▁", "<0xC3>", "<0xA9>"]
    for text in ("the thin net", "é 🙂", "  two", "net</s>the"):
        assert tokenizer.decode(tokenizer.encode(text)) == text.replace("</s>", " ")
    assert tokenizer.eos_ids == {2}
    with pytest.raises(GossamerError, match=r"tokenizer\.ggml\.scores must have 273 entries"):
        rebuild(tmp_path, {**keys, "tokenizer.ggml.scores": [0.0]})
    without_bytes = {**keys, "tokenizer.ggml.token_type": [2] + [1] * 272}
    with pytest.raises(GossamerError, match="256 byte tokens"):
        rebuild(tmp_path, without_bytes)


def test_exported_rotary_factors_mean_the_same_to_transformers(tmp_path: Path) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    factors = np.linspace(1, 8, 12, dtype=np.float32)
    source = open_checkpoint(write_gguf(tmp_path / "m.gguf", tensors={"rope_freqs.weight": factors}))
    theirs = LlamaRotaryEmbedding(LlamaConfig(**source.config))
    ours = Sizes.of(arch.family(source.config).describe(source.config))
    np.testing.assert_allclose(theirs.inv_freq.numpy(), ours.inv_freq, rtol=4 * np.finfo(np.float32).eps)
    assert theirs.attention_scaling == ours.rope_scale == 1.0


def test_an_exported_file_is_a_checkpoint_that_transformers_reads(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = open_checkpoint(write_gguf(tmp_path / "m.gguf", tie_word_embeddings=True))
    tensors = ((name, source.tensor(name), "f32") for name in source.names())
    write_checkpoint(tmp_path / "dst", source.config, tensors, source)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "dst")
    for name, parameter in model.named_parameters():
        np.testing.assert_array_equal(parameter.detach().numpy(), source.tensor(name))
    theirs = AutoTokenizer.from_pretrained(tmp_path / "dst")
    message = [{"role": "user", "content": "Who spins? 🙂 12"}]
    assert theirs.encode("The net 42") == source.tokenizer().encode("The net 42")
    text = theirs.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    assert theirs.encode(text, add_special_tokens=False) == source.tokenizer().chat(message)
    assert theirs.eos_token_id == EOS_ID
    assert model.generation_config.eos_token_id == [0, EOS_ID]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "family": ({"architecture": "rwkv7"}, "architecture 'rwkv7' is not supported in GGUF files; there are: llama, "),
    "missing key": ({"keys": {"llama.embedding_length": None}}, "key llama.embedding_length is missing"),
    "heads": ({"keys": {"llama.attention.head_count": 0}}, "llama.attention.head_count"),
    "adapter": ({"keys": {"general.type": "adapter"}}, "holds no model: its general.type is 'adapter'"),
    "scales": ({"tensors": {"blk.0.attn_q.scale": np.ones(1, np.float32)}}, "tensor blk.0.attn_q.scale has no place"),
    "bias": ({"tensors": {"blk.0.attn_norm.bias": np.ones(96, np.float32)}}, "blk.0.attn_norm.bias has no place"),
    "shape": (
        {"keys": {"llama.feed_forward_length": 99}},
        "blk.0.ffn_gate.weight has shape [160, 96], the keys ask for [99, 96]",
    ),
    "more layers": ({"keys": {"llama.block_count": 3}}, "tensor model.layers.2.self_attn.q_proj.weight is missing"),
    "tensor": ({"tensors": {"blk.0.attn_q_norm.weight": np.ones(4, np.float32)}}, "blk.0.attn_q_norm.weight has no"),
    "scaling": ({"keys": {"llama.rope.scaling.type": "su"}}, "rope_type 'su' is not supported"),
}


@pytest.mark.parametrize("case", BAD)
def test_files_that_are_refused(tmp_path: Path, case: str) -> None:
    options, words = BAD[case]
    path = write_gguf(tmp_path / "m.gguf", **options)
    with pytest.raises(GossamerError) as error:
        open_checkpoint(path)
    assert words in str(error.value)
    assert str(error.value).startswith(f"{path}: ")


def test_biases_and_old_rotary_tables(tmp_path: Path) -> None:
    """A query's bias alone, as llama.cpp takes it: nobody asked for the others."""
    bias = np.arange(96, dtype=np.float32)
    tensors = {"blk.0.attn_q.bias": bias, "blk.1.attn_rot_embd.weight": np.ones(12, np.float32)}
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", tensors=tensors))
    expected = bias.reshape(4, 12, 2).swapaxes(1, 2).reshape(96)
    np.testing.assert_array_equal(checkpoint.tensor("model.layers.0.self_attn.q_proj.bias"), expected)
    np.testing.assert_array_equal(checkpoint.tensor("model.layers.1.self_attn.o_proj.bias"), np.zeros(96))
    assert checkpoint.config["attention_bias"] is True
    assert "mlp_bias" not in checkpoint.config


def test_a_split_model_is_read_by_any_of_its_parts(tmp_path: Path) -> None:
    paths = tmp_path / "m-00001-of-00002.gguf", tmp_path / "m-00002-of-00002.gguf"
    whole = open_checkpoint(write_gguf(tmp_path / "whole.gguf"))
    for number, path in enumerate(paths):
        keys = {"split.no": number, "split.count": 2, "split.tensors.count": len(whole.names())}
        write_gguf(path, keys=keys, only=lambda name, number=number: name.startswith("blk.1") == bool(number))
    for path in paths:
        checkpoint = open_checkpoint(path)
        assert sorted(checkpoint.names()) == sorted(whole.names())
        for name in whole.names():
            np.testing.assert_array_equal(checkpoint.tensor(name), whole.tensor(name))
        assert checkpoint.tokenizer().encode("The net") == whole.tokenizer().encode("The net")


def test_split_models_that_are_not_whole(tmp_path: Path) -> None:
    first, second = tmp_path / "m-00001-of-00002.gguf", tmp_path / "m-00002-of-00002.gguf"
    write_gguf(first, keys={"split.no": 0, "split.count": 2})
    for words in ("one part of a model split into 2, and m-00002-of-00002.gguf is missing", "in another part, too"):
        with pytest.raises(GossamerError, match=words):
            open_checkpoint(first)
        write_gguf(second, keys={"split.no": 1, "split.count": 2})
    write_gguf(second, keys={"split.no": 1, "split.count": 3})
    with pytest.raises(GossamerError, match=r"m-00002-of-00002\.gguf: does not say of itself that it is part 2 of 2"):
        open_checkpoint(first)
    write_gguf(second, keys={"split.no": 1, "split.count": 2}, only=lambda name: name.startswith("blk.7"))
    write_gguf(first, keys={"split.no": 0, "split.count": 2, "split.tensors.count": 99})
    with pytest.raises(GossamerError, match="all parts together have 21 tensors, not the 99"):
        open_checkpoint(first)
    with pytest.raises(GossamerError, match=r"is one part of a model split into 2, and its name has to say which"):
        open_checkpoint(first.rename(tmp_path / "renamed.gguf"))


def test_files_that_only_look_like_models(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", endian=gguf.GGUFEndian.BIG)
    with pytest.raises(GossamerError, match=r"m\.gguf: is for big-endian machines"):
        open_checkpoint(path)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3\n")
    with pytest.raises(GossamerError, match=r"m\.gguf: a git-lfs pointer, not the file itself"):
        open_checkpoint(path)


def test_tokenizers_that_are_refused(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", pre="mystery"))
    with pytest.raises(GossamerError, match=r"m\.gguf: tokenizer\.ggml\.pre 'mystery' is not supported; there are"):
        checkpoint.tokenizer()


def test_truncated_files_are_refused_wherever_they_end(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "m.gguf", num_hidden_layers=1).read_bytes()
    cut = tmp_path / "cut.gguf"
    step = len(whole) // 40
    for length in [*range(0, len(whole), step), len(whole) - 64]:
        cut.write_bytes(whole[:length])
        with pytest.raises(GossamerError) as error:
            open_checkpoint(cut)
        assert str(error.value).startswith(f"{cut}: ")
    assert "truncated: tensor output.weight ends beyond the file" in str(error.value)


def test_garbage_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    whole = write_gguf(path, num_hidden_layers=1).read_bytes()
    random = np.random.default_rng(3)
    path.write_bytes(random.bytes(5000))
    with pytest.raises(GossamerError, match="not a valid GGUF file"):
        open_checkpoint(path)
    refused = 0
    for _ in range(60):
        changed = bytearray(whole[:2000])
        for place in random.integers(4, 2000, 8):
            changed[place] = random.integers(256)
        path.write_bytes(bytes(changed) + whole[2000:])
        try:
            open_checkpoint(path).tokenizer()
        except GossamerError as error:
            refused += str(path) in str(error)
    assert refused > 30  # the others changed a text or a number within its range


# As llama.cpp tokenizes them, special tokens parsed.
REAL_IDS = {
    "a  b": [81, 216, 278],
    "Hello, world!": [19556, 28, 905, 17],
    "don't DON'T I'll we'VE": [12420, 982, 422, 2154, 23, 68, 339, 3060, 392, 23, 18525],
    "3.14 1e-9": [35, 30, 33, 36, 216, 33, 85, 29, 41],
    "<|im_start|>user\nhi<|im_end|>\n": [1, 4093, 198, 6004, 2, 198],
    "<|endoftext|>abc<|im_end|>": [0, 25276, 2],
    "a<|im_start|> b": [81, 1, 278],
    "½ ² ३४": [16738, 216, 19133, 216, 9310, 119, 9310, 120],
    "مرحبا": [21706, 20602, 44626, 31462, 10805],
    "  # sq\n\n\nclass A:\n\tpass\n": [216, 907, 15375, 1116, 198, 2064, 330, 42, 198, 197, 5467, 198],
}


@pytest.mark.real_model
def test_the_real_tokenizer_gives_the_ids_of_llama_cpp() -> None:
    tokenizer = open_checkpoint(builtin._fetch(builtin._SMOLLM2, lambda *_: None)).tokenizer()
    assert tokenizer.eos_ids == {0, 2}
    for text, ids in REAL_IDS.items():
        assert tokenizer.encode(text) == ids
    for token in range(17):
        text = tokenizer._backend.id_to_token(token)
        assert tokenizer.encode(f"x{text}x") == [104, token, 104]
        assert tokenizer.decode([token]) == ""
