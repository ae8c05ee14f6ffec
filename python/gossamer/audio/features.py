"""Log-mel features of speech, as Whisper reads them (Radford et al. 2022, section 2.2), by numpy alone."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

RATE = 16_000
"""Samples a second."""

HOP = 160
"""Samples from one frame to the next."""

WIDTH = 400
"""Samples that a frame sees, 25 ms."""

SECONDS = 30
"""What a window holds."""

SAMPLES = SECONDS * RATE
FRAMES = SAMPLES // HOP

Samples = NDArray[np.float32]

_DB = 8.0  # log10 of power that is kept below the loudest
_FLOOR = 1e-10
_LINEAR, _STEP = 1000.0, 27.0  # Slaney's scale: linear up to 1 kHz, then 27 bands for each factor of 6.4
_HERTZ = 200 / 3  # of a band where it is linear


def log_mel(samples: NDArray[np.float32], bins: int) -> NDArray[np.float32]:
    """Returns the features of one window.

    Args:
        samples: Mono, 16 kHz, at most 30 seconds; what is missing is silence.
        bins: Mel bands: 80, and 128 for large-v3 and its kin.

    Returns:
        float32 [bins, 3000], a frame each 10 ms.
    """
    if samples.ndim != 1 or len(samples) > SAMPLES:
        raise ValueError(f"a window is a vector of at most {SAMPLES} samples, got {list(samples.shape)}")
    # A frame is centred on its first sample: the window is mirrored at its ends.
    whole = np.zeros(SAMPLES, np.float32)
    whole[: len(samples)] = samples
    mirrored = np.pad(whole, WIDTH // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(mirrored, WIDTH)[::HOP][:FRAMES]
    heard = min(FRAMES, (len(samples) + WIDTH // 2) // HOP + 1)  # all behind it is silence, which needs no transform
    power = np.zeros((FRAMES, WIDTH // 2 + 1), np.float32)
    spectrum = np.fft.rfft(frames[:heard] * _hann())
    power[:heard] = np.square(spectrum.real) + np.square(spectrum.imag)
    values: NDArray[np.float32] = np.log10(np.maximum(mel_bank(bins) @ power.T, np.float32(_FLOOR)))
    np.maximum(values, values.max() - np.float32(_DB), out=values)
    values += np.float32(4)
    values /= np.float32(4)
    return values


@lru_cache(maxsize=1)
def _hann() -> NDArray[np.float64]:
    """The periodic window of Hann."""
    return np.asarray(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WIDTH) / WIDTH))


def _to_mel(hertz: NDArray[np.float64]) -> NDArray[np.float64]:
    above = _LINEAR / _HERTZ + np.log(np.maximum(hertz, _LINEAR) / _LINEAR) * _STEP / np.log(6.4)
    return np.where(hertz < _LINEAR, hertz / _HERTZ, above)


def _to_hertz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    edge = _LINEAR / _HERTZ
    above = _LINEAR * np.exp((np.maximum(mel, edge) - edge) * np.log(6.4) / _STEP)
    return np.where(mel < edge, mel * _HERTZ, above)


@lru_cache(maxsize=2)
def mel_bank(bins: int) -> NDArray[np.float32]:
    """Returns the filters [bins, 201]: triangles evenly spaced on Slaney's mel scale up to 8 kHz, of equal area."""
    edges = _to_hertz(np.linspace(0.0, _to_mel(np.array(RATE / 2)), bins + 2))
    at = np.linspace(0.0, RATE / 2, WIDTH // 2 + 1)
    rising = (at - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - at) / (edges[2:] - edges[1:-1])[:, None]
    area = (2.0 / (edges[2:] - edges[:-2]))[:, None]
    return np.asarray(np.maximum(0.0, np.minimum(rising, falling)) * area, np.float32)
