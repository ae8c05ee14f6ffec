"""What a run of pruning keeps on disk takes memory only while its block is worked on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gossamer import _core
from gossamer.pruning.store import FolderStore
from mapped import needs_smaps, resident


@needs_smaps
def test_matrices_of_a_block_that_is_done_take_no_memory(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((1024, 1024)).astype(np.float32)
    store = FolderStore(tmp_path)
    kept = store.keep_weight("pruned.layers.0.up", _core.pack(values, "dense", "f32"))
    path = tmp_path / "pruned.layers.0.up.safetensors"
    np.testing.assert_array_equal(kept.unpack(), values)
    assert resident(path) > values.nbytes // 2
    store.done(0)
    assert resident(path) == 0
    np.testing.assert_array_equal(kept.unpack(), values)  # whoever asks for it finds it in the file
