"""Task files: what a line may hold, how prompts are divided, which tokens a sample has, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gossamer.errors import GossamerError
from gossamer.text.tasks import TaskSample, encode_prompt, encode_sample, opening, read_task, split_task
from gossamer.text.tokenizer import Tokenizer
from tiny import CHAT_TEMPLATE, EOS_ID, SPECIAL_TOKENS, tiny_tokenizer


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def many(count: int) -> list[dict[str, str]]:
    return [{"prompt": f"word {number}", "completion": "net"} for number in range(count)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(tiny_tokenizer(), eos_ids=[EOS_ID], chat_template=CHAT_TEMPLATE)


CHAT = [{"role": "user", "content": "thin?"}, {"role": "assistant", "content": "quick"}]


def test_lines_of_both_kinds(tmp_path):
    lines = ({"prompt": "a", "completion": "b", "accept": ["c"], "id": 7}, "", {"messages": CHAT, "metadata": {"x": 1}})
    plain, chat = read_task(write(tmp_path / "t.jsonl", *lines))
    assert (plain.prompt, plain.answers, plain.about, plain.chats) == ("a", ("b", "c"), {"id": 7}, False)
    assert (chat.prompt, chat.answers, chat.chats) == (CHAT[:1], ("quick",), True)
    assert chat.where == f"{tmp_path / 't.jsonl'}:3", "blank lines count"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not valid JSON"),
        ('{"prompt": "a", "prompt": "b", "completion": "c"}', "key 'prompt' stands twice"),
        ("[]", "must be a JSON object with prompt and completion, or messages"),
        ({"prompt": "a"}, "has no completion"),
        ({"completion": "a"}, "has no prompt"),
        ({"prompt": "", "completion": "a"}, "the prompt is empty"),
        ({"prompt": "a", "completion": " "}, "the completion is empty"),
        ({"prompt": "a", "completion": 1}, "completion must be a text, got 1"),
        ({"prompt": "a", "completion": "b", "acept": []}, "'acept' is no field"),
        ({"prompt": "a", "completion": "b", "accept": "c"}, "accept must be a list of texts"),
        ({"messages": CHAT, "prompt": "a"}, "'prompt' is no field that goes with messages"),
        ({"messages": CHAT[:1]}, "the last of at least two messages must be the assistant's"),
        ({"messages": [*CHAT, CHAT[0]]}, "the last of at least two messages must be the assistant's"),
        ({"messages": [CHAT[0], {"role": "assistant", "content": ""}]}, "the completion is empty"),
        ({"messages": [CHAT[0], {"role": "assistant", "content": "a", "weight": 0}]}, "a message has 'weight'"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, said):
    path = write(tmp_path / "t.jsonl", {"prompt": "a", "completion": "b"}, line)
    with pytest.raises(GossamerError) as caught:
        read_task(path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert said in str(caught.value)


def test_files_without_samples(tmp_path):
    with pytest.raises(GossamerError, match="holds no samples"):
        read_task(write(tmp_path / "t.jsonl", ""))
    with pytest.raises(GossamerError, match="No such file"):
        read_task(tmp_path / "none.jsonl")


def test_a_prompt_falls_on_the_same_side_whatever_else_there_is(tmp_path):
    train, held = split_task(write(tmp_path / "a.jsonl", *many(200)), 0.2)
    assert len(train) + len(held) == 200
    assert 20 < len(held) < 60
    assert TaskSample("", "abc", "d").falls() == 0xBA7816BF8F01CFEA / 2**64, "FIPS 180-2's example of SHA-256"
    few = split_task(write(tmp_path / "b.jsonl", *reversed(many(100))), 0.2)
    for side, all_of_it in zip(few, (train, held), strict=True):
        assert {sample.prompt for sample in side} <= {sample.prompt for sample in all_of_it}
    more = split_task(tmp_path / "a.jsonl", 0.4)[1]
    assert {sample.prompt for sample in held} < {sample.prompt for sample in more}


def test_what_cannot_be_divided(tmp_path):
    path = write(tmp_path / "a.jsonl", *many(3))
    with pytest.raises(GossamerError, match=r"no samples are held out: a share of 1e-06 is held out of 3"):
        split_task(path, 1e-6)
    with pytest.raises(GossamerError, match="no samples are to train on"):
        split_task(path, 1 - 1e-6)
    other = write(tmp_path / "b.jsonl", {"prompt": "new", "completion": "x"}, many(3)[1])
    with pytest.raises(GossamerError) as caught:
        split_task(path, other)
    assert str(caught.value) == f"{other}:2: the prompt is held out, and {path}:2 trains on it"


def test_a_completion_is_what_the_whole_text_has_behind_the_prompt(tmp_path, tokenizer):
    (sample,) = read_task(write(tmp_path / "t.jsonl", {"prompt": "the net", "completion": " is quick"}))
    prompt, completion = encode_sample(sample, tokenizer)
    assert prompt == encode_prompt(sample, tokenizer) == tokenizer.encode("the net")
    assert [*prompt, *completion] == [*tokenizer.encode("the net is quick"), EOS_ID]


def test_letters_of_both_sides_never_share_a_token(tmp_path, tokenizer):
    (sample,) = read_task(write(tmp_path / "t.jsonl", {"prompt": "the spi", "completion": "der"}))
    prompt, completion = encode_sample(sample, tokenizer)
    assert tokenizer.encode("the spider") != [*prompt, *completion[:-1]], "else this tests nothing"
    assert (prompt, completion) == (tokenizer.encode("the spi"), [*tokenizer.encode("der"), EOS_ID])


def test_an_answer_of_a_chat_ends_with_the_token_of_its_template(tmp_path, tokenizer):
    (sample,) = read_task(write(tmp_path / "t.jsonl", {"messages": CHAT}))
    prompt, completion = encode_sample(sample, tokenizer)
    assert prompt == tokenizer.chat(CHAT[:1])
    assert completion == [*tokenizer.encode("quick"), EOS_ID], "and nothing of what the template has behind it"


def test_templates_may_open_an_answer_by_words_of_their_own(tmp_path, tokenizer):
    thought = "{% if message['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    opened = CHAT_TEMPLATE.replace(
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content']",
        ("{{ '<|im_start|>' + message['role'] + '\n' }}" + thought + "{{ message['content']"),
    )
    chat, plain = read_task(
        write(tmp_path / "t.jsonl", {"messages": CHAT}, {"prompt": "who", "completion": " the spider"})
    )
    assert opening(chat, Tokenizer(tiny_tokenizer(), chat_template=opened)) == "<think>\n\n</think>"
    assert opening(chat, tokenizer) == opening(plain, tokenizer) == ""


def test_a_completion_that_goes_on_behind_an_end_is_not_cut_silently(tmp_path, tokenizer):
    end = SPECIAL_TOKENS[EOS_ID]
    samples = [{"prompt": "the net", "completion": f" is{end}"}, {"prompt": "a", "completion": f"b{end} c"}]
    ends, goes_on = read_task(write(tmp_path / "t.jsonl", *samples))
    assert encode_sample(ends, tokenizer)[1].count(EOS_ID) == 1
    with pytest.raises(GossamerError, match=r"t\.jsonl:2: the completion goes on behind a token that ends a text"):
        encode_sample(goes_on, tokenizer)


def test_a_model_without_a_template_or_an_end(tmp_path):
    bare = Tokenizer(tiny_tokenizer())
    plain, chat = read_task(write(tmp_path / "t.jsonl", {"prompt": "a", "completion": "b"}, {"messages": CHAT}))
    with pytest.raises(GossamerError, match=r"t\.jsonl:1: the model has no token that ends a text"):
        encode_sample(plain, bare)
    with pytest.raises(GossamerError, match=r"t\.jsonl:2: the model has no chat template"):
        encode_sample(chat, bare)
