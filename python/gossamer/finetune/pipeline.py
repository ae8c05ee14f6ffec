"""From a pruned checkpoint and its dense teacher to a finetuned checkpoint."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..checkpoints import open_checkpoint, refuse_branches, refuse_unwritable
from ..errors import GossamerError, one_line
from ..folders import check_destination, new_folder, shown_name
from ..formats import STORED
from ..machine.threads import usable_threads
from ..nn import decoder as torch_decoder
from ..nn.device import find_device
from ..progress import Progress
from ..runs import stamps
from ..text.calibration import window_length
from .allocator import kept_blocks
from .batches import Source
from .data import prepare
from .options import LENGTH, SOLVED, Options
from .pair_data import prepare_pairs
from .samples import fingerprint
from .state import training_folder
from .task_data import TaskFiles, prepare_task
from .trainer import Trainer

if TYPE_CHECKING:
    from ..arch.spec import Transformer
    from ..checkpoints import Checkpoint

REPORT_FILE = "gossamer_finetune.json"


@dataclass(frozen=True)
class Report:
    """What a run of `finetune` did; `gossamer_finetune.json` in the result holds the same fields.

    Attributes:
        student: Name of the pruned checkpoint.
        teacher: Name of the dense one.
        data: Names of the texts and samples.
        options: All options.
        device: What it ran on.
        tokens: Tokens trained on.
        data_tokens: Tokens that there are to train on.
        steps: Optimizer steps.
        seconds: Time trained.
        zeros: Fraction of zeros over the matrices of the blocks.
        curve: Losses and perplexity on the documents set aside: step, tokens, seconds, ce, squarehead, kl, perplexity.
        log: Every step: loss and its parts, norm of the gradient, learning rate, tokens, seconds.
    """

    student: str
    teacher: str
    data: list[str]
    options: dict[str, Any]
    device: str
    tokens: int
    data_tokens: int
    steps: int
    seconds: float
    zeros: float
    curve: list[dict[str, float]]
    log: list[dict[str, float]]


def finetune(
    student: str | Path,
    dst: str | Path,
    *,
    teacher: str | Path,
    data: Sequence[str | Path] | TaskFiles,
    options: Options | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Trains a pruned checkpoint to do what its dense teacher does; zeros stay exactly zero.

    It is sparse finetuning with SquareHead distillation (Kurtic et al. 2023). The result is an ordinary Hugging Face
    checkpoint, every tensor of the type that the student's has; those of a quantized source and rounded ones become
    float32. While it runs its state is kept in `DST.training` beside `dst`, and the same call goes on from there after
    a stop of any kind: on the CPU with the same weights in the end, bit for bit, as without the stop.

    Args:
        student: The pruned checkpoint: a Hugging Face folder or a GGUF file.
        dst: Folder to write; must not exist yet, or be empty.
        teacher: The dense checkpoint.
        data: UTF-8 text files, folders of them, and folders of samples; or the files of a task, of whose samples the
            completions alone count.
        options: How to train.
        force: Replaces a model that lies at `dst`, when the training has ended.
        progress: Called with (done, total, what).

    Returns:
        What was done.

    Raises:
        GossamerError: an option, a checkpoint or the data is not usable, student and teacher do not fit together, a
            loss is not finite, memory is short, or a file cannot be written. A state that was saved stays.
    """
    options = options or Options()
    report = progress or (lambda *_: None)
    folder = Path(dst)
    paths = data.paths if isinstance(data, TaskFiles) else [Path(path) for path in data]
    reads = [Path(student), Path(teacher), *paths]
    check_destination(folder, force=force, reads=reads)
    if not paths:
        raise GossamerError("finetuning needs data: text files, folders of them, or samples of the teacher")
    source, dense = open_checkpoint(student), open_checkpoint(teacher)
    for checkpoint, role in ((source, "finetuned"), (dense, "a teacher")):
        refuse_branches(checkpoint, role)
    refuse_unwritable(source)
    model = _check_pair(source, dense, options)
    options = _fitted(options, model, source, data)
    device = find_device(options.device)
    settings = {
        "student": one_line(str(Path(student).resolve())),
        "teacher": one_line(str(Path(teacher).resolve())),
        "data": [one_line(str(path.resolve())) for path in paths],
        **({"held_out": data.held_out} if isinstance(data, TaskFiles) and isinstance(data.held_out, float) else {}),
        **options.pinned(),
        **stamps([Path(student), Path(teacher)]),
    }
    with _threads(options.threads), kept_blocks(), training_folder(folder, settings) as work:
        windows = _read(data, source, options, model, work, report)
        options = replace(options, length=windows.length)
        total = options.tokens
        if not total and not options.budget_minutes:
            total = windows.windows * options.length
        report(0, 1, "reading the models")
        with _memory():
            decoder = torch_decoder.load(source).to(device)
            # Where the loss has no part for a teacher, nobody asks it.
            asked = options.loss.squarehead or options.loss.kl
            taught = _teacher(dense, options).to(device) if asked else decoder
            trainer = Trainer(decoder, taught, windows, options, work, total)
            trainer.train(report)
        report(0, 1, "writing the checkpoint")
        result = _told(trainer, student, teacher, paths, device)
        with new_folder(folder, force=force, reads=reads) as part:
            _write(part, trainer, source, result)
        report(1, 1, "writing the checkpoint")
    return result


def _fitted(
    options: Options, model: Transformer, source: Checkpoint, data: Sequence[str | Path] | TaskFiles
) -> Options:
    """Returns the options with a length that fits the models.

    Raises:
        GossamerError: it does not, or the model learns from other data.
    """
    if model.encoder is not None and not isinstance(data, TaskFiles):
        raise GossamerError(f"{source.path}: has an encoder, and learns from a task of pairs, not from texts")
    if not isinstance(data, TaskFiles):
        return replace(options, length=window_length(options.length or None, LENGTH, model.context))
    if options.length > model.context and model.encoder is None:
        raise GossamerError(f"length {options.length} is more than the models' context of {model.context} tokens")
    return options


def _told(
    trainer: Trainer, student: str | Path, teacher: str | Path, paths: Sequence[Path], device: torch.device
) -> Report:
    """What a training did."""
    return Report(
        student=shown_name(student),
        teacher=shown_name(teacher),
        data=[one_line(path.name) for path in paths],
        options=asdict(trainer.options),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        tokens=trainer.tokens,
        data_tokens=len(trainer.data.train),
        steps=trainer.steps,
        seconds=round(trainer.seconds, 1),
        zeros=trainer.masks.zeros,
        curve=trainer.curve,
        log=trainer.log,
    )


def _read(
    data: Sequence[str | Path] | TaskFiles,
    source: Checkpoint,
    options: Options,
    model: Transformer,
    work: Path,
    report: Progress,
) -> Source:
    """The data as windows of tokens."""
    if isinstance(data, TaskFiles) and model.encoder is not None:
        choice = {"length": options.length, "default": LENGTH, "seed": options.seed}
        return prepare_pairs(data, source.tokenizer(), model, **choice, progress=report)
    if isinstance(data, TaskFiles):
        return prepare_task(
            data,
            source.tokenizer(),
            length=options.length,
            context=model.context,
            default=LENGTH,
            seed=options.seed,
            progress=report,
        )
    return prepare(
        data,
        source.tokenizer(),
        work,
        length=options.length,
        seed=options.seed,
        validation=options.validation,
        progress=report,
    )


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Has torch use `count` threads within, unless it is 0, and as many as before behind."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(usable_threads(count))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _memory() -> Iterator[None]:
    """Says in one line that there is too little memory, and what takes less."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.cuda.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        raise GossamerError(
            "out of memory: a smaller batch (with more to accumulate), a smaller length, or recompute takes less"
        ) from None


def _check_pair(student: Checkpoint, teacher: Checkpoint, options: Options) -> Transformer:
    """Returns the student's description, with the tokens that both hold.

    Raises:
        GossamerError: the teacher cannot teach this student.
    """
    from ..arch import family

    one, two = (family(checkpoint.config).describe(checkpoint.config) for checkpoint in (student, teacher))
    for checkpoint, described in ((student, one), (teacher, two)):
        if described.head is None:
            raise GossamerError(f"{checkpoint.path}: is an encoder alone, and cannot be finetuned")
    where = f"{student.path} cannot learn from {teacher.path}: "
    if (one.encoder is None) != (two.encoder is None):
        raise GossamerError(f"{where}one of them has an encoder, the other has none")
    if one.encoder and two.encoder and options.loss.squarehead and one.encoder.layers != two.encoder.layers:
        raise GossamerError(
            f"{where}layers of the encoder are {one.encoder.layers} in the student and {two.encoder.layers} in the "
            "teacher"
        )
    if one.encoder and options.scores in SOLVED:
        raise GossamerError(f"{student.path}: scores {options.scores} are for models without an encoder")
    for what, needed in (
        ("hidden", options.loss.squarehead),
        ("layers", options.loss.squarehead),
        ("vocab", options.loss.kl),
    ):
        ours, theirs = getattr(one, what), getattr(two, what)
        if needed and ours != theirs:
            raise GossamerError(f"{where}{what} is {ours} in the student and {theirs} in the teacher")
    if fingerprint(student.tokenizer()) != fingerprint(teacher.tokenizer()):
        raise GossamerError(f"{where}their tokenizers differ")
    return replace(one, context=min(one.context, two.context))


def _teacher(checkpoint: Checkpoint, options: Options) -> torch_decoder.Decoder:
    """The teacher, with the weights of its linears in the type that they are multiplied in."""
    teacher = torch_decoder.load(checkpoint).requires_grad_(False).eval()
    if options.precision == "bf16":
        for module in teacher.modules():
            if isinstance(module, torch.nn.Linear):
                module.to(torch.bfloat16)
    return teacher


def _write(folder: Path, trainer: Trainer, source: Checkpoint, result: Report) -> None:
    """Writes the checkpoint, with the report in it."""
    dtype = "f32" if trainer.options.weights != STORED else ""
    torch_decoder.save(trainer.student, folder, source, dtype)
    (folder / REPORT_FILE).write_text(json.dumps(asdict(result), indent=1) + "\n", encoding="utf-8")
