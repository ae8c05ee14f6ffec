"""From a checkpoint to a pruned checkpoint: reading, calibration, the walk through the blocks, writing."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..checkpoints.lora import LowRank
from ..checkpoints.low_rank import write_low_rank
from ..errors import GossamerError
from ..folders import check_destination, new_folder, shown_name
from ..formats import STORED
from ..generation.windows import sampled_windows
from ..progress import Progress
from ..text.calibration import LENGTH, WINDOWS, read_text, text_windows, window_length
from .allocation import Size
from .calibrated import Calibrated, packed
from .masks import Target
from .methods import CALIBRATED, DEFAULT_METHOD
from .methods.magnitude import magnitude
from .options import Options, read_zeros
from .result import REPORT_FILE, PrunedCheckpoint, Report

if TYPE_CHECKING:
    from ..checkpoints import Checkpoint


def prune(
    src: str | Path,
    dst: str | Path,
    *,
    method: str = DEFAULT_METHOD,
    sparsity: float | None = None,
    pattern: tuple[int, int] | None = None,
    allocation: str | Path | None = None,
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
            "divergence" (by what predictions lose when a part alone is pruned); or the `gossamer_prune.json` of another
            run, which says the zeros of each in place of `sparsity`. By default "divergence" where the method is
            calibrated and no pattern is given, otherwise "uniform".
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
    from ..checkpoints import open_checkpoint, write_checkpoint

    options = Options(
        method, sparsity, pattern, allocation, weights, group, rank, calibration, windows, length, seed, threads
    )
    report = progress or (lambda *_: None)
    folder = Path(dst)
    reads = [Path(each) for each in (src, calibration, options.zeros) if each is not None]
    check_destination(folder, force=force, reads=reads)
    pruned = prune_checkpoint(open_checkpoint(Path(src)), options, report)
    report(0, 1, "writing the checkpoint")
    with new_folder(folder, force=force, reads=reads) as part:
        tensors = ((name, pruned.tensor(name), pruned.dtype(name)) for name in pruned.names())
        write_checkpoint(part, pruned.config, tensors, pruned)
        if pruned.low_rank:
            write_low_rank(part, pruned.low_rank)
        pruned.report.write(part / REPORT_FILE)
    report(1, 1, "writing the checkpoint")
    return pruned.report


def prune_checkpoint(source: Checkpoint, options: Options, progress: Progress | None = None) -> PrunedCheckpoint:
    """Prunes a checkpoint in memory.

    Args:
        source: The checkpoint.
        options: See `prune`.
        progress: Called with (done, total, what).

    Raises:
        GossamerError: the source, the calibration text or a tensor is not usable.
    """
    from .. import arch
    from ..checkpoints import refuse_branches, refuse_unwritable

    started = time.perf_counter()
    report = progress or (lambda *_: None)
    windows, length, seed, method = options.windows, options.length, options.seed, options.method
    refuse_branches(source, "pruned")
    refuse_unwritable(source)
    fam = arch.family(source.config)
    config = fam.describe(source.config)
    sources = source.sources()
    names = {name: arch.label(name, sources) for name in config.linears}
    for name, linear in config.linears.items():
        if options.rank > min(linear.rows, linear.cols):
            size = [linear.rows, linear.cols]
            raise GossamerError(
                f"{source.path}: tensor {names[name]} is {size}: a rank of {options.rank} is beyond that"
            )
        if options.rank and not sources[name].whole:
            raise GossamerError(
                f"{source.path}: tensor {sources[name].tensor} holds more than one matrix, and no low-rank branch"
            )
    given: dict[str, Target] | None = None
    if options.zeros is not None:
        zeros = read_zeros(options.zeros, list(names.values()))
        given = {name: zeros[stored] for name, stored in names.items()}
        entries = {name: linear.rows * linear.cols for name, linear in config.linears.items()}
        target = Target(sum(given[name].sparsity * entries[name] for name in names) / sum(entries.values()))
    else:
        target = Target.parse(options.sparsity, options.pattern)

    tokens: NDArray[np.int32] | None = None
    branches: dict[str, LowRank] = {}
    few: dict[str, int] = {}
    origin = ""
    if length is not None:
        window_length(length, LENGTH, config.context)  # whatever the method
    if method in CALIBRATED:
        length = window_length(length, LENGTH, config.context)
        if options.calibration is not None:
            # Before the weights are read, so that a bad text is told at once.
            origin = Path(options.calibration).name
            text = read_text(options.calibration)
            tokens = text_windows(
                text, source.tokenizer(), windows=windows, length=length, seed=seed, source=str(options.calibration)
            )
        work = Calibrated(source, config, sources, options)
        if tokens is None:
            origin = "the dense model's own samples"
            tokens = sampled_windows(
                work.decoder, source.tokenizer(), windows=windows, length=length, seed=seed, progress=report
            )
        work.prune(tokens, given or target, report)
        pruned, branches = work.pruned, work.branches
        few = work.few_tokens
    else:
        pruned = {
            name: packed(
                source,
                sources[name],
                magnitude(source.read(sources[name], finite=True), given[name] if given else target),
            )
            for name in names
        }

    reached = {names[name]: Size(w.rows * w.cols, w.rows * w.cols - w.nnz) for name, w in pruned.items()}
    result = Report(
        source=shown_name(source.path),
        method=method,
        sparsity=target.sparsity,
        pattern=target.pattern,
        allocation=options.way,
        weights=options.weights,
        group=options.group if options.weights == "int4" else 0,
        rank=options.rank,
        calibration=origin,
        windows=0 if tokens is None else tokens.shape[0],
        length=0 if tokens is None else tokens.shape[1],
        seed=seed,
        reached=sum(size.zeros for size in reached.values()) / sum(size.entries for size in reached.values()),
        layers={name: size.zeros / size.entries for name, size in reached.items()},
        few_tokens={names[name]: tokens for name, tokens in few.items()},
        seconds=time.perf_counter() - started,
    )
    return PrunedCheckpoint(
        source,
        {sources[name]: weight for name, weight in pruned.items()},
        {sources[name].tensor: branch for name, branch in branches.items()},
        result,
    )
