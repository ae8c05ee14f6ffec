"""Samplers: each filter against its definition, their order, draws against their probabilities, seeds, bad values."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

import gossamer
from gossamer.errors import GossamerError
from gossamer.generation.sampling import (
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    keep_typical,
    likeliest,
    log_softmax,
    lower,
    penalize,
    sampler,
    weights,
    without,
)
from gossamer.generation.sampling_options import SamplingOptions
from tiny import tiny_llama


def logits_of(*probs: float) -> np.ndarray:
    return np.log(np.array(probs, np.float32))


def test_greedy_takes_the_likeliest_and_the_first_of_equals():
    sample = sampler(SamplingOptions())
    assert sample(np.array([1, 3, 2], np.float32), []) == 1
    assert sample(np.array([1, 3, 3], np.float32), []) == 1
    assert sample(np.array([-np.inf, -3, -np.inf], np.float32), []) == 1


def test_top_k_keeps_exactly_k_and_the_first_of_equals():
    logits = np.array([2, 5, 2, 9, 2], np.float32)
    assert keep_top_k(logits, 1).tolist() == [3]
    assert keep_top_k(logits, 3).tolist() == [0, 1, 3]
    assert keep_top_k(logits, 4).tolist() == [0, 1, 2, 3]
    assert keep_top_k(logits, 50).tolist() == [0, 1, 2, 3, 4]


def test_top_p_keeps_the_fewest_that_reach_p():
    logits = logits_of(0.15, 0.5, 0.3, 0.05)
    assert keep_top_p(logits, 0.4).tolist() == [1]
    assert keep_top_p(logits, 0.6).tolist() == [1, 2]
    assert keep_top_p(logits, 0.9).tolist() == [0, 1, 2]
    assert keep_top_p(logits, 1e-9).tolist() == [1]


@pytest.mark.parametrize("p", [0.001, 0.3, 0.9, 0.999, 1 - 1e-9])
def test_top_p_over_a_real_vocabulary_is_what_a_full_sort_gives(p: float):
    logits = np.random.default_rng(1).normal(0, 4, 5000).astype(np.float32)
    shares = np.exp(logits.astype(np.float64))
    shares /= shares.sum()
    order = np.argsort(-shares)
    fewest = next(n for n in range(1, 5001) if shares[order[:n]].sum() >= p)
    assert keep_top_p(logits, p).tolist() == sorted(order[:fewest].tolist())


def test_min_p_is_relative_to_the_likeliest():
    logits = logits_of(0.15, 0.5, 0.3, 0.05)
    assert keep_min_p(logits, 0.2).tolist() == [0, 1, 2]
    assert keep_min_p(logits, 0.5).tolist() == [1, 2]
    assert keep_min_p(logits, 1.0).tolist() == [1]


def test_typical_keeps_what_is_as_surprising_as_the_mean():
    # Entropy of (0.5, 0.3, 0.15, 0.05) is 1.14; informations are 0.69, 1.20, 1.90, 3.00: the second is nearest.
    logits = logits_of(0.5, 0.3, 0.15, 0.05)
    assert keep_typical(logits, 0.2).tolist() == [1]
    assert keep_typical(logits, 0.7).tolist() == [0, 1]
    assert keep_typical(logits, 0.9).tolist() == [0, 1, 2]
    assert keep_typical(np.array([-np.inf, 0, -np.inf], np.float32), 0.999).tolist() == [1]


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_typical_is_what_transformers_keeps(p: float):
    torch = pytest.importorskip("torch")
    from transformers import TypicalLogitsWarper

    logits = np.random.default_rng(2).normal(0, 3, 400).astype(np.float32)
    warped = TypicalLogitsWarper(p)(torch.zeros((1, 1), dtype=torch.long), torch.from_numpy(logits)[None])[0]
    assert keep_typical(logits, p).tolist() == np.flatnonzero(np.isfinite(warped.numpy())).tolist()


def test_frequency_counts_and_presence_does_not():
    logits = np.array([4, -4, 4, 0], np.float32)
    assert lower(logits, [0, 0, 1], 0.5, 2.0).tolist() == [1, -6.5, 4, 0]
    assert lower(logits, [], 0.5, 2.0).tolist() == logits.tolist() == [4, -4, 4, 0]


def test_frequency_and_presence_look_at_the_text_without_its_prompt():
    logits = np.array([3, 2], np.float32)
    for options in ({"frequency_penalty": 0.7}, {"presence_penalty": 1.4}):
        sample = sampler(SamplingOptions(**options), prompt=2)
        assert sample(logits, [0, 0]) == 0
        assert sample(logits, [0, 0, 0]) == (1 if "presence_penalty" in options else 0)
        assert sample(logits, [0, 0, 0, 0]) == 1


def test_biases_come_before_the_penalties_and_change_nothing_of_the_callers():
    logits = np.array([1, 0, 0], np.float32)
    assert sampler(SamplingOptions(logit_bias={2: 1.5}))(logits, []) == 2  # type: ignore[arg-type]
    assert sampler(SamplingOptions(logit_bias={0: -100}))(logits, []) == 1  # type: ignore[arg-type]
    both = SamplingOptions(logit_bias={0: -1.5}, repeat_penalty=4.0)  # type: ignore[arg-type]
    assert sampler(both)(np.array([1, -1, -5], np.float32), [0]) == 1  # -0.5 becomes -2, and would be -1.25 otherwise
    assert logits.tolist() == [1, 0, 0]


def test_log_probabilities_and_the_likeliest():
    logits = np.random.default_rng(3).normal(0, 5, 1000).astype(np.float32)
    exact = logits.astype(np.float64) - math.log(math.fsum(math.exp(value) for value in logits.tolist()))
    np.testing.assert_allclose(log_softmax(logits), exact, rtol=1e-12)
    assert likeliest(logits, 5).tolist() == np.argsort(-logits)[:5].tolist()
    assert likeliest(logits, 0).tolist() == []
    assert likeliest(np.array([1, 3, 3], np.float32), 9).tolist() == [1, 2, 0]


def test_penalty_lowers_each_recent_token_once_whatever_its_sign():
    logits = np.array([4, -4, 4, 0], np.float32)
    assert penalize(logits, [0, 0, 1, 3], 2.0).tolist() == [2, -8, 4, 0]
    assert logits.tolist() == [4, -4, 4, 0], "the caller's logits stay as they are"


def test_penalty_looks_back_over_the_window_only():
    logits = np.array([3, 2], np.float32)
    sample = sampler(SamplingOptions(repeat_penalty=2.0))
    assert sample(logits, [0] + [1] * (SamplingOptions().repeat_window - 1)) == 0  # 1.5 against 1
    assert sample(np.array([3, 2.9], np.float32), [0] + [5 % 1] * 3) == 1
    assert (
        sample(np.array([3, 1], np.float32), [1] * 3 + [0] * SamplingOptions().repeat_window) == 0
    )  # 1 lies outside: 1.5 against 1
    assert sample(np.array([3, 2], np.float32), [1] * 3 + [0] * SamplingOptions().repeat_window) == 1


def test_filters_apply_in_the_documented_order():
    # Top-p over what top-k left: of (0.4, 0.3, 0.2, 0.1), k=2 leaves 4/7 and 3/7, so p=0.5 keeps the first alone;
    # the other way round p=0.5 would keep two and k=2 both.
    logits = logits_of(0.4, 0.3, 0.2, 0.1)
    sample = sampler(SamplingOptions(temperature=1.0, top_k=2, top_p=0.5, seed=1))
    assert {sample(logits, []) for _ in range(200)} == {0}
    # Temperature last: a hot one flattens the choice but does not widen what min-p kept.
    sample = sampler(SamplingOptions(temperature=1e6, min_p=0.6, seed=1))
    assert {sample(logits, []) for _ in range(200)} == {0, 1}
    # The penalty comes first: it takes the likeliest token out of top-k's reach.
    sample = sampler(SamplingOptions(temperature=1.0, top_k=1, repeat_penalty=10.0, seed=1))
    assert sample(np.array([2, 1.5], np.float32), [0]) == 1
    # Typical-p comes behind top-k: of 5/8 and 3/8 the first is the most typical, of all four the second.
    sample = sampler(SamplingOptions(temperature=1.0, top_k=2, typical_p=0.6, seed=1))
    assert {sample(logits_of(0.5, 0.3, 0.15, 0.05), []) for _ in range(200)} == {0}


@pytest.mark.parametrize("vocab", [4, 3000])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_probabilities(temperature: float, vocab: int):
    places = np.linspace(0, vocab - 1, 4).astype(int)
    logits = np.full(vocab, -np.inf, np.float32)
    logits[places] = logits_of(0.5, 0.3, 0.15, 0.05)
    expected = np.exp(logits[places].astype(np.float64) / temperature)
    expected /= expected.sum()
    shares, total = weights(logits, temperature)
    np.testing.assert_allclose(shares[places] / total, expected, rtol=1e-12 if vocab == 4 else 1e-6)
    draws = 20000
    sample = sampler(SamplingOptions(temperature=temperature, seed=7))
    counts = np.bincount([sample(logits, []) for _ in range(draws)], minlength=vocab)[places]
    assert counts.sum() == draws
    chi_squared = (((counts - draws * expected) ** 2) / (draws * expected)).sum()
    assert chi_squared < 16.27  # 3 degrees of freedom: passed by 99.9% of seeds


def test_a_draw_of_a_number_is_where_the_sum_of_probabilities_passes_it():
    logits = np.random.default_rng(3).normal(0, 4, 5000).astype(np.float32)
    logits[::3] = -np.inf
    sums = np.cumsum(np.exp(logits.astype(np.float64)))
    sums /= sums[-1]

    class Number:
        def __init__(self, value: float) -> None:
            self.value = value

        def random(self) -> float:
            return self.value

    for value in np.random.default_rng(4).random(500):
        wanted = int(np.searchsorted(sums, value, side="right"))
        if min(abs(sums[[wanted - 1, wanted]] - value)) > 1e-6:  # beyond what float32 rounds
            assert draw(logits, 1.0, Number(float(value))) == wanted  # type: ignore[arg-type]


def test_filtered_draws_name_the_original_tokens():
    logits = np.full(1000, -20, np.float32)
    logits[[17, 400, 999]] = [3, 2, 1]
    sample = sampler(SamplingOptions(temperature=1.0, top_k=3, top_p=0.99, min_p=0.2, seed=3))
    assert {sample(logits, []) for _ in range(200)} == {17, 400}  # 999 is e^-2 = 0.14 times as likely


def test_the_seed_decides():
    logits = np.random.default_rng(0).normal(size=500).astype(np.float32)

    def draws(seed: int) -> list[int]:
        sample = sampler(SamplingOptions(temperature=1.0, seed=seed))
        return [sample(logits, []) for _ in range(20)]

    assert draws(5) == draws(5)
    assert draws(5) != draws(6)
    first, second = (sampler(SamplingOptions(temperature=1.0, seed=5), number) for number in (0, 1))
    assert draws(5) == [first(logits, []) for _ in range(20)] != [second(logits, []) for _ in range(20)]


@pytest.mark.parametrize("more", [0, 5000])
def test_temperatures_at_the_edges_of_float(more: int):
    logits = np.array([1, 2] + [-np.inf] * (1 + more), np.float32)
    with np.errstate(all="raise", under="ignore"):
        for coldest in (1e-300, 1e-5):
            assert {sampler(SamplingOptions(temperature=coldest, seed=s))(logits, []) for s in range(20)} == {1}
        assert {sampler(SamplingOptions(temperature=1e300, seed=s))(logits, []) for s in range(40)} == {0, 1}


def test_a_draw_of_the_largest_random_number_stays_inside():
    class Top:
        def random(self) -> float:
            return math.nextafter(1.0, 0.0)

    for size in (1, 3, 50000):
        for possible in (1, size):
            logits = np.full(size, -np.inf, np.float32)
            logits[:possible] = 0
            assert 0 <= draw(logits, 1.0, Top()) < possible  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_an_error(temperature: float, bad: float):
    with pytest.raises(GossamerError, match="not finite"):
        sampler(SamplingOptions(temperature=temperature))(np.array([1, bad, 2], np.float32), [])
    with pytest.raises(GossamerError, match="not finite"):
        sampler(SamplingOptions(temperature=temperature))(np.full(3, -np.inf, np.float32), [])


def test_without_forbids_the_token_that_would_end_a_word():
    logits = np.zeros(6, np.float32)
    words = ((4,), (1, 2), (0, 1, 3))
    for tokens, forbidden in (([], [4]), ([1], [2, 4]), ([0, 1], [2, 3, 4]), ([1, 0], [4])):
        found = without(logits, tokens, words)
        assert np.flatnonzero(np.isinf(found)).tolist() == forbidden
    assert not logits.any()
    with pytest.raises(GossamerError, match="bad_words leave no token"):
        without(logits, [], [(token,) for token in range(6)])


def test_a_repetition_penalty_looks_at_all_tokens_as_that_of_transformers(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = tiny_llama(tmp_path / "m", max_position_embeddings=256, eos_token_id=None)
    (folder / "generation_config.json").write_text(json.dumps({"repetition_penalty": 1.6, "do_sample": False}))
    model = gossamer.load(folder, activations="f32")
    prompt = "The spider spins a thread of gossamer. "
    tokens = [
        entry.token for entry in model.completions(prompt, chat=False, max_new_tokens=150, logprobs=0)[0].logprobs
    ]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([model.tokenizer.encode(prompt)])
    expected = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=150, pad_token_id=0)
    assert len(tokens) > 80
    assert tokens == expected[0, ids.shape[1] :].tolist()[: len(tokens)]  # which knows no token that ends a text
    within = model.completions(prompt, chat=False, max_new_tokens=150, logprobs=0, repeat_window=64)[0].logprobs
    assert [entry.token for entry in within] != tokens
