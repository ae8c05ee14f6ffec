"""Code that tells layers from packed ones is found wherever a model has it: the layers stay dense, it is named."""

from __future__ import annotations

import dataclasses
import functools
import io
import types
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402

from gossamer.torch import sparsify  # noqa: E402
from torch_layers import pruned, random  # noqa: E402

SIZE = 48
X = random(4, SIZE)
KINDS = (nn.Linear, nn.Conv1d)


class Pair(nn.Module):
    """Two layers; only one of them is asked what it is."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.called = pruned(SIZE, SIZE, 0.6, seed=1), pruned(SIZE, SIZE, 0.6, seed=2)


def guarded(function: Any) -> Any:
    """Leaves no trace of what it is put around."""

    def wrapper(*arguments: Any, **options: Any) -> Any:
        return function(*arguments, **options)

    return wrapper


def scaled(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(self: Any, x: Tensor) -> Any:
        return function(self, x) * (3 if type(self.asked) is nn.Linear else 1)

    return wrapper


class Decorated(Pair):
    @guarded
    def forward(self, x: Tensor) -> Tensor:
        return self.called(self.asked(x)) * (2 if type(self.asked) is nn.Linear else 1)


class Wrapped(Pair):
    @scaled
    def forward(self, x: Tensor) -> Tensor:
        return self.called(self.asked(x))


class Calling(Pair):
    def __call__(self, *given: Any) -> Any:
        return super().__call__(*given) + sum(p.numel() for p in self.asked.parameters())

    def forward(self, x: Tensor) -> Tensor:
        return self.called(self.asked(x))


class Mixin:
    asked: nn.Module

    @functools.cached_property
    def factor(self) -> int:
        return 2 if self.asked.__class__ is nn.Linear else 1

    @staticmethod
    def share(layer: nn.Module) -> int:
        return len(list(layer.parameters()))

    @classmethod
    def kind(cls, layer: nn.Module) -> bool:
        return type(layer) in KINDS


class Mixed(Mixin, Pair):
    def forward(self, x: Tensor) -> Tensor:
        return self.called(self.asked(x)) * self.factor


class Static(Mixin, Pair):
    def forward(self, x: Tensor) -> Tensor:
        return self.called(self.asked(x)) * self.share(self.asked)


class Klass(Mixin, Pair):
    def forward(self, x: Tensor) -> Tensor:
        return self.called(self.asked(x)) * self.kind(layer=self.asked)


class Inherited(Mixed):
    pass


class Visitor:
    """No module, and asks what those are that it is given."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def weigh(self, layer: nn.Module) -> int:
        return self.factor * isinstance(layer, KINDS)

    __call__ = weigh


class Visited(Pair):
    def __init__(self) -> None:
        super().__init__()
        self.visitor = Visitor(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.called(self.asked(x)) * self.visitor.weigh(self.asked)


class Invoked(Visited):
    def forward(self, x: Tensor) -> Tensor:
        return self.called(self.asked(x)) * self.visitor(self.asked)


class Runner:
    """Made around a layer."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def run(self, x: Tensor) -> Tensor:
        return self.layer(x) * (2 if type(self.layer) is nn.Linear else 1)


class Running(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return self.called(Runner(self.asked).run(x))


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.ModuleDict({"asked": pruned(SIZE, SIZE, 0.6), "act": nn.ReLU()})])

    def chosen(self) -> Iterator[nn.Module]:
        for block in self.blocks:
            yield from block.values()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.chosen():
            x = layer(x) * (2 if type(layer).__name__ == "Linear" else 1)
        return x


class Attributed(Pair):
    def __init__(self) -> None:
        super().__init__()
        self.weigh = lambda layer: 1 + sum(p.numel() for p in layer.parameters())

    def forward(self, x: Tensor) -> Tensor:
        return self.called(self.asked(x)) / self.weigh(self.asked)


class Local(Pair):
    def forward(self, x: Tensor) -> Tensor:
        def weigh(layer: nn.Module) -> int:
            return 2 if type(layer) is nn.Linear else 1

        return self.called(self.asked(x)) * weigh(self.asked)


class Applied(Pair):
    def forward(self, x: Tensor) -> Tensor:
        seen: list[str] = []
        self.asked.apply(lambda module: seen.append(module.__class__.__name__))
        return self.called(self.asked(x)) * seen.count("Linear")


class Outer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Module) -> Tensor:  # type: ignore[override]
        del ctx
        return x * (2 if isinstance(layer, KINDS) else 1)


class Functional(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return self.called(self.asked(Outer.apply(x, self.asked)))


class Serialized(Pair):
    def forward(self, x: Tensor) -> Tensor:
        file = io.BytesIO()
        torch.save(self.asked.state_dict(), file)
        return self.called(self.asked(x)) + len(file.getvalue())


class Hook:
    """A hook that is no function."""

    def __call__(self, module: nn.Module, given: Any, y: Tensor) -> Tensor:
        del given
        return y * (2 if type(module) is nn.Linear else 1)

    def method(self, module: nn.Module, given: Any, y: Tensor) -> Tensor:
        return self(module, given, y)


class Hooked(Pair):
    def __init__(self) -> None:
        super().__init__()
        self.asked.register_forward_hook(Hook())

    def forward(self, x: Tensor) -> Tensor:
        return self.called(self.asked(x))


class HookedByMethod(Hooked):
    def __init__(self) -> None:
        Pair.__init__(self)
        self.asked.register_forward_hook(Hook().method)


class HookedByPartial(Hooked):
    def __init__(self) -> None:
        Pair.__init__(self)
        self.asked.register_forward_hook(functools.partial(Hook.method, Hook()))


class Compiled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = torch.compile(Mixed(), backend="eager")

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)  # type: ignore[no-any-return]


@dataclasses.dataclass
class Part:
    layer: nn.Module
    name: str = "part"


class Contained(Pair):
    def forward(self, x: Tensor) -> Tensor:
        part = Part(layer=self.asked)
        return self.called(self.asked(x)) * (2 if part.layer.__class__ is nn.Linear else 1)


def weight_count(module: nn.Module) -> int:
    return len(module._parameters) + sum(map(weight_count, module.children()))


class Recursive(Pair):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"a": nn.Sequential(self.asked)})

    def forward(self, x: Tensor) -> Tensor:
        return self.called(self.asked(x)) * weight_count(self.inner)


@functools.singledispatch
def factor_of(layer: nn.Module) -> int:
    del layer
    return 1


@factor_of.register
def _(layer: nn.Linear) -> int:
    del layer
    return 2


class Dispatched(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return self.called(self.asked(x)) * factor_of(self.asked)


class Stack(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.inner = nn.ModuleList(layers)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.inner)


class Iterated(Pair):
    def __init__(self) -> None:
        super().__init__()
        self.stack = Stack(self.asked)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.stack:
            x = layer(x) * (2 if type(layer) is nn.Linear else 1)
        return self.called(x)


class Watch:
    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __enter__(self) -> int:
        return 2 if isinstance(self.layer, KINDS) else 1

    def __exit__(self, *error: object) -> None:
        pass


class Watched(Pair):
    def forward(self, x: Tensor) -> Tensor:
        with Watch(self.asked) as factor:
            return self.called(self.asked(x)) * factor


class Renamed(Pair):
    def forward(self, x: Tensor) -> Tensor:
        ask = type
        kind = nn.Linear
        return self.called(self.asked(x)) * (2 if ask(self.asked) is kind else 1)


class Tried(Pair):
    def forward(self, x: Tensor) -> Tensor:
        try:
            factor = len(self.asked.values)  # type: ignore[arg-type]
        except AttributeError:
            factor = 1
        return self.called(self.asked(x)) * factor


class Generated(Pair):
    def names(self, *layers: nn.Module) -> Iterator[str]:
        yield from (type(layer).__qualname__ for layer in layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.called(self.asked(x)) * len("".join(self.names(self.asked)))


class Bound(Pair):
    def __init__(self) -> None:
        super().__init__()
        self.forward = functools.partial(types.MethodType(bound, self), factor=2)  # type: ignore[method-assign]


def bound(self: Pair, x: Tensor, factor: int = 1) -> Tensor:
    return self.called(self.asked(x)) * (factor if type(self.asked) in KINDS else 1)


class Conditional(Pair):
    def route(self, x: Tensor, layer: nn.Module | None = None) -> Tensor:
        chosen = layer or self.called
        return chosen(x) * (2 if (kind := type(chosen)) is nn.Linear and kind else 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.called(self.asked(x)) if self.training else self.route(self.asked(x))


class Optional(Pair):
    def __init__(self) -> None:
        super().__init__()
        self.table = {"first": lambda layer: len(vars(layer)["_parameters"])}

    def forward(self, x: Tensor) -> Tensor:
        return self.called(self.asked(x)) * self.table["first"](self.asked)


WRITTEN = (
    *(Decorated, Wrapped, Calling, Mixed, Static, Klass, Inherited, Visited, Invoked, Running, Nested, Attributed),
    *(Local, Applied, Functional, Serialized, Hooked, HookedByMethod, HookedByPartial, Compiled),
    *(Contained, Recursive, Dispatched, Iterated, Watched, Renamed, Tried, Generated, Bound, Optional),
)


@pytest.mark.parametrize("make", WRITTEN, ids=lambda make: make.__name__)
def test_code_in_other_places_is_followed(make: type[nn.Module]) -> None:
    model = nn.Sequential(make()).eval()
    with torch.no_grad():
        wanted = model(X)
        report = sparsify(model, format="bitmap")
        assert [row.name.rpartition(".")[2] for row in report if not row.packed] == ["asked"]
        torch.testing.assert_close(model(X), wanted)


def test_a_default_that_stands_for_another_layer_is_followed() -> None:
    model = nn.Sequential(Conditional()).eval()
    with torch.no_grad():
        wanted = model(X)
        report = sparsify(model, format="bitmap")
        assert [row.name for row in report if not row.packed] == ["0.called"]
        torch.testing.assert_close(model(X), wanted)
