"""Speech: the whole pipeline beside faster-whisper, a step of the decoder alone, and words that are wrong.

    python bench/transcribe.py "dense int8=PACKED" "50% int8=OTHER" --audio clips/*.wav --said clips/transcription \
        --peer FOLDER_OF_CTRANSLATE2 [--peer-type int8]

Models are folders as `gossamer convert` packs them; ratios are over the first one. The list of what is said has a line
a file: its words, and its name without ending in parentheses, as the lists of CMU Sphinx have it. faster-whisper reads
FOLDER with the same beams and threads. All take turns, each from the files to their text, and the median of the rounds
counts. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import write_result
from whole_models import over, turns

import gossamer
from gossamer.audio.features import FRAMES
from gossamer.text.metrics import edits

PEER = "faster-whisper"
_SEQUENCE = 1 << 40  # of the steps alone, beside those of transcripts


def words(text: str) -> list[str]:
    """Words as they are compared: small letters, no marks, hyphens are blanks."""
    plain = text.lower().replace("mr.", "mister").replace("-", " ")
    return re.sub(r"[^\w\s']", "", re.sub(r"</?s>", "", plain)).split()


def wrong(found: Sequence[str], files: Sequence[str], said: dict[str, list[str]]) -> int:
    """Words to insert, delete or replace in all the texts."""
    return sum(edits(words(text), said[Path(file).stem]) for text, file in zip(found, files, strict=True))


def read_said(path: Path, files: Sequence[str]) -> dict[str, list[str]]:
    """Words by the name of the file."""
    lines = re.findall(r"^(.*)\(([^()]+)\)\s*$", path.read_text("utf-8"), re.MULTILINE)
    found = {name: words(text) for text, name in lines}
    if missing := [file for file in files if Path(file).stem not in found]:
        raise SystemExit(f"{path}: has no line of {missing[0]}")
    return found


def peer(args: argparse.Namespace) -> Callable[[str], str]:
    """How faster-whisper transcribes a file."""
    from faster_whisper import WhisperModel

    model = WhisperModel(args.peer, device="cpu", compute_type=args.peer_type, cpu_threads=args.threads)

    def transcribe(path: str) -> str:
        segments, _ = model.transcribe(path, language="en", beam_size=args.beams)
        return "".join(segment.text for segment in segments).strip()

    return transcribe


def step_seconds(model: Any, steps: int) -> float:
    """Median seconds of a step of one token, of one text that reads a window."""
    engine = model.decoder
    engine.remember([(_SEQUENCE, np.zeros((FRAMES, model.config.encoder.embedding.mel.bins), np.float32))])
    times = []
    for token in range(steps):
        start = time.perf_counter()
        engine.step([(_SEQUENCE, np.asarray([100 + token], np.int32))])
        times.append(time.perf_counter() - start)
    engine.free(_SEQUENCE)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--audio", nargs="+", required=True)
    parser.add_argument("--said", type=Path, help="what the files say")
    parser.add_argument("--peer", help="folder of CTranslate2")
    parser.add_argument("--peer-type", default="int8")
    parser.add_argument("--beams", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--name", default="transcribe", help="of the file of results")
    args = parser.parse_args()

    named = dict(one.split("=", 1) for one in args.models)
    models = {name: gossamer.load(folder, threads=args.threads) for name, folder in named.items()}
    sides: dict[str, Callable[[str], str]] = {
        name: partial(lambda model, path: model.transcribe(path, language="en", beams=args.beams).text, model)
        for name, model in models.items()
    }
    if args.peer:
        sides[PEER] = peer(args)
    texts: dict[str, list[str]] = {}

    def heard(name: str) -> float:
        start = time.perf_counter()
        texts[name] = [sides[name](path) for path in args.audio]
        return time.perf_counter() - start

    whole = turns({name: partial(heard, name) for name in sides}, args.rounds)
    steps = turns({name: partial(step_seconds, model, args.steps) for name, model in models.items()}, args.rounds)
    said = read_said(args.said, args.audio) if args.said else {}
    base = next(iter(models))
    rows = []
    for name in sides:
        row: dict[str, Any] = {"side": name, "seconds": statistics.median(whole[name]), "texts": texts[name]}
        row["over_first"] = over(whole[base], whole[name])
        if PEER in sides:
            row["over_peer"] = over(whole[PEER], whole[name])
            row["text_of_peer"] = texts[name] == texts[PEER]
        if name in steps:
            row["step_seconds"] = statistics.median(steps[name])
            row["step_over_first"] = over(steps[base], steps[name])
        if said:
            row |= {"words": sum(map(len, said.values())), "wrong": wrong(texts[name], args.audio, said)}
        rows.append(row)
        shown = {key: value for key, value in row.items() if key != "texts"}
        print("  ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in
                        shown.items()))  # fmt: skip
    options = {"beams": args.beams, "threads": args.threads, "rounds": args.rounds, "files": len(args.audio)}
    print(write_result(args.name, {**options, "peer_type": args.peer_type, "rows": rows}))


if __name__ == "__main__":
    main()
