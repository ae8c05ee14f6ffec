"""Attention over caches of each type: near float32, the same on every tier, and deaf to what it must not see."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import numpy as np
import pytest

import attention_cases
from checkout import ROOT
from engine_cases import VOCAB, config, decoder, decoders_with_an_infinite_token, tokens
from gossamer import _core

CASES = ("window", "long window", "softcap", "sinks", "alibi", "all")


@pytest.mark.parametrize(("kv", "bits"), [("f16", 11), ("bf16", 8)])
def test_a_narrow_cache_is_near_and_half_as_large(kv: str, bits: int) -> None:
    c = config()
    text = tokens(90)
    wide, narrow = decoder(c), decoder(c, kv=kv)
    error = np.abs(narrow.step([(0, text)], all_logits=True) - wide.step([(0, text)], all_logits=True)).max()
    assert 0 < error < 20 * 2.0**-bits  # keys and values of order 1 through two blocks
    assert (narrow.kv, narrow.kv_bytes_read(1) * 2) == (kv, wide.kv_bytes_read(1))


@pytest.mark.parametrize(
    ("kv", "type", "tiers"),
    [
        ("bf16", "int8", ["avx512_vbmi2", "avx512_bf16"]),
        ("bf16", "int8", ["amx_emulated", "amx"]),
        ("int8", "f32", ["avx512", "avx512_vbmi2"]),
        ("int8", "int8", ["avx512_vbmi2", "amx_emulated"]),
        ("int8", "int8", ["avx512_vbmi2", "amx"]),
    ],
)
def test_products_are_alike_with_and_without_an_instruction_for_them(kv: str, type: str, tiers: list[str]) -> None:
    """Two tiers have the same linears of that type, and one of them has vdpbf16ps, or vpdpbusd, or tiles."""
    if not set(tiers) <= set(_core.isas()):
        pytest.skip(f"needs {' and '.join(tiers)}")
    code = """
import sys
import engine_cases as e
type, kv = sys.argv[1:]
for width in (20, 72):
    d = e.decoder(e.config(head_dim=width), type=type, kv=kv)
    for n in (700, 1, 6):
        sys.stdout.buffer.write(d.step([(0, e.tokens(n))], all_logits=True).tobytes())
"""
    found = []
    for isa in tiers:
        env = {**os.environ, "GOSSAMER_ISA": isa, "PYTHONPATH": str(ROOT / "tests/support")}
        command = [sys.executable, "-c", code, type, kv]
        found.append(subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True).stdout)
    assert len(found[0]) == 2 * 707 * VOCAB * 4
    assert found[0] == found[1]


@functools.cache
def truth(case: str) -> np.ndarray:
    return attention_cases.reference(case, attention_cases.tokens(530))


OWN_ATTENTION = ("scalar", "avx2", "avx512", "avx512_bf16", "amx_emulated", "amx")


@pytest.mark.parametrize("isa", [isa for isa in _core.isas() if isa in OWN_ATTENTION])
def test_every_tier_attends_as_float64_does(isa: str) -> None:
    """Windows, caps, slopes and sinks over f32; with bf16 and 8 bits, near it."""
    code = """
import sys
import attention_cases as a
for case in sys.argv[1:]:
    for kv in ("f32", "bf16", "int8"):
        d = a.decoder(case, kv=kv)
        logits = [d.step([(0, a.tokens(530)[at])], all_logits=True) for at in (slice(0, 529), slice(529, 530))]
        for part in logits:
            sys.stdout.buffer.write(part.tobytes())
"""
    env = {**os.environ, "GOSSAMER_ISA": isa, "PYTHONPATH": str(ROOT / "tests/support")}
    output = subprocess.run([sys.executable, "-c", code, *CASES], env=env, stdout=subprocess.PIPE, check=True).stdout
    shape = (len(CASES), 3, 530, attention_cases.VOCAB)
    found = np.frombuffer(output, np.float32).reshape(shape)
    for case, (wide, *narrow) in zip(CASES, found, strict=True):
        expected = truth(case)
        size = np.abs(expected).max()
        assert np.abs(wide - expected).max() < 1e-5 * size, case
        assert np.abs(np.array(narrow) - expected).max() < 20 * 2.0**-8 * size, case


@pytest.mark.parametrize("kv", ["f32", "f16", "bf16", "int8"])
def test_what_is_rolled_back_reaches_nothing_were_it_infinite(kv: str) -> None:
    text = tokens(70)
    text[text == 3] = 4
    clean, used = decoders_with_an_infinite_token(config(), 3, kv=kv)
    for at in range(60, 70):
        used.step([(0, [*text[:at], 3, 3, 3])])
        used.rollback(0, 3)
        expected = clean.step([(0, text[: at + 1])])
        np.testing.assert_array_equal(used.step([(0, text[at : at + 1])]), expected)
        assert np.isfinite(expected).all()
        used.rollback(0, at + 1)
        clean.rollback(0, at + 1)
