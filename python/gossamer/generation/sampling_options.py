"""How a text is drawn and where it ends: the options, which values are fair, and whose defaults hold."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ..errors import GossamerError, did_you_mean
from ..files import parse_json
from ..kinds import check_flag, check_kind, check_kinds
from ..text.generation_config import OPTION_NAMES, TOP_K, most_new_tokens
from ..text.messages import check_text


def _stops(stop: Any) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) or not isinstance(stop, Iterable) else tuple(stop)
    if not all(isinstance(text, str) for text in stops):
        raise GossamerError(f"stop must be a text or several, got {stop!r:.80}")
    for text in stops:
        check_text("a stop string", text)
    if not all(stops):
        raise GossamerError("stop: a stop string must not be empty")
    return stops


def _biases(value: Any) -> tuple[tuple[int, float], ...]:
    """Biases as sorted pairs, from pairs or from a mapping, whose keys may be digits, as JSON has them."""
    pairs = value.items() if isinstance(value, Mapping) else value
    biases: dict[int, float] = {}
    try:
        for token, bias in pairs:
            digits = isinstance(token, str) and token.isascii() and token.isdigit()
            number = int(token) if digits and len(token) < 20 else token
            _check("logit_bias: a token", number, "int", lambda n: n >= 0, "at least 0")
            _check(f"logit_bias: the bias of token {number}", bias, "float", _fits, _FITS)
            if number in biases:
                raise GossamerError(f"logit_bias: token {number} has two biases")
            biases[int(number)] = float(bias)
    except (TypeError, ValueError):
        raise GossamerError(f"logit_bias must be a mapping of tokens' numbers to biases, got {value!r:.80}") from None
    return tuple(sorted(biases.items()))


def _words(value: Any) -> tuple[tuple[int, ...], ...]:
    """Sequences of tokens, from any of lists."""
    fair = isinstance(value, (list, tuple)) and all(isinstance(word, (list, tuple)) and word for word in value)
    if not fair:
        raise GossamerError(f"bad_words must be lists of tokens, none of them empty, got {value!r:.80}")
    for word in value:
        for token in word:
            _check("bad_words: a token", token, "int", lambda n: n >= 0, "at least 0")
    return tuple(tuple(map(int, word)) for word in value)


def _schema(value: Any) -> str | None:
    """A schema's JSON."""
    if value is None:
        return None
    try:
        if isinstance(value, str):
            check_text("schema", value)
            value = parse_json(value)
        if value is True:  # of which everything is an instance
            value = {}
        if not isinstance(value, Mapping):
            raise GossamerError(f"schema must be a JSON object, got {value!r:.80}")
        return json.dumps(value, allow_nan=False)
    except GossamerError:
        raise
    except (TypeError, ValueError, RecursionError) as error:
        raise GossamerError(f"schema: not valid JSON: {error}") from None


def _check(name: str, value: Any, kind: str, fair: Any, expected: str) -> None:
    check_kind(name, value, kind)
    if not fair(value):
        raise GossamerError(f"{name} must be {expected}, got {value}")


_MOST = 1e30  # of what is added to logits, or multiplied with them, so that no float32 overflows
_FITS = "between -1e30 and 1e30"


def _fits(value: float) -> bool:
    return abs(value) <= _MOST


GRAMMARS = ("schema", "regex", "grammar")
"""Options that say what a text may be."""


@dataclass(frozen=True)
class SamplingOptions:
    """The options of one text. What they are by default takes the likeliest token.

    Attributes:
        max_new_tokens: Most tokens to generate; fewer when the model ends its text, a stop string comes, or the context
            is full.
        temperature: 0 takes the likeliest token (the filters then change nothing); above 0 draws at random.
        top_k: Keep the k likeliest tokens; 0 keeps all.
        top_p: Keep the fewest likeliest tokens whose probabilities reach p (nucleus sampling); 1 keeps all.
        min_p: Keep tokens at least min_p times as likely as the likeliest; 0 keeps all.
        typical_p: Keep the fewest tokens of the least surprising information whose probabilities reach p (locally
            typical sampling); 1 keeps all.
        repeat_penalty: Divides positive logits of tokens that came lately, multiplies negative ones; 1 is off.
        repeat_window: How many of the latest tokens, prompt included, it looks at; 0 is all.
        frequency_penalty: Lowers the logit of a token by so much for each time that the text, without its prompt, has
            it; 0 is off.
        presence_penalty: Lowers the logits of all tokens that the text, without its prompt, has; 0 is off.
        logit_bias: Added to the logits of single tokens, by their numbers: a mapping, or pairs, which it becomes.
        bad_words: Sequences of tokens that the text must not have, a tuple of numbers each.
        seed: Of the random numbers: the same options, seed and logits always choose the same tokens.
        stop: Strings that end the text; they and what follows them are not part of it. One string will do.
        logprobs: Keep the log-probability of every token that is chosen, and of so many of the likeliest beside it;
            None keeps none. They are the model's own, before biases, penalties and temperature.
        beams: Texts that are written side by side, of which the likeliest is kept (beam search); 1 writes one.
        length_penalty: Of beams: exponent of the length that a text's log-probability is divided by.
        early_stopping: Of beams: stop as soon as as many texts have ended.
        renormalize: Of beams: what biases, penalties and bad words leave of log-probabilities is normalized again.
        context_shift: Where the context is full, its first so many tokens are kept, the older half of the others is
            dropped, and what is left is computed anew, as if there had been no more; prompts may be longer, too. None
            ends the text there.
        schema: A JSON schema that the text has to be an instance of: an object, or its JSON, which it becomes.
        regex: A regular expression that the whole text has to match.
        grammar: A grammar of the text, as Lark writes them. Of these three, one may be given.

    Raises:
        GossamerError: a value is out of range or of another type; the line names it.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    repeat_window: int = 64
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    seed: int = 0
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool = False
    renormalize: bool = False
    context_shift: int | None = None
    schema: str | None = None
    regex: str | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        _check("max_new_tokens", self.max_new_tokens, "int", lambda n: n >= 1, "at least 1")
        _check(
            "temperature", self.temperature, "float", lambda t: 0 <= t <= sys.float_info.max, "at least 0, and finite"
        )
        _check("top_k", self.top_k, "int", lambda k: k >= 0, "at least 0")
        _check("top_p", self.top_p, "float", lambda p: 0 < p <= 1, "above 0 and at most 1")
        _check("min_p", self.min_p, "float", lambda p: 0 <= p <= 1, "between 0 and 1")
        _check("typical_p", self.typical_p, "float", lambda p: 0 < p <= 1, "above 0 and at most 1")
        _check(
            "repeat_penalty", self.repeat_penalty, "float", lambda x: 1 / _MOST <= x <= _MOST, "between 1e-30 and 1e30"
        )
        _check("repeat_window", self.repeat_window, "int", lambda n: n >= 0, "at least 0")
        _check("frequency_penalty", self.frequency_penalty, "float", _fits, _FITS)
        _check("presence_penalty", self.presence_penalty, "float", _fits, _FITS)
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))
        object.__setattr__(self, "bad_words", _words(self.bad_words))
        _check("seed", self.seed, "int", lambda s: s >= 0, "at least 0")
        object.__setattr__(self, "stop", _stops(self.stop))
        if self.logprobs is not None:
            _check("logprobs", self.logprobs, "int", lambda n: n >= 0, "at least 0")
        _check("beams", self.beams, "int", lambda n: n >= 1, "at least 1")
        _check("length_penalty", self.length_penalty, "float", lambda p: abs(p) <= 50, "between -50 and 50")
        check_flag("early_stopping", self.early_stopping)
        check_flag("renormalize", self.renormalize)
        if self.context_shift is not None:
            _check("context_shift", self.context_shift, "int", lambda n: n >= 0, "at least 0")
        object.__setattr__(self, "schema", _schema(self.schema))
        for name in ("regex", "grammar"):
            text = getattr(self, name)
            if text is not None:
                if not isinstance(text, str):
                    raise GossamerError(f"{name} must be a text, got {text!r:.80}")
                check_text(name, text)
        given = [name for name in GRAMMARS if getattr(self, name) is not None]
        if len(given) > 1:
            raise GossamerError(f"{given[0]} and {given[1]} exclude each other")
        for name in self._against_beams() if self.beams > 1 else ():
            raise GossamerError(f"beams and {name} exclude each other")
        check_kinds(self)  # has numbers of other libraries be Python's

    def _against_beams(self) -> list[str]:
        """The options that beams exclude."""
        excluded = {"a temperature": self.temperature > 0, "logprobs": self.logprobs is not None}
        excluded["context_shift"] = self.context_shift is not None
        excluded |= {name: getattr(self, name) is not None for name in GRAMMARS}
        return [name for name, given in excluded.items() if given]

    def changed(self, options: Mapping[str, Any]) -> SamplingOptions:
        """Returns these options with some of them replaced; beams that they exclude and nobody asks for are dropped.

        Raises:
            TypeError: there is no such option; the line names those that there are.
            GossamerError: as above.
        """
        check_names(options)
        single = replace(self, beams=1, **{name: value for name, value in options.items() if name != "beams"})
        if "beams" not in options and single._against_beams():
            return single
        changed = replace(single, beams=options.get("beams", self.beams))
        for name in _OF_BEAMS if changed.beams == 1 else ():
            if options.get(name, _OFF[name]) != _OFF[name]:
                raise GossamerError(f"{name} is of beams, and would do nothing: give beams, too")
        if options.get("repeat_window", _OFF["repeat_window"]) != _OFF["repeat_window"] and changed.repeat_penalty == 1:
            raise GossamerError("repeat_window would do nothing without a repeat_penalty: give that, too")
        return changed

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON-ready values."""
        biases = {str(token): bias for token, bias in self.logit_bias}
        schema = None if self.schema is None else json.loads(self.schema)
        words = [list(word) for word in self.bad_words]
        return {**asdict(self), "stop": list(self.stop), "logit_bias": biases, "bad_words": words, "schema": schema}

    def text(self) -> str:
        """Returns for people how tokens are chosen."""
        penalties = _told(self, {"repeat_penalty": 1})
        if penalties and self.repeat_window != GENERATE.repeat_window:
            penalties[0] += f" over {self.repeat_window or 'all'} tokens"
        penalties += _told(self, {"frequency_penalty": 0, "presence_penalty": 0})
        if self.logit_bias:
            penalties.append(f"biases of {len(self.logit_bias)} tokens")
        if self.bad_words:
            penalties.append(f"without {len(self.bad_words)} sequences of tokens")
        penalties += [f"held to a {name}" for name in GRAMMARS if getattr(self, name) is not None]
        if self.temperature == 0:
            what = f"the likeliest text of {self.beams} beams" if self.beams > 1 else "the likeliest token"
            return ", ".join([what, *_told(self, {"length_penalty": 1} if self.beams > 1 else {}), *penalties])
        filters = _told(self, {"top_k": 0, "typical_p": 1, "top_p": 1, "min_p": 0})
        return ", ".join([f"temperature {self.temperature:g}", *filters, *penalties, f"seed {self.seed}"])


_PEOPLE = {"top_k": "top-k", "typical_p": "typical-p", "top_p": "top-p", "min_p": "min-p"}


def _told(options: SamplingOptions, off: Mapping[str, float]) -> list[str]:
    """For people, those options that are not off."""
    values = {name: getattr(options, name) for name in off}
    return [
        f"{_PEOPLE.get(name, name.replace('_', ' '))} {value:g}" for name, value in values.items() if value != off[name]
    ]


GENERATE = SamplingOptions()
"""What `generate` does with a model that has no defaults of its own."""

CHAT = SamplingOptions(max_new_tokens=1024, temperature=0.7, top_p=0.95, min_p=0.05, repeat_penalty=1.05)
"""What a conversation does with such a model."""

_OF_BEAMS = ("length_penalty", "early_stopping", "renormalize")
# Matter though nothing is drawn.
_NO_DRAWING = ("max_new_tokens", "repeat_penalty", "repeat_window", "bad_words", "beams", *_OF_BEAMS)
_NAMES = tuple(field.name for field in fields(SamplingOptions))
_OFF = {field.name: field.default for field in fields(SamplingOptions)}


OF_A_STREAM = ("adapters", "cancel", "chat", "draft", "prompt_cache")
"""What `Model.stream` takes by name beside the options of a text."""


def check_names(options: Iterable[str], others: Iterable[str] = ()) -> None:
    """Raises `TypeError` where an option is none of these, or of some others; the line names those that there are."""
    refuse_others(options, [*_NAMES, *others])


def chosen(
    sampling: SamplingOptions | None,
    defaults: Callable[[], SamplingOptions],
    options: Mapping[str, Any],
    others: Iterable[str] = (),
) -> SamplingOptions:
    """Returns the options that are given, or else a model's own, with single ones replaced.

    Args:
        sampling: All options; None takes the model's own.
        defaults: Returns those.
        options: Single ones that hold instead.
        others: What else the caller takes by name, for the line about one that there is not.

    Raises:
        TypeError: there is no such option.
        GossamerError: as `changed`.
    """
    check_names(options, others)
    if sampling is not None and not isinstance(sampling, SamplingOptions):
        raise GossamerError(f"sampling must be SamplingOptions, or None, got {sampling!r:.80}")
    return (defaults() if sampling is None else sampling).changed(options)


def text_alone(options: SamplingOptions) -> SamplingOptions:
    """Returns options for what gives a text and nothing beside it; raises `GossamerError` where they ask for more."""
    if options.logprobs is not None:
        raise GossamerError("logprobs: there is no room for them beside a text; `Model.completions` gives both")
    return options


def refuse_others(options: Iterable[str], names: Sequence[str]) -> None:
    """Raises `TypeError` where an option has none of some names; the line tells them."""
    for name in options:
        if name not in names:
            raise TypeError(f"there is no option {name}; there are: {', '.join(names)}{did_you_mean(name, names)}")


def model_defaults(
    generation: Mapping[str, Any], fallback: SamplingOptions, ends: Collection[int] = ()
) -> SamplingOptions:
    """Returns the options that hold where none are given: the model's own, or some others where it has none.

    A model that says whether to draw is taken at its word: what it leaves out is off, but for the `top_k` of
    transformers beside a `do_sample`. That decides, or else a temperature; a model that has neither only lays what it
    has over the others.

    Args:
        generation: Content of generation_config.json; keys that are no sampling options do not matter.
        fallback: What holds for a model without defaults.
        ends: Tokens that end a text, none of which is a bad word by itself.

    Raises:
        GossamerError: a value is out of range or of another type; the line names its key.
    """
    own = {ours: generation[key] for key, ours in OPTION_NAMES.items() if generation.get(key) is not None}
    if (most := most_new_tokens(generation)) is not None:
        own["max_new_tokens"] = most
    if own.get("early_stopping") == "never":  # which is told as not done
        own["early_stopping"] = False
    draws = generation.get("do_sample")
    check_flag("do_sample", draws, or_none=True)
    if draws is None and ("temperature" in own or own.get("beams", 1) != 1):
        draws = "temperature" in own
    window = own.get("repeat_window", GENERATE.repeat_window if own.get("repeat_penalty", 1) == 1 else -1)
    if window == 0:  # llama.cpp's way of no penalty
        own |= {"repeat_window": GENERATE.repeat_window, "repeat_penalty": 1.0}
    elif window == -1:  # its way of all tokens, and what transformers looks at
        own["repeat_window"] = 0
    if own.get("top_k") == -1:  # which some write for all tokens
        own["top_k"] = 0
    if draws is False:
        own = {"temperature": 0.0, **{name: own[name] for name in _NO_DRAWING if name in own}}
    elif draws:
        likeliest = {} if generation.get("do_sample") is None else {"top_k": TOP_K}
        own = {"temperature": 1.0, **likeliest, **own, "beams": 1}  # beams that are drawn are told as not done
    base = fallback if draws is None else SamplingOptions(max_new_tokens=fallback.max_new_tokens)
    try:
        found = replace(base, **own)
        return replace(found, bad_words=tuple(word for word in found.bad_words if len(word) > 1 or word[0] not in ends))
    except GossamerError as error:
        line = str(error)
        for key, ours in OPTION_NAMES.items():
            line = re.sub(rf"^{ours}(?=[ :])", key, line)
        raise GossamerError(line) from None
