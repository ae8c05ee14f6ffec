"""What expressions in a model's code are, where constants and the model's own attributes tell."""

from __future__ import annotations

import ast
import builtins
import operator
import sys
import types
from collections.abc import Callable, Mapping
from importlib.util import resolve_name
from typing import Any

UNKNOWN = object()
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


class Constants:
    """The names of a function: what is around it, and what it sets once."""

    def __init__(self, function: types.FunctionType, own: Mapping[str, int], once: Mapping[str, ast.AST]) -> None:
        """Takes a function, how often it sets which names itself, and the expressions of those that it sets once."""
        self._function, self.own, self._once = function, own, once
        self._open: set[str] = set()
        self._known: dict[str, Any] = {}

    def know(self, name: str, value: Any) -> None:
        """Takes what a parameter is that nothing else is put in the place of."""
        if self.own[name] == 1:
            self._known[name] = value

    def value(self, node: ast.AST) -> Any:
        """What an expression is, or `UNKNOWN`."""
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            return self._named(node.id)
        if isinstance(node, ast.Attribute):
            base = self.value(node.value)
            return UNKNOWN if base is UNKNOWN else attempt(lambda: getattr(base, node.attr))
        if isinstance(node, (ast.Tuple, ast.JoinedStr, ast.BinOp)):
            return self._made(node)
        if isinstance(node, ast.ImportFrom):
            return self._imported(node)
        if isinstance(node, ast.Subscript):
            base, key = self.value(node.value), self.value(node.slice)
            return UNKNOWN if base is UNKNOWN or key is UNKNOWN else attempt(lambda: base[key])
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            truth = self.value(node.operand)
            return UNKNOWN if truth is UNKNOWN else attempt(lambda: not truth)
        if isinstance(node, ast.BoolOp):
            return self._both(node)
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            left, right = self.value(node.left), self.value(node.comparators[0])
            if left is not UNKNOWN and right is not UNKNOWN:
                return attempt(lambda: bool(_COMPARE[type(node.ops[0])](left, right)))
        return UNKNOWN

    def truth(self, node: ast.AST) -> bool | None:
        """Whether an expression is true, or None."""
        value = self.value(node)
        found = UNKNOWN if value is UNKNOWN else attempt(lambda: bool(value))
        return None if found is UNKNOWN else found

    def _made(self, node: ast.Tuple | ast.JoinedStr | ast.BinOp) -> Any:
        """Tuples, texts that are put together, and unions of types."""
        if isinstance(node, ast.BinOp):
            parts = [self.value(node.left), self.value(node.right)]
            joins = isinstance(node.op, ast.BitOr) or all(isinstance(part, (str, tuple)) for part in parts)
            if any(part is UNKNOWN for part in parts) or not joins or not isinstance(node.op, (ast.BitOr, ast.Add)):
                return UNKNOWN
            return attempt(lambda: parts[0] | parts[1] if isinstance(node.op, ast.BitOr) else parts[0] + parts[1])
        if isinstance(node, ast.Tuple):
            parts = [self.value(part) for part in node.elts]
            return UNKNOWN if any(part is UNKNOWN for part in parts) else tuple(parts)
        plain = all(not isinstance(part, ast.FormattedValue) or part.format_spec is None for part in node.values)
        parts = [self.value(part.value if isinstance(part, ast.FormattedValue) else part) for part in node.values]
        return "".join(parts) if plain and all(isinstance(part, str) for part in parts) else UNKNOWN

    def _imported(self, node: ast.ImportFrom) -> Any:
        """The one name that is imported, of a module that is there already."""
        name = "." * node.level + (node.module or "")
        package = self._function.__globals__.get("__package__")
        found = attempt(lambda: sys.modules[resolve_name(name, package)])
        return UNKNOWN if found is UNKNOWN else attempt(lambda: getattr(found, node.names[0].name))

    def _named(self, name: str) -> Any:
        if name in self._known:
            return self._known[name]
        if name in self.own:
            if name not in self._once or name in self._open:
                return UNKNOWN
            self._open.add(name)
            try:
                return self.value(self._once[name])
            finally:
                self._open.discard(name)
        code = self._function.__code__
        if name in code.co_freevars and self._function.__closure__:
            cell = self._function.__closure__[code.co_freevars.index(name)]
            return attempt(lambda: cell.cell_contents)
        return self._function.__globals__.get(name, vars(builtins).get(name, UNKNOWN))

    def _both(self, node: ast.BoolOp) -> Any:
        either = isinstance(node.op, ast.Or)
        truths = [self.truth(part) for part in node.values]
        if either in truths:
            return either
        return UNKNOWN if None in truths else not either


def attempt(get: Callable[[], Any]) -> Any:
    """What a function returns, or `UNKNOWN`: a property or comparison of the model's that fails tells nothing."""
    try:
        return get()
    except Exception:
        return UNKNOWN
