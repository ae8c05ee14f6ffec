"""Speech: audio files to log-mel features, the tokens and options of transcripts, and transcripts as files."""

from __future__ import annotations
