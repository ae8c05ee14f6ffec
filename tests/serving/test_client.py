"""The real `openai` client against a server on loopback: every field that it shows, checked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from serving import CONTEXT, Running, serving, tiny_model

ASKED: list[Any] = [{"role": "user", "content": "Hello spider"}]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving({"tiny": tiny_model(tmp_path_factory.mktemp("client") / "tiny")}) as server:
        yield server


def alone(running: Running, count: int, asked: Any = ASKED, **options: Any) -> str:
    """What the model says by itself: the oracle."""
    model = running.models["tiny"]
    return model.generate(asked, model.defaults().changed({"max_new_tokens": count, "temperature": 0.0, **options}))


def test_a_whole_answer(running: Running, client: Any) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=ASKED, max_completion_tokens=12, temperature=0, extra_body={"repeat_penalty": 1}
    )
    assert answer.id.startswith("chatcmpl-")
    assert (answer.object, answer.model) == ("chat.completion", "tiny")
    assert answer.system_fingerprint.startswith("fp_")
    assert len(answer.choices) == 1
    choice = answer.choices[0]
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert (choice.message.role, choice.message.refusal, choice.message.tool_calls) == ("assistant", None, None)
    assert choice.message.content == alone(running, 12)
    prompt = len(running.models["tiny"].tokenizer.chat(ASKED))
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (prompt, 12)
    assert answer.usage.total_tokens == prompt + 12
    assert 0 <= answer.usage.prompt_tokens_details.cached_tokens < prompt


def test_the_next_turn_of_a_conversation_computes_what_is_new(client: Any) -> None:
    asked: list[Any] = [{"role": "user", "content": "Which spider spins the net that nobody else has asked for?"}]
    once = client.chat.completions.create(model="tiny", messages=asked, max_tokens=5, temperature=0)
    asked += [{"role": "assistant", "content": "A spider."}, {"role": "user", "content": "And what is it made of?"}]
    again = client.chat.completions.create(model="tiny", messages=asked, max_tokens=5, temperature=0)
    cached = again.usage.prompt_tokens_details.cached_tokens
    assert once.usage.prompt_tokens - 1 <= cached < again.usage.prompt_tokens


def test_a_stream(running: Running, client: Any) -> None:
    stream = client.chat.completions.create(
        model="tiny",
        messages=ASKED,
        max_tokens=20,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"repeat_penalty": 1},
    )
    chunks = list(stream)
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == alone(running, 20)
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["length"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 20
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_the_asynchronous_client_is_answered_side_by_side(running: Running) -> None:
    texts = [f"Number {number}" for number in range(8)]

    async def ask(client: Any, text: str) -> str:
        messages = [{"role": "user", "content": text}]
        stream = await client.chat.completions.create(
            model="tiny", messages=messages, max_tokens=16, temperature=0, stream=True, extra_body={"repeat_penalty": 1}
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=running.base, api_key="none", max_retries=0) as client:
            return list(await asyncio.gather(*(ask(client, text) for text in texts)))

    expected = [alone(running, 16, [{"role": "user", "content": text}]) for text in texts]
    assert asyncio.run(ask_all()) == expected


def test_several_choices_are_drawn_with_other_numbers_and_one_seed_draws_them_again(client: Any) -> None:
    def ask(seed: int) -> list[str]:
        answer = client.chat.completions.create(
            model="tiny", messages=ASKED, max_tokens=12, temperature=1.5, n=3, seed=seed
        )
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert answer.usage.completion_tokens == 36
        return [choice.message.content for choice in answer.choices]

    first = ask(5)
    assert len(set(first)) == 3
    assert ask(5) == first
    assert ask(6) != first


def test_without_a_seed_every_answer_is_drawn_anew(client: Any) -> None:
    def ask() -> str:
        answer = client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=24, temperature=2)
        return str(answer.choices[0].message.content)

    assert ask() != ask()


def test_stop_ends_the_answer(running: Running, client: Any) -> None:
    text = alone(running, 40)
    stop = text[10:13]
    answer = client.chat.completions.create(
        model="tiny", messages=ASKED, max_tokens=40, temperature=0, stop=[stop], extra_body={"repeat_penalty": 1}
    )
    assert answer.choices[0].message.content == text[: text.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens < 40


def test_the_last_messages_may_have_parts_and_roles(running: Running, client: Any) -> None:
    messages = [
        {"role": "developer", "content": "Be brief"},
        {"role": "user", "content": [{"type": "text", "text": "Hello "}, {"type": "text", "text": "net"}]},
        {"role": "assistant", "content": "Yes"},
        {"role": "user", "content": "More"},
    ]
    answer = client.chat.completions.create(
        model="tiny", messages=messages, max_tokens=9, temperature=0, extra_body={"repeat_penalty": 1}
    )
    plain = [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": "Hello net"},
        *messages[2:],
    ]
    assert answer.choices[0].message.content == alone(running, 9, plain)


def test_completions(running: Running, client: Any) -> None:
    tokenizer = running.models["tiny"].tokenizer
    prompts = ["The spider", "Numbers: 0 1"]

    def continued(prompt: str) -> str:
        return running.models["tiny"].generate(prompt, chat=False, max_new_tokens=16, temperature=0)

    answer = client.completions.create(model="tiny", prompt=prompts, temperature=0, extra_body={"repeat_penalty": 1})
    assert (answer.object, answer.model) == ("text_completion", "tiny")
    assert [choice.text for choice in answer.choices] == [continued(prompt) for prompt in prompts]
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.usage.prompt_tokens == sum(len(tokenizer.encode(prompt)) for prompt in prompts)
    assert answer.usage.completion_tokens == 32
    tokens = client.completions.create(
        model="tiny",
        prompt=[tokenizer.encode(prompt) for prompt in prompts],
        temperature=0,
        extra_body={"repeat_penalty": 1},
    )
    assert [choice.text for choice in tokens.choices] == [choice.text for choice in answer.choices]
    stream = client.completions.create(
        model="tiny", prompt=prompts[0], temperature=0, echo=True, stream=True, extra_body={"repeat_penalty": 1}
    )
    assert "".join(chunk.choices[0].text for chunk in stream) == prompts[0] + continued(prompts[0])
    begun = [*tokenizer.encode("The"), *tokenizer.encode("<|im_end|>"), *tokenizer.encode(" net")]
    for prompt in ("The<|im_end|> net", begun):
        echoed = client.completions.create(model="tiny", prompt=prompt, max_tokens=1, temperature=0, echo=True)
        assert echoed.choices[0].text.startswith("The<|im_end|> net")


def test_logprobs(running: Running, client: Any) -> None:
    model = running.models["tiny"]
    options = model.defaults().changed({"max_new_tokens": 10, "logprobs": 3})
    expected = model.completions(ASKED, 1, options)[0].logprobs
    body: dict[str, Any] = {"model": "tiny", "messages": ASKED, "max_tokens": 10, "temperature": 0, "logprobs": True}
    body |= {"top_logprobs": 3, "extra_body": {"repeat_penalty": 1}}
    answer = client.chat.completions.create(**body)
    content = answer.choices[0].logprobs.content
    assert [(each.token, bytes(each.bytes), each.logprob) for each in content] == [
        (each.text, each.bytes, each.logprob) for each in expected
    ]
    for each, other in zip(content, expected, strict=True):
        assert [(top.token, top.logprob) for top in each.top_logprobs] == [(top.text, top.logprob) for top in other.top]
        assert each.logprob == each.top_logprobs[0].logprob  # the likeliest was chosen
    streamed = [
        each
        for chunk in client.chat.completions.create(**body, stream=True)
        if chunk.choices[0].logprobs
        for each in chunk.choices[0].logprobs.content
    ]
    assert streamed == content


def test_logprobs_of_completions(client: Any) -> None:
    body: dict[str, Any] = {"model": "tiny", "prompt": "The spider", "temperature": 0, "logprobs": 2, "max_tokens": 6}
    body |= {"extra_body": {"repeat_penalty": 1, "logit_bias": {"2": -100}}}
    answer = client.completions.create(**body).choices[0]
    logprobs = answer.logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == 6
    whole = ["".join(logprobs.tokens[:i]).rstrip("\ufffd") for i in range(6)]  # half characters are none yet
    assert logprobs.text_offset == [len(text) for text in whole]
    for token, value, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert top[token] == value == max(top.values())
    chunks = [chunk.choices[0].logprobs for chunk in client.completions.create(**body, stream=True)]
    assert [value for each in chunks if each for value in each.token_logprobs] == logprobs.token_logprobs
    assert [value for each in chunks if each for value in each.text_offset] == logprobs.text_offset


def test_where_tokens_of_completions_begin_in_the_text(running: Running, client: Any) -> None:
    """Bytes of one character, special tokens and stop strings among them."""
    offsets = []
    for seed in range(4):
        body: dict[str, Any] = {"model": "tiny", "prompt": "a", "temperature": 2, "logprobs": 0, "max_tokens": 60}
        bias = {str(min(running.models["tiny"].tokenizer.eos_ids)): -100}
        answer = client.completions.create(**body, seed=seed, logit_bias=bias, stop="th").choices[0]
        found = answer.logprobs
        for token, at, behind in zip(found.tokens, found.text_offset, found.text_offset[1:], strict=False):
            if token.startswith("<|"):
                assert behind == at
            elif "\ufffd" not in token and behind <= len(answer.text):
                assert answer.text[at:behind].lstrip("\ufffd") == token
        offsets += [each != len("".join(found.tokens[:at])) for at, each in enumerate(found.text_offset)]
    assert any(offsets)


def test_biases_and_penalties(running: Running, client: Any) -> None:
    only = running.models["tiny"].tokenizer.encode("x")[0]
    ask = {"model": "tiny", "messages": ASKED, "max_tokens": 6, "temperature": 0, "extra_body": {"repeat_penalty": 1}}
    answer = client.chat.completions.create(**ask, logit_bias={str(only): 100})
    assert answer.choices[0].message.content == "xxxxxx"
    penalized = client.chat.completions.create(
        **ask, logit_bias={str(only): 1.5}, frequency_penalty=2, presence_penalty=2
    )
    options = {"logit_bias": {only: 1.5}, "frequency_penalty": 2.0, "presence_penalty": 2.0}
    assert penalized.choices[0].message.content == alone(running, 6, **options)
    without = client.chat.completions.create(**ask, logit_bias={str(only): 1.5})
    assert without.choices[0].message.content == alone(running, 6, logit_bias={only: 1.5})


def test_models(client: Any) -> None:
    listed = client.models.list()
    assert [(model.id, model.object, model.owned_by) for model in listed.data] == [("tiny", "model", "gossamer")]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("tinny")
    assert caught.value.code == "model_not_found"
    assert "did you mean tiny?" in str(caught.value)


def test_a_prompt_that_is_too_long_is_refused_with_both_lengths(client: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "?" * 600}])
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "messages"
    assert f"{CONTEXT}" in str(caught.value)
    assert "6" in str(caught.value).split("the prompt has ")[1][:3]


def test_the_context_ends_an_answer(client: Any) -> None:
    messages = [{"role": "user", "content": "?" * 400}]
    answer = client.chat.completions.create(model="tiny", messages=messages, max_tokens=1000, temperature=0)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.total_tokens == CONTEXT + 1  # the last one is not computed
