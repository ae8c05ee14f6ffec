"""From a path to a checkpoint whose tensors were held against its config."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from .. import arch
from ..arch.sources import parts_of
from ..arch.spec import Transformer
from ..audio.extractor import check_extractor
from ..errors import GossamerError, one_line
from .base import Checkpoint
from .ctranslate2 import CTranslate2Checkpoint, is_ctranslate2
from .folder import FolderCheckpoint
from .gguf import GgufCheckpoint

# Buffers that follow from the config, which older programs stored: rotary tables, and masks [1, 1, n, n].
_BUFFER = re.compile(
    r"rotary_emb\.(inv_freq|original_inv_freq|cos_cached|sin_cached)$|(^|\.)position_ids$"
    r"|(encoder|decoder)\.embed_positions\.weights?$"  # sines, where they are not learned
    r"|EncDecAttention\.relative_attention_bias\.weight$"  # of T5's first checkpoints, which no T5 reads
)
_FLOATS = ("f32", "f16", "bf16")
_MASK = re.compile(r"(attn|attention)\.(masked_)?bias$")
# What stands behind an encoder for what it was trained with, or for a task.
_TASK = re.compile(
    r"((bert|roberta|distilbert|mpnet)\.)?pooler\.|cls\.|lm_head\.|head\.|classifier\.|pre_classifier\.|qa_outputs\."
    r"|vocab_(transform|layer_norm|projector)\.|decoder\.bias$"
)
# Who stores tensors that no codec took, by the last part of their names.
_COMPRESSED = {
    "compressed": "compressed-tensors",
    "weight_packed": "compressed-tensors",
    "weight_scale": "compressed-tensors",
    "qweight": "GPTQ or AWQ",
    "absmax": "bitsandbytes",
    "SCB": "bitsandbytes",
    "weight_scale_inv": "an FP8 checkpoint",
    "weight_blocks": "MXFP4",
    "layout_numbers": "gossamer.torch",
}


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Opens a checkpoint and checks every tensor that the model needs against its config; reads no values yet.

    Args:
        path: A Hugging Face checkpoint folder, one of CTranslate2, or a GGUF file.

    Raises:
        GossamerError: it is not a checkpoint, a file of it is missing or not valid, the model's family is not
            supported, or a tensor is missing or contradicts the config. The line names file and tensor.
    """
    path = Path(path)
    checkpoint: Checkpoint
    if path.is_dir():
        if (path / "gossamer.json").is_file():
            raise GossamerError(f"{path}: is packed already; give the checkpoint that it was made from")
        if not (path / "config.json").is_file() and (path / "adapter_config.json").is_file():
            raise GossamerError(f"{path}: is an adapter; give the model that it is for, and this with --adapter")
        if not (path / "config.json").is_file():
            raise GossamerError(f"{path}: no config.json, so this is no checkpoint folder")
        checkpoint = CTranslate2Checkpoint(path) if is_ctranslate2(path) else FolderCheckpoint(path)
        source = path / "config.json"
        if (path / "adapter_config.json").is_file():
            checkpoint.notes += (f"{path}: the adapter that lies beside the model is left out",)
    elif path.is_file():
        if path.suffix == ".safetensors":
            raise GossamerError(f"{path}: give the folder that holds this file and its config.json")
        checkpoint = GgufCheckpoint(path)
        source = path
    else:
        raise GossamerError(f"{path}: No such file or directory")
    check(checkpoint, source)
    for note in checkpoint.notes:
        logging.getLogger("gossamer").warning("%s", one_line(note))
    return checkpoint


def check(checkpoint: Checkpoint, source: Path) -> Transformer:
    """Holds every tensor that the model needs against its config, and has it say in its notes what that came to.

    Args:
        checkpoint: One that was only just opened.
        source: The file that its config came from, for errors.

    Returns:
        The description that it has from then on.

    Raises:
        GossamerError: as `open_checkpoint`.
    """
    path = checkpoint.path
    _refuse_compressed(checkpoint)
    try:
        family = arch.family(checkpoint.config)
        if unread := family.unread(checkpoint.config):
            checkpoint.notes += (f"{source}: keys that are not known are left out: {', '.join(unread)}",)
        _untie(checkpoint, source)
        _announce_biases(checkpoint, family.biases(checkpoint.config))
        needed = checkpoint.sources()
    except GossamerError as error:
        raise GossamerError(f"{source}: {error}") from None
    present = set(checkpoint.names())
    for name, expected in {source.tensor: source.shape for source in needed.values()}.items():
        if name not in present:
            raise GossamerError(f"{path}: tensor {name} is missing")
        if (shape := checkpoint.shape(name)) != expected:
            raise GossamerError(f"{path}: tensor {name} has shape {list(shape)}, the config asks for {list(expected)}")
    try:
        described = family.describe(checkpoint.config)  # tables follow from sizes, and cost what they say
    except GossamerError as error:
        raise GossamerError(f"{source}: {error}") from None
    _tell_context(checkpoint, source, described)
    if isinstance(checkpoint, FolderCheckpoint) and described.encoder and (mel := described.encoder.embedding.mel):
        checkpoint.notes += tuple(check_extractor(path, mel.bins, 2 * described.encoder.context))
    added = {name for names in checkpoint.parallel.values() for name in names}
    _refuse_unused(checkpoint, present - added - {source.tensor for source in needed.values()}, described.head is None)
    _check_parallel(checkpoint, needed)
    shapes = {
        source.tensor: source.shape
        for name, source in needed.items()
        if parts_of(name)[0] and source.whole and source.shape[1:]
    }
    for name, branch in checkpoint.low_rank.items():
        if name not in shapes:
            raise GossamerError(f"{path}: no linear of a block goes with the low-rank branch of {name}")
        if (shape := (len(branch.u), branch.v.shape[1])) != shapes[name]:
            raise GossamerError(f"{path}: the low-rank branch of {name} is {list(shape)}, not {list(shapes[name])}")
    return described


def _check_parallel(checkpoint: Checkpoint, needed: arch.Sources) -> None:
    """Refuses branches of what is no linear of a block, and those of another shape."""
    linears = {
        source.tensor: source.shape
        for name, source in needed.items()
        if parts_of(name)[0] and source.shape[1:] and source.index is None
    }
    for weight, names in checkpoint.parallel.items():
        if weight not in linears:
            raise GossamerError(f"{checkpoint.path}: {weight} has branches, and is no linear of a block")
        for name in names:
            if (shape := checkpoint.shape(name)) != linears[weight]:
                raise GossamerError(
                    f"{checkpoint.path}: tensor {name} has shape {list(shape)}, {weight} has {list(linears[weight])}"
                )


def _tell_context(checkpoint: Checkpoint, source: Path, described: Transformer) -> None:
    """Says where a model holds less than it says, since a longer text would turn its first tokens in another way."""
    says, context = checkpoint.config.get("max_position_embeddings"), described.context
    if type(says) is int and context < says and not described.embedding.positions:
        checkpoint.notes += (
            f"{source}: the context ends at {context} tokens, and not at {says}: beyond, rotary frequencies are others",
        )


def _untie(checkpoint: Checkpoint, source: Path) -> None:
    """Takes a head of its own where one is stored, whatever the config says of it, as `transformers` does.

    It also ties one that is not stored, in families whose config never unties it there.
    """
    embedding, head = _ends(checkpoint)
    names, settled = set(checkpoint.names()), arch.settled(checkpoint.config)
    tied = "head" not in checkpoint.sources()
    if not tied and settled is not None and head not in names:
        note = f"tie_word_embeddings is false, and {head} is not stored: the embedding is used"
    elif tied and {embedding, head} <= names and not checkpoint.same(embedding, head):
        note = f"tie_word_embeddings is true, and {head} is stored with values of its own: those are used"
    else:
        return
    checkpoint.config = {**(settled or checkpoint.config), "tie_word_embeddings": not tied}
    checkpoint.notes += (f"{source}: {note}",)


def _ends(checkpoint: Checkpoint) -> tuple[str, str]:
    """The stored names of the embedding, and of the head where it is not tied; "" where a model has none of that."""
    every = checkpoint.sources(tie_word_embeddings=False)
    embedding, head = (every[name].tensor if name in every else "" for name in ("embed", "head"))
    return embedding, head


def _announce_biases(checkpoint: Checkpoint, biases: dict[str, arch.Sources]) -> None:
    """Takes biases that are stored though the config does not announce them; where some are missing they are zero."""
    present = set(checkpoint.names())
    for key, sources in biases.items():
        stored = [source.tensor for source in sources.values() if source.tensor in present]
        if not stored or checkpoint.config.get(key) is True:
            continue
        checkpoint.config[key] = True
        for source in sources.values():
            if source.tensor not in present:
                checkpoint.add_zeros(source.tensor, source.shape[0])
        checkpoint.notes += (
            f"{checkpoint.path}: the config does not announce {stored[0]} ({len(stored)} such biases): they are used",
        )


def _refuse_unused(checkpoint: Checkpoint, names: set[str], encoder: bool) -> None:
    """Refuses a tensor that the model has no use for, unless it is a buffer, or the embedding once more.

    What an encoder was trained with, and was made for a task with, is told, and what a model has beside its text.
    """
    others = {prefix: [name for name in names if name.startswith(prefix)] for prefix in arch.beside(checkpoint.config)}
    for found in others.values():
        names -= set(found)
        for name in found:
            if isinstance(checkpoint, FolderCheckpoint) and checkpoint.dtype(name) not in _FLOATS:
                checkpoint.leave_out(name)
    if there := [prefix.rstrip(".") for prefix, found in others.items() if found]:
        checkpoint.notes += (f"{checkpoint.path}: the text of the model alone, without {', '.join(there)}",)
    head = "" if "head" in checkpoint.sources() else _ends(checkpoint)[1]
    tasks = set()
    for name in sorted(names):
        mask = _MASK.search(name) and len(checkpoint.shape(name)) in (0, 4)
        if encoder and (task := _TASK.match(name)):
            tasks.add(task[0].rstrip("."))
        elif not (mask or name == head or _BUFFER.search(name) or _embeds(checkpoint, name)):
            raise GossamerError(f"{checkpoint.path}: tensor {name} has no place in the model that the config describes")
        elif isinstance(checkpoint, FolderCheckpoint) and checkpoint.dtype(name) not in _FLOATS:
            checkpoint.leave_out(name)
    if tasks:
        checkpoint.notes += (
            f"{checkpoint.path}: states are what an encoder gives, without {', '.join(sorted(tasks))}",
        )


def _embeds(checkpoint: Checkpoint, name: str) -> bool:
    """Whether a tensor is the embedding once more, as an encoder or a decoder calls it."""
    embedding = _ends(checkpoint)[0]
    return bool(embedding) and name.endswith("embed_tokens.weight") and checkpoint.same(embedding, name)


def _refuse_compressed(checkpoint: Checkpoint) -> None:
    """Says more of a part that no codec took than that the model has no use for it."""
    for name in checkpoint.names():
        kind = _COMPRESSED.get(name.rpartition(".")[2])
        if kind:
            raise GossamerError(
                f"{checkpoint.path}: tensor {name} is a part of what {kind} stores, and the rest is missing"
            )
