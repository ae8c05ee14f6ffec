"""Prompts beside OpenVINO GenAI and llama.cpp, over the same GGUF file: all take turns, and the ratios count.

    python bench/prompt_peers.py SmolLM2.Q8_0.gguf --openvino-python openvino-env/bin/python \
        --llama-python llama-env/bin/python

Each side reads prompts of so many tokens with two threads, or as many as are asked for. OpenVINO GenAI takes text, of
about that many tokens, until the first new one; the others take tokens.
"""

from __future__ import annotations

import argparse
import os
import statistics
from pathlib import Path
from typing import Any

from common import write_result
from peers import GOSSAMER, HERE, output_of


def ours(args: argparse.Namespace, tokens: int) -> list[float]:
    """Tokens a second of each run."""
    sizes = ["-p", str(tokens), "-n", "0", "-r", str(args.repeats), "--threads", str(args.threads)]
    command = [*GOSSAMER, "bench", str(args.gguf), "--weights", "int8", "--kv", "auto", "--json", *sizes]
    (row,) = output_of(command)["rows"]
    return row["runs"]


def openvino(args: argparse.Namespace, tokens: int) -> list[float]:
    """The same."""
    sizes = map(str, (args.threads, tokens, args.repeats))
    return output_of([args.openvino_python, str(HERE / "peer_openvino.py"), str(args.gguf), *sizes])["runs"]


def llama(args: argparse.Namespace, tokens: int) -> list[float]:
    """The same."""
    sizes = map(str, (args.threads, tokens, 0, args.repeats))
    return output_of([args.llama_python, str(HERE / "peer_llama_cpp.py"), "bench", str(args.gguf), *sizes])[
        f"pp{tokens}"
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--openvino-python", help="a Python that has openvino-genai")
    parser.add_argument("--llama-python", help="a Python that has llama-cpp-python")
    parser.add_argument("--tokens", nargs="+", type=int, default=[512, 2048, 8000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-r", "--repeats", type=int, default=2, help="timed prompts a round (%(default)s)")
    parser.add_argument("-t", "--threads", type=int, default=os.cpu_count())
    parser.add_argument("--name", default="prompt_peers", help="of the file of results")
    args = parser.parse_args()
    sides = {"gossamer": ours}
    if args.openvino_python:
        sides["openvino"] = openvino
    if args.llama_python:
        sides["llama_cpp"] = llama
    rows = []
    for tokens in args.tokens:
        rounds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(args.rounds):
            for name, side in sides.items():
                rounds[name].append(statistics.median(side(args, tokens)))
        row: dict[str, Any] = {"tokens": tokens, "rounds": rounds}
        row["tokens_per_second"] = {name: statistics.median(runs) for name, runs in rounds.items()}
        row["over"] = {
            name: statistics.median(a / b for a, b in zip(rounds["gossamer"], runs, strict=True))
            for name, runs in rounds.items()
        }
        print({key: value for key, value in row.items() if key != "rounds"}, flush=True)
        rows.append(row)
    settings = {"gguf": args.gguf.name, "threads": args.threads, "repeats": args.repeats}
    print(write_result(args.name, {**settings, "rows": rows}))


if __name__ == "__main__":
    main()
