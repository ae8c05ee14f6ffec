from __future__ import annotations

from pathlib import Path

import pytest

from gossamer.pruning import prune
from tiny import tiny_llama


def test_what_a_method_has_no_use_for_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, text = tiny_llama(tmp_path / "dense"), tmp_path / "text.txt"
    text.write_text("The spider spins a thread of gossamer. " * 60, encoding="utf-8")
    prune(source, tmp_path / "one", method="magnitude", sparsity=0.5)
    assert not caplog.messages
    prune(source, tmp_path / "two", method="magnitude", sparsity=0.5, calibration=text, windows=4)
    assert caplog.messages == ["calibration, windows: method magnitude reads no text, so that this does nothing"]
