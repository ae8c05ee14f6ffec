"""Many prompts at once: the texts of each, in order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fakes import LETTERS, decoder_of, fake_model
from gossamer.errors import GossamerError
from gossamer.generation.batch import Request, answers


def test_an_interrupted_run_leaves_nothing_once_it_is_closed() -> None:
    model = fake_model()
    decoder_of(model).fail_at = (4, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        model.generate_batch(["a", "b"], max_new_tokens=5)
    assert decoder_of(model).held == {}
    assert model.generate_batch(["a", "b"], max_new_tokens=5) == ["bcdef", "cdefg"]


def test_a_batch_of_prompts_gives_the_texts_of_each() -> None:
    model = fake_model(template=True)
    asked: list[Any] = ["ab", [{"role": "user", "content": "c"}], "d"]
    told: list[tuple[int, int]] = []
    texts = model.generate_batch(asked, most=2, max_new_tokens=3, progress=lambda done, of, _: told.append((done, of)))
    assert texts == [model.generate(prompt, max_new_tokens=3) for prompt in asked]
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert model.generate_batch([]) == []
    assert fake_model().generate_batch(iter("ab"), max_new_tokens=4, stop="d") == ["bc", "c"]


def test_the_same_prompt_twice_is_drawn_twice() -> None:
    model = fake_model()
    decoder_of(model).logits = np.linspace(0, 1, len(LETTERS), dtype=np.float32)
    drawn = model.generate_batch(["a", "a"], temperature=1.0, max_new_tokens=30, seed=3)
    assert drawn[0] == model.generate("a", temperature=1.0, max_new_tokens=30, seed=3) != drawn[1]
    assert drawn == model.generate_batch(["a", "a"], most=1, temperature=1.0, max_new_tokens=30, seed=3)


def test_what_cannot_be_answered_is_named_by_its_number() -> None:
    model = fake_model(context=4)
    with pytest.raises(GossamerError, match="prompt 2: the prompt has 5 tokens"):
        model.generate_batch(["a", "abcde", "b"])
    assert decoder_of(model).held == {}
    with pytest.raises(GossamerError, match="most must be at least 1, got 0"):
        model.generate_batch(["a"], most=0)
    with pytest.raises(TypeError, match="there is no option max_tokens"):
        model.generate_batch(["a"], max_tokens=3)


def test_answers_with_beams_are_given_as_they_come_and_share_the_cache_with_nobody() -> None:
    model = fake_model()
    options = model.defaults().changed({"max_new_tokens": 3, "temperature": 0.0})
    beams = options.changed({"beams": 2})
    held: list[int] = []
    asked = []

    def requests() -> Iterator[Request]:
        for number, sampling in enumerate([beams, beams, options, options, beams, options]):
            asked.append(number)
            yield Request("abcabc"[number], sampling)

    step = decoder_of(model).step

    def counted(batch: Any, *args: Any, **more: Any) -> Any:
        held.append(len(decoder_of(model).held))
        return step(batch, *args, **more)

    decoder_of(model).step = counted  # type: ignore[method-assign]
    found = []
    for answer in answers(model, requests(), most=4):
        found.append((answer.number, answer.error))
        if answer.number == 0:
            assert asked == [0]  # nobody is read who has to wait
        if answer.number == 3:
            assert max(held) <= 3  # beams, and one that is being forked; no text beside them
    assert found == [(number, None) for number in range(6)]
    assert decoder_of(model).held == {}
