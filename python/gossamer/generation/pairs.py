"""Samples as a decoder that reads an encoder has them: what it reads, and what it is to write about that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..audio.features import FRAMES, RATE, SAMPLES, SECONDS, log_mel
from ..audio.reading import open_sound
from ..audio.tokens import SpeechTokens
from ..errors import GossamerError
from ..text.tasks import TaskSample, encode_prompt, ended

if TYPE_CHECKING:
    from ..arch.spec import Transformer
    from ..text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Pair:
    """A sample.

    Attributes:
        where: File and line, for messages.
        source: Tokens of what is read; of sound the file.
        begins: Tokens that the decoder begins with.
        target: Tokens that it is to write, the end token with them.
        bins: Of a frame of sound; 0 where text is read.
    """

    where: str
    source: NDArray[np.int32] | Path
    begins: tuple[int, ...]
    target: tuple[int, ...]
    bins: int = 0

    @property
    def inputs(self) -> NDArray[np.int32]:
        """Tokens that the decoder gets: from the last of `begins` on, each predicts the next of `target`."""
        return np.array([*self.begins, *self.target[:-1]], np.int32)

    def read(self) -> NDArray[Any]:
        """Returns what the encoder gets: tokens, or frames [frames, bins].

        Raises:
            GossamerError: a file of sound is none, or longer than a window.
        """
        if not isinstance(self.source, Path):
            return self.source
        try:
            with open_sound(self.source) as sound:
                samples = sound.window(0, SAMPLES + 1)
        except GossamerError as error:
            raise GossamerError(f"{self.where}: {error}") from None
        if len(samples) > SAMPLES:
            raise GossamerError(f"{self.where}: {self.source}: is longer than a window of {SECONDS} seconds")
        if len(samples) < RATE // 10:
            raise GossamerError(f"{self.where}: {self.source}: is shorter than a tenth of a second")
        return np.ascontiguousarray(log_mel(samples, self.bins).T)


def pairing(tokenizer: Tokenizer, model: Transformer) -> Callable[[TaskSample], Pair]:
    """Returns what makes pairs of samples for a model.

    Args:
        tokenizer: Of the model.
        model: Its description: a decoder that reads an encoder.

    Raises:
        GossamerError: nothing says what the decoder begins with; what is returned raises it where a sample does not fit
            the model, naming file and line.
    """
    assert model.encoder is not None
    mel = model.encoder.embedding.mel
    return partial(_heard, tokenizer, model) if mel else partial(_read, tokenizer, model, tuple(tokenizer.starts()))


def _read(tokenizer: Tokenizer, model: Transformer, starts: tuple[int, ...], sample: TaskSample) -> Pair:
    if sample.chats:
        raise GossamerError(f"{sample.where}: has messages, and a model with an encoder reads texts")
    source = np.array(encode_prompt(sample, tokenizer), np.int32)
    try:
        target = tuple(ended(tokenizer.encode(sample.completion, special=False), tokenizer.eos_ids))
    except GossamerError as error:
        raise GossamerError(f"{sample.where}: {error}") from None
    return _checked(model, Pair(sample.where, source, starts, target))


def _heard(tokenizer: Tokenizer, model: Transformer, sample: TaskSample) -> Pair:
    assert model.encoder is not None
    assert model.encoder.embedding.mel is not None
    if sample.audio is None:
        raise GossamerError(f"{sample.where}: has no audio, and the model reads sound")
    if model.encoder.context * 2 != FRAMES:
        raise GossamerError(f"the model hears {model.encoder.context * 2} frames at once; {FRAMES} are supported")
    try:
        speech = SpeechTokens.of(tokenizer, model.vocab)
        begins = speech.prompt(sample.language, "transcribe", timed=False)
        target = tuple(ended(tokenizer.encode(" " + sample.completion.strip(), special=False), [speech.end]))
    except GossamerError as error:
        raise GossamerError(f"{sample.where}: {error}") from None
    return _checked(model, Pair(sample.where, sample.audio, tuple(begins), target, model.encoder.embedding.mel.bins))


def _checked(model: Transformer, pair: Pair) -> Pair:
    assert model.encoder is not None
    sides = [("the target", pair.inputs, model)]
    if not isinstance(pair.source, Path):
        sides.append(("the source", pair.source, model.encoder))
    for what, tokens, side in sides:
        if not 0 < len(tokens) <= side.context:
            raise GossamerError(
                f"{pair.where}: {what} has {len(tokens)} tokens, and the model holds 1 to {side.context}"
            )
        if tokens.max() >= side.vocab:
            raise GossamerError(
                f"{pair.where}: {what} has token {tokens.max()}, outside the model's vocabulary of {side.vocab}"
            )
    return pair
