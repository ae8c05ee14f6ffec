from __future__ import annotations

import json
from pathlib import Path

import pytest

from gossamer.errors import GossamerError
from gossamer.files import nested, parse_json, read_json


@pytest.mark.parametrize(
    "text",
    [
        '{"a": {"b": [1, 2.5, null, true, "ü"]}, "c": "\\ud83d\\ude00"}',
        '{"a": 1, "a": 1}',  # twice the same says one thing
        "[" * 500 + "]" * 500,
        '{"limits": [0.0, Infinity]}',
    ],
)
def test_what_says_one_thing_is_read_as_it_is(text: str) -> None:
    assert parse_json(text) == json.loads(text)


@pytest.mark.parametrize("text", ["1", "[[1, 2], {}]", '{"a": [{"b": 1}]}'])
def test_how_deep_a_value_is(text: str) -> None:
    depth = {"1": 0, "[[1, 2], {}]": 2}.get(text, 3)
    assert [nested(json.loads(text), most) for most in range(4)] == [most < depth for most in range(4)]


def test_equal_keys_are_compared_where_they_stand_twice_alone() -> None:
    # Otherwise what stands within is looked at once more at each level.
    text = "[" + "1," * 100_000 + "1]"
    for _ in range(90):
        text = f'{{"a":1,"a":1,"b":{text}}}'
    looked = []
    with pytest.MonkeyPatch.context() as patch:
        dumps = json.dumps
        patch.setattr("gossamer.files.json.dumps", lambda value, **how: looked.append(len(dumps(value, **how))) or "")
        parse_json(text)
    assert sum(looked) == 180


BAD = {
    "two values": ('{"x": {"a": 1, "b": 0, "a": 2}}', "key 'a' stands twice, with different values"),
    "one and true": ('{"a": 1, "a": true}', "'a' stands twice"),
    "in a list": ('{"a": [0], "a": [false]}', "'a' stands twice"),
    "zero and nothing": ('{"a": 0, "a": null}', "'a' stands twice"),
    "half a pair": (r'["\ud83d"]', r"a text holds half a surrogate pair, '\ud83d'"),
    "the other half": (r'{"a": "\ude00\ud83d"}', r"half a surrogate pair, '\ude00'"),
    "in a key": (r'{"x\uDFFF": 1}', r"half a surrogate pair, '\udfff'"),
    "lists": ("[" * 100_000, "nested too deeply"),
    "objects": ('{"a":' * 100_000, "nested too deeply"),
    "digits": ("9" * 5000, "digits"),
    "nothing": ("", "Expecting value"),
    "endless lists": ("[" + "[]," * 1_050_000 + "1]", "more than 1048576 objects and lists"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_readers_would_differ_about_is_refused(tmp_path: Path, case: str) -> None:
    text, words = BAD[case]
    with pytest.raises(ValueError) as error:  # noqa: PT011 - what it says is looked at below
        parse_json(text)
    assert words in str(error.value)
    path = tmp_path / "x.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(GossamerError) as refused:
        read_json(path)
    assert str(refused.value).startswith(f"{path}: not valid JSON: ")
    assert words in str(refused.value)


def test_a_file_beyond_all_that_are_known_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # zeros that take no room
    with pytest.raises(GossamerError, match="has more than 16777216 bytes, which no such file needs"):
        read_json(path)


@pytest.mark.parametrize(("text", "words"), [("[]", "must hold a JSON object"), (None, "No such file")])
def test_what_is_no_object_is_refused(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "x.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(GossamerError, match=words):
        read_json(path)
