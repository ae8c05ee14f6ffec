"""What a transcript is made of: words, segments, and what was found out about the sound."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Word:
    """A word, with the blank before it, and when it is said, in seconds; the probability is the mean of its tokens'."""

    start: float
    end: float
    text: str
    probability: float


@dataclass(frozen=True)
class Segment:
    """A piece of a transcript.

    Attributes:
        start: In seconds.
        end: In seconds.
        text: What is said, with the blank before it.
        tokens: Of the text, timestamps included.
        log_probability: Mean of a token's in the window.
        no_speech: Probability that nobody speaks in the window.
        temperature: That the window was drawn at.
        compression: How well the window's text compresses.
        words: With their times, where they were asked for.
    """

    start: float
    end: float
    text: str
    tokens: list[int]
    log_probability: float
    no_speech: float
    temperature: float
    compression: float
    words: list[Word] = field(default_factory=list)


@dataclass
class Heard:
    """What a transcript turned out to be of.

    Attributes:
        language: Code.
        probability: Of the language; 1 where it was given.
        seconds: How long the sound is, once it has been heard.
    """

    language: str = ""
    probability: float = 1.0
    seconds: float = 0.0


@dataclass
class Transcript:
    """What was said.

    Attributes:
        segments: Pieces with their times.
        heard: Language and length.
    """

    segments: list[Segment]
    heard: Heard

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(segment.text for segment in self.segments).strip()
