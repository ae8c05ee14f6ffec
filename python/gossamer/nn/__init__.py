"""Our own decoders in torch: training, sampling, GPU inference."""

from __future__ import annotations
