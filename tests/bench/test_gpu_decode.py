"""What bench/gpu_decode.py does without a GPU: both sides of the comparison, and the promises."""

from __future__ import annotations

import importlib
from types import ModuleType

import numpy as np
import pytest

from checkout import ROOT
from gossamer import arch
from tiny import tiny_config

torch = pytest.importorskip("torch")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module("gpu_decode")


def test_both_sides_are_the_same_model(bench: ModuleType) -> None:
    simt = pytest.importorskip("gossamer._simt", reason="needs an editable install, which builds the kernels as loops")
    sizes = tiny_config(num_hidden_layers=3)
    config = arch.family(sizes).describe(sizes)
    weights = bench.weights_of(config, 0.7, "bf16", 64)
    assert weights["layers.0.down"].nnz == pytest.approx(0.3 * 96 * 160, rel=0.05)
    sides = bench.engines(config, weights, "cpu", simt)
    assert sides["sparse"].weight_bytes < 0.7 * sides["dense"].weight_bytes
    ids = np.arange(3, 20)
    logits = {side: engine.step([(0, ids)], True) for side, engine in sides.items()}
    assert np.abs(logits["sparse"]).max() > 0.5
    np.testing.assert_allclose(logits["sparse"], logits["dense"], rtol=0, atol=0.1)
    rows = sides["sparse"]._rows
    assert len(rows) == 3 * 4 + 1
    assert rows[1].names == ("layers.0.o",)
    assert rows[1].parts[0]._records is not rows[9].parts[0]._records
    assert bench.tokens_a_second(sides["sparse"], 3) > 0
    assert sides["sparse"].length(0) == 20


def test_promises(bench: ModuleType) -> None:
    parts = {"sparse": {"step": 10.0, "linears": 8.0, "attention": 1.0}}
    rounds = [{"sparse": 3.0, "dense": 2.0}, {"sparse": 2.0, "dense": 2.0}, {"sparse": 6.2, "dense": 4.0}]
    found = bench.summary(rounds, parts)
    assert found["ratio"] == {"median": 1.5, "min": 1.0, "max": 1.55}
    assert found["outside"]["sparse"] == pytest.approx(0.1)
    assert found["kept"]
    assert not bench.summary([{"sparse": 1.4, "dense": 1.0}], parts)["kept"]
    assert not bench.summary(rounds, {"sparse": {"step": 10.0, "linears": 7.0, "attention": 1.0}})["kept"]
