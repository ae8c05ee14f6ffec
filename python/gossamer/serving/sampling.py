"""How tokens are chosen and where a text ends: a request's parameters to `SamplingOptions`."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

from ..errors import GossamerError
from ..generation.sampling_options import CHAT, SamplingOptions
from .errors import ApiError

if TYPE_CHECKING:
    from .fields import Fields
    from .served import Served
    from .settings import Settings

_MOST_STOPS, _LONGEST_STOP = 16, 512  # every token of a text is held against all of them
_DIGITS = 12  # of a token's number: no vocabulary has that many

_BAD = "invalid_value"


def read_sampling(
    fields: Fields,
    served: Served,
    settings: Settings,
    limits: tuple[str, ...],
    most: int | None = None,
    logprobs: int | None = None,
) -> SamplingOptions:
    """Takes the parameters of sampling.

    Args:
        fields: The request's.
        served: The model, whose own defaults hold for what is not given.
        settings: The server's.
        limits: Names of the parameter that limits the tokens of an answer.
        most: Tokens where it is not given; None takes the model's default.
        logprobs: How many tokens are wanted beside each with their log-probabilities; None wants none at all.

    Raises:
        ApiError: a parameter is out of range or not supported.
    """
    options: dict[str, Any] = {
        "temperature": fields.number("temperature", 0, 2),
        "top_p": fields.number("top_p", 0, 1),
        "top_k": fields.count("top_k", 0, 1 << 31),
        "min_p": fields.number("min_p", 0, 1),
        "typical_p": fields.number("typical_p", 0.001, 1),
        "repeat_penalty": fields.number("repeat_penalty", 0.01, 100),
        "repeat_window": fields.count("repeat_window", 0, 1 << 31),
        "presence_penalty": fields.number("presence_penalty", -2, 2),
        "frequency_penalty": fields.number("frequency_penalty", -2, 2),
        "logit_bias": _biases(fields, served),
        "logprobs": logprobs,
    }
    options = {name: value for name, value in options.items() if value is not None}
    seed = fields.count("seed", -(1 << 63), (1 << 64) - 1)
    options["seed"] = secrets.randbits(63) if seed is None else seed % (1 << 64)
    options["stop"] = _stop(fields)
    options["beams"] = 1  # texts are streamed, whatever the model's own defaults are
    try:
        base = served.model.defaults(CHAT)
    except GossamerError as error:
        raise ApiError(500, str(error)) from None
    longest = settings.max_tokens or served.model.config.context
    given = _limit(fields, limits, longest if settings.max_tokens else 1 << 31)
    options["max_new_tokens"] = given or min(most or base.max_new_tokens, longest)
    if options.get("top_p") == 0:  # the likeliest token alone, as of others; ours is above 0
        options.update(top_p=1.0, top_k=1)
    try:
        return base.changed(options)
    except GossamerError as error:
        raise ApiError(400, str(error), param=str(error).split(maxsplit=1)[0]) from None


def _limit(fields: Fields, names: tuple[str, ...], highest: int) -> int | None:
    """The most tokens, by whatever name."""
    given: int | None = None
    for name in names:
        value = fields.count(name, 1, highest)
        if value is not None and given is not None and value != given:
            raise fields.refuse(name, f"is {value}, and {names[0]} is {given}: give one of them", _BAD)
        given = given if value is None else value
    return given


def _biases(fields: Fields, served: Served) -> dict[int, float] | None:
    value = fields.take("logit_bias", dict)
    if value is None:
        return None
    vocab, biases = served.model.config.vocab, {}
    for token, bias in value.items():
        if not (token.isascii() and token.isdigit() and len(token) <= _DIGITS and int(token) < vocab):
            raise fields.refuse("logit_bias", f"tokens are numbers from 0 to {vocab - 1}, got {token!r:.80}", _BAD)
        if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not -100 <= bias <= 100:
            raise fields.refuse("logit_bias", f"a bias must be from -100 to 100, got {bias!r:.80}", _BAD)
        if int(token) in biases:  # 3 and 03
            raise fields.refuse("logit_bias", f"token {int(token)} has two biases", _BAD)
        biases[int(token)] = float(bias)
    return biases


def _stop(fields: Fields) -> tuple[str, ...]:
    value = fields.raw("stop")
    stops = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise fields.refuse("stop", f"must be a text or a list of texts, none empty, got {value!r:.80}", "invalid_type")
    if len(stops) > _MOST_STOPS or any(len(stop) > _LONGEST_STOP for stop in stops):
        raise fields.refuse("stop", f"there may be {_MOST_STOPS} texts of {_LONGEST_STOP} letters at most", _BAD)
    return tuple(stops)
