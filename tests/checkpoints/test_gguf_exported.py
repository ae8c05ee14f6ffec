"""Every family as a GGUF file: the tensors that a converter writes, and the same model where it is read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

pytest.importorskip("torch", reason="transformers' models are what is written here")
pytest.importorskip("transformers", reason="likewise")

from family_checks import near, tokens
from gguf_cases import CASES, UNSAID, VARIANTS
from gguf_families import write
from gossamer import arch
from gossamer.arch.spec import Transformer
from gossamer.arch.spec.parse import difference
from gossamer.checkpoints import open_checkpoint
from gossamer.checkpoints.gguf_families import ARCHITECTURES
from gossamer.checkpoints.gguf_write import write_gguf
from gossamer.errors import GossamerError
from reference_model import ReferenceModel
from tiny import made

EXPORTED = {name: values for name, (_, values, _) in CASES.items()} | VARIANTS


@pytest.mark.parametrize("case", EXPORTED)
def test_the_same_model_is_read_back(tmp_path: Path, case: str) -> None:
    folder = made(tmp_path / "model", EXPORTED[case])
    write_gguf(open_checkpoint(folder), tmp_path / "m.gguf", type="f32")
    (expected, values), (actual, back) = read(folder), read(tmp_path / "m.gguf")
    assert difference(expected, actual) is None
    assert back.keys() == values.keys()
    for name, one in values.items():
        np.testing.assert_allclose(back[name], one, rtol=1e-6, err_msg=name)  # norms that one is added to are rounded
    ids = tokens(40)
    near(ReferenceModel(actual, back).logits(ids), ReferenceModel(expected, values).logits(ids), 1e-6)


@pytest.mark.parametrize("case", CASES)
def test_tensors_are_those_of_a_converter(tmp_path: Path, case: str) -> None:
    architecture, values, keys = CASES[case]
    folder = made(tmp_path / "model", values)
    write_gguf(open_checkpoint(folder), tmp_path / "m.gguf", type="f32")
    ours, theirs = tensors(tmp_path / "m.gguf"), tensors(write(folder, tmp_path / "n.gguf", architecture, keys))
    assert sorted(ours) == sorted(theirs)
    for name, expected in theirs.items():
        np.testing.assert_array_equal(ours[name].reshape(expected.shape), expected, err_msg=name)


def read(path: Path) -> tuple[Transformer, dict[str, Any]]:
    checkpoint = open_checkpoint(path)
    described = arch.family(checkpoint.config).describe(checkpoint.config)
    return described, {name: checkpoint.read(source) for name, source in checkpoint.sources().items()}


def tensors(path: Path) -> dict[str, Any]:
    return {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize("case", UNSAID)
def test_what_no_file_says_is_not_written(tmp_path: Path, case: str) -> None:
    values, words = UNSAID[case]
    source = open_checkpoint(made(tmp_path / "model", values))
    with pytest.raises(GossamerError, match="cannot be written as GGUF") as error:
        write_gguf(source, tmp_path / "m.gguf")
    assert words in str(error.value)
    assert not (tmp_path / "m.gguf").exists()


def test_what_other_programs_leave_out_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = made(tmp_path / "model", VARIANTS["mistral with a window"])
    write_gguf(open_checkpoint(folder), tmp_path / "m.gguf")
    (line,) = [record.getMessage() for record in caplog.records if record.name == "gossamer"]
    assert line == f"{tmp_path / 'm.gguf'}: other programs do not heed llama.attention.sliding_window, which is 8"


def test_every_family_that_is_read_is_written() -> None:
    written = {values["model_type"] for values in EXPORTED.values()}
    assert written >= {own for one in ARCHITECTURES.values() for own in (one.model_type, *one.also)}
