"""Experts in the walk through the blocks: what each is pruned on, and what that is worth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine_cases import config, tokens
from gossamer.arch.experts import with_experts
from gossamer.arch.spec import Experts, Mlp, Routing
from gossamer.pruning.masks import Target
from gossamer.pruning.methods.wanda import importance, keep_important
from gossamer.pruning.walk import chunked
from pruned_blocks import pruned_blocks
from reference_model import ReferenceModel, random_tensors

EXPERTS = Experts(4, 2, Mlp(40, "silu"), Routing("all", normalized=True), shared=Mlp(24, "silu"), shared_gate=True)
MODEL = with_experts(config(layers=2, head_dim=12).describe(), EXPERTS)
TENSORS = random_tensors(MODEL)
WINDOWS = tokens(40 * 50).reshape(40, 50)
HALF = Target(0.5)


def pruned(method: str) -> tuple[ReferenceModel, dict[str, Any]]:
    blocks, made, few = pruned_blocks(MODEL, TENSORS, chunked(WINDOWS), method, HALF)
    assert few == {}
    return blocks, made


def test_an_expert_is_pruned_on_the_tokens_that_were_routed_to_it() -> None:
    _, made = pruned("wanda")
    assert set(made) == set(MODEL.linears)
    dense = ReferenceModel(MODEL, TENSORS)
    hidden = dense.embed(WINDOWS.reshape(-1), 50)
    names = [group.linears[0] for group in EXPERTS.groups]
    inputs = dense.block_inputs(0, hidden, names, 50)
    for group in EXPERTS.groups:
        x = inputs[group.linears[0]]
        assert (len(x) < len(hidden)) is (group.column != EXPERTS.count)
        for linear in group.linears if not group.joins else ():
            weight = TENSORS[f"layers.0.{linear}"]
            expected = keep_important(weight, importance(weight, np.square(x).sum(axis=0)), HALF)
            np.testing.assert_array_equal(made[f"layers.0.{linear}"], expected)


@pytest.mark.parametrize("method", ["sparsegpt", "admm"])
def test_outputs_lose_less_than_by_magnitude(method: str) -> None:
    dense = ReferenceModel(MODEL, TENSORS)
    text = tokens(50, seed=9)

    def error(blocks: ReferenceModel) -> float:
        return float(np.square(blocks.logits(text) - dense.logits(text)).mean())

    plain = ReferenceModel(MODEL, TENSORS)
    for name in MODEL.linears:
        weight = TENSORS[name]
        plain.set_weight(name, np.where(np.abs(weight) > np.median(np.abs(weight)), weight, 0))
    assert error(pruned(method)[0]) < 0.85 * error(plain)
