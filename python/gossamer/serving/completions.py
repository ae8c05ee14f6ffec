"""`/v1/completions`: prompts, continued as plain text."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..generation.prompts import asked, check_length
from .exchange import Asked, Encoded, Exchange
from .fields import Fields
from .form import FINISH, Form, fingerprint, read_form
from .logprobs import completion_logprobs
from .sampling import read_sampling

if TYPE_CHECKING:
    from ..generation.completion import TokenLogprob
    from .served import Registry, Served
    from .settings import Settings

_TOKENS = 16  # of an answer where nothing is said, as OpenAI has it
_MOST_PROMPTS = 128

Prompt = str | list[int]


@dataclass(frozen=True)
class CompletionRequest:
    """A request for completions, read.

    Attributes:
        form: How it is to be answered.
        asked: What is asked for.
        echo: Whether the prompt stands before what is written.
        prompts: The prompts.
    """

    form: Form
    asked: Asked
    echo: bool
    prompts: list[Prompt]

    @property
    def logprobs(self) -> bool:
        """Whether log-probabilities are asked for."""
        return self.asked.sampling.logprobs is not None

    def opening(self, index: int) -> str:
        """Returns what stands before a text."""
        if not self.echo:
            return ""
        prompt = self.prompts[index // self.asked.choices]
        return prompt if isinstance(prompt, str) else self.asked.served.model.tokenizer.decode(prompt, special=True)


def read_completion(body: Any, registry: Registry, settings: Settings) -> CompletionRequest:
    """Reads a request's body.

    Raises:
        ApiError: it is no good; the parameter is named.
    """
    fields = Fields(body)
    name = fields.need("model", str)
    served, adapters = registry.find(name)
    served.need("text")
    prompts = _prompts(fields, served)
    form = read_form(fields)
    logprobs = fields.count("logprobs", 0, 5)
    sampling = read_sampling(fields, served, settings, ("max_tokens",), _TOKENS, logprobs)
    choices = fields.count("n", 1, settings.max_choices, 1) or 1
    if len(prompts) * choices > (most := settings.most + settings.max_queue):
        raise fields.refuse("prompt", f"asks for {len(prompts) * choices} texts, and this server takes {most} at once")
    echo = fields.take("echo", bool, False) or False
    if echo and logprobs is not None:
        raise fields.refuse("echo", "is not for logprobs: those of the prompt are not there", "unsupported_parameter")
    fields.only("best_of", choices)
    fields.only("suffix", "")
    fields.end()
    wanted = Asked(
        name,
        served,
        adapters,
        sampling,
        lambda: [_encoded(served, prompt) for prompt in prompts],
        prompts=len(prompts),
        param="prompt",
        choices=choices,
        begins=False,
    )
    return CompletionRequest(form, wanted, echo, prompts)


def _prompts(fields: Fields, served: Served) -> list[Prompt]:
    """The prompts: a text, several, a list of tokens, several."""
    value = fields.raw("prompt")
    if isinstance(value, str) or (isinstance(value, list) and value and all(_is_token(each) for each in value)):
        value = [value]
    kinds = (str, list)
    if not isinstance(value, list) or not value or not all(isinstance(each, kinds) for each in value):
        raise fields.refuse("prompt", "must be a text, a list of texts, a list of tokens, or a list of such lists")
    if len(value) > _MOST_PROMPTS:
        raise fields.refuse("prompt", f"there may be {_MOST_PROMPTS} prompts, got {len(value)}", "invalid_value")
    vocab = served.model.config.vocab
    for prompt in value:
        if isinstance(prompt, list) and served.model.config.encoder is not None:
            raise fields.refuse("prompt", f"{served.name} has an encoder: it takes texts alone", "invalid_value")
        if isinstance(prompt, list) and not all(_is_token(each) and 0 <= each < vocab for each in prompt):
            raise fields.refuse("prompt", f"tokens must be whole numbers from 0 to {vocab - 1}", "invalid_value")
    return value


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _encoded(served: Served, prompt: Prompt) -> Encoded:
    if isinstance(prompt, str):
        return asked(served.model, prompt, False)
    check_length(served.model, len(prompt))
    return prompt, None


async def answer(request: CompletionRequest, exchange: Exchange) -> dict[str, Any]:
    """Returns the whole answer."""
    count = request.asked.prompts * request.asked.choices
    texts = [request.opening(index) for index in range(count)]
    reasons = [""] * count
    likely: list[list[TokenLogprob]] = [[] for _ in texts]
    async for event in exchange.events():
        texts[event.index] += event.piece
        reasons[event.index] = event.finish
        likely[event.index] += event.logprobs
    choices = [
        {
            "index": index,
            "text": text,
            "logprobs": completion_logprobs(likely[index]) if request.logprobs else None,
            "finish_reason": FINISH[reason],
        }
        for index, (text, reason) in enumerate(zip(texts, reasons, strict=True))
    ]
    return {**_head(request, exchange), "choices": choices, "usage": exchange.usage()}


async def chunks(request: CompletionRequest, exchange: Exchange) -> AsyncIterator[dict[str, Any]]:
    """Gives the answer as OpenAI's chunks."""
    usage: dict[str, Any] = {"usage": None} if request.form.usage else {}

    def chunk(index: int, text: str, finish: str | None = None, likely: Any = None) -> dict[str, Any]:
        choice = {"index": index, "text": text, "logprobs": likely, "finish_reason": finish}
        return {**_head(request, exchange), "choices": [choice], **usage}

    for index in range(request.asked.prompts * request.asked.choices):
        if opening := request.opening(index):
            yield chunk(index, opening)
    async for event in exchange.events():
        tokens = event.logprobs
        if event.piece or event.last or tokens:
            likely = completion_logprobs(tokens) if tokens else None
            yield chunk(event.index, event.piece, FINISH[event.finish] if event.last else None, likely)
    if request.form.usage:
        yield {**_head(request, exchange), "choices": [], "usage": exchange.usage()}


def _head(request: CompletionRequest, exchange: Exchange) -> dict[str, Any]:
    return {
        "id": exchange.id,
        "object": "text_completion",
        "created": exchange.created,
        "model": request.asked.name,
        "system_fingerprint": fingerprint(request.asked),
    }
