"""What `--weights auto` gives beside every single choice of format and type, on SmolLM2 pruned at mixed zeros.

    python bench/auto.py text.txt [--attention 0.4] [--mlp 0.55]

Attention and MLPs get zeros of their own, by magnitude unless another method is named; perplexity is measured on the
text, and all models take turns at decoding.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from common import write_result
from whole_models import over, step_seconds, turns

import gossamer
from gossamer.generation.perplexity import perplexity
from gossamer.packing.convert import convert
from gossamer.pruning import prune
from gossamer.zoo import builtin

SINGLE = [(format, type) for type in ("int8", "int4", "bf16") for format in ("dense", "bitmap", "csr")]
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def pruned(folder: Path, method: str, attention: float, mlp: float, text: str) -> Path:
    """Prunes SmolLM2 with zeros by kind of matrix."""
    source = builtin.source("smollm2-135m-instruct-dense")
    rest: dict[str, Any] = {} if method == "magnitude" else {"calibration": text, "windows": 24}
    report = prune(source, folder / "even", method="magnitude", sparsity=0.5)
    zeros = {name: attention if any(part in name for part in ATTENTION) else mlp for name in report.layers}
    (folder / "zeros.json").write_text(json.dumps({"layers": zeros}), encoding="utf-8")
    prune(source, folder / "mixed", method=method, allocation=folder / "zeros.json", **rest)
    return folder / "mixed"


def main() -> None:
    """Runs the bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", help="UTF-8 text for perplexity, and for calibration")
    parser.add_argument("--method", default="magnitude")
    parser.add_argument("--attention", type=float, default=0.4)
    parser.add_argument("--mlp", type=float, default=0.55)
    parser.add_argument("--seconds", type=float, default=0.5, help="least time of each median")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    text = Path(args.text).read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        source = pruned(folder, args.method, args.attention, args.mlp, args.text)
        choices: dict[str, dict[str, str]] = {"auto": {}}
        choices |= {f"{format} {type}": {"format": format, "weights": type} for format, type in SINGLE}
        models = {}
        for name, options in choices.items():
            convert(source, folder / name.replace(" ", "-"), **options)
            models[name] = gossamer.load(folder / name.replace(" ", "-"))
        times = turns(
            {name: partial(step_seconds, model, 1, args.seconds) for name, model in models.items()}, args.rounds
        )
        rows = []
        for name, model in models.items():
            found = perplexity(model, text[:20000]).ppl
            speed = 1 / statistics.median(times[name])
            ratio = over(times[name], times["auto"])
            rows.append({"choice": name, "tokens_per_second": speed, "auto_over": ratio, "perplexity": found})
    auto = rows[0]
    as_good = [row for row in rows[1:] if row["perplexity"] <= 1.001 * auto["perplexity"]]
    best = max(as_good, key=lambda row: row["tokens_per_second"])
    ratio = best["auto_over"]
    for row in rows:
        print(f"{row['choice']:14} {row['tokens_per_second']:8.1f} tokens/s   perplexity {row['perplexity']:.3f}")
    print(f"auto is {ratio:.3f} times as fast as {best['choice']}, the fastest that is no worse")
    result = {"command": vars(args) | {"text": Path(args.text).name}, "rows": rows, "best": best["choice"]}
    write_result("auto", result | {"ratio": ratio})


if __name__ == "__main__":
    main()
