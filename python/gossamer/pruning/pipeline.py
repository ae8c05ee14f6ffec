"""From a checkpoint to a pruned checkpoint: reading, calibration, the walk through the blocks, writing."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..calibration import LENGTH, WINDOWS, read_text, sampled_windows, text_windows, window_length
from ..errors import GossamerError
from ..folders import check_destination, new_folder
from ..formats import STORED, check_group
from ..hub import shown_name
from ..low_rank import LowRank, write_low_rank
from ..progress import Progress
from .allocation import ALLOCATIONS, Size, by_divergence, by_outliers, uniform
from .masks import Target
from .sensitivity import Probe
from .sequential import GROUPS, prune_blocks
from .solvers import CALIBRATED, DEFAULT_METHOD, METHODS, Int4, Matrix, Method, magnitude, rounded

if TYPE_CHECKING:
    from .. import _core
    from ..checkpoint import Checkpoint
    from ..config import DecoderConfig

_REPORT_FILE = "gossamer_prune.json"
_F16_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Report:
    """What a run of `prune` did; `gossamer_prune.json` in the result holds the same fields.

    Attributes:
        source: Name of the checkpoint that was pruned.
        method: One of `METHODS`.
        sparsity: Fraction of zeros asked for, over all pruned matrices.
        pattern: (N, M) where that was asked for.
        allocation: How it was divided among them; one of `ALLOCATIONS`.
        weights: "stored", or "int4" where what stays was rounded in the same sweep.
        group: Inputs that share a scale of int4 values.
        rank: Of the low-rank branches; 0 for none.
        calibration: Where the calibration windows come from; empty for a method that needs none.
        windows: Calibration windows used.
        length: Tokens of each.
        seed: Of the windows' places or samples.
        reached: Fraction of zeros over all pruned matrices.
        layers: Fraction of zeros of each pruned matrix, by its name in the checkpoint.
        seconds: Wall-clock time.
    """

    source: str
    method: str
    sparsity: float
    pattern: tuple[int, int] | None
    allocation: str
    weights: str
    group: int
    rank: int
    calibration: str
    windows: int
    length: int
    seed: int
    reached: float
    layers: dict[str, float]
    seconds: float


def prune(
    src: str | Path,
    dst: str | Path,
    *,
    method: str = DEFAULT_METHOD,
    sparsity: float | None = None,
    pattern: tuple[int, int] | None = None,
    allocation: str | None = None,
    weights: str = STORED,
    group: int = 64,
    rank: int = 0,
    calibration: str | Path | None = None,
    windows: int = WINDOWS,
    length: int | None = None,
    seed: int = 0,
    threads: int = 0,
    force: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Prunes the linears of every block of a checkpoint; embeddings, head and norms stay as they are.

    The result is an ordinary Hugging Face checkpoint with exact zeros, every tensor of the type that it had; those of
    a quantized source become float32, so that the unpruned ones lose nothing, and so do rounded ones. What is zero in
    the source stays zero, and counts: `sparsity=0` with `weights="int4"` rounds a model that is pruned already.

    Args:
        src: A Hugging Face checkpoint folder or a GGUF file.
        dst: Folder to write; must not exist yet, or be empty.
        method: "admm", "sparsegpt", "wanda" or "magnitude".
        sparsity: Fraction of zeros over all matrices, at least 0 and below 1.
        pattern: (N, M): keep N of every M consecutive inputs, instead of `sparsity`.
        allocation: How `sparsity` is divided among the matrices: "uniform", "owl" (by outliers, Yin et al. 2023) or
            "divergence" (by what predictions lose when a part alone is pruned). By default "divergence" where the
            method is calibrated and no pattern is given, otherwise "uniform".
        weights: "int4" also rounds what stays to values that `convert` stores as int4 with the same `group` exactly,
            layer by layer with the pruning, which loses far less than rounding afterwards; not for "magnitude".
        group: Inputs that share a scale of int4 values: 32, 64 or 128; 0 is a whole row.
        rank: Gives every matrix a low-rank branch of this rank, y = W x + U (V x), fitted together with the zeros; it
            lies in the folder `low_rank` as an adapter. For methods that are calibrated.
        calibration: A UTF-8 text file, or a folder of them; by default the model writes its own calibration text.
        windows: Calibration windows.
        length: Tokens of each; None takes 512, or the model's context where that is shorter.
        seed: Of the places of the windows in the text, or of the samples.
        threads: Threads of the engine; 0 chooses.
        force: Replaces a model that lies at `dst`.
        progress: Called with (done, total, what).

    Returns:
        What was done.

    Raises:
        GossamerError: an option, the source, the calibration text or a tensor is not usable, or `dst` cannot be
            written. Nothing is left behind then.
    """
    from ..arch import family
    from ..checkpoint import open_checkpoint, refuse_low_rank, refuse_unwritable

    started = time.perf_counter()
    target = Target.parse(sparsity, pattern)
    report = progress or (lambda *_: None)
    if method not in METHODS:
        raise GossamerError(f"unknown pruning method {method!r}; there are {', '.join(METHODS)}")
    if weights not in (STORED, "int4"):
        raise GossamerError(f"weights must be {STORED} or int4, got {weights!r}")
    if weights == "int4" and method not in CALIBRATED:
        raise GossamerError(f"method {method} cannot round to int4; {', '.join(CALIBRATED)} can")
    if rank < 0 or (rank and method not in CALIBRATED):
        raise GossamerError(f"rank {rank} cannot be had with method {method}: give 0, or a method that is calibrated")
    allocation = _allocation(allocation, method, target)
    check_group(group)
    if windows < 1 or (length is not None and length < 1):
        raise GossamerError(f"calibration needs at least 1 window of 1 token, got {windows} of {length}")
    folder = Path(dst)
    reads = [Path(src), *([] if calibration is None else [Path(calibration)])]
    check_destination(folder, force=force, reads=reads)
    source = open_checkpoint(Path(src))
    refuse_low_rank(source, "pruned")
    refuse_unwritable(source)
    fam = family(source.config)
    config = fam.decoder_config(source.config)
    tensors = fam.tensors(source.config)
    names = {name: tensors[name][0] for name in _linears(config)}
    for stored, shape in (tensors[name] for name in names):
        if rank > min(shape):
            raise GossamerError(f"{source.path}: tensor {stored} is {list(shape)}: a rank of {rank} is beyond that")
    tokens: NDArray[np.int32] | None = None
    branches: dict[str, LowRank] = {}
    origin = ""
    if length is not None:
        window_length(length, LENGTH, config.context)  # whatever the method
    if method in CALIBRATED:
        length = window_length(length, LENGTH, config.context)
        if calibration is not None:
            # Before the weights are read, so that a bad text is told at once.
            origin = Path(calibration).name
            text = read_text(calibration)
            tokens = text_windows(
                text, source.tokenizer(), windows=windows, length=length, seed=seed, source=str(calibration)
            )
        decoder, sizes = _decoder(source, config, tensors, threads)
        if tokens is None:
            origin = "the dense model's own samples"
            tokens = sampled_windows(
                decoder, source.tokenizer(), windows=windows, length=length, seed=seed, progress=report
            )
        solver = CALIBRATED[method]
        if weights == "int4":
            solver = rounded(solver, Int4(group))
        dtype = "f32" if weights == "int4" else None
        pruned, branches = _calibrated(
            decoder,
            source,
            config,
            names,
            dtype,
            tokens,
            solver,
            target,
            allocation,
            {name: sizes[name] for name in names},
            rank,
            report,
        )
    else:
        pruned = {name: _packed(source, names[name], magnitude(source.finite(names[name]), target)) for name in names}

    reached = {names[name]: Size(w.rows * w.cols, w.rows * w.cols - w.nnz) for name, w in pruned.items()}
    result = Report(
        source=shown_name(src),
        method=method,
        sparsity=target.sparsity,
        pattern=target.pattern,
        allocation=allocation,
        weights=weights,
        group=group if weights == "int4" else 0,
        rank=rank,
        calibration=origin,
        windows=0 if tokens is None else tokens.shape[0],
        length=0 if tokens is None else tokens.shape[1],
        seed=seed,
        reached=sum(size.zeros for size in reached.values()) / sum(size.entries for size in reached.values()),
        layers={name: size.zeros / size.entries for name, size in reached.items()},
        seconds=time.perf_counter() - started,
    )
    report(0, 1, "writing the checkpoint")
    _write(
        folder,
        source,
        {names[name]: weight for name, weight in pruned.items()},
        {names[name]: branch for name, branch in branches.items()},
        result,
        force,
        reads,
    )
    report(1, 1, "writing the checkpoint")
    return result


def _allocation(allocation: str | None, method: str, target: Target) -> str:
    """Returns the way to divide the zeros, checked against what else is asked for."""
    if allocation is None:
        measured = method in CALIBRATED and not target.pattern and target.sparsity > 0
        return "divergence" if measured else "uniform"
    if allocation not in ALLOCATIONS:
        raise GossamerError(f"unknown allocation {allocation!r}; there are {', '.join(ALLOCATIONS)}")
    if allocation != "uniform" and target.pattern:
        raise GossamerError(f"an N:M pattern leaves every matrix the same zeros: allocation {allocation} cannot be had")
    if allocation != "uniform" and method not in CALIBRATED:
        raise GossamerError(f"method {method} measures nothing: allocation {allocation} cannot be had")
    return allocation


def _linears(config: DecoderConfig) -> list[str]:
    return [f"layers.{layer}.{linear}" for layer in range(config.layers) for group in GROUPS for linear in group]


def _stored_type(source: Checkpoint, name: str) -> str:
    """The value type that a tensor has in the result."""
    dtype = source.dtype(name)
    return dtype if dtype in ("f32", "f16", "bf16") else "f32"


def _packed(source: Checkpoint, name: str, values: Matrix, dtype: str | None = None) -> _core.Weight:
    from .. import _core

    dtype = dtype or _stored_type(source, name)
    if dtype == "f16" and np.abs(values).max(initial=0.0) > _F16_MAX:
        raise GossamerError(f"{source.path}: tensor {name} no longer fits f16 after pruning")
    return _core.pack(values, "dense", dtype)


def _decoder(
    source: Checkpoint, config: DecoderConfig, tensors: dict[str, tuple[str, tuple[int, ...]]], threads: int
) -> tuple[_core.Decoder, dict[str, Size]]:
    """The dense model to measure on, and what its matrices have.

    Its weights are bf16 whatever is stored, and so are the inputs of its linears: a thousandth of noise in what is
    measured, for half the time and half the memory of float32.
    """
    from .. import _core

    weights: dict[str, _core.Weight] = {}
    vectors: dict[str, NDArray[np.float32]] = {}
    sizes: dict[str, Size] = {}
    for name, (stored, shape) in tensors.items():
        values = source.finite(stored)
        if len(shape) == 2:
            weights[name] = _measured(values)
            sizes[name] = _size(values)
        else:
            vectors[name] = values
    return _core.Decoder(config.to_dict(), weights, vectors, threads=threads, activations="bf16"), sizes


def _measured(values: Matrix) -> _core.Weight:
    """A matrix as the model that is measured on has it."""
    from .. import _core

    return _core.pack(values, "dense", "bf16")


def _size(values: Matrix) -> Size:
    return Size(values.size, values.size - int(np.count_nonzero(values)))


def _calibrated(
    decoder: _core.Decoder,
    source: Checkpoint,
    config: DecoderConfig,
    names: dict[str, str],
    dtype: str | None,
    tokens: NDArray[np.int32],
    method: Method,
    target: Target,
    allocation: str,
    sizes: dict[str, Size],
    rank: int,
    progress: Progress,
) -> tuple[dict[str, _core.Weight], dict[str, LowRank]]:
    """Prunes block after block.

    Returns:
        The results by canonical name, packed as `dtype` or as in the source; and the low-rank branches.
    """
    pruned: dict[str, _core.Weight] = {}
    branches: dict[str, LowRank] = {}

    def read(name: str) -> Matrix:
        return source.finite(names[name])

    def put(name: str, values: Matrix) -> None:
        decoder.set_weight(name, _measured(values))

    if allocation == "uniform":
        targets = uniform(target, sizes)
    else:
        probe = Probe(decoder, config.layers, tokens, read)
        if allocation == "owl":
            targets = by_outliers(target, sizes, probe.outliers(progress))
        else:
            targets = by_divergence(target, sizes, probe.divergence(target, put, progress))

    def replace(name: str, values: Matrix, branch: LowRank | None) -> Matrix:
        pruned[name] = _packed(source, names[name], values, dtype)
        whole: Matrix = pruned[name].unpack()
        if branch is not None:
            branches[name] = branch
            whole += branch.u @ branch.v
        put(name, whole)
        return whole

    prune_blocks(
        decoder,
        config.layers,
        tokens,
        method,
        targets,
        read,
        replace,
        progress,
        rank,
    )
    return pruned, branches


def _write(
    folder: Path,
    source: Checkpoint,
    pruned: dict[str, _core.Weight],
    branches: dict[str, LowRank],
    result: Report,
    force: bool,
    reads: list[Path],
) -> None:
    """Writes the checkpoint beside its place, with the report in it, and renames it."""
    from ..checkpoint import write_checkpoint

    def tensors() -> Iterator[tuple[str, Matrix, str]]:
        for name in source.names():
            if name in pruned:
                yield name, pruned[name].unpack(), pruned[name].type
            else:
                yield name, source.tensor(name), _stored_type(source, name)

    with new_folder(folder, force=force, reads=reads) as part:
        write_checkpoint(part, source.config, tensors(), source)
        if branches:
            write_low_rank(part, branches)
        (part / _REPORT_FILE).write_text(json.dumps(_json_ready(result), indent=2) + "\n", encoding="utf-8")


def _json_ready(result: Report) -> dict[str, Any]:
    values = asdict(result)
    values["pattern"] = None if result.pattern is None else "{}:{}".format(*result.pattern)
    return values
