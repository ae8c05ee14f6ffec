"""bench/finetune.py on a tiny model: what it makes once, what it measures, and that held-out texts stay out."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from checkout import ROOT
from tiny import tiny_llama

pytest.importorskip("torch", reason="the [torch] extra is not installed")

ENTRIES = [f"Entry {i}: the spider spins a thread of gossamer, and the net is thin.\n" * 12 for i in range(20)]
SPEECHES = [(1990 + i, f"Address {i}: the weights of the weaver are the weights of the web. " * 12) for i in range(40)]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    module, corpora, common = (importlib.import_module(name) for name in ("finetune", "corpora", "common"))
    monkeypatch.setattr(corpora, "fetch", lambda: (Path("one"), Path("two")))
    monkeypatch.setattr(corpora, "factbook_prose", lambda _: ENTRIES)
    monkeypatch.setattr(corpora, "addresses", lambda _: SPEECHES)
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(module, "CONTEXT", 64)
    return module


def test_it_measures_before_and_after_and_makes_everything_once(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_llama(tmp_path / "dense", max_position_embeddings=1024)
    work = tmp_path / "models"
    line = [str(work), "--model", str(model), "--tokens", "1k", "--length", "32", "--batch", "2", "--lr", "0.002"]
    monkeypatch.setattr(
        sys, "argv", ["finetune.py", *line, "--weights", "int4", "--group", "32", "--loss", "1", "0", "0"]
    )
    bench.main()
    result = json.loads((tmp_path / "results" / "finetune.json").read_text("utf-8"))
    assert [(row["row"], row["type"]) for row in result["rows"]] == [
        ("dense", "stored"), ("pruned", "int4"), ("finetuned", "int4"),
    ]  # fmt: skip
    first, before, after = (row["perplexity"] for row in result["rows"])
    for text in ("factbook", "addresses"):
        assert after[text] < before[text]  # a random model learns what these texts repeat
        closed = (before[text] - after[text]) / (before[text] - first[text])
        assert result["closed"][text] == pytest.approx(closed)
    assert result["training"]["tokens"] == 1024
    assert "--weights int4" in result["command"]

    texts = [path.read_text("utf-8") for path in (work / "texts").rglob("*.txt")]
    assert sorted(texts) == sorted([*ENTRIES[:18], *(text for year, text in SPEECHES if year <= 2019)])

    made = {path: path.stat().st_mtime_ns for path in work.rglob("*.safetensors")}
    bench.main()
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*.safetensors")} == made
