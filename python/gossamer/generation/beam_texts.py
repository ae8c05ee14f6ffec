"""Texts of a model by beam search: what its options say, over sequences of its engine."""

from __future__ import annotations

import time
from collections import abc
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from .._core import CacheFull
from ..errors import GossamerError
from .beams import Adjust, BeamOptions, Hypothesis, Stops, beam_search
from .sampling import Logits, changes, log_softmax

if TYPE_CHECKING:
    from .completion import Completion
    from .held import Held
    from .model import Model
    from .sequence import Sequence


def beam_text(model: Model, held: Held, text: Sequence, cancel: Callable[[], bool] | None = None) -> str:
    """Writes the best text; `held` ends up with the prompt.

    Args:
        model: The model.
        held: Holds a beginning of the prompt, short of its last token, or nothing.
        text: Nothing but its prompt.
        cancel: As of `beam_search`.

    Raises:
        GossamerError: logits are not finite, or the beams do not fit into the cache.
    """
    return _search(model, held, [text], cancel)[0]


def beam_completions(
    model: Model, held: Held, texts: list[Sequence], cancel: Callable[[], bool] | None = None
) -> list[Completion]:
    """Returns the best texts, as many as there are to be filled or fewer; otherwise as `beam_text`."""
    written = _search(model, held, texts, cancel)
    return [text.completion(piece) for text, piece in zip(texts, written, strict=False)]


def _search(model: Model, held: Held, texts: list[Sequence], cancel: Callable[[], bool] | None) -> list[str]:
    first, engine = texts[0], model.decoder
    prompt, sampling = list(first.tokens), first.stats.sampling
    if len(texts) > sampling.beams:
        raise GossamerError(f"{sampling.beams} beams have no more than {sampling.beams} texts, and not {len(texts)}")
    most = min(sampling.max_new_tokens, model.config.context - len(prompt) + 1)
    options = BeamOptions(
        sampling.beams,
        most,
        model.tokenizer.eos_ids,
        sampling.length_penalty,
        sampling.early_stopping,
        before=len(prompt) - 1 if model.config.encoder is not None else 0,  # as a language's token
    )
    start = time.perf_counter()
    try:
        sequence, before = held.prepare(), prompt[len(held.tokens) : -1]
        if before:
            engine.step([(sequence, np.array(before, np.int32))])
            held.tokens += before
        began = time.perf_counter()
        found = beam_search(
            engine,
            sequence,
            prompt[-1:],
            options,
            ids=model._ids,
            adjust=_adjust(first),
            stops=_stops(model, sampling.stop),
            cancelled=cancel,
        )
        held.tokens += prompt[-1:]
    except CacheFull as error:
        raise GossamerError(f"{sampling.beams} beams of the text do not fit: {error}") from None
    seconds = began - start, time.perf_counter() - began
    return [_written(text, one, seconds) for text, one in zip(texts, found, strict=False)]


def _written(text: Sequence, found: Hypothesis, seconds: tuple[float, float]) -> str:
    """Has a text be what was found; returns its letters, up to a stop string."""
    pieces = []
    for token in found.tokens:
        pieces.append(text.take(token))
        if text.finish:
            break
    pieces.append(text.close())
    text.stats.prefill_seconds, text.stats.decode_seconds = seconds
    return "".join(pieces)


def _adjust(text: Sequence) -> Adjust | None:
    """Biases and penalties, which `transformers` applies to log-probabilities, too."""
    prompt, sampling = list(text.tokens), text.stats.sampling
    steps = changes(sampling, len(prompt))
    if not steps:
        return None

    def adjust(row: Logits, new: abc.Sequence[int]) -> Logits:
        for step in steps:
            row = step(row, [*prompt, *new])
        return log_softmax(row).astype(np.float32) if sampling.renormalize else row

    return adjust


def _stops(model: Model, stops: abc.Sequence[str]) -> Stops | None:
    """Has a text end that a stop string is in, as it ends at a token: it is not scored by what would follow."""
    if not stops:
        return None

    def stopped(new: abc.Sequence[int]) -> bool:
        text = model.tokenizer.decode(list(new))
        return any(stop in text for stop in stops)

    return stopped
