"""Text that a model writes itself, kept as tokens: data for distillation without a data set.

A folder of samples holds `samples.json`, which says what wrote them, and parts of equally many windows of tokens. A
part depends on the seed, its number, the weights and the device alone, so a run that was stopped goes on with the first
missing one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import GossamerError, naming
from ..files import read_json
from ..folders import check_destination, remove_folder, write_file
from ..generation.fingerprint import logits_digest
from ..generation.model import Model
from ..generation.windows import sampled_windows
from ..hashes import json_sha256
from ..safetensors_io import SafetensorsFile, SafetensorsWriter
from ..text.calibration import Conversations, check_writes_alone, window_length

if TYPE_CHECKING:
    from ..nn.sampler import Sampler
    from ..text.tokenizer import Tokenizer

LENGTH = 512

_ABOUT = "samples.json"
_PART_WINDOWS = 48
_TENSOR = "tokens"
_DOCUMENTS = 0.5
# What older folders, which do not say it, were written with.
_BEFORE = {"part_windows": _PART_WINDOWS, "temperature": 1.0, "documents": _DOCUMENTS, "conversations": ""}


def sample(
    model: Model | Sampler,
    dst: str | Path,
    *,
    tokens: int,
    length: int | None = None,
    seed: int = 0,
    temperature: float = 1.0,
    conversations: Conversations | None = None,
    documents: float = _DOCUMENTS,
    force: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> int:
    """Lets a model write samples: answers to chat prompts, and documents.

    Args:
        model: The teacher, as the native engine runs it, or a `gossamer.nn.sampler.Sampler`.
        dst: Folder to write; one that a run with the same model, seed and length has begun is gone on with.
        tokens: Tokens wanted, rounded up to whole windows.
        length: Tokens a window, at least 2; None takes 512, or the model's context where that is shorter.
        seed: Of the samples.
        temperature: Above 0.
        conversations: What users say, a list of turns each; None takes some questions.
        documents: Share of windows that are documents, from 0 to 1. A GPU has the defaults of these three
            alone.
        force: Begins anew where `dst` holds other samples, or a model.
        progress: Called with (tokens done, tokens, what).

    Returns:
        The tokens that the folder holds.

    Raises:
        GossamerError: an option is out of range, the folder holds something else, or it cannot be written.
    """
    if tokens < 1:
        raise GossamerError(f"tokens must be at least 1, got {tokens}")
    check_writes_alone(model.config, model.info)
    length = window_length(length, LENGTH, model.config.context)
    if length < 2:
        raise GossamerError(f"length must be at least 2 tokens, got {length}")
    _check_kinds(model, temperature, conversations, documents)
    folder = Path(dst)
    each = _PART_WINDOWS if isinstance(model, Model) else model.part_windows(length)
    about = {
        "model": str(model.info.get("name", "")),
        "tokenizer": fingerprint(model.tokenizer),
        "vocab": model.config.vocab,
        "length": length,
        "seed": seed,
        "part_windows": each,
        "temperature": temperature,
        "documents": documents,
        "conversations": json_sha256(conversations) if conversations is not None else "",
    }
    if isinstance(model, Model):
        about["logits"] = logits_digest(model)
    _begin(folder, about, force)
    windows = -(-tokens // length)
    for first in range(0, windows, each):
        path = folder / f"{first // each:06}.safetensors"
        count = min(each, windows - first)
        if path.exists() and len(_part(path)) >= count:
            continue

        def report(done: int, _total: int, _what: str, first: int = first) -> None:
            if progress is not None:
                progress(min(first * length + done, windows * length), windows * length, "sampling")

        if isinstance(model, Model):
            written = sampled_windows(
                model.decoder,
                model.tokenizer,
                first=first,
                windows=count,
                length=length,
                seed=seed,
                temperature=temperature,
                conversations=conversations,
                documents=documents,
                progress=report,
            )
        else:
            written = model.windows(first, length, seed, report)[:count]
        with SafetensorsWriter(path, [_TENSOR]) as writer:
            writer.add(_TENSOR, written)
    return sum(part.size for part in read_samples(folder))


def _check_kinds(
    model: Model | Sampler, temperature: float, conversations: Conversations | None, documents: float
) -> None:
    """Refuses windows of kinds that a model does not write."""
    if not (math.isfinite(temperature) and temperature > 0):
        raise GossamerError(f"temperature must be above 0, got {temperature}")
    if not 0 <= documents <= 1:
        raise GossamerError(f"documents must be a share from 0 to 1, got {documents}")
    if not isinstance(model, Model) and (temperature != 1 or conversations is not None or documents != _DOCUMENTS):
        raise GossamerError("a GPU takes no temperature, conversations or share of documents for samples: use the CPU")
    if conversations is not None and not model.tokenizer.has_chat_template:
        raise GossamerError(f"{model.info.get('name', 'the model')} has no chat template for conversations")
    if conversations is not None and documents == 1:
        raise GossamerError("conversations have no share: all windows are documents (documents 1)")


def _begin(folder: Path, about: dict[str, Any], force: bool) -> None:
    """Makes the folder, or checks that what is there came from the same settings; with `force` it goes otherwise."""
    path = folder / _ABOUT
    if path.exists():
        found = read_json(path)
        other = _difference(folder, {**_BEFORE, "logits": about.get("logits"), **found}, about)
        if not other:
            return
        if not force:
            raise GossamerError(f"{other}; --force begins anew")
    check_destination(folder, force=force)
    if folder.exists():
        remove_folder(folder)
    with naming(folder, "cannot write"):
        write_file(path, json.dumps(about, indent=2) + "\n")


def _difference(folder: Path, found: dict[str, Any], about: dict[str, Any]) -> str:
    """What samples that were begun differ in, in words; empty where they are the same."""
    for key, value in about.items():
        if found.get(key) != value:
            if key == "logits":
                return f"{folder}: was begun with other weights, or multiplied in another way, than this run has"
            hint = " (was that another device?)" if key == "part_windows" else ""
            return f"{folder}: was begun with {key} {found.get(key)!r:.80}, this run has {value!r:.80}{hint}"
    return ""


def is_samples(path: Path) -> bool:
    """Whether a path is a folder of samples."""
    return (path / _ABOUT).is_file()


def read_samples(folder: Path, tokenizer: Tokenizer | None = None) -> Iterator[NDArray[np.int32]]:
    """Yields the parts of a folder of samples, each int32 [windows, length].

    Args:
        folder: The folder.
        tokenizer: What the tokens have to come from; None does not check.

    Raises:
        GossamerError: the tokens are another tokenizer's, or a file is missing or not valid.
    """
    about = read_json(folder / _ABOUT)
    if tokenizer is not None and about.get("tokenizer") != fingerprint(tokenizer):
        raise GossamerError(f"{folder}: the samples were written with another tokenizer, by {about.get('model')!r:.80}")
    parts = sorted(folder.glob("*.safetensors"))
    if not parts:
        raise GossamerError(f"{folder}: holds no samples yet")
    for path in parts:
        tokens = _part(path)
        if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < int(about.get("vocab", 0)):
            raise GossamerError(f"{path}: has tokens outside the vocabulary of {about.get('vocab')}")
        yield tokens


def write_text(folder: Path, path: str | Path, tokenizer: Tokenizer) -> None:
    """Writes a folder of samples as one UTF-8 text, special tokens written out, with a blank line behind each window.

    Raises:
        GossamerError: the samples are not usable, or the text cannot be written.
    """
    windows = (tokenizer.decode(window, special=True) for part in read_samples(folder, tokenizer) for window in part)
    with naming(path, "cannot write"):
        write_file(Path(path), "\n\n".join(windows) + "\n")


def _part(path: Path) -> NDArray[np.int32]:
    file = SafetensorsFile(path)
    info = file.tensors.get(_TENSOR)
    if info is None or info.dtype != "I32" or len(info.shape) != 2:
        raise GossamerError(f"{path}: has no int32 matrix {_TENSOR}")
    return np.array(file.raw(_TENSOR), np.int32)  # a map for each part would be a descriptor for each


def fingerprint(tokenizer: Tokenizer) -> str:
    """Returns a hash that two tokenizers share when they have the same tokens under the same ids."""
    return json_sha256(tokenizer.vocabulary())
