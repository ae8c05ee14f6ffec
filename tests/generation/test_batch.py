"""Many prompts at once: the texts of each, in order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fakes import LETTERS, decoder_of, fake_model
from gossamer.errors import GossamerError


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
