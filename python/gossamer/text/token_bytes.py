"""The bytes that each token stands for, which its text by itself may not show: half a character, or a first blank."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_BLANK = "\u2581"  # as SentencePiece writes it


def byte_reader(decoder: Any) -> Callable[[str], bytes]:
    """Returns what turns a token, as the vocabulary writes it, into bytes.

    Args:
        decoder: The `decoder` of tokenizer.json.
    """
    kinds = {step.get("type"): step for step in _steps(decoder)}
    if "ByteLevel" in kinds:
        letters = _letters()
        return lambda token: (
            bytes(letters[letter] for letter in token) if letters.keys() >= set(token) else token.encode()
        )
    blanks = "Metaspace" in kinds or any(
        step.get("type") == "Replace" and step.get("content") == " " for step in _steps(decoder)
    )
    prefix = str(kinds["WordPiece"].get("prefix", "##")) if "WordPiece" in kinds else None

    def read(token: str) -> bytes:
        if "ByteFallback" in kinds and (match := _BYTE.fullmatch(token)):
            return bytes([int(match[1], 16)])
        if prefix is not None:
            return (token.removeprefix(prefix) if token.startswith(prefix) else f" {token}").encode()
        return (token.replace(_BLANK, " ") if blanks else token).encode()

    return read


def _steps(decoder: Any) -> Iterator[dict[str, Any]]:
    """The steps of a decoder, those within others too."""
    if isinstance(decoder, dict):
        yield decoder
        for inner in decoder.get("decoders") or ():
            yield from _steps(inner)


def _letters() -> dict[str, int]:
    """The letters that GPT-2's vocabulary writes bytes as: themselves where they can be seen, later ones elsewhere."""
    seen = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    unseen = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + i): byte for i, byte in enumerate(unseen)}
