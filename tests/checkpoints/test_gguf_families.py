"""GGUF files of all families: the description and the tensors of the checkpoint that they were made from."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import gguf
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
        source, expected = ours[name], folder.read(theirs[name])
        np.testing.assert_array_equal(file.read(source), expected, err_msg=name)
        np.testing.assert_array_equal(source.read(file.tensor(source.tensor)), expected, err_msg=name)
    for name in file.names():
        assert file.shape(name) == file.tensor(name).shape


def test_one_of_a_stack_is_read_without_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    architecture, values, keys = CASES["gpt-oss"]
    made(tmp_path / "model", values)
    file = open_checkpoint(write(tmp_path / "model", tmp_path / "m.gguf", architecture, keys))
    read: list[int] = []
    dequantize = gguf.quants.dequantize

    def counted(data: Any, kind: Any) -> Any:
        read.append(data.size)
        return dequantize(data, kind)

    monkeypatch.setattr(gguf.quants, "dequantize", counted)
    expert = file.read(file.sources()["layers.0.experts.1.gate"])
    assert read == [expert.size]


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
