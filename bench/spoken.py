"""Speech to calibrate, train and test with: addresses of presidents, spoken by eSpeak NG.

    python bench/spoken.py FOLDER [--train 200] [--words 2000]

FOLDER gets train.jsonl and test.jsonl, a clip a line as docs/tasks.md has it, and their sound. Training takes addresses
of 1945 to 2019, the test later ones in other voices, as many clips as make so many words. Sentences with digits or
dashes are left out, since there is more than one way to write what is said. It needs the program espeak-ng.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import corpora

TRAIN_VOICES = ("en-us", "en-us+f3", "en-gb", "en-gb+m3", "en-gb-x-rp+f2", "en-us+m7")
TEST_VOICES = ("en-gb-scotland", "en-us+f5", "en-gb-x-gbclan+m2", "en-us+m4")
_WORDS = (8, 40)  # of a clip


def sentences(texts: Sequence[str]) -> list[str]:
    """Returns the sentences of letters that are neither very short nor very long."""
    found = []
    for text in texts:
        for one in re.split(r"(?<=[.?!])\s+", re.sub(r"\([^)]*\)|\[[^\]]*\]", " ", text)):
            plain = " ".join(one.split())
            if _WORDS[0] <= len(plain.split()) <= _WORDS[1] and re.fullmatch(r"[A-Z][A-Za-z ,;'.?!]+[.?!]", plain):
                found.append(plain)
    return found


def spoken(folder: Path, kind: str, said: Iterator[str], voices: Sequence[str], clips: int, words: int) -> None:
    """Writes clips until there are so many, or so many words, and the file that names them."""
    (folder / kind).mkdir(parents=True)
    lines: list[str] = []
    count = 0
    for number, text in enumerate(said):
        if len(lines) == clips or count >= words:
            break
        path = Path(kind) / f"{number:04}.wav"
        voice, speed = voices[number % len(voices)], 130 + 15 * (number // len(voices) % 4)
        subprocess.run(["espeak-ng", "-v", voice, "-s", str(speed), "-w", str(folder / path), text], check=True)
        lines.append(json.dumps({"audio": str(path), "transcript": text, "language": "en"}))
        count += len(text.split())
    (folder / f"{kind}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{folder / kind}.jsonl: {len(lines)} clips, {count} words")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=200, help="clips to calibrate and train with (%(default)s)")
    parser.add_argument("--words", type=int, default=2000, help="to test with (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    speeches = corpora.addresses(corpora.fetch()[1])
    draw = random.Random(args.seed)
    for kind, voices, years, clips, words in (
        ("train", TRAIN_VOICES, range(1945, 2020), args.train, 10**9),
        ("test", TEST_VOICES, range(2020, 3000), 10**9, args.words),
    ):
        said = sentences([text for year, text in speeches if year in years])
        spoken(args.folder, kind, iter(draw.sample(said, len(said))), voices, clips, words)


if __name__ == "__main__":
    main()
