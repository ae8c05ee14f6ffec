"""What a transcript may be asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..errors import GossamerError
from ..kinds import check_kind, check_kinds

TASKS = ("transcribe", "translate")


@dataclass(frozen=True)
class SpeechOptions:
    """How speech becomes text. Thresholds are those that Whisper was published with.

    Attributes:
        language: Code or English name of what is spoken; None listens for it.
        task: "transcribe", or "translate", to English.
        timestamps: Whether segments have times of their own; otherwise each is a window of 30 seconds.
        words: Whether each word has times.
        beams: Texts that are written side by side; 1 takes the likeliest token.
        tries: Texts that are drawn where a temperature is above 0.
        temperatures: Tried one after the other until a text is neither repetitive nor unlikely.
        compression: A text is repetitive that compresses by more than this.
        log_probability: A text is unlikely with a lower mean log-probability of a token.
        no_speech: Nobody speaks where the model says so with more than this probability, and the text is unlikely.
        previous: Whether a window is told the text before it.
        prompt: Text that the first window is told: names, spelling, style.
        seed: Of draws.
    """

    language: str | None = None
    task: str = "transcribe"
    timestamps: bool = True
    words: bool = False
    beams: int = 5
    tries: int = 5
    temperatures: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    compression: float = 2.4
    log_probability: float = -1.0
    no_speech: float = 0.6
    previous: bool = True
    prompt: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        check_kinds(self)
        for name, low, high in (("beams", 1, 64), ("tries", 1, 64), ("seed", 0, 1 << 63)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise GossamerError(f"{name} must be a whole number from {low} to {high}, got {value!r:.80}")
        if self.task not in TASKS:
            raise GossamerError(f"task must be one of {', '.join(TASKS)}, got {self.task!r:.80}")
        given: Any = self.temperatures
        if not isinstance(given, (list, tuple)) or not given:
            raise GossamerError(f"temperatures must be numbers, at least one, got {given!r:.80}")
        for one in given:
            check_kind("a temperature", one, "float")
            if not 0 <= one < math.inf:
                raise GossamerError(f"a temperature must be finite and at least 0, got {one}")
        object.__setattr__(self, "temperatures", tuple(map(float, given)))
        for name in ("compression", "log_probability", "no_speech"):
            if math.isnan(getattr(self, name)):
                raise GossamerError(f"{name} must be a number")
        if self.words and not self.timestamps:
            raise GossamerError("words have times where segments do: timestamps must be true")
