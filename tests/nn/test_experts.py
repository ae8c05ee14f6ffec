"""Experts in torch's decoder over packed weights: the native engine's logits and bytes; kernels of GPUs refuse them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine_cases import config, tokens
from gossamer import _core
from gossamer.arch.experts import with_experts
from gossamer.arch.spec import Experts, Mlp, Routing
from gossamer.errors import GossamerError
from reference_model import random_tensors

torch = pytest.importorskip("torch", reason="the [torch] extra is not installed")
from gossamer.nn.engine import Engine  # noqa: E402

MLP = Mlp(40, "silu", biases=("down",))
CASES = {
    "all": Experts(6, 2, MLP, Routing("all", normalized=True)),
    "chosen": Experts(4, 3, MLP, Routing("chosen", bias=True, scale=0.5)),
    "shared": Experts(3, 1, MLP, Routing("all"), shared=Mlp(33, "gelu"), shared_gate=True),
    "open": Experts(3, 2, MLP, Routing("all"), shared=Mlp(33, "gelu", gated=False)),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_native_engine(case: str) -> None:
    described = with_experts(config().describe(), CASES[case])
    few = CASES[case].chosen / CASES[case].count
    tensors = random_tensors(described)
    weights = {name: _core.pack(tensors[name], "dense", "f32") for name in described.weights}
    vectors = {name: tensors[name] for name in described.vectors}
    native = _core.Decoder(described.to_dict(), weights, vectors)
    ours = Engine(described, weights, vectors, "cpu", dtype=torch.float32)
    text = tokens(40)
    expected = native.step([(0, text)], all_logits=True)
    np.testing.assert_allclose(ours.step([(0, text)], True), expected, atol=5e-5, rtol=0)
    singly = [ours.step([(1, text[i : i + 1])])[0] for i in range(len(text))]
    np.testing.assert_allclose(singly, expected, atol=5e-5, rtol=0)
    every = {**described.linears, **described.exact}
    parts = [each.rows * each.cols * (few if ".experts." in name else 1) for name, each in every.items()]
    assert ours.weight_bytes == round(4 * (sum(parts) + described.vocab * described.hidden))


def test_gpus_refuse_them_by_name() -> None:
    simt: Any = pytest.importorskip("gossamer._simt", reason="needs an editable install")
    described = with_experts(config().describe(), Experts(2, 1, Mlp(40, "silu"), Routing("all")))
    tensors = random_tensors(described)
    weights = {name: _core.pack(tensors[name], "dense", "bf16") for name in described.weights}
    vectors = {name: tensors[name] for name in described.vectors}
    with pytest.raises(GossamerError, match="experts: decoders on GPUs do not know them; run on the CPU"):
        Engine(described, weights, vectors, "cpu", kernels=simt)
