"""Gemma 4 as it is published, with pictures and sound: the text of it, which lies beside their towers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..errors import GossamerError
from . import gemma4_text, keys
from .fields import words
from .gemma4_text import PREFIX, biases
from .sources import Source
from .spec import Transformer

__all__ = ["BESIDE", "PREFIX", "biases", "describe", "sources", "unread"]

BESIDE = ("model.vision_tower.", "model.embed_vision.", "model.audio_tower.", "model.embed_audio.")
"""What the names of tensors of other parts begin with."""
_KEYS = words(
    """
    audio_config audio_token_id boa_token_id boi_token_id eoa_token_id eoa_token_index eoi_token_id image_token_id
    text_config tie_word_embeddings video_token_id vision_config vision_soft_tokens_per_image
    """
)


def describe(config: dict[str, Any]) -> Transformer:
    """Maps config.json; see `gossamer.arch.Family`."""
    unread(config)
    return gemma4_text.describe(_text(config))


def unread(config: dict[str, Any]) -> list[str]:
    """Looks through the keys; see `gossamer.arch.Family`."""
    return [*keys.unread(config, _KEYS), *(f"text_config.{key}" for key in gemma4_text.unread(_text(config)))]


def sources(config: dict[str, Any]) -> dict[str, Source]:
    """Lists the tensors; see `gossamer.arch.Family`."""
    inside = f"{PREFIX}language_model."
    return {
        name: replace(source, tensor=inside + source.tensor.removeprefix(PREFIX))
        if source.tensor.startswith(PREFIX)
        else source
        for name, source in gemma4_text.sources(_text(config)).items()
    }


def _text(config: dict[str, Any]) -> dict[str, Any]:
    """The config of the text; whether the head is the embedding is said of the whole."""
    text = config.get("text_config")
    if not isinstance(text, dict):
        raise GossamerError(f"text_config must be an object, got {text!r:.80}")
    tied = config.get("tie_word_embeddings")
    return text if tied is None else {**text, "tie_word_embeddings": tied}
