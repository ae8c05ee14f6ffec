"""Descriptions: what follows from them, how they are stored, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import attention_cases
from gossamer.arch.llama import Sizes
from gossamer.arch.sources import Source, parts_of
from gossamer.arch.spec import (
    Alibi,
    Attention,
    Block,
    Branch,
    Embedding,
    Group,
    Head,
    Mlp,
    Norm,
    QkNorm,
    QueryScale,
    Stack,
    Transformer,
)
from gossamer.errors import GossamerError

SIZES = Sizes(
    hidden=12, layers=2, heads=4, kv_heads=2, head_dim=6, intermediate=20, vocab=30, context=16, norm_eps=1e-5,
    inv_freq=(1.0, 0.25), tied=True, biases=("q", "down"),
)  # fmt: skip
RMS = Norm("rms", 1e-5)


def test_shapes_follow_from_the_parts() -> None:
    described = SIZES.describe()
    assert described.tensors["layers.1.q"] == (24, 12)
    assert described.tensors["layers.1.q.bias"] == (24,)
    assert described.weights["layers.0.k"] == (12, 12)
    assert described.weights["layers.0.down"] == (12, 20)
    assert "head" not in described.weights
    assert {name for name in described.vectors if name.startswith("layers.0")} == {
        "layers.0.q.bias", "layers.0.down.bias", "layers.0.attn_norm", "layers.0.mlp_norm",
    }  # fmt: skip
    assert described.blocks[1].groups == (
        Group(("q", "k", "v"), False), Group(("o",), True), Group(("gate", "up"), False), Group(("down",), True),
    )  # fmt: skip
    assert described.deeper(5).layers == 5


def test_a_description_survives_json_and_sizes_survive_a_description() -> None:
    described = SIZES.describe()
    assert Transformer.from_dict(json.loads(json.dumps(described.to_dict()))) == described
    assert Sizes.of(described) == SIZES


def test_fields_that_were_added_may_be_missing_where_they_say_nothing() -> None:
    """Folders were written before there were these."""
    described = SIZES.describe()
    added = {"behind", "after_sum", "weight", "norm", "limit", "alpha", "shift", "project", "softcap", "bias"}
    added |= {"window", "clip", "qk_norm", "sinks", "query_scale", "interleaved"}
    added |= {"causal", "reads", "types", "shared", "mel", "encoder", "values", "v_norm", "scalar"}

    def older(value: Any) -> Any:
        if isinstance(value, list):
            return [older(item) for item in value]
        if not isinstance(value, dict):
            return value
        keep = added - {"norm"} if "kinds" in value else added  # a stack always had one
        scale = {"scale"} if {"before", "tied"} & set(value) or set(value) >= {"project", "positions"} else set()
        return {key: older(item) for key, item in value.items() if key not in keep | scale}

    values = older(json.loads(json.dumps(described.to_dict())))
    assert set(values["head"]) == {"tied"}
    assert set(values["embedding"]) == {"positions"}
    assert Transformer.from_dict(values) == described


def test_norms_and_matrices_around_mixers_are_tensors() -> None:
    attention, mlp = (branch.mixer for branch in SIZES.describe().blocks[0].branches)
    layer, bare = Norm("layer", 1e-5, bias=True), Norm("rms", 1e-5, weight=False)
    blocks = (
        Block((Branch(attention, bare, layer), Branch(mlp, None, after_sum=RMS))),
        Block((Branch(attention, None), Branch(mlp, None)), parallel=True, norm=layer),
    )
    stack = Stack(blocks, (0, 1), RMS)
    way_in, way_out = Embedding(project=5, norm=layer), Head(True, bias=True, project=5)
    described = replace(SIZES.describe(), embedding=way_in, stack=stack, head=way_out)
    assert Transformer.from_dict(json.loads(json.dumps(described.to_dict()))) == described
    linear_biases = {f"layers.{at}.{name}.bias" for at in (0, 1) for name in ("q", "down")}
    assert set(described.vectors) - linear_biases == {
        "embed_norm", "embed_norm.bias", "layers.0.attn_behind", "layers.0.attn_behind.bias", "layers.0.mlp_after_sum",
        "layers.1.norm", "layers.1.norm.bias", "norm", "head.bias",
    }  # fmt: skip
    assert described.weights["embed"] == (30, 5)
    assert described.weights["embed_project"] == (12, 5)
    assert described.weights["head_project"] == (5, 12)
    assert "head" not in described.weights


@pytest.mark.parametrize("case", attention_cases.ATTENTIONS)
def test_attentions_survive_json(case: str) -> None:
    described = attention_cases.described(case)
    assert Transformer.from_dict(json.loads(json.dumps(described.to_dict()))) == described


def test_norms_of_heads_and_sinks_are_vectors() -> None:
    found = attention_cases.described("all").vectors
    assert (found["layers.0.q_norm"], found["layers.0.k_norm"], found["layers.0.sinks"]) == (9, 9, 7)
    own = attention_cases.described("own norms").vectors
    assert (own["layers.0.q_norm_5"], own["layers.0.k_norm_1.bias"]) == (10, 10)
    rows = attention_cases.described("norm of rows").vectors
    assert (rows["layers.0.q_norm"], rows["layers.0.k_norm.bias"]) == (60, 20)
    assert not {"layers.1.q_norm", "layers.1.sinks"} & set(found)


def test_values_that_are_keys_have_no_linear_and_a_scaled_stream_has_a_number() -> None:
    found = attention_cases.described("values of keys")
    assert found.blocks[0].groups[0] == Group(("q", "k"))
    assert "layers.0.v" not in found.tensors
    assert (found.vectors["layers.0.k.bias"], found.vectors["layers.0.scalar"]) == (20, 1)
    assert not {"layers.0.v_norm", "layers.1.scalar"} & set(found.vectors)
    assert attention_cases.described("norm of values").vectors["layers.0.v_norm.bias"] == 10


def test_what_is_not_of_the_family_is_not_taken_for_it() -> None:
    attention = SIZES.describe().blocks[0].branches[0]
    stack = SIZES.describe().stack
    for blocks in (
        (Block((attention,)),),
        (Block((attention, Branch(Mlp(20, "silu"), None))),),
        (Block((attention, Branch(Mlp(20, "silu"), Norm("rms", 1e-3)))),),
    ):
        other = replace(SIZES.describe(), stack=Stack(blocks, (0,), stack.norm))
        with pytest.raises(GossamerError, match="no decoder of the Llama family"):
            Sizes.of(other)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Norm("rms", float("inf")), "eps must be finite"),
        (lambda: Attention(4, 3, 8, 0.1, None), "heads 4 is not a multiple of kv_heads 3"),
        (lambda: Attention(4, 4, 8, 0.0, None), "scale must be above 0"),
        (lambda: Attention(4, 4, 8, 0.1, None, ("up",)), "biases must be some of q, k, v, o"),
        (lambda: Attention(4, 4, 8, 0.1, None, ("v",), values="keys"), "biases must be some of q, k, o"),
        (lambda: Attention(4, 4, 8, 0.1, Alibi((0.5,))), "slopes must be 4 numbers, one a head, got 1"),
        (lambda: Alibi((float("nan"),)), "slopes holds a value that is not finite"),
        (lambda: Attention(4, 4, 8, 0.1, None, window=0), "window must be from 1"),
        (lambda: Attention(4, 4, 8, 0.1, None, softcap=-1.0), "softcap must be above 0, got -1.0"),
        (lambda: Attention(4, 4, 8, 0.1, None, clip=float("inf")), "clip must be above 0"),
        (lambda: QkNorm(Norm("rms", 1e-5), "row", own=True), "own norms are over a head"),
        (lambda: QueryScale(0.1, 0), "length must be from 1"),
        (lambda: QueryScale(-0.1, 4), "beta must be finite and not negative"),
        (lambda: Mlp(0, "silu"), "width must be from 1"),
        (lambda: Block((Branch(Mlp(4, "silu"), None),) * 2), "branches must be different ones, got mlp, mlp"),
        (lambda: Mlp(4, "gelu", limit=7.0), "limit, alpha and shift are for a gate with silu"),
        (lambda: Mlp(4, "silu", limit=0.0), "limit must be above 0"),
        (lambda: Norm("layer", 1e-5, bias=True, weight=False), "a norm without a weight has no bias"),
        (lambda: Branch(Mlp(4, "silu"), None, scale=0.0), "scale must be above 0"),
        (lambda: Block((Branch(Mlp(4, "silu"), None),), norm=RMS), "norm is for parallel branches that have none"),
        (lambda: Block((Branch(Mlp(4, "silu"), RMS),), True, RMS), "norm is for parallel branches that have none"),
        (lambda: Block((Branch(Mlp(4, "silu"), None, after_sum=RMS),), True), "after_sum is for branches in turn"),
        (lambda: Embedding(scale=float("inf")), "scale must be above 0"),
        (lambda: Head(True, softcap=0.0), "softcap must be above 0"),
        (lambda: Head(True, project=0), "project must be from 1"),
        (lambda: replace(SIZES.describe(), head=Head(True, project=4)), "a tied head has the width of the embedding"),
    ],
)
def test_parts_that_make_no_sense(build: Any, words: str) -> None:
    with pytest.raises(GossamerError) as error:
        build()
    assert words in str(error.value)


SOURCES = {
    "whole": (Source("t", (6, 4)), (6, 4)),
    "rows": (Source("t", (9, 4), rows=(3, 3, 9)), (3, 4)),
    "interleaved": (Source("t", (12, 4), rows=(1, 2, 6)), (4, 4)),
    "transposed": (Source("t", (4, 6), transpose=True), (6, 4)),
    "transposed rows": (Source("t", (4, 6), transpose=True, rows=(2, 2, 6)), (2, 4)),
    "stacked": (Source("t", (3, 6, 4), index=1), (6, 4)),
    "heads": (Source("t", (8, 4), heads=2), (8, 4)),
    "shifted": (Source("t", (6,), plus=1.0), (6,)),
}


@pytest.mark.parametrize("case", SOURCES)
def test_what_is_read_can_be_written_back(case: str) -> None:
    source, shape = SOURCES[case]
    stored = np.random.default_rng(0).standard_normal(source.shape).astype(np.float32).round(2)
    values = source.read(stored)
    assert values.shape == shape
    assert source.whole is (case == "whole")
    changed = stored.copy()
    source.write(changed, values)
    np.testing.assert_allclose(changed, stored, rtol=0, atol=1e-6)
    source.write(changed, values + 1)
    np.testing.assert_allclose(source.read(changed), values + 1, rtol=0, atol=1e-6)
    assert (changed != stored).sum() == values.size  # nothing else changed


def test_rows_that_are_read() -> None:
    stored = np.arange(12, dtype=np.float32)
    assert Source("t", (12,), rows=(1, 2, 6)).read(stored).tolist() == [1, 2, 7, 8]
    assert Source("t", (8,), heads=2).read(stored[:8]).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_sources_refuse_other_shapes() -> None:
    with pytest.raises(GossamerError, match=r"tensor t is \[5, 4\], not \[6, 4\]"):
        Source("t", (6, 4)).read(np.zeros((5, 4), np.float32))
    with pytest.raises(GossamerError, match=r"tensor t: has place for \[6, 4\], got \[4, 6\]"):
        Source("t", (6, 4)).write(np.zeros((6, 4), np.float32), np.zeros((4, 6), np.float32))


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("embed", ("", "embed", "weight")),
        ("norm.bias", ("", "norm", "bias")),
        ("layers.12.q", ("12", "q", "weight")),
        ("layers.3.attn_norm.bias", ("3", "attn_norm", "bias")),
    ],
)
def test_names_are_split_into_what_checkpoints_spell(name: str, parts: tuple[str, str, str]) -> None:
    assert parts_of(name) == parts
