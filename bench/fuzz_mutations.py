"""Mutations of files for bench/fuzz.py: bits, bytes, cuts, and values of JSON and of binary headers."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from typing import Any

_EXTREMES = (0, 1, 2, 3, 7, 127, 128, 255, 256, 32767, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32)
_EXTREMES += (2**48, 2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
_REALS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e38, 3.5e38, 1e308, 5e-324, float("nan"), float("inf"), float("-inf"))
_WORDS = (
    "",
    " ",
    "\x00",
    "\ud800",
    "\udfff",
    "ü",
    "F32",
    "BF16",
    "I64",
    "U8",
    "f32",
    "int8",
    "int4",
    "nm",
    "csr",
    "a8",
)
_WORDS += ("../x", "/etc/passwd", "\n", "\x1b[2J", "x" * 70000, "𝄞", "llama", "mistral", "yarn", "longrope", "dynamic")
_VALUES: tuple[Any, ...] = (None, True, False, [], {}, [[]], [None], -1, -(2**63), 10**30, 10**400, *_EXTREMES, *_REALS)
_VALUES += _WORDS
_TEMPLATES = (
    "{% for i in range(10 ** 9) %}{{ i }}{% endfor %}",
    "{{ 'a' * 10 ** 10 }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ messages.__class__.__mro__ }}",
    "{% include 'x' %}",
    "{{ 10 ** 10 ** 8 }}",
    "{{",
    "{% raw %}",
    "{{ '\ud800' }}",
    "{{ raise_exception('no\nno') }}",
    "{{ '\\ud800' }}",
    "{{ messages[99].content }}",
)
_DEEP = 100_000


def mutate_bytes(data: bytes, rng: random.Random, head: int = 0) -> bytes:
    """Returns changed bytes.

    Args:
        data: What is changed.
        rng: Draws.
        head: Bytes at the beginning that are changed more often than others: a file's header.
    """
    kept = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        if not kept:
            break
        end = head if head and head <= len(kept) and rng.random() < 0.6 else len(kept)
        place = rng.randrange(end)
        kind = rng.randrange(9)
        if kind < 3:
            kept[place] ^= 1 << rng.randrange(8)
        elif kind == 3:
            kept[place] = rng.choice((0, 1, 127, 128, 255, 32, 34, 44, 91, 93, 123, 125, rng.randrange(256)))
        elif kind == 4:
            size = rng.choice((2, 4, 8))
            place -= place % size
            kept[place : place + size] = _number(rng, size)
        elif kind == 5:
            del kept[place:]
        elif kind == 6:
            del kept[place : place + rng.choice((1, 2, 8, 64, 1000))]
        elif kind == 7:
            size = rng.choice((1, 4, 8, 64, 1000))
            kept[place:place] = kept[place : place + size] if rng.random() < 0.5 else rng.randbytes(size)
        else:
            size, other = rng.choice((1, 8, 64, 256)), rng.randrange(len(kept))
            first, second = kept[place : place + size], kept[other : other + size]
            kept[place : place + len(second)], kept[other : other + len(first)] = second, first
    return bytes(kept)


def _number(rng: random.Random, size: int) -> bytes:
    if size > 2 and rng.random() < 0.2:
        with_nan: float = rng.choice(_REALS)
        return struct.pack("<d", with_nan) if size == 8 else struct.pack("<I", rng.choice((0x7FC00000, 0x7F800000, 1)))
    return (rng.choice(_EXTREMES) % (1 << 8 * size)).to_bytes(size, "little")


def mutate_fields(data: bytes, fields: list[tuple[int, int]], rng: random.Random) -> bytes:
    """Returns a file with one to three of its numbers changed, which lie at (place, size)."""
    kept = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        place, size = rng.choice(fields)
        old = int.from_bytes(kept[place : place + size], "little")
        near = rng.choice((old + 1, old - 1, old * 2, old // 2, old ^ 1 << rng.randrange(8 * size)))
        new = near % (1 << 8 * size) if rng.random() < 0.5 else int.from_bytes(_number(rng, size), "little")
        kept[place : place + size] = new.to_bytes(size, "little")
    return bytes(kept)


def mutate_json(text: bytes, rng: random.Random) -> bytes:
    """Returns a JSON file with another structure or other values, or one that is none any more."""
    if rng.random() < 0.15:
        return mutate_bytes(text, rng)
    if rng.random() < 0.02:
        return rng.choice((b"", b"[]", b"null", b"3", b'"x"', b"\xef\xbb\xbf" + text, text.decode().encode("utf-16")))
    value = json.loads(text)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        value = _changed(value, rng)
    return _text(value, rng)


def _changed(value: Any, rng: random.Random) -> Any:
    """One change somewhere in a tree."""
    places: list[tuple[Any, Any]] = []
    _places(value, places, 6)
    if not places:
        return rng.choice(_VALUES)
    holder, key = rng.choice(places)
    kind = rng.randrange(8)
    if kind < 4:
        holder[key] = _other(holder[key], rng)
    elif kind == 4:
        del holder[key]
    elif kind == 5:
        other, other_key = rng.choice(places)
        copied = json.loads(json.dumps(other[other_key]))
        holder[key] = copied
    elif kind == 6 and isinstance(holder, dict):
        holder[rng.choice((*_WORDS, str(key) + "x", str(key).upper()))] = holder.pop(key)
    elif isinstance(holder, list):
        holder.insert(key, rng.choice((*_VALUES, holder[key])))
    else:
        holder[rng.choice(_WORDS)] = rng.choice(_VALUES)
    return value


def _other(old: Any, rng: random.Random) -> Any:
    if isinstance(old, str) and rng.random() < 0.3:
        return rng.choice((old + rng.choice(_WORDS), old[:-1], old[1:], old.upper(), old * 3, *_TEMPLATES))
    if type(old) in (int, float) and rng.random() < 0.4:
        return rng.choice((old + 1, old - 1, -old, old * 2, old / 2 if abs(old) < 1e300 else old, str(old), [old]))
    return rng.choice(_VALUES)


def _places(value: Any, found: list[tuple[Any, Any]], depth: int) -> None:
    """Every place of a tree that holds a value; of long lists and objects the first and last ones."""
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    items = list(items)
    for key, inner in items[:60] + items[60:][-20:]:
        found.append((value, key))
        if depth:
            _places(inner, found, depth - 1)


def _text(value: Any, rng: random.Random) -> bytes:
    try:
        text = json.dumps(value)
    except ValueError:  # the number of 400 digits
        text = json.dumps(str(value))
    kind = rng.random()
    if kind < 0.03 and text.startswith("{") and '":' in text:  # a key twice
        key = text[1 : text.index('":') + 2]
        text = "{" + key + " " + rng.choice(("0", "null", "[]", '"x"')) + ", " + text[1:]
    elif kind < 0.05:
        text = text.replace("{", '{"deep": ' + "[" * _DEEP + "]" * _DEEP + ", ", 1)
    elif kind < 0.06:
        text = text.replace("{", '{"long": ' + "9" * 5000 + ", ", 1)
    return text.encode("utf-8", "surrogatepass")


def mutate_safetensors(data: bytes, rng: random.Random) -> bytes:
    """Returns a safetensors file with another header, or other bytes anywhere."""
    size = int.from_bytes(data[:8], "little")
    kind = rng.random()
    if kind < 0.3:
        return mutate_bytes(data, rng, 8 + size)
    if kind < 0.45:  # streams: the header stays what it is
        return data[: 8 + size] + mutate_values(data[8 + size :], rng)
    if kind < 0.5:
        return mutate_fields(data, [(0, 8)], rng)
    header = json.loads(data[8 : 8 + size])
    names = [name for name in header if name != "__metadata__"]
    change = rng.randrange(6)
    first, second = rng.choice(names), rng.choice(names)
    body = bytearray(data[8 + size :])
    if change == 0:
        text = mutate_json(json.dumps(header).encode(), rng)
        return len(text).to_bytes(8, "little") + text + body
    if change == 1:
        header[first], header[second] = header[second], header[first]
    elif change == 2:
        header[first]["shape"], header[second]["shape"] = header[second]["shape"], header[first]["shape"]
    elif change == 3:  # the same bytes as another type or shape
        entry = header[first]
        count = entry["data_offsets"][1] - entry["data_offsets"][0]
        width, dtype = rng.choice(((1, "U8"), (1, "I8"), (1, "BOOL"), (2, "F16"), (2, "BF16"), (4, "F32"), (8, "I64")))
        cut = rng.choice([n for n in (1, 2, 3, 8, 16) if count // width % n == 0])
        entry |= {"dtype": dtype, "shape": rng.choice(([count // width], [cut, count // width // cut]))}
    else:  # one tensor is gone, or of another length, and the file stays one
        begin, end = header[first]["data_offsets"]
        less = end - begin if change == 4 else rng.choice((1, 8, 64, (end - begin) // 2)) % (end - begin + 1)
        del body[end - less : end]
        if change == 4:
            del header[first]
        else:
            header[first] |= {"dtype": "U8", "shape": [end - begin - less]}
        for name in names:
            if name in header:
                header[name]["data_offsets"] = [n - less if n >= end else n for n in header[name]["data_offsets"]]
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def mutate_values(data: bytes, rng: random.Random) -> bytes:
    """Returns data of the same length with other values."""
    changed = mutate_bytes(data, rng)
    return (changed + data[len(changed) :])[: len(data)]


def mutate_template(text: bytes, rng: random.Random) -> bytes:
    """Returns another chat template."""
    if rng.random() < 0.5:
        return mutate_bytes(text, rng)
    place = rng.randrange(len(text) + 1)
    return text[:place] + rng.choice(_TEMPLATES).encode("utf-8", "surrogatepass") + text[place:]


def gguf_fields(data: bytes) -> list[tuple[int, int]]:
    """Returns place and size of every number in the header of a GGUF file: counts, types, lengths, values, offsets."""
    found: list[tuple[int, int]] = [(4, 4), (8, 8), (16, 8)]
    sizes = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
    place = 24

    def number(size: int) -> int:
        nonlocal place
        found.append((place, size))
        place += size
        if place > len(data):
            raise IndexError("the header of a file that was changed before")
        return int.from_bytes(data[place - size : place], "little")

    def text() -> None:
        nonlocal place
        place += number(8)

    def value(kind: int) -> None:
        if kind == 8:
            text()
        elif kind == 9:
            inner, count = number(4), number(8)
            for _ in range(count):
                value(inner)
        else:
            number(sizes[kind])

    tensors, keys = (int.from_bytes(data[at : at + 8], "little") for at in (8, 16))
    for _ in range(keys):
        text()
        value(number(4))
    for _ in range(tensors):
        text()
        for _ in range(number(4)):
            number(8)
        number(4)
        number(8)
    return [*found, (place, 0)]


def mutate_gguf(data: bytes, rng: random.Random) -> bytes:
    """Returns a GGUF file with other numbers in its header, or other bytes anywhere."""
    *fields, (head, _) = gguf_fields(data)
    kind = rng.random()
    if kind < 0.5:
        # Most numbers stand in the lists of tokens: those at the beginning and of the tensors come as often.
        few = fields[:3] + [field for field in fields if field[1] > 1 and rng.random() < 0.1][-80:]
        return mutate_fields(data, few if rng.random() < 0.5 else fields, rng)
    if kind < 0.65:
        return data[:head] + mutate_values(data[head:], rng)
    return mutate_bytes(data, rng, head)


MUTATIONS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".safetensors": mutate_safetensors,
    ".json": mutate_json,
    ".jinja": mutate_template,
    ".gguf": mutate_gguf,
}
"""How a file is changed, by the end of its name."""
