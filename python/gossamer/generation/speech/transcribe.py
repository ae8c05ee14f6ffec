"""Speech of any length to segments of text, window by window, as Whisper does it (Radford et al. 2022, section 4.5)."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

import numpy as np

from ...audio.features import FRAMES, HOP, RATE, SAMPLES, log_mel
from ...audio.options import SpeechOptions
from ...audio.reading import Sound, Source, open_sound
from ...audio.tokens import SECONDS, SpeechTokens
from ...audio.transcript import Heard, Segment
from ...errors import GossamerError
from ...progress import Progress
from .decoding import Decoded, Listener, Window, beam_search, compression_of, draw, fails, opened
from .rules import Rules
from .timing import Look, timed

if TYPE_CHECKING:
    from ...text.tokenizer import Tokenizer

_log = logging.getLogger("gossamer")

_FRAMES_A_TIME = round(SECONDS * RATE) // HOP
_FORGET = 0.5  # a text that was drawn hotter than this tells nothing to the window behind it


Segments = Generator[Segment, None, None]


class Transcriber:
    """A speech model and how it is used."""

    def __init__(
        self,
        engine: Listener,
        tokenizer: Tokenizer,
        tokens: SpeechTokens,
        *,
        bins: int,
        context: int,
        ids: Iterator[int],
        look: Look | None = None,
    ) -> None:
        """Takes what a model is made of.

        Args:
            engine: Its engine.
            tokenizer: Its tokenizer.
            tokens: The tokens that steer it.
            bins: Mel bands that it reads.
            context: Most tokens of a sequence.
            ids: Gives numbers of sequences that nobody else uses.
            look: What finds the times of words, where the model says which heads follow them.
        """
        self._engine, self._tokenizer, self._tokens = engine, tokenizer, tokens
        self._bins, self._context, self._look = bins, context, look
        self._ids = ids

    def segments(
        self, source: Source, options: SpeechOptions, heard: Heard | None = None, progress: Progress | None = None
    ) -> Segments:
        """Writes down what is said, segment by segment as it is known.

        Args:
            source: Sound; see `gossamer.audio.reading.Source`.
            options: How.
            heard: Is filled in.
            progress: Called with (seconds done, seconds, what).

        Raises:
            GossamerError: the source is no sound or breaks off, or the model does not know what is asked for.
        """
        if options.language is not None:
            self._tokens.check(options.language, options.task)
        if options.words and self._look is None:
            raise GossamerError("words cannot be timed: the model names no alignment_heads")
        with open_sound(source) as sound:
            yield from self._windows(sound, options, heard or Heard(), progress)

    def _windows(self, sound: Sound, options: SpeechOptions, heard: Heard, progress: Progress | None) -> Segments:
        rules = Rules(self._tokens, timed=options.timestamps)
        random = np.random.default_rng(options.seed)
        before = self._tokenizer.encode(f" {options.prompt.strip()}", special=False) if options.prompt.strip() else []
        if len(before) > (most := self._context // 2 - 1):
            _log.warning("prompt: has %s tokens, of which the last %s are told to the model", len(before), most)
        language = options.language or ("" if self._tokens.languages else "en")
        at = 0  # frames that are done
        while True:
            samples = sound.window(at * HOP, SAMPLES)
            heard.seconds = max(heard.seconds, sound.heard / RATE)
            frames = min(FRAMES, len(samples) // HOP)
            if progress is not None:
                _tell(progress, at, sound)
            if not frames:
                break
            features = log_mel(samples, self._bins)
            with opened(self._engine, self._ids, self._tokens, features) as window:
                if not language:
                    shares = window.languages()
                    language = max(shares, key=lambda code: shares[code])
                    heard.probability = shares[language]
                heard.language = heard.language or self._tokens.check(language, options.task)
                prompt = self._tokens.prompt(language, options.task, timed=options.timestamps)
                found = self._decode(window, rules, self._told(before), prompt, options, random)
                if found.no_speech > options.no_speech and found.log_probability <= options.log_probability:
                    at += frames
                    continue
            segments, step = self._split(found, at, frames)
            if options.words and self._look is not None and segments:
                segments = timed(
                    segments,
                    features,
                    self._tokens.prompt(language, options.task, timed=True),
                    frames,
                    at * HOP / RATE,
                    tokenizer=self._tokenizer,
                    tokens=self._tokens,
                    language=heard.language if options.task == "transcribe" else "en",
                    look=self._look,
                )
            yield from segments
            at += step
            if not options.previous or found.temperature > _FORGET:
                before = []
            else:
                before = [*before, *(token for segment in segments for token in segment.tokens)][-self._context // 2 :]

    def _told(self, before: list[int]) -> list[int]:
        """The text of the windows before, as a prompt has it."""
        last = before[-(self._context // 2 - 1) :]
        return [self._tokens.previous, *last] if last else []

    def _decode(
        self,
        window: Window,
        rules: Rules,
        before: list[int],
        prompt: list[int],
        options: SpeechOptions,
        random: np.random.Generator,
    ) -> Decoded:
        """The first text that does not fail; where all do, the likeliest of those that do not repeat themselves."""
        logits, silence = window.begin(before, prompt)
        most = min(self._context // 2, self._context - len(before) - len(prompt))
        tries: list[Decoded] = []
        for temperature in options.temperatures:
            end = self._tokens.end
            if temperature == 0:
                tokens, total = beam_search(window, rules, logits, options.beams, end, most)
            else:
                tokens, total = draw(window, rules, logits, temperature, options.tries, end, most, random)
            text = self._tokenizer.decode(self._letters(tokens))
            mean = total / (len(tokens) + 1)
            tries.append(Decoded(tokens, mean, silence, temperature, compression_of(text.strip())))
            if not fails(tries[-1], options):
                return tries[-1]
        plain = [one for one in tries if one.compression <= options.compression]
        best = max(plain or tries, key=lambda one: one.log_probability)
        best.temperature = tries[-1].temperature  # what was that hard to hear tells nothing to the next window
        return best

    def _letters(self, tokens: list[int]) -> list[int]:
        return [token for token in tokens if token < self._tokens.end]

    def _split(self, found: Decoded, at: int, frames: int) -> tuple[list[Segment], int]:
        """Cuts a window's tokens where two timestamps meet.

        Returns:
            Segments, and the frames to go on by: to the last timestamp, where what follows it was cut off.
        """
        first, tokens = self._tokens.first_time, found.tokens
        timed = [token >= first for token in tokens]
        cuts = [i for i in range(1, len(tokens)) if timed[i - 1] and timed[i]]
        ends_once = timed[-2:] == [False, True]
        begin, offset = 0, at * HOP / RATE
        parts: list[tuple[float, float, list[int]]] = []
        step = frames
        if cuts:
            for cut in [*cuts, len(tokens)] if ends_once else cuts:
                part = tokens[begin:cut]
                parts.append(((part[0] - first) * SECONDS, (part[-1] - first) * SECONDS, part))
                begin = cut
            if not ends_once:
                step = (tokens[begin - 1] - first) * _FRAMES_A_TIME or frames
        else:
            last = next((token - first for token in reversed(tokens) if token > first), 0)
            parts.append((0.0, last * SECONDS if last else frames * HOP / RATE, tokens))
        segments = []
        for start, end, part in parts:
            text = self._tokenizer.decode(self._letters(part))
            if text.strip() and start < end:
                measures = (found.log_probability, found.no_speech, found.temperature, found.compression)
                segments.append(Segment(round(offset + start, 2), round(offset + end, 2), text, part, *measures))
        return segments, step


def _tell(progress: Progress, at: int, sound: Sound) -> None:
    whole = max(sound.length, sound.heard)
    progress(min(at * HOP, whole) // RATE, whole // RATE, sound.name)
