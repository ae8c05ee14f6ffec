"""What is kept of a GPU and what the planner makes of it, with a GPU that is made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import reference
from gossamer import GossamerError
from gossamer.cli import main
from gossamer.formats import measure
from gossamer.generation.stats import Stats
from gossamer.gpu import cuda, roofline
from gossamer.gpu.roofline import cached, gpu_machine, gpu_roof
from gossamer.packing.planner import choose

FACTS: dict[str, Any] = {"name": "A GPU", "multiprocessors": 132, "capability": (9, 0)}


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A GPU whose every measurement is counted."""
    monkeypatch.setenv("GOSSAMER_HOME", str(tmp_path))
    monkeypatch.setattr(cuda, "why_unavailable", lambda: None)
    monkeypatch.setattr(roofline, "_facts", lambda _: FACTS)
    calls: list[int] = []

    def bandwidth(device: int) -> float:
        calls.append(device)
        return 3000.0 + len(calls)

    monkeypatch.setattr(roofline, "_read_bandwidth", bandwidth)
    return calls


def test_a_gpu_is_measured_once(measured: list[int], tmp_path: Path) -> None:
    assert cached() is None
    first = gpu_roof()
    assert (first.gpu, first.bandwidth) == ("A GPU", 3001.0)
    assert gpu_roof() == first == cached()
    assert gpu_roof(refresh=True).bandwidth == 3002.0
    assert len(measured) == 2
    assert len(list((tmp_path / "roofline").iterdir())) == 1


@pytest.mark.parametrize(
    "change", [{"schema": 0}, {"bandwidth": "fast"}, {"bandwidth": -1.0}, {"gpu": "Another"}, {"date": None}]
)
def test_what_is_kept_is_not_trusted(measured: list[int], tmp_path: Path, change: dict[str, Any]) -> None:
    gpu_roof()
    (path,) = (tmp_path / "roofline").iterdir()
    document = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}))
    assert cached() is None
    assert gpu_roof().bandwidth == 3002.0
    assert len(measured) == 2


@pytest.mark.usefixtures("measured")
def test_formats_for_a_gpu() -> None:
    assert not gpu_machine().measured
    gpu_roof()
    machine = gpu_machine()
    assert (machine.bandwidth, machine.measured) == (3001.0, True)
    for zeros, format in [(0.1, "dense"), (0.5, "bitmap"), (0.97, "csr")]:
        shape = measure(reference.random_matrix(256, 1024, zeros))
        assert choose(shape, "bf16", machine=machine).format == format
    shape = measure(reference.prune_nm(reference.random_matrix(256, 1024, 0.0), 2, 4))
    assert choose(shape, "bf16", machine=machine).format == "nm"


@pytest.mark.usefixtures("measured")
def test_the_share_of_the_roof_is_that_of_the_gpu() -> None:
    stats = Stats(1, 3_001_000_000, new_tokens=101, decode_seconds=1.0, device="cuda")
    assert stats.percent_of_roof is None
    gpu_roof()
    assert stats.percent_of_roof == pytest.approx(100 * 100 * 3.001 / 3001)


@pytest.mark.usefixtures("measured")
def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["roofline", "--device", "cuda"]) == 0
    assert "A GPU, 132 multiprocessors" in capsys.readouterr().out
    assert main(["roofline", "--device", "cuda", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bandwidth"] == 3001.0


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "why_unavailable", lambda: "there is no GPU")
    for call in (gpu_roof, gpu_machine):
        with pytest.raises(GossamerError, match="CUDA is not available: there is no GPU"):
            call()
    assert cached() is None
