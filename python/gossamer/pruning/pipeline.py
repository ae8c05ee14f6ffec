"""From a checkpoint to a pruned checkpoint: reading, calibration, the walk through the blocks, writing."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import arch
from ..checkpoints.lora import LowRank
from ..checkpoints.low_rank import write_low_rank
from ..errors import GossamerError
from ..folders import check_destination, new_folder, shown_name
from ..formats import STORED
from ..generation.windows import sampled_windows
from ..progress import Progress
from ..runs import run_folder, stamps
from ..text.calibration import LENGTH, read_text, text_windows, window_length
from .allocation import Size
from .calibrated import Calibrated, packed
from .masks import Form, Target
from .methods import CALIBRATED
from .methods.magnitude import magnitude
from .options import CALIBRATING, PruneOptions, read_zeros
from .pairs import read_pairs, texts_of
from .result import REPORT_FILE, PrunedCheckpoint, Report
from .store import STATE, FolderStore, Store
from .walk import Texts, chunked

if TYPE_CHECKING:
    from .. import _core
    from ..arch import Sources
    from ..arch.spec import Transformer
    from ..checkpoints import Checkpoint

_log = logging.getLogger("gossamer")


def prune(
    src: str | Path,
    dst: str | Path,
    options: PruneOptions | None = None,
    *,
    force: bool = False,
    progress: Progress | None = None,
    **keywords: Any,
) -> Report:
    """Prunes the linears of every block of a checkpoint; embeddings, head and norms stay as they are.

    The result is an ordinary Hugging Face checkpoint with exact zeros, every tensor of the type that it had; those of
    a quantized source become float32, so that the unpruned ones lose nothing, and so do rounded ones. What is zero in
    the source stays zero, and counts: `sparsity=0` with `weights="int4"` rounds a model that is pruned already.

    Memory holds one block at a time. What is made lies in a folder beside `dst`, DST.pruning, until all of it is there;
    a run that was stopped goes on from it, and its result is the one that it would have had.

    Args:
        src: A Hugging Face checkpoint folder or a GGUF file.
        dst: Folder to write; must not exist yet, or be empty.
        options: What is to be done; or its attributes one by one as keywords, as in `sparsity=0.5, pattern=(2, 4)`.
        force: Replaces a model that lies at `dst`.
        progress: Called with (done, total, what).
        **keywords: Attributes of `PruneOptions`.

    Returns:
        What was done.

    Raises:
        GossamerError: an option, the source, the calibration text or a tensor is not usable, or `dst` cannot be
            written. Nothing is left behind then but what a run can go on from.
    """
    from ..checkpoints import open_checkpoint, write_checkpoint

    if options is not None and keywords:
        raise TypeError(f"{next(iter(keywords))} is given beside options, which would have it")
    options = options or PruneOptions(**keywords)
    report = progress or (lambda *_: None)
    folder = Path(dst)
    reads = [Path(each) for each in (src, options.calibration, options.zeros) if each is not None]
    check_destination(folder, force=force, reads=reads)
    source = open_checkpoint(Path(src))
    with run_folder(folder, "pruning", "another process prunes here", STATE, _settings(options, reads)) as state:
        store = FolderStore(state)
        pruned = prune_checkpoint(source, options, report, store)
        report(0, 1, "writing the checkpoint")
        with new_folder(folder, force=force, reads=reads) as part:
            write_checkpoint(part, pruned.config, _one_by_one(pruned, store), source)
            if pruned.low_rank:
                write_low_rank(part, pruned.low_rank)
            pruned.report.write(part / REPORT_FILE)
    report(1, 1, "writing the checkpoint")
    return pruned.report


def _one_by_one(pruned: PrunedCheckpoint, store: Store) -> Iterator[tuple[str, NDArray[np.float32], str]]:
    """The tensors to write, none of which stays in memory."""
    for name in pruned.names():
        store.give_back()  # what was read last, or counted
        yield name, pruned.tensor(name), pruned.dtype(name)


def _settings(options: PruneOptions, reads: list[Path]) -> dict[str, Any]:
    """What must be the same for a run to go on: what is asked for, and the files that are read."""
    asked = {key: str(value) for key, value in asdict(options).items() if key != "threads"}
    texts = [] if options.calibration is None else sorted(Path(options.calibration).rglob("*"))  # in folders, too
    return asked | stamps([*reads, *texts])


def _without_logits(source: Checkpoint, options: PruneOptions) -> PruneOptions:
    """Returns the options for an encoder alone, which writes no text, and whose predictions cannot diverge."""
    if options.method in CALIBRATED and options.calibration is None:
        raise GossamerError(f"{source.path}: an encoder writes no text of its own: a calibration text is needed")
    if options.allocation is None and not options.bits:
        return replace(options, allocation="uniform")
    if options.way == "divergence":
        raise GossamerError(f"{source.path}: an encoder predicts no tokens: allocation divergence cannot be had")
    return options


def _given_texts(
    source: Checkpoint, config: Transformer, options: PruneOptions, progress: Progress
) -> list[Texts] | None:
    """The texts or pairs to calibrate on that are given; None where the model is to write some."""
    path, tokenizer = options.calibration, source.tokenizer()
    if config.encoder is not None and path is None:
        raise GossamerError(
            f"{source.path}: a decoder that reads an encoder writes about what is given: a calibration file of pairs "
            "is needed, or method magnitude"
        )
    if path is None:
        return None
    if config.encoder is not None:
        choice = {"windows": options.windows, "length": options.length or LENGTH, "seed": options.seed}
        return texts_of(read_pairs(path, tokenizer, config, **choice), progress)
    length = window_length(options.length, LENGTH, config.context)
    text, windows = read_text(path), options.windows
    return chunked(text_windows(text, tokenizer, windows=windows, length=length, seed=options.seed, source=str(path)))


def _sampled(
    work: Calibrated, source: Checkpoint, config: Transformer, options: PruneOptions, progress: Progress, store: Store
) -> NDArray[np.int32]:
    """Windows that the dense model writes, or has written before a stop."""
    kept = store.array("tokens")
    if kept is not None:
        return kept
    length = window_length(options.length, LENGTH, config.context)
    tokens = sampled_windows(
        work.decoder,
        source.tokenizer(),
        windows=options.windows,
        length=length,
        seed=options.seed,
        progress=progress,
    )
    store.keep("tokens", tokens)
    return tokens


@dataclass(frozen=True)
class _Calibration:
    """What a report says of the texts that a checkpoint was calibrated on; fields as of `Report`."""

    calibration: str = ""
    windows: int = 0
    length: int = 0
    pairs: int = 0

    @classmethod
    def of(cls, texts: Sequence[Texts], origin: str, config: Transformer) -> _Calibration:
        """Counts texts, which came from somewhere."""
        count = sum(len(each.tokens) for each in texts)
        if config.encoder is not None:
            return cls(origin, pairs=count)
        return cls(origin, windows=count, length=texts[0].tokens.shape[1])


def _check_rank(source: Checkpoint, config: Transformer, sources: Sources, rank: int) -> None:
    """Refuses a low-rank branch of a rank that a matrix has not, or of a matrix that cannot have one."""
    for name, linear in config.linears.items() if rank else ():
        stored = sources[name]
        if rank > min(linear.rows, linear.cols):
            size = [linear.rows, linear.cols]
            label = arch.label(name, sources)
            raise GossamerError(f"{source.path}: tensor {label} is {size}: a rank of {rank} is beyond that")
        if not stored.whole:
            raise GossamerError(
                f"{source.path}: tensor {stored.tensor} holds more than one matrix, and no low-rank branch"
            )


def _targets(options: PruneOptions, names: dict[str, str], config: Transformer) -> tuple[Target, dict[str, Target]]:
    """The zeros of all matrices together, and of each by canonical name where another run's report says them."""
    if options.bits:
        return Target(0.0), {}  # what is searched for
    if options.zeros is None:
        return Target.parse(options.sparsity, options.pattern), {}
    zeros = read_zeros(options.zeros, list(names.values()))
    given = {name: zeros[stored] for name, stored in names.items()}
    entries = {name: linear.rows * linear.cols for name, linear in config.linears.items()}
    return Target(sum(given[name].sparsity * entries[name] for name in names) / sum(entries.values())), given


def _by_size(
    source: Checkpoint, sources: Sources, targets: dict[str, Target], options: PruneOptions, store: Store
) -> dict[str, _core.Weight]:
    """Matrices pruned by magnitude, by canonical name; what reads a text and was asked for is told."""
    if unread := [name for name in CALIBRATING if getattr(options, name) != getattr(PruneOptions, name)]:
        said = "%s: method %s reads no text, so that this does nothing"
        _log.warning(said, ", ".join(unread), options.method)
    found = {}
    for name, target in targets.items():
        values = magnitude(source.read(sources[name], finite=True), target)
        found[name] = store.keep_weight(f"pruned.{name}", packed(source, sources[name], values))
    return found


def prune_checkpoint(
    source: Checkpoint, options: PruneOptions, progress: Progress | None = None, store: Store | None = None
) -> PrunedCheckpoint:
    """Prunes a checkpoint, by default in memory.

    Args:
        source: The checkpoint.
        options: What is to be done.
        progress: Called with (done, total, what).
        store: Where what is made is kept, as long as the result is used.

    Raises:
        GossamerError: the source, the calibration text or a tensor is not usable.
    """
    from ..checkpoints import refuse_branches, refuse_unwritable

    started = time.perf_counter()
    store = store or Store()
    report = progress or (lambda *_: None)
    refuse_branches(source, "pruned")
    refuse_unwritable(source)
    config = arch.family(source.config).describe(source.config)
    if config.head is None:
        options = _without_logits(source, options)
    sources = source.sources()
    names = {name: arch.label(name, sources) for name in config.linears}
    _check_rank(source, config, sources, options.rank)
    target, given = _targets(options, names, config)

    used = _Calibration()
    branches: dict[str, LowRank] = {}
    few: dict[str, int] = {}
    forms: dict[str, Form] = {}
    if options.length is not None and config.encoder is None:
        window_length(options.length, LENGTH, config.context)  # whatever the method
    if options.method in CALIBRATED:
        # What is given is read before the weights, so that a bad text is told at once.
        texts = _given_texts(source, config, options, report)
        origin = "the dense model's own samples" if texts is None else Path(str(options.calibration)).name
        work = Calibrated(source, config, sources, options, store)
        if texts is None:
            texts = chunked(_sampled(work, source, config, options, report, store))
        used = _Calibration.of(texts, origin, config)
        work.prune(texts, given or target, report)
        pruned, branches, few = work.pruned, work.branches, work.few_tokens
        forms = {names[name]: form for name, form in work.forms.items()}
    else:
        pruned = _by_size(source, sources, {name: given.get(name, target) for name in names}, options, store)

    reached = {names[name]: Size(w.rows * w.cols, w.rows * w.cols - w.nnz) for name, w in pruned.items()}
    zeros = sum(size.zeros for size in reached.values()) / sum(size.entries for size in reached.values())
    searched = forms if options.bits else {}
    result = Report(
        source=shown_name(source.path),
        method=options.method,
        sparsity=zeros if options.bits else target.sparsity,
        pattern=target.pattern,
        allocation=options.way,
        weights=options.weights,
        group=0 if options.weights == STORED else options.group,
        rank=options.rank,
        bits=options.bits,
        types={name: "int8" if form.weights == STORED else form.weights for name, form in searched.items()},
        ranks={name: form.rank for name, form in searched.items()},
        **vars(used),
        seed=options.seed,
        reached=zeros,
        layers={name: size.zeros / size.entries for name, size in reached.items()},
        few_tokens={names[name]: seen for name, seen in few.items()},
        seconds=time.perf_counter() - started,
    )
    return PrunedCheckpoint(
        source,
        {sources[name]: weight for name, weight in pruned.items()},
        {sources[name].tensor: branch for name, branch in branches.items()},
        result,
    )
