"""Texts as vectors, by an encoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .._core import CacheFull
from ..engine import Encoding
from ..errors import GossamerError
from ..kinds import check_flag
from ..text.messages import check_text
from ..text.pooling import Pooling
from .prompts import refuse_padding

if TYPE_CHECKING:
    from ..progress import Progress
    from .adapters import Chosen
    from .model import Model

_TOKENS = 8192  # whose states are there at once


def embed(
    model: Model,
    texts: Sequence[str],
    *,
    pool: str | None = None,
    normalize: bool | None = None,
    truncate: bool = False,
    adapters: Chosen = None,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Returns vectors of texts; `embed_tokens` of what `tokens_of` gives.

    Args:
        model: An encoder.
        texts: Any number.
        pool: As of `embed_tokens`.
        normalize: As of `embed_tokens`.
        truncate: Whether texts beyond the context, or the max_seq_length of the files beside the checkpoint, are cut;
            otherwise they are an error.
        adapters: As of `embed_tokens`.
        progress: As of `embed_tokens`.

    Returns:
        [texts, hidden].

    Raises:
        GossamerError: the model is no encoder, a text has no tokens or too many, `pool` is unknown, or there is no such
            adapter.
    """
    found = tokens_of(model, texts, truncate=truncate)
    return embed_tokens(model, found, pool=pool, normalize=normalize, adapters=adapters, progress=progress)


def tokens_of(model: Model, texts: Sequence[str], *, truncate: bool = False) -> list[NDArray[np.int32]]:
    """Returns the tokens of texts, as `embed` takes them; raises as it does."""
    check_flag("truncate", truncate)
    if isinstance(texts, str):
        raise GossamerError("texts must be a list of them, not one text")
    _check_encodes(model)
    own = Pooling.from_dict(model.info.get("pooling"))
    return [_tokens(model, own, number, text, truncate) for number, text in enumerate(texts)]


def embed_tokens(
    model: Model,
    texts: Sequence[NDArray[np.int32]],
    *,
    pool: str | None = None,
    normalize: bool | None = None,
    adapters: Chosen = None,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Returns vectors of texts whose tokens are there (Reimers and Gurevych 2019).

    Args:
        model: An encoder.
        texts: Tokens of each, as `tokens_of` gives them.
        pool: "mean" of the states of a text's tokens, or "cls", that of the first one; None takes what the files beside
            the checkpoint say, and "mean" where they say nothing.
        normalize: Whether vectors get length 1; None likewise, and yes.
        adapters: Names of loaded adapters, or weights by name; None takes what `Model.adapters` says.
        progress: Called with (texts done, texts, what).

    Returns:
        [texts, hidden]. A text's is bitwise the same in any company.

    Raises:
        GossamerError: the model is no encoder, `pool` is unknown, or there is no such adapter.
    """
    engine = _check_encodes(model)
    own = Pooling.from_dict(model.info.get("pooling"))
    chosen = Pooling(own.pool if pool is None else pool, own.normalize if normalize is None else normalize)
    mix = model.mix(adapters)
    found = np.zeros((len(texts), model.config.hidden), np.float32)
    for first, batch in _batches(texts):
        try:
            states = engine.encode(batch, adapters=mix)
        except CacheFull as error:
            raise GossamerError(f"texts {first + 1} to {first + len(batch)}: {error}") from None
        starts = np.concatenate([[0], np.cumsum([len(ids) for ids in batch])])
        for number, (start, end) in enumerate(pairwise(starts), first):
            mine = states[start:end]
            found[number] = mine.mean(0, dtype=np.float64) if chosen.pool == "mean" else mine[0]
        if progress is not None:
            progress(first + len(batch), len(texts), "embedding")
    if not np.isfinite(found).all():
        raise GossamerError("the model's states are not finite (NaN or infinity); its weights may be damaged")
    if chosen.normalize:
        found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return found


def _check_encodes(model: Model) -> Encoding:
    """Returns the engine of an encoder."""
    if model.config.head is not None or model.config.encoder is not None:
        raise GossamerError(f"{model.info.get('name', 'the model')} is no encoder: it gives no vectors of texts")
    if not isinstance(model.decoder, Encoding):
        raise GossamerError(f"vectors of texts are not supported on {model.device}")
    return model.decoder


def _tokens(model: Model, own: Pooling, number: int, text: str, truncate: bool) -> NDArray[np.int32]:
    if not isinstance(text, str):
        raise GossamerError(f"text {number + 1} must be a text, got {text!r:.80}")
    check_text(f"text {number + 1}", text)
    text = text.lower() if own.lower else text
    ids = model.tokenizer.encode(text)
    most = min(model.config.context, own.longest or model.config.context)
    if not ids:
        raise GossamerError(f"text {number + 1} has no tokens")
    if len(ids) > most:
        if not truncate:
            what = "the model's context holds" if most == model.config.context else "the files beside the model allow"
            raise GossamerError(f"text {number + 1} has {len(ids)} tokens, and {what} {most}")
        behind = min(_behind(ids, model.tokenizer.encode(text, special=False)), most)
        ids = ids[: most - behind] + ids[len(ids) - behind :]
    if max(ids) >= model.config.vocab:
        raise GossamerError(f"text {number + 1} holds token {max(ids)}, outside the vocabulary of {model.config.vocab}")
    refuse_padding(f"text {number + 1}", ids, model.config.embedding)
    return np.array(ids, np.int32)


def _behind(ids: list[int], own: list[int]) -> int:
    """Returns how many of a text's tokens are behind its own, as those that end it: they stay where it is cut."""
    lengths = range(len(ids) - len(own) + 1)
    return next((behind for behind in lengths if ids[len(ids) - behind - len(own) : len(ids) - behind] == own), 0)


def _batches(texts: Sequence[NDArray[np.int32]]) -> Iterator[tuple[int, list[NDArray[np.int32]]]]:
    """Gives the texts some at a time, with the number of the first."""
    first, tokens = 0, 0
    for number, ids in enumerate(texts):
        if number > first and tokens + len(ids) > _TOKENS:
            yield first, list(texts[first:number])
            first, tokens = number, 0
        tokens += len(ids)
    if first < len(texts):
        yield first, list(texts[first:])
