"""Networks take all of a description or refuse it by name, whatever linears, memory and ops they have."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import attention_cases
from gossamer import _core
from gossamer.arch import spec
from gossamer.arch.llama import Sizes
from gossamer.arch.spec import Transformer
from gossamer.errors import GossamerError
from reference_model import ReferenceModel

torch = pytest.importorskip("torch", reason="the [torch] extra is not installed")
from gossamer.nn.block import Network, Norm, Stream  # noqa: E402
from gossamer.nn.check import choose, expect  # noqa: E402
from gossamer.nn.cuda_ops import CudaOps, Kernels  # noqa: E402
from gossamer.nn.decoder import Decoder  # noqa: E402
from gossamer.nn.engine import Engine  # noqa: E402
from gossamer.nn.linears import Modules, parameter_name  # noqa: E402
from gossamer.nn.memory import Cache, LockStep, Reach, Step, Whole  # noqa: E402
from gossamer.nn.ops import TorchOps, attention_scale  # noqa: E402

DESCRIBED = Sizes(
    hidden=24, layers=2, heads=4, kv_heads=2, head_dim=8, intermediate=20, vocab=30, context=16, norm_eps=1e-5,
    inv_freq=(1.0, 0.25, 0.1), tied=False, biases=("q", "down"),
).describe()  # fmt: skip
LAYER = spec.Norm("layer", 1e-5, bias=True)
SIX = spec.Attention(4, 4, 6, spec.attention_scale(6), None, ("q", "k", "v", "o"))
# What the first has not: layer norms, plain MLPs, GELU, parallel branches, learned positions.
OTHER = Transformer(
    24, 30, 16, spec.Embedding(spec.Learned(18, 2)),
    spec.Stack(
        (
            spec.Block(
                (spec.Branch(SIX, LAYER), spec.Branch(spec.Mlp(20, "gelu", False, ("up",)), LAYER)), parallel=True
            ),
            spec.Block((spec.Branch(SIX, spec.Norm("layer", 1e-5)), spec.Branch(spec.Mlp(20, "gelu_tanh"), LAYER))),
        ),
        (0, 1), LAYER,
    ),
    spec.Head(True),
)  # fmt: skip
RMS = spec.Norm("rms", 1e-5)
# What neither has: norms behind, after sums, shared and without weights, scales, projections, limits.
THIRD = Transformer(
    24, 30, 16, spec.Embedding(spec.Learned(16), 1.5, 20, LAYER),
    spec.Stack(
        (
            spec.Block(
                (spec.Branch(SIX, None, RMS, scale=0.5), spec.Branch(spec.Mlp(20, "relu", False), None)), True, LAYER
            ),
            spec.Block((
                spec.Branch(SIX, spec.Norm("rms", 1e-5, weight=False), None, RMS, 2.0),
                spec.Branch(spec.Mlp(20, "silu", limit=0.7, alpha=1.7, shift=1.0), None, LAYER, LAYER),
            )),
            spec.Block(
                (spec.Branch(SIX, spec.Norm("layer", 1e-5, weight=False)), spec.Branch(spec.Mlp(9, "relu2"), RMS))
            ),
        ),
        (0, 1, 2), RMS,
    ),
    spec.Head(True, True, 0.5, 4.0, 20),
)  # fmt: skip
BOTH = pytest.mark.parametrize("described", [DESCRIBED, OTHER, THIRD], ids=["llama", "other", "third"])
EVERY = pytest.mark.parametrize(
    "described",
    [DESCRIBED, OTHER, THIRD, *map(attention_cases.described, attention_cases.ATTENTIONS)],
    ids=["llama", "other", "third", *attention_cases.ATTENTIONS],
)


def engine(config: Transformer, kernels: Any) -> Engine:
    """A GPU's decoder on the processor, with random weights."""
    values = random_values(config)
    weights = {name: _core.pack(value, "dense", "bf16") for name, value in values.items() if value.ndim == 2}
    vectors = {name: value for name, value in values.items() if value.ndim == 1}
    return Engine(config, weights, vectors, "cpu", dtype=torch.bfloat16, kernels=kernels)


def random_values(config: Transformer) -> dict[str, Any]:
    """Tensors by canonical name, whose values bf16 has."""
    torch.manual_seed(0)
    drawn = {name: torch.randn(shape) * (0.3 if len(shape) == 2 else 1) for name, shape in config.tensors.items()}
    return {name: value.bfloat16().float().numpy() for name, value in drawn.items()}


def on_loops(config: Transformer) -> Engine:
    return engine(config, pytest.importorskip("gossamer._simt", reason="needs an editable install"))


STRATEGIES: dict[str, Callable[[Transformer], Any]] = {
    "training": Decoder,  # which samples are drawn with, too
    "GPU, torch": lambda config: engine(config, None),
    "GPU, kernels": on_loops,
}


def strange(part: Any) -> Any:
    """A part that says one thing more than its class can."""
    kind = dataclasses.make_dataclass(
        type(part).__name__, [("novel", int, 0)], bases=(type(part),), frozen=True, namespace={}
    )
    own = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    return kind(**own, novel=3)


def stranger(value: Any) -> Iterator[tuple[str, Any]]:
    """Copies of a description in each of which one part is strange, and what it is called."""
    if isinstance(value, tuple):
        for index, item in enumerate(value):
            for name, changed in stranger(item):
                yield name, (*value[:index], changed, *value[index + 1 :])
    if dataclasses.is_dataclass(value):
        yield type(value).__name__.lower(), strange(value)
        for field in dataclasses.fields(value):
            for name, changed in stranger(getattr(value, field.name)):
                yield name, dataclasses.replace(value, **{field.name: changed})


@BOTH
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_field_that_nobody_knows_is_refused_wherever_it_is(strategy: str, described: Transformer) -> None:
    build = STRATEGIES[strategy]
    build(described)
    seen = set()
    for name, changed in stranger(described):
        with pytest.raises(GossamerError, match=f"^{name}: novel 3 is nothing that torch decoders know$"):
            build(changed)
        seen.add(name)
    assert seen >= {"transformer", "embedding", "stack", "block", "branch", "attention", "mlp", "norm", "head"}
    assert ("rope" in seen) == (described is DESCRIBED) != ("learned" in seen)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_field_that_says_nothing_new_is_taken(strategy: str) -> None:
    for _, changed in stranger(DESCRIBED):
        STRATEGIES[strategy](_as_before(changed))


def _as_before(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_as_before, value))
    if not dataclasses.is_dataclass(value):
        return value
    own = {field.name: _as_before(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return type(value)(**(own | {"novel": 0} if "novel" in own else own))


def with_part(old: Any, new: Any, value: Any = DESCRIBED) -> Any:
    """A description in which every part that equals one is another."""
    if value == old:
        return new
    if isinstance(value, tuple):
        return tuple(with_part(old, new, item) for item in value)
    if not dataclasses.is_dataclass(value):
        return value
    fields = dataclasses.fields(value)
    return dataclasses.replace(value, **{f.name: with_part(old, new, getattr(value, f.name)) for f in fields})


def renamed(old: Any, part: str) -> Any:
    """A part of another kind with the same fields."""
    kind = type("Other", (type(old),), {"part": part})
    return kind(**{field.name: getattr(old, field.name) for field in dataclasses.fields(old)})


ATTENTION, MLP = (branch.mixer for branch in DESCRIBED.blocks[0].branches)
NORM = DESCRIBED.stack.norm
KINDS: dict[str, tuple[Any, Any, str]] = {
    "norm": (
        NORM,
        spec.Norm("median", 1e-5),
        "norm: kind 'median' is nothing that torch decoders know; they have: rms, layer",
    ),
    "activation": (MLP, dataclasses.replace(MLP, activation="cubed"), "mlp: activation 'cubed' is nothing"),
    "mixer": (MLP, renamed(MLP, part="recurrence"), "branch: mixer 'recurrence' is nothing"),
    "positions": (ATTENTION.positions, renamed(ATTENTION.positions, part="spiral"), "attention: positions 'spiral' is"),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_that_nobody_knows_is_refused(strategy: str, kind: str) -> None:
    old, new, words = KINDS[kind]
    with pytest.raises(GossamerError) as error:
        STRATEGIES[strategy](with_part(old, new))
    assert str(error.value).startswith(words)


def test_linears_that_say_more_than_they_can_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    linears = spec.Attention.linears
    monkeypatch.setattr(
        spec.Attention,
        "linears",
        lambda self, hidden: {name: strange(linear) for name, linear in linears(self, hidden).items()},
    )
    with pytest.raises(GossamerError, match=r"^linear: novel 3 is nothing"):
        Decoder(DESCRIBED)


def test_what_a_part_says_is_taken_or_named() -> None:
    norm = spec.Norm("rms", 0.5)
    expect(norm, "kind", "eps")
    with pytest.raises(GossamerError, match=r"^norm: eps 0\.5 is nothing"):
        expect(norm, "kind")
    assert choose({"rms": 1}, norm, "kind") == 1
    with pytest.raises(GossamerError, match=r"kind 'rms' is nothing that torch decoders know; they have: a, b$"):
        choose({"a": 1, "b": 2}, norm, "kind")


# --- what is computed -------------------------------------------------------------------------------------------------


# One thing more each than heads and a scale.
CHANGED = {
    "window": dataclasses.replace(ATTENTION, window=3),
    "softcap": dataclasses.replace(ATTENTION, softcap=0.5, window=4),
    "sinks": dataclasses.replace(ATTENTION, sinks=True),
    "alibi": dataclasses.replace(ATTENTION, positions=spec.Alibi((0.5, 0.25, 0.125, 0.1))),
    "norms": dataclasses.replace(ATTENTION, qk_norm=spec.QkNorm(spec.Norm("layer", 1e-5), own=True), clip=0.5),
    "interleaved": dataclasses.replace(ATTENTION, positions=spec.Rope((1.0, 0.3), interleaved=True)),
    "scaled queries": dataclasses.replace(ATTENTION, query_scale=spec.QueryScale(0.5, 2)),
}


@torch.no_grad()
def states_of(network: Network, memory: str) -> Any:
    """Normed states [9, hidden] of a text, its keys and values in one of the memories."""
    tokens, places = torch.arange(3, 12), torch.arange(9)
    if memory == "whole":
        return network.run(tokens[None], network.step(Whole(), places))[0]
    cpu, steps = torch.device("cpu"), []
    lock_step = LockStep(network.slots, 2, 9, cpu, torch.float32)
    cache = Cache(network.slots, 12, cpu, torch.float32)
    for at in range(9):
        if memory == "lock-step":  # beside another text
            lock_step.at = at
            both = torch.stack([tokens[at], tokens[8 - at]])[:, None]
            steps.append(network.run(both, network.step(lock_step, places[at : at + 1]))[0])
        elif at % 3 == 0:  # three at a time
            some = places[at : at + 3]
            steps.append(network.run(tokens[some], network.step(Reach(cache, some, 12), some)))
    return torch.cat(steps)


def random_network(config: Transformer) -> Network:
    torch.manual_seed(0)
    network = Network(config, Modules(), TorchOps())
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network


@pytest.mark.parametrize("memory", ["lock-step", "reach"])
@pytest.mark.parametrize(
    "config",
    [
        DESCRIBED,
        OTHER,
        THIRD,
        with_part(ATTENTION, dataclasses.replace(ATTENTION, positions=None)),
        with_part(ATTENTION, dataclasses.replace(ATTENTION, scale=0.1)),
        *(with_part(ATTENTION, changed) for changed in CHANGED.values()),
    ],
    ids=["rotary", "other", "third", "no positions", "scale", *CHANGED],
)
def test_every_memory_gives_the_same(config: Transformer, memory: str) -> None:
    network = random_network(config)
    torch.testing.assert_close(states_of(network, memory), states_of(network, "whole"), rtol=0, atol=1e-5)


@EVERY
def test_logits_are_those_of_the_reference(described: Transformer) -> None:
    values, ids = random_values(described), np.arange(3, 15)
    expected = ReferenceModel(described, values).logits(ids)
    decoder = Decoder(described)
    decoder.load_state_dict({parameter_name(name): torch.from_numpy(value) for name, value in values.items()})
    with torch.no_grad():
        logits = decoder(torch.from_numpy(ids)[None]).logits[0]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    for kernels in ("GPU, torch", "GPU, kernels"):
        ours = STRATEGIES[kernels](described)
        found = np.concatenate([ours.step([(0, ids[:7])], True), *(ours.step([(0, [token])]) for token in ids[7:])])
        np.testing.assert_allclose(found, expected, rtol=0, atol=2**-5 * np.abs(expected).max())


def test_blocks_of_different_kinds_have_what_is_theirs() -> None:
    first = DESCRIBED.blocks[0]
    wide = dataclasses.replace(
        ATTENTION, heads=2, kv_heads=1, head_dim=10, positions=spec.Rope((0.5,)), scale=10**-0.5, biases=()
    )
    other = spec.Block((spec.Branch(wide, None),))  # neither a norm nor an MLP
    stack = spec.Stack((first, other), (0, 1, 0), None)
    config = dataclasses.replace(DESCRIBED, stack=stack)
    network = random_network(config)
    assert network.slots == ((2, 8), (1, 10), (2, 8))
    assert [tuple(cos.shape) for cos, _ in network.angles(torch.arange(5))] == [(5, 3), (5, 1)]
    assert {name for name, _ in network.named_parameters() if name.startswith("layers.1.")} == {
        f"layers.1.{name}.weight" for name in "qkvo"
    }
    for memory in ("lock-step", "reach"):
        torch.testing.assert_close(states_of(network, memory), states_of(network, "whole"), rtol=0, atol=1e-5)


def test_parameters_are_the_tensors_of_the_description_in_their_order() -> None:
    shapes = {name: tuple(parameter.shape) for name, parameter in Decoder(DESCRIBED).named_parameters()}
    expected = {name if name.endswith("bias") else f"{name}.weight": shape for name, shape in DESCRIBED.tensors.items()}
    assert shapes == expected
    block = ("attn_norm", "mlp_norm", "q", "q.bias", "k", "v", "o", "gate", "up", "down", "down.bias")
    names = ["embed", *(f"layers.{layer}.{name}" for layer in range(2) for name in block), "norm", "head"]
    assert list(shapes) == [name if name.endswith("bias") else f"{name}.weight" for name in names]  # states know it


def test_the_stream_adds_all_that_waits() -> None:
    states, updates = torch.randn(3, 24), torch.randn(2, 3, 24)
    network = Network(DESCRIBED, Modules(), TorchOps())
    assert isinstance(network.norm, Norm)
    total = states + updates[0] + updates[1]
    stream = Stream(states)
    for update in updates:
        stream.add(update)
    torch.testing.assert_close(stream.read(network.norm), network.norm(total))
    torch.testing.assert_close(stream.read(None), total)
    torch.testing.assert_close(stream.read(network.norm), network.norm(total))  # nothing is added twice


def test_kernels_are_given_the_scale_of_the_description() -> None:
    kernels = Kernels(pytest.importorskip("gossamer._simt", reason="needs an editable install"), torch.device("cpu"))
    described = dataclasses.replace(ATTENTION, scale=0.05)
    found = []
    for ops in (TorchOps(), CudaOps(kernels)):
        torch.manual_seed(1)
        cache = Cache([(2, 8)], 6, torch.device("cpu"), torch.bfloat16)
        between, places = ops.attention(described, 0, 0, {}), torch.arange(5)
        for some in (places[:4], places[4:]):
            angles = [tuple(torch.randn(2, len(some), 3))]
            step = Step(Reach(cache, some, 6), some, angles)  # type: ignore[arg-type]
            mixed = between([4 * torch.randn(len(some), 64).bfloat16()], step)
        found.append(mixed.float())
    torch.testing.assert_close(found[0], found[1], rtol=2**-6, atol=2**-6)
    assert attention_scale(described) == 0.05
    assert attention_scale(ATTENTION) == pytest.approx(8**-0.5, rel=1e-15)  # more than float32 has
