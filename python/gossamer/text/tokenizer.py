"""Text to token ids and back, on the `tokenizers` package, with chat templates and a decoder for streams."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import GossamerError
from ..files import read_bytes, read_json, refuse_pointer
from .chat_template import render
from .cleaning import Cleaner, clean
from .generation_config import STARTS, sampling_keys
from .messages import Message, Tool, check_text, check_told, checked, completed, has_parts, joined
from .source_language import language_token, mark_source
from .token_bytes import byte_reader
from .tokenizer_limits import check_contents, check_growth, refused
from .tokenizer_settings import FORCED, apply_settings, chat_templates, cleans

if TYPE_CHECKING:
    import tokenizers

SAVED_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")

_MOST_BYTES = 128 << 20  # of tokenizer.json; the longest that are known have a quarter
_BROKEN = "\ufffd"  # what bytes that are no UTF-8 decode to
_PROBE = "a probe"
_LONG = 1 << 14  # letters of a text that takes milliseconds
_WINDOW = 64  # most tokens that a stream decodes again with a new one


class Tokenizer:
    """A tokenizer with what a model says about text: end tokens, special tokens, chat template.

    Attributes:
        eos_ids: Tokens that end a text.
        special_tokens: Texts of "bos_token", "eos_token", …, as chat templates know them.
        chat_template: Jinja source; None where the model has none.
        tool_template: That for conversations with tools, where the model has another one for them.
        generation: What the model says about drawing tokens, as generation_config.json has it.
        cleans: Whether texts are without the blanks that decoding puts before punctuation.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        eos_ids: Iterable[int] = (),
        special_tokens: dict[str, str] | None = None,
        chat_template: str | None = None,
        tool_template: str | None = None,
        generation: dict[str, Any] | None = None,
        cleans: bool = False,
    ) -> None:
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        self.eos_ids = frozenset(eos_ids)
        self.special_tokens = special_tokens or {}
        self.chat_template = chat_template
        self.tool_template = tool_template
        self.generation = generation or {}
        self.cleans = cleans
        self._takes_parts: bool | None = None  # whether the template knows contents that are lists

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Opens tokenizer.json and the settings beside it, as checkpoint folders and packed folders have them.

        Raises:
            GossamerError: a file is missing or not valid.
        """
        import tokenizers

        path = folder / "tokenizer.json"
        if not path.is_file():
            raise GossamerError(f"{folder}: no tokenizer.json")
        refuse_pointer(path)
        with refused(f"{path}: not a valid tokenizer"):
            data = read_bytes(path, _MOST_BYTES)
            check_contents(data)
            backend = tokenizers.Tokenizer.from_buffer(data)  # by its name only where that is UTF-8
            check_growth(backend)
        settings, named, added, generation, config = (
            read_json(folder / name) if (folder / name).is_file() else {}
            for name in (
                "tokenizer_config.json",
                "special_tokens_map.json",
                "added_tokens.json",
                "generation_config.json",
                "config.json",
            )
        )
        if not (folder / "generation_config.json").is_file():
            generation = config  # where older programs put what is about drawing
        templates = chat_templates(folder, settings)
        try:
            with refused("its special tokens"):
                special = apply_settings(backend, settings, named, added, config)
            ends = [backend.token_to_id(special["eos_token"])] if "eos_token" in special else []
            ends += [token for holder in (generation, config) for token in _end_tokens(holder.get("eos_token_id"))]
        except GossamerError as error:
            raise GossamerError(f"{folder}: {error}") from None
        return cls(
            backend,
            eos_ids=(token for token in ends if token is not None),
            special_tokens=special,
            chat_template=templates.get("default"),
            tool_template=templates.get("tool_use"),
            generation=sampling_keys({key: config[key] for key in STARTS if key in config} | generation),
            cleans=cleans(backend, settings),
        )

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json, tokenizer_config.json and generation_config.json; `transformers` reads them, too."""
        special = {name: text for name, text in self.special_tokens.items() if name.endswith("_token")}
        settings: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": self.cleans,
            **({FORCED: True} if self.cleans else {}),
            **special,
        }
        if self._backend.encode_special_tokens:
            settings["split_special_tokens"] = True
        if more := {name: text for name, text in self.special_tokens.items() if name not in special}:
            settings["extra_special_tokens"] = more
        if self.chat_template is not None:
            both = {"default": self.chat_template, "tool_use": self.tool_template}
            listed = [{"name": name, "template": text} for name, text in both.items() if text is not None]
            settings["chat_template"] = listed if len(listed) > 1 else self.chat_template
        generation = {**({"eos_token_id": sorted(self.eos_ids)} if self.eos_ids else {}), **self.generation}
        first, *others = SAVED_FILES
        (folder / first).write_text(self._backend.to_str(), encoding="utf-8")
        for name, values in zip(others, (settings, generation), strict=True):
            (folder / name).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @property
    def vocab_size(self) -> int:
        """Number of tokens, special ones included; a model's vocabulary may be padded beyond it."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def vocabulary(self) -> dict[str, int]:
        """Returns the id of every token, special ones included, by its text as the tokenizer writes it."""
        return dict(self._backend.get_vocab(with_added_tokens=True))

    def token_id(self, text: str) -> int | None:
        """Returns the id of one token, special ones included, by its text as the tokenizer writes it; None of none."""
        found: int | None = self._backend.token_to_id(text)
        return found

    def added_tokens(self) -> dict[str, int]:
        """Returns the ids of the tokens that stand beside the learned vocabulary, special ones among them."""
        return {token.content: number for number, token in self._backend.get_added_tokens_decoder().items()}

    def token_bytes(self, token: int) -> bytes:
        """Returns the bytes that a token stands for, those of a special one's name; none for one that is unknown."""
        if (added := self._added.get(token)) is not None:
            return added
        text = self._backend.id_to_token(token)
        return b"" if text is None else self._bytes_of(text)

    @cached_property
    def _added(self) -> dict[int, bytes]:
        """The added tokens, which are written as they are."""
        return {number: token.content.encode() for number, token in self._backend.get_added_tokens_decoder().items()}

    @cached_property
    def _bytes_of(self) -> Callable[[str], bytes]:
        return byte_reader(json.loads(self._backend.to_str()).get("decoder"))

    def to_json(self) -> str:
        """Returns the content of its tokenizer.json."""
        return str(self._backend.to_str())

    def words(self, text: str) -> list[str]:
        """Returns the pieces of a text that are turned into tokens by themselves, as it stands in the text."""
        cutter = self._backend.pre_tokenizer
        return [text[start:end] for _, (start, end) in cutter.pre_tokenize_str(text)] if cutter else [text]

    @property
    def has_chat_template(self) -> bool:
        """Whether `chat` can be used."""
        return self.chat_template is not None

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Returns the tokens of a text; special tokens written out in it are recognised.

        Args:
            text: Any text.
            special: Whether to add what the model wants around a text, such as a begin token.

        Raises:
            GossamerError: the text cannot be written as UTF-8.
        """
        check_text("the text", text)
        with refused("the tokenizer does not take this text"):
            if len(text) < _LONG:
                return self._backend.encode(text, add_special_tokens=special).ids
            return self._backend.encode_batch([text], add_special_tokens=special)[0].ids  # lets other threads run

    def starts(self) -> list[int]:
        """Returns the tokens that a decoder with an encoder begins with.

        Raises:
            GossamerError: the model does not say, or says no token.
        """
        found = {key: self.generation[key] for key in STARTS if key in self.generation}
        if STARTS[0] not in found:
            raise GossamerError(f"{STARTS[0]} is missing: nothing says what the decoder begins with")
        for key, token in found.items():
            if type(token) is not int or not 0 <= token < 1 << 31:
                raise GossamerError(f"{key} must be a token, got {token!r:.80}")
        return list(found.values())

    def translate_to(self, language: str) -> None:
        """Has decoders with an encoder begin with the token of a language: "deu_Latn", "de".

        Raises:
            GossamerError: the model has no such token.
        """
        known = self.added_tokens()  # others are words or pieces of them: "de" is one, too
        self.generation["forced_bos_token_id"] = known[language_token(language, known)]

    def translate_from(self, language: str) -> None:
        """Has texts be marked as written in a language, from now on, in place of the one that files name.

        Raises:
            GossamerError: the model does not want to be told, or has no token of the language.
        """
        mark_source(self._backend, language, self.added_tokens())

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """Returns the text of tokens, without special ones unless asked for; bytes that are no UTF-8 become U+FFFD."""
        text = self.decode_raw(ids, special)
        return clean(text) if self.cleans else text

    def decode_raw(self, ids: Sequence[int], special: bool = False) -> str:
        """Returns what `decode` does, before it is cleaned."""
        with refused("the tokenizer does not decode these tokens"):
            return self._backend.decode(ids, skip_special_tokens=not special)

    def chat(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, tools: Sequence[Tool] | None = None
    ) -> list[int]:
        """Returns the tokens of a conversation.

        Args:
            messages: `{"role": ..., "content": ...}` each. A content may be null, which says nothing, or a list of
                parts of type text; a template that knows no parts gets their texts put together.
            add_generation_prompt: Whether to end with the opening of the assistant's answer.
            tools: Functions that the model may call, in OpenAI's form.

        Raises:
            GossamerError: there is no chat template, it does not take these messages, or it leaves something of them
                or a tool out.
        """
        return self.encode(self.render(messages, add_generation_prompt, tools), special=False)

    def render(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, tools: Sequence[Tool] | None = None
    ) -> str:
        """Returns the text of a conversation; see `chat`."""
        plain = checked(messages)
        if has_parts(plain):
            if self._takes_parts is None:
                self._takes_parts = self._knows_parts()
            plain = plain if self._takes_parts else joined(plain)
        try:
            text = self._render(plain, add_generation_prompt, tools)
        except GossamerError:
            if all("content" in message for message in plain):
                raise
            text = self._render(completed(plain), add_generation_prompt, tools)  # it takes every content for a text
        check_told(messages, tools or (), text, self._template(tools))
        return text

    def render_begun(self, messages: Sequence[Message]) -> str:
        """Returns the text of a conversation up to the end of its last message, which is to be gone on with.

        Raises:
            GossamerError: as `render`, or the template writes the last message otherwise.
        """
        text = self.render(messages, add_generation_prompt=False)
        last = str(joined(checked(messages))[-1].get("content", "")).lstrip()
        if (at := text.rfind(last.rstrip())) < 0 or not last:
            raise GossamerError(
                "the chat template does not write the last message as it is, so it cannot be gone on with"
            )
        return text[:at] + (last if text.startswith(last, at) else last.rstrip())

    def _knows_parts(self) -> bool:
        """Whether the template writes the text of a part, and not the part as Python or JSON would write it."""
        try:
            text = self._render([{"role": "user", "content": [{"type": "text", "text": _PROBE}]}], False)
        except GossamerError:
            return False
        return _PROBE in text and "'text'" not in text and '"text"' not in text

    def _render(
        self, messages: list[dict[str, Any]], add_generation_prompt: bool, tools: Sequence[Tool] | None = None
    ) -> str:
        if self.chat_template is None:
            raise GossamerError("the model has no chat template")
        variables = {
            **self.special_tokens,
            "messages": messages,
            "tools": [dict(tool) for tool in tools] if tools else None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        return render(self._template(tools), variables)

    def _template(self, tools: Sequence[Tool] | None) -> str:
        """The template of a conversation with these tools; empty where there is none."""
        return (self.tool_template if tools else None) or self.chat_template or ""

    def stream(self, begins: bool = False, special: bool = False) -> StreamDecoder:
        """Returns a decoder for one stream of tokens.

        Args:
            begins: Whether a text begins with the stream: then the blank that the tokenizer itself puts before a text
                is dropped, as `decode` drops it. Otherwise the stream goes on with a text.
            special: Whether special tokens are part of the text.
        """
        decode = partial(self.decode_raw, special=special)
        return StreamDecoder(decode, [] if begins else self._word, Cleaner() if self.cleans else None)

    @cached_property
    def _word(self) -> list[int]:
        """Tokens that spell a word without blanks, for what depends on a text before it; none where none are found."""
        ids = self.encode("a", special=False)
        tries = [ids] if self.decode(ids).isalnum() else [[token] for token in self.vocabulary().values()]
        return next((ids for ids in tries if self.decode(ids).isalnum()), [])


def _end_tokens(value: Any) -> list[int]:
    """The tokens that a config says a text ends with: none, one or several."""
    tokens = value if isinstance(value, list) else [] if value is None else [value]
    for token in tokens:
        if type(token) is not int:
            raise GossamerError(f"eos_token_id must be a token's number or a list of them, got {token!r:.80}")
    return tokens


class StreamDecoder:
    """Decodes a stream token by token into pieces that are final: never half a character.

    Each token is decoded with a few before it, since a token's text may depend on them: the cost of a token does not
    grow with the stream.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], before: Sequence[int] = (), cleaner: Cleaner | None = None
    ) -> None:
        self._decode, self._cleaner = decode, cleaner
        self._ids = list(before)  # the window
        self._old = len(before)  # tokens of the window whose text is out already
        self._text = self._decode(before) if before else ""
        self._done = len(self._text)  # letters of the window's text that are out already

    def push(self, token: int) -> str:
        """Takes the next token and returns the text that is final now; may be empty."""
        self._ids.append(token)
        self._text = self._decode(self._ids)
        full = len(self._ids) - self._old >= _WINDOW
        final = len(self._text if full else self._text.rstrip(_BROKEN))  # the rest may yet become a character
        piece = self._text[self._done : final]
        self._done = max(self._done, final)
        if (piece and final == len(self._text)) or full:
            del self._ids[: self._old]
            self._old = len(self._ids)
            self._text = self._decode(self._ids)
            self._done = len(self._text)
        return self._cleaner.push(piece) if self._cleaner else piece

    def flush(self) -> str:
        """Ends the stream and returns what was held back."""
        piece = self._text[self._done :]
        self._ids, self._old, self._done, self._text = [], 0, 0, ""
        return self._cleaner.push(piece, last=True) if self._cleaner else piece
