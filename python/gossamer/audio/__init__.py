"""Speech: audio files to log-mel features, and Whisper's rules from features to text with times."""

from __future__ import annotations
