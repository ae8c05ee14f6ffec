"""Experts in the engine: the float64 reference, what reads alone reads in company, and what is captured of each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engine_cases import config, tokens
from gossamer import _core
from gossamer.arch.experts import with_experts
from gossamer.arch.spec import Experts, Mlp, Routing, Transformer
from reference_model import ReferenceModel, random_tensors

MLP = Mlp(40, "silu")
BIASED = Mlp(40, "gelu_tanh", biases=("gate", "up", "down"))
CASES = {
    "mixtral": Experts(8, 2, MLP, Routing("all", normalized=True)),
    "not normalized": Experts(5, 3, MLP, Routing("all", scale=2.5)),
    "chosen": Experts(6, 4, BIASED, Routing("chosen", bias=True)),
    "shared": Experts(4, 1, Mlp(24, "gelu", gated=False), Routing("all"), shared=Mlp(70, "silu", biases=("down",))),
    "gate": Experts(16, 3, MLP, Routing("all", normalized=True), shared=Mlp(33, "silu"), shared_gate=True),
    "all": Experts(3, 3, MLP, Routing("all")),
}


def described(case: str, layers: int = 2) -> Transformer:
    return with_experts(config(layers=layers).describe(), CASES[case])


def built(
    case: str, format: str = "bitmap", type: str = "f32", more: dict[str, Any] | None = None, **options: Any
) -> tuple[_core.Decoder, dict[str, Any]]:
    whole = described(case)
    tensors = random_tensors(whole) | (more or {})
    dense = {"embed", "head", *whole.exact}
    packed = {
        name: _core.pack(tensors[name], "dense", "f32") if name in dense else _core.pack(tensors[name], format, type)
        for name in whole.weights
    }
    vectors = {name: tensors[name] for name in whole.vectors}
    return _core.Decoder(whole.to_dict(), packed, vectors, **options), tensors


@pytest.mark.parametrize("case", CASES)
def test_logits_match_the_float64_reference(case: str) -> None:
    decoder, tensors = built(case)
    text = tokens(90)
    expected = ReferenceModel(described(case), tensors).logits(text)
    # f32 against f64 through two blocks, as for other decoders.
    np.testing.assert_allclose(decoder.step([(0, text)], all_logits=True), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("type", ["f32", "int8", "int4"])
@pytest.mark.parametrize("case", ["mixtral", "chosen", "gate"])
def test_neither_company_nor_threads_nor_cuts_change_a_bit(case: str, type: str) -> None:
    texts = [tokens(5 + 9 * i, seed=i) for i in range(16)]
    one, _ = built(case, type=type, threads=1)
    alone = [np.array([one.step([(i, text[j : j + 1])])[0] for j in range(len(text))]) for i, text in enumerate(texts)]
    for threads in (1, 2, 3):
        many, _ = built(case, type=type, threads=threads)
        prompts = many.step([(i, text[:-2]) for i, text in enumerate(texts)], all_logits=True)
        np.testing.assert_array_equal(prompts, np.concatenate([rows[:-2] for rows in alone]))
        for back in (2, 1):  # one token of each of 16 sequences a call
            step = many.step([(i, text[-back : len(text) - back + 1]) for i, text in enumerate(texts)])
            np.testing.assert_array_equal(step, np.array([rows[-back] for rows in alone]))
        cut = [many.step([(99, part)], all_logits=True) for part in np.split(texts[15], [1, 2, 70, 77])]
        np.testing.assert_array_equal(np.concatenate(cut), alone[15])


def test_of_equal_ones_the_first_are_chosen() -> None:
    same = {f"layers.{layer}.router": np.zeros((8, 72), np.float32) for layer in range(2)}
    decoder, _ = built("mixtral", more=same)
    routing = decoder.block_inputs(0, decoder.embed(tokens(5)), ["routing"])["routing"]
    np.testing.assert_array_equal(routing, [[0.5, 0.5] + [-1.0] * 6] * 5)


@pytest.mark.parametrize("case", ["mixtral", "gate"])
@pytest.mark.parametrize("length", [1, 40])
def test_captures_are_of_the_tokens_that_were_routed_there(case: str, length: int) -> None:
    decoder, tensors = built(case)
    whole = described(case)
    model = ReferenceModel(whole, tensors)
    hidden = decoder.embed(tokens(80))
    mixer = whole.blocks[1].branches[1].mixer
    names = ["q", *mixer.exact(72), *mixer.linears(72), mixer.routed]
    expected, inputs = model.forward_block(1, hidden, names, length)
    out, captured = decoder.forward_block(1, hidden, names, length)
    np.testing.assert_allclose(out, expected, atol=2e-5, rtol=0)
    for name in names:
        assert captured[name].shape == inputs[name].shape
        np.testing.assert_allclose(captured[name], inputs[name], atol=2e-5, rtol=0)
    routing = captured["routing"]
    assert ((routing >= 0).sum(axis=1) == mixer.chosen + (mixer.shared is not None)).all()
    for group in mixer.groups:
        assert len(captured[group.linears[0]]) == (routing[:, group.column] >= 0).sum()
    few = ["experts.1.gate", "experts.0.down", "routing"]
    for some in (few[:1], few[1:2], few):
        for name, values in decoder.block_inputs(1, hidden, some, length).items():
            np.testing.assert_array_equal(values, captured[name])


def test_low_rank_branches_of_experts() -> None:
    """Sums of an expert's linears are of its own rows."""
    rng = np.random.default_rng(3)
    whole = described("mixtral")
    tensors = random_tensors(whole)
    packed = {name: _core.pack(tensors[name], "dense", "f32") for name in whole.weights}
    for name in ("layers.0.experts.1.up", "layers.1.experts.0.down", "layers.1.router"):
        rows, cols = tensors[name].shape
        u, v = (rng.standard_normal(shape).astype(np.float32) / 8 for shape in ((rows, 3), (3, cols)))
        packed[f"{name}.low_rank_u"], packed[f"{name}.low_rank_v"] = (_core.pack(x, "dense", "f32") for x in (u, v))
        tensors[name] = tensors[name] + u @ v
    decoder = _core.Decoder(whole.to_dict(), packed, {name: tensors[name] for name in whole.vectors})
    text = tokens(50)
    expected = ReferenceModel(whole, tensors).logits(text)
    np.testing.assert_allclose(decoder.step([(0, text)], all_logits=True), expected, atol=2e-5, rtol=0)
    fresh = [decoder.step([(1, text[i : i + 1])])[0] for i in range(50)]
    np.testing.assert_allclose(fresh, expected, atol=2e-5, rtol=0)


def test_bytes_follow_the_experts_that_are_chosen() -> None:
    def parts(case: str) -> tuple[int, int, int]:
        decoder, tensors = built(case, "dense", type="f32")
        sizes = {name: tensors[name].shape for name in described(case).weights if name != "embed"}
        packed = {name: _core.pack(np.ones(shape, np.float32), "dense", "f32").nbytes for name, shape in sizes.items()}
        experts = sum(size for name, size in packed.items() if ".experts." in name)
        return decoder.weight_bytes, sum(packed.values()) - experts, experts

    for case, mixer in CASES.items():
        read, others, experts = parts(case)
        assert read == others + experts * mixer.chosen // mixer.count


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 0}, "mixer.count must be between 1 and 4096, got 0"),
        ({"chosen": 9}, r"mixer.chosen must be between 1 and count \(8\), got 9"),
        ({"shared_gate": True}, "mixer.shared_gate must be false where nothing is shared"),
        ({"routing": {"softmax": "some"}}, "routing.softmax must be 'all' or 'chosen', got 'some'"),
        ({"routing": {"softmax": "chosen", "normalized": True}}, "routing.normalized must be false"),
        ({"routing": {"scale": 0.0}}, "routing.scale must be finite and above 0"),
        ({"expert": {"width": 0}}, "mixer.expert.width must be between 1"),
        ({"expert": {"part": "attention"}}, "mixer.expert: part 'attention' is not known; there are: mlp"),
    ],
)
def test_what_is_out_of_range_is_named(change: dict[str, Any], message: str) -> None:
    values = described("mixtral").to_dict()
    mixer = values["stack"]["kinds"][0]["branches"][1]["mixer"]
    for key, value in change.items():
        mixer[key] = mixer[key] | value if isinstance(value, dict) else value
    with pytest.raises(ValueError, match=message):
        _core.Decoder(values, {}, {})


def test_every_field_of_it_is_needed_and_no_other_is_known() -> None:
    whole = replace(described("gate"))
    assert Transformer.from_dict(whole.to_dict()) == whole
    for part in ((), ("expert",), ("routing",), ("shared",)):
        for key in [*_at(whole.to_dict(), part), None]:
            values = whole.to_dict()
            if key is None:
                _at(values, part)["colour"] = 1
            else:
                del _at(values, part)[key]
            with pytest.raises(ValueError, match="is missing" if key else "'colour' is not known"):
                _core.Decoder(values, {}, {})


def _at(values: dict[str, Any], part: tuple[str, ...]) -> dict[str, Any]:
    values = values["stack"]["kinds"][0]["branches"][1]["mixer"]
    for key in part:
        values = values[key]
    return values


def test_adapters_of_routers_are_added_and_those_of_experts_are_refused() -> None:
    decoder, tensors = built("gate")
    text, hidden = tokens(30), tensors["layers.0.router"].shape[1]
    delta = np.random.default_rng(0).standard_normal((16, hidden)).astype(np.float32) / 4
    added = decoder.add_adapter({"layers.0.router.delta_1": _core.pack(delta, "dense", "f32")}, {})
    decoder.choose(0, [(added, 1.0)])
    changed = {**tensors, "layers.0.router": tensors["layers.0.router"] + delta}
    expected = ReferenceModel(described("gate"), changed).logits(text)
    np.testing.assert_allclose(decoder.step([(0, text)], all_logits=True), expected, atol=2e-5, rtol=0)
    other = _core.pack(np.ones((40, hidden), np.float32), "dense", "f32")
    with pytest.raises(ValueError, match=r"adapters of experts are not supported: layers\.1\.experts\.3\.up"):
        decoder.add_adapter({"layers.1.experts.3.up.delta_1": other}, {})
