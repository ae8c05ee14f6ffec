"""The harness's model: log-likelihoods of continuations and of whole texts, and generation until a text."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from numpy.typing import NDArray
from tqdm import tqdm

from ..errors import GossamerError
from ..generation.held import choose
from ..generation.prompts import check_head, task
from ..generation.scheduler import MOST, Scheduler
from ..gpu.cuda import why_unavailable
from ..loading import load

if TYPE_CHECKING:
    from ..generation.scheduled import Task

Pair = tuple[Any, list[int], list[int]]
"""What is asked, the tokens of the context, those of the continuation."""

_TOKENS = 256  # of a step whose logits are all wanted
_KNOWN = ("temperature", "top_p", "top_k", "min_p", "seed")
_NEW = 256  # of an answer, where a task says nothing
_USUAL = "cuda:0"  # what the harness's command line says where nobody names a device

_log = logging.getLogger("gossamer")


@register_model("gossamer")
class Gossamer(TemplateLM):  # type: ignore[misc]  # what it stems from is not annotated
    """A model that gossamer runs.

    Each context is computed once, however many continuations it has.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        max_length: int = 0,
        adapter: str = "",
        batch_size: int | str = MOST,
        max_batch_size: int | None = None,
        device: str = "cpu",
        **options: Any,
    ) -> None:
        """Loads the model.

        Args:
            pretrained: As for `gossamer.load`.
            max_length: Most tokens of context and continuation; 0 for the model's context.
            adapter: Path of an adapter; empty for none.
            batch_size: Texts at once; "auto" for as many as kernels take in one pass.
            max_batch_size: Is not needed, and has to be None.
            device: "cpu" or "cuda"; "cuda:0" is the CPU where no GPU can be used, as for the harness's `hf` model.
            options: More of `gossamer.load`: threads, kv, activations, weights, revision, kv_limit.

        Raises:
            GossamerError: the model or an option is not usable.
        """
        super().__init__()
        if max_batch_size is not None:
            raise GossamerError("max_batch_size: batches are as large as batch_size says")
        if device == _USUAL and (why := why_unavailable()):
            _log.warning("device %s: %s; the model runs on the CPU", device, why)
            device = "cpu"
        try:
            self.model = load(pretrained, device=device.partition(":")[0], **options)
        except TypeError as error:
            raise GossamerError(f"model_args: {error}") from None
        check_head(self.model)
        if self.model.config.encoder is not None:
            raise GossamerError(f"{pretrained} has an encoder: tasks of the harness are for decoders alone")
        self.tokenizer = self.model.tokenizer
        self.batch_size = MOST if str(batch_size).startswith("auto") else int(batch_size)
        self.max_length = max_length or self.model.config.context
        if not 1 < self.max_length <= self.model.config.context:
            raise GossamerError(f"max_length must be from 2 to {self.model.config.context}, got {max_length}")
        self._adapters = [self.model.adapters.load(adapter)] if adapter else None
        self._name = pretrained
        self._cut = 0  # contexts that have lost their beginning

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self._token("eos_token", min(self.tokenizer.eos_ids, default=0))

    @property
    def prefix_token_id(self) -> int:
        """The token that a text without a context goes on from."""
        return self._token("bos_token", self.eot_token_id)

    @property
    def tokenizer_name(self) -> str:
        """What answers are cached under."""
        return self._name

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Returns the model's template, where one is asked for."""
        if isinstance(chat_template, str):
            raise GossamerError(f"the model has one chat template, and none of the name {chat_template!r:.80}")
        return self.tokenizer.chat_template if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Returns a conversation as text; without a prompt of generation the last message is the answer's beginning."""
        return (
            self.tokenizer.render(chat_history) if add_generation_prompt else self.tokenizer.render_begun(chat_history)
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Returns a text's tokens, with what the model wants around them unless they begin so already."""
        begin = self.tokenizer.special_tokens.get("bos_token")
        begun = begin is not None and string.startswith(begin)
        special = not begun if add_special_tokens is None else add_special_tokens
        return self.tokenizer.encode(string, special=special)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Returns the log-likelihood of each text, in windows that do not share predicted tokens."""
        found = []
        for request in tqdm(requests, desc="texts", disable=disable_tqdm):
            (text,) = request.args
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            pairs: list[Pair] = [(None, *make_disjoint_window(window)) for window in windows]
            total = sum(likelihood for likelihood, _ in self._loglikelihood_tokens(pairs, disable_tqdm=True))
            found.append(total)
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Returns what the model writes after each context."""
        texts: dict[int, list[str]] = {number: [] for number in range(len(requests))}
        numbers: dict[Task, int] = {}
        scheduler = Scheduler(self.model.decoder, self.batch_size)

        def tasks() -> Iterator[Task]:
            for number, request in enumerate(requests):
                made = self._text(*request.args)
                numbers[made] = number
                yield made

        self._cut = 0
        try:
            with tqdm(total=len(requests), desc="texts", disable=disable_tqdm) as bar:
                for done, piece in scheduler.run(tasks()):
                    texts[numbers[done]].append(piece)
                    if done.error is not None:
                        raise done.error
                    bar.update(done.done)
        finally:
            scheduler.close()
        self._tell_cut()
        found = ["".join(texts[number]) for number in range(len(requests))]
        for request, text in zip(requests, found, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return found

    def _text(self, context: str, asked: dict[str, Any]) -> Task:
        """A text that a task asks for."""
        options = dict(normalize_gen_kwargs(asked, _NEW))
        new = int(options.pop("max_gen_toks"))
        until = handle_stop_sequences(options.pop("until", None), None)
        draws = options.pop("do_sample", False)
        known = {
            name: options.pop(name) for name in ("temperature", "top_p", "top_k", "min_p", "seed") if name in options
        }
        if options:
            raise GossamerError(f"generation_kwargs: {next(iter(options))} is not supported")
        if new >= self.max_length:
            raise GossamerError(f"a task asks for {new} tokens, and max_length is {self.max_length}")
        own = self.model.defaults()  # the model's own penalties hold, as for the harness's `hf` model
        if draws:
            known.setdefault("temperature", own.temperature or 1.0)
        stops = [stop for stop in until if stop]
        sampling = own.changed({"beams": 1, "max_new_tokens": new, "stop": stops, **known})
        if not draws:
            sampling = sampling.changed({"temperature": 0.0})
        prompt = self.tok_encode(context)
        self._cut += len(prompt) > self.max_length - new
        prompt = prompt[new - self.max_length :]
        return task(self.model, prompt or [self.prefix_token_id], sampling, 0, False, self._adapters)

    def _loglikelihood_tokens(
        self, requests: Sequence[Pair], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """Returns the log-likelihood of each continuation, and whether it is the likeliest throughout."""
        self._cut = 0
        found: list[tuple[float, bool] | None] = [None] * len(requests)
        groups: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
        for number, (_, context, continuation) in enumerate(requests):
            if not continuation:
                raise GossamerError("a continuation has no tokens")
            if len(continuation) > self.max_length:
                raise GossamerError(f"a continuation has {len(continuation)} tokens: max_length is {self.max_length}")
            room = self.max_length + 1 - len(continuation)
            self._cut += len(context) > room
            groups.setdefault(tuple(context[-room:]), []).append((number, continuation))
        self._tell_cut()
        with tqdm(total=len(requests), desc="continuations", disable=disable_tqdm) as bar:
            for shared, continuations in groups.items():
                for number, value in self._scored(list(shared), continuations):
                    found[number] = value
                    asked = requests[number][0]
                    if asked is not None:
                        self.cache_hook.add_partial("loglikelihood", asked, value)
                    bar.update()
        return [value for value in found if value is not None]

    def _tell_cut(self) -> None:
        """Says how many contexts lost their beginning: examples, perhaps, or the system message."""
        if self._cut:
            _log.warning(
                "%s contexts are longer than max_length %s leaves room for: their beginnings are left out",
                self._cut,
                self.max_length,
            )

    def _scored(
        self, context: list[int], continuations: list[tuple[int, list[int]]]
    ) -> Iterator[tuple[int, tuple[float, bool]]]:
        """Scores the continuations of one context, which is computed once."""
        engine, root = self.model.decoder, next(self.model._ids)
        try:
            choose(engine, root, self.model.mix(self._adapters))
            first = engine.step([(root, np.asarray(context, np.int32))])
            for number, continuation in continuations:
                likelihood, greedy, done = 0.0, True, 0
                for logits in self._logits(first, root, len(context), continuation[:-1]):
                    part, likeliest = _score(logits, continuation[done : done + len(logits)])
                    likelihood, greedy, done = likelihood + part, greedy and likeliest, done + len(logits)
                yield number, (likelihood, greedy)
        finally:
            engine.free(root)

    def _logits(
        self, first: NDArray[np.float32], root: int, length: int, tokens: list[int]
    ) -> Iterator[NDArray[np.float32]]:
        """Logits behind a context and behind each of some tokens after it; the context's sequence stays as it is."""
        yield first
        if not tokens:
            return
        engine, branch = self.model.decoder, next(self.model._ids)
        try:
            engine.fork(root, branch, length)
            for start in range(0, len(tokens), _TOKENS):
                part = np.asarray(tokens[start : start + _TOKENS], np.int32)
                yield engine.step([(branch, part)], all_logits=True)
        finally:
            engine.free(branch)

    def _token(self, name: str, otherwise: int) -> int:
        text = self.tokenizer.special_tokens.get(name)
        token = None if text is None else self.tokenizer.token_id(text)
        return otherwise if token is None else token


def _score(logits: NDArray[np.float32], tokens: list[int]) -> tuple[float, bool]:
    """The log-likelihood of tokens by logits [tokens, vocab], and whether each is the likeliest."""
    chosen = np.asarray(tokens)
    values = logits.astype(np.float64)
    highest = values.max(axis=1)
    norms = highest + np.log(np.exp(values - highest[:, None]).sum(axis=1))
    own = values[np.arange(len(tokens)), chosen]
    return float((own - norms).sum()), bool((values.argmax(axis=1) == chosen).all())
