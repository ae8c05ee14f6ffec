"""`Fields`: a request's parameters, each taken once and checked; what nobody took is refused by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from ..errors import did_you_mean
from .errors import ApiError

T = TypeVar("T")

_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    dict: "an object",
    list: "a list",
}


class Fields:
    """The parameters of a request, or of an object in one.

    A parameter that is null counts as not given, as OpenAI's clients send them.
    """

    def __init__(self, values: Any, where: str = "") -> None:
        """Takes an object.

        Args:
            values: Which should be one.
            where: Its name, for errors; empty for the request itself.

        Raises:
            ApiError: it is something else.
        """
        if not isinstance(values, dict):
            raise ApiError(400, f"{where or 'the request'} must be a JSON object", param=where or None)
        self._values = {name: value for name, value in values.items() if value is not None}
        self._known: list[str] = []
        self._where = where

    def name(self, name: str) -> str:
        """Returns a parameter's name as errors have it."""
        return f"{self._where}.{name}" if self._where else name

    def refuse(self, name: str, message: str, code: str | None = None) -> ApiError:
        """Returns the error for a parameter, to be raised."""
        return ApiError(400, f"{self.name(name)}: {message}", param=self.name(name), code=code)

    def take(self, name: str, kind: type[T], default: T | None = None) -> T | None:
        """Takes a parameter of a type; whole numbers are numbers, too.

        Raises:
            ApiError: it is of another type.
        """
        value = self.raw(name)
        if value is None:
            return default
        fits = isinstance(value, (int, float) if kind is float else kind)
        if not fits or (isinstance(value, bool) and kind is not bool):
            raise self.refuse(name, f"must be {_NAMES[kind]}, got {value!r:.80}", "invalid_type")
        return value  # type: ignore[no-any-return]

    def need(self, name: str, kind: type[T]) -> T:
        """Takes a parameter that has to be there.

        Raises:
            ApiError: it is missing, or of another type.
        """
        value = self.take(name, kind)
        if value is None:
            raise self.refuse(name, "is missing", "missing_required_parameter")
        return value

    def number(self, name: str, low: float, high: float, default: float | None = None) -> float | None:
        """Takes a number of a range.

        Raises:
            ApiError: it is outside.
        """
        value = self.take(name, float)
        if value is not None and not low <= value <= high:
            raise self.refuse(name, f"must be from {low:g} to {high:g}, got {value!r:.80}", "invalid_value")
        return default if value is None else value

    def count(self, name: str, low: int, high: int, default: int | None = None) -> int | None:
        """Takes a whole number of a range.

        Raises:
            ApiError: it is outside.
        """
        value = self.take(name, int)
        if value is not None and not low <= value <= high:
            raise self.refuse(name, f"must be from {low} to {high}, got {value!r:.80}", "invalid_value")
        return default if value is None else value

    def raw(self, name: str) -> Any:
        """Takes a parameter of any type; None where it is not given."""
        self._known.append(name)
        return self._values.pop(name, None)

    def only(self, name: str, *values: Any) -> None:
        """Takes a parameter that changes nothing with these values.

        Raises:
            ApiError: it has another.
        """
        value = self.raw(name)
        if value is not None and not any(type(value) is type(other) and value == other for other in values):
            allowed = f"; it may be {' or '.join(map(repr, values))}" if values else ""
            raise self.refuse(name, f"is not supported by this server{allowed}", "unsupported_parameter")

    def refuse_all(self, names: Iterable[str]) -> None:
        """Takes parameters that are known and never supported.

        Raises:
            ApiError: one is given.
        """
        for name in names:
            self.only(name)

    def end(self) -> None:
        """Has nothing left.

        Raises:
            ApiError: a parameter was given that nobody took.
        """
        for name in self._values:
            meant = did_you_mean(name, self._known)
            raise self.refuse(name[:80], f"there is no such parameter{meant}", "unknown_parameter")
