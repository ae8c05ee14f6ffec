"""Decoders that read an encoder: keys and values of the memory, once a text."""

from __future__ import annotations

import json
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
    Mlp,
    Norm,
    QkNorm,
    Stack,
    Transformer,
    attention_scale,
)
from reference_model import ReferenceModel, random_tensors

VOCAB, HIDDEN = 90, 48
NORM = Norm("rms", 1e-6)


def stack(causal: bool, layers: int, reads: bool) -> Stack:
    scale = attention_scale(12)
    bias = relative_bias(16, 40, causal)
    mixers: list[Any] = [Attention(4, 2, 12, scale, bias, causal=causal)]
    if reads:
        mixers.append(
            Attention(
                4, 4, 12, scale, None, ("q", "v", "o"), clip=2.0, qk_norm=QkNorm(NORM), sinks=True, causal=False,
                reads="memory",
            )
        )  # fmt: skip
    mixers.append(Mlp(64, "gelu_tanh"))
    return Stack((Block(tuple(Branch(mixer, NORM) for mixer in mixers)),), (0,) * layers, NORM)


CONFIG = Transformer(
    HIDDEN, VOCAB, 400, Embedding(), stack(True, 2, True), Head(tied=True, scale=0.25),
    Transformer(HIDDEN, VOCAB, 500, Embedding(shared=True), stack(False, 3, False), None),
)  # fmt: skip


def made(type_: str = "f32", **options: Any) -> tuple[_core.Decoder, ReferenceModel]:
    tensors = random_tensors(CONFIG)
    weights = {name: _core.pack(tensors[name], "dense", type_) for name in CONFIG.weights}
    vectors = {name: tensors[name] for name in CONFIG.vectors}
    return _core.Decoder(CONFIG.to_dict(), weights, vectors, **options), ReferenceModel(CONFIG, tensors)


def text(length: int, seed: int = 3) -> Any:
    return np.random.default_rng(seed).integers(0, VOCAB, length).astype(np.int32)


def test_the_description_survives_json() -> None:
    assert Transformer.from_dict(json.loads(json.dumps(CONFIG.to_dict()))) == CONFIG
    names = list(CONFIG.linears)
    assert names[0] == "encoder.layers.0.q"
    assert {"layers.1.cross_k", "encoder.layers.2.down"} <= set(names)
    assert "encoder.embed" not in CONFIG.tensors
    assert CONFIG.tensors["encoder.relative_bias"] == (4, 16)
    assert {"layers.0.cross_q.bias", "layers.0.cross_k_norm", "layers.0.cross_sinks", "layers.0.cross_norm"} <= set(
        CONFIG.vectors
    )


@pytest.mark.parametrize("source", [1, 70, 330])
def test_logits_are_the_references(source: int) -> None:
    decoder, reference = made()
    source_ids, ids = text(source), text(40, 4)
    memory = reference.encode(source_ids)
    np.testing.assert_allclose(decoder.encode([source_ids]), memory, atol=5e-5, rtol=0)
    decoder.remember([(0, source_ids)])
    assert decoder.length(0) == 0
    found = [decoder.step([(0, ids[:30])], all_logits=True)]
    found += [decoder.step([(0, ids[at : at + 1])]) for at in range(30, 40)]
    np.testing.assert_allclose(np.concatenate(found), reference.logits(ids, memory), atol=2e-4, rtol=0)


def test_every_sequence_reads_its_own_whatever_its_company() -> None:
    sources, ids = [text(9), text(80, 5), text(300, 6)], text(12, 7)
    alone = []
    for source in sources:
        decoder, _ = made("int8", threads=1)
        decoder.remember([(5, source)])
        alone.append(decoder.step([(5, ids)]))
    decoder, _ = made("int8", threads=2)
    decoder.remember(list(enumerate(sources)))
    for at in range(len(ids)):
        together = decoder.step([(sequence, ids[at : at + 1]) for sequence in range(3)])
    np.testing.assert_array_equal(together, np.concatenate(alone))


def test_forks_share_what_they_read() -> None:
    decoder, _ = made()
    source, ids = text(130), text(8, 4)
    decoder.remember([(0, source)])
    decoder.step([(0, ids[:7])])
    before = decoder.kv_bytes
    decoder.fork(0, 1, 7)
    page = before // 4  # a page of the sequence, and three of its memory, which has more heads
    assert decoder.kv_bytes - before < page
    logits = decoder.step([(0, ids[7:]), (1, ids[7:])])
    np.testing.assert_array_equal(logits[0], logits[1])
    decoder.free(0)
    np.testing.assert_array_equal(decoder.step([(1, ids[:1])]).shape, (1, VOCAB))
    decoder.free(1)
    assert decoder.kv_bytes == 0
    decoder.remember([(0, text(5))])  # another, since it was freed
    decoder.step([(0, ids)])


@pytest.mark.parametrize("kv", ["f32", "bf16", "int8"])
def test_readers_of_one_memory_are_what_they_are_alone(kv: str) -> None:
    """They are taken together, wherever each stands, and others of the same length are not."""
    sources, ids, then = {0: text(480), 2: text(480, 5)}, text(8, 4), text(9, 8)
    reads, lengths = {0: 0, 1: 0, 2: 2, 3: 0, 4: 2}, {0: 7, 1: 5, 2: 7, 3: 3, 4: 1}
    alone = []
    for sequence, source in reads.items():
        decoder, _ = made("int8", threads=1, kv=kv)
        decoder.remember([(0, sources[source])])
        decoder.step([(0, ids[: lengths[sequence]])])
        alone.append(decoder.step([(0, then[sequence : sequence + 1])]))
    decoder, _ = made("int8", threads=2, kv=kv)
    decoder.remember(list(sources.items()))
    decoder.step([(source, ids[:7]) for source in sources])
    for sequence, source in reads.items():
        if sequence != source:
            decoder.fork(source, sequence, lengths[sequence])
    together = decoder.step([(sequence, then[sequence : sequence + 1]) for sequence in reads])
    np.testing.assert_array_equal(together, np.concatenate(alone))


def test_blocks_are_walked_as_they_run() -> None:
    decoder, reference = made()
    sources, ids = np.stack([text(20), text(20, 8)]), np.stack([text(9), text(9, 9)])
    encoder = decoder.encoder
    assert encoder is not None
    assert encoder.encoder is None
    memory = encoder.encode(list(sources))
    hidden = decoder.embed(ids.reshape(-1), 9)
    names = ["q", "cross_q", "cross_k", "cross_o", "down"]
    expected = np.asarray(hidden, np.float64)
    for block in range(2):
        hidden, captured = decoder.forward_block(block, hidden, names, 9, memory)
        expected, inner = reference.forward_block(block, expected, names, 9, memory)
        for name, values in inner.items():
            np.testing.assert_allclose(captured[name], values, atol=1e-4, rtol=0)
    np.testing.assert_allclose(hidden, expected, atol=1e-4, rtol=0)
    states = encoder.embed(sources.reshape(-1), 20)
    for block in range(3):
        states, _ = encoder.forward_block(block, states, (), 20)
    np.testing.assert_allclose(encoder.encode(list(sources))[0] / states[0], memory[0] / states[0], rtol=1e-6)


def test_a_step_reads_no_weights_of_the_memory() -> None:
    decoder, _ = made()
    tensors = random_tensors(CONFIG)
    sizes = {name: _core.pack(tensors[name], "dense", "f32").nbytes for name in CONFIG.linears}
    once = [name for name in sizes if name.endswith(("cross_k", "cross_v")) or name.startswith("encoder.")]
    head = _core.pack(tensors["embed"], "dense", "f32").nbytes
    assert decoder.weight_bytes == sum(sizes.values()) - sum(sizes[name] for name in once) + head
    assert {"layers.0.cross_k", "layers.1.cross_o"} <= {name for name, _ in decoder.kernels()}


def test_weights_are_replaced_on_both_sides() -> None:
    decoder, reference = made()
    for name in ("encoder.layers.1.up", "layers.1.cross_v"):
        values = np.random.default_rng(1).standard_normal(CONFIG.weights[name]).astype(np.float32) / 8
        decoder.set_weight(name, _core.pack(values, "dense", "f32"))
        model = reference if not name.startswith("encoder.") else reference.encoder
        assert model is not None
        model.set_weight(name.removeprefix("encoder."), values)
    decoder.remember([(0, text(11))])
    expected = reference.logits(text(6, 4), reference.encode(text(11)))
    np.testing.assert_allclose(decoder.step([(0, text(6, 4))], all_logits=True), expected, atol=2e-4, rtol=0)


def test_what_is_refused_changes_nothing() -> None:
    decoder, _ = made(kv_limit=400_000)
    decoder.remember([(0, text(5))])
    decoder.step([(0, [1, 2])])
    held = decoder.kv_bytes
    for call, words in (
        (lambda: decoder.step([(1, [1])]), "sequence 1 has nothing to read"),
        (lambda: decoder.remember([(0, [1])]), "sequence 0 holds 2 tokens"),
        (lambda: decoder.remember([(1, [1]), (1, [1])]), "sequence 1 appears twice"),
        (lambda: decoder.remember([(1, [1]), (-1, [1])]), "must not be negative"),
        (lambda: decoder.remember([(1, [])]), "an input has no tokens"),
        (lambda: decoder.remember([(1, [1]), (2, [VOCAB])]), "outside the vocabulary"),
        (lambda: decoder.forward_block(0, np.zeros((2, HIDDEN), np.float32)), "memory must be as many states"),
        (lambda: decoder.encoder.step([(0, [1])]), "has no head"),  # type: ignore[union-attr]
        (lambda: decoder.encoder.remember([(0, [1])]), "no encoder"),  # type: ignore[union-attr]
    ):
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(_core.CacheFull, match="kv_limit"):
        decoder.remember([(sequence, text(400)) for sequence in range(1, 9)])
    assert decoder.kv_bytes == held
    decoder.step([(0, [3])])
