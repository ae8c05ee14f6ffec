"""`/v1/chat/completions`: messages in, an answer or several out, whole or as a stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import GossamerError
from ..generation.prompts import check_length, encode
from .errors import ApiError
from .exchange import Asked, Exchange
from .fields import Fields
from .form import FINISH, Form, fingerprint, read_form
from .logprobs import chat_logprobs
from .messages import read_messages
from .response_format import read_response_format
from .sampling import read_sampling
from .tool_calls import Call, CallReader
from .tool_choice import Tools, read_tool_choice

if TYPE_CHECKING:
    from ..generation.completion import TokenLogprob
    from ..generation.model import Model
    from ..generation.sampling_options import SamplingOptions
    from .engine_thread import Event
    from .served import Registry
    from .settings import Settings

# Known to OpenAI's clients, and without a meaning here: refused, but for values that ask for nothing.
_ONLY: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("store", (False,)),
    ("metadata", ({},)),
    ("service_tier", ("auto", "default")),
    ("modalities", (["text"],)),
    ("functions", ()),
    ("function_call", ()),
    ("audio", ()),
    ("prediction", ()),
    ("reasoning_effort", ()),
    ("verbosity", ()),
    ("web_search_options", ()),
    ("prompt_cache_key", ()),
    ("prompt_cache_retention", ()),
)


@dataclass
class Choice:
    """One answer as far as it is there.

    Attributes:
        reader: Reads calls of tools; None where there are no tools.
        one_call: Whether a call ends the answer.
        content: The text so far.
        calls: The calls so far.
        logprobs: Of the tokens so far, where they are asked for.
    """

    reader: CallReader | None
    one_call: bool
    content: str = ""
    calls: list[Call] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)

    def push(self, event: Event) -> tuple[str, list[Call]]:
        """Takes what a step brought; returns what is new: text, calls."""
        text = event.piece
        calls: list[Call] = []
        if self.reader is not None:
            text, calls = self.reader.push(event.piece)
            if event.last:
                rest, more = self.reader.flush()
                text, calls = text + rest, calls + more
        if self.one_call:
            calls = calls[: 1 - len(self.calls)]
        self.content += text
        self.calls += calls
        self.logprobs += event.logprobs
        return text, calls

    @property
    def full(self) -> bool:
        """Whether nothing more is wanted."""
        return self.one_call and bool(self.calls)

    def finish(self, reason: str) -> str:
        """Returns OpenAI's word for why it ended."""
        return "tool_calls" if self.calls and reason != "length" else FINISH[reason]


@dataclass(frozen=True)
class ChatRequest:
    """A request for chat completions, read.

    Attributes:
        form: How it is to be answered.
        asked: What is asked for.
        tools: That there are.
    """

    form: Form
    asked: Asked
    tools: Tools

    @property
    def logprobs(self) -> bool:
        """Whether log-probabilities are asked for."""
        return self.asked.sampling.logprobs is not None

    def choice(self) -> Choice:
        """Returns an empty answer."""
        return Choice(self.tools.reader(), self.tools.one_call)


def read_chat(body: Any, registry: Registry, settings: Settings) -> ChatRequest:
    """Reads a request's body.

    Raises:
        ApiError: it is no good; the parameter is named.
    """
    fields = Fields(body)
    name = fields.need("model", str)
    served, adapters = registry.find(name)
    model = served.model
    served.need("text")
    if not model.tokenizer.has_chat_template:
        raise fields.refuse("model", f"{name} has no chat template; /v1/completions continues plain text")
    messages = read_messages(fields.need("messages", list))
    form = read_form(fields)
    logprobs = _logprobs(fields)
    limits = ("max_completion_tokens", "max_tokens")
    sampling = read_sampling(fields, served, settings, limits, logprobs=logprobs)
    choices = fields.count("n", 1, min(settings.max_choices, settings.most + settings.max_queue), 1) or 1
    tools = read_tool_choice(fields, served)
    schema, schema_param = _held_to(fields, tools)
    for parameter, values in _ONLY:
        fields.only(parameter, *values)
    fields.end()
    asked = Asked(
        name,
        served,
        adapters,
        _held(sampling, schema, schema_param),
        lambda: [(_encoded(model, messages, tools), None)],
        choices=choices,
        special=bool(tools.told) and schema is None,
        schema_param=schema_param,
    )
    return ChatRequest(form, asked, tools)


def _held(sampling: SamplingOptions, schema: dict[str, Any] | None, param: str) -> SamplingOptions:
    """Sampling that keeps to a schema, if there is one."""
    try:
        return sampling if schema is None else sampling.changed({"schema": schema})
    except GossamerError as error:
        raise ApiError(400, str(error), param=param, code="invalid_json_schema") from None


def _logprobs(fields: Fields) -> int | None:
    """How many tokens are wanted beside each; None where no log-probabilities are."""
    wanted = fields.take("logprobs", bool, False)
    beside = fields.count("top_logprobs", 0, 20)
    if beside and not wanted:
        raise fields.refuse("top_logprobs", "needs logprobs: true", "invalid_value")
    return beside or 0 if wanted else None


def _held_to(fields: Fields, tools: Tools) -> tuple[dict[str, Any] | None, str]:
    """The schema that an answer is held to, if any, and the parameter that has it."""
    schema = read_response_format(fields)
    if schema is not None and tools.told:
        raise fields.refuse("response_format", "is not for requests with tools that may be called", "invalid_value")
    return (tools.forced, "tools") if tools.forced is not None else (schema, "response_format")


def _encoded(model: Model, messages: list[dict[str, Any]], tools: Tools) -> list[int]:
    """The prompt, and what is put into the model's mouth."""
    prompt = encode(model, messages, True, tools.told)
    if tools.opening:
        prompt = prompt + model.tokenizer.encode(tools.opening, special=False)
        check_length(model, len(prompt))
    return prompt


def whole(request: ChatRequest, exchange: Exchange, choices: list[Choice], reasons: list[str]) -> dict[str, Any]:
    """Returns the object of an answer that is complete."""
    return {
        **_head(request, exchange, "chat.completion"),
        "choices": [
            {
                "index": index,
                "message": _message(choice),
                "logprobs": chat_logprobs(choice.logprobs) if request.logprobs else None,
                "finish_reason": choice.finish(reason),
            }
            for index, (choice, reason) in enumerate(zip(choices, reasons, strict=True))
        ],
        "usage": exchange.usage(),
    }


def _message(choice: Choice) -> dict[str, Any]:
    content = choice.content if choice.content or not choice.calls else None
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if choice.calls:
        message["tool_calls"] = [call.to_dict() for call in choice.calls]
    return message


async def answer(request: ChatRequest, exchange: Exchange) -> dict[str, Any]:
    """Returns the whole answer."""
    choices = [request.choice() for _ in range(request.asked.choices)]
    reasons = [""] * len(choices)
    async for event in exchange.events():
        choice = choices[event.index]
        choice.push(event)
        reasons[event.index] = event.finish or reasons[event.index]
        if choice.full and not event.last:
            reasons[event.index] = "stop"
            exchange.cut(event.index)
    return whole(request, exchange, choices, reasons)


async def chunks(request: ChatRequest, exchange: Exchange) -> AsyncIterator[dict[str, Any]]:
    """Gives the answer as OpenAI's chunks."""
    choices = [request.choice() for _ in range(request.asked.choices)]
    for index in range(len(choices)):
        yield _chunk(request, exchange, index, {"role": "assistant", "content": "", "refusal": None})
    async for event in exchange.events():
        choice = choices[event.index]
        before = len(choice.calls)
        text, calls = choice.push(event)
        if text or event.logprobs:
            yield _chunk(request, exchange, event.index, {"content": text}, logprobs=event.logprobs)
        if calls:
            called = [{"index": before + number, **call.to_dict()} for number, call in enumerate(calls)]
            yield _chunk(request, exchange, event.index, {"tool_calls": called})
        full = choice.full and not event.last
        if full:
            exchange.cut(event.index)
        if event.last or full:
            yield _chunk(request, exchange, event.index, {}, choice.finish(event.finish or "stop"))
    if request.form.usage:
        yield {**_head(request, exchange, "chat.completion.chunk"), "choices": [], "usage": exchange.usage()}


def _chunk(
    request: ChatRequest,
    exchange: Exchange,
    index: int,
    delta: dict[str, Any],
    finish: str | None = None,
    logprobs: Sequence[TokenLogprob] = (),
) -> dict[str, Any]:
    likely = chat_logprobs(logprobs) if logprobs else None
    choice = {"index": index, "delta": delta, "logprobs": likely, "finish_reason": finish}
    usage: dict[str, Any] = {"usage": None} if request.form.usage else {}
    return {**_head(request, exchange, "chat.completion.chunk"), "choices": [choice], **usage}


def _head(request: ChatRequest, exchange: Exchange, kind: str) -> dict[str, Any]:
    return {
        "id": exchange.id,
        "object": kind,
        "created": exchange.created,
        "model": request.asked.name,
        "system_fingerprint": fingerprint(request.asked),
    }
