"""Checkpoints that the tools themselves wrote (`tests/support/real_tools.py`), against their own arithmetic.

A tool rounds what it dequantizes to the type of its weights; rounded so once, ours is bit for bit the same.
GOSSAMER_REAL_TOOLS may name another folder of such files, as --every writes them.
"""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gossamer import arch
from gossamer.checkpoints import open_checkpoint
from gossamer.generation.ready import ready
from gossamer.packing.convert import pack_checkpoint
from reference_model import ReferenceModel
from tiny import save_tokenizer

FOLDER = Path(os.environ.get("GOSSAMER_REAL_TOOLS", Path(__file__).parent / "real_tools"))


def forms() -> list[tuple[Path, str]]:
    found = []
    for path in sorted(FOLDER.glob("*.zip")):
        with zipfile.ZipFile(path) as archive:
            found += [(path, form) for form in json.loads(archive.read("forms.json"))["forms"]]
    return found


def unpacked(archive: Path, form: str, to: Path) -> tuple[Path, dict[str, torch.Tensor], list[int]]:
    """The checkpoint's folder, what is expected of it, and the tokens that logits are of."""
    with zipfile.ZipFile(archive) as file:
        file.extractall(to, [name for name in file.namelist() if name.startswith(f"{form}/")])
        ids = json.loads(file.read("forms.json"))["ids"]
    return to / form, load_file(to / form / "expected.safetensors"), ids


@pytest.mark.parametrize(("archive", "form"), [pytest.param(*case, id=f"{case[0].stem}-{case[1]}") for case in forms()])
def test_what_a_tool_wrote_is_what_the_tool_reads(tmp_path: Path, archive: Path, form: str) -> None:
    folder, expected, ids = unpacked(archive, form, tmp_path)
    (folder / "expected.safetensors").unlink()
    save_tokenizer(folder)
    logits = expected.pop("logits").numpy()
    checkpoint = open_checkpoint(folder)
    kinds = {values.dtype for values in expected.values()}
    kind = torch.float32 if len(kinds) > 1 else kinds.pop()
    for name, values in expected.items():
        ours = torch.tensor(checkpoint.tensor(name)).to(values.dtype)
        # A product in f32 has its rounding, and a scale that is computed in f32 has one on either side.
        rounding = 2**-22 if values.dtype == torch.float32 else 0
        np.testing.assert_allclose(ours.float().numpy(), values.float().numpy(), rounding, err_msg=name)
    described = arch.family(checkpoint.config).describe(checkpoint.config)
    whole = {key: source.read(checkpoint.tensor(source.tensor)) for key, source in checkpoint.sources().items()}
    rounded = {key: torch.tensor(values).to(kind).float().numpy() for key, values in whole.items()}
    np.testing.assert_allclose(ReferenceModel(described, rounded).logits(ids), logits, atol=5e-4)
    packed = pack_checkpoint(checkpoint, weights="stored")
    for weight, stored in packed.weights.items():
        np.testing.assert_array_equal(stored.unpack(), whole[weight], err_msg=weight)
    ours = ready(packed, activations="f32").logits(ids)
    np.testing.assert_allclose(ours, ReferenceModel(described, whole).logits(ids), atol=5e-4)


def test_fixtures_are_small() -> None:
    assert sum(path.stat().st_size for path in (Path(__file__).parent / "real_tools").iterdir()) < 200_000
