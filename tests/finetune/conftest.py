"""What the tests of finetuning share."""

from __future__ import annotations

from pathlib import Path

import pytest

import gossamer
from tiny import tiny_llama


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model, one with half of its weights zero, and a text."""
    from finetune_runs import TEXT

    folder = tmp_path_factory.mktemp("models")
    tiny_llama(folder / "dense", seed=1)
    gossamer.prune(folder / "dense", folder / "half", method="magnitude", sparsity=0.5, length=64)
    (folder / "text.txt").write_text(TEXT * 40, encoding="utf-8")
    return folder
