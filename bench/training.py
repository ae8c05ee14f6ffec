"""How fast training is: the run of docs/finetuning.md for a few steps, by this trainer or that of another checkout.

    python bench/training.py TEXTS --model SmolLM2-135M-Instruct.Q4_1.gguf
    PYTHONPATH=OTHER/python python bench/training.py TEXTS --model …

One JSON document is printed. It needs nothing of gossamer but what `finetune` was from the start, so that an older one
can be measured, too. The student is raised to half zeros while it trains, with int8 values in the loop, towards the
dense model over the whole vocabulary. Losses behind the same tokens tell whether both learn the same; processor time
tells of a busy machine as much as of an idle one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import tempfile
import time
from pathlib import Path

from gossamer.finetune import Options, Parts, finetune


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path, help="folder of texts, as bench/finetune.py makes it")
    parser.add_argument("--model", type=Path, required=True, help="dense checkpoint or GGUF file")
    parser.add_argument("--steps", type=int, default=12, help="of 4 windows of 256 tokens (%(default)s)")
    parser.add_argument("--top", type=int, default=0, help="the teacher's likeliest tokens alone, kept")
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    times: list[tuple[float, float]] = []

    def told(_done: int, _total: int, what: str) -> None:
        if what.startswith("step "):
            times.append((time.monotonic(), time.process_time()))

    options = Options(
        loss=Parts(0.25, 0, 1), schedule="cubic", sparsity=0.5, weights="int8", length=256, batch=4,
        tokens=1024 * args.steps, threads=args.threads, validation_windows=8, validations=0, save_minutes=600,
        **({"top": args.top} if args.top else {}),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        report = finetune(
            args.model, Path(folder) / "out", teacher=args.model, data=[args.texts], options=options, progress=told
        )
    walls, processor = ([b[kind] - a[kind] for a, b in itertools.pairwise(times)] for kind in (0, 1))
    result = {
        "steps": args.steps,
        "top": args.top,
        "threads": args.threads,
        "tokens_per_second": 1024 / statistics.median(walls),
        "seconds": walls,
        "processor_seconds": processor,
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "losses": report.curve[-1],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
