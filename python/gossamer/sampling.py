"""Choosing the next token: samplers are plain callables over one row of logits.

The order is llama.cpp's default chain: repeat penalty, top-k, top-p, min-p, temperature. Each filter sees only what
the ones before it kept, and temperature comes last, so that it reshapes the choice without widening it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from .errors import GossamerError

Logits = NDArray[np.float32]
Filter = Callable[[Logits], NDArray[np.intp]]
Sampler = Callable[[Logits, Sequence[int]], int]

REPEAT_WINDOW = 64
"""How many of the latest tokens, prompt included, the repeat penalty looks at (llama.cpp's `repeat_last_n`)."""


def sampler(
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repeat_penalty: float = 1.0,
    seed: int = 0,
) -> Sampler:
    """Builds a sampler; the same options, seed and logits always choose the same tokens.

    Args:
        temperature: 0 takes the likeliest token (the filters then change nothing); above 0 draws at random.
        top_k: Keep the k likeliest tokens; 0 keeps all.
        top_p: Keep the fewest likeliest tokens whose probabilities reach p (nucleus sampling); 1 keeps all.
        min_p: Keep tokens at least min_p times as likely as the likeliest; 0 keeps all.
        repeat_penalty: Divides positive logits of the last `REPEAT_WINDOW` tokens, multiplies negative ones; 1 is off.
        seed: Seed of the random numbers, at least 0.

    Returns:
        A callable `(logits [vocab] float32, tokens so far) -> token id`. It raises GossamerError when no logit is
        finite or one is NaN or +inf.

    Raises:
        GossamerError: an option is out of range; the message names it.
    """
    _check("temperature", temperature, math.isfinite(temperature) and temperature >= 0, "at least 0")
    _check("top_k", top_k, top_k >= 0, "at least 0")
    _check("top_p", top_p, 0 < top_p <= 1, "above 0 and at most 1")
    _check("min_p", min_p, 0 <= min_p <= 1, "between 0 and 1")
    _check("repeat_penalty", repeat_penalty, math.isfinite(repeat_penalty) and repeat_penalty > 0, "above 0")
    _check("seed", seed, seed >= 0, "at least 0")

    filters: list[Filter] = []
    if top_k > 0:
        filters.append(lambda logits: keep_top_k(logits, top_k))
    if top_p < 1:
        filters.append(lambda logits: keep_top_p(logits, top_p))
    if min_p > 0:
        filters.append(lambda logits: keep_min_p(logits, min_p))
    rng = np.random.Generator(np.random.PCG64(seed))

    def sample(logits: Logits, tokens: Sequence[int]) -> int:
        if repeat_penalty != 1:
            logits = penalize(logits, tokens[-REPEAT_WINDOW:], repeat_penalty)
        if not math.isfinite(logits.max()):  # NaN wins every max
            raise GossamerError(
                "the model's logits are not finite (NaN or infinity); its weights may be damaged, or overflow in "
                "the chosen types"
            )
        if temperature == 0:
            return int(logits.argmax())
        kept: NDArray[np.intp] | None = None
        for keep in filters:
            chosen = keep(logits)
            logits = logits[chosen]
            kept = chosen if kept is None else kept[chosen]
        drawn = draw(logits, temperature, rng)
        return drawn if kept is None else int(kept[drawn])

    return sample


def penalize(logits: Logits, recent: Sequence[int], penalty: float) -> Logits:
    """Returns a copy of `logits` [vocab] in which each token of `recent` is less likely, once however often it occurs.

    Source: CTRL (Keskar et al. 2019), with the sign rule that every runtime uses: positive logits are divided by
    `penalty`, negative ones multiplied.
    """
    ids = np.unique(np.asarray(recent, dtype=np.intp))
    result: Logits = logits.copy()
    result[ids] = np.where(logits[ids] > 0, logits[ids] / penalty, logits[ids] * penalty)
    return result


def keep_top_k(logits: Logits, k: int) -> NDArray[np.intp]:
    """Returns the ascending indices of the k largest logits; of equal ones, those that come first."""
    if k >= logits.size:
        return np.arange(logits.size)
    least = np.partition(logits, logits.size - k)[logits.size - k]
    above = np.flatnonzero(logits > least)
    equal = np.flatnonzero(logits == least)[: k - above.size]
    return np.sort(np.concatenate([above, equal]))


def keep_top_p(logits: Logits, p: float) -> NDArray[np.intp]:
    """Returns the ascending indices of the fewest likeliest tokens whose probabilities sum to at least p; one or more.

    Source: Holtzman et al. 2019, "The Curious Case of Neural Text Degeneration".
    """
    shares = probabilities(logits)
    likely = np.flatnonzero(
        shares >= (1 - p) / shares.size
    )  # all others together weigh less than 1 - p: none is needed
    order = likely[np.argsort(-shares[likely], kind="stable")]
    sums = np.cumsum(shares[order])
    return np.sort(order[: int(np.searchsorted(sums, p)) + 1])


def keep_min_p(logits: Logits, p: float) -> NDArray[np.intp]:
    """Returns the ascending indices of the tokens at least p times as likely as the likeliest.

    Source: Nguyen et al. 2024, "Turning Up the Heat: Min-p Sampling".
    """
    return np.flatnonzero(logits >= logits.max() + math.log(p))


def probabilities(logits: Logits, temperature: float = 1.0) -> NDArray[np.float64]:
    """Returns softmax(logits / temperature) in float64; safe for any temperature above 0."""
    shifted = logits.astype(np.float64) - float(logits.max())
    with np.errstate(over="ignore"):  # a tiny temperature sends all but the largest to -inf, as it should
        weights = np.exp(shifted / temperature)
    return np.asarray(weights / weights.sum())


def draw(logits: Logits, temperature: float, rng: np.random.Generator) -> int:
    """Returns an index drawn with the probabilities softmax(logits / temperature), using one number of `rng`."""
    sums = np.cumsum(probabilities(logits, temperature))
    return int(np.searchsorted(sums, rng.random() * sums[-1], side="right"))


def _check(name: str, value: float, good: bool, expected: str) -> None:
    if not good:
        raise GossamerError(f"{name} must be {expected}, got {value}")
