"""Metrics, by values that are computed by hand."""

from __future__ import annotations

import math

import pytest

from gossamer.errors import GossamerError
from gossamer.text.metrics import Score, check_answers, edits, fields, score, standard_error, total
from gossamer.text.tasks import TaskSample


@pytest.mark.parametrize(
    ("one", "other", "count"),
    [("", "", 0), ("abc", "", 3), ("", "ab", 2), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("ab", "ba", 2)],
)
def test_edits(one, other, count):
    assert edits(one, other) == count
    assert edits(other, one) == count


def test_exact_takes_any_right_answer_and_leaves_blanks_aside():
    assert score("exact", " K AE T\n", ["K AA T", "K AE T"], list) == Score(1, 1)
    assert score("exact", "K AE", ["K AA T", "K AE T"], list) == Score(0, 1)


def test_words_are_measured_by_the_nearest_right_answer():
    # Two edits of three words, or one of four: the latter is nearer.
    assert score("words", "K AE T S", ["D AO T", "K AE T S AH"], list) == Score(1, 5)
    assert score("words", "", ["a b"], list) == Score(2, 2)
    assert score("words", "a b c d e", ["a"], list) == Score(4, 1)


def test_tokens_are_those_of_the_model():
    assert score("tokens", "kitten", ["sitting"], list) == Score(3, 7)
    assert score("tokens", "kitten", ["sitting"], lambda text: [text[:3], text[3:]]) == Score(2, 2)


def test_json_counts_fields_of_either_side():
    right = '{"a": 1, "b": {"c": "x", "d": null}, "e": [1, 2]}'  # four fields
    assert fields(right) == {'"a"': "1", '"b"."c"': '"x"', '"b"."d"': "null", '"e"': "[1, 2]"}
    assert score("json", right, [right], list) == Score(4, 4)
    assert score("json", '{"e":[1,2],"b":{"c":"x"},"a":1}', [right], list) == Score(3, 4)
    assert score("json", '{"a": true, "b": {"c": "x", "d": null}, "e": [2, 1], "f": 0}', [right], list) == Score(2, 5)
    assert score("json", "no JSON", [right], list) == Score(0, 4)
    assert score("json", "[]", ["{}"], list) == Score(0, 1)
    assert score("json", "{}", ["{}"], list) == Score(1, 1)
    same = '{"a": 1.0, "b": {"c": "x", "d": null}, "e": [1e0, 20e-1]}'
    assert score("json", same, [right], list) == Score(4, 4), "numbers count by value"
    assert score("json", '{"a": true}', ['{"a": 1}'], list) == score("json", '{"a": "1"}', ['{"a": 1}'], list)
    large = '{"a": 1.5, "b": 900719925474099%d}'
    assert score("json", large % 3, [large % 2], list) == Score(1, 2)
    assert fields('{"a.b": 1, "a": {"b": 1}}') == {'"a.b"': "1", '"a"."b"': "1"}, "paths cannot be mixed up"


def test_totals_are_of_all_units():
    scores = [Score(1, 1), Score(0, 3)]
    assert total(scores) == 0.25
    # Residuals 1 - 0.25 and -0.75: squares 2 * 0.5625, over 2 * 1, and a mean of 2 units.
    assert standard_error(scores) == pytest.approx(math.sqrt(1.125 / 2) / 2)
    assert math.isnan(standard_error(scores[:1]))
    shares = [Score(float(number < 3), 1) for number in range(10)]
    assert standard_error(shares) == pytest.approx(math.sqrt(0.3 * 0.7 / 9))


def test_what_cannot_be_measured():
    samples = [TaskSample("t.jsonl:1", "a", "{}"), TaskSample("t.jsonl:2", "a", "{}", ("x",))]
    check_answers("words", samples)
    with pytest.raises(GossamerError, match=r"t\.jsonl:2: the metric json needs a JSON object, got 'x'"):
        check_answers("json", samples)
    with pytest.raises(GossamerError, match="metric must be one of exact, words, tokens, json, got 'wer'"):
        check_answers("wer", samples)
