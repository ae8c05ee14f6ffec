"""Whisper: an encoder of spectra, and a decoder that writes what is said in them."""

from __future__ import annotations

from typing import Any

from ..errors import GossamerError
from . import pairs
from .fields import flag, integer, words
from .pairs import KEYS, PREFIX, QVO, defaults, learned, pair, placed, plain, scale
from .relatives import no_biases as biases
from .sources import Source
from .spec import Embedding, Learned, Mel, Transformer

__all__ = ["PREFIX", "biases", "describe", "sources", "unread"]

_KEYS = KEYS | words(
    """
    apply_spec_augment classifier_proj_size mask_feature_length mask_feature_min_masks mask_feature_prob
    mask_time_length mask_time_min_masks mask_time_prob max_source_positions max_target_positions median_filter_width
    num_mel_bins
    """
)
_DEFAULTS = defaults(
    4, 6, 1536, vocab_size=51865, d_model=384, max_source_positions=1500, max_target_positions=448, num_mel_bins=80
)


def describe(config: dict[str, Any]) -> Transformer:
    """Maps config.json; see `gossamer.arch.Family`."""
    unread(config)
    config = plain(config, _DEFAULTS)
    if flag(config, "final_logits_bias"):
        raise GossamerError("final_logits_bias is not supported")
    heard, written = integer(config, "max_source_positions"), integer(config, "max_target_positions")
    encoder = Embedding(Learned(heard), mel=Mel(integer(config, "num_mel_bins")))
    if scale(config) != 1:
        raise GossamerError("scale_embedding true is not supported")
    return pair(config, encoder, learned(config, written, 0), (heard, written), before=True, biases=QVO)


def unread(config: dict[str, Any]) -> list[str]:
    """Looks through the keys; see `gossamer.arch.Family`."""
    smoothed = config.get("median_filter_width") in (None, 7)  # what times of words are found with
    return [*pairs.unread(config, _KEYS), *([] if smoothed else ["median_filter_width"])]


def sources(config: dict[str, Any]) -> dict[str, Source]:
    """Lists the tensors; see `gossamer.arch.Family`."""
    return placed(plain(config, _DEFAULTS), describe(config), "model.decoder.embed_tokens", "proj_out")
