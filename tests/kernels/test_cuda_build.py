"""What CI reads out of a build's log, on logs of known content."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from checkout import ROOT

LOG = """[7/9] Building CUDA object bitmap.cu.o
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN12LinearKernelA' for 'sm_80'
ptxas info    : Function properties for _ZN12LinearKernelA
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 63 registers, used 1 barriers, 44752 bytes smem
ptxas info    : Compiling entry function '_ZN11Nm24RecordsE' for 'sm_90'
ptxas info    : Function properties for _ZN11Nm24RecordsE
    24 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 43 registers, used 1 barriers
"""


@pytest.fixture(scope="module")
def checker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_ptxas", ROOT / ".ci" / "check_ptxas.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(checker: ModuleType, monkeypatch: pytest.MonkeyPatch, path: Path, log: str) -> None:
    path.write_text(log)
    monkeypatch.setattr("sys.argv", ["check_ptxas.py", str(path)])
    checker.main()


def test_a_clean_log_passes(
    checker: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(checker, monkeypatch, tmp_path / "log", LOG)
    assert capsys.readouterr().out == "sm_80: 1 linear kernels, 63 to 63 registers\n"


@pytest.mark.parametrize(
    ("log", "word"),
    [
        (
            LOG.replace("0 bytes spill stores", "8 bytes spill stores"),
            r"LinearKernelA for sm_80: 0 bytes stack, 8 \+ 0",
        ),
        (LOG.replace("    0 bytes stack", "    16 bytes stack"), "16 bytes stack"),
        ("", "no LinearKernel in"),
        (LOG.replace("Used 63", "Took 63"), "nothing about registers behind _ZN12LinearKernelA"),
    ],
)
def test_spills_and_empty_logs_fail(
    checker: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, log: str, word: str
) -> None:
    with pytest.raises(SystemExit, match=word):
        run(checker, monkeypatch, tmp_path / "log", log)
