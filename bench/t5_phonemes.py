"""A T5 that spells out how words are spoken, with more and more of its weights zero.

    python bench/t5_phonemes.py WORK --dense-minutes 60 --minutes 15
    python bench/t5_phonemes.py WORK --dense-tokens 4000 --tokens 2000 --samples 400 --limit 20 --zeros 0 75

A T5 of 5 million weights is trained from nothing on the CMU pronouncing dictionary (bench/task_data.py has it and its
split), by cross entropy. For each share of zeros there are the cells of WAYS. Dense and sparse models are measured on
words that none was trained on, packed as int8: words that are not right as they stand, and edits a phoneme. Each cell
is a file in results/, `t5-phonemes-ZEROS-WAY-sSEED.json`; one that is there is left as it is, one that was stopped goes
on (Ctrl-C, kill). In the end the table of what there is by then is printed.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common import RESULTS, write_result
from task_data import write_splits

from gossamer import arch
from gossamer.checkpoints import open_checkpoint
from gossamer.cli.progress import progress
from gossamer.cli.task_rows import row
from gossamer.finetune import Options, Parts, finetune
from gossamer.finetune.task_data import TaskFiles
from gossamer.folders import write_file
from gossamer.packing.convert import pack_checkpoint
from gossamer.progress import Progress
from gossamer.pruning import prune
from gossamer.tables import table
from gossamer.text.tasks import read_task

WAYS = {
    "oneshot": "pruned on pairs, and nothing else",
    "encoder": "the same of the encoder alone",
    "decoder": "the same of the decoder alone",
    "ce": "trained further by cross entropy",
    "squarehead": "trained further by cross entropy and towards the dense model's states",
}
LOSSES = {"ce": Parts(1, 0, 0), "squarehead": Parts(1, 1, 0)}
SIZES = {"d_model": 256, "d_kv": 64, "num_heads": 4, "d_ff": 1024, "num_layers": 3, "num_decoder_layers": 3}
SPECIAL = ("<pad>", "</s>", "<unk>")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder that data and checkpoints are kept in")
    parser.add_argument("--zeros", type=int, nargs="+", default=[0, 50, 60, 70, 75, 80], metavar="PERCENT")
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=list(WAYS))
    parser.add_argument("--dense-minutes", type=float, default=60.0, help="of the dense model's training (%(default)g)")
    parser.add_argument("--dense-tokens", type=int, default=0, help="tokens instead")
    parser.add_argument("--minutes", type=float, default=15.0, help="of a cell's training (%(default)g)")
    parser.add_argument("--tokens", type=int, default=0, help="tokens instead")
    parser.add_argument("--dense-lr", type=float, default=1e-3)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--batch", type=int, default=8, help="windows of 256 tokens, some 25 words each (%(default)s)")
    parser.add_argument("--method", default="admm", help="of pruning (%(default)s)")
    parser.add_argument("--source", type=Path, help="the dictionary's package (fetched)")
    parser.add_argument("--samples", type=int, default=0, help="make only so many (all)")
    parser.add_argument("--limit", type=int, default=0, help="test words (all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    if not all(0 <= zeros < 100 for zeros in args.zeros):
        parser.error("--zeros: a percentage must be from 0 to 99")
    folder = args.work / "phonemes"
    if not (folder / "test.jsonl").exists():
        write_splits("phonemes", folder, args.source, args.samples)
    with progress() as bar:
        dense = trained_dense(folder, args, bar)
        for zeros, way in cells(args):
            name = f"t5-phonemes-{zeros}-{way}-s{args.seed}"
            if (RESULTS / f"{name}.json").exists():
                print(f"{name}: is there", file=sys.stderr)
                continue
            print(write_result(name, measure(zeros, way, dense, folder, args, bar)))
    print(laid_out(args))


def cells(args: argparse.Namespace) -> Iterator[tuple[int, str]]:
    """Yields what is asked for; without zeros there is nothing to prune or to distil."""
    for zeros in args.zeros:
        yield from ((zeros, way) for way in args.ways if zeros or way in ("oneshot", "ce"))


def new_model(folder: Path, seed: int) -> Path:
    """Writes a T5 that has learned nothing, once, and its tokenizer: a token a letter, and one a phoneme."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    path = folder / f"new-s{seed}"
    if (path / "generation_config.json").exists():
        return path
    parts = {part for name in ("train", "validation", "test") for one in read_task(folder / f"{name}.jsonl")
             for text in (one.prompt, *one.answers) for part in str(text).split()}  # fmt: skip
    vocab = {part: number for number, part in enumerate([*SPECIAL, *sorted(parts)])}
    made = Tokenizer(models.WordLevel(vocab, unk_token=SPECIAL[2]))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token=SPECIAL[0], eos_token=SPECIAL[1], unk_token=SPECIAL[2]
    )
    torch.manual_seed(seed)
    config = transformers.T5Config(
        vocab_size=len(vocab), **SIZES, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0
    )
    tokenizer.save_pretrained(path)
    transformers.T5ForConditionalGeneration(config).save_pretrained(path)
    return path


def options_of(args: argparse.Namespace, tokens: int, minutes: float, **others: Any) -> Options:
    """Options of a training: so many tokens, or minutes."""
    limit: dict[str, Any] = {"tokens": tokens} if tokens else {"budget_minutes": minutes}
    return Options(
        **limit, **others, batch=args.batch, precision="f32", seed=args.seed, threads=args.threads, device="cpu"
    )


def files(folder: Path) -> TaskFiles:
    """What is trained on, and what is looked at meanwhile."""
    return TaskFiles(folder / "train.jsonl", folder / "validation.jsonl")


def trained_dense(folder: Path, args: argparse.Namespace, bar: Progress) -> Path:
    """Returns the dense model, trained where it is not there yet."""
    path, begin = folder / f"dense-s{args.seed}", new_model(folder, args.seed)
    if not path.exists():
        options = options_of(
            args, args.dense_tokens, args.dense_minutes, loss=LOSSES["ce"], schedule="dense", lr=args.dense_lr
        )
        finetune(begin, path, teacher=begin, data=files(folder), options=options, progress=bar)
    return path


def pruned(zeros: int, way: str, dense: Path, folder: Path, args: argparse.Namespace, bar: Progress) -> Path:
    """Returns the dense model with zeros, of both sides or of one, pruned where it is not there yet."""
    side = way if way in ("encoder", "decoder") else "both"
    path = folder / f"pruned-{zeros}-{side}-s{args.seed}"
    if path.exists():
        return path
    options: dict[str, Any] = {"method": args.method, "calibration": folder / "train.jsonl", "seed": args.seed}
    options |= {"threads": args.threads, "progress": bar}
    if side == "both":
        prune(dense, path, sparsity=zeros / 100, **options)
        return path
    opened = open_checkpoint(dense)
    sources, config = opened.sources(), arch.family(opened.config).describe(opened.config)
    inside = {name: name.startswith("encoder.") == (side == "encoder") for name in config.linears}
    layers = {arch.label(name, sources): zeros / 100 * chosen for name, chosen in inside.items()}
    allocation = folder / f"{path.name}.json"
    write_file(allocation, json.dumps({"layers": layers}))
    prune(dense, path, allocation=allocation, **options)
    return path


def measure(zeros: int, way: str, dense: Path, folder: Path, args: argparse.Namespace, bar: Progress) -> dict[str, Any]:
    """Makes a cell, and measures it."""
    path = pruned(zeros, way, dense, folder, args, bar) if zeros else dense
    training: dict[str, Any] = {}
    if way in LOSSES:
        begun, path = path, folder / f"{way}-{zeros}-s{args.seed}"
        if not path.exists():
            schedule = "fixed" if zeros else "dense"
            options = options_of(args, args.tokens, args.minutes, loss=LOSSES[way], schedule=schedule, lr=args.lr)
            finetune(begun, path, teacher=dense, data=files(folder), options=options, progress=bar)
        training = json.loads((path / "gossamer_finetune.json").read_text(encoding="utf-8"))
    packed = pack_checkpoint(open_checkpoint(path), weights="int8", group=64, progress=bar)
    samples = read_task(folder / "test.jsonl")[: args.limit or None]
    found, result = row(
        f"{zeros} {way}", packed, samples, metric="words", threads=args.threads, timed=False, report=bar
    )
    return {
        "command": shlex.join(["python", "bench/t5_phonemes.py", "WORK", *(a.split("/")[-1] for a in sys.argv[2:])]),
        "zeros": zeros / 100,
        "way": way,
        "seed": args.seed,
        "word_error": 1 - result.exact,
        "phoneme_error": result.value,
        "row": found,
        "right": "".join(str(int(answer.exact.points)) for answer in result.answers),
        "training": training or None,
        "sizes": {**SIZES, "weights": sum(weight.rows * weight.cols for weight in packed.weights.values())},
        "losses": {name: asdict(loss) for name, loss in LOSSES.items()},
    }


def laid_out(args: argparse.Namespace) -> str:
    """The table of what there is: word and phoneme error, in percent."""
    rows = []
    for zeros in args.zeros:
        cell = [f"{zeros}%"]
        for way in args.ways:
            path = RESULTS / f"t5-phonemes-{zeros}-{way}-s{args.seed}.json"
            if path.exists():
                one = json.loads(path.read_text(encoding="utf-8"))
                cell.append(f"{100 * one['word_error']:.1f} / {100 * one['phoneme_error']:.2f}")
            else:
                cell.append("")
        rows.append(cell)
    return table(["zeros", *(f"{way}: words / phonemes" for way in args.ways)], rows)


if __name__ == "__main__":
    main()
