"""A tokenizer.json cannot have the library that runs it fill the memory, and its panics are errors like others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gossamer.errors import GossamerError
from gossamer.text.tokenizer import Tokenizer
from gossamer.text.tokenizer_limits import refused
from tiny import save_tokenizer


def replace(content: str, **pattern: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def sequence(*steps: Any) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(steps)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tokenizer(tmp_path)
    return tmp_path


def write(folder: Path, **parts: Any) -> Path:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | parts))
    return path


GROWS = {
    "in one step": (replace("y" * 65, String=" "), "its normalizer makes up to 65 letters of one"),
    "in steps": (sequence(*[replace("y" * 16, Regex=".")] * 8), "makes up to 4.29e+09 letters of one"),
    "in steps of steps": (sequence(*[sequence(*[replace("yy", String="y")] * 4)] * 4), "makes up to 6.55e+04 letters"),
    "between letters": (sequence(*[replace("y", Regex="z*")] * 7), "makes up to 128 letters of one"),
    "at borders": (sequence(*[replace("y", Regex=r"\b")] * 7), "makes up to 128 letters of one"),
    "of nothing": (sequence(*[replace("y", String="")] * 7), "makes up to 128 letters of one"),
    "by its length": (replace("y" * 2000, String="x" * 2000), "content of it has more than 1024 letters"),
    "in front": ({"type": "Prepend", "prepend": "y" * 2000}, "its normalizer puts a text of 2000 letters into others"),
    "beyond floats": (sequence(*[replace("y" * 999, Regex=".")] * 500), "letters of one"),
}


@pytest.mark.parametrize("case", GROWS)
def test_what_makes_long_texts_of_short_ones_is_refused(folder: Path, case: str) -> None:
    normalizer, words = GROWS[case]
    path = write(folder, normalizer=normalizer)
    with pytest.raises(GossamerError) as error:
        Tokenizer.from_folder(folder)
    assert str(error.value).startswith(f"{path}: not a valid tokenizer: ")
    assert words in str(error.value)


def test_a_decoder_may_not_either(folder: Path) -> None:
    steps = [replace("yyyy", String="e")] + [replace("yyyy", String="y")] * 3
    write(folder, decoder={"type": "Sequence", "decoders": steps})
    with pytest.raises(GossamerError, match="its decoder makes up to 256 letters of one"):
        Tokenizer.from_folder(folder)


@pytest.mark.parametrize(
    "normalizer",
    [
        None,
        {"type": "NFC"},
        sequence({"type": "Prepend", "prepend": "▁"}, replace("▁", String=" ")),
        sequence(*[replace(" ", Regex=" {2,}")] * 30),
        sequence(*[replace('"', String="``")] * 30, {"type": "Lowercase"}),
    ],
)
def test_usual_normalizers_are_taken(folder: Path, normalizer: Any) -> None:
    write(folder, normalizer=normalizer)
    assert Tokenizer.from_folder(folder).encode("the net")


def test_a_token_that_is_as_long_as_a_book_is_refused(folder: Path) -> None:
    write(folder, added_tokens=[{"id": 300, "content": "<" + '"' * 1200, "special": True}])
    with pytest.raises(GossamerError, match="a token or another content of it has more than 1024 letters"):
        Tokenizer.from_folder(folder)
    save_tokenizer(folder)
    (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": "x" * 2000}))
    with pytest.raises(GossamerError, match="a special token has 2000 letters, more than 1024"):
        Tokenizer.from_folder(folder)


def test_files_beyond_all_that_are_known_are_not_read(folder: Path) -> None:
    for name in ("chat_template.jinja", "tokenizer.json"):
        with (folder / name).open("ab") as file:
            file.truncate(1 << 40)
        with pytest.raises(GossamerError, match=f"{name}: .*has more than"):
            Tokenizer.from_folder(folder)


def test_panics_are_errors_and_ctrl_c_is_none() -> None:
    class PanicException(BaseException):  # what the library raises has this name, and no other base
        pass

    for error in (PanicException("index out of bounds"), ValueError("no")):
        with pytest.raises(GossamerError, match=f"it does not: {error}"), refused("it does not"):
            raise error
    with pytest.raises(KeyboardInterrupt), refused("it does not"):
        raise KeyboardInterrupt
