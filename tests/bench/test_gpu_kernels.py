"""What bench/gpu_kernels.py does without a GPU: weights, promises, the plot."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from checkout import ROOT

pytest.importorskip("torch")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module("gpu_kernels")


def row(name: str, tokens: int, ratio: float, shape: tuple[int, int] = (11008, 4096)) -> dict[str, Any]:
    spread = {"median": ratio, "min": ratio, "max": ratio}
    return {"row": name, "rows": shape[0], "cols": shape[1], "tokens": tokens, "ratio": spread, "bandwidth": 1e12}


def test_weights_have_the_zeros_that_were_asked_for(bench: ModuleType) -> None:
    weight = bench.packed(0.9, "f16", 0, 64, 4096)
    assert (weight.format, weight.type) == ("bitmap", "f16")
    assert weight.nnz == pytest.approx(0.1 * 64 * 4096, rel=0.02)
    for pattern in [(2, 4), (16, 32), (1, 4)]:
        weight = bench.packed(pattern, "int4", 128, 32, 256)
        assert (weight.pattern, weight.group) == (pattern, 128)
        kept = (weight.unpack() != 0).reshape(-1, pattern[1]).sum(1)
        assert kept.max() <= pattern[0]


def test_a_pass_reads_more_than_any_cache_holds(bench: ModuleType) -> None:
    assert bench.copies(17_000_000) * 17_000_000 > 150e6
    assert bench.copies(1 << 40) == 2


def test_promises_take_the_worst_of_what_they_cover(bench: ModuleType) -> None:
    rows = [row("2:4 f16", 1, 1.7), row("2:4 f16", 32, 1.5), row("2:4 f16", 64, 0.9), row("16:32 f16", 64, 2.0)]
    rows += [row("2:4 f16", 1, 0.1, (4096, 4096))]
    assert bench.wanted(rows) == [{"what": "2:4 f16", "tokens": "1..32", "at_least": 1.6, "smallest": 1.5}]


def test_the_plot_has_a_line_a_row(bench: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    bench.plot([row("a", 1, 1.0), row("a", 8, 1.0), row("b", 1, 2.0)], 2e12, tmp_path / "roof.svg")
    text = (tmp_path / "roof.svg").read_text()
    assert text.count('id="line2d_') > 0
    assert "<!-- a -->" in text
    assert "<!-- b -->" in text
