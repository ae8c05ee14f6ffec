"""`Model.transcribe`: speech to text with a model of the Whisper family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...arch.spec import Attention
from ...audio.features import FRAMES
from ...audio.options import SpeechOptions
from ...audio.reading import Source
from ...audio.tokens import SpeechTokens
from ...audio.transcript import Heard, Transcript
from ...engine import Reading
from ...errors import GossamerError
from ..sampling_options import refuse_others
from .transcribe import Segments, Transcriber

if TYPE_CHECKING:
    from ...progress import Progress
    from ..model import Model


def transcriber(model: Model, *, words: bool = False) -> Transcriber:
    """Returns what transcribes with a model.

    Args:
        model: The model.
        words: Whether words are to be timed; distilled models may name heads of their teacher's for that.

    Raises:
        GossamerError: it is no speech model, or has not the heads that it names.
    """
    name = model.info.get("name", "the model")
    mel = model.config.encoder.embedding.mel if model.config.encoder is not None else None
    if mel is None or model.config.encoder is None or not isinstance(model.decoder, Reading):
        raise GossamerError(f"{name} is no speech model: it has no encoder that reads sound")
    if model.mix():
        raise GossamerError(f"{name}: speech is heard without adapters, and some are set: `Model.adapters.set({{}})`")
    if model.config.encoder.context * 2 != FRAMES:
        heard = model.config.encoder.context * 2
        raise GossamerError(f"{name} hears {heard} frames at once; {FRAMES}, 30 seconds, are supported")
    try:
        tokens = SpeechTokens.of(model.tokenizer, model.config.vocab)
    except GossamerError as error:
        raise GossamerError(f"{name}: {error}") from None
    return Transcriber(
        model.decoder,
        model.tokenizer,
        tokens,
        bins=mel.bins,
        context=model.config.context,
        ids=model._ids,
        look=_Looking(model, tokens.heads) if words and tokens.heads else None,
    )


class _Looking:
    """Attention of some heads of the decoder to the sound; see `gossamer.generation.speech.timing.Look`."""

    def __init__(self, model: Model, heads: Sequence[tuple[int, int]]) -> None:
        self._model = model
        self._heads: dict[int, list[int]] = {}
        for layer, head in heads:
            if layer >= model.config.layers or head >= self._attention(layer).heads:
                name = model.info.get("name", "the model")
                raise GossamerError(f"{name}: alignment_heads: there is no head {head} of layer {layer}")
            self._heads.setdefault(layer, []).append(head)

    def _attention(self, layer: int) -> Attention:
        stack = self._model.config.stack
        mixers = (branch.mixer for branch in stack.kinds[stack.layers[layer]].branches)
        return next(one for one in mixers if isinstance(one, Attention) and one.reads == "memory")

    def __call__(
        self, features: NDArray[np.float32], tokens: list[int]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        engine: Any = self._model.decoder
        memory = engine.encode([np.ascontiguousarray(features.T)])
        hidden = engine.embed(np.asarray(tokens, np.int32))
        scores = []
        for layer in range(self._model.config.layers):
            wanted = ("cross_q",) if layer in self._heads else ()
            hidden, inputs = engine.forward_block(layer, hidden, wanted, 0, memory)
            if wanted:
                scores.append(self._scores(layer, inputs["cross_q"], memory))
        logits = engine.head(hidden[:-1])
        logits -= logits.max(axis=1, keepdims=True)
        chances = np.exp(logits[np.arange(len(logits)), tokens[1:]]) / np.exp(logits).sum(axis=1)
        return np.concatenate(scores), chances

    def _scores(self, layer: int, inputs: NDArray[np.float32], memory: NDArray[np.float32]) -> NDArray[np.float32]:
        """Products of queries and keys, [heads, tokens, states]."""
        attention, width = self._attention(layer), self._attention(layer).head_dim
        sides = []
        for side, states in (("cross_q", inputs), ("cross_k", memory)):
            name = f"layers.{layer}.{side}"
            matrix = self._model.weights[name].unpack()
            bias = self._model.vectors.get(f"{name}.bias")
            rows = [slice(head * width, (head + 1) * width) for head in self._heads[layer]]
            sides.append([states @ matrix[row].T + (bias[row] if bias is not None else 0) for row in rows])
        products = [query @ key.T for query, key in zip(*sides, strict=True)]
        found: NDArray[np.float32] = np.stack(products).astype(np.float32) * np.float32(attention.scale)
        return found


def segments(
    model: Model, audio: Source, heard: Heard | None = None, progress: Progress | None = None, **options: Any
) -> Segments:
    """Gives segments one by one; see `Model.transcribe`."""
    chosen = speech_options(options)
    return transcriber(model, words=chosen.words).segments(audio, chosen, heard, progress)


def transcribe(
    model: Model,
    audio: Source,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
    **options: Any,
) -> Transcript:
    """See `Model.transcribe`."""
    found = Transcript([], Heard())
    for segment in segments(model, audio, found.heard, progress, **options):
        found.segments.append(segment)
        if cancel is not None and cancel():
            break
    return found


def speech_options(options: dict[str, Any]) -> SpeechOptions:
    """Returns options by their names.

    Raises:
        GossamerError: a value is out of range.
        TypeError: there is no such option.
    """
    refuse_others(options, [field.name for field in fields(SpeechOptions)])
    return SpeechOptions(**options)
