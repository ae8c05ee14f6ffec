"""Token windows to measure a model on, cut from a text, and what texts of a model's own begin with."""

from __future__ import annotations

import itertools
import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import GossamerError

if TYPE_CHECKING:
    from ..arch.spec import Transformer

Conversations = Sequence[Sequence[str]]
Turns = list[list[int]]

_log = logging.getLogger("gossamer")
_LINES_OF_JSON = (".jsonl", ".ndjson")

WINDOWS = 48
LENGTH = 512

_QUESTIONS = (
    "What is the capital of France?",
    "Explain how rain forms, in simple words.",
    "Write a short story about a lighthouse keeper.",
    "What are three good habits for staying healthy?",
    "How do I write a Python function that reverses a list?",
    "Summarize the causes of the First World War.",
    "Who was Marie Curie, and what is she known for?",
    "Write a polite email asking for a day off.",
    "What is the difference between a virus and a bacterium?",
    "Give me a recipe for a simple vegetable soup.",
    "If a train travels 60 km in 45 minutes, what is its average speed?",
    "Describe the geography and the economy of Japan.",
    "What should I see on a weekend in Rome?",
    "How does a bill become a law?",
    "Translate 'good morning' into French, Spanish and German.",
    "Why is the sky blue?",
)

_OPENINGS = (
    "The", "In", "A", "It", "This", "When", "As", "How", "There", "We", "What", "On", "If", "For", "After", "One",
    "During the", "According to", "Once upon a time", "Many people", "The history of", "Introduction",
    "The United States", "Scientists", "Children", "The first", "My", "To", "Researchers at", "The government",
    "Chapter 1", "# ", "def ", "Question:",
)  # fmt: skip


# Stands for an answer where a template is asked what follows one.
_ANSWER = "\u2026answer\u2026"


def window_length(asked: int | None, usual: int, context: int, what: str = "length", behind: int = 0) -> int:
    """Returns how many tokens a window has.

    Args:
        asked: As many as were asked for; None takes the usual number, or a shorter context's, with a note.
        usual: The usual number.
        context: Tokens that the model holds.
        what: Name of the option, for note and error.
        behind: Tokens that lie before the window, which `context` leaves out, for the note.

    Raises:
        GossamerError: more were asked for than the model holds.
    """
    if asked is None:
        if context < usual:
            holds = f"{context} tokens behind {behind} others" if behind else f"{context} tokens"
            _log.warning("the model holds %s, fewer than the usual %d: %s is %d", holds, usual, what, context)
        return min(usual, context)
    if asked > context:
        raise GossamerError(f"{what} {asked} is more than the model's context of {context} tokens")
    return asked


class Vocabulary(Protocol):
    """What calibration needs of a tokenizer; `gossamer.tokenizer.Tokenizer` has it."""

    @property
    def eos_ids(self) -> frozenset[int]:
        """The tokens that end a text."""

    @property
    def has_chat_template(self) -> bool:
        """Whether `chat` works."""

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Returns the tokens of a text."""

    def render(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Returns the text of a conversation."""

    def chat(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> list[int]:
        """Returns the tokens of a conversation."""


def read_text(path: str | Path) -> str:
    """Reads a UTF-8 text file, or all files below a folder in the order of their names, with a blank line between them.

    Names that start with a dot are left out. Lines end in a line feed alone, as in files that Windows did not write.

    Raises:
        GossamerError: the path does not exist, cannot be read, holds no file, or a file is not UTF-8.
    """
    root = Path(path)
    if root.is_dir():
        paths = sorted(
            p for p in root.rglob("*") if p.is_file() and not any(n[0] == "." for n in p.relative_to(root).parts)
        )
        if not paths:
            raise GossamerError(f"{root}: the folder holds no text files")
    else:
        paths = [root]
    return "\n\n".join(_read_file(p) for p in paths)


def _read_file(path: Path) -> str:
    if path.suffix.lower() in _LINES_OF_JSON:
        told = "%s: is taken for text as it stands, keys and quotes of its JSON too; texts alone are what is meant here"
        _log.warning(told, path)
    try:
        # A mark that some editors put first is no text, and lines end in one way whatever system wrote them.
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        raise GossamerError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise GossamerError(f"{path}: not UTF-8 text: byte {error.start} ({error.reason})") from None


def text_windows(
    text: str,
    tokenizer: Vocabulary,
    *,
    windows: int = WINDOWS,
    length: int = LENGTH,
    seed: int = 0,
    source: str = "the text",
) -> NDArray[np.int32]:
    """Cuts windows out of a text, one at a seeded random place in each of as many equal parts of it.

    Each begins with what the tokenizer puts before every text: some models are of no use without.

    Args:
        text: The text.
        tokenizer: Gives its tokens.
        windows: Windows wanted; a text too short for so many without overlap gives as many as fit.
        length: Tokens a window.
        seed: Of the places.
        source: What to call the text in an error.

    Returns:
        Tokens, int32 [windows, length].

    Raises:
        GossamerError: the text is shorter than one window.
    """
    tokens = np.asarray(tokenizer.encode(text), dtype=np.int32)
    if len(tokens) < length:
        raise GossamerError(f"{source} has {len(tokens)} tokens, calibration needs at least one window of {length}")
    begin, inside = begun(tokens, tokenizer, length)
    size = length - len(begin)
    windows = min(windows, len(inside) // size)
    edges = np.arange(windows + 1) * len(inside) // windows
    starts = np.random.default_rng(seed).integers(edges[:-1], edges[1:] - size, endpoint=True)
    return np.stack([np.concatenate([begin, inside[start : start + size]]) for start in starts])


def begun(tokens: NDArray[np.int32], tokenizer: Vocabulary, length: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Parts the tokens of a text into those that the tokenizer puts before every text, and the others.

    Args:
        tokens: Of the text.
        tokenizer: That they are from.
        length: Tokens of a window, all of which such are not.
    """
    alone = tokenizer.encode("")[: max(min(length, len(tokens)) - 1, 0)]
    count = next((at for at, token in enumerate(alone) if token != tokens[at]), len(alone))
    return tokens[:count], tokens[count:]


def cut(text: str, tokenizer: Vocabulary, length: int) -> tuple[list[NDArray[np.int32]], int]:
    """Cuts a text into windows, one behind the other, that begin as `text_windows` has them.

    Args:
        text: The text.
        tokenizer: Gives its tokens.
        length: Tokens of a window, at least 2; the last may have fewer.

    Returns:
        The windows, and how many tokens of each only begin it.
    """
    begin, inside = begun(np.asarray(tokenizer.encode(text), dtype=np.int32), tokenizer, length)
    size = length - len(begin)
    return [np.concatenate([begin, inside[at : at + size]]) for at in range(0, len(inside), size)], len(begin)


def is_document(window: int, share: float) -> bool:
    """Whether a window opens as a document, where a share of them does, evenly."""
    return math.floor((window + 1) * share) > math.floor(window * share)


def check_writes_alone(described: Transformer, info: Mapping[str, Any]) -> None:
    """Raises `GossamerError` where a model writes about what an encoder reads, and has no texts of its own."""
    if described.encoder is not None:
        name = info.get("name", "the model")
        raise GossamerError(f"{name} has an encoder: it writes about what is given, and no texts of its own")


def openings(tokenizer: Vocabulary) -> tuple[list[list[int]], list[list[int]]]:
    """Returns what texts of a model's own begin with, as tokens: chats, none without a template, and documents."""
    questions = _QUESTIONS if tokenizer.has_chat_template else ()
    chats = [tokenizer.chat([{"role": "user", "content": question}]) for question in questions]
    return chats, [tokenizer.encode(opening) for opening in _OPENINGS]


def turns_of(tokenizer: Vocabulary, said: Sequence[str]) -> Turns:
    """Returns the tokens that each turn of a user puts into a conversation, from the end of the answer before it."""
    turns = [tokenizer.chat([{"role": "user", "content": said[0]}])]
    for before, text in itertools.pairwise(said):
        asked = [{"role": "user", "content": before}, {"role": "assistant", "content": _ANSWER}]
        whole = tokenizer.render([*asked, {"role": "user", "content": text}])
        # The answer's end token is the model's to write.
        turns.append(tokenizer.encode(whole.rpartition(_ANSWER)[2], special=False))
        while turns[-1] and turns[-1][0] in tokenizer.eos_ids:
            del turns[-1][0]
    return turns


def read_conversations(path: str | Path) -> list[list[str]]:
    """Reads what users say: a line a turn, and a blank line between conversations.

    Raises:
        GossamerError: the file cannot be read, or holds no line.
    """
    blocks = re.split(r"\n\s*\n", _read_file(Path(path)).strip())
    conversations = [[line.strip() for line in block.split("\n") if line.strip()] for block in blocks]
    if not conversations[0]:
        raise GossamerError(f"{path}: holds no questions")
    return conversations
