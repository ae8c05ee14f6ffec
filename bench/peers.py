"""gossamer beside llama.cpp, in one sitting: the two take turns for several rounds, and the ratio is what counts.

    python bench/peers.py --llama-python llama-env/bin/python --gguf SmolLM2.gguf --pair Q8_0=packed-int8 \
        --pair Q4_0=packed-int4 [--text prose.txt]

Each pair names a type that llama.cpp quantizes the GGUF file to, and a model for gossamer. llama-cpp-python is best in
an environment of its own: CMAKE_ARGS="-DGGML_NATIVE=ON" pip install llama-cpp-python.
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

from common import write_result

HERE = Path(__file__).resolve().parent
GOSSAMER = [sys.executable, "-c", "from gossamer.cli import main; raise SystemExit(main())"]


def output_of(command: list[str]) -> Any:
    """Runs a command to its end; returns the JSON document that it prints."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{done.stderr}\nexit code {done.returncode} of {' '.join(command)}")
    return json.loads(done.stdout)


class Llama:
    """One quantized variant of the GGUF file, run by llama.cpp."""

    def __init__(self, python: str, gguf: Path, kind: str, work: Path) -> None:
        self._script = [python, str(HERE / "peer_llama_cpp.py")]
        self.name = kind
        self._file = work / f"{gguf.stem}.{kind}.gguf"
        if not self._file.exists():
            output_of([*self._script, "quantize", str(gguf), kind, str(self._file)])

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

    def __init__(self, model: str) -> None:
        self.name = model
        self.setting: dict[str, Any] = {}

    def bench(self, args: argparse.Namespace) -> dict[str, Any]:
        """One round: every run of each test, in tokens a second."""
        sizes = ["-p", str(args.prompt), "-n", str(args.new), "-r", str(args.repeats), "--threads", str(args.threads)]
        result = output_of([*GOSSAMER, "bench", self.name, "--json", *sizes])
        self.setting = {key: result[key] for key in ("weights", "kv", "activations", "isa")}
        return {row["test"]: row["runs"] for row in result["rows"]} | {"bytes": result["weight_bytes"]}

    def perplexity(self, args: argparse.Namespace) -> dict[str, Any]:
        """Perplexity over the text."""
        windows = ["--windows", str(args.windows)] if args.windows else []
        sizes = ["--context", str(args.context), "--threads", str(args.threads), *windows]
        return output_of([*GOSSAMER, "eval", self.name, "--text", str(args.text), "--json", *sizes])


def compare(llama: Llama, gossamer: Gossamer, args: argparse.Namespace) -> dict[str, Any]:
    """Lets the two take turns; medians over rounds, and the spread of the rounds' ratios."""
    sides: dict[str, list[dict[str, Any]]] = {"llama_cpp": [], "gossamer": []}
    for done in range(args.rounds):
        print(f"{llama.name} and {gossamer.name}: round {done + 1} of {args.rounds}", file=sys.stderr)
        sides["llama_cpp"].append(llama.bench(args))
        sides["gossamer"].append(gossamer.bench(args))
    result: dict[str, Any] = {
        "llama_cpp": {"type": llama.name, "kv": "f16", "file_bytes": sides["llama_cpp"][0]["bytes"]},
        "gossamer": {
            "model": Path(gossamer.name).name,
            **gossamer.setting,
            "bytes_per_token": sides["gossamer"][0]["bytes"],
        },
        "llama_cpp_python": sides["llama_cpp"][0]["llama_cpp_python"],
    }
    for test in (f"pp{args.prompt}", f"tg{args.new}"):
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
    print(f"{result['gossamer']['model']} ({kinds}) beside {result['llama_cpp']['type']}")
    for test in (f"pp{args.prompt}", f"tg{args.new}"):
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
    parser.add_argument("--gguf", required=True, type=Path, metavar="FILE", help="what llama.cpp quantizes")
    parser.add_argument(
        "--pair", required=True, action="append", metavar="TYPE=MODEL", help="as Q8_0=packed; repeatable"
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns that each side takes (%(default)s)")
    parser.add_argument("-p", "--prompt", type=int, default=512, help="(%(default)s)")
    parser.add_argument("-n", "--new", type=int, default=128, help="(%(default)s)")
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
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        results = []
        for kind, _, model in pairs:
            results.append(compare(Llama(args.llama_python, args.gguf, kind, work), Gossamer(model), args))
            show(results[-1], args)
    settings = {name: getattr(args, name) for name in ("rounds", "repeats", "threads", "context", "windows")}
    document = {
        "gguf": args.gguf.name,
        "text": args.text and args.text.name,
        **settings,
        "pairs": results,
    }
    print(f"written: {write_result(args.name, document)}")


if __name__ == "__main__":
    main()
