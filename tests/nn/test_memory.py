"""Texts that lie one behind the other in a window are what they are alone, with every kind of scores."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the [torch] extra is not installed")
from gossamer.nn.functions import Scores  # noqa: E402
from gossamer.nn.memory import Apart, Whole  # noqa: E402

HEADS, KV_HEADS, LENGTHS = 4, 2, ((5, 9, 3), (17,))


@pytest.mark.parametrize(
    "kind", [{}, {"window": 3}, {"softcap": 2.0}, {"slopes": torch.rand(HEADS)}, {"sinks": torch.rand(HEADS)}]
)
def test_texts_are_kept_apart(kind: dict[str, Any]) -> None:
    torch.manual_seed(0)
    scores = Scores(0.3, **kind)
    q, k, v = (torch.randn(len(LENGTHS), heads, 17, 8) for heads in (HEADS, KV_HEADS, KV_HEADS))
    starts = [[sum(row[:number]) for number in range(len(row))] for row in LENGTHS]
    first = torch.tensor(
        [[s for s, n in zip(*pair, strict=True) for _ in range(n)] for pair in zip(starts, LENGTHS, strict=True)]
    )
    got = Apart(first).attend(0, q, k, v, scores)
    for row, (begins, lengths) in enumerate(zip(starts, LENGTHS, strict=True)):
        for begin, length in zip(begins, lengths, strict=True):
            part = (slice(row, row + 1), slice(None), slice(begin, begin + length))
            alone = Whole().attend(0, q[part], k[part], v[part], scores)
            torch.testing.assert_close(got[part], alone, rtol=0, atol=1e-5)
