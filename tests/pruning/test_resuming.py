"""What a run that was stopped goes on from, and what it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from gossamer.errors import GossamerError
from gossamer.pruning import prune
from tiny import tiny_llama


def test_texts_in_folders_of_a_folder_must_be_the_same(tmp_path: Path) -> None:
    (tmp_path / "texts" / "inner").mkdir(parents=True)
    text = tmp_path / "texts" / "inner" / "one.txt"
    text.write_text("The spider spins a thread of gossamer. " * 60, encoding="utf-8")
    source = tiny_llama(tmp_path / "dense", num_hidden_layers=2)

    def run(stop: bool) -> None:
        def watch(done: int, _total: int, what: str) -> None:
            if stop and (done, what) == (1, "pruning blocks"):
                raise KeyboardInterrupt

        prune(
            source,
            tmp_path / "pruned",
            sparsity=0.5,
            calibration=tmp_path / "texts",
            length=40,
            windows=4,
            progress=watch,
        )

    with pytest.raises(KeyboardInterrupt):
        run(stop=True)
    text.write_text("Numbers: 0 1 2 3 10 42 1945. " * 60, encoding="utf-8")
    with pytest.raises(GossamerError, match=r"was begun with .*one\.txt \["):
        run(stop=False)
