"""Rules of length that no tool checks: prose within 120 columns, sources within 400 lines."""

from __future__ import annotations

import subprocess

import pytest

from checkout import ROOT

COLUMNS, LINES = 120, 400
SOURCES = (".h", ".inc", ".cc", ".cu", ".py", ".pyi")


def wide_prose(name: str, text: str) -> list[str]:
    """Lines of Markdown that are too long, outside of code blocks and tables; a word alone cannot be broken."""
    complaints, code = [], False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            code = not code
        elif not code and len(line) > COLUMNS and not line.startswith("|") and " " in line.strip():
            complaints.append(f"{name}:{number}: {len(line)} columns: {line[:60]}")
    return complaints


def long_source(name: str, text: str) -> list[str]:
    count = len(text.splitlines())
    return [f"{name}: {count} lines: it holds more than one thing"] if count > LINES else []


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """Markdown and sources of the repository by their path."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, check=True, capture_output=True, text=True).stdout.splitlines()
    files = {name: ROOT / name for name in names if name.endswith((".md", *SOURCES)) and (ROOT / name).is_file()}
    assert {name.partition("/")[0] for name in files} >= {"README.md", "bench", "csrc", "docs", "python", "tests"}
    return {name: path.read_text("utf-8") for name, path in files.items()}


def test_prose_stays_within_its_columns(texts: dict[str, str]) -> None:
    complaints = [c for name, text in texts.items() if name.endswith(".md") for c in wide_prose(name, text)]
    assert not complaints, "\n".join(complaints)


def test_sources_stay_short(texts: dict[str, str]) -> None:
    complaints = [c for name, text in texts.items() if name.endswith(SOURCES) for c in long_source(name, text)]
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize("line", ["word " * 25, "- " + "word " * 24, "# " + "word " * 24, "    " + "word " * 24])
def test_prose_rule_catches(line: str) -> None:
    assert [c.split(":")[:2] for c in wide_prose("a.md", f"# A\n\n```\ncode\n```\n{line}\n")] == [["a.md", "6"]]


@pytest.mark.parametrize(
    "text",
    [
        "x" * 120,
        "| " + "cell " * 40,
        "```\n" + "code " * 40 + "\n```\n",
        f"[a]:\n{'x' * 130}",
        "é" * 60 + " " + "x" * 59,
    ],
)
def test_prose_rule_accepts_what_is_right(text: str) -> None:
    assert wide_prose("a.md", text) == []


def test_length_rule_catches() -> None:
    assert long_source("a.py", "x\n" * 401) == ["a.py: 401 lines: it holds more than one thing"]
    assert long_source("a.py", "x\n" * 400) == []
