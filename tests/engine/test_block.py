"""What stands around mixers: norms, scales, parallel branches, the way in and the way out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engine_cases import config, tokens
from gossamer import _core
from gossamer.arch.spec import Block, Branch, Embedding, Head, Learned, Mlp, Norm, Stack, Transformer
from reference_model import ReferenceModel, random_tensors

BASE = config().describe()
ATTENTION, MLP = (branch.mixer for branch in BASE.blocks[0].branches)
RMS, LAYER = Norm("rms", 1e-5), Norm("layer", 1e-5, bias=True)


def with_block(*branches: Branch, **fields: Any) -> Transformer:
    return replace(BASE, stack=Stack((Block(branches, **fields),), (0, 0), RMS))


def with_mlp(mlp: Mlp) -> Transformer:
    return with_block(Branch(ATTENTION, RMS), Branch(mlp, RMS))


def with_ends(embedding: Embedding, head: Head) -> Transformer:
    return replace(BASE, embedding=embedding, head=head)


CASES = {
    "before and behind": with_block(Branch(ATTENTION, RMS, RMS), Branch(MLP, RMS, LAYER)),
    "behind alone": with_block(Branch(ATTENTION, None, LAYER), Branch(MLP, None, RMS)),
    "after the sum": with_block(Branch(ATTENTION, None, after_sum=LAYER), Branch(MLP, None, after_sum=RMS)),
    "every place": with_block(Branch(ATTENTION, RMS, LAYER, RMS, 0.5), Branch(MLP, LAYER, RMS, LAYER, 3.0)),
    "scales": with_block(Branch(ATTENTION, RMS, scale=0.22), Branch(MLP, RMS, scale=1.5)),
    "a shared norm": with_block(Branch(ATTENTION, None), Branch(MLP, None), parallel=True, norm=LAYER),
    "a shared norm and scales": with_block(
        Branch(ATTENTION, None, RMS, scale=0.5), Branch(MLP, None), parallel=True, norm=RMS
    ),
    "norms without a weight": with_block(
        Branch(ATTENTION, Norm("rms", 1e-5, weight=False)), Branch(MLP, Norm("layer", 1e-5, weight=False))
    ),
    "relu": with_mlp(Mlp(100, "relu", gated=False, biases=("up",))),
    "relu2": with_mlp(Mlp(100, "relu2", gated=False)),
    "gated relu2": with_mlp(Mlp(37, "relu2")),
    "clamped": with_mlp(Mlp(100, "silu", limit=0.8, alpha=1.702, shift=1.0)),
    "alpha alone": with_mlp(Mlp(37, "silu", alpha=0.5)),
    "embedding": with_ends(Embedding(Learned(BASE.context + 2, 2), 8.0, norm=LAYER), Head(False)),
    "head": with_ends(Embedding(), Head(True, True, 0.25, 2.0)),
    "projections": with_ends(Embedding(Learned(BASE.context), 2.0, 40, RMS), Head(True, True, 0.5, None, 40)),
    "narrow head": with_ends(Embedding(), Head(False, False, softcap=3.0, project=20)),
}


def packed(whole: Transformer, tensors: Any, form: str = "f32") -> tuple[dict[str, Any], dict[str, Any]]:
    weights = {name: _core.pack(tensors[name], "dense", form) for name in whole.weights}
    return weights, {name: tensors[name] for name in whole.vectors}


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_reference_however_a_text_is_cut(case: str) -> None:
    whole = CASES[case]
    assert Transformer.from_dict(whole.to_dict()) == whole
    tensors, text = random_tensors(whole), tokens(70)
    weights, vectors = packed(whole, tensors)
    expected = ReferenceModel(whole, tensors).logits(text)
    decoder = _core.Decoder(whole.to_dict(), weights, vectors, threads=2)
    logits = decoder.step([(0, text)], all_logits=True)
    assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()
    one = _core.Decoder(whole.to_dict(), weights, vectors, threads=1)
    parts = [one.step([(7, text[:40])], all_logits=True), *(one.step([(7, text[i : i + 1])]) for i in range(40, 70))]
    np.testing.assert_array_equal(np.concatenate(parts), logits)


@pytest.mark.parametrize("case", CASES)
def test_block_by_block_it_is_the_same(case: str) -> None:
    whole = CASES[case]
    tensors, text = random_tensors(whole), tokens(60)
    decoder = _core.Decoder(whole.to_dict(), *packed(whole, tensors), threads=2)
    reference = ReferenceModel(whole, tensors)
    hidden, expected = decoder.embed(text, 20), reference.embed(text, 20)
    for layer in range(whole.layers):
        hidden, inputs = decoder.forward_block(layer, hidden, ("q", "down"), 20)
        expected, others = reference.forward_block(layer, expected, ("q", "down"), 20)
        for name, values in inputs.items():
            assert np.abs(values - others[name]).max() < 1e-5 * np.abs(others[name]).max()
    logits, truth = decoder.head(hidden), reference.head(expected)
    assert np.abs(logits - truth).max() < 1e-5 * np.abs(truth).max()
    whole_texts = [decoder.step([(at, text[at : at + 20])], all_logits=True) for at in (0, 20, 40)]
    np.testing.assert_array_equal(np.concatenate(whole_texts), logits)


def test_matrices_at_the_ends_are_weights_like_others() -> None:
    whole = CASES["projections"]
    weights, vectors = packed(whole, random_tensors(whole), "int8")
    decoder = _core.Decoder(whole.to_dict(), weights, vectors)
    assert {name for name, _ in decoder.kernels()} == set(weights) - {"positions"}
    assert decoder.weight_bytes == sum(weight.nbytes for name, weight in weights.items() if name != "positions")
    for missing in ("embed_project", "head_project"):
        fewer = {name: weight for name, weight in weights.items() if name != missing}
        with pytest.raises(ValueError, match=f"weight '{missing}' is missing"):
            _core.Decoder(whole.to_dict(), fewer, vectors)
    with pytest.raises(ValueError, match=r"vector 'head\.bias' is missing"):
        _core.Decoder(whole.to_dict(), weights, {k: v for k, v in vectors.items() if k != "head.bias"})


def test_the_largest_logits_are_chosen_behind_scale_and_cap() -> None:
    whole = CASES["head"]
    decoder = _core.Decoder(whole.to_dict(), *packed(whole, random_tensors(whole)))
    logits = decoder.step([(0, tokens(9))])
    ids, values = decoder.step([(1, tokens(9))], top_k=3)
    np.testing.assert_array_equal(values, np.sort(logits)[:, ::-1][:, :3])
    np.testing.assert_array_equal(logits[0][ids[0]], values[0])


def test_what_is_not_a_number_stays_none() -> None:
    """An activation that has zero for it would hide a broken weight."""
    for mlp in (Mlp(100, "relu", gated=False), Mlp(100, "relu2"), Mlp(100, "silu", limit=0.8)):
        whole = with_mlp(mlp)
        tensors = random_tensors(whole)
        tensors["layers.0.up"][3, 5] = np.nan
        decoder = _core.Decoder(whole.to_dict(), *packed(whole, tensors))
        assert np.isnan(decoder.step([(0, tokens(3))])).all()
