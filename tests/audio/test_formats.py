"""Transcripts as text, subtitles and JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from gossamer.audio.formats import Writer, clock
from gossamer.audio.languages import language_code
from gossamer.audio.transcript import Heard, Segment, Word

ONE = Segment(0.0, 1.5, " one --> and\n\n two", [1, 2], -0.1, 0.0, 0.0, 1.0)
LATE = Segment(3661.25, 3662.0, " end", [3], -0.1, 0.0, 0.0, 1.0)
WORDS = Segment(0.0, 2.0, " a b", [1], -0.1, 0.0, 0.0, 1.0, [Word(0.0, 1.0, " a", 0.5), Word(1.0, 2.0, " b", 0.5)])


def written(format: str, *segments: Segment, times: bool = False) -> str:
    writer = Writer(format, times=times)
    parts = [writer.begin(), *(writer.add(segment) for segment in segments)]
    return "".join([*parts, writer.end(Heard("en", 0.98765, 3662.5), model="m")])


def test_text_is_a_line_a_segment() -> None:
    assert written("txt", LATE, LATE) == "end\nend\n"
    assert written("txt", LATE, times=True) == "[01:01:01.250 --> 01:01:02.000] end\n"


def test_subtitles_hold_no_arrow_and_no_empty_line() -> None:
    assert written("srt", ONE, LATE) == (
        "1\n00:00:00,000 --> 00:00:01,500\none -> and two\n\n2\n01:01:01,250 --> 01:01:02,000\nend\n\n"
    )
    assert written("vtt", ONE) == "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\none -> and two\n\n"


def test_words_are_underlined_in_turn() -> None:
    assert written("vtt", WORDS) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\n<u>a</u> b\n\n00:00:01.000 --> 00:00:02.000\na <u>b</u>\n\n"
    )


def test_a_word_of_no_length_has_a_subtitle_all_the_same() -> None:
    words = [Word(1.0, 1.0, " a", 0.5), Word(1.0, 2.0, " b", 0.5)]
    timed = written("vtt", Segment(1.0, 2.0, " a b", [1], -0.1, 0.0, 0.0, 1.0, words))
    assert "00:00:01.000 --> 00:00:01.020\n<u>a</u> b\n" in timed


@pytest.mark.parametrize(("name", "code"), [("Flemish", "nl"), ("castilian", "es"), ("sinhalese", "si"), ("de", "de")])
def test_languages_have_other_names(name: str, code: str) -> None:
    assert language_code(name) == code


def test_letters_of_subtitles_are_no_tags() -> None:
    """WebVTT takes what begins with < for a tag, which is not shown, and & for the begin of a reference."""
    words = [Word(0.0, 1.0, " R&B", 0.5), Word(1.0, 2.0, " <3", 0.5)]
    said = Segment(0.0, 2.0, " R&B <3 > 2", [1], -0.1, 0.0, 0.0, 1.0)
    assert written("vtt", said) == "WEBVTT\n\n00:00:00.000 --> 00:00:02.000\nR&amp;B &lt;3 > 2\n\n"
    timed = written("vtt", replace(said, words=words))
    assert timed.split("\n")[3::3] == ["<u>R&amp;B</u> &lt;3", "R&amp;B <u>&lt;3</u>"]
    assert written("srt", said).split("\n")[2] == "R&B <3 > 2"
    assert json.loads(written("json", said))["text"] == "R&B <3 > 2"


def test_json_is_one_document() -> None:
    found = json.loads(written("json", WORDS, LATE))
    assert (found["model"], found["language"], found["text"], found["seconds"]) == ("m", "en", "a b end", 3662.5)
    assert found["segments"][0]["words"][1] == {"start": 1.0, "end": 2.0, "text": " b", "probability": 0.5}


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "00:00:00.000"), (59.9996, "00:01:00.000"), (36_000, "10:00:00.000")]
)
def test_clocks_round_upwards_as_one(seconds: float, text: str) -> None:
    assert clock(seconds) == text
