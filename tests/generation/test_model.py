"""The decode loop over a decoder whose every answer is known: text, stops, limits, sequences, statistics."""

from __future__ import annotations

import dataclasses
import gc
import threading
import time
from typing import Any

import numpy as np
import pytest

import gossamer
from fakes import LETTERS, decoder_of, fake_model
from gossamer.errors import GossamerError
from tiny import tiny_llama


def test_text_goes_on_from_the_prompt_until_the_limit():
    model = fake_model()
    assert model.generate("ab", max_new_tokens=4) == "cdef"
    assert list(model.stream("c", max_new_tokens=2)) == ["d", "e"]
    assert decoder_of(model).held == {}, "a finished stream frees its sequence"


def test_the_end_token_ends_the_text_and_is_not_part_of_it():
    model = fake_model("xxabc.de".replace("x", "a"))
    assert model.generate("aa", max_new_tokens=50) == "abc"
    assert model.last_stats is not None
    assert (model.last_stats.finish, model.last_stats.new_tokens) == ("eos", 4)


@pytest.mark.parametrize("lag", [False, True])
@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ("e", "cd"), ("def", "c"), (("fg", "ef"), "cd"), ("c", ""), ("cdx", "cdefgh"), ("hi", "cdefgh"),
        (("gh", "defgx"), "cdef"), ("cdefgh", ""), ((), "cdefgh"),
    ],
)  # fmt: skip
def test_stop_strings_that_straddle_pieces(stop, text: str, lag: bool):
    words = [*LETTERS, "x"]
    model = fake_model(words=words, lag=lag)
    pieces = list(model.stream("ab", max_new_tokens=6, stop=stop))
    assert "".join(pieces) == text
    assert all(pieces)
    assert model.last_stats is not None
    assert model.last_stats.finish == ("length" if text == "cdefgh" else "stop")


def test_text_is_held_back_only_while_it_may_become_a_stop():
    model = fake_model("aabababcd")
    pieces = model.stream("a", max_new_tokens=8, stop="abc", draft="off")
    seen = [(piece, len(decoder_of(model).held[0])) for piece in pieces]
    # Tokens come as a b a b a b c d: "ab" waits until the next "a" shows that it is not the beginning of "abc".
    assert [piece for piece, _ in seen] == ["ab", "ab"]
    assert [held for _, held in seen] == [3, 5]


def test_a_stop_inside_one_piece_cuts_it():
    model = fake_model("aB", words=["", "a", "xx!yy", "B"])
    decoder_of(model).script = [1, 2]
    assert model.generate("a", stop="!") == "xx"


def test_what_the_decoder_of_text_still_holds_comes_out_at_the_end():
    assert fake_model(lag=True).generate("ab", max_new_tokens=3) == "cde"
    assert fake_model("aabc.", lag=True).generate("a", max_new_tokens=30) == "abc"


def test_the_context_is_a_limit():
    model = fake_model(context=6)
    assert model.generate("abc", max_new_tokens=100) == "defg"  # positions 3, 4, 5, and one token more, never fed
    assert model.last_stats is not None
    assert model.last_stats.finish == "context"
    assert max(len(tokens) for _, tokens in decoder_of(model).steps) == 3
    assert model.generate("abcdef", max_new_tokens=100) == "g"
    with pytest.raises(GossamerError, match=r"prompt has 7 tokens.*context holds 6"):
        model.stream("abcdefg")
    with pytest.raises(GossamerError, match=r"7 tokens.*6"):
        model.logits([1] * 7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"temperature": -1.0}, "temperature must be"),
        ({"stop": ("a", "")}, "stop string must not be empty"),
        ({"stop": ""}, "stop string must not be empty"),
        ({"chat": True}, "fake has no chat template"),
    ],
)
def test_bad_options_are_told_before_anything_runs(options, message: str):
    model = fake_model()
    with pytest.raises(GossamerError, match=message):
        model.stream("a", **options)
    assert decoder_of(model).steps == []


def test_bad_prompts():
    with pytest.raises(GossamerError, match="the prompt is empty"):
        fake_model().stream("")
    with pytest.raises(GossamerError, match="the prompt is no valid Unicode text"):
        fake_model().stream("a\udcff")
    with pytest.raises(GossamerError, match="the prompt is empty"):
        fake_model().logits([])


def test_a_prompt_may_be_longer_than_the_context_where_older_tokens_may_go():
    model = fake_model(context=10)
    with pytest.raises(GossamerError, match="the prompt has 12 tokens"):
        model.generate("abcdefghijab")
    assert model.generate("abcdefghijab", context_shift=2, max_new_tokens=3) == "cde"
    assert model.last_stats is not None
    assert (model.last_stats.prompt_tokens, model.last_stats.context_shifts) == (7, 1)
    assert decoder_of(model).steps[0][1] == [1, 2, 8, 9, 10, 1, 2]
    alone = [model.generate(prompt, context_shift=2, max_new_tokens=12) for prompt in ("abcdefghijab", "a")]
    assert model.generate_batch(["abcdefghijab", "a"], context_shift=2, max_new_tokens=12) == alone
    with pytest.raises(GossamerError, match="context_shift must be at most 5, half of the model's context, got 6"):
        model.generate("a", context_shift=6)


def test_tokens_that_the_model_has_no_row_for_are_refused():
    model = fake_model(words=LETTERS)
    model.config = dataclasses.replace(model.config, vocab=5)
    assert model.generate("abcd", max_new_tokens=1)
    with pytest.raises(GossamerError, match="the prompt holds token 5, outside the model's vocabulary of 5"):
        model.stream("abe")


def test_the_chat_template_is_used_where_there_is_one_unless_told_otherwise():
    model = fake_model("." * 9, template=True)
    user, answer = LETTERS.index("<u>"), LETTERS.index("<a>")
    for prompt, chat, fed in [
        ("ab", None, [user, 1, 2, answer]),
        ("ab", True, [user, 1, 2, answer]),
        ("ab", False, [1, 2]),
        ([{"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}], None, [user, 3, answer, 4, answer]),
    ]:
        model.generate(prompt, chat=chat)
        assert decoder_of(model).steps[-1][1] == fed
    assert model.tokenizer.streams == [True, True, False, True]  # a raw prompt is gone on with
    plain = fake_model("." * 9)
    plain.generate("ab")
    assert decoder_of(plain).steps[-1][1] == [1, 2]


def test_the_same_seed_gives_the_same_text():
    model = fake_model()
    decoder_of(model).logits = np.linspace(0, 1, len(LETTERS), dtype=np.float32)
    texts = [model.generate("a", temperature=1.0, seed=seed, max_new_tokens=30) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_the_repeat_penalty_counts_prompt_and_new_tokens():
    model = fake_model()
    logits = np.full(len(LETTERS), -9, np.float32)
    logits[1:5] = [4, 3, 2, 1]
    decoder_of(model).logits = logits
    assert model.generate("a", max_new_tokens=3, repeat_penalty=10.0) == "bcd"


def test_a_callback_ends_a_text_as_far_as_it_came():
    model = fake_model()
    asked = iter([False, False, True])
    assert model.generate("a", max_new_tokens=9, cancel=lambda: next(asked)) == "bc"
    assert model.last_stats is not None
    assert (model.last_stats.finish, model.last_stats.new_tokens) == ("closed", 2)
    assert decoder_of(model).held == {}


def test_completions_share_their_prompt_and_differ():
    model = fake_model()
    decoder_of(model).logits = np.linspace(0, 1, len(LETTERS), dtype=np.float32)
    options = {"temperature": 1.0, "seed": 3, "max_new_tokens": 20, "logprobs": 1, "logit_bias": {0: -99.0}}
    prompt = "abcdefghij" * 4
    found = model.completions(prompt, 3, **options)
    assert len({completion.text for completion in found}) == 3
    assert found[0].text == model.generate(prompt, **{**options, "logprobs": None})
    assert [completion.finish for completion in found] == ["length"] * 3
    assert "".join(LETTERS[token] for token in found[1].tokens) == found[1].text
    assert [entry.token for entry in found[1].logprobs] == list(found[1].tokens)
    assert [completion.stats.reused_tokens for completion in found] == [0, 39, 39]
    assert found[2].text == model.completions(prompt, 3, most=1, **options)[2].text
    assert decoder_of(model).held == {}
    with pytest.raises(GossamerError, match="n must be at least 1, got 0"):
        model.completions("a", 0)
    with pytest.raises(GossamerError, match="logit_bias: token 13 is outside the model's vocabulary of 13 tokens"):
        model.completions("a", 2, logit_bias={13: 1.0})
    with pytest.raises(GossamerError, match="the prompt is empty"):
        model.completions("", 2)


def test_damaged_logits_are_a_clear_error_and_the_sequence_goes():
    model = fake_model()
    decoder_of(model).logits = np.full(len(LETTERS), np.nan, np.float32)
    with pytest.raises(GossamerError, match="not finite"):
        model.generate("a")
    assert decoder_of(model).held == {}


def test_logits_of_every_token():
    model = fake_model()
    rows = model.logits(np.array([1, 2, 5]))
    assert rows.shape == (3, len(LETTERS))
    assert rows.dtype == np.float32
    assert rows.argmax(axis=1).tolist() == [2, 3, 6]
    assert decoder_of(model).held == {}


def test_streams_side_by_side_do_not_mix():
    model = fake_model()
    one, two = model.stream("a", max_new_tokens=4), model.stream("ee", max_new_tokens=4)
    assert [next(one), next(two), next(one), next(two)] == ["b", "f", "c", "g"]
    assert sorted(map(tuple, decoder_of(model).held.values())) == [(1, 2), (5, 5, 6)]
    assert "".join(one) == "de"
    assert "".join(two) == "hi"
    assert decoder_of(model).held == {}


def test_streams_from_several_threads_do_not_mix():
    model = fake_model()
    texts = {}
    prompts = ["a", "b", "c", "d"]
    threads = [
        threading.Thread(target=lambda p=p: texts.update({p: model.generate(p, max_new_tokens=5)})) for p in prompts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {"a": "bcdef", "b": "cdefg", "c": "defgh", "d": "efghi"}
    assert decoder_of(model).held == {}


def test_a_stream_closed_early_or_dropped_frees_its_sequence():
    model = fake_model()
    pieces = model.stream("a")
    next(pieces)
    assert len(decoder_of(model).held) == 1
    pieces.close()
    assert decoder_of(model).held == {}
    assert model.last_stats is not None
    assert (model.last_stats.finish, model.last_stats.new_tokens) == ("closed", 1)
    dropped = model.stream("b")
    next(dropped)
    del dropped
    gc.collect()
    assert decoder_of(model).held == {}


@pytest.mark.parametrize("step", [0, 2])
def test_an_interrupted_step_leaves_the_model_usable(step: int):
    model = fake_model()
    decoder_of(model).fail_at = (step, KeyboardInterrupt())
    pieces, seen = model.stream("a", max_new_tokens=5), []
    with pytest.raises(KeyboardInterrupt):
        seen.extend(pieces)
    assert decoder_of(model).held == {}
    assert model.generate("a", max_new_tokens=5) == "bcdef"


def test_statistics_count_tokens_bytes_and_the_models_own_time():
    model = fake_model()
    for _ in model.stream("abc", max_new_tokens=5):
        time.sleep(0.02)  # the caller's time is not the model's
    stats = model.last_stats
    assert stats is not None
    assert (stats.prompt_tokens, stats.new_tokens, stats.finish) == (3, 5, "length")
    assert 0 < stats.decode_seconds < 0.02
    assert 0 < stats.prefill_seconds < 0.02
    assert stats.weight_bytes == 1000
    assert stats.kv_bytes == 10 * (4 + 5 + 6 + 7) / 4  # four steps after the prefill's three tokens
    assert stats.tokens_per_second == pytest.approx(4 / stats.decode_seconds)
    assert stats.gigabytes_per_second == pytest.approx(1055 * 4 / stats.decode_seconds / 1e9)
    assert "5 tokens (length)" in stats.text()
    assert stats.to_dict()["bytes_per_token"] == 1055


def test_statistics_of_a_single_token_divide_by_nothing():
    model = fake_model()
    model.generate("abc", max_new_tokens=1)
    assert model.last_stats is not None
    assert (model.last_stats.tokens_per_second, model.last_stats.kv_bytes) == (0, 0)
    assert model.last_stats.text()


def test_a_model_says_what_it_is(tmp_path):
    assert repr(fake_model()) == "<gossamer.Model fake: 1 layers, context 1000, 2 threads>"
    folder = tiny_llama(tmp_path / "spider", sparsity=0.5)
    model = gossamer.load(folder, weights="int8", threads=2)
    positions = sum(weight.rows * weight.cols for weight in model.weights.values())
    assert f"{positions / 1e6:.4g} million parameters" in repr(model)
    assert repr(model).startswith("<gossamer.Model spider (llama): 2 layers, 0.2")
    blocks = [weight for name, weight in model.weights.items() if name.startswith("layers.")]
    zeros = 1 - sum(weight.nnz for weight in blocks) / sum(weight.rows * weight.cols for weight in blocks)
    size = sum(weight.nbytes for weight in model.weights.values()) / 1e6
    assert repr(model).endswith(
        f", head dense int8, {zeros:.0%} zeros in the blocks, {size:.1f} MB, context 128, 2 threads>"
    )
    gossamer.convert(folder, tmp_path / "packed", weights="f32")
    assert "<gossamer.Model spider (llama): " in repr(gossamer.load(tmp_path / "packed"))


@pytest.mark.parametrize("ids", [[1.0, 2.5], [True, False], np.array([2**32 + 1]), [-(2**40)], [-(2**63), 1], ["a"]])
def test_logits_of_what_is_no_token_id_are_refused(ids: Any):
    with pytest.raises(GossamerError, match=r"^token ids must be whole numbers below 2\^31, got"):
        fake_model().logits(ids)


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda model: model.generate("a", logprobs=1), "logprobs: there is no room"),
        (lambda model: model.generate_batch(["a"], logprobs=0), "logprobs: there is no room"),
        (lambda model: model.conversation().say("a", logprobs=0), "logprobs: there is no room"),
        (lambda model: model.generate_batch("abc"), "prompts must be a list of them, not one text"),
        (lambda model: model.generate([{"role": "user", "content": "a"}], chat=False), "chat=False is for a text"),
        (lambda model: model.generate("a", beams=2, draft="ngram"), "beams and draft ngram exclude each other"),
        (lambda model: model.completions("a", 2, beams=2, draft="ngram"), "beams and draft ngram exclude"),
    ],
)
def test_what_would_do_nothing_is_refused(ask: Any, words: str):
    with pytest.raises(GossamerError, match=f"^{words}"):
        ask(fake_model())


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda model: model.generate("a", chat="no"), "chat must be true or false, got 'no'"),
        (lambda model: model.generate_batch(["a"], chat=0), "prompt 1: chat must be true or false, got 0"),
        (lambda model: model.generate("a", draft=False), "draft must be auto, ngram, self, off, or .* got False"),
        (lambda model: model.generate("a", {}), "sampling must be SamplingOptions, or None, got {}"),
        (lambda model: model.conversation().say("a", {"seed": 1}), "sampling must be SamplingOptions, or None"),
        (lambda model: model.generate_batch(["a"], "b"), "sampling must be SamplingOptions, or None, got 'b'"),
        (lambda model: model.completions("a", True), "n must be a whole number, got True"),
        (lambda model: model.completions("a", 1.5), "n must be a whole number, got 1.5"),
        (lambda model: model.completions("a", most=0), "most must be at least 1, got 0"),
        (lambda model: model.generate_batch(["a"], most="2"), "most must be a whole number, got '2'"),
        (lambda model: model.completions("a", 2, most="2"), "most must be a whole number, got '2'"),
        (lambda model: model.generate_batch({"role": "user", "content": "a"}), "prompts must be a list of them"),
        (lambda model: model.generate(b"a", chat=False), "the prompt must be a text or a list of messages, got b'a'"),
        (
            lambda model: model.generate([1, 2], chat=False),
            r"the prompt must be a text or a list of messages, got \[1, 2\]",
        ),
        (lambda model: model.generate(None), "the prompt must be a text or a list of messages, got None"),
        (
            lambda model: model.generate_batch(["a", 3]),
            "prompt 2: the prompt must be a text or a list of messages, got 3",
        ),
    ],
)
def test_what_is_of_another_kind_is_refused_by_name(ask: Any, words: str):
    with pytest.raises(GossamerError, match=f"^{words}"):
        ask(fake_model())
