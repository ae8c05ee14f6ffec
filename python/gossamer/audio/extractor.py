"""What the files beside a speech model say of the features that it reads, which are computed in one way alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import GossamerError
from ..files import read_json
from .features import HOP, RATE, WIDTH

_NESTED = ("processor_config.json", "feature_extractor")  # file and key, before which the older file does not count
_OLDER = "preprocessor_config.json"
_KIND = "feature_extractor_type"
_FIXED: dict[str, Any] = {
    _KIND: "WhisperFeatureExtractor",
    "sampling_rate": RATE,
    "hop_length": HOP,
    "n_fft": WIDTH,
    "padding_value": 0,
    "padding_side": "right",
}


def check_extractor(folder: Path, bins: int, frames: int) -> list[str]:
    """Holds what is said of features against what `gossamer.audio.features` computes, as of transformers' Whisper.

    Args:
        folder: The checkpoint's.
        bins: Mel bands that the model reads.
        frames: Frames that it hears at once.

    Returns:
        What is asked for and not done, though any model does without: notes.

    Raises:
        GossamerError: other features are asked for, or a file cannot be read; the line names file and key.
    """
    path, said = _said(folder)
    if said is None:
        return []
    seconds = frames * HOP / RATE
    for key, own in {**_FIXED, "feature_size": bins, "chunk_length": seconds}.items():
        if (value := said.get(key)) is not None and (isinstance(value, bool) or value != own):
            fits = f"{own:g}" if isinstance(own, (int, float)) else own
            raise GossamerError(f"{path}: {key} {value!r:.80} is not supported; the model is given {fits}")
    if dither := said.get("dither"):
        return [f"{path}: dither {dither!r:.40} is left out: no noise is added to sound"]
    return []


def _said(folder: Path) -> tuple[Path, dict[str, Any] | None]:
    """The file that tells, and what it tells; None where none does."""
    path = folder / _NESTED[0]
    nested = read_json(path).get(_NESTED[1]) if path.is_file() else None
    if nested is not None:
        if not isinstance(nested, dict):
            raise GossamerError(f"{path}: {_NESTED[1]} must be an object, got {nested!r:.80}")
        return path, nested
    path = folder / _OLDER
    return path, read_json(path) if path.is_file() else None
