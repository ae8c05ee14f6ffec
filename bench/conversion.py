"""A large checkpoint on the way in: how fast it converts and is pruned, and how much memory that takes.

    python bench/conversion.py WORK                     # Llama 3.2 1B's shape in bf16, 2.5 GB
    python bench/conversion.py WORK --only convert

WORK gets a checkpoint of random weights, once, and what is made of it for as long as that is looked at. What is
measured are commands in processes of their own. Memory is what such a process has at the worst moment, pages of files
that it maps included. Conversion finds the checkpoint in the page cache. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, write_result

from gossamer import arch
from gossamer.checkpoints import open_checkpoint
from gossamer.checkpoints.write import write_checkpoint
from gossamer.zoo import builtin, synthetic

SPEED, EXTRA, PRUNING = 300e6, 500e6, 4e9  # bytes a second; beside three of the largest tensor; at most

COMMANDS: dict[str, list[str]] = {
    "convert": ["--no-measure"],
    "convert int4": ["--weights", "int4", "--no-measure"],
    "prune": ["--method", "sparsegpt", "--allocation", "uniform", "--windows", "16", "--length", "512"],
}


def checkpoint(folder: Path, name: str) -> Path:
    """Writes random weights in a named shape, with the tokenizer of the built-in model."""
    path = folder / name
    if path.exists():
        return path
    config = {**synthetic.config(name), "architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16"}
    stored = arch.stored(arch.family(config).sources(config))
    shapes = {tensor: next(iter(sources.values())).shape for tensor, sources in stored.items()}
    rng = np.random.default_rng(0)
    scale = np.float32(1 / 40)
    tensors = ((tensor, rng.standard_normal(shape, np.float32) * scale, "bf16") for tensor, shape in shapes.items())
    words = open_checkpoint(builtin.source("smollm2-135m-instruct-dense"))  # its tensors have the same names
    write_checkpoint(path, config, tensors, words)
    return path


def run(command: list[str], log: Path) -> tuple[float, int]:
    """Seconds that a command takes, and the bytes of memory that it had at most."""
    start = time.perf_counter()
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(log.read_text(encoding="utf-8"))
    return time.perf_counter() - start, 1024 * used.ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--model", default="llama-3.2-1b", choices=synthetic.CONFIGS)
    parser.add_argument("--only", choices=COMMANDS, nargs="+", default=list(COMMANDS))
    parser.add_argument("--rounds", type=int, default=3, help="of a conversion")
    parser.add_argument("--name", default="conversion", help="of the file of results")
    args = parser.parse_args()
    source = checkpoint(args.work, args.model)
    weights = source / "model.safetensors"
    size = weights.stat().st_size
    opened = open_checkpoint(source)
    largest = max(2 * math.prod(opened.shape(name)) for name in opened.names())
    rows = []
    for what in args.only:
        words = [sys.executable, "-m", "gossamer", what.split()[0], str(source), str(args.work / "made")]
        if what == "prune":
            text = args.work / "text.txt"  # weights are random: any text will do
            text.write_text("\n".join(path.read_text("utf-8") for path in sorted(ROOT.glob("docs/*.md"))), "utf-8")
            words += ["--calibration", str(text)]
        found = []
        for _ in range(args.rounds if what.startswith("convert") else 1):
            with weights.open("rb", buffering=0) as file:  # into the page cache
                while file.read(1 << 24):
                    pass
            found.append(run([*words, *COMMANDS[what]], args.work / "log"))
            shutil.rmtree(args.work / "made")
        row: dict[str, Any] = {"what": what, "options": COMMANDS[what], "bytes": size, "largest_tensor": largest}
        row["seconds"] = statistics.median(seconds for seconds, _ in found)
        row["bytes_per_second"] = size / row["seconds"]
        row["peak_bytes"] = max(peak for _, peak in found)
        if what == "prune":
            row["kept"] = row["peak_bytes"] < PRUNING
        else:
            row["kept"] = row["bytes_per_second"] >= SPEED and row["peak_bytes"] < 3 * largest + EXTRA
        print(row, flush=True)
        rows.append(row)
    asked = {"bytes_per_second": SPEED, "peak_bytes": 3 * largest + EXTRA, "peak_bytes_pruning": PRUNING}
    print(write_result(args.name, {"setting": {"model": args.model}, "asked": asked, "rows": rows}))


if __name__ == "__main__":
    main()
