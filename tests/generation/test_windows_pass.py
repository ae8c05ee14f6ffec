"""Texts over layers with windows, which do not keep all of what was computed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from engine_cases import VOCAB
from gossamer import _core
from gossamer.generation.held import Held
from gossamer.generation.scheduler import Scheduler
from scheduled import Texts
from windowed import CONTEXT, windowed_decoder

TEXT = np.random.default_rng(0).integers(0, VOCAB, 1800).tolist()


@pytest.fixture
def engine() -> _core.Decoder:
    return windowed_decoder(40, 40)


def held(engine: _core.Decoder) -> Held:
    made = Held(engine, itertools.count())
    engine.step([(made.prepare(), TEXT)])
    made.tokens = list(TEXT)
    return made


@pytest.mark.parametrize(("common", "kept"), [(1700, 1700), (300, 0), (0, 0)])
def test_a_prompt_goes_on_where_enough_is_kept_and_else_begins_anew(
    engine: _core.Decoder, common: int, kept: int
) -> None:
    one = held(engine)
    prompt = TEXT[:common] + [(token + 1) % VOCAB for token in TEXT[common : common + 60]]
    assert one.keep_common(prompt) == kept == engine.length(one.id) == len(one.tokens)
    logits = engine.step([(one.id, prompt[kept:])])
    np.testing.assert_array_equal(logits, windowed_decoder(40, 40).step([(0, prompt)]))


@pytest.mark.parametrize("common", [100, 1600])
def test_what_has_gone_on_too_far_is_not_shared(engine: _core.Decoder, common: int) -> None:
    texts, scheduler = Texts(engine, CONTEXT), Scheduler(engine, 2)
    prompts = (TEXT, TEXT[:common] + TEXT[:70])
    first, other = (texts.task(prompt, max_new_tokens=40) for prompt in prompts)
    scheduler.add(first)
    while not first.text.stats.new_tokens:
        scheduler.step()
    scheduler.add(other)
    while not (first.done and other.done):
        scheduler.step()
    assert other.text.stats.reused_tokens == (common if common == 1600 else 0)
    for task, prompt in zip((first, other), prompts, strict=True):
        assert task.error is None
        assert task.text.tokens == Texts(windowed_decoder(40, 40), CONTEXT).alone(prompt, max_new_tokens=40)
