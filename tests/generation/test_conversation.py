"""Turns of a conversation: what is computed, what is rolled back, and what stays after an interrupt."""

from __future__ import annotations

import pytest

from fakes import LETTERS, decoder_of, fake_model
from gossamer.errors import GossamerError


def test_a_conversation_computes_only_what_is_new():
    model = fake_model("." * 9, template=True)
    chat = model.conversation()
    assert "".join(chat.say("hij")) == ""  # nothing but the end token
    assert chat.messages == []
    decoder_of(model).script = fake_script("xxxabc.xxgh..")
    assert "".join(chat.say("i")) == "abc"
    assert chat.messages == [{"role": "user", "content": "i"}, {"role": "assistant", "content": "abc"}]
    before = len(decoder_of(model).steps)
    decoder_of(model).script = fake_script("xxxxxxxxxxgh.")
    assert "".join(chat.say("jj")) == "gh"
    user, answer = LETTERS.index("<u>"), LETTERS.index("<a>")
    # The sequence held <u>i<a>abc: the second turn feeds only the rest.
    assert decoder_of(model).steps[before][1] == [user, 10, 10, answer]
    assert model.last_stats is not None
    assert (model.last_stats.prompt_tokens, model.last_stats.reused_tokens) == (10, 6)
    assert [m["content"] for m in chat.messages] == ["i", "abc", "jj", "gh"]
    chat.reset()
    assert chat.messages == []
    assert decoder_of(model).held == {}


def fake_script(text: str) -> list[int]:
    return [0 if word in ".x" else LETTERS.index(word) for word in text]


def test_a_conversation_rolls_back_where_the_tokens_part():
    model = fake_model(template=True, words=[*LETTERS, "ab"])
    ab = len(LETTERS)
    decoder_of(model).script = [0, 0, 0, 1, 2, 0, 0, 0, 3, 0]  # answers "a", "b": encoded again they are the token "ab"
    chat = model.conversation()
    assert "".join(chat.say("c")) == "ab"
    before = len(decoder_of(model).steps)
    "".join(chat.say("d"))
    user, answer = LETTERS.index("<u>"), LETTERS.index("<a>")
    assert decoder_of(model).steps[before][1] == [ab, user, 4, answer]
    (held,) = decoder_of(model).held.values()
    assert held[:7] == [user, 3, answer, ab, user, 4, answer]


def test_a_stop_string_in_a_conversation_leaves_no_trace_in_it():
    model = fake_model(template=True)
    decoder_of(model).script = fake_script("xxxabcdxx")
    chat = model.conversation()
    assert "".join(chat.say("i", stop="c")) == "ab"
    decoder_of(model).script = fake_script("xxxxxxxxg.")
    assert "".join(chat.say("j")) == "g"
    (held,) = decoder_of(model).held.values()
    user, answer = LETTERS.index("<u>"), LETTERS.index("<a>")
    assert held == [user, 9, answer, 1, 2, user, 10, answer, 7]


def test_an_interrupted_answer_is_kept_as_far_as_it_came_and_the_chat_goes_on():
    model = fake_model(template=True)
    decoder_of(model).script = fake_script("xxxabcdefg")
    chat = model.conversation()
    decoder_of(model).fail_at = (2, KeyboardInterrupt())
    seen = []
    with pytest.raises(KeyboardInterrupt):
        seen.extend(chat.say("i"))
    assert [m["content"] for m in chat.messages] == ["i", "ab"]
    decoder_of(model).script = fake_script("xxxxxxxxg.")
    assert "".join(chat.say("j")) == "g"
    (held,) = decoder_of(model).held.values()
    user, answer = LETTERS.index("<u>"), LETTERS.index("<a>")
    assert held == [user, 9, answer, 1, 2, user, 10, answer, 7]


def test_a_turn_interrupted_before_any_text_leaves_the_chat_as_it_was():
    model = fake_model(template=True)
    chat = model.conversation()
    decoder_of(model).fail_at = (0, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        list(chat.say("i"))
    assert chat.messages == []


def test_a_step_that_ended_just_before_an_interrupt_is_rolled_back():
    model = fake_model(template=True)
    decoder_of(model).script = fake_script("xxxa.")
    chat = model.conversation()
    assert "".join(chat.say("i")) == "a"
    (sequence,) = decoder_of(model).held
    decoder_of(model).held[sequence].append(9)  # done natively, not yet noted in Python when Ctrl-C came
    decoder_of(model).script = fake_script("xxxxxxxb.")
    assert "".join(chat.say("j")) == "b"
    user, answer = LETTERS.index("<u>"), LETTERS.index("<a>")
    assert decoder_of(model).held[sequence] == [user, 9, answer, 1, user, 10, answer, 2]


def test_a_new_turn_ends_the_one_before():
    model = fake_model(template=True)
    decoder_of(model).script = fake_script("xxxabcdefghij")
    chat = model.conversation()
    first = chat.say("i")
    assert next(first) == "a"
    decoder_of(model).script = fake_script("xxxxxxxb.")
    assert "".join(chat.say("j")) == "b"
    assert list(first) == []
    assert [m["content"] for m in chat.messages] == ["i", "a", "j", "b"]


def test_a_conversation_that_outgrows_the_context_says_so_and_stays():
    model = fake_model(template=True, context=8)
    decoder_of(model).script = fake_script("xxxa.")
    chat = model.conversation()
    assert "".join(chat.say("i")) == "a"
    with pytest.raises(GossamerError, match=r"prompt has 12 tokens.*context holds 8"):
        chat.say("abcdef")
    assert [m["content"] for m in chat.messages] == ["i", "a"]


def test_a_conversation_goes_on_beyond_the_context_where_that_is_asked_for():
    model = fake_model(template=True, context=8)
    chat = model.conversation()
    options = {"context_shift": 1, "max_new_tokens": 7, "temperature": 0.0}
    user, answer = LETTERS.index("<u>"), LETTERS.index("<a>")
    decoder_of(model).script = fake_script("bcdefbcde")
    assert len("".join(chat.say("i", **options))) == 7
    assert model.last_stats is not None
    assert (model.last_stats.context_shifts, model.last_stats.prompt_tokens) == (1, 3)
    assert "\ncontext: full once, older tokens were dropped\n" in f"{model.last_stats.text()}\n"
    (held,) = decoder_of(model).held.values()
    assert held[0] == user
    assert len(held) <= 8
    "".join(chat.say("j", **options))
    assert [len(m["content"]) for m in chat.messages] == [1, 7, 1, 7]
    # <u>i<a>.......<u>j<a> are 13 tokens: behind the first, 6 of 12 are left; the answer fills the context twice
    assert (model.last_stats.context_shifts, model.last_stats.prompt_tokens) == (3, 7)
    fed = [token for _, tokens in decoder_of(model).steps for token in tokens]
    assert fed.count(answer) > 2, "what was left was computed anew"


def test_a_conversation_needs_a_chat_template():
    with pytest.raises(GossamerError, match="no chat template"):
        fake_model().conversation().say("a")
