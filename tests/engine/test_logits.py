"""How logits come back: into memory of the caller's, or the largest of each row alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine_cases import VOCAB, config, decoder, tokens
from gossamer import _core


def largest(logits: np.ndarray, k: int) -> np.ndarray:
    """Ids of the k largest of each row, falling, of equal ones the first."""
    return np.argsort(-logits, axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("all_logits", [False, True])
def test_logits_go_where_the_caller_wants_them(all_logits: bool) -> None:
    d = decoder(config(), type="int8")
    batch = [(i, tokens(200 + i, seed=i)) for i in range(3)]
    expected = d.step(batch, all_logits)
    for sequence, _ in batch:
        d.free(sequence)
    room = np.full((len(expected) + 2, VOCAB), 7, np.float32)
    into = room[1:-1]
    assert d.step(batch, all_logits, into=into) is into
    np.testing.assert_array_equal(into, expected)
    assert (room[[0, -1]] == 7).all()


def read_only() -> np.ndarray:
    values = np.zeros((1, VOCAB), np.float32)
    values.flags.writeable = False
    return values


@pytest.mark.parametrize(
    ("into", "message"),
    [
        (np.zeros((2, VOCAB), np.float32), "into has 2 rows, but the step gives 1"),
        (np.zeros((1, VOCAB - 1), np.float32), rf"into must be \[rows, {VOCAB}\]"),
        (np.zeros(VOCAB, np.float32), rf"into must be \[rows, {VOCAB}\]"),
        (np.zeros((1, VOCAB)), "into must be a float32 array of rows without gaps"),
        (np.zeros((1, 2 * VOCAB), np.float32)[:, ::2], "into must be a float32 array of rows without gaps"),
        (np.zeros((2, VOCAB), np.float32, order="F"), "into must be a float32 array of rows without gaps"),
        ([[0.0] * VOCAB], "into must be a float32 array of rows without gaps"),
        (read_only(), "into must be aligned memory that can be written"),
        (np.zeros(4 * VOCAB + 1, np.uint8)[1:].view(np.float32)[None], "into must be aligned memory"),
    ],
)
def test_memory_that_does_not_fit_is_refused(into: Any, message: str) -> None:
    d = decoder(config())
    with pytest.raises(ValueError, match=message):
        d.step([(0, tokens(5))], into=into)
    assert d.length(0) == 0


@pytest.mark.parametrize("k", [1, 2, 20, VOCAB])
@pytest.mark.parametrize("all_logits", [False, True])
def test_the_largest_of_each_row(k: int, all_logits: bool) -> None:
    d = decoder(config(), threads=2)
    batch = [(i, tokens(3 + 100 * i, seed=i)) for i in range(4)]
    expected = d.step(batch, all_logits)
    for sequence, _ in batch:
        d.free(sequence)
    ids, values = d.step(batch, all_logits, top_k=k)
    assert (ids.dtype, values.dtype) == (np.int32, np.float32)
    np.testing.assert_array_equal(ids, largest(expected, k))
    np.testing.assert_array_equal(values, np.take_along_axis(expected, ids, axis=1))


def test_of_equal_logits_the_first_come_first_and_nan_is_seen() -> None:
    c = config(tied=False)
    weights = {name: np.zeros(shape, np.float32) for name, shape in c.describe().weights.items()}
    weights["embed"][:] = 1
    weights["head"][[3, 90, 91]] = 1
    vectors = {name: np.ones(size, np.float32) for name, size in c.describe().vectors.items()}

    def ids(k: int) -> list[int]:
        packed = {name: _core.pack(values, "dense", "f32") for name, values in weights.items()}
        return _core.Decoder(c.describe().to_dict(), packed, vectors).step([(0, [1])], top_k=k)[0][0].tolist()

    assert ids(6) == [3, 90, 91, 0, 1, 2]
    assert ids(2) == [3, 90]
    assert ids(VOCAB) == [3, 90, 91, *[i for i in range(VOCAB) if i not in (3, 90, 91)]]


def test_nan_counts_as_the_largest() -> None:
    c = config()
    weights, vectors = {}, {name: np.ones(size, np.float32) for name, size in c.describe().vectors.items()}
    rng = np.random.default_rng(0)
    for name, shape in c.describe().weights.items():
        weights[name] = _core.pack(rng.standard_normal(shape).astype(np.float32), "dense", "f32")
    vectors["norm"][0] = np.nan
    ids, values = _core.Decoder(c.describe().to_dict(), weights, vectors).step([(0, [1])], top_k=3)
    assert ids.tolist() == [[0, 1, 2]]
    assert np.isnan(values).all()


def test_numbers_of_the_largest_that_cannot_be_had() -> None:
    d = decoder(config())
    for k in (-1, VOCAB + 1):
        with pytest.raises(ValueError, match=f"top_k must be between 0 and the vocabulary's {VOCAB}, got {k}"):
            d.step([(0, tokens(3))], top_k=k)
    with pytest.raises(ValueError, match="top_k excludes it"):
        d.step([(0, tokens(3))], into=np.zeros((1, VOCAB), np.float32), top_k=3)
    assert d.length(0) == 0
