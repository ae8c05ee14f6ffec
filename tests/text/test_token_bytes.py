"""The bytes of tokens, against what the tokenizers themselves decode."""

from __future__ import annotations

import pytest
import tokenizers
from tokenizers import decoders, models

from gossamer.text.token_bytes import byte_reader
from gossamer.text.tokenizer import Tokenizer
from tiny import tiny_tokenizer


def test_bytes_of_a_byte_level_vocabulary_are_put_together_to_its_texts():
    tokenizer = Tokenizer(tiny_tokenizer())
    for text in ("a \n\t~\x00", "caf\u00e9 \u20ac", "\U0001f578"):
        assert b"".join(map(tokenizer.token_bytes, tokenizer.encode(text, special=False))) == text.encode()


def test_bytes_of_a_sentencepiece_vocabulary():
    words = ["<unk>", "\u2581", "a", "\u2581caf", "<0xC3>", "<0xA9>", "\u00e9"]
    backend = tokenizers.Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(["<s>"])
    tokenizer = Tokenizer(backend)
    ids = [2, 3, 4, 5, 1, 2]
    assert b"".join(map(tokenizer.token_bytes, ids)).decode() == tokenizer.decode(ids) == "a caf\u00e9 a"
    assert tokenizer.token_bytes(4) == b"\xc3"
    assert tokenizer.token_bytes(7) == b"<s>"
    assert tokenizer.token_bytes(99) == b""


@pytest.mark.parametrize(
    ("decoder", "token", "expected"),
    [
        (None, "<0x41>", b"<0x41>"),
        ({"type": "ByteLevel"}, "\u0120a", b" a"),
        ({"type": "ByteLevel"}, "\u20ac", "\u20ac".encode()),  # no letter of a byte
        ({"type": "Metaspace", "replacement": "\u2581"}, "\u2581a", b" a"),
        ({"type": "WordPiece", "prefix": "##"}, "##a", b"a"),
        ({"type": "WordPiece", "prefix": "##"}, "a", b" a"),
        ({"type": "Sequence", "decoders": [{"type": "ByteFallback"}]}, "<0xff>", b"\xff"),
    ],
)
def test_kinds_of_decoders(decoder, token: str, expected: bytes):
    assert byte_reader(decoder)(token) == expected
