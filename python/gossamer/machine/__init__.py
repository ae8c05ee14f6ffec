"""What this machine can do: bandwidth, rates of kernels, memory."""

from __future__ import annotations
