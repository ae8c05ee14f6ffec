"""Whether two installs compute the same bits: logits of SmolLM2's shape in each stored form, on both.

    python bench/same_logits.py OLD/bin/python NEW/bin/python
    python bench/same_logits.py --layers 2 --forms int4 OLD/bin/python NEW/bin/python

The first install draws and packs the models; both load those folders and run a prompt of 300 tokens and 40 single
steps, for each form, type of KV cache, number of threads and tier. What one block's linears read is compared, too.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

# zeros, values, format, rank of a low-rank branch at every linear
FORMS: dict[str, tuple[float, str, str, int]] = {
    "dense": (0.0, "f32", "dense", 0),
    "int8": (0.5, "int8", "bitmap", 0),
    "int4": (0.5, "int4", "bitmap", 0),
    "csr": (0.9, "int8", "csr", 0),
    "low_rank": (0.5, "int8", "bitmap", 16),
}
ISAS = ("avx2", "avx512_vbmi2")
PROMPT, STEPS = 300, 40


def part(name: str, before: str) -> Any:
    """A module of gossamer, by the name that it has in folders or the one that it had before there were any."""
    try:
        return importlib.import_module(f"gossamer.{name}")
    except ModuleNotFoundError:
        return importlib.import_module(f"gossamer.{before}")


def with_biases(config: Any) -> Any:
    """A description of Llama whose linears all have biases; before there were descriptions, nothing had to say so."""

    def biased(mixer: Any) -> Any:
        return replace(mixer, biases=("gate", "up", "down") if hasattr(mixer, "gated") else ("q", "k", "v", "o"))

    kinds = (
        replace(block, branches=tuple(replace(branch, mixer=biased(branch.mixer)) for branch in block.branches))
        for block in config.stack.kinds
    )
    return replace(config, stack=replace(config.stack, kinds=tuple(kinds)))


def pack(form: str, folder: Path, layers: int) -> None:
    """Writes a packed folder of random weights, with biases where there are branches."""
    from gossamer import _core

    zeros, weights, format, rank = FORMS[form]
    model = part("zoo.synthetic", "synthetic").pack("smollm2-135m", sparsity=zeros, weights=weights, format=format)
    if layers:
        deeper = getattr(model.config, "deeper", lambda n: replace(model.config, layers=n))
        model.config = deeper(layers)
        keep = [name for name in model.weights if not name.startswith("layers.") or int(name.split(".")[1]) < layers]
        model.weights = {name: model.weights[name] for name in keep}
        model.vectors = {
            name: values
            for name, values in model.vectors.items()
            if not name.startswith("layers.") or int(name.split(".")[1]) < layers
        }
    rng = np.random.default_rng(5)
    for name in [name for name in model.weights if rank and name.startswith("layers.")]:
        rows, cols = model.weights[name].rows, model.weights[name].cols
        for end, shape in (("u", (rows, rank)), ("v", (rank, cols))):
            values = rng.standard_normal(shape).astype(np.float32) / np.float32(np.sqrt(shape[1]) * 4)
            model.weights[f"{name}.low_rank_{end}"] = _core.pack(values, "dense", "f32")
            model.reasons[f"{name}.low_rank_{end}"] = "drawn"
        model.vectors[f"{name}.bias"] = rng.standard_normal(rows).astype(np.float32) / 8
    if rank and hasattr(model.config, "stack"):
        model.config = with_biases(model.config)
    part("packing.folder", "packed").write_packed(folder, model)


def run(folder: Path, out: Path) -> None:
    """Saves what this install computes from a folder."""
    import gossamer

    rng = np.random.default_rng(0)
    found: dict[str, np.ndarray] = {}
    for kv in ("f32", "f16"):
        for threads in (1, 2):
            decoder: Any = gossamer.load(str(folder), threads=threads, kv=kv).decoder
            ids = np.random.default_rng(1).integers(0, 49152, PROMPT + STEPS).astype(np.int32)
            prompt = decoder.step([(0, ids[:PROMPT])], all_logits=True)
            steps = [decoder.step([(0, ids[PROMPT + i : PROMPT + i + 1])])[0] for i in range(STEPS)]
            name = f"kv {kv}, {threads} threads"
            found[f"{name}: prompt, last"] = prompt[-1]
            found[f"{name}: prompt, all"] = np.frombuffer(hashlib.sha256(prompt.tobytes()).digest(), np.uint8)
            found[f"{name}: steps"] = np.array(steps)
    hidden = rng.standard_normal((80, 576)).astype(np.float32)
    output, inputs = decoder.forward_block(1, hidden, ("q", "o", "gate", "down"), 40)
    found |= {"block: output": output, **{f"block: inputs of {name}": values for name, values in inputs.items()}}
    np.savez(out, **found)


def differences(first: Path, second: Path) -> list[str]:
    """What differs between two files of `run`, in words."""
    one, other = np.load(first), np.load(second)
    found = [f"{name}: only one install has it" for name in sorted(set(one.files) ^ set(other.files))]
    for name in one.files:
        if name in other.files and one[name].tobytes() != other[name].tobytes():
            largest = np.abs(one[name].astype(np.float64) - other[name].astype(np.float64)).max()
            found.append(f"{name}: differs, by {largest:.3g}" if one[name].dtype == np.float32 else f"{name}: differs")
    return found


def child(python: str, *arguments: str, isa: str = "") -> None:
    """Runs this file under an install, on a tier."""
    environment = {**os.environ, **({"GOSSAMER_ISA": isa} if isa else {})}
    done = subprocess.run(
        [python, __file__, *arguments], env=environment, stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{python}: {done.stderr}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pythons", nargs="*", metavar="PYTHON", help="interpreters of the two installs")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS), help="(all)")
    parser.add_argument("--isas", nargs="+", default=ISAS, metavar="TIER", help="(%(default)s)")
    parser.add_argument("--layers", type=int, default=0, help="blocks; 0 for all 30 (%(default)s)")
    parser.add_argument("--pack", nargs=2, metavar=("FORM", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--run", nargs=2, metavar=("FOLDER", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.pack:
        pack(args.pack[0], Path(args.pack[1]), args.layers)
        return 0
    if args.run:
        run(Path(args.run[0]), Path(args.run[1]))
        return 0
    if len(args.pythons) != 2:
        parser.error("name the interpreters of two installs")
    if args.layers == 1:
        parser.error("--layers takes 2 or more")
    failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        files = [work / "first.npz", work / "second.npz"]
        for form in args.forms:
            child(args.pythons[0], "--layers", str(args.layers), "--pack", form, str(work / form))
            for isa in args.isas:
                for python, file in zip(args.pythons, files, strict=True):
                    child(python, "--run", str(work / form), str(file), isa=isa)
                found = differences(*files)
                failed += len(found)
                count = len(np.load(files[0]).files)
                print(
                    f"{form}, {isa}: " + ("; ".join(found) or f"{count} arrays are the same, bit for bit"), flush=True
                )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
