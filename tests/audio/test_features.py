"""Log-mel features: those of transformers' extractor, for windows of any length."""

from __future__ import annotations

import numpy as np
import pytest

from gossamer.audio.features import FRAMES, RATE, SAMPLES, log_mel

transformers = pytest.importorskip("transformers", reason="extracts the other ones")


@pytest.mark.parametrize("bins", [80, 128])
@pytest.mark.parametrize("length", [1, 399, RATE, 7 * RATE + 77, SAMPLES - 130, SAMPLES])
def test_features_are_those_of_transformers(length: int, bins: int) -> None:
    random = np.random.default_rng(length)
    tone = np.sin(np.arange(length) * random.uniform(0.05, 0.5))
    samples = (0.3 * tone + 0.01 * random.standard_normal(length)).astype(np.float32)
    extractor = transformers.WhisperFeatureExtractor(feature_size=bins)
    expected = extractor(samples, sampling_rate=RATE)["input_features"][0]
    found = log_mel(samples, bins)
    assert found.dtype == np.float32
    assert found.shape == (bins, FRAMES)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_nothing_is_silence() -> None:
    assert np.ptp(log_mel(np.zeros(0, np.float32), 80)) == 0


@pytest.mark.parametrize("shape", [(SAMPLES + 1,), (2, 100)])
def test_more_than_a_window_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at most 480000"):
        log_mel(np.zeros(shape, np.float32), 80)
