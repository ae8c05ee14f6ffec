"""`load`: from whatever names a model to a model that is ready to run."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import GossamerError, did_you_mean
from .folders import called, home
from .formats import KV_TYPES, TYPES
from .generation.model import Model
from .generation.ready import ready
from .kinds import whole_number
from .machine.threads import usable_threads
from .progress import Progress
from .text.generation_config import unheeded, unheeded_for_speech

if TYPE_CHECKING:
    from .packing.folder import PackedModel
    from .packing.planner import Machine

_log = logging.getLogger("gossamer")

DEFAULT_MODEL = "smollm2-135m-instruct"


def load(
    model: str | Path = DEFAULT_MODEL,
    *,
    revision: str | None = None,
    device: str = "cpu",
    threads: int = 0,
    kv: str = "f32",
    activations: str = "auto",
    weights: str | None = None,
    kv_limit: int = 0,
    progress: Progress | None = None,
) -> Model:
    """Opens a model.

    Args:
        model: A packed folder, a Hugging Face checkpoint folder, a GGUF file, the name of a built-in model, or a hub id
            (org/name or org/name@revision).
        revision: Branch, tag or commit of a hub id.
        device: "cpu" or "cuda", which needs a GPU and kernels for it; see docs/gpu.md.
        threads: Threads of the engine, at most one a processor; 0 chooses.
        kv: Type of cached keys and values: "f32", "f16", "bf16", "int8", or "auto": where inputs of linears are
            rounded to 8 bits anyway, bf16 if the processor multiplies pairs of it, otherwise f16 if a full context
            has more bytes than the weights; else f32. On a GPU they have that of the activations.
        activations: Type that inputs of linears are rounded to: "f32", "bf16", "a8", or "auto", the fastest. A GPU has
            bf16, and f16 where "auto" finds f16 values.
        weights: Type to pack a checkpoint's values with, in memory: one of f32, bf16, f16, int8, int4, or "auto"
            (int8); None keeps those of the checkpoint. Packed folders have theirs.
        kv_limit: Most bytes of cached keys and values, on the CPU; 0 for no limit. Where `Model.generate_batch` meets
            it, texts wait for one another.
        progress: Called with (done, total, what).

    Raises:
        GossamerError: the model or an option is not usable; the line names it.
    """
    for option, value, allowed in (
        ("device", device, ("cpu", "cuda")),
        ("kv", kv, KV_TYPES),
        ("activations", activations, ("auto", "f32", "bf16", "a8")),
        ("weights", weights, (None, "auto", *TYPES)),
    ):
        if value not in allowed:
            raise GossamerError(f"{option} must be one of {', '.join(map(str, allowed))}, got {value!r}")
    kv_limit = whole_number("kv_limit", kv_limit, 0)
    if kv_limit and device == "cuda":
        raise GossamerError("kv_limit is for the CPU: a GPU's caches have no limit but its memory")
    if kv == "int8" and device == "cuda":
        raise GossamerError("kv int8 is for the CPU: a GPU's keys and values have the type of its activations")
    threads = usable_threads(threads)
    if device == "cuda":
        from .gpu.cuda import check_available

        check_available()
        check_gpu_activations(activations)

    machine = None
    if device == "cuda":
        from .gpu.roofline import gpu_machine

        machine = gpu_machine()
    packed = open_packed(model, weights, machine, progress, revision)
    opened = ready(packed, device=device, threads=threads, kv=kv, activations=activations, kv_limit=kv_limit)
    _tell_unheeded(opened)
    return opened


def _tell_unheeded(model: Model) -> None:
    """Logs what the model's own options of generation ask for and do not get, so that other texts are no surprise.

    That includes where a text ends: a model may name no token that ends it.
    """
    generation = model.tokenizer.generation
    name = called(model.info)
    encoder = model.config.encoder
    speaks = encoder is not None and encoder.embedding.mel is not None
    if not speaks and model.config.head is not None and not model.tokenizer.eos_ids:
        _log.warning("%s: the model names no token that ends a text: it goes on to its limit", name)
    if asked := (unheeded_for_speech if speaks else unheeded)(generation, model.config.context):
        _log.warning("%s: the model asks for %s, which is not done here", name, ", ".join(asked))


def check_gpu_activations(activations: str) -> None:
    """Raises `GossamerError` where a GPU has no such activations."""
    if activations not in ("auto", "bf16"):
        raise GossamerError(f"activations must be auto or bf16 on a GPU, got {activations!r}")


def open_packed(
    model: str | Path,
    weights: str | None = None,
    machine: Machine | None = None,
    progress: Progress | None = None,
    revision: str | None = None,
) -> PackedModel:
    """Opens what names a model, packed as it is, or packed in memory.

    Args:
        model: As for `load`.
        weights: As for `load`.
        machine: What formats are chosen for; None takes the processor.
        progress: Called with (done, total, what).
        revision: As for `load`.

    Raises:
        GossamerError: the model is not usable, or is packed already and `weights` are given.
    """
    from .packing.folder import is_packed, read_packed
    from .packing.replan import tell

    path = locate(model, progress, revision)
    if is_packed(path):
        if weights is not None:
            raise GossamerError(f"{path}: is packed already; weights={weights} is for checkpoints")
        packed = read_packed(path)
        packed.info["path"] = str(path)
        if machine is None:
            tell(packed, progress)
    else:
        from .checkpoints import open_checkpoint
        from .formats import STORED
        from .packing.convert import pack_checkpoint

        packed = pack_checkpoint(open_checkpoint(path), weights=weights or STORED, machine=machine, progress=progress)
    packed.info["path"] = str(path)
    return packed


def locate(model: str | Path, progress: Progress | None = None, revision: str | None = None) -> Path:
    """Finds a model on disk, and fetches or makes it first where it is built in or on the hub.

    Args:
        model: As for `load`.
        progress: Called with (done, total, what).
        revision: As for `load`.

    Returns:
        A packed folder, a checkpoint folder or a GGUF file.

    Raises:
        GossamerError: there is no such model, it cannot be fetched, or a revision is given for what has none.
    """
    from .zoo import builtin, hub

    name = str(model)
    path = Path(model)
    with contextlib.suppress(RuntimeError):  # ~ of somebody unknown
        path = path.expanduser()
    found = bool(name) and path.exists()
    if revision is not None and (found or name in builtin.names()):
        kind = "lies on disk" if found else "is a built-in model"
        raise GossamerError(f"{name}: {kind} and has no revision {revision}; only models of the hub have some")
    if found:
        return path
    if name in builtin.names():
        return builtin.provide(name, progress)
    if isinstance(model, str) and (on_hub := hub.parse(name)):
        repo, own = on_hub
        if own and revision and own != revision:
            raise GossamerError(f"{name}: names one revision, and {revision} is asked for")
        return hub.fetch(repo, own or revision, home(), progress)
    known = builtin.names()
    raise GossamerError(
        f"{name}: no such file or folder, no built-in model ({', '.join(known)}), and no hub id (org/name)"
        f"{did_you_mean(name, known)}"
    )
