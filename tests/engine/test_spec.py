"""The native description: field for field the one of gossamer.arch.spec, and what it refuses by name."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import attention_cases
from engine_cases import config, tokens
from gossamer import _core
from gossamer.arch.spec import Attention, Block, Branch, Mlp, Norm, Rope, Stack, Transformer
from reference_model import ReferenceModel, random_tensors

Path = tuple[str | int, ...]


def build(values: Any) -> _core.Decoder:
    return _core.Decoder(values, {}, {})


def places(values: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every value of a description with the way to it."""
    yield path, values
    if isinstance(values, dict | list):
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield from places(value, (*path, key))


def at(values: Any, path: Path) -> Any:
    for key in path:
        values = values[key]
    return values


LLAMA = config(biases=("q", "down")).describe()
BOTH = pytest.mark.parametrize("described", [LLAMA, attention_cases.described("all")], ids=["llama", "all"])


def changed(path: Path, value: Any, described: Transformer = LLAMA) -> dict[str, Any]:
    """A description with another value at some place."""
    values = copy.deepcopy(described.to_dict())
    at(values, path[:-1])[path[-1]] = value
    return values


def written(path: Path) -> str:
    return "transformer" + "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)


ATTENTION: Path = ("stack", "kinds", 0, "branches", 0, "mixer")
MLP: Path = ("stack", "kinds", 0, "branches", 1, "mixer")

NORM = {"kind": "rms", "eps": 1e-5, "bias": False, "weight": True}
ROWS = {"norm": NORM, "over": "row", "own": False}
PARALLEL = {
    **config().describe().to_dict()["stack"]["kinds"][0],
    "parallel": True,
    "branches": [
        each | {"after_sum": each["before"] if each["mixer"]["part"] == "mlp" else None}
        for each in config().describe().to_dict()["stack"]["kinds"][0]["branches"]
    ],
}
HEAD = config().describe().to_dict()["head"]


@BOTH
def test_it_has_every_field_that_python_has_and_no_other(described: Transformer) -> None:
    values = described.to_dict()
    objects = [path for path, value in places(values) if isinstance(value, dict)]
    assert len(objects) > 10
    for path in objects:
        for key in at(values, path):
            without = copy.deepcopy(values)
            del at(without, path)[key]
            with pytest.raises(ValueError, match=f"^{re.escape(written((*path, key)))} is missing$"):
                build(without)
        more = copy.deepcopy(values)
        at(more, path)["colour"] = 1
        with pytest.raises(ValueError, match=f"^{re.escape(written(path))}: 'colour' is not known; there are: "):
            build(more)
    with pytest.raises(ValueError, match="weight 'embed' is missing"):  # all else is fine
        build(values)


@BOTH
def test_a_value_of_another_kind_is_refused_at_its_place(described: Transformer) -> None:
    for path, value in places(described.to_dict()):
        for wrong in (b"x", 1.5 if type(value) is int else object(), "no such word", 2**40, 10**400):
            number = value is None or type(value) is float  # what may be absent may be a number
            if not path or (isinstance(value, str) and path[-1] == "part") or (number and wrong == 2**40):
                continue
            with pytest.raises(ValueError, match=re.escape(written(path[:-1] if isinstance(path[-1], int) else path))):
                build(changed(path, wrong, described))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("hidden",), 0, "transformer.hidden must be between 1 and 16777216, got 0"),
        (("vocab",), (1 << 24) + 1, "transformer.vocab must be between"),
        (("context",), -1, "transformer.context must be between"),
        (("stack", "layers"), [], "transformer.stack.layers must be from 1 to 4096 numbers, got 0"),
        (("stack", "layers"), [0, 1], r"transformer.stack.layers\[1\] must be a number of the 1 kinds, got 1"),
        (("stack", "layers", 0), -1, r"transformer.stack.layers\[0\] must be a number of"),
        (("stack", "kinds", 0, "branches"), [], r"kinds\[0\].branches is empty"),
        (("stack", "norm", "kind"), "sum", "transformer.stack.norm.kind must be 'rms' or 'layer', got 'sum'"),
        (("stack", "norm", "eps"), float("nan"), "transformer.stack.norm.eps must be finite and not negative"),
        (("head", "tied"), 1, "transformer.head.tied must be true or false, got '1'"),
        ((*ATTENTION, "part"), "recurrence", "mixer: part 'recurrence' is not known; there are: attention, mlp"),
        ((*ATTENTION, "heads"), True, r"branches\[0\].mixer.heads must be an integer, got 'True'"),
        ((*ATTENTION, "kv_heads"), 4, r"mixer: heads \(6\) must be a multiple of kv_heads \(4\)"),
        ((*ATTENTION, "head_dim"), 1 << 23, "mixer: 6 heads of 8388608 are too wide"),
        ((*ATTENTION, "scale"), 0.0, "mixer.scale must be finite and above 0, got 0"),
        ((*ATTENTION, "scale"), 1e300, "mixer.scale must be finite and above 0, got inf"),
        ((*ATTENTION, "biases"), ["up"], "mixer.biases: no linear is called 'up'"),
        ((*ATTENTION, "biases"), ["q", "q"], "mixer.biases names 'q' twice"),
        ((*ATTENTION, "positions", "inv_freq"), [1.0] * 13, "inv_freq has 13 frequencies, more than half of head_dim"),
        ((*ATTENTION, "positions", "inv_freq", 2), float("inf"), "positions.inv_freq holds a value that is not finite"),
        ((*ATTENTION, "positions", "scale"), -1.0, "positions.scale must be finite and above 0, got -1"),
        ((*ATTENTION, "window"), 0, "mixer.window must be between 1 and 16777216, got 0"),
        ((*ATTENTION, "softcap"), 0.0, "mixer.softcap must be finite and above 0"),
        ((*ATTENTION, "clip"), 1e300, "mixer.clip must be finite and above 0"),
        ((*ATTENTION, "positions"), {"part": "alibi", "slopes": [0.5]}, "slopes must be 6 numbers, one a head, got 1"),
        ((*ATTENTION, "qk_norm"), {**ROWS, "own": True}, "qk_norm.own must be false for norms over a row"),
        ((*ATTENTION, "qk_norm"), {**ROWS, "over": "layer"}, "qk_norm.over must be 'head' or 'row', got 'layer'"),
        ((*ATTENTION, "query_scale"), {"beta": 0.1, "length": 0}, "query_scale.length must be between 1"),
        ((*ATTENTION, "query_scale"), {"beta": -1.0, "length": 1}, "query_scale.beta must be finite and not negative"),
        ((*MLP, "activation"), "cube", "activation must be 'silu' or 'gelu' or 'gelu_tanh' or 'relu' or 'relu2', got"),
        ((*MLP, "limit"), 0.0, "mixer.limit must be finite and above 0, got 0"),
        ((*MLP, "alpha"), -1.0, "mixer.alpha must be finite and above 0, got -1"),
        ((*MLP, "shift"), float("inf"), "mixer.shift must be finite, got inf"),
        ((*MLP, "width"), 0, "mixer.width must be between 1"),
        ((*MLP, "gated"), 1, "mixer.gated must be true or false"),
        (("stack", "norm", "bias"), True, "transformer.stack.norm.bias must be false for this kind"),
        ((*MLP[:-1], "scale"), 0.0, r"branches\[1\].scale must be finite and above 0, got 0"),
        (("stack", "kinds", 0, "norm"), NORM, r"kinds\[0\].norm is for parallel branches"),
        (("stack", "kinds", 0), PARALLEL | {"norm": NORM}, r"branches\[0\].before must be null where the block has a"),
        (("stack", "kinds", 0), PARALLEL, r"branches\[1\].after_sum is for branches in turn"),
        (("embedding", "scale"), float("nan"), "transformer.embedding.scale must be finite and above 0"),
        (("embedding", "project"), 0, "transformer.embedding.project must be between 1 and"),
        (("head", "scale"), 0.0, "transformer.head.scale must be finite and above 0"),
        (("head", "softcap"), -1.0, "transformer.head.softcap must be finite and above 0, got -1"),
        (("head",), HEAD | {"tied": True, "project": 8}, "transformer.head.project must be the embedding's"),
        (("embedding", "positions"), {"part": "learned", "count": 8, "offset": 8}, "offset must be below 8, got 8"),
        (("embedding", "positions"), {"part": "learned", "count": 8, "offset": 1}, "has 7 positions, fewer than"),
    ],
)
def test_what_is_out_of_range_is_named(path: Path, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(changed(path, value))


def test_two_branches_of_one_name_are_refused() -> None:
    values = config().describe().to_dict()
    branches = at(values, ATTENTION[:-2])
    branches[1] = branches[0]
    with pytest.raises(ValueError, match=r"branches\[1\] is a second 'attn'"):
        build(values)


def test_parts_may_differ_from_layer_to_layer_or_be_absent() -> None:
    """Heads of two shapes, so pages of two pools; positions, norms and biases here and not there."""
    base = config()
    rope = Rope(base.inv_freq, 1.0)
    norm = Norm("rms", 1e-5)
    wide = Attention(6, 2, 24, 0.2, rope, ("q", "o"))
    narrow = Attention(4, 4, 10, 0.31, None, ("v",))
    kinds = (
        Block((Branch(wide, norm), Branch(Mlp(100, "silu", biases=("down",)), norm))),
        Block((Branch(Mlp(37, "silu"), None), Branch(narrow, norm))),
        Block((Branch(replace(wide, positions=Rope(base.inv_freq[:3], 1.5)), None),)),
    )
    whole = replace(base.describe(), stack=Stack(kinds, (0, 1, 2, 1, 0), None))
    assert Transformer.from_dict(whole.to_dict()) == whole
    tensors = random_tensors(whole)
    packed = {name: _core.pack(tensors[name], "dense", "f32") for name in whole.weights}
    vectors = {name: tensors[name] for name in whole.vectors}
    text = tokens(150)
    expected = ReferenceModel(whole, tensors).logits(text)
    logits = _core.Decoder(whole.to_dict(), packed, vectors, threads=2).step([(0, text)], all_logits=True)
    # Without a norm at the end values grow; f32 against f64 through five blocks.
    assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()
    decoder = _core.Decoder(whole.to_dict(), packed, vectors, threads=1)
    assert decoder.kv_bytes_read(1) == 3 * 2 * (24 + 32) * 4 + 2 * 4 * (10 + 16) * 4
    parts = [decoder.step([(7, text[:100])], all_logits=True), decoder.step([(7, text[100:])], all_logits=True)]
    np.testing.assert_array_equal(np.concatenate(parts), logits)
    hidden = decoder.embed(text)
    for layer in range(whole.layers):
        hidden, inputs = decoder.forward_block(layer, hidden, ("v",) if layer != 0 else ("down",))
        assert inputs
    np.testing.assert_array_equal(decoder.head(hidden), logits)
    with pytest.raises(ValueError, match="no linear is called 'up'; capture takes q, k, v, o"):
        decoder.forward_block(2, hidden, ("up",))
