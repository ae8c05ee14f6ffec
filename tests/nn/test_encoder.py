"""Encoders in torch, and decoders that read them: states and logits of the float64 reference, and gradients."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="what is tested")
import torch

from gossamer.arch.relative import relative_bias
from gossamer.arch.spec import (
    Attention,
    Block,
    Branch,
    Embedding,
    Head,
    Learned,
    Mel,
    Mlp,
    Norm,
    Sinusoids,
    Stack,
    Transformer,
    attention_scale,
)
from gossamer.errors import GossamerError
from gossamer.nn.decoder import Decoder
from gossamer.nn.engine import Engine
from gossamer.nn.linears import parameter_name
from reference_model import ReferenceModel, random_tensors

VOCAB, HIDDEN, CONTEXT = 40, 24, 30
LAYER, RMS = Norm("layer", 1e-5, bias=True), Norm("rms", 1e-6)
SINES = Sinusoids(tuple(float(np.float32(100 ** -(j / 11))) for j in range(12)), offset=2)


def pair(kind: str) -> Transformer:
    mixer = Attention(4, 2, 6, attention_scale(6), None, ("q", "v", "o"))
    mlp = Mlp(20, "gelu", gated=False, biases=("up", "down"))
    norm, ends = LAYER, LAYER
    inner, outer = Embedding(Learned(CONTEXT + 2, 2)), Embedding(Learned(CONTEXT))
    sides = [replace(mixer, causal=False)], [mixer, replace(mixer, causal=False, reads="memory")]
    if kind == "t5":
        norm, inner, outer = RMS, Embedding(shared=True), Embedding()
        ends = RMS
        for side, causal in zip(sides, (False, True), strict=True):
            side[0] = replace(side[0], positions=relative_bias(8, 20, causal=causal), scale=1.0)
    if kind == "marian":
        inner, outer = Embedding(SINES, scale=2.0, shared=True), Embedding(SINES, scale=2.0)
        ends = None
    if kind == "whisper":
        inner = Embedding(SINES, mel=Mel(5))
    stacks = []
    for side in sides:
        branches = tuple(
            Branch(one, None, after_sum=LAYER) if kind == "marian" else Branch(one, norm) for one in (*side, mlp)
        )
        stacks.append(Stack((Block(branches),), (0, 0), ends))
    encoder = Transformer(HIDDEN, 1 if kind == "whisper" else VOCAB, CONTEXT, inner, stacks[0], None)
    return Transformer(HIDDEN, VOCAB, CONTEXT, outer, stacks[1], Head(tied=kind != "bart"), encoder)


KINDS = pytest.mark.parametrize("kind", ["t5", "bart", "marian", "whisper"])


def made(kind: str) -> tuple[Decoder, ReferenceModel]:
    config = pair(kind)
    tensors = random_tensors(config)
    decoder = Decoder(config)
    decoder.load_state_dict({parameter_name(name): torch.from_numpy(value) for name, value in tensors.items()})
    return decoder, ReferenceModel(config, tensors)


def inputs(kind: str) -> tuple[list[Any], list[Any]]:
    """What three texts read, and they."""
    random = np.random.default_rng(1)
    texts = [random.integers(0, VOCAB, count) for count in (7, 4, 5)]
    if kind == "whisper":
        return [random.standard_normal((20, 5)).astype(np.float32) for _ in range(3)], texts
    return [random.integers(0, VOCAB, count) for count in (6, 9, 3)], texts


def padded(rows: list[Any]) -> tuple[Any, Any]:
    most = max(map(len, rows))
    shapes = [(0, most - len(row)) for row in rows]
    real = np.stack([np.pad(np.ones(len(row), bool), shape) for row, shape in zip(rows, shapes, strict=True)])
    if rows[0].ndim > 1:
        return torch.from_numpy(np.stack(rows)), torch.ones(len(rows), most // 2, dtype=torch.bool)
    padding = [np.pad(row, shape, constant_values=3) for row, shape in zip(rows, shapes, strict=True)]
    return torch.from_numpy(np.stack(padding)), torch.from_numpy(real)


@KINDS
@pytest.mark.parametrize("recompute", [False, True])
def test_states_and_logits_are_the_references_beside_padding(kind: str, recompute: bool) -> None:
    decoder, reference = made(kind)
    sources, texts = inputs(kind)
    (reads, heard), (tokens, real) = padded(sources), padded(texts)
    found = decoder(tokens, reads=reads, heard=heard, recompute_blocks=recompute)
    assert reference.encoder is not None
    for row, (source, text) in enumerate(zip(sources, texts, strict=True)):
        memory = reference.encode(source)
        inner = found.encoded[-1][row][heard[row]]
        assert decoder.encoder is not None
        np.testing.assert_allclose(decoder.encoder.normed(inner).detach(), memory, atol=2e-5)
        expected = reference.logits(text, memory)
        np.testing.assert_allclose(found.logits[row][real[row]].detach(), expected, atol=5e-5)
    assert (len(found.encoded), len(found.hidden)) == (2, 2)
    found.logits[real].square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in decoder.named_parameters()}
    # Those of biases of keys would be zero, which no softmax sees.
    assert all(gradient is not None and bool(gradient.any()) for gradient in gradients.values())


@KINDS
def test_parameters_are_the_tensors_of_the_description(kind: str) -> None:
    config = pair(kind)
    assert set(Decoder(config).state_dict()) == set(map(parameter_name, config.tensors))


def test_windows_on_both_sides_are_refused() -> None:
    config = pair("bart")
    assert config.encoder is not None
    block = config.encoder.stack.kinds[0]
    first = replace(block.branches[0], mixer=replace(block.branches[0].mixer, window=3))
    kinds = (replace(block, branches=(first, *block.branches[1:])),)
    inner = replace(config.encoder, stack=replace(config.encoder.stack, kinds=kinds))
    with pytest.raises(GossamerError, match="attention: window 3 on both sides is nothing that torch decoders"):
        Decoder(replace(config, encoder=inner))


def test_gpus_refuse_encoders() -> None:
    with pytest.raises(GossamerError, match=r"encoder .* is nothing that torch decoders know"):
        Engine(pair("t5"), {}, {}, "cpu", dtype=torch.bfloat16)


def test_checkpoints_are_read_and_written(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="its models are what is read")
    from gossamer.checkpoints import open_checkpoint
    from gossamer.nn.decoder import load, save
    from pair_checks import made_pair

    config = {"model_type": "t5", "vocab_size": 320, "d_model": 48, "d_kv": 12, "d_ff": 64, "num_layers": 2}
    folder = made_pair(tmp_path / "model", {**config, "num_heads": 4})
    save(load(folder), tmp_path / "again", open_checkpoint(folder))
    one, two = (open_checkpoint(tmp_path / name) for name in ("model", "again"))
    assert sorted(one.names()) == sorted(two.names())
    for name in one.names():
        np.testing.assert_array_equal(one.tensor(name), two.tensor(name))
