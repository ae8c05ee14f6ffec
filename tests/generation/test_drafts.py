"""Drafts: the same text with them, in fewer steps; and none where they do not pay."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from copying import CONTEXT, Copying, Texts, drafts, prompts
from engine_cases import VOCAB, config, decoder
from fakes import decoder_of, fake_model
from gossamer import GossamerError
from gossamer.formats import KV_TYPES
from gossamer.generation.cost import StepCost, Table
from gossamer.generation.drafts import MOST_TOKENS, Chances, Drafter, Drafts
from gossamer.generation.ngrams import Corpus, TextIndex
from gossamer.generation.scheduler import Scheduler

OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.8, "seed": 3},
    {"temperature": 1.2, "seed": 4, "top_k": 9, "top_p": 0.9, "min_p": 0.02},
    {"repeat_penalty": 1.3},
    {"repeat_penalty": 1.2, "temperature": 0.7, "seed": 5},
    {"max_new_tokens": 7},
    {"stop": ["19,", "21,2"]},
    {"max_new_tokens": 290},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("slips", [0.0, 0.3, 0.9])
def test_texts_are_the_same_with_drafts(slips: float, options: dict[str, Any]) -> None:
    """Tokens, pieces put together, why they end, and what the engine holds afterwards."""
    for seed, prompt in enumerate(prompts(4, 1, 40)):
        found = []
        for guesses in (None, drafts(), drafts(0.1), drafts(kind="off")):
            texts = Texts(Copying(40, 12, slips), 40)
            task = texts.task(prompt, **{**options, "seed": seed})
            (pieces,) = texts.run([task], guesses)
            assert texts.engine.held[task.held.id] == task.text.tokens[:-1] == task.held.tokens
            found.append((task.text.tokens, "".join(pieces), task.text.finish, task.text.stats.new_tokens))
        assert found[1:] == found[:1] * 3


def test_drafts_save_steps_where_text_repeats() -> None:
    texts = Texts(Copying(40, 12), 40)
    task = texts.task(prompts(1, 2, 40)[0])
    texts.run([task], drafts(0.05))
    steps = task.text.stats.steps
    assert task.text.stats.decode_steps == steps.count == len(texts.engine.steps) - 1
    assert steps.count < 20 < task.text.stats.new_tokens == 60
    assert steps.accepted >= 40
    assert steps.accepted + steps.count == 59


@pytest.mark.parametrize("kv", [kv for kv in KV_TYPES if kv != "auto"])
def test_the_native_engine_says_the_same_bit_by_bit(kv: str) -> None:
    """Random weights soon repeat themselves: greedy and drawn texts, alone and together."""
    engine = decoder(config(context=CONTEXT), type="int8", threads=1, kv=kv)
    texts = Texts(engine, VOCAB)
    for options in ({"max_new_tokens": 120}, {"temperature": 0.3, "seed": 9}, {"repeat_penalty": 1.1}):
        asked = prompts(5, 3, VOCAB, 10)
        expected = [texts.task(prompt, **options) for prompt in asked]
        for task in expected:
            texts.run([task], None, most=1)
        for most in (1, 5):
            tasks = [texts.task(prompt, **options) for prompt in asked]
            texts.run(tasks, drafts(), most)
            assert [task.text.tokens for task in tasks] == [task.text.tokens for task in expected]
            assert [engine.length(task.held.id) for task in tasks] == [len(task.text.tokens) - 1 for task in tasks]
            if not options.get("temperature") and "repeat_penalty" not in options:
                assert sum(task.text.stats.steps.accepted for task in tasks) > 20


def test_drawn_tokens_have_the_distribution_that_they_have_without() -> None:
    """Chi-square over pairs of tokens of 1,000 texts, whose seeds differ from those of the texts beside them."""
    counts = np.zeros((2, 6 * 6))
    accepted = 0
    for side, guesses in enumerate((None, drafts())):
        engine = Copying(6, 3)
        for number in range(1000):
            texts = Texts(engine, 6)
            task = texts.task([1, 2, 3, 1, 2, 3], max_new_tokens=3, temperature=3.0, seed=number + 5000 * side)
            texts.run([task], guesses, most=1)
            engine.free(task.held.id)
            _, a, b = task.text.tokens[6:]
            counts[side, 6 * a + b] += 1
            accepted += task.text.stats.steps.accepted
    assert accepted > 150
    expected = counts.sum(0) / 2
    used = expected >= 5
    statistic = float((((counts - expected) ** 2)[:, used] / expected[used]).sum())
    freedom = int(used.sum()) - 1
    # Wilson and Hilferty: the cube root of chi-square over its freedom is normal; 3.1 is one in a thousand.
    normal = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    assert freedom > 15
    assert normal < 3.1


def test_pieces_of_a_step_come_in_order_and_stop_where_they_should() -> None:
    words = ["", "a", "b", "c", "d", "e", "f", "."]
    texts = Texts(Copying(8, 4), 8, words)
    task = texts.task([1, 2, 3, 4, 1, 2, 3, 4], max_new_tokens=30, stop=["cdab"])
    (pieces,) = texts.run([task], drafts())
    assert ("".join(pieces), task.text.finish) == ("ab", "stop")
    texts = Texts(Copying(8, 4), 8, words)
    task = texts.task([1, 2, 3, 7, 1, 2, 3, 7, 1], max_new_tokens=30)
    (pieces,) = texts.run([task], drafts())
    assert ("".join(pieces), task.text.finish) == ("bc", "eos")
    assert task.held.tokens == [1, 2, 3, 7, 1, 2, 3, 7, 1, 2, 3]


def test_a_step_never_has_more_tokens_than_kernels_take_at_once() -> None:
    texts = Texts(Copying(40, 12), 40)
    tasks = [texts.task(prompt, max_new_tokens=40) for prompt in prompts(5, 6, 40)]
    texts.run(tasks, drafts())
    sizes = [sum(step) for step in texts.engine.steps[1:]]
    assert max(sizes) == MOST_TOKENS
    assert any(len(step) == 5 and sum(step) > 5 for step in texts.engine.steps[1:]), "several draft together"
    many = Texts(Copying(40, 12), 40)
    many.run([many.task(prompt, max_new_tokens=20) for prompt in prompts(16, 7, 40)], drafts())
    assert max(sum(step) for step in many.engine.steps if 24 not in step) == 16


def test_nothing_is_drafted_where_tokens_are_not_free() -> None:
    texts = Texts(Copying(40, 12), 40)
    task = texts.task(prompts(1, 2, 40)[0])
    texts.run([task], drafts(1.0))
    assert task.text.stats.steps.drafted == 0
    assert max(sum(step) for step in texts.engine.steps[1:]) == 1


def test_drafts_stop_when_they_no_longer_come_true() -> None:
    """Guesses that are wrong cost a few steps at first, and none later."""

    class Contrary(Copying):
        def row(self, held: list[int]) -> Any:
            row = super().row(held)
            index = TextIndex()
            index.extend(held)
            at, length = index.find()
            if length:
                row[index.following(at, 1)] = -50
            return row

    texts = Texts(Contrary(12, 4), 12)
    texts.tokenizer.eos_ids = frozenset()
    task = texts.task([8, 9, 10, 11] * 5, max_new_tokens=250)
    texts.run([task], drafts(0.1))
    steps = task.text.stats.steps
    assert steps.drafted > 0
    assert steps.drafted - steps.accepted < 40
    late = texts.engine.steps[-50:]
    assert sum(map(sum, late)) - len(late) <= 10


def test_what_prompts_need_is_not_drafted_beside() -> None:
    texts = Texts(Copying(40, 12), 40)
    tasks = [texts.task(prompt, max_new_tokens=30) for prompt in prompts(3, 8, 40)]
    scheduler = Scheduler(texts.engine, 4, drafts())
    scheduler.add(tasks[0])
    for _ in range(4):
        scheduler.step()
    for task in tasks[1:]:
        scheduler.add(task)
    scheduler.step()
    assert texts.engine.steps[-1] == [1, 24, 24]
    assert all(sum(step) <= 16 for step in texts.engine.steps[1:-1])


def test_drafts_take_nobodys_place_in_a_full_cache() -> None:
    engine = Copying(40, 12)
    texts = Texts(engine, 40)
    tasks = [texts.task(prompt, max_new_tokens=20) for prompt in prompts(2, 9, 40)]
    scheduler = Scheduler(engine, 2, drafts())
    for task in tasks:
        scheduler.add(task)
    scheduler.step()
    engine.most_tokens = 2
    while scheduler.active:
        scheduler.step()
    assert [task.error for task in tasks] == [None, None]
    assert {sum(step) for step in engine.steps[1:]} <= {1, 2}
    assert [task.text.stats.new_tokens for task in tasks] == [20, 20]


def test_damaged_logits_end_a_text_in_the_middle_of_a_draft() -> None:
    class Damaged(Copying):
        def row(self, held: list[int]) -> Any:
            row = super().row(held)
            return row * np.float32(np.nan) if len(held) == 30 else row

    texts = Texts(Damaged(40, 12), 40)
    task = texts.task(prompts(1, 2, 40)[0])
    (pieces,) = texts.run([task], drafts())
    assert "not finite" in str(task.error)
    assert len(task.text.tokens) == 30
    assert "".join(pieces) == "".join(f"{token}," for token in task.text.tokens[24:])
    assert texts.engine.held[task.held.id] == task.held.tokens == task.text.tokens


def test_a_corpus_drafts_what_a_text_never_said() -> None:
    class Reciting(Copying):
        def row(self, held: list[int]) -> Any:
            row = np.zeros(self.vocab, np.float32)
            row[(held[-1] * 7 + 3) % self.vocab] = 5
            return row

    words = [11]
    for _ in range(90):
        words.append((words[-1] * 7 + 3) % 89)
    texts = Texts(Reciting(89, 1), 89)
    texts.tokenizer.eos_ids = frozenset()
    alone, helped = (texts.task(words[:5], max_new_tokens=40) for _ in range(2))
    texts.run([alone], drafts())
    texts.run([helped], drafts(corpus=Corpus(words)))
    assert alone.text.tokens == helped.text.tokens
    assert (alone.text.stats.steps.accepted, helped.text.stats.decode_steps < 10) == (0, True)


def test_lengths_follow_from_costs_and_chances() -> None:
    text = [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3]
    lengths = [len(drafts(more).plan([text], [Drafter()], [99])[0]) for more in (0.0, 0.05, 0.2, 0.6)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[2]
    assert lengths[3] == 0
    assert len(drafts().plan([text], [Drafter()], [2])[0]) == 2, "no more than there is room for"
    assert drafts().plan([text], [Drafter()], [0]) == [[]]
    steps = StepCost(Table((1, 2, 4, 5, 16), (1.0, 1.0, 1.0, 2.0, 6.0), (0.0,) * 5, 1.0, measured=True))
    assert len(Drafts(steps).plan([text], [Drafter()], [99])[0]) == 3, "a fifth token would cost as much again"


def test_chances_follow_what_came_true() -> None:
    chances = Chances()
    before = chances.chance(5)
    for _ in range(30):
        chances.observe(5, True)
        chances.observe(40, False)
    assert chances.chance(5) > 0.9 > before
    assert chances.chance(32) == chances.chance(500) < 0.2
    assert chances.chance(2) == 0.3, "others stay as they were"


def test_a_model_drafts_by_itself_and_says_so() -> None:
    model = fake_model("abcabcabcabcabcabcabcabcabc.", words=["", "a", "b", "c"])
    expected = model.generate("abcabc", max_new_tokens=15, draft="off")
    assert {len(tokens) for _, tokens in decoder_of(model).steps[1:]} == {1}
    assert model.last_stats is not None
    plain = model.last_stats
    assert model.generate("abcabc", max_new_tokens=15) == expected
    assert model.last_stats.new_tokens == plain.new_tokens
    assert model.last_stats.decode_steps < plain.decode_steps == plain.steps.count
    document = model.last_stats.to_dict()["steps"]
    assert document["accepted"] == model.last_stats.steps.accepted > 0
    assert "drafted tokens came true" in model.last_stats.text()
    assert "drafted" not in plain.text()


def test_conversations_and_batches_take_drafts() -> None:
    words = ["", "a", "b", "c", "<u>", "<a>"]
    for kind in ("off", "auto"):
        model = fake_model("abc" * 20, words=words, template=True)
        chat = model.conversation()
        first = "".join(chat.say("abcabc", max_new_tokens=8, draft=kind))
        second = "".join(chat.say("b", max_new_tokens=8, draft=kind))
        texts = model.generate_batch(["abcabcabc", "bcabca"], max_new_tokens=12, draft=kind)
        if kind == "off":
            expected = first, second, texts
    assert (first, second, texts) == expected


def test_wrong_drafts_are_one_line(tmp_path: Path) -> None:
    model = fake_model("abc")
    with pytest.raises(GossamerError, match=r"^draft must be one of auto, ngram, self, off, got 'fast'$"):
        model.stream("a", draft="fast")
    with pytest.raises(GossamerError, match=r"missing\.txt: No such file"):
        model.drafts(corpus=tmp_path / "missing.txt")
    (tmp_path / "short.txt").write_text("ab")
    with pytest.raises(GossamerError, match=r"short\.txt: has too few tokens to take drafts from \(2\)"):
        model.drafts(corpus=tmp_path / "short.txt")
    with pytest.raises(GossamerError, match="nothing is drafted from it with draft off"):
        model.drafts("off", tmp_path / "short.txt")
    with pytest.raises(GossamerError, match="made for another model"):
        model.stream("a", draft=fake_model("abc").drafts())
    with pytest.raises(TypeError, match="there is no option drafts"):
        model.stream("a", drafts="off")


def test_a_gpu_has_none() -> None:
    model = fake_model("abcabcabc")
    decoder_of(model).threads = 0
    assert model.cost is None
    assert model.drafts() is model.drafts("off") is None
    assert model.generate("a", max_new_tokens=3)
    with pytest.raises(GossamerError, match="draft ngram is for the CPU"):
        model.drafts("ngram")
