"""GGUF files of all families: the description and the tensors of the checkpoint that they were made from."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguf_cases import CASES
from gguf_families import write
from gossamer import arch
from gossamer.checkpoints import open_checkpoint
from gossamer.checkpoints.gguf_families import ARCHITECTURES
from tiny import made

pytest.importorskip("torch", reason="transformers' models are the oracle here")
pytest.importorskip("transformers", reason="the oracle")


@pytest.mark.parametrize("case", CASES)
def test_a_file_is_the_checkpoint_that_it_was_made_from(tmp_path: Path, case: str) -> None:
    architecture, values, keys = CASES[case]
    made(tmp_path / "model", values)
    folder = open_checkpoint(tmp_path / "model")
    file = open_checkpoint(write(tmp_path / "model", tmp_path / "m.gguf", architecture, keys))
    expected, actual = (arch.family(one.config).describe(one.config) for one in (folder, file))
    alike(expected, actual)
    ours, theirs = file.sources(), folder.sources()
    assert ours == theirs
    for name in theirs:
        np.testing.assert_array_equal(file.read(ours[name]), folder.read(theirs[name]), err_msg=name)
    for name in file.names():
        assert file.shape(name) == file.tensor(name).shape


def alike(expected: Any, actual: Any) -> None:
    """The same description, but for numbers that files round to float32."""
    assert type(expected) is type(actual)
    if is_dataclass(expected):
        for field in fields(expected):
            alike(getattr(expected, field.name), getattr(actual, field.name))
    elif isinstance(expected, tuple):
        assert len(expected) == len(actual)
        for one, other in zip(expected, actual, strict=True):
            alike(one, other)
    elif isinstance(expected, float):
        assert actual == pytest.approx(expected, rel=1e-6)
    else:
        assert expected == actual


def test_every_architecture_has_a_case() -> None:
    assert {architecture for architecture, _, _ in CASES.values()} == set(ARCHITECTURES)
