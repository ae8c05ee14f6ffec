"""Encoders: states of inputs that stand alone and whose tokens see one another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gossamer import _core
from gossamer.arch.relative import relative_bias
from gossamer.arch.spec import (
    Attention,
    Block,
    Branch,
    Embedding,
    Head,
    Learned,
    Mlp,
    Norm,
    Rope,
    Sinusoids,
    Stack,
    Transformer,
    attention_scale,
)
from reference_model import ReferenceModel, random_tensors

VOCAB, HIDDEN, CONTEXT = 90, 48, 700
NORM = Norm("layer", 1e-5, bias=True)
SINES = Sinusoids(tuple(float(np.float32(10000 ** -(j / 23))) for j in range(24)), offset=2)
ROPE = Rope(tuple(float(np.float32(100.0 ** -(j / 6))) for j in range(6)))


def described(
    positions: Any = None,
    window: int | None = None,
    embedding: Embedding | None = None,
    after: bool = False,
) -> Transformer:
    attention = Attention(4, 2, 12, attention_scale(12), positions, ("q", "k", "v", "o"), window=window, causal=False)
    mlp = Mlp(64, "gelu", gated=False, biases=("up", "down"))
    before, behind = (None, NORM) if after else (NORM, None)
    block = Block(tuple(Branch(mixer, before, after_sum=behind) for mixer in (attention, mlp)))
    return Transformer(
        HIDDEN, VOCAB, CONTEXT, embedding or Embedding(), Stack((block,), (0, 0), None if after else NORM), None
    )


CASES = {
    "bert": described(embedding=Embedding(Learned(CONTEXT), norm=NORM, types=2), after=True),
    "before": described(embedding=Embedding(Learned(CONTEXT + 2, 2))),
    "rotary": described(ROPE),
    "window": described(ROPE, window=9),
    "wide window": described(ROPE, window=300),
    "t5": described(relative_bias(32, 128, causal=False)),
    "t5 narrow": described(relative_bias(8, 20, causal=False), window=33),
    "sinusoids": described(embedding=Embedding(SINES, scale=4.0)),
}  # fmt: skip


def made(config: Transformer, type_: str = "f32", **options: Any) -> tuple[_core.Decoder, ReferenceModel]:
    tensors = random_tensors(config)
    weights = {name: _core.pack(tensors[name], "dense", type_) for name in config.weights}
    vectors = {name: tensors[name] for name in config.vectors}
    return _core.Decoder(config.to_dict(), weights, vectors, **options), ReferenceModel(config, tensors)


def inputs(*lengths: int, seed: int = 3) -> list[Any]:
    random = np.random.default_rng(seed)
    return [random.integers(0, VOCAB, length).astype(np.int32) for length in lengths]


@pytest.mark.parametrize("case", CASES)
def test_states_are_the_references(case: str) -> None:
    decoder, reference = made(CASES[case])
    texts = inputs(1, 23, 64, 65, 300, 17)  # in one pass over the weights and in several, beyond a page of the cache
    found = decoder.encode(texts)
    assert found.shape == (sum(map(len, texts)), HIDDEN)
    np.testing.assert_allclose(found, np.concatenate([reference.encode(text) for text in texts]), atol=5e-5, rtol=0)
    assert decoder.kv_bytes == 0


@pytest.mark.parametrize("case", ["t5", "wide window"])
def test_longer_than_a_span_of_attention(case: str) -> None:
    decoder, reference = made(CASES[case])
    (text,) = inputs(640)
    np.testing.assert_allclose(decoder.encode([text]), reference.encode(text), atol=5e-5, rtol=0)


@pytest.mark.parametrize("kv", ["f32", "bf16"])
def test_company_and_threads_change_nothing(kv: str) -> None:
    texts = inputs(40, 3, 270, 9)
    states = []
    for threads in (1, 2):
        decoder, _ = made(CASES["t5"], "int8", threads=threads, kv=kv)
        alone = [decoder.encode([text]) for text in texts]
        np.testing.assert_array_equal(decoder.encode(texts), np.concatenate(alone))
        np.testing.assert_array_equal(decoder.encode(texts[::-1]), np.concatenate(alone[::-1]))
        states.append(np.concatenate(alone))
    np.testing.assert_array_equal(*states)


def test_token_types() -> None:
    decoder, reference = made(CASES["bert"])
    texts = inputs(7, 5)
    types = [np.arange(7) % 2, np.ones(5, np.int64)]
    expected = [reference.encode(text, kinds) for text, kinds in zip(texts, types, strict=True)]
    np.testing.assert_allclose(decoder.encode(texts, types), np.concatenate(expected), atol=5e-5, rtol=0)
    assert not np.array_equal(decoder.encode(texts, types), decoder.encode(texts))


@pytest.mark.parametrize("case", ["bert", "t5", "wide window"])
def test_blocks_are_walked_as_they_run(case: str) -> None:
    decoder, reference = made(CASES[case])
    texts = np.stack(inputs(270, 270))
    hidden, expected = decoder.embed(texts.reshape(-1), 270), reference.embed(texts.reshape(-1), 270)
    for block in range(2):
        hidden, captured = decoder.forward_block(block, hidden, ["q", "o", "down"], 270)
        expected, inner = reference.forward_block(block, expected, ["q", "o", "down"], 270)
        for name, values in inner.items():
            np.testing.assert_allclose(captured[name], values, atol=5e-5, rtol=0)
    np.testing.assert_allclose(hidden, expected, atol=1e-4, rtol=0)


def test_decoders_give_states_too() -> None:
    bidirectional = CASES["rotary"]
    block = bidirectional.stack.kinds[0]
    branches = tuple(
        replace(one, mixer=replace(one.mixer, causal=True)) if isinstance(one.mixer, Attention) else one
        for one in block.branches
    )
    stack = replace(bidirectional.stack, kinds=(Block(branches),))
    decoder, reference = made(replace(bidirectional, stack=stack, head=Head(tied=True)))
    texts = inputs(30, 280)
    expected = np.concatenate([reference.encode(text) for text in texts])
    np.testing.assert_allclose(decoder.encode(texts), expected, atol=5e-5, rtol=0)
    np.testing.assert_allclose(decoder.head(decoder.encode(texts)).shape, (310, VOCAB))


def test_what_is_refused() -> None:
    decoder, _ = made(CASES["bert"], kv_limit=100_000)
    for texts, types, words in (
        ([[]], None, "an input has no tokens"),
        ([[1], [VOCAB]], None, f"token id {VOCAB} is outside"),
        ([[1] * (CONTEXT + 1)], None, f"has {CONTEXT + 1} tokens, beyond the context of {CONTEXT}"),
        ([[1, 2]], [[0, 2]], "token id 2 is outside the vocabulary of 2"),
        ([[1, 2]], [[0]], "input 0 has 2 tokens, but other types"),
        ([[1, 2]], [], "types must be a list of 1 vectors"),
    ):
        with pytest.raises(ValueError, match=words):
            decoder.encode([np.array(text, np.int32) for text in texts], types)
    with pytest.raises(_core.CacheFull, match="kv_limit"):
        decoder.encode(inputs(600))
    assert decoder.kv_bytes == 0
    for call in (lambda: decoder.step([(0, [1])]), lambda: decoder.head(np.zeros((1, HIDDEN), np.float32))):
        with pytest.raises(ValueError, match="an encoder has no head"):
            call()
