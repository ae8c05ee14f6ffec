"""Pairs of what an encoder reads and what a decoder writes about it, to calibrate both on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import GossamerError
from ..generation.pairs import Pair, pairing
from ..progress import Progress
from ..text.tasks import read_task
from .walk import Texts

if TYPE_CHECKING:
    from ..arch.spec import Transformer
    from ..text.tokenizer import Tokenizer


def read_pairs(
    path: str | Path, tokenizer: Tokenizer, model: Transformer, *, windows: int, length: int, seed: int
) -> list[Pair]:
    """Chooses pairs out of a file of samples, at random by a seed.

    Args:
        path: A task file; see `gossamer.text.tasks`.
        tokenizer: Of the model.
        model: Its description.
        windows: To be filled: a window of sound is one; of texts as many go into one as have its length together, on
            the side where they are longer.
        length: Tokens of a window.
        seed: Of the choice.

    Raises:
        GossamerError: the file, or a sample that was chosen, is not usable.
    """
    if Path(path).is_dir():
        raise GossamerError(f"{path}: is a folder; a model with an encoder is calibrated on a file of pairs")
    samples, pair = read_task(path), pairing(tokenizer, model)
    found: list[Pair] = []
    filled = 0.0
    for number in np.random.default_rng(seed).permutation(len(samples)):
        one = pair(samples[number])
        size = 1.0 if isinstance(one.source, Path) else max(len(one.source), len(one.inputs)) / length
        if found and filled + size > windows:
            break
        found.append(one)
        filled += size
    return found


def texts_of(pairs: Sequence[Pair], progress: Progress) -> list[Texts]:
    """Returns pairs as they are run: those of like lengths together.

    Raises:
        GossamerError: a file of sound cannot be read.
    """
    alike: dict[tuple[int, int], list[Texts]] = {}
    for number, pair in enumerate(pairs):
        progress(number, len(pairs), "reading pairs")
        text = Texts(pair.inputs[None], pair.read()[None])
        assert text.reads is not None
        alike.setdefault((text.tokens.shape[1], text.reads.shape[1]), []).append(text)
    progress(len(pairs), len(pairs), "reading pairs")
    found: list[Texts] = []
    for _, texts in sorted(alike.items()):
        reads = [text.reads for text in texts if text.reads is not None]
        found += Texts(np.concatenate([text.tokens for text in texts]), np.concatenate(reads)).chunks()
    return found
