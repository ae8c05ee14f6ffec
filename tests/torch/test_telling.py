"""Code that can tell a packed layer from the dense one that it stands for keeps the layer dense, and names itself."""

from __future__ import annotations

import abc
import copy
import functools
import operator
import pickle
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402

from gossamer.torch import sparsify  # noqa: E402
from torch_layers import pruned, random  # noqa: E402

SIZE = 48
X = random(4, SIZE)
KINDS = (nn.Linear, nn.Conv1d)
UNION = nn.Linear | nn.Conv2d


class Multiplies(abc.ABC):  # noqa: B024
    """An abstract class that linear layers are said to be of."""


Multiplies.register(nn.Linear)


class Pair(nn.Module):
    """Two layers; `ask` is asked about one of them, and what it says changes the output."""

    Kinds = (nn.Conv1d, nn.Linear)

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.called = pruned(SIZE, SIZE, 0.6, seed=1), pruned(SIZE, SIZE, 0.6, seed=2)


def asks(name: str, ask: Callable[[Any], Any]) -> type[Pair]:
    """A module whose forward calls something with itself, and adds what it says to its output."""

    def forward(self: Pair, x: Tensor) -> Tensor:
        return self.called(self.asked(x)) + float(ask(self))

    return type(name, (Pair,), {"forward": forward})


def of_kind(layer: nn.Module, *, kinds: Any = nn.Linear) -> bool:
    return isinstance(layer, kinds)


def matches(layer: nn.Module) -> int:
    match layer:
        case nn.Conv1d():
            return 1
        case nn.Linear(in_features=size):
            return size
    return 0


def closed_over() -> Callable[[Pair], bool]:
    kinds = (nn.Linear, nn.Bilinear)

    def ask(self: Pair) -> bool:
        return isinstance(self.asked, kinds)

    return ask


def counted(self: Pair) -> int:
    count = 0
    for parameter in self.asked.parameters():
        count += parameter.numel()
    return count


def collected(self: Pair) -> int:
    found = []
    for parameter in self.asked.parameters():
        found.append(parameter.dtype)  # noqa: PERF401
    return len(found)


def followed(self: Pair) -> int:
    found: Any = self
    for name in ("asked", "weight"):
        found = getattr(found, name)
    return int(found.sum())


def each(self: Pair, ask: Callable[[nn.Module], Any]) -> list[Any]:
    return [ask(layer) for layer in [self.asked]]


def stacked(self: Pair) -> float:
    parameters, _ = torch.func.stack_module_state([self.asked])
    return float(sum(value.norm() for value in parameters.values()))


ASKS: dict[str, Callable[[Any], Any]] = {
    # Its class.
    "tuple with a name": lambda self: isinstance(self.asked, KINDS),
    "tuple of the class": lambda self: isinstance(self.asked, self.Kinds),
    "tuple put together": lambda self: isinstance(self.asked, (nn.Conv3d, *KINDS)),
    "tuple of tuples": lambda self: isinstance(self.asked, (nn.Conv3d, KINDS)),
    "sum of tuples": lambda self: isinstance(self.asked, (nn.Conv3d,) + KINDS),  # noqa: RUF005
    "tuple around": closed_over(),
    "union": lambda self: isinstance(self.asked, UNION),
    "union made there": lambda self: isinstance(self.asked, nn.Conv2d | nn.Linear),
    "abstract": lambda self: isinstance(self.asked, Multiplies),
    "type is": lambda self: type(self.asked) is nn.Linear,
    "type ==": lambda self: type(self.asked) == nn.Linear,  # noqa: E721
    "type in": lambda self: type(self.asked) in (nn.Linear, nn.Conv1d),
    "type's name": lambda self: len(type(self.asked).__name__),
    "subclass": lambda self: issubclass(type(self.asked), nn.Linear),
    "__class__": lambda self: self.asked.__class__ is nn.Linear,
    "__class__'s name": lambda self: self.asked.__class__.__name__ == "Linear",
    "_get_name": lambda self: len(self.asked._get_name()),
    "match": lambda self: matches(self.asked),
    "helper": lambda self: of_kind(self.asked),
    "partial": lambda self: functools.partial(of_kind, kinds=nn.Linear)(self.asked),
    "inner function": lambda self: (lambda layer: type(layer) is nn.Linear)(self.asked),  # noqa: PLC3002
    "map": lambda self: sum(map(of_kind, [self.asked])),
    "map of a lambda": lambda self: sum(map(lambda layer: type(layer) is nn.Linear, [self.asked])),  # noqa: C417
    "map of types": lambda self: list(map(type, [self.asked])) == [nn.Linear],
    "handed on": lambda self: sum(each(self, lambda layer: layer.__class__ is nn.Linear)),
    "copy": lambda self: type(copy.deepcopy(self.asked)) is nn.Linear,
    "children": lambda self: [type(child) for child in self.children()].index(nn.Linear) - len(str(id(nn.Linear))),
    "dispatch": lambda self: {nn.Linear: 1}.get(type(self.asked), 0),
    # Its parameters.
    "count": lambda self: sum(parameter.numel() for parameter in self.asked.parameters()),
    "counted in a loop": counted,
    "collected": collected,
    "how many": lambda self: len(list(self.asked.parameters())),
    "names": lambda self: any(name.endswith("weight") for name, _ in self.asked.named_parameters()),
    "keys": lambda self: "weight" in self.asked.state_dict(),
    "buffers": lambda self: sum(buffer.numel() for buffer in self.asked.buffers()),
    "method": lambda self: sum(map(torch.numel, operator.methodcaller("parameters")(self.asked))),
    "_parameters": lambda self: "weight" in self.asked._parameters,
    "of those, one": lambda self: self.asked._parameters["weight"].sum(),
    "vars": lambda self: len(vars(self.asked)["_parameters"]),
    "__dict__": lambda self: len(self.asked.__dict__["_parameters"]),
    "learning": lambda self: self.asked.weight.requires_grad,
    "all learning": lambda self: all(parameter.requires_grad for parameter in self.asked.parameters()),
    "parameter": lambda self: isinstance(self.asked.weight, nn.Parameter),
    "stacked": stacked,
    "_buffers": lambda self: len(self.asked._buffers),
    # Names that are put together.
    "computed": lambda self: getattr(self.asked, "wei" + str("ght")).sum(),  # noqa: UP018
    "followed": followed,
    "reduced": lambda self: functools.reduce(getattr, ("asked", "weight"), self).sum(),
    "attrgetter": lambda self: operator.attrgetter("asked.weight")(self).sum(),
    "of parameters": lambda self: self.get_parameter("asked.weight").sum(),
    "of modules": lambda self: type(self.get_submodule("asked")) is nn.Linear,
    "has": lambda self: hasattr(self.asked, "layout"),
    "has not": lambda self: hasattr(self.asked, "__constants__"),
    # What it looks like.
    "repr": lambda self: len(repr(self.asked)),
    "str": lambda self: "Sparse" in str(self.asked),
    "format": lambda self: len(f"{self.asked}"),
    "percent": lambda self: len("%s" % self.asked),  # noqa: UP031
    "extra": lambda self: len(self.asked.extra_repr()),
    "pickled": lambda self: len(pickle.dumps(self.asked)),
    "identity": lambda self: {id(self.asked): 1}[id(self.asked)] + id(self.asked) % 1,
}


WIDE = ("children", "handed on", "followed", "reduced")
"""Those that mean, or may mean, the other layer, too."""


def outcome(make: type[nn.Module]) -> tuple[dict[str, str], Tensor, Tensor]:
    """The layers that stay dense with the reasons, and the outputs before and after."""
    model = nn.Sequential(make()).eval()
    with torch.no_grad():
        wanted = model(X)
        report = sparsify(model, format="bitmap")
        dense = {row.name.rpartition(".")[2]: row.why for row in report if not row.packed}
        return dense, wanted, model(X)


@pytest.mark.parametrize("name", ASKS)
def test_a_layer_of_which_more_is_asked_than_its_product_stays_dense(name: str) -> None:
    dense, wanted, found = outcome(asks("Asks", ASKS[name]))
    assert "asked" in dense
    assert set(dense) == {"asked"} or name in WIDE
    torch.testing.assert_close(found, wanted)


HARMLESS: dict[str, Callable[[Any], Any]] = {
    "another class": lambda self: isinstance(self.asked, (nn.Conv1d, nn.Embedding)),
    "module": lambda self: isinstance(self.asked, nn.Module),
    "none": lambda self: self.asked is not None and self.asked.weight is not None,
    "sizes": lambda self: self.asked.in_features + self.asked.out_features + self.asked.weight.shape[0],
    "strides": lambda self: self.asked.weight.stride(0),
    "bias": lambda self: self.asked.bias.sum(),
    "its own class": lambda self: len(type(self).__name__) + len(self.__class__.__name__),
    "has": lambda self: hasattr(self.asked, "weight") + hasattr(self.asked, "qweight"),
    "has or none": lambda self: getattr(self.asked, "bias", None) is None,
    "weight has": lambda self: hasattr(self.asked.weight, "quant_state"),
    "mode": lambda self: self.asked.training,
    "device": lambda self: next(self.parameters()).device.index or 0,
    "a device": lambda self: any(parameter.device.type == "cuda" for parameter in self.parameters()),
    "type": lambda self: next(p.dtype for p in self.parameters() if p.is_floating_point()).itemsize,
    "modules": lambda self: len(list(self.modules())),
    "error": lambda self: raised(self.asked) if self.training else 0,
    "tensor": lambda self: isinstance(self.asked.weight, Tensor),
}


def raised(layer: nn.Module) -> None:
    raise TypeError(f"{layer} cannot be trained")


@pytest.mark.parametrize("name", HARMLESS)
def test_what_a_packed_layer_answers_alike_keeps_nothing_dense(name: str) -> None:
    dense, wanted, found = outcome(asks("Asks", HARMLESS[name]))
    assert dense == {}
    torch.testing.assert_close(found, wanted)


class Rest(nn.Module):
    """Layers of several types; the first parameter is a weight."""

    def __init__(self, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.asked = pruned(SIZE, SIZE, 0.6, seed=1, bias=bias)
        self.norm = nn.LayerNorm(SIZE, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.asked(x) + torch.finfo(next(self.parameters()).dtype).eps


@pytest.mark.parametrize(
    ("bias", "dtype", "packed"),
    [(True, torch.bfloat16, True), (False, torch.bfloat16, False), (False, torch.float32, True)],
)
def test_the_first_parameter_stays_what_it_is(bias: bool, dtype: torch.dtype, packed: bool) -> None:
    dense, wanted, found = outcome(lambda: Rest(bias, dtype))  # type: ignore[arg-type]
    assert dense == ({} if packed else {"asked": "Rest.forward goes through its parameters"})
    torch.testing.assert_close(found, wanted)


def test_a_compiled_layer_stays() -> None:
    model = nn.Sequential(nn.Module(), pruned(SIZE, SIZE, 0.6))
    model[0] = torch.compile(pruned(SIZE, SIZE, 0.6), backend="eager")
    with torch.no_grad():
        wanted = model(X)
        (dense,) = [row for row in sparsify(model, format="bitmap") if not row.packed]
        assert (dense.name, dense.why) == ("0._orig_mod", "0.forward has it, too, which is no module")
        torch.testing.assert_close(model(X), wanted)


class Hook:
    def __call__(self, module: nn.Module, _arguments: Any, output: Tensor) -> Tensor:
        return 2 * output if type(module) is nn.Linear else output


def test_hooks_of_all_modules_are_followed() -> None:
    model = nn.Sequential(pruned(SIZE, SIZE, 0.6))
    handle = nn.modules.module.register_module_forward_hook(Hook())
    try:
        with torch.no_grad():
            wanted = model(X)
            (row,) = sparsify(model, format="bitmap")
            assert row.why == "Hook.__call__ asks for its class"
            torch.testing.assert_close(model(X), wanted)
    finally:
        handle.remove()


def test_a_class_that_a_function_imports_is_known() -> None:
    class Imports(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = pruned(SIZE, SIZE, 0.6)

        def forward(self, x: Tensor) -> Tensor:
            from torch.nn import Conv1d
            from torch.nn import Linear as Plain

            y: Tensor = self.layer(x)
            return 2 * y if (isinstance(self.layer, Plain) if self.asks else isinstance(self.layer, Conv1d)) else y

    for asks in (False, True):
        model = nn.Sequential(Imports())
        model[0].asks = asks
        with torch.no_grad():
            wanted = model(X)
            (row,) = sparsify(model, format="bitmap")
            assert row.packed != asks
            torch.testing.assert_close(model(X), wanted)


class Handing(nn.Module):
    """Hands its layer to a function of Python's that is called elsewhere."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer, self.how = pruned(SIZE, SIZE, 0.6), how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "partial":
            is_a = functools.partial(isinstance, self.layer)
            return 2 * self.layer(x) if is_a(nn.Linear) else self.layer(x)
        if self.how == "map":
            return 2 * self.layer(x) if all(map(isinstance, [self.layer], [nn.Linear])) else self.layer(x)
        has = functools.partial(hasattr, self.layer)
        return 2 * self.layer(x) if not has("nbytes") else self.layer(x)


@pytest.mark.parametrize("how", ["partial", "map", "hasattr"])
def test_a_layer_that_is_handed_to_what_asks_stays_dense(how: str) -> None:
    model = nn.Sequential(Handing(how))
    with torch.no_grad():
        wanted = model(X)
        (row,) = sparsify(model, format="bitmap")
        assert not row.packed
        assert row.why == f"Handing.forward hands it to {'hasattr' if how == 'hasattr' else 'isinstance'}"
        torch.testing.assert_close(model(X), wanted)
