"""Attention over 8-bit codes: as near to float64 over the values that are stored as what it rounds allows."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from checkout import ROOT
from code_cases import HIDDEN, SHAPES, TIERS, TOKENS, hidden, weights
from gossamer import _core

PAGE = 64
FOUND = tuple(isa for isa in TIERS if isa in _core.isas())
Array = NDArray[np.float64]


@functools.cache
def computed(isa: str) -> dict[tuple[int, int, int], NDArray[np.float32]]:
    code = """
import sys
import code_cases as c
for shape in c.SHAPES:
    sys.stdout.buffer.write(c.mixed(shape, "int8").tobytes())
"""
    env = {**os.environ, "GOSSAMER_ISA": isa, "PYTHONPATH": str(ROOT / "tests/support")}
    output = subprocess.run([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, check=True).stdout
    values, found = np.frombuffer(output, np.float32), {}
    for shape in SHAPES:
        size = TOKENS * shape[0] * shape[2]
        found[shape], values = values[:size].reshape(TOKENS, shape[0], shape[2]), values[size:]
    assert len(values) == 0
    return found


def stored(x: NDArray[np.float32]) -> tuple[Array, Array, NDArray[np.float32]]:
    """Heads [..., width] as the cache has them, how far off that may be, and their scales.

    A product is rounded before it becomes a code where the compiler does not fuse it, which decides about halves.
    """
    largest = np.abs(x).max(axis=-1, keepdims=True)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    codes, others = np.rint(x.astype(np.float64) * inverse), np.rint(x * inverse).astype(np.float64)
    scales = largest / np.float32(127)
    return codes * scales, np.abs(codes - others) * scales, scales[..., 0]


@pytest.mark.parametrize("isa", FOUND)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums_are_those_of_what_is_stored(shape: tuple[int, int, int], isa: str) -> None:
    """Queries are rounded to 1/32512 of their largest element, weights to 1/32767 of a page's, and e^x to 2^-13."""
    heads, kv_heads, width = shape
    q, k, v = ((hidden() @ weights(shape)[name].T).reshape(TOKENS, -1, width) for name in "qkv")
    (keys, key_doubt, _), (values, value_doubt, scales) = stored(k), stored(v)
    eps = float(np.finfo(np.float32).eps)
    for head in range(heads):
        mine = head // (heads // kv_heads)
        scores = q[:, head].astype(np.float64) @ keys[:, mine].T / width
        scores[np.triu_indices(TOKENS, 1)] = -np.inf
        masses = np.exp(scores - scores.max(axis=1, keepdims=True))
        shares = masses / masses.sum(axis=1, keepdims=True)
        expected = shares @ values[:, mine]

        largest = np.abs(q[:, head]).max(axis=1)
        sizes = np.abs(keys[:, mine]).sum(axis=1).max()
        doubt = (np.abs(q[:, head]).astype(np.float64) @ key_doubt[:, mine].T).max(axis=1) / width
        shift = largest / (2 * 32512) * sizes / width + 8 * eps * largest * sizes / width + doubt  # of one score
        moved = np.exp(2 * shift) * (1 + 2.0**-12) / (1 - 2.0**-12) - 1
        weighted = shares * scales[:, mine]
        pages = [weighted[:, at : at + PAGE].max(axis=1) * PAGE for at in range(0, TOKENS, PAGE)]
        rounded = np.sum(pages, axis=0) * 1.01 / (2 * 32767) * 127
        unsure = (1 + moved[:, None]) * (shares @ value_doubt[:, mine])
        bound = moved[:, None] * (shares @ np.abs(values[:, mine])) + unsure + rounded[:, None] + 1e-30
        error = np.abs(computed(isa)[shape][:, head] - expected)
        assert (error <= bound).all(), (head, (error / bound).max())
        assert np.median(bound) < 0.02 * np.abs(values).max()  # it says something


def test_integers_are_the_same_on_every_tier_that_fuses_alike() -> None:
    wide = [isa for isa in FOUND if isa != "scalar"]
    if len(wide) < 2:
        pytest.skip("needs two tiers with a fused multiply-add")
    for shape in SHAPES:
        for isa in wide[1:]:
            np.testing.assert_array_equal(computed(isa)[shape], computed(wide[0])[shape], str((shape, isa)))


def test_hidden_states_reach_all_heads() -> None:
    assert hidden().shape == (TOKENS, HIDDEN)
    for shape in SHAPES:
        assert np.isfinite(computed(FOUND[-1])[shape]).all()
        assert (np.abs(computed(FOUND[-1])[shape]).max(axis=(0, 2)) > 0).all()
