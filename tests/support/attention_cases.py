"""Tiny decoders, one for each thing that an attention may have, with weights and float64 logits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from gossamer import _core
from gossamer.arch import alibi
from gossamer.arch.spec import (
    Alibi,
    Attention,
    Block,
    Branch,
    Embedding,
    Head,
    Mlp,
    Norm,
    QkNorm,
    QueryScale,
    Rope,
    Stack,
    Transformer,
)
from reference_model import ReferenceModel, random_tensors

VOCAB = 60
ROPE = Rope((1.0, 0.3, 0.1, 0.02))
PLAIN = Attention(6, 2, 10, 0.5, ROPE)
RMS, LAYER = Norm("rms", 1e-5), Norm("layer", 1e-5, bias=True)
ATTENTIONS: dict[str, Attention] = {
    "plain": PLAIN,
    "window of 1": replace(PLAIN, window=1),
    "window": replace(PLAIN, window=37),
    "long window": replace(PLAIN, window=450),
    "softcap": replace(PLAIN, softcap=1.5, scale=2.0),
    "clip": replace(PLAIN, clip=0.6, biases=("k", "v")),
    "norm of heads": replace(PLAIN, qk_norm=QkNorm(RMS)),
    "norm of rows": replace(PLAIN, qk_norm=QkNorm(LAYER, "row"), biases=("q",)),
    "own norms": replace(PLAIN, qk_norm=QkNorm(LAYER, own=True)),
    "sinks": replace(PLAIN, sinks=True),
    "alibi": replace(PLAIN, positions=Alibi(alibi.bloom(6))),
    "interleaved": replace(PLAIN, positions=replace(ROPE, interleaved=True, scale=1.2)),
    "norm of values": replace(PLAIN, v_norm=LAYER, biases=("v",)),
    "values of keys": replace(
        PLAIN, values="keys", biases=("k", "o"), qk_norm=QkNorm(RMS), v_norm=replace(RMS, weight=False), clip=1.1
    ),
    "scaled queries": replace(PLAIN, query_scale=QueryScale(0.4, 9)),
    "all": Attention(
        7, 7, 9, 0.7, Alibi(alibi.mpt(7)), ("v",), 70, 5.0, 1.1, QkNorm(RMS), True, QueryScale(0.1, 20)
    ),
}  # fmt: skip


def described(case: str, context: int = 1400) -> Transformer:
    """A block with this attention and a plain one, in turn; where values are keys, it has a number of its own."""
    kinds = [
        Block((Branch(attention, RMS), Branch(Mlp(20, "silu"), RMS)), scalar=attention.values == "keys")
        for attention in (ATTENTIONS[case], PLAIN)
    ]
    stack = Stack(tuple(kinds), (0, 1, 0), RMS)
    return Transformer(32, VOCAB, context, Embedding(), stack, Head(True))


def values(case: str) -> dict[str, Any]:
    return random_tensors(described(case), seed=3)


def decoder(case: str, **options: Any) -> _core.Decoder:
    tensors, config = values(case), described(case)
    weights = {name: _core.pack(tensors[name], "dense", "f32") for name in config.weights}
    return _core.Decoder(config.to_dict(), weights, {name: tensors[name] for name in config.vectors}, **options)


def reference(case: str, ids: Any) -> Any:
    return ReferenceModel(described(case), values(case)).logits(ids)


def tokens(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCAB, n).astype(np.int32)
