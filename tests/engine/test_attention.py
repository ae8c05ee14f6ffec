"""What attentions may have beside heads and a scale: windows, caps, norms, sinks, slopes."""

from __future__ import annotations

import numpy as np
import pytest

from attention_cases import ATTENTIONS, decoder, reference, tokens
from engine_cases import config, decoders_with_an_infinite_token
from engine_cases import tokens as engine_tokens

KINDS = pytest.mark.parametrize("case", ATTENTIONS)
CUTS = (1, 2, 61, 64, 130, 1, 1, 300, 3, 150)


@KINDS
def test_logits_are_those_of_the_reference(case: str) -> None:
    text = tokens(600)
    expected = reference(case, text)
    logits = decoder(case, threads=2).step([(0, text)], all_logits=True)
    assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()
    assert np.abs(expected - reference("plain", text)).max() > 0.01 or case == "plain"


@KINDS
@pytest.mark.parametrize("kv", ["f32", "bf16", "int8"])
def test_a_token_is_the_same_however_its_text_was_cut_and_in_any_company(case: str, kv: str) -> None:
    text, other = tokens(sum(CUTS)), tokens(700, seed=1)
    whole = decoder(case, threads=1, kv=kv).step([(0, text)], all_logits=True)
    cut = decoder(case, threads=2, kv=kv)
    found, at = [], 0
    for length in CUTS:
        with_other = [(4, other[at : at + 1 + length // 2])]
        logits = cut.step([*with_other, (2, text[at : at + length])], all_logits=True)
        found.append(logits[-length:])
        at += length
    np.testing.assert_array_equal(np.concatenate(found), whole)


@pytest.mark.parametrize("kv", ["f32", "f16", "bf16", "int8"])
def test_what_lies_behind_a_window_reaches_nothing(kv: str) -> None:
    """Two texts that differ only before all windows of the last tokens."""
    a, b = tokens(700), tokens(700, seed=2)
    b[-100:] = a[-100:]
    one, two = (decoder("window", kv=kv, threads=1) for _ in range(2))
    hidden = [d.embed(text) for d, text in ((one, a), (two, b))]
    for layer in (0, 2):  # both with the window
        hidden = [d.forward_block(layer, x)[0] for d, x in zip((one, two), hidden, strict=True)]
    alike = 100 - 2 * (37 - 1)
    np.testing.assert_array_equal(hidden[0][-alike:], hidden[1][-alike:])
    assert (hidden[0][-alike - 1] != hidden[1][-alike - 1]).any()


@pytest.mark.parametrize("kv", ["f32", "f16", "bf16", "int8"])
@pytest.mark.parametrize("place", [0, 1, 31, 38, 63, 64, 77])
def test_what_comes_later_in_a_prompt_reaches_nothing_were_it_infinite(kv: str, place: int) -> None:
    """And whoever sees it has no number any more, all others have the bits that they had."""
    text = engine_tokens(80)
    text[text == 3] = 4
    clean, poisoned = decoders_with_an_infinite_token(config(head_dim=20), 3, kv=kv)
    expected = clean.step([(0, text)], all_logits=True)
    text[place] = 3
    found = poisoned.step([(0, text)], all_logits=True)
    np.testing.assert_array_equal(found[:place], expected[:place])
    assert np.isfinite(expected).all()
    assert not np.isfinite(found[place:]).any()
