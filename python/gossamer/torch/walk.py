"""Walks through the functions of a model with sets of modules in the place of values.

`self.proj`, members of containers, local names, arguments and what functions return are followed; branches that the
model's own attributes rule out are left aside. Whatever holds modules counts as those modules, so that an attribute
that they have not is one of the holder's, and they again.
"""

from __future__ import annotations

import ast
import functools
import operator
import sys
import types
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.autograd import Function

from . import sources
from .asking import Asking, as_list, is_listed, members
from .attachments import held
from .constants import UNKNOWN, attempt
from .tells import NONE, Modules, inside, keeps, told_by_call

_OUTSIDE = {"torch", *sys.stdlib_module_names}
# Functions outside that call the modules which they are given.
_CALLING = {"checkpoint", "checkpoint_sequential", "map", "reduce"}


def _is_outside(function: Any) -> bool:
    """Whether a function is torch's, Python's, or one of those around models, which are not followed."""
    module = str(getattr(function, "__module__", ""))
    return module.partition(".")[0] in _OUTSIDE or module.startswith("transformers.utils.")


class Search:
    """The layers in question, what was found of them, and what was walked through.

    Attributes:
        wanted: The layers in question.
        found: The reasons by layer.
    """

    def __init__(self, wanted: Modules) -> None:
        """Takes the layers in question."""
        self.wanted = wanted
        self.found: dict[nn.Module, str] = {}
        self._seen: dict[Any, Modules] = {}
        self._held: dict[int, tuple[Any, Modules]] = {}

    def held(self, value: Any) -> Modules:
        """Returns a module, or those that something else holds."""
        if isinstance(value, nn.Module):
            return frozenset({value})
        if id(value) not in self._held:
            self._held[id(value)] = value, frozenset(held(value))
        return self._held[id(value)][1]

    def enter(
        self,
        function: Any,
        arguments: list[Modules],
        keywords: dict[str, Modules] | None = None,
        anywhere: Modules = NONE,
    ) -> Modules:
        """Walks through whatever runs when something is called, and returns the modules that it may return.

        Args:
            function: What is called.
            arguments: The modules that each argument may be, or hold.
            keywords: The same by name.
            anywhere: Modules that any argument may be.
        """
        returned = NONE
        for inner, before, named in sources.under(function):
            if _is_outside(inner):
                continue
            given = [*map(self.held, before), *arguments]
            by_name = {name: self.held(value) for name, value in named.items()} | (keywords or {})
            itself = before[0] if before and not isinstance(before[0], nn.Module) else None
            key = inner, id(itself), tuple(given), frozenset(by_name.items()), anywhere
            if key not in self._seen:
                self._seen[key] = NONE  # until it is known, for functions that call themselves
                walks = [_Walk(self, inner, tree) for tree in sources.source(inner.__code__)]
                self._seen[key] = NONE.union(*(walk.run(given, by_name, anywhere, itself) for walk in walks))
            returned |= self._seen[key]
        return returned


class _Walk(Asking):
    """One function, walked through with the modules that its arguments may be."""

    def __init__(self, search: Search, function: types.FunctionType, tree: sources.Node) -> None:
        super().__init__(search.wanted, search.found, function, tree)
        self.search = search
        self.names: dict[str, Modules] = {}
        self.inner: dict[str, sources.Node] = {}
        self.returned = NONE
        # What `*arguments` and `**options` of the function's own are, and their names.
        self.rest: tuple[str, list[Modules]] = "", []
        self.others: tuple[str, dict[str, Modules]] = "", {}
        self._known: dict[ast.AST, Modules] = {}

    def run(self, arguments: list[Modules], keywords: dict[str, Modules], anywhere: Modules, itself: object) -> Modules:
        """Walks through until nothing new is found, and returns the modules that may be returned."""
        self._bind(self.tree, arguments, keywords, anywhere)
        if not anywhere:
            self.rest, self.others = sources.left_over(self.tree, arguments, keywords)
        for name, default in sources.defaults(self.function).items():
            self._add(name, self.search.held(default))
        first = next(iter(sources.parameters(self.tree)), "")
        if itself is not None:
            self.constants.know(first, itself)
        elif len(self.names.get(first, NONE)) == 1 and arguments:
            self.constants.know(first, *self.names[first])
        size = -1
        while size != (size := len(self.returned) + sum(map(len, self.names.values())) + len(self.inner)):
            self._known.clear()
            for statement in as_list(self.tree.body):
                self.visit(statement)
            if isinstance(self.tree, ast.Lambda):
                self.returned |= self.modules(self.tree.body)
        return self.returned

    def _bind(
        self, node: sources.Node, arguments: list[Modules], keywords: dict[str, Modules], anywhere: Modules = NONE
    ) -> None:
        """Gives a function's parameters the modules that they may be."""
        for name in {*sources.parameters(node)} - {*sources.places(node)[: len(arguments)], *keywords}:
            self._add(name, anywhere)
        for name, modules in (*zip(sources.places(node), arguments, strict=False), *keywords.items()):
            self._add(name, modules)
        (rest, several), (others, named) = sources.left_over(node, arguments, keywords)
        self._add(rest, NONE.union(*several))
        self._add(others, NONE.union(*named.values()))

    def _add(self, name: str, modules: Modules) -> None:
        """Notes what a name may be, too."""
        before = self.names.get(name, NONE)
        if not modules <= before:
            self.names[name] = before | modules
            self._known.clear()

    # --- statements ---------------------------------------------------------------------------------------------------

    def visit(self, node: ast.AST) -> None:
        """Walks through a statement or an expression."""
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            self.inner[node.name] = node
        elif isinstance(node, (ast.For, ast.AsyncFor, ast.comprehension)):
            self._loop(node.target, node.iter)  # before what is done with it
        for child in self._evaluated(node):
            self.visit(child)
        if isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.NamedExpr)) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                pairs: list[tuple[ast.AST, ast.AST]] = [(target, node.value)]
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    pairs = list(zip(target.elts, node.value.elts, strict=False))
                for one, value in pairs:
                    if isinstance(one, ast.Name) and isinstance(value, ast.Lambda):
                        self.inner[one.id] = value
                    self._assign(one, self.modules(value))
        elif isinstance(node, ast.withitem) and node.optional_vars is not None:
            self._assign(node.optional_vars, self.modules(node.context_expr))
        elif isinstance(node, (ast.Return, ast.Yield, ast.YieldFrom)) and node.value is not None:
            self.returned |= self.modules(node.value)
        elif isinstance(node, ast.Match):
            self._match(node)
        elif isinstance(node, ast.Attribute):
            self.attribute(node, self.modules(node.value))
            self._mention(node)
        elif isinstance(node, ast.Call):
            self.modules(node)
        elif isinstance(node, ast.FormattedValue):
            self.show(node.value, self.modules(node.value))
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod) and isinstance(node.left, ast.Constant):
            self.show(node.right, self.modules(node.right))

    def _evaluated(self, node: ast.AST) -> Iterator[ast.AST]:
        """The parts of a node that are evaluated, as far as the model's attributes tell: of `a and b`, maybe only a."""
        if isinstance(node, (ast.If, ast.IfExp)):
            truth = self.constants.truth(node.test)
            yield node.test
            yield from as_list(node.body) if truth is not False else ()
            yield from as_list(node.orelse) if truth is not True else ()
        elif isinstance(node, ast.BoolOp):
            for part in node.values:
                yield part
                if self.constants.truth(part) is isinstance(node.op, ast.Or):
                    return
        else:
            # Of comprehensions, what they iterate over comes before what they make of it.
            yield from sorted(ast.iter_child_nodes(node), key=lambda child: not isinstance(child, ast.comprehension))

    def _assign(self, target: ast.AST, modules: Modules) -> None:
        for name in ast.walk(target):
            if isinstance(name, ast.Name):
                self._add(name.id, modules)

    def _loop(self, target: ast.AST, over: ast.AST) -> None:
        """Gives loop variables what they may be; numbers and names beside modules are none."""
        parts = target.elts if isinstance(target, ast.Tuple) else []
        if not isinstance(over, ast.Call) or len(parts) < 2:
            return self._assign(target, members(self.modules(over)))
        if isinstance(over.func, ast.Attribute) and over.func.attr.startswith("named_"):
            return self._assign(parts[1], self.modules(over))
        name = over.func.id if isinstance(over.func, ast.Name) else ""
        if name == "enumerate" and over.args:
            return self._loop(parts[1], over.args[0])
        if name == "zip" and len(over.args) == len(parts):
            for part, one in zip(parts, over.args, strict=True):
                self._loop(part, one)
        else:
            self._assign(target, members(self.modules(over)))
        return None

    def _match(self, node: ast.Match) -> None:
        subject = self.modules(node.subject)
        for part in (inner for case in node.cases for inner in ast.walk(case.pattern)):
            if isinstance(part, ast.MatchClass):
                self.ask_class(subject, part.cls)
            elif isinstance(part, (ast.MatchAs, ast.MatchStar)) and part.name:
                self._add(part.name, members(subject))

    def _mention(self, node: ast.Attribute) -> None:
        """Walks into properties, and into methods that are not called, but handed on."""
        above = self.above.get(node)
        if not isinstance(above, ast.Call) or above.func is not node:
            for function in self._callees(node):
                if not isinstance(function, nn.Module):
                    self.search.enter(function, [])

    # --- calls --------------------------------------------------------------------------------------------------------

    def _call(self, node: ast.Call) -> Modules:
        """Walks into a function that is called with modules, and returns those that it may return."""
        func = node.func
        arguments, keywords, anywhere = self._arguments(node)
        given = anywhere.union(*arguments, *keywords.values())
        known = None
        if isinstance(func, ast.Attribute):
            known = self.asked_of(node, func.attr, self.modules(func.value))
        elif isinstance(func, ast.Name) and arguments:
            known = self.asked_about(node, func.id, arguments[0])
        if known is not None:
            return known
        returned = self._handed_on(node, given)
        if isinstance(func, (ast.Name, ast.Lambda)):
            inner = func if isinstance(func, ast.Lambda) else self.inner.get(func.id)
            if inner is not None:
                self._bind(inner, arguments, keywords, anywhere)
                return returned | given
        functions = self._callees(func)
        for function in functions:
            returned |= self._run(function, arguments, keywords, anywhere)
        if not functions:  # what is not known may return what it was given
            returned |= frozenset(one for one in given if one in self.wanted or is_listed(one))
        return returned

    def _arguments(self, node: ast.Call) -> tuple[list[Modules], dict[str, Modules], Modules]:
        """The modules that a call hands on: by place, by name, and those whose place is not known."""
        arguments: list[Modules] = []
        keywords: dict[str, Modules] = {}
        anywhere = NONE
        for argument in node.args:
            if not isinstance(argument, ast.Starred):
                arguments.append(self.modules(argument))
            elif isinstance(argument.value, ast.Name) and argument.value.id == self.rest[0]:
                arguments += self.rest[1]
            else:
                anywhere |= members(self.modules(argument.value))
        for keyword in node.keywords:
            if keyword.arg:
                keywords[keyword.arg] = self.modules(keyword.value)
            elif isinstance(keyword.value, ast.Name) and keyword.value.id == self.others[0]:
                keywords |= self.others[1]
            else:
                anywhere |= members(self.modules(keyword.value))
        return arguments, keywords, anywhere

    def _run(self, function: Any, arguments: list[Modules], keywords: dict[str, Modules], anywhere: Modules) -> Modules:
        """What happens to modules that something is called with."""
        given = anywhere.union(*arguments, *keywords.values())
        enter = self.search.enter
        if isinstance(function, nn.Module):
            if given and function not in self.wanted:  # a linear layer's own forward may read its weight
                for entry in (type(function).forward, type(function).__call__):
                    enter(entry, [frozenset({function}), *arguments], keywords, anywhere)
            return NONE
        if isinstance(function, operator.attrgetter):
            return self.path(given, *map(str, function.__reduce__()[1]))
        owner = getattr(function, "__self__", None)
        if isinstance(owner, type) and issubclass(owner, Function) and owner is not Function:
            return enter(owner.forward, [NONE, *arguments], keywords, anywhere)
        if _is_outside(function):
            told, what = told_by_call(function, given, self.wanted)
            self.note(told, what)
            return (given if keeps(function) else NONE) | enter(function, arguments, keywords, anywhere)
        if isinstance(function, type):
            enter(vars(function).get("__init__"), [given, *arguments], keywords, anywhere)
            for method in vars(function).values() if given else ():
                if isinstance(method, types.FunctionType):
                    enter(method, [given])
            return given
        return enter(function, arguments, keywords, anywhere)

    def _callees(self, func: ast.AST) -> list[Any]:
        """What an expression may be that is called."""
        value = self.constants.value(func)
        if isinstance(func, ast.Attribute) and (modules := self.modules(func.value)):
            found = [sources.attribute(module, func.attr, self._kinds(func.value, module)) for module in modules]
            return [one for one in found if one is not None]
        if value is not UNKNOWN:
            return [value]
        if isinstance(func, ast.Call) and func.args:
            maker, first = self.constants.value(func.func), self.constants.value(func.args[0])
            if maker is functools.partial:
                return self._callees(func.args[0])
            if maker in (operator.attrgetter, operator.methodcaller) and isinstance(first, str):
                return [operator.attrgetter(first)]
        return list(self.modules(func))

    def _handed_on(self, node: ast.Call, given: Modules) -> Modules:
        """Walks into functions that a call is given, with the modules that it is given beside them."""
        base = inside(self.modules(node.func.value)) if isinstance(node.func, ast.Attribute) else NONE
        calls = any(getattr(function, "__name__", "") in _CALLING for function in self._callees(node.func))
        returned = NONE
        for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
            inner = self.inner.get(argument.id) if isinstance(argument, ast.Name) else argument
            if isinstance(inner, sources.Node):
                self._bind(inner, [], {}, inside(given) | base)
            elif isinstance(argument, (ast.Name, ast.Attribute)):
                beside = given - self.modules(argument)
                for function in self._callees(argument):
                    if function is getattr:
                        returned |= self.by_some_name(inside(beside))
                    elif isinstance(function, nn.Module):
                        returned |= self._run(function, [], {}, beside) if calls else NONE
                    elif callable(function) and (beside or base):
                        returned |= self._run(function, [], {}, inside(beside) | base)
        return returned

    # --- expressions --------------------------------------------------------------------------------------------------

    def _kinds(self, base: ast.AST, module: nn.Module) -> tuple[type, ...]:
        """The classes in which a method of a module is looked for; behind this function's own for `super()`."""
        kinds = type(module).__mro__
        if not _is_super(base):
            return kinds
        own = [any(self._is_own(entry) for entry in kind.__dict__.values()) for kind in kinds]
        return kinds[own.index(True) + 1 :] if True in own else ()

    def _is_own(self, entry: Any) -> bool:
        entry = entry.fget if isinstance(entry, property) else entry
        return any(function is self.function for function, *_ in sources.under(entry))

    def modules(self, node: ast.AST) -> Modules:
        """The modules that an expression may be, or hold."""
        if node not in self._known:
            found = self._modules(node)
            self._known[node] = found
        return self._known[node]

    def _modules(self, node: ast.AST) -> Modules:
        if isinstance(node, ast.Name):
            return self.names[node.id] if node.id in self.names else self.search.held(self.constants.value(node))
        if isinstance(node, ast.Attribute):
            base = self.modules(node.value)
            return self.attributes(base, node.attr) if base else self.search.held(self.constants.value(node))
        if isinstance(node, ast.Subscript):
            return members(self.modules(node.value))
        if _is_super(node):
            return self.names.get(next(iter(sources.parameters(self.tree)), ""), NONE)
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, (ast.Constant, ast.Compare, ast.Lambda, ast.JoinedStr)):
            return NONE
        return NONE.union(*map(self.modules, self._evaluated(node)))

    def attributes(self, modules: Modules, name: str) -> Modules:
        """What modules, or whatever holds them, have under a name."""
        found = NONE
        for module in modules:
            value = attempt(functools.partial(getattr, module, name))
            found |= frozenset({module}) if value is UNKNOWN else self.search.held(value)
        return found


def _is_super(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"
