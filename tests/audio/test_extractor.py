"""What the files beside a speech model ask of features: others than those that are computed are refused by name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gossamer.audio.extractor import check_extractor
from gossamer.audio.features import FRAMES, RATE, SECONDS, log_mel
from gossamer.checkpoints import open_checkpoint
from gossamer.errors import GossamerError

transformers = pytest.importorskip("transformers", reason="extracts the other ones")

BINS = 80
OLDER, NESTED = "preprocessor_config.json", "processor_config.json"


def check(folder: Path, **change: Any) -> list[str]:
    """Checks what an extractor of transformers writes of itself, with some keys changed."""
    said = transformers.WhisperFeatureExtractor(feature_size=BINS).to_dict() | change
    (folder / OLDER).write_text(json.dumps({key: value for key, value in said.items() if key != "mel_filters"}))
    return check_extractor(folder, BINS, FRAMES)


@pytest.mark.parametrize(
    "change",
    [
        {"hop_length": 80},
        {"n_fft": 512},
        {"padding_value": 0.5},
        {"padding_side": "left"},
        {"chunk_length": 15},
        {"feature_size": 128},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_features_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    samples = np.sin(np.arange(2 * RATE) * 0.1).astype(np.float32)
    own = log_mel(samples, BINS)
    made = transformers.WhisperFeatureExtractor(**{"feature_size": BINS, **change})
    others = np.asarray(made(samples, sampling_rate=RATE)["input_features"][0])
    assert others.shape != own.shape or np.abs(others - own).max() > 0.1
    ((key, value),) = change.items()
    line = f"{tmp_path / OLDER}: {key} {value!r} is not supported; the model is given "
    with pytest.raises(GossamerError, match=f"^{re.escape(line)}"):
        check(tmp_path, **change)


@pytest.mark.parametrize("change", [{"sampling_rate": 8000}, {"feature_extractor_type": "Wav2Vec2FeatureExtractor"}])
def test_other_rates_and_extractors_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(GossamerError, match=next(iter(change))):
        check(tmp_path, **change)


def test_what_changes_nothing_is_fine(tmp_path: Path) -> None:
    assert check_extractor(tmp_path, BINS, FRAMES) == []
    assert check(tmp_path) == []
    assert check(tmp_path, padding_value=0, return_attention_mask=True, nb_max_frames=SECONDS * 100, dither=None) == []
    assert check(tmp_path, dither=0.001) == [
        f"{tmp_path / OLDER}: dither 0.001 is left out: no noise is added to sound"
    ]


def test_of_two_files_the_newer_counts(tmp_path: Path) -> None:
    assert check(tmp_path) == []
    (tmp_path / NESTED).write_text(json.dumps({"feature_extractor": {"hop_length": 80}}))
    with pytest.raises(GossamerError, match=re.escape(f"{tmp_path / NESTED}: hop_length 80 is not supported")):
        check(tmp_path)
    (tmp_path / NESTED).write_text(json.dumps({"processor_class": "WhisperProcessor"}))
    assert check(tmp_path) == []


def test_a_checkpoint_is_opened_with_it(tmp_path: Path) -> None:
    from pair_checks import made_whisper

    folder = made_whisper(tmp_path / "model")
    transformers.WhisperFeatureExtractor(feature_size=8).save_pretrained(folder)
    open_checkpoint(folder)
    transformers.WhisperFeatureExtractor(feature_size=8, hop_length=80).save_pretrained(folder)
    with pytest.raises(GossamerError, match="hop_length 80 is not supported"):
        open_checkpoint(folder)
