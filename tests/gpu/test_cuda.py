"""What `gossamer.gpu.cuda` says where no GPU can be used, told apart by cause."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

import gossamer
from gossamer import GossamerError, _core
from gossamer.cli import main
from gossamer.gpu import cuda


def fake_native(count: Callable[[], int], **facts: Any) -> ModuleType:
    module = ModuleType("gossamer._cuda")
    module.device_count = count  # type: ignore[attr-defined]
    gpu = {"name": "A GPU", "capability": (9, 0), "multiprocessors": 132, **facts}
    module.device_facts = lambda device: gpu  # type: ignore[attr-defined]  # noqa: ARG005
    return module


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[[ModuleType | None], None]:
    def put(module: ModuleType | None) -> None:
        monkeypatch.setitem(sys.modules, "gossamer._cuda", module)
        if module is None:
            monkeypatch.delattr(gossamer, "_cuda", raising=False)
        else:
            monkeypatch.setattr(gossamer, "_cuda", module, raising=False)

    return put


def no_driver() -> int:
    raise RuntimeError("CUDA: no GPU can be used: CUDA driver version is insufficient")


def test_an_installation_without_kernels_says_how_to_get_them(install: Callable[..., None]) -> None:
    install(None)
    assert "GOSSAMER_CUDA=ON" in str(cuda.why_unavailable())


def test_a_missing_driver_is_told_in_its_own_words(install: Callable[..., None]) -> None:
    install(fake_native(no_driver))
    assert cuda.why_unavailable() == "no GPU can be used: CUDA driver version is insufficient"


def test_no_gpu(install: Callable[..., None]) -> None:
    install(fake_native(lambda: 0))
    assert cuda.why_unavailable() == "there is no GPU"


def test_no_torch(install: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    install(fake_native(lambda: 1))
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "gossamer[torch]" in str(cuda.why_unavailable())


def test_torch_without_cuda_and_old_gpus(install: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    install(fake_native(lambda: 1, capability=(7, 5)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "cannot use a GPU" in str(cuda.why_unavailable())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert cuda.why_unavailable() == "compute capability 8.0 or later is needed, found A GPU (7.5)"
    install(fake_native(lambda: 1, capability=(8, 0)))
    assert cuda.why_unavailable() is None


def test_every_door_gives_that_one_line(install: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    install(fake_native(no_driver))
    line = "CUDA is not available: no GPU can be used: CUDA driver version is insufficient"
    with pytest.raises(GossamerError, match=line):
        cuda.CudaWeight(_core.pack([[1.0, 0.0]], "bitmap", "f16"))
    with pytest.raises(GossamerError, match=line):
        gossamer.load("anything", device="cuda")
    assert main(["generate", "hello", "--device", "cuda"]) == 1
    assert capsys.readouterr().err == f"gossamer: error: {line}\n"


def test_layouts_by_pattern() -> None:
    for pattern, layout in [((2, 4), "nm24"), ((1, 4), "nm24"), ((2, 8), "nm24"), ((4, 8), "bitmap"), (None, "bitmap")]:
        weight = _core.pack([[0.0] * 64], "nm" if pattern else "bitmap", "f16", 0, pattern)
        assert cuda.pick_layout(weight) == layout
