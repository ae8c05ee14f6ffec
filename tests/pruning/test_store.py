"""What a run of pruning keeps on disk takes memory only while its block is worked on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gossamer import _core
from gossamer.pruning import pipeline, prune
from gossamer.pruning.store import FolderStore
from mapped import needs_smaps, resident
from tiny import tiny_llama


@needs_smaps
def test_matrices_of_a_block_that_is_done_take_no_memory(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((1024, 1024)).astype(np.float32)
    store = FolderStore(tmp_path)
    kept = store.keep_weight("pruned.layers.0.up", _core.pack(values, "dense", "f32"))
    path = tmp_path / "pruned.layers.0.up.safetensors"
    assert resident(path) == 0  # though it was looked through
    np.testing.assert_array_equal(kept.unpack(), values)
    assert resident(path) > values.nbytes // 2
    store.done(0)
    assert resident(path) == 0
    np.testing.assert_array_equal(kept.unpack(), values)  # whoever asks for it finds it in the file


@needs_smaps
def test_what_was_written_takes_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices of all blocks are read one behind the other then, and lie in files of their own."""
    source = tiny_llama(tmp_path / "dense", hidden_size=256, intermediate_size=1024)
    state, held = tmp_path / "pruned.pruning", []
    writing = pipeline._one_by_one

    def watched(*args: Any) -> Iterator[Any]:
        for tensor in writing(*args):
            yield tensor
            held.append(sum(resident(path) > 0 for path in state.glob("pruned.*.safetensors")))

    monkeypatch.setattr(pipeline, "_one_by_one", watched)
    prune(source, tmp_path / "pruned", method="magnitude", sparsity=0.5)
    assert len(held) > 14
    assert max(held) <= 1  # that of the tensor which was written last
