"""From what is asked of a model to the tokens of a prompt, and to the text that goes on from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..arch.spec import Sinusoids
from ..errors import GossamerError
from ..kinds import check_flag
from ..text.generation_config import unheeded
from ..text.messages import Message, Tool, check_text
from .scheduled import Task
from .sequence import Sequence as Text
from .stats import Stats
from .weight_streams import weight_bytes, weight_bytes_by_stream

if TYPE_CHECKING:
    from ..arch.spec import Embedding, Transformer
    from ..engine import Mix
    from .adapters import Chosen
    from .model import Model
    from .sampling_options import SamplingOptions

Prompt = str | Sequence[Message]


class TooLong(GossamerError):
    """A prompt has more tokens than there may be."""


def chats(model: Model, prompt: Prompt, chat: bool | None) -> bool:
    """Returns whether a prompt goes through the chat template.

    Raises:
        GossamerError: it has to, and there is none, or `chat` is no truth value.
    """
    check_flag("chat", chat, or_none=True)
    given: Any = prompt
    if not (
        isinstance(given, str)
        or (isinstance(given, Sequence) and all(isinstance(message, Mapping) for message in given[:1]))
    ):
        raise GossamerError(f"the prompt must be a text or a list of messages, got {prompt!r:.80}")
    if isinstance(prompt, str) and (chat is False or not (chat or model.tokenizer.has_chat_template)):
        return False
    if not isinstance(prompt, str) and chat is False:
        raise GossamerError("chat=False is for a text: messages go through the chat template")
    if not model.tokenizer.has_chat_template:
        raise GossamerError(f"{model.info.get('name', 'the model')} has no chat template")
    return True


def asked(
    model: Model, prompt: Prompt, chat: bool | None, shifts: bool = False
) -> tuple[list[int], NDArray[np.int32] | None]:
    """Returns the tokens that a text goes on from, and those of the input that it reads where there is an encoder.

    Args:
        model: The model.
        prompt: As for `Model.stream`.
        chat: As for `Model.stream`.
        shifts: As for `encode`.

    Raises:
        GossamerError: as `encode`, or nothing says what the decoder begins with.
    """
    encoder = model.config.encoder
    if encoder is None:
        return encode(model, prompt, chat, shifts=shifts), None
    if not isinstance(prompt, str):
        raise GossamerError(f"{model.info.get('name', 'the model')} has an encoder: it takes texts, and no messages")
    chats(model, prompt, chat)
    check_text("the prompt", prompt)
    ids = model.tokenizer.encode(prompt)
    _check_ids(ids, encoder)
    if isinstance(encoder.embedding.positions, Sinusoids):  # those that are learned are BART's, which count all tokens
        refuse_padding("the prompt", ids, encoder.embedding)
    return model.tokenizer.starts(), np.asarray(ids, np.int32)


def encode(
    model: Model, prompt: Prompt, chat: bool | None, tools: Sequence[Tool] = (), *, shifts: bool = False
) -> list[int]:
    """Returns the tokens of a prompt: at least one, at most as many as the context holds.

    Args:
        model: The model.
        prompt: As for `Model.stream`.
        chat: As for `Model.stream`.
        tools: Functions that the chat template tells the model of, in OpenAI's form.
        shifts: Whether a prompt may be longer, since tokens are dropped from it.

    Raises:
        TooLong: the prompt has more tokens than the context.
        GossamerError: it is empty, or the chat template does not take it.
    """
    check_head(model)
    if model.config.encoder is not None:
        raise GossamerError(f"{model.info.get('name', 'the model')} has an encoder: it writes about one text at a time")
    if isinstance(prompt, str):
        check_text("the prompt", prompt)
    if not chats(model, prompt, chat):
        ids = model.tokenizer.encode(str(prompt))
    else:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if len(messages) > model.config.context and not shifts:  # which takes long to find out otherwise
            raise TooLong(f"there are {len(messages)} messages, and the context holds {model.config.context} tokens")
        ids = model.tokenizer.chat(messages, tools=tools) if tools else model.tokenizer.chat(messages)
    _check_ids(ids, model.config, shifts)
    return ids


def _check_ids(ids: list[int], config: Transformer, shifts: bool = False) -> None:
    if not shifts or not ids:
        _check_length(config, len(ids))
    if max(ids) >= config.vocab:
        raise GossamerError(f"the prompt holds token {max(ids)}, outside the model's vocabulary of {config.vocab}")


def refuse_padding(what: str, ids: Sequence[int], embedding: Embedding) -> None:
    """Refuses a text with the padding token where positions begin behind its number.

    It has a position to itself there, and the tokens behind it are counted as if it were not there.

    Args:
        what: To call the text.
        ids: Its tokens.
        embedding: The way into the encoder, whose positions those are.
    """
    padding = embedding.positions.offset - 1 if embedding.positions else -1
    if padding in ids:
        raise GossamerError(f"{what} holds token {padding}, the padding token, which has no position among the others")


def _check_shift(config: Transformer, keep: int | None) -> None:
    if keep is None:
        return
    if config.encoder is not None:
        raise GossamerError("context_shift is for models without an encoder, whose texts end with what they read")
    if keep > (most := config.context // 2):
        raise GossamerError(f"context_shift must be at most {most}, half of the model's context, got {keep}")


def check_head(model: Model) -> None:
    """Raises `GossamerError` where a model writes no text."""
    if model.config.head is None:
        raise GossamerError(f"{model.info.get('name', 'the model')} is an encoder: it has no head, and writes no text")


def as_ids(tokens: Sequence[int] | NDArray[Any]) -> NDArray[np.int32]:
    """Returns token ids as the engine takes them.

    Raises:
        GossamerError: they are no whole numbers, or too large for any vocabulary.
    """
    ids = np.asarray(tokens)
    if ids.size and (ids.dtype.kind not in "iu" or not -(2**31) <= int(ids.min()) <= int(ids.max()) < 2**31):
        raise GossamerError(f"token ids must be whole numbers below 2^31, got {tokens!r:.80}")
    return ids.astype(np.int32)


def as_input(model: Model, reads: Sequence[int] | NDArray[Any] | None) -> NDArray[Any] | None:
    """Returns what an encoder reads as the engine takes it: token ids, or frames of sound as they are.

    Args:
        model: The model.
        reads: The input; None for a model without an encoder.

    Raises:
        GossamerError: as `as_ids`, or there is an encoder and no input, or the other way round.
    """
    encoder = model.config.encoder
    if (encoder is None) != (reads is None):
        what = "has no encoder, and reads nothing" if encoder is None else "has an encoder: it reads an input"
        raise GossamerError(f"{model.info.get('name', 'the model')} {what}")
    if encoder is None or reads is None:
        return None
    return np.asarray(reads) if encoder.embedding.mel is not None else as_ids(reads)


def check_length(model: Model, tokens: int) -> None:
    """Raises `GossamerError` where a prompt of so many tokens is empty, `TooLong` where the context is shorter."""
    _check_length(model.config, tokens)


def _check_length(config: Transformer, tokens: int) -> None:
    if tokens == 0:
        raise GossamerError("the prompt is empty")
    if tokens > config.context:
        raise TooLong(f"the prompt has {tokens} tokens, and the model's context holds {config.context}")


def text_after(
    model: Model,
    prompt: Sequence[int],
    options: SamplingOptions,
    draw: int = 0,
    begins: bool = True,
    mix: Mix = (),
    *,
    special: bool = False,
) -> Text:
    """Returns the state of a text that comes after a prompt.

    Args:
        model: The model.
        prompt: The prompt's tokens.
        options: All options.
        draw: Texts of the same options but another number are drawn with other random numbers.
        begins: Whether the text begins with what is written, and does not go on with the prompt's.
        mix: The adapters.
        special: Whether special tokens are part of the text.

    Raises:
        GossamerError: an option is not for this model.
    """
    if (most := max((token for token, _ in options.logit_bias), default=0)) >= model.config.vocab:
        raise GossamerError(
            f"logit_bias: token {most} is outside the model's vocabulary of {model.config.vocab} tokens"
        )
    if (most := max((token for word in options.bad_words for token in word), default=0)) >= model.config.vocab:
        raise GossamerError(f"bad_words: token {most} is outside the model's vocabulary of {model.config.vocab} tokens")
    _check_shift(model.config, options.context_shift)
    stats = Stats(len(prompt), weight_bytes(model, mix), device=model.device, sampling=options)
    stats.weight_streams = weight_bytes_by_stream(model, mix)
    stats.unheeded = tuple(unheeded(model.tokenizer.generation, model.config.context))
    return Text(
        prompt,
        model.tokenizer,
        stats,
        context=model.config.context,
        # What steps a model may be somebody else's, that does not tell.
        kv_bytes_read=getattr(model.decoder, "kv_bytes_read", lambda _: 0),
        draw=draw,
        begins=begins,
        special=special,
        constraint=model._grammars.constraint(options),
    )


def task(
    model: Model,
    prompt: Sequence[int],
    options: SamplingOptions,
    draw: int = 0,
    begins: bool = True,
    adapters: Chosen = None,
    *,
    special: bool = False,
    cancel: Callable[[], bool] | None = None,
    reads: NDArray[np.int32] | None = None,
) -> Task:
    """Returns a text that comes after a prompt, for a scheduler of the model's engine.

    Args:
        model: The model.
        prompt: As of `text_after`.
        options: As of `text_after`.
        draw: As of `text_after`.
        begins: As of `text_after`.
        adapters: As for `Model.stream`.
        special: As of `text_after`.
        cancel: As for `Model.stream`.
        reads: Tokens of the input that it reads by way of an encoder.

    Raises:
        GossamerError: as `text_after`, or there is no such adapter.
    """
    mix = model.mix(adapters)
    text = text_after(model, prompt, options, draw, begins, mix, special=special)
    return Task(text, model._new_sequence(mix, reads), cancelled=cancel)
