"""Transcripts as files: plain text, subtitles, JSON; written segment by segment, so that what is there stays."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

from .transcript import Heard, Segment, Word

FORMATS = ("txt", "srt", "vtt", "json")
_SHORTEST = 0.02  # seconds of a word's subtitle, one state of the encoder: its end has to come behind its begin
_REFERENCES = str.maketrans({"&": "&amp;", "<": "&lt;"})


class Writer:
    """Writes one transcript: `begin`, `add` for each segment, `end`; each gives the text that comes next."""

    def __init__(self, format: str, *, times: bool = False) -> None:
        """Chooses how.

        Args:
            format: One of `FORMATS`.
            times: Whether lines of plain text begin with their times.
        """
        self._format, self._times = format, times
        self._count = 0
        self._segments: list[dict[str, Any]] = []

    def begin(self) -> str:
        """Returns what stands before all segments."""
        return "WEBVTT\n\n" if self._format == "vtt" else ""

    def add(self, segment: Segment) -> str:
        """Returns a segment, which is final."""
        if self._format == "json":
            self._segments.append(asdict(segment))
            return ""
        if self._format == "txt":
            times = f"[{clock(segment.start)} --> {clock(segment.end)}] " if self._times else ""
            return f"{times}{segment.text.strip()}\n"
        if self._format == "vtt":
            segment = _escaped(segment)
        return "".join(self._cue(start, end, text) for start, end, text in cues(segment))

    def _cue(self, start: float, end: float, text: str) -> str:
        self._count += 1
        mark = "," if self._format == "srt" else "."
        number = f"{self._count}\n" if self._format == "srt" else ""
        return f"{number}{clock(start, mark)} --> {clock(end, mark)}\n{text}\n\n"

    def end(self, heard: Heard, **more: Any) -> str:
        """Returns what stands behind all segments: in JSON everything, as one document."""
        if self._format != "json":
            return ""
        text = "".join(segment["text"] for segment in self._segments).strip()
        document = {
            **more,
            "language": heard.language,
            "language_probability": round(heard.probability, 4),
            "seconds": round(heard.seconds, 2),
            "text": text,
            "segments": self._segments,
        }
        return json.dumps(document, indent=1) + "\n"


def _escaped(segment: Segment) -> Segment:
    """A segment whose letters are no tags and no references of WebVTT; SRT has no way to say so."""
    words = [replace(word, text=word.text.translate(_REFERENCES)) for word in segment.words]
    return replace(segment, text=segment.text.translate(_REFERENCES), words=words)


def cues(segment: Segment) -> list[tuple[float, float, str]]:
    """Returns the subtitles of a segment: one, or one a word with that word underlined where words have times."""
    if not segment.words:
        return [(segment.start, segment.end, _one_cue(segment.text))]
    return [
        (word.start, max(word.end, word.start + _SHORTEST), _marked(segment.words, at))
        for at, word in enumerate(segment.words)
    ]


def _marked(words: list[Word], at: int) -> str:
    def mark(number: int, text: str) -> str:
        bare = text.strip()
        return text.replace(bare, f"<u>{bare}</u>") if number == at and bare else text

    return _one_cue("".join(mark(number, word.text) for number, word in enumerate(words)))


def _one_cue(text: str) -> str:
    """A cue's text ends at an empty line, and must not hold an arrow."""
    return " ".join(text.split()).replace("-->", "->")


def clock(seconds: float, mark: str = ".") -> str:
    """Returns hours, minutes, seconds and thousandths, as 00:01:02.345."""
    thousandths = round(seconds * 1000)
    minutes, rest = divmod(thousandths, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{mark}{rest % 1000:03}"
