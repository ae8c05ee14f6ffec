"""What one function of a model's code asks of layers, told from how the syntax tree uses them."""

from __future__ import annotations

import ast
import types
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

from torch import nn

from . import sources
from .constants import UNKNOWN, Constants
from .tells import (
    LISTS,
    NONE,
    PRINTS,
    Modules,
    answers_differently,
    has_differently,
    inside,
    is_of_other_kind,
    told_by_any,
    told_by_first,
    weight_answers,
    weight_is_of_other_kind,
)

_LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
_FOR_READERS = {"print", "warnings", "logging", "logger", "log"}
_COUNTING = (ast.AugAssign, ast.BinOp, ast.Call, ast.Yield)
_WHATEVER_THE_NUMBER = {"any", "all", "set", "frozenset", "max", "min"}


class Asking:
    """A function, and the layers that it was found to tell from packed ones."""

    def __init__(
        self, wanted: Modules, found: dict[nn.Module, str], function: types.FunctionType, tree: sources.Node
    ) -> None:
        """Takes a function, one of its trees, the layers of interest, and where to note the reason by layer."""
        self.wanted, self.found, self.function, self.tree = wanted, found, function, tree
        self.above = sources.above(tree)
        self.constants = Constants(function, *sources.bound(tree))

    @abstractmethod
    def modules(self, node: ast.AST) -> Modules:
        """The modules that an expression may be, or hold."""

    @abstractmethod
    def attributes(self, modules: Modules, name: str) -> Modules:
        """What modules, or whatever holds them, have under a name."""

    def note(self, modules: Iterable[nn.Module], what: str) -> None:
        """Notes that layers are told from packed ones."""
        for module in self.wanted.intersection(modules):
            self.found.setdefault(module, f"{self.function.__qualname__.replace('<locals>.', '')} {what}")

    def ask(self, modules: Modules, name: str) -> None:
        """Notes an attribute that is another in a packed layer."""
        different = [layer for layer in modules & self.wanted if answers_differently(layer, name)]
        self.note(different, f"asks for its {name}")

    def ask_whether_it_has(self, modules: Modules, name: ast.AST) -> None:
        """Notes a `hasattr` that a packed layer answers in another way."""
        found = self.constants.value(name)
        told = [one for one in modules & self.wanted if not isinstance(found, str) or has_differently(one, found)]
        self.note(told, "asks what it has")

    def ask_class(self, modules: Modules, kinds: ast.AST) -> None:
        """Notes that a layer's class is asked for where a packed one would give another answer."""
        value = self.constants.value(kinds)
        told = [layer for layer in modules & self.wanted if value is UNKNOWN or is_of_other_kind(layer, value)]
        self.note(told, "asks whether it is a Linear")

    def show(self, node: ast.AST | None, modules: Modules) -> None:
        """Notes modules that become text, unless for somebody who reads it."""
        while node is not None and not isinstance(node, ast.stmt):
            if isinstance(node, ast.Call) and ast.unparse(node.func).partition(".")[0] in _FOR_READERS:
                return
            node = self.above.get(node)
        if not isinstance(node, (ast.Raise, ast.Assert)):
            self.note(modules, "shows it as text")

    def attribute(self, node: ast.Attribute, modules: Modules) -> None:
        """Notes what an attribute tells that is not called, or is a method that tells."""
        above = self.above.get(node)
        if node.attr == "weight":
            self.read(node, modules)
        elif node.attr in PRINTS:
            self.show(node, inside(modules))
        elif node.attr not in LISTS:
            self.ask(modules, node.attr)
        elif not isinstance(above, ast.Call) or above.func is not node:
            self.note(inside(modules), LISTS[node.attr])

    def read(self, node: ast.AST, modules: Modules) -> None:
        """Notes that a weight is asked for, unless all that is wanted is what it is."""
        for layer in modules & self.wanted:
            if not all(self._needs_no_values(use, layer) for use in self._uses(node)):
                self.note([layer], "reads its weight")

    def _uses(self, node: ast.AST) -> list[ast.AST]:
        """Where a value is used: where it stands, or where the name is that it is given."""
        above = self.above.get(node)
        if not isinstance(above, ast.Assign) or len(above.targets) != 1 or not isinstance(above.targets[0], ast.Name):
            return [node]
        return self._loads(above.targets[0].id)

    def _loads(self, name: str) -> list[ast.AST]:
        names = (node for node in self.above if isinstance(node, ast.Name) and node.id == name)
        return [node for node in names if isinstance(node.ctx, ast.Load)]

    def _needs_no_values(self, node: ast.AST, layer: nn.Module) -> bool:
        above = self.above.get(node)
        while isinstance(above, ast.Attribute) and above.attr in ("data", "detach"):
            node, above = above, self.above.get(above)
            if isinstance(above, ast.Call) and above.func is node:
                node, above = above, self.above.get(above)
        if isinstance(above, ast.Attribute):
            return weight_answers(layer, above.attr)
        if isinstance(above, ast.Call) and isinstance(above.func, ast.Name) and above.args[:1] == [node]:
            asked = self.constants.value(above.args[1]) if len(above.args) > 1 else UNKNOWN
            if above.func.id == "isinstance":
                return asked is not UNKNOWN and not weight_is_of_other_kind(layer, asked)
            if above.func.id in ("hasattr", "getattr"):
                return isinstance(asked, str) and weight_answers(layer, asked, asked=True)
            return above.func.id == "callable"
        return isinstance(above, ast.Compare) and all(isinstance(op, (ast.Is, ast.IsNot)) for op in above.ops)

    def go_through(self, node: ast.Call, modules: Modules, method: str) -> None:
        """Notes that tensors are gone through, among which a packed weight is not, unless for what all of them are."""
        first, asked = self._asked_of_tensors(node) if method in ("parameters", "buffers") else (False, None)
        for module in modules:
            if asked is None:
                told = inside(frozenset({module}))
            elif first and method == "parameters":
                told = told_by_first(module, self.wanted, asked)
            else:
                told = told_by_any(module, self.wanted, asked, method)
            self.note(told, LISTS[method])

    def _asked_of_tensors(self, node: ast.AST) -> tuple[bool, set[str] | None]:
        """Whether only the first tensor of some counts, and what tensors are asked for; None where that is not seen."""
        above = self.above.get(node)
        if _calls(above, {"iter"}):
            node, above = above, self.above.get(above)  # type: ignore[assignment, arg-type]
        if _calls(above, {"next"}):
            return True, self._attributes(self._uses(above))  # type: ignore[arg-type]
        if isinstance(above, ast.comprehension) and isinstance(above.target, ast.Name) and above.iter is node:
            whole = self.above[above]
            taker = self.above.get(whole)
            asked = self._attributes(self._loads(above.target.id))
            if isinstance(whole, ast.SetComp) or _calls(taker, _WHATEVER_THE_NUMBER):
                return False, asked
            if _calls(taker, {"next"}):
                return all(map(_is_floating_point, above.ifs)), asked
        loop = above if isinstance(above, ast.For) and above.iter is node else None
        if loop is None or not isinstance(loop.target, ast.Name):
            return False, None
        counts = any(isinstance(inner, _COUNTING) for part in loop.body for inner in ast.walk(part))
        return False, None if counts else self._attributes(self._loads(loop.target.id))

    def _attributes(self, uses: list[ast.AST]) -> set[str] | None:
        above = [self.above.get(use) for use in uses]
        names = {one.attr for one in above if isinstance(one, ast.Attribute)}
        return names if all(isinstance(one, ast.Attribute) for one in above) else None

    def asked_about(self, node: ast.Call, function: str, modules: Modules) -> Modules | None:
        """What a function of Python's tells about modules, and which it returns; None where it is another."""
        if function in self.constants.own or len(node.args) < 2:
            return None
        if function == "isinstance":
            self.ask_class(modules, node.args[1])
        elif function == "hasattr":
            self.ask_whether_it_has(modules, node.args[1])
        elif function == "getattr":
            return self._get(node, modules, node.args[1]).union(*map(self.modules, node.args[2:]))
        return NONE if function in ("isinstance", "hasattr") else None

    def asked_of(self, node: ast.Call, method: str, modules: Modules) -> Modules | None:
        """What a method that all modules have tells about some, and which it returns; None where it is another."""
        if method in ("get_parameter", "get_submodule") and node.args:
            path = self.constants.value(node.args[0])
            return self.path(modules, path) if isinstance(path, str) else self.by_some_name(inside(modules))
        if method in LISTS:
            self.go_through(node, modules, method)
            return NONE
        if method in ("modules", "named_modules"):
            return inside(modules)
        if method in ("children", "named_children", "values", "items"):
            return members(modules, any_kind=method.endswith("children"))
        if method in ("__getattr__", "__getattribute__") and node.args:
            return self._get(node, modules, node.args[0])
        if method == "format" and not modules:
            for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
                self.show(argument, self.modules(argument))
        return None

    def _get(self, node: ast.Call, modules: Modules, name: ast.AST) -> Modules:
        """What `getattr` tells and returns."""
        found = self.constants.value(name)
        if not isinstance(found, str):
            return self.by_some_name(modules)
        self._name(node, modules, found)
        return self.attributes(modules, found)

    def _name(self, node: ast.AST | None, modules: Modules, name: str) -> None:
        """Notes what the name of an attribute tells; the node is where it is used, if that is known."""
        if name in LISTS or name in PRINTS:
            self.note(inside(modules), LISTS.get(name, "shows it as text"))
        elif name != "weight":
            self.ask(modules, name)
        elif node is None:
            self.note(modules, "reads its weight")
        else:
            self.read(node, modules)

    def by_some_name(self, modules: Modules) -> Modules:
        """Notes modules of which something is taken under a name that is not known, and returns what that may be."""
        self.note(modules, "takes something of it by a name that is made up")
        return members(modules, any_kind=True)

    def path(self, modules: Modules, *paths: str) -> Modules:
        """What dotted names lead to; a weight at their end is read."""
        returned = NONE
        for path in paths:
            found, names = modules, path.split(".")
            for name in names:
                self._name(None, found, name)
                found = self.attributes(found, name)
            returned |= found
        return returned


def _is_floating_point(test: ast.AST) -> bool:
    return isinstance(test, ast.Call) and isinstance(test.func, ast.Attribute) and test.func.attr == "is_floating_point"


def _calls(node: ast.AST | None, names: set[str]) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names


def as_list(body: Any) -> list[ast.AST]:
    """The statements of a body, or the expression."""
    return body if isinstance(body, list) else [body]


def is_listed(module: nn.Module) -> bool:
    """Whether a module gives others when it is iterated over or indexed."""
    return hasattr(type(module), "__iter__") or hasattr(type(module), "__getitem__")


def members(modules: Modules, *, any_kind: bool = False) -> Modules:
    """What iterating over modules gives, and they themselves; of lists that are not torch's, all that is in them."""
    found = modules
    for module in modules:
        if any_kind or isinstance(module, _LISTS):
            found = found.union(module.children())
        elif is_listed(module):
            found = found.union(module.modules())
    return found
