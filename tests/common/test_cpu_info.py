"""Tiers: what the processor has, what each builds on, and what GOSSAMER_ISA chooses."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from gossamer import _core

BASES = {
    "scalar": ("scalar",),
    "avx2": ("scalar", "avx2"),
    "avx_vnni": ("scalar", "avx2", "avx_vnni"),
    "avx_vnni_evex": ("scalar", "avx2", "avx_vnni_evex"),
    "avx512": ("scalar", "avx2", "avx512"),
    "avx512_vbmi2": ("scalar", "avx2", "avx512", "avx512_vbmi2"),
    "avx512_bf16": ("scalar", "avx2", "avx512", "avx512_vbmi2", "avx512_bf16"),
    "amx": ("scalar", "avx2", "avx512", "avx512_vbmi2", "avx512_bf16", "amx"),
    "amx_emulated": ("scalar", "avx2", "avx512", "avx512_vbmi2", "amx_emulated"),
}


def kernels_under(isa: str) -> subprocess.CompletedProcess[str]:
    code = "from gossamer import _core; print(_core.isa(), *_core.kernels())"
    environment = {**os.environ, "GOSSAMER_ISA": isa}
    return subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("isa", _core.isas())
def test_a_tier_runs_the_kernels_of_those_that_it_builds_on(isa: str) -> None:
    active, *kernels = kernels_under(isa).stdout.split()
    assert active == isa
    assert {name.partition("__")[2] for name in kernels} == set(BASES[isa])
    assert _core.kernels(isa) == [name for name in kernels if name.endswith(f"__{isa}")]


def test_emulated_tiles_are_for_those_who_ask() -> None:
    pytest.importorskip("gossamer._simt", reason="needs an editable install, which builds the emulated tiles")
    assert "amx_emulated" in _core.isas()[:-1] or "avx512_vbmi2" not in _core.isas()
    assert kernels_under("").stdout.split()[0] == _core.isas()[-1]


def test_a_tier_that_nobody_knows_is_refused() -> None:
    run = kernels_under("sse9")
    assert run.returncode != 0
    assert f"GOSSAMER_ISA=sse9 cannot run here; what can is {', '.join(_core.isas())}" in run.stderr


def test_a_tier_that_the_processor_lacks_is_refused() -> None:
    lacking = [isa for isa in BASES if isa not in _core.isas()]
    if not lacking:
        pytest.skip("this processor has every tier")
    run = kernels_under(lacking[0])
    assert run.returncode != 0
    assert f"GOSSAMER_ISA={lacking[0]} cannot run here" in run.stderr
