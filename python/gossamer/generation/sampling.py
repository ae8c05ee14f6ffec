"""Choosing the next token: samplers are plain callables over one row of logits.

The order is llama.cpp's default chain: biases, penalties, top-k, typical-p, top-p, min-p, temperature. Each filter sees
only what the ones before it kept, and temperature comes last, so that it reshapes the choice without widening it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import GossamerError
from .sampling_options import SamplingOptions

Logits = NDArray[np.float32]
Filter = Callable[[Logits], NDArray[np.intp]]
Change = Callable[[Logits, Sequence[int]], Logits]
Sampler = Callable[[Logits, Sequence[int]], int]

_FEW = 1024  # tokens whose exponentials cost little in float64
_COLD, _HOT = 1e-6, 1e6  # temperatures beyond are too far from 1 for float32
_BLOCK = 256  # tokens that are added up before a place among them is looked for


def sampler(options: SamplingOptions, draw_number: int = 0, prompt: int = 0) -> Sampler:
    """Builds a sampler; the same options and logits always choose the same tokens.

    Args:
        options: What to draw with; `max_new_tokens` and `stop` do not matter here.
        draw_number: Texts of the same options but another number are drawn with other random numbers.
        prompt: How many of the tokens are the prompt's, which frequency and presence do not count.

    Returns:
        A callable `(logits [vocab] float32, tokens so far) -> token id`. It raises GossamerError when no logit is
        finite or one is NaN or +inf.
    """
    temperature = options.temperature
    steps = changes(options, prompt)
    filters: list[Filter] = []
    if options.top_k > 0:
        filters.append(lambda logits: keep_top_k(logits, options.top_k))
    if options.typical_p < 1:
        filters.append(lambda logits: keep_typical(logits, options.typical_p))
    if options.top_p < 1:
        filters.append(lambda logits: keep_top_p(logits, options.top_p))
    if options.min_p > 0:
        filters.append(lambda logits: keep_min_p(logits, options.min_p))
    rng = np.random.Generator(np.random.PCG64([options.seed, draw_number] if draw_number else options.seed))

    def sample(logits: Logits, tokens: Sequence[int]) -> int:
        for step in steps:
            logits = step(logits, tokens)
        check_finite(logits)
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


def check_finite(logits: Logits) -> None:
    """Raises GossamerError where no logit is finite or one is NaN or +inf."""
    if not math.isfinite(logits.max()):  # NaN wins every max
        raise GossamerError(
            "the model's logits are not finite (NaN or infinity); its weights may be damaged, or overflow in "
            "the chosen types"
        )


def changes(options: SamplingOptions, prompt: int) -> list[Change]:
    """Returns what is done to logits before the choice, in order; each returns a copy.

    Args:
        options: What to do.
        prompt: As of `sampler`.
    """
    steps: list[Change] = []
    if options.logit_bias:
        ids, biases = (np.array(column) for column in zip(*options.logit_bias, strict=True))
        steps.append(lambda logits, _: biased(logits, ids, biases.astype(np.float32)))
    if words := options.bad_words:
        steps.append(lambda logits, tokens: without(logits, tokens, words))
    if (repeat := options.repeat_penalty) != 1:
        window = options.repeat_window  # -0 is the begin: all of them
        steps.append(lambda logits, tokens: penalize(logits, tokens[-window:], repeat))
    frequency, presence = options.frequency_penalty, options.presence_penalty
    if frequency or presence:
        steps.append(lambda logits, tokens: lower(logits, tokens[prompt:], frequency, presence))
    return steps


def biased(logits: Logits, ids: NDArray[np.intp], biases: NDArray[np.float32]) -> Logits:
    """Returns a copy of `logits` [vocab] with biases added to those of some tokens."""
    result: Logits = logits.copy()
    result[ids] += biases
    return result


def without(logits: Logits, tokens: Sequence[int], words: Sequence[Sequence[int]]) -> Logits:
    """Returns a copy of `logits` [vocab] in which no token ends one of the words that the tokens may have begun."""
    result: Logits = logits.copy()
    for *begun, last in words:
        if list(tokens[len(tokens) - len(begun) :]) == begun:
            result[last] = -math.inf
    if result.max() == -math.inf < logits.max():
        raise GossamerError("bad_words leave no token that a text could go on with")
    return result


def lower(logits: Logits, written: Sequence[int], frequency: float, presence: float) -> Logits:
    """Returns a copy of `logits` [vocab], lowered for each token of `written`.

    By `frequency` for each time that it stands there and once by `presence`, as OpenAI's interface defines them.
    """
    ids, counts = np.unique(np.asarray(written, dtype=np.intp), return_counts=True)
    result: Logits = logits.copy()
    result[ids] -= (frequency * counts + presence).astype(np.float32)
    return result


def penalize(logits: Logits, recent: Sequence[int], penalty: float) -> Logits:
    """Returns a copy of `logits` [vocab] in which each token of `recent` is less likely, once however often it occurs.

    Source: CTRL (Keskar et al. 2019), with the sign rule that every runtime uses: positive logits are divided by
    `penalty`, negative ones multiplied.
    """
    ids = np.unique(np.asarray(recent, dtype=np.intp))
    result: Logits = logits.copy()
    result[ids] = np.where(logits[ids] > 0, logits[ids] / penalty, logits[ids] * penalty)
    return result


def keep_top_k(logits: NDArray[np.floating[Any]], k: int) -> NDArray[np.intp]:
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
    shares, total = weights(logits)
    likely = np.flatnonzero(shares >= (1 - p) / shares.size * total)  # the others weigh less than 1 - p: none is needed
    shares = shares[likely]
    sums = np.cumsum(np.sort(shares)[::-1], dtype=np.float64)
    return likely[keep_top_k(shares, int(np.searchsorted(sums, p * total)) + 1)]


def keep_typical(logits: Logits, p: float) -> NDArray[np.intp]:
    """Returns the ascending indices of the fewest tokens of the most typical information that reach p; one or more.

    Tokens are taken in the order of how far their information, -log of the probability, is from its mean, the entropy.

    Source: Meister et al. 2022, "Locally Typical Sampling".
    """
    shares, total = weights(logits)
    possible = np.flatnonzero(shares)
    shares = shares[possible] / total
    information = -np.log(shares)
    entropy = float((shares * information).sum(dtype=np.float64))
    order = np.argsort(np.abs(information - entropy), kind="stable")
    sums = np.cumsum(shares[order], dtype=np.float64)
    return np.sort(possible[order[: int(np.searchsorted(sums, p)) + 1]])


def keep_min_p(logits: Logits, p: float) -> NDArray[np.intp]:
    """Returns the ascending indices of the tokens at least p times as likely as the likeliest.

    Source: Nguyen et al. 2024, "Turning Up the Heat: Min-p Sampling".
    """
    return np.flatnonzero(logits >= logits.max() + math.log(p))


def weights(logits: Logits, temperature: float = 1.0) -> tuple[NDArray[np.floating[Any]], float]:
    """Returns what softmax(logits / temperature) is proportional to, 1 for the largest, and the sum, in float64.

    Of many tokens in float32, whose exponentials take a tenth of the time: relative errors of 1e-7 say nothing of what
    is drawn. Any temperature above 0 will do.
    """
    exact = logits.size <= _FEW or not _COLD <= temperature <= _HOT
    with np.errstate(over="ignore"):  # a tiny temperature sends all but the largest to -inf, as it should
        shifted = logits.astype(np.float64 if exact else np.float32)
        shifted -= shifted.max()
        if temperature != 1:
            shifted /= temperature
        np.exp(shifted, out=shifted)
    return shifted, float(shifted.sum(dtype=np.float64))


def draw(logits: Logits, temperature: float, rng: np.random.Generator) -> int:
    """Returns an index drawn with the probabilities softmax(logits / temperature), using one number of `rng`."""
    shares, _ = weights(logits, temperature)
    sums = np.cumsum(np.add.reduceat(shares, np.arange(0, shares.size, _BLOCK), dtype=np.float64))
    wanted = rng.random() * sums[-1]
    block = int(np.searchsorted(sums, wanted, side="right"))
    inside = shares[block * _BLOCK : (block + 1) * _BLOCK]
    rest = wanted - (sums[block - 1] if block else 0.0)
    place = int(np.searchsorted(np.cumsum(inside, dtype=np.float64), rest, side="right"))
    if place == inside.size:  # the sum of the block was rounded up
        place = int(np.flatnonzero(inside)[-1])
    return block * _BLOCK + place


def log_softmax(logits: Logits) -> NDArray[np.float64]:
    """Returns the logarithms of the probabilities of all tokens, in float64."""
    return logits.astype(np.float64) - (float(logits.max()) + math.log(weights(logits)[1]))


def likeliest(logits: Logits, count: int) -> NDArray[np.intp]:
    """Returns the tokens of the `count` largest logits, the largest first; of equal ones, those that come first."""
    kept = keep_top_k(logits, count) if count else np.empty(0, np.intp)
    return kept[np.argsort(-logits[kept], kind="stable")]
