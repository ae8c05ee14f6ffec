"""Training data: texts and samples as one long file of tokens, cut into windows that come in a seeded order.

The file is read through a memory map, so it may be larger than memory, and any window is had at once: where a run is in
its data is a number of windows, and a resumed one goes on there.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import GossamerError, naming
from ..text.calibration import read_text
from ..text.tokenizer import Tokenizer
from .batches import Batch, Tokens, text_batch
from .samples import is_samples, read_samples

_SECTIONS = 64  # documents that a single text is taken for


@dataclass(frozen=True)
class Data:
    """Windows to train and to validate on.

    Attributes:
        train: All training tokens, documents one behind the other.
        validation: Those of the documents that were set aside.
        length: Tokens a window.
        seed: Of the order.
    """

    train: Tokens
    validation: Tokens
    length: int
    seed: int
    _orders: dict[int, NDArray[np.int64]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def windows(self) -> int:
        """Training windows in one pass over the data; what is left at its end is no whole window."""
        return len(self.train) // self.length

    def batch(self, first: int, count: int) -> Batch:
        """See `Source`; every pass has an order of its own, from the seed."""
        rows = []
        for number in range(first, first + count):
            passed, place = divmod(number, self.windows)
            start = int(self._order(passed)[place]) * self.length
            rows.append((self.train[start : start + self.length], start))
        return text_batch(rows, self.length)

    def _order(self, passed: int) -> NDArray[np.int64]:
        if passed not in self._orders:
            self._orders.clear()
            self._orders[passed] = np.random.default_rng([self.seed, passed]).permutation(self.windows)
        return self._orders[passed]

    def validation_batches(self, most: int, size: int) -> Iterator[Batch]:
        """See `Source`; the last window may be padded."""
        count = -(-len(self.validation) // self.length)
        chosen = np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int))
        for start in range(0, len(chosen), size):
            windows = (slice(place * self.length, (place + 1) * self.length) for place in chosen[start : start + size])
            yield text_batch([(self.validation[window], -1) for window in windows], self.length)

    def digest(self) -> int:
        """See `Source`."""
        digest = 0
        for tokens in (self.train, self.validation):
            for start in range(0, len(tokens), 1 << 20):
                digest = zlib.crc32(tokens[start : start + (1 << 20)].tobytes(), digest)
        return digest


def prepare(
    paths: Sequence[str | Path],
    tokenizer: Tokenizer,
    folder: Path,
    *,
    length: int,
    seed: int,
    validation: float,
    progress: Callable[[int, int, str], None] | None = None,
) -> Data:
    """Reads all data into `folder` as tokens, and maps them.

    Every file of a folder is a document, and so is every window of a folder of samples; a text that comes alone is cut
    into 64 parts at blank lines, or at ends of lines where those are few, which count as documents. Behind each
    document of text comes the token that ends one.

    Args:
        paths: UTF-8 text files, folders of them, and folders of samples.
        tokenizer: Gives the tokens of texts.
        folder: Where the files of tokens go.
        length: Tokens a window.
        seed: Of the choice of documents for validation and of the order of windows.
        validation: Fraction of the documents that is set aside.
        progress: Called with (documents done, documents, what).

    Raises:
        GossamerError: a path cannot be read, the tokens of samples are another tokenizer's, the disk is full, or there
            is less text than one window; the line names the path.
    """
    documents = [document for path in paths for document in _documents(Path(path), tokenizer)]
    chosen = np.random.default_rng(seed).permutation(len(documents))[: round(validation * len(documents))]
    aside = np.zeros(len(documents), np.bool_)
    aside[chosen if len(chosen) or not validation or len(documents) < 2 else [0]] = True
    names = [folder / "train.tokens", folder / "validation.tokens"]
    with naming(folder, "cannot write"), names[0].open("wb") as train, names[1].open("wb") as held_out:
        for done, (document, held) in enumerate(zip(documents, aside, strict=True)):
            if progress is not None:
                progress(done, len(documents), "reading the data")
            (held_out if held else train).write(document().astype("<i4").tobytes())
    tokens = [np.memmap(name, "<i4", "r") if name.stat().st_size else np.zeros(0, np.int32) for name in names]
    data = Data(tokens[0], tokens[1], length, seed)
    if not data.windows:
        without = f" without the {len(data.validation)} set aside for validation" if len(data.validation) else ""
        raise GossamerError(
            f"{', '.join(map(str, paths))}: {len(data.train)} tokens{without}; training needs at least one window of "
            f"{length}"
        )
    return data


def _documents(path: Path, tokenizer: Tokenizer) -> Iterator[Callable[[], Tokens]]:
    """Yields what reads each document."""
    if is_samples(path):
        for part in read_samples(path, tokenizer):
            for window in part:
                yield partial(np.asarray, window)
        return
    if path.is_dir():
        files = sorted(
            p for p in path.rglob("*") if p.is_file() and not any(n[0] == "." for n in p.relative_to(path).parts)
        )
        if not files:
            raise GossamerError(f"{path}: the folder holds no text files")
        for file in files:
            yield partial(_read, file, tokenizer)
        return
    for section in _sections(read_text(path)):
        yield partial(_encode, section, tokenizer)


def _sections(text: str) -> list[str]:
    """Cuts a text into parts of about the same length, at blank lines if there are enough."""
    end = "\n\n" if text.count("\n\n") >= _SECTIONS else "\n"
    paragraphs = [p for p in text.split(end) if p.strip()]
    sections: list[str] = []
    for paragraph in paragraphs:
        # As many parts as the text before this paragraph would fill.
        if not sections or len(sections[-1]) >= len(text) / _SECTIONS:
            sections.append(paragraph)
        else:
            sections[-1] += end + paragraph
    return sections


def _read(file: Path, tokenizer: Tokenizer) -> Tokens:
    return _encode(read_text(file), tokenizer)


def _encode(text: str, tokenizer: Tokenizer) -> Tokens:
    return np.array([*tokenizer.encode(text), *sorted(tokenizer.eos_ids)[:1]], np.int32)
