"""From windows to segments: cuts at timestamps, silence, failures, what the next window is told, languages."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from gossamer.audio.options import SpeechOptions
from gossamer.audio.tokens import SpeechTokens
from gossamer.audio.transcript import Heard, Segment
from gossamer.errors import GossamerError
from gossamer.generation.speech.transcribe import Transcriber
from gossamer.text.tokenizer import Tokenizer
from tiny import tiny_tokenizer
from whispers import END, VOCAB, Scripted, letters, says, time, token, tokenizer

RATE = 16_000
LOOSE = {"log_probability": -math.inf}  # scripts are not sure of themselves


def run(engine: Scripted, seconds: float, **options: Any) -> tuple[list[Segment], Heard]:
    words = tokenizer()
    tokens = SpeechTokens.of(words, VOCAB)
    made = Transcriber(engine, words, tokens, bins=80, context=448, ids=itertools.count())
    heard = Heard()
    sound = np.random.default_rng(0).normal(0, 0.1, int(seconds * RATE)).astype(np.float32)
    found = list(made.segments(sound, SpeechOptions(**{"language": "en", "beams": 1, **LOOSE, **options}), heard))
    assert not engine.live
    return found, heard


def said(found: list[Segment]) -> list[tuple[float, float, str]]:
    return [(segment.start, segment.end, segment.text) for segment in found]


def test_a_window_is_cut_where_timestamps_meet() -> None:
    text = [time(0), *letters(" one"), time(1.5), time(2), *letters(" two"), time(4)]
    engine = Scripted(says(text))
    found, heard = run(engine, 5)
    assert said(found) == [(0.0, 1.5, " one"), (2.0, 4.0, " two")]
    assert heard.seconds == 5
    assert heard.language == "en"
    assert engine.windows[0].shape == (3000, 80)
    assert len(engine.windows) == 1


def test_what_a_window_cuts_off_is_heard_again() -> None:
    """The second window begins at the last timestamp of the first, and not behind its 30 seconds."""
    first = [time(0), *letters(" one"), time(20), time(20), *letters(" tw")]
    second = [time(0), *letters(" two"), time(3)]
    engine = Scripted(says(first, second))
    found, heard = run(engine, 40)
    assert said(found) == [(0.0, 20.0, " one"), (20.0, 23.0, " two")]
    assert heard.seconds == 40
    assert len(engine.windows) == 2


def test_without_a_pair_of_timestamps_a_window_is_one_segment() -> None:
    engine = Scripted(says([time(0), *letters(" one"), time(3)], [time(0), *letters(" two")]))
    assert said(run(engine, 35)[0]) == [(0.0, 3.0, " one"), (30.0, 35.0, " two")]


def test_the_next_window_is_told_what_was_said() -> None:
    first, second = [time(0), *letters(" one"), time(3)], [time(0), *letters(" two"), time(3)]
    engine = Scripted(says(first, second))
    run(engine, 40)
    steer = [token("startoftranscript"), token("en"), token("transcribe")]
    assert engine.prompts[-1] == [token("startofprev"), *first, *steer]
    engine = Scripted(says(first, second))
    run(engine, 40, previous=False)
    assert engine.prompts[-1] == steer
    engine = Scripted(says(first, second))
    run(engine, 10, prompt="Names: Ann", task="translate")
    assert engine.prompts[-1] == [token("startofprev"), *letters(" Names: Ann"), *steer[:2], token("translate")]


def test_no_more_is_told_than_half_the_context() -> None:
    windows = [[time(0), *letters(" " + "abcdefghij" * 20), time(3)]] * 3
    engine = Scripted(says(*windows))
    run(engine, 80, compression=math.inf)
    assert max(map(len, engine.prompts)) == 1 + 223 + 3


def test_a_prompt_that_is_cut_is_told(caplog: pytest.LogCaptureFixture) -> None:
    text = says([time(0), *letters(" one"), time(3)])
    run(Scripted(text), 10, prompt="a" * 222)
    assert not caplog.messages
    engine = Scripted(text)
    run(engine, 10, prompt="b" + "a" * 223)
    assert caplog.messages == ["prompt: has 225 tokens, of which the last 223 are told to the model"]
    assert engine.prompts[-1][:224] == [token("startofprev"), *letters("a" * 223)]


def test_silence_is_skipped() -> None:
    text = [time(0), *letters(" one"), time(3)]
    found, _ = run(Scripted(says(text, text, silence=[0])), 40, log_probability=math.inf, temperatures=(0.0,))
    assert said(found) == [(30.0, 33.0, " one")]
    found, _ = run(Scripted(says(text, text, silence=[0])), 40)  # likely all the same
    assert len(found) == 2


def test_repetition_is_drawn_anew_and_not_told_on() -> None:
    """Until a temperature has a text that does not repeat itself; what was drawn hot is not told to the next window."""
    again = [time(0), *letters(" again" * 30), time(3)]
    good = [time(0), *letters(" good"), time(3)]
    tries: list[int] = []

    def script(window: int, tokens: list[int]) -> dict[int, float]:
        if tokens[-1] == token("startoftranscript"):
            return says(again)(window, tokens)
        if tokens[-1] == token("transcribe") and not tries:
            tries.append(window)
        return says(again, good)(window, tokens)

    found, _ = run(Scripted(script), 40, temperatures=(0.0, 0.8))
    assert found[0].temperature == 0.8
    assert found[0].compression > 2.4
    assert found[1].temperature == 0.0
    engine = Scripted(script)
    run(engine, 40, temperatures=(0.0, 0.8))
    assert token("startofprev") not in engine.prompts[-1]


def test_a_language_is_listened_for_once() -> None:
    text = [time(0), *letters(" eins"), time(3)]
    engine = Scripted(says(text, text))
    _, heard = run(engine, 40, language=None)
    assert heard.language == "de"
    assert heard.probability == pytest.approx(1 / (1 + math.exp(-1) + math.exp(-35)))
    assert {prompt[-2] for prompt in engine.prompts if prompt[-1] == token("transcribe")} == {token("de")}


def test_text_without_times() -> None:
    def script(_: int, tokens: list[int]) -> dict[int, float]:
        assert token("notimestamps") in tokens or tokens[-1] == token("startoftranscript")
        done = tokens[tokens.index(token("notimestamps")) + 1 :] if token("notimestamps") in tokens else []
        return {[*letters("one"), END][len(done)]: 5.0, time(1): 9.0, token("nospeech"): -9.0}

    assert said(run(Scripted(script), 10, timestamps=False)[0]) == [(0.0, 10.0, "one")]


def test_beams_find_what_the_first_letter_hides() -> None:
    """The likelier first letter leads to unlikely ones; with two beams the other text wins."""
    ab, c, d = letters(" a")[-1], letters(" c")[-1], letters(" d")[-1]

    def script(_: int, tokens: list[int]) -> dict[int, float]:
        done = tokens[3:]
        if tokens[-1] == token("startoftranscript"):
            return {token("nospeech"): -9.0}
        if not done:
            return {time(0): 9.0}
        if len(done) == 1:
            return {ab: 2.0, c: 1.9}
        if len(done) == 2:
            return dict.fromkeys(range(100, 150), 2.0) if done[-1] == ab else {d: 2.0}
        return {time(3) if done[-1] != time(3) else END: 20.0}

    assert run(Scripted(script), 10, beams=1)[0][0].text[0] == "a"
    assert said(run(Scripted(script), 10, beams=2)[0]) == [(0.0, 3.0, "cd")]


def test_memory_of_sequences_stays_flat() -> None:
    text = [time(0), *letters(" one"), time(3)]
    engine = Scripted(says(*[text] * 20))
    assert len(run(engine, 600, beams=3)[0]) == 20


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"language": "klingon"}, "language 'klingon' is not known"),
        ({"language": "es"}, "does not know spanish"),
        ({"language": "germn"}, "did you mean german"),
        ({"task": "sing"}, "task must be one of"),
        ({"beams": 0}, "beams must be"),
        ({"temperatures": ()}, "temperatures"),
        ({"timestamps": False, "words": True}, "words"),
    ],
)
def test_bad_options_are_one_line(options: dict[str, Any], line: str) -> None:
    with pytest.raises(GossamerError, match=line):
        run(Scripted(says([])), 1, **options)


def test_logits_that_are_no_numbers_are_one_line() -> None:
    engine = Scripted(lambda *_: {0: math.nan})
    for options in ({"beams": 2}, {"temperatures": (0.5,)}):
        with pytest.raises(GossamerError, match="logits are not finite"):
            run(engine, 1, **options)
        assert not engine.live


def test_other_tokenizers_are_refused() -> None:
    with pytest.raises(GossamerError, match=r"no <\|notimestamps\|>: this is no speech model"):
        SpeechTokens.of(Tokenizer(tiny_tokenizer()), VOCAB)
    with pytest.raises(GossamerError, match="no room for timestamps"):
        SpeechTokens.of(tokenizer(), VOCAB - 10)
