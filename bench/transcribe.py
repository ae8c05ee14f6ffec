"""Speech beside faster-whisper: words that are wrong, the whole pipeline, and a step of the decoder alone.

    python bench/transcribe.py MODEL AUDIO... [--reference FILE] [--peer FOLDER] [--weights int8] [--json FILE]

AUDIO are files; FILE has a line a file: its transcript, and its name without ending in parentheses, as the lists of
CMU Sphinx have it. FOLDER is the same model in the form of CTranslate2, for faster-whisper, which is measured in turns
with gossamer: same beams, same threads, everything from the file to the text.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import gossamer
from gossamer.audio.features import FRAMES
from gossamer.text.metrics import edits


def words(text: str) -> list[str]:
    """Words as they are compared: small letters, no marks, hyphens are blanks."""
    plain = text.lower().replace("mr.", "mister").replace("-", " ")
    return re.sub(r"[^\w\s']", "", re.sub(r"</?s>", "", plain)).split()


def references(path: Path) -> dict[str, list[str]]:
    """Words by the name of the file."""
    found = re.findall(r"^(.*)\(([^()]+)\)\s*$", path.read_text("utf-8"), re.MULTILINE)
    return {name: words(text) for text, name in found}


def step_seconds(model: Any, steps: int) -> float:
    """Median seconds of a step of one token, of one text that reads a window."""
    engine = model.decoder
    bins = model.config.encoder.embedding.mel.bins
    seq = 1 << 40
    engine.remember([(seq, np.zeros((FRAMES, bins), np.float32))])
    times = []
    for token in range(steps):
        start = time.perf_counter()
        engine.step([(seq, np.asarray([100 + token], np.int32))])
        times.append(time.perf_counter() - start)
    engine.free(seq)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("audio", nargs="+")
    parser.add_argument("--reference", type=Path)
    parser.add_argument("--peer", help="folder of CTranslate2")
    parser.add_argument("--peer-type", default="int8")
    parser.add_argument("--weights")
    parser.add_argument("--activations", default="auto")
    parser.add_argument("--beams", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    options: dict[str, Any] = {} if args.weights is None else {"weights": args.weights}
    model = gossamer.load(args.model, threads=args.threads, activations=args.activations, **options)
    runs: dict[str, Callable[[str], str]] = {
        "gossamer": lambda path: model.transcribe(path, language="en", beams=args.beams).text
    }
    if args.peer:
        from faster_whisper import WhisperModel

        peer = WhisperModel(args.peer, device="cpu", compute_type=args.peer_type, cpu_threads=args.threads)
        runs["faster-whisper"] = lambda path: "".join(
            s.text for s in peer.transcribe(path, language="en", beam_size=args.beams)[0]
        ).strip()
    texts = {name: [run(path) for path in args.audio] for name, run in runs.items()}  # warms up, too
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(args.rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            for path in args.audio:
                run(path)
            seconds[name].append(time.perf_counter() - start)
    result: dict[str, Any] = {"model": args.model, "options": vars(args) | {"reference": None, "json": None}}
    known = references(args.reference) if args.reference else {}
    for name in runs:
        row: dict[str, Any] = {"seconds": statistics.median(seconds[name]), "all": seconds[name], "texts": texts[name]}
        pairs = [(words(text), known.get(Path(path).stem)) for path, text in zip(args.audio, texts[name], strict=True)]
        if known:
            row["words"] = sum(len(right) for _, right in pairs if right is not None)
            row["wrong"] = sum(edits(found, right) for found, right in pairs if right is not None)
        result[name] = row
        print(
            f"{name:15} {row['seconds']:.3f} s" + (f", {row['wrong']} of {row['words']} words wrong" if known else "")
        )
    result["step"] = step_seconds(model, args.steps)
    print(f"{'step':15} {1000 * result['step']:.3f} ms")
    if len(runs) > 1:
        result["ratio"] = statistics.median(
            theirs / own for own, theirs in zip(seconds["gossamer"], seconds["faster-whisper"], strict=True)
        )
        print(f"{'ratio':15} {result['ratio']:.2f}, same text: {texts['gossamer'] == texts['faster-whisper']}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
