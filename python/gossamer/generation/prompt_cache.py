"""Keys and values of a prompt in a file, so that another process need not compute them again.

The file is one of safetensors: the tokens, and the pages of the cache as they lie in memory, behind the digests of the
model and of both. It is written whole or not at all, and one of another model or with a bit changed is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._core import CacheFull
from ..engine import Keepable
from ..errors import GossamerError
from ..safetensors_io import SafetensorsFile, SafetensorsWriter
from .fingerprint import logits_digest, model_digest
from .single import run_text

if TYPE_CHECKING:
    from .adapters import Chosen
    from .drafts import Drafts
    from .held import Held
    from .model import Model
    from .sequence import Sequence as Text
    from .single import Cancel, Pieces

_KIND, _VERSION = "gossamer prompt cache", "2"


class PromptCache:
    """A file that sequences of a model begin with, and are kept in.

    Attributes:
        passes: Whether sequences that go on lose what a shorter one needs, since layers have windows.
    """

    def __init__(self, model: Model, path: str | Path, adapters: Chosen = None) -> None:
        """Names a file; it is read by `load`.

        Args:
            model: The model.
            path: The file, which need not exist.
            adapters: Of the sequences, as for `Model.stream`.

        Raises:
            GossamerError: the model's engine keeps nothing, or there is no such folder.
        """
        if not isinstance(model.decoder, Keepable):
            raise GossamerError("a prompt cache is for models on the CPU")
        if model.config.encoder is not None:
            raise GossamerError("a prompt cache is for models without an encoder, whose input is not of the prompt")
        self.path = Path(path)
        if self.path.is_dir() or not self.path.parent.is_dir():
            raise GossamerError(f"{self.path}: {'is a folder' if self.path.is_dir() else 'its folder does not exist'}")
        self.passes = any(attention.window for attention in model.config.stack.attentions)
        self._model = model
        self._engine: Keepable = model.decoder
        self._adapters = adapters
        self._mix = model.mix(adapters)
        self._logits = self._digest = ""
        self._tokens: list[int] = []  # of the file, as far as is known

    def load(self, held: Held) -> None:
        """Fills an empty sequence with what the file has; nothing where there is no file.

        Raises:
            GossamerError: the file is none of this kind, damaged, or of another model; or it does not fit into the
                cache.
        """
        # While the cache has room for a few tokens: a text that is to be saved may have taken all.
        self._logits = self._logits or logits_digest(self._model, self._adapters)
        if not self.path.exists():
            return
        file = SafetensorsFile(self.path)
        if file.metadata.get("kind") != _KIND or file.metadata.get("version") != _VERSION:
            raise GossamerError(f"{self.path}: is no prompt cache of this version; remove it or name another file")
        tokens, pages = file.raw("tokens"), file.raw("pages")
        if file.info("tokens").dtype != "I32" or tokens.ndim != 1 or file.info("pages").dtype != "U8":
            raise GossamerError(f"{self.path}: is damaged: tokens or pages are of another type")
        if file.metadata.get("digest") != _digest(file.metadata.get("model", ""), tokens, pages):
            raise GossamerError(f"{self.path}: is damaged: its content has another digest than it says")
        if file.metadata.get("model") != self._model_digest():
            raise GossamerError(
                f"{self.path}: was made with another model, other adapters or another type of keys and values; remove "
                "it or name another file"
            )
        try:
            self._engine.restore(held.prepare(), pages, tokens.size)
        except CacheFull as error:
            raise GossamerError(f"{self.path}: {error}") from None
        except ValueError as error:
            raise GossamerError(f"{self.path}: is damaged: {error}") from None
        held.tokens = tokens.tolist()
        self._tokens = list(held.tokens)

    def save(self, held: Held, tokens: Sequence[int]) -> None:
        """Writes the file, if it does not have these tokens already.

        Args:
            held: Holds them and perhaps more.
            tokens: What to keep; nothing is written where they are not all there.

        Raises:
            GossamerError: the file cannot be written, or the sequence has other adapters.
        """
        count = len(tokens)
        there = self._model.decoder.length(held.id) >= count and held.tokens[:count] == tokens
        if count == 0 or not there or self._tokens[:count] == tokens:
            return
        if held.mix != self._mix:
            raise GossamerError(f"{self.path}: the text went on with other adapters; it is not kept")
        values = np.array(tokens, np.int32)
        pages = self._engine.save(held.id, count)
        model = self._model_digest()
        about = {"kind": _KIND, "version": _VERSION, "model": model, "digest": _digest(model, values, pages)}
        # Without gaps, so that every byte is one that is checked.
        with SafetensorsWriter(self.path, ["tokens", "pages"], alignment=1, metadata=about) as file:
            file.add("tokens", values)
            file.add("pages", pages)
        self._tokens = list(tokens)

    def _model_digest(self) -> str:
        if not self._digest:
            logits = self._logits or logits_digest(self._model, self._adapters)
            self._digest = model_digest(self._model, logits)
        return self._digest


def _digest(model: str, tokens: NDArray[Any], pages: NDArray[Any]) -> str:
    digest = hashlib.sha256(f"{_VERSION} {model} {tokens.size} {pages.size} ".encode())
    digest.update(np.ascontiguousarray(tokens).data)
    digest.update(np.ascontiguousarray(pages).data)
    return digest.hexdigest()


def cached_text(
    model: Model, held: Held, text: Text, cache: PromptCache, drafts: Drafts | None, cancel: Cancel
) -> Pieces:
    """Runs one text as `run_text` does, whose prompt begins with what a file has, and is kept there.

    Raises:
        GossamerError: the text may drop its prompt.
    """
    if text.stats.sampling.context_shift is not None:
        raise GossamerError("context_shift and prompt_cache exclude each other: the prompt may have to go")
    return _cached_text(model, held, text, cache, drafts, cancel)


def _cached_text(
    model: Model, held: Held, text: Text, cache: PromptCache, drafts: Drafts | None, cancel: Cancel
) -> Pieces:
    prompt = list(text.window)
    try:
        cache.load(held)
        for piece in run_text(model, held, text, keep=True, drafts=drafts, cancel=cancel):
            if cache.passes:
                cache.save(held, prompt)
            yield piece
    finally:
        try:
            cache.save(held, prompt)
        finally:
            held.free()
