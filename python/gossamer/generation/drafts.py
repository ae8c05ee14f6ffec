"""Drafts: tokens that are guessed, computed in one step beside the next one, and kept as far as they come true.

A step of several tokens reads the weights once, so that a guess costs little, and one that comes true saves a step. A
text is the same with drafts and without: every token is chosen from the logits behind the tokens before it, as always,
and a guess is kept only where it is what was chosen. That is the rejection rule of speculative sampling for drafts that
are certain of themselves (Leviathan et al. 2023, Chen et al. 2023): a guess with probability p comes true with p, and
otherwise another token is drawn. It even takes the same random numbers.

How many tokens are guessed follows from what a step costs and from how often guesses of this kind came true in this
text. Guesses are compared with what was written whether or not they were computed, so that finding out costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import GossamerError
from ..text.calibration import read_text
from .ngrams import LONGEST, Corpus, TextIndex
from .self_drafts import SelfDraft

if TYPE_CHECKING:
    from ..progress import Progress
    from ..text.tokenizer import Tokenizer
    from .cost import StepCost
    from .model import Model
    from .sampling_options import SamplingOptions
    from .self_drafts import Rate

KINDS = ("auto", "ngram", "self", "off")

MOST_TOKENS = 16
"""Tokens of a step with drafts, all texts together: as many as kernels take in one pass over the weights."""

_GAIN = 1.02  # what drafts have to promise: their costs and chances are estimates
_HOPELESS = 0.05  # chances below are not worth a look
_MEMORY = 0.96  # of what was observed before, at each guess
_PRIOR = 4.0  # guesses that the chances below count for

# Tokens that match, from how many on, and how often the next one is then the same, until a text shows its own way.
_MATCHES = ((2, 0.3), (3, 0.4), (4, 0.5), (5, 0.6), (7, 0.7), (10, 0.8), (16, 0.85), (32, 0.9))
_CLASS = [max((i for i, (least, _) in enumerate(_MATCHES) if n >= least), default=0) for n in range(LONGEST + 1)]


class Chances:
    """How often a guess comes true, by how many tokens before it match."""

    def __init__(self) -> None:
        self._tried = [_PRIOR] * len(_MATCHES)
        self._true = [_PRIOR * chance for _, chance in _MATCHES]

    def chance(self, matching: int) -> float:
        """Returns the share of guesses behind so many matching tokens that come true, of late."""
        kind = _CLASS[min(matching, LONGEST)]
        return self._true[kind] / self._tried[kind]

    def observe(self, matching: int, true: bool) -> None:
        """Notes what came of one."""
        kind = _CLASS[min(matching, LONGEST)]
        self._tried[kind] = self._tried[kind] * _MEMORY + 1
        self._true[kind] = self._true[kind] * _MEMORY + true


class Drafter:
    """The guesses of one text, from its own tokens and perhaps from a corpus."""

    def __init__(self, corpus: Corpus | None = None) -> None:
        self._index = TextIndex()
        self._corpus = corpus
        self._chances = Chances(), Chances()  # of the text's own, of the corpus's
        self._guess: list[int] = []
        self._matching = 0
        self._source = 0
        self._others: Rate | None = None

    def guess(self, tokens: Sequence[int]) -> list[tuple[int, float]]:
        """Guesses how a text goes on.

        Args:
            tokens: The text, which has grown since the last call; what was guessed then is compared with it.

        Returns:
            Tokens, each with the chance that it and all before it come true; none where there is nothing to go by.
        """
        index = self._index
        new = tokens[len(index.tokens) :]
        self._compare(new)
        index.extend(new)
        at, self._matching = index.find()
        self._source = 0
        if self._corpus is not None and self._matching < LONGEST:
            place, matching = self._corpus.find(index.tokens)
            if matching > self._matching:
                at, self._matching, self._source = place, matching, 1
        if not self._matching:
            self._guess = []
            return []
        chances, together = self._chances[self._source], 1.0
        likely: list[float] = []
        for i in range(MOST_TOKENS - 1):
            together *= chances.chance(self._matching + i)
            if together < _HOPELESS:
                break
            likely.append(together)
        # The first is compared with what comes even where it is not worth computing.
        count = max(len(likely), 1)
        where = self._corpus if self._source and self._corpus is not None else index
        self._guess = where.following(at, count)
        return list(zip(self._guess, likely, strict=False))

    def took(self, guess: list[int], chances: Rate) -> None:
        """Has somebody else's guess compared with what comes, instead of what was guessed here."""
        self._guess, self._matching, self._others = guess, 0, chances

    def _compare(self, new: Sequence[int]) -> None:
        chances: Chances | Rate = self._others or self._chances[self._source]
        self._others = None
        for i, (guess, token) in enumerate(zip(self._guess, new, strict=False)):
            chances.observe(self._matching + i, guess == token)
            if guess != token:
                return


class Drafts:
    """What a scheduler guesses for its texts: whatever should make them faster, by what is known of steps.

    Attributes:
        kind: One of `KINDS`.
        cost: What steps cost.
        corpus: What guesses are taken from beside a text's own tokens.
        own: The copy of the model that guesses where texts say nothing.
    """

    def __init__(
        self, cost: StepCost, kind: str = "auto", corpus: Corpus | None = None, own: SelfDraft | None = None
    ) -> None:
        self.kind = kind
        self.cost = cost
        self.corpus = corpus
        self.own = own

    def drafter(self) -> Drafter | None:
        """Returns the guesses of a new text; None where there are none."""
        return None if self.kind == "off" else Drafter(self.corpus)

    def plan(
        self,
        texts: Sequence[Sequence[int]],
        drafters: Sequence[Drafter],
        rooms: Sequence[int],
        sequences: Sequence[int] = (),
    ) -> list[list[int]]:
        """Chooses the guesses of a step.

        Args:
            texts: Tokens of each text in the step, which takes one more of each.
            drafters: Their guesses.
            rooms: How many tokens each has room for behind that one.
            sequences: Of the engine, which holds all but the last token of each text; for `own`.

        Returns:
            For each text the tokens to compute beside its last one; such that the step promises most tokens a second.
        """
        guesses = [
            drafter.guess(text)[: max(room, 0)] for text, drafter, room in zip(texts, drafters, rooms, strict=True)
        ]
        # In a text chances fall, so that this order takes no guess before those that it stands on.
        order = sorted((-chance, i) for i, guess in enumerate(guesses) for _, chance in guess)
        counts, contexts = [1] * len(texts), [len(text) for text in texts]
        most = MOST_TOKENS - len(texts)
        tokens = float(len(texts))
        plain = self.cost.seconds(counts, contexts)
        best, taken = plain / tokens / _GAIN, 0
        for n, (chance, i) in enumerate(order[: max(most, 0)], 1):
            tokens -= chance
            counts[i] += 1
            seconds = self.cost.seconds(counts, contexts) / tokens
            if seconds < best:
                best, taken = seconds, n
        chosen = [0] * len(texts)
        for _, i in order[:taken]:
            chosen[i] += 1
        if self.own is not None and not taken:
            found = self.own.guess(sequences, texts, rooms, self.cost, MOST_TOKENS)
            for drafter, draft in zip(drafters, found, strict=True):
                if draft:
                    drafter.took(draft, self.own.chances)
            return found
        return [[token for token, _ in guess[:count]] for guess, count in zip(guesses, chosen, strict=True)]


Draft = str | Drafts | None
"""How tokens are guessed: one of `KINDS`, or what `drafts` returned."""


def drafts(
    model: Model, kind: str = "auto", corpus: str | Path | None = None, progress: Progress | None = None
) -> Drafts | None:
    """Returns how a model's tokens are guessed.

    Args:
        model: The model.
        kind: "off"; "ngram": what followed the same tokens before, in the prompt, the text or a corpus; "auto": that,
            where it can pay, which is everywhere but on a GPU; "self": beside that what a sparser copy of the weights
            says, which is packed now.
        corpus: A text file, or a folder of them, that is looked into beside the text itself.
        progress: Called with (done, total, what).

    Returns:
        What `draft` of `Model.stream` takes; None where nothing is guessed or predicted.

    Raises:
        GossamerError: there is no such kind, or it cannot be had; the corpus cannot be read.
    """
    if kind not in KINDS:
        raise GossamerError(f"draft must be one of {', '.join(KINDS)}, got {kind!r:.80}")
    if corpus is not None and kind == "off":
        raise GossamerError(f"{corpus}: nothing is drafted from it with draft off")
    if model.cost is None:
        if kind in ("ngram", "self") or corpus is not None:
            raise GossamerError(f"draft {kind}{' from a corpus' if corpus else ''} is for the CPU; a GPU has no drafts")
        return None
    found = None if corpus is None else read_corpus(corpus, model.tokenizer)
    return Drafts(model.cost, kind, found, SelfDraft(model, progress=progress) if kind == "self" else None)


def guessing(model: Model, draft: Draft, options: SamplingOptions | None = None) -> Drafts | None:
    """Returns the drafts that an option stands for.

    Raises:
        GossamerError: as `drafts`, where they are another model's, or are asked for beside beams, which have none.
    """
    if draft is not None and not isinstance(draft, (str, Drafts)):
        raise GossamerError(f"draft must be auto, ngram, self, off, or what Model.drafts returns, got {draft!r:.80}")
    kind = draft if isinstance(draft, str) else "off" if draft is None else draft.kind
    corpus = isinstance(draft, Drafts) and draft.corpus is not None
    if options is not None and options.beams > 1 and (kind in ("ngram", "self") or corpus):
        raise GossamerError(f"beams and draft {kind}{' from a corpus' if corpus else ''} exclude each other")
    if isinstance(draft, str):
        return drafts(model, draft)
    if draft is not None and draft.cost is not model.cost:
        raise GossamerError("draft: these drafts were made for another model")
    return draft


def read_corpus(path: str | Path, tokenizer: Tokenizer) -> Corpus:
    """Reads text that drafts are taken from: a file, or all files below a folder.

    Raises:
        GossamerError: it cannot be read, is no UTF-8 text, or holds too little.
    """
    text = read_text(path)
    tokens = tokenizer.encode(text, special=False) if text else []
    if len(tokens) < 4:
        raise GossamerError(f"{path}: has too few tokens to take drafts from ({len(tokens)})")
    return Corpus(tokens)
