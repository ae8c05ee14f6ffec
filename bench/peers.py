"""gossamer beside llama.cpp, in one sitting: the two take turns for several rounds, and the ratio is what counts.

    python bench/peers.py --llama-python llama-env/bin/python --gguf SmolLM2.gguf --pair Q8_0=packed-int8 \
        --pair Q4_0=packed-int4 [--text prose.txt]

Each pair names a type that llama.cpp quantizes the GGUF file to, and a model for gossamer. With --synthetic, both sides
get random weights in the shape of a named model instead, and a pair names the types of our blocks and our head:

    python bench/peers.py --llama-python llama-env/bin/python --synthetic llama-3.2-1b --sparsity 0.5 \
        --pair Q4_0=int4,int8 --pair Q4_0=int4,int4 --name llama_cpp-llama-3.2-1b

llama-cpp-python is best in an environment of its own: CMAKE_ARGS="-DGGML_NATIVE=ON" pip install llama-cpp-python.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import synthetic_gguf
from common import write_result

from gossamer.zoo import synthetic

HERE = Path(__file__).resolve().parent
GOSSAMER = [sys.executable, "-c", "from gossamer.cli import main; raise SystemExit(main())"]


def output_of(command: list[str]) -> Any:
    """Runs a command to its end; returns the JSON document that it prints."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{done.stderr}\nexit code {done.returncode} of {' '.join(command)}")
    return json.loads(done.stdout)


def quantized(python: str, source: Path, kind: str, work: Path) -> Path:
    """Returns a GGUF file that llama.cpp quantized to a type, which is made where it is not there yet."""
    path = work / f"{source.stem}.{kind}.gguf"
    if not path.exists():
        output_of([python, str(HERE / "peer_llama_cpp.py"), "quantize", str(source), kind, str(path)])
    return path


class Llama:
    """One GGUF file, run by llama.cpp: a quantized variant of the one given, or random weights in a model's shape."""

    def __init__(self, args: argparse.Namespace, kind: str, work: Path) -> None:
        self._script = [args.llama_python, str(HERE / "peer_llama_cpp.py")]
        self.name = kind
        if args.synthetic:
            self._file = work / f"{args.synthetic}.{kind}.gguf"
            if not self._file.exists():
                synthetic_gguf.write(self._file, args.synthetic, kind)
        else:
            self._file = quantized(args.llama_python, args.gguf, kind, work)
        self.head = synthetic_gguf.head_type(self._file)

    def bench(self, args: argparse.Namespace) -> dict[str, Any]:
        """One round: every run of each test, in tokens a second."""
        sizes = map(str, (args.threads, args.prompt, args.new, args.repeats))
        return output_of([*self._script, "bench", str(self._file), *sizes])

    def perplexity(self, args: argparse.Namespace) -> dict[str, Any]:
        """Perplexity over the text."""
        sizes = (str(args.threads), str(args.text), str(args.context), str(args.windows))
        return output_of([*self._script, "perplexity", str(self._file), *sizes])


class Gossamer:
    """One model, run by the command `gossamer`."""

    def __init__(self, args: argparse.Namespace, model: str) -> None:
        self.name = args.synthetic or model
        self._bench = [*GOSSAMER, "bench", self.name]
        if args.synthetic:
            weights, _, head = model.partition(",")
            zeros = ["--pattern", args.pattern] if args.pattern else ["--sparsity", str(args.sparsity)]
            self._bench = [*GOSSAMER, "bench", "--synthetic", self.name, *zeros]
            self._bench += ["--weights", weights, "--head", head or "auto"]
        self.setting: dict[str, Any] = {}

    def bench(self, args: argparse.Namespace) -> dict[str, Any]:
        """One round: every run of each test, in tokens a second."""
        sizes = ["-p", str(args.prompt), "-n", str(args.new), "-r", str(args.repeats), "--threads", str(args.threads)]
        result = output_of([*self._bench, "--json", *sizes])
        self.setting = {key: result[key] for key in ("synthetic", "weights", "kv", "activations", "isa")}
        (self.setting["head"],) = (kind.removeprefix("head ") for kind in result["weights"] if kind.startswith("head "))
        return {row["test"]: row["runs"] for row in result["rows"]} | {"bytes": result["weight_bytes"]}

    def perplexity(self, args: argparse.Namespace) -> dict[str, Any]:
        """Perplexity over the text."""
        windows = ["--windows", str(args.windows)] if args.windows else []
        sizes = ["--context", str(args.context), "--threads", str(args.threads), *windows]
        return output_of([*GOSSAMER, "eval", self.name, "--text", str(args.text), "--json", *sizes])


def tests(args: argparse.Namespace) -> list[str]:
    """Names of the tests asked for."""
    return [f"{test}{size}" for test, size in (("pp", args.prompt), ("tg", args.new)) if size]


def compare(llama: Llama, gossamer: Gossamer, args: argparse.Namespace) -> dict[str, Any]:
    """Lets the two take turns; medians over rounds, and the spread of the rounds' ratios."""
    sides: dict[str, list[dict[str, Any]]] = {"llama_cpp": [], "gossamer": []}
    for done in range(args.rounds):
        print(f"{llama.name} and {gossamer.name}: round {done + 1} of {args.rounds}", file=sys.stderr)
        sides["llama_cpp"].append(llama.bench(args))
        sides["gossamer"].append(gossamer.bench(args))
    result: dict[str, Any] = {
        "llama_cpp": {
            "type": llama.name,
            "head": llama.head,
            "kv": "f16",
            "file_bytes": sides["llama_cpp"][0]["bytes"],
        },
        "gossamer": {
            "model": Path(gossamer.name).name,
            **gossamer.setting,
            "bytes_per_token": sides["gossamer"][0]["bytes"],
        },
        "llama_cpp_python": sides["llama_cpp"][0]["llama_cpp_python"],
    }
    for test in tests(args):
        rounds = {side: [statistics.median(one[test]) for one in results] for side, results in sides.items()}
        for side, medians in rounds.items():
            result[side][test] = {"median": statistics.median(medians), "rounds": medians}
        ratios = [ours / theirs for ours, theirs in zip(rounds["gossamer"], rounds["llama_cpp"], strict=True)]
        result[f"{test}_ratio"] = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    if args.text:
        result["llama_cpp"]["perplexity"] = llama.perplexity(args)["perplexity"]
        result["gossamer"]["perplexity"] = gossamer.perplexity(args)["perplexity"]
    return result


def show(result: dict[str, Any], args: argparse.Namespace) -> None:
    """Prints one pair's rows."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in result["gossamer"]["weights"].items())
    theirs = f"{result['llama_cpp']['type']} (head {result['llama_cpp']['head']})"
    print(f"{result['gossamer']['model']} ({kinds}) beside {theirs}")
    for test in tests(args):
        ours, theirs = (result[side][test]["median"] for side in ("gossamer", "llama_cpp"))
        ratio = result[f"{test}_ratio"]
        spread = f"{ratio['min']:.2f} to {ratio['max']:.2f}"
        print(f"  {test:>6}: {ours:8.1f} against {theirs:8.1f} tokens/s, ratio {ratio['median']:.2f} ({spread})")
    if args.text:
        ours, theirs = (result[side]["perplexity"] for side in ("gossamer", "llama_cpp"))
        print(f"  perplexity: {ours:.2f} against {theirs:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-python", required=True, metavar="PATH", help="a Python that has llama-cpp-python")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--gguf", type=Path, metavar="FILE", help="what llama.cpp quantizes")
    source.add_argument(
        "--synthetic", choices=tuple(synthetic.CONFIGS), help="random weights in the shape of this model, on both sides"
    )
    zeros = parser.add_mutually_exclusive_group()
    zeros.add_argument("--sparsity", type=float, default=0.5, help="of our side of --synthetic (%(default)s)")
    zeros.add_argument("--pattern", metavar="N:M", help="of our side of --synthetic, instead")
    parser.add_argument(
        "--pair",
        required=True,
        action="append",
        metavar="TYPE=MODEL",
        help="as Q8_0=packed, or with --synthetic Q4_0=int4,int8; repeatable",
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns that each side takes (%(default)s)")
    parser.add_argument("-p", "--prompt", type=int, default=512, help="0 skips it (%(default)s)")
    parser.add_argument("-n", "--new", type=int, default=128, help="0 skips it (%(default)s)")
    parser.add_argument("-r", "--repeats", type=int, default=3, help="timed runs a round (%(default)s)")
    parser.add_argument("-t", "--threads", type=int, default=os.cpu_count(), help="for both (%(default)s)")
    parser.add_argument("--text", type=Path, metavar="FILE", help="measure both sides' perplexity on this text too")
    parser.add_argument("--context", type=int, default=1024, help="tokens a window of it (%(default)s)")
    parser.add_argument("--windows", type=int, default=8, help="windows of it; 0 takes all (%(default)s)")
    parser.add_argument(
        "--work", type=Path, metavar="FOLDER", help="where quantized files are kept (a temporary folder)"
    )
    parser.add_argument("--name", default="llama_cpp", help="of the file in results/ (%(default)s)")
    args = parser.parse_args()
    pairs = [pair.partition("=") for pair in args.pair]
    if not all(kind and model for kind, _, model in pairs):
        parser.error("--pair must be TYPE=MODEL")
    if args.synthetic and args.text:
        parser.error("--text: random weights have no perplexity worth measuring")
    if args.synthetic and not {kind for kind, _, _ in pairs} <= synthetic_gguf.TYPES.keys():
        parser.error(f"--pair: with --synthetic TYPE is one of {', '.join(synthetic_gguf.TYPES)}")
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        results = []
        for kind, _, model in pairs:
            results.append(compare(Llama(args, kind, work), Gossamer(args, model), args))
            show(results[-1], args)
    settings = {name: getattr(args, name) for name in ("rounds", "repeats", "threads", "context", "windows")}
    document = {
        "gguf": args.gguf and args.gguf.name,
        "text": args.text and args.text.name,
        **settings,
        "pairs": results,
    }
    print(f"written: {write_result(args.name, document)}")


if __name__ == "__main__":
    main()
