from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from gossamer.cli import main
from gossamer.errors import GossamerError, naming, one_line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a.gguf: bad", "a.gguf: bad"),
        ("two  blanks, ü and 𝄞 stay", "two  blanks, ü and 𝄞 stay"),
        ("Error:\n\tkey\r\n", "Error: key"),
        ("name\ud800", "name\\ud800"),
        ("\x1b[2Jgone\x00", "\\x1b[2Jgone\\x00"),
        ("\u202etxt.exe", "\\u202etxt.exe"),
        ("x" * 5000, "x" * 2000 + "…"),
        ("\x1b" * 1999, "\\x1b" * 500 + "…"),
        ("", ""),
    ],
)
def test_an_error_is_one_line_that_can_be_printed(text: str, shown: str) -> None:
    assert one_line(text) == shown
    assert str(GossamerError(text)) == shown
    assert str(pickle.loads(pickle.dumps(GossamerError(text)))) == shown
    shown.encode()


def test_an_error_of_the_system_is_a_line_about_the_file(tmp_path: Path) -> None:
    with pytest.raises(GossamerError) as told, naming("model", "cannot write"):
        (tmp_path / "none" / "file").write_bytes(b"")
    assert str(told.value) == "model: cannot write: No such file or directory"
    with pytest.raises(GossamerError, match=r"^model: its own words$"), naming("model"):
        raise OSError("its own words")
    with pytest.raises(ValueError, match="no error of the system"), naming("model"):
        raise ValueError("no error of the system")


@pytest.mark.parametrize("name", ["caf\udce9", "two\nlines", "\x1b[2J", "x" * 300])
def test_names_of_files_that_nothing_can_print(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", name]) == 1
    line = capsys.readouterr().err
    assert line.startswith("gossamer: error: ")
    assert line.removesuffix("\n").isprintable()
    assert len(line) < 500


def test_a_line_of_the_shell_that_is_no_unicode(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gossamer", "generate", "-m", str(tmp_path).encode() + b"/caf\xe9", b"caf\xe9"]
    done = subprocess.run(command, capture_output=True, check=False, timeout=60)
    assert done.returncode in (1, 2)
    assert b"Traceback" not in done.stderr
    assert done.stderr.count(b"\n") == 1
