"""Descriptions: what follows from them, how they are stored, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gossamer.arch.llama import Sizes
from gossamer.arch.sources import Source, parts_of
from gossamer.arch.spec import Attention, Block, Branch, Group, Mlp, Norm, Stack, Transformer
from gossamer.errors import GossamerError

SIZES = Sizes(
    hidden=12, layers=2, heads=4, kv_heads=2, head_dim=6, intermediate=20, vocab=30, context=16, norm_eps=1e-5,
    inv_freq=(1.0, 0.25), tied=True, biases=("q", "down"),
)  # fmt: skip


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
        (lambda: Mlp(0, "silu"), "width must be from 1"),
        (lambda: Block((Branch(Mlp(4, "silu"), None),) * 2), "branches must be different ones, got mlp, mlp"),
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
