"""A packed folder as files of at most 16 MB, and back: for places that take no large files.

    python bench/parts.py split PACKED PARTS
    python bench/parts.py join PARTS PACKED

`parts.json` in PARTS lists every file of the folder with its size, its sha256 and its parts; `join` checks all of them
before the folder appears.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

from gossamer.errors import GossamerError
from gossamer.files import read_json
from gossamer.folders import new_folder

PART_BYTES = 16_000_000
LIST = "parts.json"


def split(folder: Path, parts: Path, size: int = PART_BYTES) -> int:
    """Writes the parts; returns how many there are."""
    if not folder.is_dir():
        raise GossamerError(f"{folder}: is no folder")
    listed: dict[str, Any] = {}
    with new_folder(parts) as place:
        for path in sorted(folder.iterdir()):
            names, digest, total = [], hashlib.sha256(), 0
            with path.open("rb") as file:
                while (data := file.read(size)) or not names:
                    names.append(f"{path.name}.{len(names):02}")
                    (place / names[-1]).write_bytes(data)
                    digest.update(data)
                    total += len(data)
            listed[path.name] = {"bytes": total, "sha256": digest.hexdigest(), "parts": names}
        (place / LIST).write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")
    return sum(len(entry["parts"]) for entry in listed.values())


def join(parts: Path, folder: Path) -> None:
    """Puts the folder together again.

    Raises:
        GossamerError: a part is missing, or a file does not have its hash.
    """
    with new_folder(folder) as place:
        for name, entry in read_json(parts / LIST).items():
            if Path(name).name != name or any(Path(part).name != part for part in entry["parts"]):
                raise GossamerError(f"{parts / LIST}: {name!r:.80} is no name of a file in a folder")
            digest = hashlib.sha256()
            with (place / name).open("wb") as file:
                for part in entry["parts"]:
                    if not (parts / part).is_file():
                        raise GossamerError(f"{parts / part}: missing")
                    data = (parts / part).read_bytes()
                    digest.update(data)
                    file.write(data)
            if digest.hexdigest() != entry["sha256"]:
                raise GossamerError(f"{parts}: {name} has sha256 {digest.hexdigest()}, not {entry['sha256']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("split", "join"))
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    args = parser.parse_args()
    try:
        if args.action == "split":
            print(f"{args.target}: {split(args.source, args.target)} parts")
        else:
            join(args.source, args.target)
            print(f"{args.target}: every hash is right")
    except GossamerError as error:
        raise SystemExit(f"parts: {error}") from None


if __name__ == "__main__":
    main()
