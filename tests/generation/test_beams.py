"""Beam search: against a search over all texts, against transformers, and what it leaves behind."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gossamer
from engine_cases import VOCAB, config, decoder
from fakes import FakeDecoder, decoder_of, fake_model
from gossamer import _core
from gossamer.errors import GossamerError
from gossamer.generation.beams import BeamOptions, beam_search
from gossamer.generation.sampling import log_softmax
from gossamer.generation.sampling_options import CHAT
from tiny import EOS_ID, made

LLAMA = {
    "model_type": "llama", "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 200,
}  # fmt: skip


class Chain(FakeDecoder):
    """Logits of a token depend on the one before it alone: a seeded table."""

    def __init__(self, vocab: int, seed: int) -> None:
        super().__init__(vocab)
        self.table = np.random.default_rng(seed).normal(0, 2, (vocab, vocab)).astype(np.float32)

    def _row(self, held: list[int]) -> Any:
        return self.table[held[-1]]


def best_of_all(chain: Chain, first: int, options: BeamOptions) -> list[tuple[float, tuple[int, ...]]]:
    """Scores of all texts there are, falling."""
    steps = [log_softmax(row) for row in chain.table]
    found = []
    for length in range(1, options.most + 1):
        for tokens in itertools.product(range(chain.vocab), repeat=length):
            ended = tokens[-1] in options.ends
            if any(token in options.ends for token in tokens[:-1]) or (length < options.most and not ended):
                continue
            total = sum(steps[a][b] for a, b in itertools.pairwise((first, *tokens)))
            found.append((total / length**options.length_penalty, tokens))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("penalty", [0.0, 1.0, -1.0])
@pytest.mark.parametrize("ends", [(), (0,), (0, 3)])
def test_as_many_beams_as_there_are_texts_find_the_best(penalty: float, ends: tuple[int, ...]) -> None:
    for seed in range(4):
        chain = Chain(5, seed)
        options = BeamOptions(200, 4, ends, penalty)
        expected = best_of_all(chain, 2, options)
        found = beam_search(chain, 0, [2], options, ids=itertools.count(1))
        assert found[0].tokens == expected[0][1]
        assert found[0].score == pytest.approx(expected[0][0])
        assert list(chain.held) == [0], "all but the prompt's sequence are freed"
        assert chain.held[0] == [2]


def test_one_beam_takes_the_likeliest_token() -> None:
    chain = Chain(9, 1)
    (found,) = beam_search(chain, 0, [2], BeamOptions(1, 6), ids=itertools.count(1))
    expected, token = [], 2
    for _ in range(6):
        token = int(chain.table[token].argmax())
        expected.append(token)
    assert list(found.tokens) == expected


@pytest.mark.parametrize(
    ("beams", "penalty", "early"), [(2, 1.0, False), (4, 1.0, False), (4, 0.0, True), (3, -0.5, False), (5, 2.0, True)]
)
def test_texts_are_those_of_transformers(beams: int, penalty: float, early: bool, tmp_path: Path) -> None:
    import torch
    import transformers

    folder = made(tmp_path / "m", LLAMA, change=lambda model: model.lm_head.weight.data.mul_(2))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    model = gossamer.load(folder, threads=1)
    ends = sorted(np.random.default_rng(9).choice(300, 60, replace=False).tolist())  # or hardly a text would end
    rng = np.random.default_rng(0)
    lengths = set()
    for case in range(4):
        prompt = rng.integers(3, 300, 4 + case).tolist()
        with torch.no_grad():
            expected = theirs.generate(
                torch.tensor([prompt]), num_beams=beams, num_return_sequences=beams, length_penalty=penalty,
                early_stopping=early, max_new_tokens=12, do_sample=False, eos_token_id=ends, pad_token_id=ends[0],
                return_dict_in_generate=True, output_scores=True,
            )  # fmt: skip
        options = BeamOptions(beams, 12, ends, penalty, early)
        found = beam_search(model.decoder, 1000, prompt, options, ids=model._ids)
        model.decoder.free(1000)
        scores = expected.sequences_scores.numpy()
        assert len(found) == beams
        np.testing.assert_allclose([one.score for one in found], scores, rtol=0, atol=1e-3)
        for one, score, row in zip(found, scores, expected.sequences[:, len(prompt) :].tolist(), strict=True):
            if np.sum(np.abs(scores - score) < 2e-3) == 1:  # others are as good
                length = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
                assert list(one.tokens) == row[:length]
                lengths.add(length)
    assert len(lengths) > 1, "some end"
    assert model.decoder.kv_bytes == 0


@pytest.mark.parametrize("penalty", [1.0, 0.0])
def test_a_stop_string_ends_a_beam_as_in_transformers(penalty: float, tmp_path: Path) -> None:
    """The likeliest text is that of those that end there, whatever would have followed."""
    import torch
    import transformers

    folder = made(tmp_path / "m", LLAMA, change=lambda model: model.lm_head.weight.data.mul_(2))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    named = transformers.AutoTokenizer.from_pretrained(folder)
    model = gossamer.load(folder, threads=1, activations="f32")
    stopped = 0
    for prompt in ("The spider", "If the net", "Numbers:", "the thread holds"):
        ids = torch.tensor([model.tokenizer.encode(prompt)])
        for stop in ("th", " ", "er", "F"):  # which no special token has in its name
            with torch.no_grad():
                row = theirs.generate(
                    ids, num_beams=4, length_penalty=penalty, max_new_tokens=12, do_sample=False, pad_token_id=0,
                    eos_token_id=EOS_ID, stop_strings=[stop], tokenizer=named,
                )[0, ids.shape[1] :].tolist()  # fmt: skip
            text = named.decode(row, skip_special_tokens=True)
            options = {"beams": 4, "length_penalty": penalty, "max_new_tokens": 12, "stop": stop}
            (found,) = model.completions(prompt, chat=False, **options)
            assert found.text == text.partition(stop)[0]
            stopped += found.finish == "stop"
    assert stopped > 1


def test_pages_are_shared_and_given_back_whatever_happens() -> None:
    engine = decoder(config(), threads=1)
    page = engine.kv_bytes_of(1, 1)
    prompt = np.random.default_rng(0).integers(0, VOCAB, 130).tolist()
    most = []

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(engine, name)

        def step(self, batch: Any) -> Any:
            logits = engine.step(batch)
            most.append(engine.kv_bytes)
            return logits

    found = beam_search(Watched(), 0, prompt, BeamOptions(4, 20), ids=itertools.count(1))
    assert (len(found), len(found[0].tokens)) == (4, 20)
    assert max(most) <= 2 * page + 5 * page, "the two whole pages of the prompt are had once"
    assert engine.kv_bytes == 3 * page
    tight = decoder(config(), threads=1, kv_limit=4 * page)
    with pytest.raises(_core.CacheFull):
        beam_search(tight, 0, prompt, BeamOptions(4, 20), ids=itertools.count(1))
    assert tight.kv_bytes == 3 * page
    calls = iter([False, False, True])
    stopped = beam_search(
        engine, 50, prompt[:3], BeamOptions(2, 20), ids=itertools.count(60), cancelled=lambda: next(calls)
    )
    assert [len(one.tokens) for one in stopped] == [3, 3]
    assert engine.kv_bytes == 4 * page


def test_a_model_writes_the_likeliest_text_whole() -> None:
    model = fake_model("aab.", words=["", "a", "b", "c"])
    assert list(model.stream("a", beams=3, max_new_tokens=9)) == ["ab"]
    assert model.last_stats is not None
    assert (model.last_stats.finish, model.last_stats.new_tokens) == ("eos", 3)
    assert "the likeliest text of 3 beams" in model.last_stats.text()
    assert decoder_of(model).held == {}
    best, second = model.completions("a", 2, beams=3, max_new_tokens=9)
    assert (best.text, best.finish) == ("ab", "eos")
    assert second.text != "ab"
    assert model.generate_batch(["a", "aa"], beams=2, max_new_tokens=9) == ["ab", "b"]
    assert model.generate("a", beams=3, stop="b") == "a"
    assert model.generate("a", beams=2, max_new_tokens=2, logit_bias={1: -50.0}).startswith("a") is False
    with pytest.raises(GossamerError, match="3 beams have no more than 3 texts, and not 4"):
        model.completions("a", 4, beams=3)
    assert decoder_of(model).held == {}


def test_a_conversation_with_beams_goes_on() -> None:
    model = fake_model("." * 3 + "bca.", template=True)
    chat = model.conversation()
    answer = "".join(chat.say("a", beams=2, temperature=0.0))
    assert chat.messages[-1] == {"role": "assistant", "content": answer}
    assert "".join(chat.say("a", beams=2, temperature=0.0)) is not None
    assert model.last_stats is not None
    assert model.last_stats.reused_tokens == 3


def test_what_excludes_beams_is_told_unless_the_beams_are_the_models() -> None:
    options = gossamer.SamplingOptions(beams=4)
    with pytest.raises(GossamerError, match=r"^beams and a temperature exclude each other$"):
        gossamer.SamplingOptions(beams=4, temperature=1.0)
    with pytest.raises(GossamerError, match=r"^beams and logprobs exclude each other$"):
        options.changed({"logprobs": 1, "beams": 2})
    with pytest.raises(GossamerError, match=r"^beams and context_shift exclude each other$"):
        options.changed({"context_shift": 1, "beams": 2})
    assert options.changed({"temperature": 0.5}).beams == options.changed({"context_shift": 1}).beams == 1
    assert options.changed({"seed": 5}).beams == 4
    model = fake_model()
    for generation, beams, told in (
        ({"num_beams": 4, "length_penalty": 0.5}, 4, ()),
        ({"num_beams": 4, "do_sample": True}, 1, ("num_beams 4",)),
        ({"num_beams": 4, "temperature": 0.9}, 1, ("num_beams 4",)),
        ({"num_beams": 2, "early_stopping": "never"}, 2, ("early_stopping 'never'",)),
    ):
        model.tokenizer.generation = generation
        assert model.defaults().beams == model.defaults(CHAT).beams == beams
        model.generate("a", max_new_tokens=2)
        assert model.last_stats is not None
        assert model.last_stats.unheeded == told
    model.tokenizer.generation = {"num_beams": 0}
    with pytest.raises(GossamerError, match="defaults: num_beams must be at least 1, got 0"):
        model.defaults()
