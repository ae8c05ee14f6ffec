from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from gossamer.errors import GossamerError
from gossamer.text.tokenizer import Tokenizer
from tiny import CHAT_TEMPLATE, save_tokenizer
from tokenizer_settings import settings

ASK = {"role": "user", "content": "hi"}
PLAIN = "{% for m in messages %}[{{ m.role }}|{{ m.content }}]{% endfor %}"
JSON = "{% for m in messages %}{{ m | tojson }}{% endfor %}"
PARTS = (
    "{% for m in messages %}[{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}<{{ part.text }}>{% endfor %}{% endif %}]{% endfor %}"
)


def texts(*parts: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": part} for part in parts]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tokenizer(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("template", "messages"),
    [
        (PLAIN, [ASK, {"role": "assistant", "content": None}, ASK]),
        (PLAIN, [ASK, {"role": "assistant"}, ASK]),
        (JSON, [{"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}]),
        ("{{ messages[0].content is none }}{{ messages[0].content is defined }}", [{"role": "x", "content": None}]),
        (PARTS, [texts("a", "b"), ASK]),
        (PARTS, [texts("a")]),
    ],
)
def test_contents_are_what_transformers_makes_of_them(folder: Path, template: str, messages: list[Any]) -> None:
    ours = settings(folder, chat_template=template)
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert ours.render(messages) == expected


@pytest.mark.parametrize("message", [{}, {"content": None}, {"text": "hi"}, {"Content": "hi"}])
@pytest.mark.parametrize("role", ["system", "developer", "user"])
def test_who_says_nothing_is_told(folder: Path, message: dict[str, Any], role: str) -> None:
    with pytest.raises(GossamerError, match=f"^message 2, of role {role}, has no content: "):
        settings(folder, chat_template=PLAIN).render([ASK, {"role": role, **message}])


@pytest.mark.parametrize(
    ("template", "expected"),
    [(PLAIN, "[user|ab]"), (PARTS, "[<a><b>]"), (JSON, '{"role": "user", "content": "ab"}'), (CHAT_TEMPLATE, "ab")],
)
def test_templates_that_know_no_parts_get_their_texts_together(folder: Path, template: str, expected: str) -> None:
    tokenizer = settings(folder, chat_template=template)
    for content in (texts("a", "b")["content"], ["a", {"type": "text", "text": "b"}]):
        message = {"role": "user", "content": content}
        assert expected in tokenizer.render([message], add_generation_prompt=False)
        assert message["content"] is content


def test_templates_that_add_to_a_content_take_one_that_is_null_for_nothing(folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    got = tokenizer.render([ASK, {"role": "assistant", "content": None}], add_generation_prompt=False)
    assert got == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n"


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        (ASK, "messages must be a list of objects with role and content"),
        ("hi", "messages must be a list"),
        ([], "there are no messages"),
        (["hi"], "message 1 must be an object with role and content, got 'hi'"),
        ([ASK, {"content": "x"}], "message 2 must be an object with role and content"),
        ([{"role": "user", "content": 7}], "message 1: content must be text or a list of parts, got 7"),
        (
            [ASK, {"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            "message 2: a part of type 'image",
        ),
        ([{"role": "user", "content": [None]}], "message 1: a part of type None is not supported; there is: text"),
        (
            [{"role": "user", "content": [{"type": "text"}]}],
            "message 1: a part of type text must have a text, got None",
        ),
    ],
)
def test_what_is_no_conversation_is_refused_in_one_line(folder: Path, messages: Any, words: str) -> None:
    with pytest.raises(GossamerError) as error:
        Tokenizer.from_folder(folder).chat(messages)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("template", [PLAIN, JSON, "{% for m in messages %}{{ m.content | trim }}.{% endfor %}"])
@pytest.mark.parametrize(
    "content", ['you are "short"\nand kind\t', [{"type": "text", "text": "you are kind"}], "  ", ""]
)
def test_a_system_message_is_told(folder: Path, template: str, content: Any):
    (folder / "chat_template.jinja").write_text(template)
    assert Tokenizer.from_folder(folder).chat([{"role": "system", "content": content}, ASK])


def test_a_system_message_that_the_template_drops_is_an_error(folder: Path):
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages if m.role != 'system' %}[{{ m.content }}]{% endfor %}"
    )
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.chat([ASK])
    with pytest.raises(GossamerError, match="the chat template leaves the system message out"):
        tokenizer.chat([{"role": "system", "content": "you are kind"}, ASK])


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"role": "user", "content": "caf\udce9"}, "message 2 is no valid Unicode text"),
        (texts("a", "\ud83d"), "message 2 is no valid Unicode text"),
        ({"role": "us\udfffer", "content": "a"}, "the role of message 2 is no valid Unicode text"),
    ],
)
def test_half_a_surrogate_pair_is_refused_with_the_number_of_its_message(
    folder: Path, message: dict[str, Any], words: str
) -> None:
    with pytest.raises(GossamerError, match=words):
        Tokenizer.from_folder(folder).chat([ASK, message])


SOME_ROLES = (
    "{% for m in messages %}{% if m.role == 'user' %}U{{ m.content }}{% elif m.role == 'assistant' %}A{{ m.content }}"
    "{% endif %}{% endfor %}"
)
CALL = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": {}}}


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"role": "tool", "content": "it rains", "tool_call_id": "c"}, "leaves message 2 out: this model takes none"),
        ({"role": "developer", "content": "be kind"}, "leaves message 2 out: this model takes none of role developer"),
        ({"role": "tool", "content": [{"type": "text", "text": "it rains"}]}, "leaves message 2 out"),
        (
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            "message 2: the chat template leaves the call of weather",
        ),
        (
            {"role": "user", "content": "look", "images": ["cat.png"]},
            "message 2: the chat template has no use for 'images'",
        ),
    ],
)
def test_what_a_template_has_no_word_of_is_an_error(folder: Path, message: dict[str, Any], words: str) -> None:
    (folder / "chat_template.jinja").write_text(SOME_ROLES)
    tokenizer = Tokenizer.from_folder(folder)
    with pytest.raises(GossamerError, match=words):
        tokenizer.chat([ASK, message])
    with pytest.raises(GossamerError, match=words):
        tokenizer.render([ASK, message])
    (folder / "chat_template.jinja").write_text(JSON)  # which has all of it, and names no key
    if "images" not in message:
        assert Tokenizer.from_folder(folder).chat([ASK, message])


def test_thoughts_that_a_template_drops_and_keys_that_ask_for_nothing_are_no_error(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{{ m.mood }}{% endfor %}"
    )
    said = {"role": "assistant", "content": "<think>the longest run of words</think>yes", "refusal": None, "audio": {}}
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.render([ASK, said, {**ASK, "mood": "glad"}], False) == "hiyeshiglad"


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, "{% for m in messages %}[{{ m.content | trim }}]{% endfor %}"])
@pytest.mark.parametrize("begun", ["the answer is", "The answer: ", " hi", "hi"])
def test_a_last_message_that_goes_on_ends_as_that_of_transformers(folder: Path, template: str, begun: str) -> None:
    ours = settings(folder, chat_template=template)
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    messages = [ASK, {"role": "assistant", "content": begun}]
    expected = theirs.apply_chat_template(messages, tokenize=False, continue_final_message=True)
    assert ours.render_begun(messages) == expected


def test_a_last_message_that_a_template_writes_otherwise_cannot_go_on(folder: Path) -> None:
    ours = settings(folder, chat_template="{% for m in messages %}[{{ m.content | upper }}]{% endfor %}")
    with pytest.raises(GossamerError, match="does not write the last message as it is"):
        ours.render_begun([{"role": "assistant", "content": "hello"}])
