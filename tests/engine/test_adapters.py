"""Adapters of the engine: what sequences chose, and nobody else's tokens, is added to the linears' products."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engine_cases import config, described, shapes, tensors, tokens
from gossamer import _core
from gossamer.arch.llama import Sizes
from gossamer.checkpoints.low_rank import LOW_RANK_U, LOW_RANK_V
from reference_model import ReferenceModel

Parts = dict[str, _core.Weight]
Added = dict[str, NDArray[np.float64]]
CONFIG = config()
BLOCKS = [name for name in shapes(CONFIG) if "." in name]


def base(type: str = "f32", **options: Any) -> tuple[_core.Decoder, dict[str, NDArray[np.float64]]]:
    """A decoder, and the values that it stores."""
    c = config()
    weights, vectors = tensors(c)
    packed = {n: _core.pack(v, "dense" if "." not in n else "bitmap", type, 64) for n, v in weights.items()}
    stored = {name: weight.unpack().astype(np.float64) for name, weight in packed.items()}
    return _core.Decoder(c.describe().to_dict(), packed, vectors, **options), stored


def merged(stored: dict[str, NDArray[np.float64]], *added: tuple[Added, float]) -> ReferenceModel:
    exact = dict(stored)
    for parts, weight in added:
        for name, values in parts.items():
            exact[name] = exact[name] + np.float64(np.float32(weight)) * values
    return ReferenceModel(config().describe(), {**exact, **tensors(config())[1]})


def lora(rank: int, seed: int, type: str = "bf16", names: list[str] = BLOCKS, c: Sizes = CONFIG) -> tuple[Parts, Added]:
    """Factors at some linears, and the products of what is stored; activations stay of order 1."""
    rng = np.random.default_rng(seed)
    parts: Parts = {}
    added: Added = {}
    for name in names:
        rows, cols = shapes(c)[name]
        u = _core.pack((rng.standard_normal((rows, rank)) / (4 * np.sqrt(rank))).astype(np.float32), "bitmap", type)
        v = _core.pack((rng.standard_normal((rank, cols)) / np.sqrt(cols)).astype(np.float32), "dense", type)
        parts |= {name + LOW_RANK_U: u, name + LOW_RANK_V: v}
        added[name] = u.unpack().astype(np.float64) @ v.unpack()
    return parts, added


def delta(
    seed: int, type: str = "f32", names: list[str] = BLOCKS, number: int = 1, c: Sizes = CONFIG
) -> tuple[Parts, Added]:
    """Matrices of which one value in twenty is not zero."""
    rng = np.random.default_rng(seed)
    parts: Parts = {}
    added: Added = {}
    for name in names:
        shape = shapes(c)[name]
        values = np.where(rng.random(shape) < 0.05, rng.standard_normal(shape) / 4, 0).astype(np.float32)
        parts[f"{name}.delta_{number}"] = _core.pack(values, "csr", type)
        added[name] = parts[f"{name}.delta_{number}"].unpack().astype(np.float64)
    return parts, added


def logits(decoder: _core.Decoder, ids: NDArray[np.int32], *mix: tuple[int, float], seq: int = 0) -> Any:
    decoder.choose(seq, mix)
    found = decoder.step([(seq, ids)], all_logits=True)
    decoder.free(seq)
    return found


# As for branches of the model's own: sums of f32 through two blocks.
def check(found: Any, model: ReferenceModel, ids: NDArray[np.int32]) -> None:
    np.testing.assert_allclose(found, model.logits(ids), atol=3e-5, rtol=0)


@pytest.mark.parametrize("type", ["f32", "bf16"])
@pytest.mark.parametrize("rank", [1, 5, 16, 67])
def test_low_rank_factors_are_added(rank: int, type: str) -> None:
    decoder, stored = base(threads=2)
    parts, added = lora(rank, 1, type)
    adapter, ids = decoder.add_adapter(parts), tokens(300)
    check(logits(decoder, ids, (adapter, 1.0)), merged(stored, (added, 1.0)), ids)


@pytest.mark.parametrize("type", ["f32", "bf16", "int8"])
def test_deltas_are_added(type: str) -> None:
    decoder, stored = base(threads=2, activations="f32")
    parts, added = delta(1, type)
    adapter, ids = decoder.add_adapter(parts), tokens(80)
    check(logits(decoder, ids, (adapter, 1.0)), merged(stored, (added, 1.0)), ids)


@pytest.mark.parametrize("weight", [0.0, 0.5, -1.25])
def test_weights_scale_what_is_added(weight: float) -> None:
    decoder, stored = base()
    ids = tokens(40)
    bare = logits(decoder, ids)
    for parts, added in (lora(4, 2), delta(2)):
        found = logits(decoder, ids, (decoder.add_adapter(parts), weight))
        check(found, merged(stored, (added, weight)), ids)
        assert np.array_equal(found, bare) == (weight == 0)


def test_several_at_once_are_their_sum() -> None:
    """A low-rank one at some linears, a language's and a task's delta, each with its weight."""
    decoder, stored = base(threads=2)
    ids = tokens(60)
    made = [lora(7, 3, names=BLOCKS[1::2]), delta(4), delta(5, names=BLOCKS[:9])]
    numbers = [decoder.add_adapter(parts) for parts, _ in made]
    weights = [0.75, 1.0, 0.5]
    found = logits(decoder, ids, *zip(numbers, weights, strict=True))
    check(found, merged(stored, *((added, w) for (_, added), w in zip(made, weights, strict=True))), ids)
    turned = logits(decoder, ids, *zip(numbers[::-1], weights[::-1], strict=True))
    np.testing.assert_array_equal(turned, found)


def test_biases_are_added() -> None:
    decoder, stored = base()
    c = config()
    values = np.random.default_rng(0).standard_normal(100).astype(np.float32)
    adapter = decoder.add_adapter({}, {"layers.1.up.bias": values})
    described = c.describe().to_dict()
    mlp = next(b["mixer"] for b in described["stack"]["kinds"][0]["branches"] if b["mixer"]["part"] == "mlp")
    mlp["biases"] = ["up"]
    packed = {n: _core.pack(v.astype(np.float32), "dense", "f32") for n, v in stored.items()}
    biases = {"layers.0.up.bias": np.zeros(100, np.float32), "layers.1.up.bias": 0.5 * values}
    expected = _core.Decoder(described, packed, {**tensors(c)[1], **biases}).step([(0, tokens(9))], all_logits=True)
    np.testing.assert_allclose(logits(decoder, tokens(9), (adapter, 0.5)), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("type", ["f32", "int8"])
def test_company_threads_and_cuts_do_not_change_a_bit(type: str) -> None:
    """Sequences of different choices, their tokens side by side: each as if it were alone, one token at a time."""
    made = [lora(5, 6)[0], lora(16, 7, "f32", BLOCKS[2:])[0], delta(8, "bf16")[0]]
    mixes = [[(1, 1.0)], [], [(2, 0.5)], [(1, 1.0)], [(1, 0.25), (3, 1.0)], [(3, 1.0), (2, -1.0)], [(1, 1.0), (3, 1.0)]]
    texts = [tokens(4 + 5 * i, seed=i) for i in range(len(mixes))]

    def ready(threads: int) -> _core.Decoder:
        decoder = base(type, threads=threads)[0]
        assert [decoder.add_adapter(parts) for parts in made] == [1, 2, 3]
        for seq, mix in enumerate(mixes):
            decoder.choose(seq, mix)
        return decoder

    one = ready(1)
    alone = [
        np.concatenate([one.step([(seq, text[i : i + 1])]) for i in range(len(text))]) for seq, text in enumerate(texts)
    ]
    assert not np.allclose(alone[0][:4], one.step([(9, texts[0])], all_logits=True), atol=1e-2)
    for threads in (1, 3):
        many = ready(threads)
        prompts = many.step([(seq, text[:-2]) for seq, text in enumerate(texts)], all_logits=True)
        np.testing.assert_array_equal(prompts, np.concatenate([rows[:-2] for rows in alone]))
        for back in (2, 1):
            step = many.step([(seq, text[-back : len(text) - back + 1]) for seq, text in enumerate(texts)])
            np.testing.assert_array_equal(step, np.array([rows[-back] for rows in alone]))


def test_prompts_may_be_cut_anywhere() -> None:
    ids = tokens(600)
    decoder = base("int8", threads=2)[0]
    for parts in (lora(16, 1)[0], delta(2)[0]):
        decoder.add_adapter(parts)
    mix = [(1, 0.5), (2, 1.0)]
    whole = logits(decoder, ids, *mix)
    decoder.choose(1, mix)
    decoder.choose(2, [(2, 1.0)])
    at, found = 0, []
    for size in (1, 254, 3, 1, 300, 41):
        found.append(decoder.step([(2, ids[:7]), (1, ids[at : at + size])], all_logits=True)[7:])
        at += size
    np.testing.assert_array_equal(np.concatenate(found), whole)


@pytest.mark.parametrize("type", ["f32", "bf16", "int4"])
def test_who_computes_an_output_does_not_change_it(type: str) -> None:
    """Linears of many pieces of work, to which biases, branches and what adapters have are added in others."""
    c = config(hidden=360, intermediate=1000)
    weights, vectors = tensors(c, biases=True)
    packed = {n: _core.pack(v, "dense", "bf16" if "." not in n else type) for n, v in weights.items()}
    packed |= delta(1, "int8", BLOCKS[1::2], c=c)[0] | lora(8, 1, "f32", BLOCKS[::3], c)[0]
    made = [lora(5, 2, "f32", c=c)[0], lora(33, 3, c=c)[0], delta(4, "int8", c=c)[0]]
    mixes = [[(1, 0.3), (3, 1.0)], [], [(2, 1.0)], [(2, -0.7), (3, 0.1)]]
    texts = [tokens(2 + 5 * i, seed=i) for i in range(len(mixes))]

    def run(threads: int, together: bool) -> NDArray[np.float32]:
        decoder = _core.Decoder(described(c, biases=True).to_dict(), packed, vectors, threads=threads)
        assert [decoder.add_adapter(parts) for parts in made] == [1, 2, 3]
        for seq, mix in enumerate(mixes):
            decoder.choose(seq, mix)
        entries = list(enumerate(texts))
        steps = [entries] if together else [[(seq, text[i : i + 1])] for seq, text in entries for i in range(len(text))]
        return np.concatenate([decoder.step(step, all_logits=True) for step in steps])

    expected = run(1, together=True)
    for threads in (1, 2, 3, 5):
        np.testing.assert_array_equal(run(threads, together=False), expected)
        np.testing.assert_array_equal(run(threads, together=True), expected)


def test_switching_is_a_choice() -> None:
    """The same adapters serve one text after the other; a fork goes on with its own, and what is freed has none."""
    decoder = base()[0]
    ids = tokens(20)
    first, second = (decoder.add_adapter(lora(4, seed)[0]) for seed in (1, 2))
    bare = logits(decoder, ids)
    one, two = logits(decoder, ids, (first, 1.0)), logits(decoder, ids, (second, 1.0))
    assert min(np.abs(a - b).max() for a, b in ((bare, one), (bare, two), (one, two))) > 1e-2
    np.testing.assert_array_equal(logits(decoder, ids, (first, 1.0)), one)
    decoder.choose(3, [(second, 1.0)])
    decoder.step([(3, ids[:12])])
    decoder.fork(3, 4, 10)
    np.testing.assert_array_equal(decoder.step([(4, ids[10:])], all_logits=True), two[10:])
    decoder.free(4)
    np.testing.assert_array_equal(decoder.step([(4, ids)], all_logits=True), bare)
    decoder.rollback(3, 12)
    np.testing.assert_array_equal(decoder.step([(3, ids)], all_logits=True), two)


def test_the_model_itself_is_not_touched() -> None:
    c = config()
    plain, adapted = base("int8")[0], base("int8")[0]
    adapter = adapted.add_adapter({**lora(4, 1)[0], **delta(1)[0]})
    assert (adapted.weight_bytes, adapted.kernels()) == (plain.weight_bytes, plain.kernels())
    ids = tokens(30)
    np.testing.assert_array_equal(logits(adapted, ids), logits(plain, ids))
    hidden = plain.embed(ids)
    np.testing.assert_array_equal(adapted.forward_block(0, hidden)[0], plain.forward_block(0, hidden)[0])
    factors = sum(2 * 4 * (-(-rows // 16) * 16) for name, (rows, _) in shapes(c).items() if name in BLOCKS)
    rest = sum(w.nbytes for name, w in {**lora(4, 1)[0], **delta(1)[0]}.items() if not name.endswith(LOW_RANK_U))
    assert adapted.adapter_bytes(adapter) == factors + rest


def test_parallel_branches_of_the_model_are_their_sum() -> None:
    """A layer of two sparse matrices and one of low rank: all of them always on."""
    c = config()
    weights, vectors = tensors(c)
    packed = {name: _core.pack(v, "dense" if "." not in name else "bitmap", "f32") for name, v in weights.items()}
    exact = {name: values.astype(np.float64) for name, values in weights.items()}
    for parts, added in (delta(1, number=1), delta(2, number=2, names=BLOCKS[:5]), lora(3, 1, "f32", BLOCKS[3:6])):
        packed |= parts
        for name, values in added.items():
            exact[name] = exact[name] + values
    decoder = _core.Decoder(c.describe().to_dict(), packed, vectors, threads=2)
    ids = tokens(290)
    found = decoder.step([(0, ids)], all_logits=True)
    check(found, ReferenceModel(c.describe(), {**exact, **vectors}), ids)
    assert decoder.weight_bytes == sum(weight.nbytes for name, weight in packed.items() if name != "embed")
    assert {"layers.0.q.delta_1", "layers.0.q.delta_2"} < dict(decoder.kernels()).keys()
    singly = [decoder.step([(1, ids[i : i + 1])])[0] for i in range(20)]
    np.testing.assert_array_equal(singly, found[:20])


def test_what_fits_no_linear_is_named_and_leaves_nothing() -> None:
    decoder = base()[0]
    good = lora(3, 1)[0]
    u, v = _core.pack(np.ones((144, 3)), "dense", "f32"), _core.pack(np.ones((3, 72)), "dense", "f32")
    q = "layers.0.q"
    for extra, message in (
        ({}, "the adapter is empty"),
        ({**good, "layers.2.q.delta_1": v}, r"weight 'layers\.2\.q\.delta_1' is unknown to this decoder"),
        ({**good, "head.delta_1": v}, r"weight 'head\.delta_1' is unknown"),
        ({f"{q}.delta_2": v}, r"weight 'layers\.0\.q\.delta_2' is unknown"),
        ({f"{q}.delta_1": v}, r"weight 'layers\.0\.q\.delta_1' is 3 x 72, but the config asks for 144 x 72"),
        ({q + LOW_RANK_U: u}, r"weight 'layers\.0\.q\.low_rank_v' is missing"),
        ({q + LOW_RANK_V: v}, r"weight 'layers\.0\.q\.low_rank_v' is unknown"),
    ):
        with pytest.raises(ValueError, match=message):
            decoder.add_adapter(extra)
        with pytest.raises(ValueError, match="there is no adapter 1"):
            decoder.adapter_bytes(1)
    with pytest.raises(ValueError, match=r"vector 'layers\.0\.q\.bias' has 3 elements"):
        decoder.add_adapter({}, {"layers.0.q.bias": np.ones(3)})
    assert decoder.add_adapter(good) == 1


def test_choices_are_checked() -> None:
    decoder = base()[0]
    adapter = decoder.add_adapter(lora(3, 1)[0])
    for mix, message in (
        ([(adapter + 1, 1.0)], "there is no adapter 2"),
        ([(0, 1.0)], "there is no adapter 0"),
        ([(adapter, 1.0), (adapter, 0.5)], "adapter 1 is chosen twice"),
        ([(adapter, np.nan)], "the weight of adapter 1 must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            decoder.choose(0, mix)
        with pytest.raises(ValueError, match=message):
            decoder.encode([tokens(3)], None, mix)
    with pytest.raises(ValueError, match="sequence ids must not be negative"):
        decoder.choose(-1, [(adapter, 1.0)])
    decoder.choose(0, [(adapter, 1.0)])
    decoder.step([(0, tokens(3))])
    with pytest.raises(ValueError, match="sequence 0 holds 3 tokens of another choice of adapters"):
        decoder.choose(0, [])
    with pytest.raises(ValueError, match="adapter 1 is in use by sequence 0"):
        decoder.remove_adapter(adapter)
    decoder.free(0)
    decoder.remove_adapter(adapter)
    with pytest.raises(ValueError, match="there is no adapter 1"):
        decoder.remove_adapter(adapter)
    assert decoder.add_adapter(lora(2, 5)[0]) == adapter
