"""Texts that a JSON schema, a regular expression or a grammar allows, by the library `llguidance`.

Before each choice the library says which tokens the text may go on with, and after it which have to follow: those are
not chosen, and the engine sees them in one step.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import GossamerError, one_line
from ..text.json_schema import conjunctions, subschemas
from .sampling import Logits, check_finite
from .sampling_options import GRAMMARS, SamplingOptions

if TYPE_CHECKING:
    from ..text.tokenizer import Tokenizer

_log = logging.getLogger(__name__)

# Blanks as `json.dumps` writes them: a model that may write as many as it likes may never stop.
_JSON = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_LOW, _HIGH = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")
_EXCLUSIVE = (_LOW[1], _HIGH[1])
_LEAST, _MOST = -(1 << 63), (1 << 63) - 1  # whole numbers that the library has
_MOST_KEPT = 64  # grammars of a model that are kept compiled


class Grammars:
    """What was compiled for the vocabulary of one model; threads take turns."""

    def __init__(self, tokenizer: Tokenizer, vocab: int) -> None:
        self._tokenizer = tokenizer
        self._vocab = vocab
        self._words: Any = None  # the library's view of the vocabulary, which takes it a moment
        self._matchers: dict[tuple[str, str], Any] = {}
        self._turn = threading.Lock()

    def constraint(self, options: SamplingOptions) -> Constraint | None:
        """Returns what holds for a new text; None where the options say nothing.

        Raises:
            GossamerError: the library is missing, does not know the tokenizer, or does not take the grammar.
        """
        asked = [(name, text) for name in GRAMMARS if (text := getattr(options, name)) is not None]
        if not asked:
            return None
        with self._turn:
            return self._constraint(*asked[0])

    def _constraint(self, kind: str, text: str) -> Constraint:
        try:
            import llguidance
        except ImportError:
            raise GossamerError(f"{kind} needs llguidance: pip install 'gossamer[grammar]'") from None
        if (kind, text) not in self._matchers:
            if self._words is None:
                self._words = self._vocabulary(llguidance)
            matcher = self._compiled(llguidance.LLMatcher, kind, text)
            if kind == "schema":
                self._check_bounds(llguidance.LLMatcher, text)
            while len(self._matchers) >= _MOST_KEPT:
                del self._matchers[next(iter(self._matchers))]
            self._matchers[kind, text] = matcher
        return Constraint(kind, self._matchers[kind, text].deep_copy())

    def _vocabulary(self, library: Any) -> Any:
        most = max(self._vocab, self._tokenizer.vocab_size)
        ends = sorted(self._tokenizer.eos_ids)
        try:
            return library.LLTokenizer(self._tokenizer.to_json(), n_vocab=most, eos_token=ends or None)
        except Exception as error:  # of whatever kind the library raises
            raise GossamerError(f"the tokenizer cannot be held to a grammar: {one_line(str(error))}") from None

    def _compiled(self, library: Any, kind: str, text: str) -> Any:
        if kind == "schema":
            source = library.grammar_from_json_schema(text, defaults=_JSON)
        else:
            source = (library.grammar_from_regex if kind == "regex" else library.grammar_from_lark)(text)
        matcher = library(self._words, source, log_level=0)
        if matcher.is_error():
            raise GossamerError(f"{kind}: {one_line(matcher.get_error())}")
        for warning in matcher.get_grammar_warnings():
            _log.warning("%s: %s", kind, one_line(warning))
        return matcher

    def _check_bounds(self, library: Any, text: str) -> None:
        """Refuses bounds of numbers that the library takes and lets a number beyond them pass.

        It has bounds as floats, those of whole numbers within 64 bits; and what an exclusive bound leaves out is
        written, in some digits, where the other bound is near.
        """
        schema = json.loads(text)
        exclusive = False
        for part in subschemas(schema):
            bounds = _bounds(part)
            exclusive |= any(key in bounds for key in _EXCLUSIVE)
            for key, bound in bounds.items() if "integer" in _kinds(part) else ():
                held = min(max(float(bound), _LEAST), _MOST)
                if held < bound if key in _LOW else held > bound:
                    raise GossamerError(f"schema: {key} {bound} is beyond the whole numbers that can be held to")

        def matches(pattern: str, name: str) -> bool:
            matcher = self._held_to(library, {"type": "string", "pattern": pattern})
            return matcher is None or self._takes(matcher, json.dumps(name, ensure_ascii=False))

        tried: set[str] = set()
        for together in conjunctions(schema, matches) if exclusive else ():
            bounds = _tightest(map(_bounds, together))
            if (key := json.dumps(bounds)) in tried or not all("number" in _kinds(part) for part in together):
                continue
            tried.add(key)
            if passing := self._passing(library, bounds):
                raise GossamerError(f"schema: the bounds {json.dumps(bounds)} cannot be held to: {passing} would pass")

    def _passing(self, library: Any, bounds: dict[str, Any]) -> str:
        """A number that an exclusive bound leaves out, and the library writes all the same."""
        left_out = [value for key, value in bounds.items() if key in _EXCLUSIVE]
        if not left_out:
            return ""
        matcher = self._held_to(library, {"type": "number", **bounds})
        for value in left_out if matcher else ():
            plain = f"{value:.15g}"
            for written in (plain, f"-{plain}", f"{plain}.0", f"-{plain}.0"):  # -0 is 0
                if self._takes(matcher, written) and float(written) == value:
                    return written
        return ""

    def _held_to(self, library: Any, schema: dict[str, Any]) -> Any:
        """What a text is held to a schema by; None where the library does not take it."""
        matcher = library(
            self._words, library.grammar_from_json_schema(json.dumps(schema), defaults=_JSON), log_level=0
        )
        return None if matcher.is_error() else matcher

    def _takes(self, matcher: Any, text: str) -> bool:
        """Whether a whole text is an instance."""
        tokens, tried = self._words.tokenize_str(text), matcher.deep_copy()
        return bool(tried.try_consume_tokens(tokens) == len(tokens) and tried.is_accepting())


def _kinds(part: dict[str, Any]) -> Any:
    """The types of values that a schema allows, among them those of numbers where it says none."""
    return part.get("type", ["number", "integer"])


def _bounds(part: dict[str, Any]) -> dict[str, Any]:
    """The bounds of numbers that a schema has by itself; `true` makes a bound exclusive, as in old drafts."""
    bounds = {key: part[key] for key in (*_LOW, *_HIGH) if type(part.get(key)) in (int, float)}
    for plain, exclusive in (_LOW, _HIGH):
        if part.get(exclusive) is True and plain in bounds:
            bounds[exclusive] = bounds.pop(plain)
    return bounds


def _tightest(every: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The bounds that hold where several do."""
    found: dict[str, list[Any]] = {key: [] for key in (*_LOW, *_HIGH)}
    for bounds in every:
        for key, bound in bounds.items():
            found[key].append(bound)
    return {key: (max if key in _LOW else min)(some) for key, some in found.items() if some}


class Constraint:
    """What one text may go on with."""

    def __init__(self, kind: str, matcher: Any) -> None:
        self._kind = kind
        self._matcher = matcher

    @property
    def done(self) -> bool:
        """Whether the text is whole and nothing may follow."""
        return bool(self._matcher.is_stopped())

    def allowed(self, vocab: int) -> NDArray[np.bool_]:
        """Returns which tokens [vocab] may come next, end tokens among them where the text may end."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        return np.unpackbits(bits, count=vocab, bitorder="little").view(np.bool_)

    def mask(self, logits: Logits) -> Logits:
        """Returns a copy of `logits` [vocab] in which what may not come next is -inf.

        Raises:
            GossamerError: logits are not finite, or no token may come.
        """
        check_finite(logits)
        allowed = self.allowed(logits.size)
        if not allowed.any():
            raise GossamerError(f"the {self._kind} allows none of the model's tokens to go on with")
        return np.where(allowed, logits, np.float32(-np.inf))

    def take(self, token: int) -> None:
        """Notes the next token, which may not be an end token.

        Raises:
            GossamerError: it may not come next.
        """
        if not self._matcher.consume_token(token):
            self._check()
            raise GossamerError(f"the {self._kind} does not allow token {token} here")

    def forced(self) -> list[int]:
        """Returns the tokens that have to come next, as far as that is known."""
        return [] if self.done else list(self._matcher.compute_ff_tokens())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GossamerError(f"the {self._kind}: {one_line(self._matcher.get_error())}")
