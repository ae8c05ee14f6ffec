from __future__ import annotations

import numpy as np
import pytest

from gossamer import _core
from gossamer.formats import FORMATS, GROUPS, INTEGER_TYPES, PATTERN_LENGTHS, TYPES, best_pattern, measure, stored_bytes
from matrices import patterned, sparse


def test_tables_are_those_of_the_native_module() -> None:
    values = sparse(16, 128, 0.6)
    for name in FORMATS:
        for kind in TYPES:
            for group in GROUPS if kind in INTEGER_TYPES else (0,):
                weight = _core.pack(values, name, kind, group, (32, 32) if name == "nm" else None)
                assert (weight.format, weight.type, weight.group) == (name, kind, group)
    for length in PATTERN_LENGTHS:
        assert _core.pack(patterned(16, 128, 2, length), "nm", "f32", 0, (2, length)).pattern == (2, length)


def streams_bytes(weight: _core.Weight) -> int:
    """Bytes of a weight without scales, and without what fills its streams up to whole cache lines."""
    exact = 0
    for name, stream in weight.streams().items():
        if name == "scales":
            continue
        spare = 64 if name in ("values", "columns") else 0
        exact += stream.nbytes - spare
    return exact


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.parametrize(("rows", "cols"), [(64, 256), (33, 100), (16, 64), (1, 1), (100, 4)])
@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.95, 1.0])
def test_sizes_are_those_of_packed_weights(kind: str, group: int, rows: int, cols: int, zeros: float) -> None:
    values = sparse(rows, cols, zeros)
    shape = measure(values, group if kind in INTEGER_TYPES else 0)
    assert shape.nonzeros == np.count_nonzero(values)
    for name in FORMATS:
        pattern = best_pattern(shape) or (64, 64) if name == "nm" else None
        weight = _core.pack(values, name, kind, group if kind in INTEGER_TYPES else 0, pattern)
        expected = stored_bytes(shape, name, kind, pattern)
        padding = streams_bytes(weight) - expected
        assert 0 <= padding < 64 * len(weight.streams()), (name, expected)


@pytest.mark.parametrize("m", PATTERN_LENGTHS)
def test_patterns_are_found(m: int) -> None:
    for n in (1, 2, m // 2, m - 1):
        shape = measure(patterned(8, 256, n, m, seed=m + n))
        assert shape.patterns[m] == n
        # The pattern holds in longer groups too; the shortest that keeps as little is taken.
        assert best_pattern(shape) == (n, m)


def test_one_value_too_many_breaks_a_pattern() -> None:
    values = patterned(8, 256, 2, 4)
    (place,) = np.flatnonzero(values[5] == 0)[:1]
    values[5, place] = 1.0
    assert measure(values).patterns[4] == 3


def test_tails_and_empty_matrices_have_patterns_too() -> None:
    assert measure(np.zeros((3, 70), np.float32)).patterns == dict.fromkeys(PATTERN_LENGTHS, 1)
    tail = patterned(3, 72, 2, 4)[:, :70]
    assert measure(tail).patterns[4] == 2


def test_negative_zero_is_zero_and_nan_is_not() -> None:
    shape = measure(np.array([[-0.0, np.nan, np.inf, 1.0]], np.float32))
    assert shape.nonzeros == 3
    assert shape.zeros == 0.25


@pytest.mark.parametrize(("name", "words"), [("nm", "needs a pattern"), ("coo", "format must be one of dense")])
def test_sizes_of_what_does_not_exist(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        stored_bytes(measure(sparse(4, 4, 0.5)), name, "int8")
