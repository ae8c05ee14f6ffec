"""The rule of length that no tool checks: prose within 120 columns."""

from __future__ import annotations

import subprocess

import pytest

from checkout import ROOT

COLUMNS = 120


def wide_prose(name: str, text: str) -> list[str]:
    """Lines of Markdown that are too long, outside of code blocks and tables; a word alone cannot be broken."""
    complaints, code = [], False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            code = not code
        elif not code and len(line) > COLUMNS and not line.startswith("|") and " " in line.strip():
            complaints.append(f"{name}:{number}: {len(line)} columns: {line[:60]}")
    return complaints


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """The Markdown of the repository by its path."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, check=True, capture_output=True, text=True).stdout.splitlines()
    files = {name: ROOT / name for name in names if name.endswith(".md") and (ROOT / name).is_file()}
    assert {name.partition("/")[0] for name in files} >= {"README.md", "CHANGELOG.md", "docs"}
    return {name: path.read_text("utf-8") for name, path in files.items()}


def test_prose_stays_within_its_columns(texts: dict[str, str]) -> None:
    complaints = [c for name, text in texts.items() for c in wide_prose(name, text)]
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
