"""Functions of other people's models: where they are, as syntax trees, and what calls of them start with."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
import types
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from torch import nn

T = TypeVar("T")
_NAMED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.MatchAs, ast.MatchStar)

Node = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


def under(function: Any) -> Iterator[tuple[types.FunctionType, list[Any], dict[str, Any]]]:
    """The Python functions that run when something is called: decorators, and what they were put around.

    Returns:
        Each function with the positional and the named arguments that it is given before those of the call.
    """
    before: list[Any] = []
    named: dict[str, Any] = {}
    while function is not None:
        if isinstance(function, functools.partial):
            before, named = [*function.args, *before], {**function.keywords, **named}
            function = function.func
        elif isinstance(function, types.MethodType):
            before, function = [function.__self__, *before], function.__func__
        elif isinstance(function, types.FunctionType):
            yield function, before, named
            function = getattr(function, "__wrapped__", None)
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        else:
            method = getattr(type(function), "__call__", None)  # noqa: B004
            if not isinstance(method, types.FunctionType) or isinstance(function, type):
                return
            before, function = [function, *before], method


@functools.lru_cache(maxsize=4096)
def source(code: types.CodeType) -> tuple[Node, ...]:
    """The tree of a function; several where a line has lambdas that look alike, none where there is no source."""
    try:
        if code.co_name == "<lambda>":
            lines, _ = inspect.findsource(code)
            return tuple(node for node in _lambdas("".join(lines)) if _is_of(node, code))
        tree = ast.parse(textwrap.dedent(inspect.getsource(code))).body[0]
    except (OSError, SyntaxError, TypeError, IndexError):
        return ()
    return (tree,) if isinstance(tree, (ast.FunctionDef, ast.AsyncFunctionDef)) else ()


@functools.lru_cache(maxsize=64)
def _lambdas(text: str) -> list[ast.Lambda]:
    return [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Lambda)]


def _is_of(node: ast.Lambda, code: types.CodeType) -> bool:
    names = parameters(node)
    return node.lineno == code.co_firstlineno and tuple(names) == code.co_varnames[: len(names)]


def parameters(node: Node) -> list[str]:
    """Names of a function's parameters in the order of its code's variables."""
    given = node.args
    return [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg) if one]


def places(node: Node) -> list[str]:
    """Names of a function's parameters that arguments fill by their places."""
    return [one.arg for one in (*node.args.posonlyargs, *node.args.args)]


def left_over(
    node: Node, arguments: Sequence[T], keywords: Mapping[str, T]
) -> tuple[tuple[str, list[T]], tuple[str, dict[str, T]]]:
    """What a function's `*rest` and `**others` take, with their names; empty ones where it has none."""
    given = node.args
    named = {*places(node), *(one.arg for one in given.kwonlyargs)}
    others = {name: value for name, value in keywords.items() if name not in named} if given.kwarg else {}
    rest = list(arguments[len(places(node)) :]) if given.vararg else []
    return (given.vararg.arg if given.vararg else "", rest), (given.kwarg.arg if given.kwarg else "", others)


def defaults(function: types.FunctionType) -> dict[str, Any]:
    """What a function's parameters are by default."""
    code, values = function.__code__, function.__defaults__ or ()
    places = code.co_varnames[: code.co_argcount]
    return {**dict(zip(places[len(places) - len(values) :], values, strict=True)), **(function.__kwdefaults__ or {})}


@functools.lru_cache(maxsize=4096)
def above(tree: ast.AST) -> dict[ast.AST, ast.AST]:
    """The parents of all that a tree holds."""
    return {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}


@functools.lru_cache(maxsize=4096)
def bound(tree: ast.AST) -> tuple[Counter[str], dict[str, ast.AST]]:
    """How often a function sets which names, inner functions included, and what it sets those to that it sets once."""
    names: list[str] = []
    values: dict[str, ast.AST] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            names.append(node.arg)
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            names.append(node.id)
        elif isinstance(node, _NAMED) and node is not tree:
            names += [node.name] if node.name else []
        elif isinstance(node, (ast.Global, ast.Nonlocal)):
            names += 2 * node.names
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            values[node.targets[0].id] = node.value
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names.append(alias.asname or alias.name)
                values[names[-1]] = ast.ImportFrom(node.module, [alias], node.level)
    times = Counter(names)
    return times, {name: value for name, value in values.items() if times[name] == 1}


def attribute(module: nn.Module, name: str, kinds: tuple[type, ...]) -> Any:
    """A module's attribute, without running its properties: of those, what they run; None where there is none."""
    cached = any(isinstance(vars(kind).get(name), functools.cached_property) for kind in kinds)
    for entries in () if cached else (module.__dict__, module._modules):
        if name in entries:
            return entries[name]
    for kind in kinds:
        if name in kind.__dict__:
            found = kind.__dict__[name]
            if isinstance(found, (property, functools.cached_property)):
                found = found.fget if isinstance(found, property) else found.func
            if isinstance(found, (staticmethod, classmethod)):
                return found.__get__(module, type(module))
            takes_self = isinstance(found, types.FunctionType) or hasattr(found, "__wrapped__")
            return types.MethodType(found, module) if takes_self else found
    return None
