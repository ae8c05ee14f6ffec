"""Which layers' weights a model's own code reads: what its forwards do, followed through their sources.

A packed layer refuses to give its values when somebody asks for them. Where that can be known beforehand, the layer had
better stay dense. So every forward is walked through with sets of modules in the place of values: `self.proj`, members
of lists, local names, arguments and what methods return are followed; branches that the model's own attributes rule out
are left aside. What it does not see (code without a source, names that are put together) is told by the packed layer.
"""

from __future__ import annotations

import ast
import functools
import inspect
import operator
import textwrap
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn

from .stand_in import ANSWERED

_UNKNOWN = object()
_NONE: frozenset[nn.Module] = frozenset()
_LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
_HARMLESS = {"isinstance", "hasattr", "getattr", "type", "id", "callable"}
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}

Modules = frozenset[nn.Module]


def readers(model: nn.Module, layers: Iterable[nn.Module]) -> dict[nn.Module, str]:
    """Finds the layers whose weights are read by others when the model runs.

    Args:
        model: The model, in the mode and with the settings in which it will run.
        layers: Those that are of interest.

    Returns:
        The reason by layer: "Class.forward reads its weight", or asks in another way for what a packed layer has not.
    """
    found: dict[nn.Module, str] = {}
    wanted = frozenset(layers)
    seen: dict[Any, Modules] = {}
    for module in model.modules():
        if not any(inner in wanted for inner in module.modules()):
            continue
        walk = functools.partial(_Walk, wanted, found, seen)
        for function in (module.__dict__.get("forward"), type(module).forward):
            if module not in wanted:
                walk(_bare(function)).run([frozenset({module})])
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            walk(_bare(hook)).run([frozenset({module})])
    return found


def _bare(function: Any) -> Any:
    """The function that was written, under decorators, partial arguments and binding."""
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif isinstance(function, types.MethodType):
            function = function.__func__
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        else:
            return function


@functools.lru_cache(maxsize=4096)
def _source(code: types.CodeType) -> tuple[ast.AST, dict[ast.AST, ast.AST]] | None:
    """A function's tree and the parents in it; None where there is no source."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(code))).body[0]
    except (OSError, SyntaxError, TypeError, IndexError):
        return None
    if not isinstance(tree, (ast.FunctionDef, ast.AsyncFunctionDef)):  # a lambda amid other things
        return None
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    return tree, parents


class _Walk:
    """One function, walked through with the modules that its arguments may be."""

    def __init__(self, wanted: Modules, found: dict[nn.Module, str], seen: dict[Any, Modules], function: Any) -> None:
        self.wanted, self.found, self.seen, self.function = wanted, found, seen, function
        self.names: dict[str, Modules] = {}
        self.returned = _NONE
        self.parents: dict[ast.AST, ast.AST] = {}

    def run(self, arguments: list[Modules], keywords: dict[str, Modules] | None = None) -> Modules:
        """Walks through and returns the modules that may be returned."""
        code = getattr(self.function, "__code__", None)
        if code is None or str(getattr(self.function, "__module__", "")).partition(".")[0] in ("torch", "builtins"):
            return _NONE  # torch's own functions look for tensors such as ours
        key = (self.function, *arguments, *(keywords or {}).items())
        if key in self.seen:
            return self.seen[key]
        self.seen[key] = _NONE  # until it is known, for functions that call themselves
        source = _source(code)
        if source is None:
            return _NONE
        tree, self.parents = source
        taken = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        self.names.update(zip(taken, arguments, strict=False))
        self.names.update(keywords or {})
        assert isinstance(tree, (ast.FunctionDef, ast.AsyncFunctionDef))
        for _ in range(2):  # names may be used before the line that sets them, in loops
            for statement in tree.body:
                self.visit(statement)
        self.seen[key] = self.returned
        return self.returned

    def visit(self, node: ast.AST) -> None:
        """Walks through a statement or an expression."""
        for child in self._evaluated(node):
            self.visit(child)
        if isinstance(node, (ast.Assign, ast.AnnAssign, ast.NamedExpr)) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                pairs = [(target, node.value)]
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    pairs = list(zip(target.elts, node.value.elts, strict=False))
                for one, value in pairs:
                    self._assign(one, self.modules(value))
        elif isinstance(node, (ast.For, ast.AsyncFor, ast.comprehension)):
            self._assign(node.target, _members(self.modules(node.iter)))
        elif isinstance(node, ast.withitem) and node.optional_vars is not None:
            self._assign(node.optional_vars, self.modules(node.context_expr))
        elif isinstance(node, ast.Return) and node.value is not None:
            self.returned |= self.modules(node.value)
        elif isinstance(node, ast.Attribute):
            if node.attr == "weight":
                self._read(node, self.modules(node.value))
            else:
                self._method(node, [], {})
        elif isinstance(node, ast.Call):
            self.call(node)

    def _evaluated(self, node: ast.AST) -> Iterator[ast.AST]:
        """The parts of a node that are evaluated, as far as the model's attributes tell: of `a and b`, maybe only a."""
        if isinstance(node, (ast.If, ast.IfExp)):
            truth = self.value(node.test)
            yield node.test
            if truth is _UNKNOWN or truth:
                yield from _list(node.body)
            if truth is _UNKNOWN or not truth:
                yield from _list(node.orelse)
        elif isinstance(node, ast.BoolOp):
            for part in node.values:
                yield part
                truth = self.value(part)
                if truth is not _UNKNOWN and bool(truth) == isinstance(node.op, ast.Or):
                    return
        else:
            # Of comprehensions, what they iterate over comes before what they make of it.
            yield from sorted(ast.iter_child_nodes(node), key=lambda child: not isinstance(child, ast.comprehension))

    def _assign(self, target: ast.AST, modules: Modules) -> None:
        for name in ast.walk(target):
            if isinstance(name, ast.Name) and modules:
                self.names[name.id] = self.names.get(name.id, _NONE) | modules

    def _read(self, node: ast.AST, modules: Modules) -> None:
        """Notes that a weight is asked for, unless all that is wanted is what it is."""
        above = self.parents.get(node)
        uses = [node]
        if isinstance(above, ast.Assign) and len(above.targets) == 1 and isinstance(above.targets[0], ast.Name):
            name = above.targets[0].id
            uses = [use for use in self.parents if isinstance(use, ast.Name) and use.id == name]
            uses = [use for use in uses if isinstance(use.ctx, ast.Load)]  # type: ignore[attr-defined]
        if not all(map(self._needs_no_values, uses)):
            self._note(modules, "reads its weight")

    def _note(self, modules: Modules, what: str) -> None:
        for module in modules & self.wanted:
            self.found.setdefault(module, f"{self.function.__qualname__.replace('<locals>.', '')} {what}")

    def _read_all(self, node: ast.Call, modules: Modules) -> None:
        """Notes that parameters are gone through, among which a packed weight is not, unless for what they are."""
        above = self.parents.get(node)
        if isinstance(above, ast.Call) and isinstance(above.func, ast.Name) and above.func.id == "next":
            return
        if isinstance(above, (ast.For, ast.comprehension)) and isinstance(above.target, ast.Name):
            name = above.target.id
            uses = [use for use in self.parents if isinstance(use, ast.Name) and use.id == name]
            if all(map(self._needs_no_values, (use for use in uses if isinstance(use.ctx, ast.Load)))):
                return
        self._note(frozenset(inner for module in modules for inner in module.modules()), "goes through its parameters")

    def _ask_class(self, node: ast.Call) -> None:
        """Notes that a layer's class is asked for where a packed one would give another answer."""
        kinds = node.args[1]
        for kind in kinds.elts if isinstance(kinds, ast.Tuple) else [kinds]:
            if self.value(kind) is nn.Linear:
                self._note(self.modules(node.args[0]), "asks whether it is a Linear")

    def _needs_no_values(self, node: ast.AST) -> bool:
        above = self.parents.get(node)
        while isinstance(above, ast.Attribute) and above.attr in ("data", "detach"):
            node, above = above, self.parents.get(above)
            if isinstance(above, ast.Call) and above.func is node:
                node, above = above, self.parents.get(above)
        if isinstance(above, ast.Attribute):
            return above.attr in ANSWERED
        if isinstance(above, ast.Call) and isinstance(above.func, ast.Name):
            return above.func.id in _HARMLESS
        return isinstance(above, ast.Compare) and all(isinstance(op, (ast.Is, ast.IsNot)) for op in above.ops)

    def call(self, node: ast.Call) -> Modules:
        """Walks into a function that is called with modules, and returns those that it may return."""
        arguments = [self.modules(argument) for argument in node.args]
        keywords = {keyword.arg: self.modules(keyword.value) for keyword in node.keywords if keyword.arg}
        func = node.func
        if isinstance(func, ast.Attribute):
            if func.attr in ("parameters", "named_parameters", "state_dict", "get_parameter"):
                self._read_all(node, self.modules(func.value))
                return _NONE
            if func.attr in ("modules", "named_modules"):
                return frozenset(inner for module in self.modules(func.value) for inner in module.modules())
            if func.attr in ("children", "named_children", "values", "items"):
                return _members(self.modules(func.value))
            return self._method(func, arguments, keywords)
        if not isinstance(func, ast.Name):
            return _NONE
        if func.id == "isinstance" and len(node.args) == 2:
            self._ask_class(node)
            return _NONE
        if func.id == "getattr" and len(node.args) > 1:
            name = node.args[1].value if isinstance(node.args[1], ast.Constant) else None
            if name == "weight":
                self._read(node, arguments[0])
            return _attributes(arguments[0], name) if isinstance(name, str) else _members(arguments[0], any_kind=True)
        function = _bare(self.value(func))
        if isinstance(function, types.FunctionType) and any((*arguments, *keywords.values())):
            return self._into(function, arguments, keywords)
        return frozenset().union(*arguments)  # enumerate, zip, list, reversed

    def _into(self, function: Any, arguments: list[Modules], keywords: dict[str, Modules]) -> Modules:
        return _Walk(self.wanted, self.found, self.seen, _bare(function)).run(arguments, keywords)

    def _method(self, func: ast.Attribute, arguments: list[Modules], keywords: dict[str, Modules]) -> Modules:
        """Walks into methods and properties, and into the forwards of modules that are given others."""
        returned = _NONE
        for module in self.modules(func.value):
            for kind in self._kinds(func.value, module):
                if func.attr in kind.__dict__:
                    method = kind.__dict__[func.attr]
                    method = method.fget if isinstance(method, property) else method
                    if isinstance(_bare(method), types.FunctionType):
                        returned |= self._into(method, [frozenset({module}), *arguments], keywords)
                    break
        if any((*arguments, *keywords.values())):
            for module in self.modules(func) - self.wanted:  # a linear layer's own forward may read its weight
                returned |= self._into(type(module).forward, [frozenset({module}), *arguments], keywords)
        return returned

    def _kinds(self, base: ast.AST, module: nn.Module) -> tuple[type, ...]:
        """The classes in which a method of a module is looked for; behind this function's own for `super()`."""
        kinds = type(module).__mro__
        if not _is_super(base):
            return kinds
        own = [any(_bare(entry) is self.function for entry in kind.__dict__.values()) for kind in kinds]
        return kinds[own.index(True) + 1 :] if True in own else ()

    def modules(self, node: ast.AST) -> Modules:
        """The modules that an expression may be, or hold."""
        if isinstance(node, ast.Name):
            if node.id in self.names:
                return self.names[node.id]
            return _modules_in(self.value(node))
        if isinstance(node, ast.Attribute):
            return _attributes(self.modules(node.value), node.attr)
        if isinstance(node, ast.Subscript):
            return _members(self.modules(node.value))
        if _is_super(node):
            return self.names.get("self", _NONE)
        if isinstance(node, ast.Call):
            return self.call(node)
        if isinstance(node, (ast.Constant, ast.BinOp, ast.Compare, ast.Lambda)):
            return _NONE
        return frozenset().union(*map(self.modules, self._evaluated(node)))

    def value(self, node: ast.AST) -> Any:
        """What an expression is, where constants and the model's own attributes tell."""
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            return self._named(node.id)
        if isinstance(node, ast.Attribute):
            base = self.value(node.value)
            return _UNKNOWN if base is _UNKNOWN else _get(base, node.attr)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            truth = self.value(node.operand)
            return _UNKNOWN if truth is _UNKNOWN else not truth
        if isinstance(node, ast.BoolOp):
            return self._both(node)
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            left, right = self.value(node.left), self.value(node.comparators[0])
            if left is not _UNKNOWN and right is not _UNKNOWN:
                return _try(lambda: bool(_COMPARE[type(node.ops[0])](left, right)))
        return _UNKNOWN

    def _named(self, name: str) -> Any:
        code = self.function.__code__
        if name in code.co_varnames[:1] and len(self.names.get(name, _NONE)) == 1:
            (module,) = self.names[name]
            return module
        if name in code.co_varnames or name in code.co_cellvars or name in self.names:
            return _UNKNOWN
        if name in code.co_freevars:
            cell = self.function.__closure__[code.co_freevars.index(name)]
            return _try(lambda: cell.cell_contents)
        return self.function.__globals__.get(name, _UNKNOWN)

    def _both(self, node: ast.BoolOp) -> Any:
        either = isinstance(node.op, ast.Or)
        truths = [self.value(part) for part in node.values]
        known = [bool(truth) for truth in truths if truth is not _UNKNOWN]
        if either in known:
            return either
        return _UNKNOWN if len(known) < len(truths) else not either


def _list(body: Any) -> list[ast.AST]:
    return body if isinstance(body, list) else [body]


def _is_super(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"


def _try(get: Callable[[], Any]) -> Any:
    try:
        return get()
    except Exception:
        return _UNKNOWN  # a property or comparison of the model's that fails tells nothing


def _get(base: Any, name: str) -> Any:
    return _try(lambda: getattr(base, name))


def _modules_in(value: Any) -> Modules:
    """A module, or those that a plain container holds."""
    if isinstance(value, nn.Module):
        return frozenset({value})
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return frozenset(item for item in value if isinstance(item, nn.Module))
    return _NONE


def _attributes(modules: Modules, name: str) -> Modules:
    return frozenset().union(*(_modules_in(_get(module, name)) for module in modules))


def _members(modules: Modules, *, any_kind: bool = False) -> Modules:
    """What iterating over modules gives, and they themselves."""
    inner = (module.children() for module in modules if any_kind or isinstance(module, _LISTS))
    return modules.union(*inner)
