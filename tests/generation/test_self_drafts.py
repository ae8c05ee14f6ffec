"""A sparser copy of a model drafts for it: the same text, and nothing left behind in the sequences that they share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from copying import CONTEXT, Stubborn, Texts, free_steps, prompts
from engine_cases import VOCAB, config, decoder, tensors
from fakes import fake_model
from gossamer import GossamerError, _core
from gossamer.generation.drafts import Drafts
from gossamer.generation.model import Model
from gossamer.generation.self_drafts import _ASK_AGAIN, SelfDraft, sparser


def native(kv_limit: int = 0, tied: bool = False, **changes: Any) -> Model:
    described = config(context=CONTEXT, tied=tied, **changes)
    weights, vectors = tensors(described)
    packed = {name: _core.pack(values, "dense", "int8", 64) for name, values in weights.items()}
    engine = decoder(described, type="int8", threads=1, kv_limit=kv_limit)
    return Model(engine, described.describe(), fake_model("abc").tokenizer, {}, packed, vectors=vectors)


def drafts(own: SelfDraft, more: float = 0.0) -> Drafts:
    own._over_model = 0.05
    return Drafts(Stubborn(free_steps(more).table), "self", None, own)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "seed": 3}, {"repeat_penalty": 1.2}], ids=str)
def test_texts_are_the_same(options: dict[str, Any], tied: bool) -> None:
    model = native(tied=tied)
    texts = Texts(model.decoder, VOCAB)
    asked = prompts(4, 11, VOCAB, 9)
    expected = [texts.task(prompt, **options) for prompt in asked]
    for task in expected:
        texts.run([task], None, most=1)
    accepted = 0
    for most in (1, 4):
        own = SelfDraft(model, zeros=0.1)
        tasks = [texts.task(prompt, **options) for prompt in asked]
        texts.run(tasks, drafts(own), most)
        assert [task.text.tokens for task in tasks] == [task.text.tokens for task in expected]
        assert [model.decoder.length(task.held.id) for task in tasks] == [len(task.text.tokens) - 1 for task in tasks]
        assert sum(task.text.stats.steps.drafted for task in tasks) > 20
        accepted += sum(task.text.stats.steps.accepted for task in tasks)
    assert accepted > 10


def test_the_copy_goes_on_behind_what_the_model_computed() -> None:
    """A copy that leaves nothing out but rounds to 4 bits is near to the model; its head knows the first tokens."""
    described = config(context=CONTEXT)
    weights, vectors = tensors(described)
    packed = {name: _core.pack(values, "dense", "int8", 64) for name, values in weights.items()}
    target = _core.Decoder(described.describe().to_dict(), packed, vectors, threads=1)
    packed["head"] = _core.pack(weights["head"][:40], "dense", "int8", 64)
    copy = _core.Decoder(described.describe().to_dict(), packed, vectors, draft_of=target)
    tokens = np.arange(20)
    target.step([(1, tokens[:10])])
    behind = copy.step([(1, tokens[10:])], all_logits=True)
    assert (target.length(1), copy.length(1), behind.shape) == (20, 20, (10, 40))
    target.rollback(1, 10)
    np.testing.assert_array_equal(target.step([(1, tokens[10:])], all_logits=True)[:, :40], behind)
    ids, logits = copy.step([(2, tokens)], top_k=3)
    assert ids.max() < 40
    assert logits.shape == (1, 3)
    with pytest.raises(ValueError, match=r"top_k must be between 0 and the vocabulary's 40"):
        copy.step([(2, [1])], top_k=41)
    assert copy.head(np.zeros((2, 72), np.float32)).shape == (2, 40)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"threads": 1}, "draft_of brings threads and a limit along"),
        ({"kv_limit": 10**6}, "draft_of brings threads and a limit along"),
        ({"layers": 1}, "layers of other shapes"),
        ({"rows": VOCAB + 16}, "weight 'head' is"),
    ],
)
def test_a_copy_that_fits_no_model_is_refused(changes: dict[str, Any], words: str) -> None:
    described = config(context=CONTEXT, layers=changes.pop("layers", 2))
    weights, vectors = tensors(described)
    rows = changes.pop("rows", VOCAB)
    weights["head"] = np.resize(weights["head"], (rows, 72))
    packed = {name: _core.pack(values, "dense", "int8", 64) for name, values in weights.items()}
    target = decoder(config(context=CONTEXT), type="int8", threads=1)
    with pytest.raises(ValueError, match=words):
        _core.Decoder(described.describe().to_dict(), packed, vectors, draft_of=target, **changes)


def test_nothing_is_guessed_where_that_does_not_pay_but_now_and_then() -> None:
    model = native()
    own = SelfDraft(model)
    texts = Texts(model.decoder, VOCAB)
    task = texts.task(prompts(1, 2, VOCAB)[0], max_new_tokens=2 * _ASK_AGAIN, repeat_penalty=1.5)
    guesses = drafts(own, 2.0)
    texts.run([task], guesses)
    assert task.text.stats.steps.drafted <= 2


def test_guesses_take_nobodys_place_in_a_full_cache() -> None:
    free = native()
    limit = free.decoder.kv_bytes_of(1, 1)
    model = native(kv_limit=limit)
    own = SelfDraft(model, zeros=0.1)
    prompt = prompts(1, 5, VOCAB, 30)[0]
    expected, task = Texts(free.decoder, VOCAB), Texts(model.decoder, VOCAB)
    plain, drafted = expected.task(prompt, max_new_tokens=34), task.task(prompt, max_new_tokens=34)
    expected.run([plain], None, most=1)
    task.run([drafted], drafts(own), most=1)
    assert drafted.error is None
    assert drafted.text.tokens == plain.text.tokens
    # A text that may become longer than the cache, and does not: guesses go beyond the page before it ends.
    tokens = plain.text.tokens
    end = max(i for i in range(len(tokens)) if tokens[i] not in tokens[:i])
    assert end > 20
    drafted.held.free()
    stopped = task.task(prompt, max_new_tokens=200, stop=f",{tokens[end]},")
    task.run([stopped], drafts(own), most=1)
    assert stopped.error is None
    assert stopped.text.tokens == tokens[: end + 1]


def test_sparser_matrices_keep_what_is_large_for_its_row_and_column() -> None:
    values = np.random.default_rng(0).standard_normal((32, 48)).astype(np.float32)
    kept = sparser(values, 0.5)
    assert (kept == 0).mean() == 0.5
    assert np.all((kept == values) | (kept == 0))
    assert np.abs(values[kept == 0]).mean() < np.abs(values[kept != 0]).mean() / 2
    assert sparser(values, 0.0) is values


def test_models_of_other_engines_have_none() -> None:
    with pytest.raises(GossamerError, match="draft self is for models that the native engine runs"):
        fake_model("abc").stream("a", draft="self")
