"""The frontier's Pareto lines and plot, and packed folders in parts."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from checkout import ROOT
from gossamer.errors import GossamerError


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module


def point(side: str, name: str, speed: float, one: float, two: float) -> dict[str, Any]:
    return {
        "side": side, "name": name, "zeros": 0.0, "bytes": 1, "perplexity": {"one": one, "two": two},
        "tokens_per_second": {"median": speed, "rounds": [speed]},
    }  # fmt: skip


POINTS = [
    point("gossamer", "slow", 100, 10, 30),
    point("gossamer", "beaten", 90, 11, 29),
    point("gossamer", "fast", 300, 20, 31),
    point("gossamer", "as fast and worse", 300, 21, 40),
    point("llama.cpp", "only", 80, 9, 28),
]


def test_the_line_has_what_nothing_beats_on_both_axes(bench: Any) -> None:
    frontier: ModuleType = bench("frontier")
    ours = [p for p in POINTS if p["side"] == "gossamer"]
    assert [p["name"] for p in frontier.pareto(ours, "one")] == ["fast", "slow"]
    assert [p["name"] for p in frontier.pareto(ours, "two")] == ["fast", "slow", "beaten"]


def test_the_plot_shows_every_variant_of_both_sides(bench: Any, tmp_path: Path) -> None:
    frontier: ModuleType = bench("frontier")
    for name in ("frontier.svg", "again.svg"):
        frontier.draw(frontier.new_figure(tmp_path / name), POINTS, tmp_path / name)
    drawn = (tmp_path / "frontier.svg").read_text("utf-8")
    for p in POINTS:
        assert drawn.count(f": {p['name']} -->") == 1
    for number in range(1, len(POINTS) + 1):
        assert drawn.count(f"<!-- {number} -->") >= 2  # once for each text
    assert drawn == (tmp_path / "again.svg").read_text("utf-8")


def test_the_committed_plot_shows_the_committed_results() -> None:
    drawn = (ROOT / "docs" / "frontier.svg").read_text("utf-8")
    points = json.loads((ROOT / "bench" / "results" / "frontier.json").read_text("utf-8"))["points"]
    assert all(f" {p['side']}: {p['name']} -->" in drawn for p in points)
    assert all(f"<!-- {title} -->" in drawn for title in ("prose of the factbook", "addresses after 2019"))


def test_parts_are_small_and_come_together_again(bench: Any, tmp_path: Path) -> None:
    parts: ModuleType = bench("parts")
    (tmp_path / "packed").mkdir()
    contents = {"weights.bin": bytes(range(256)) * 5, "empty.txt": b"", "small.json": b"{}"}
    for name, data in contents.items():
        (tmp_path / "packed" / name).write_bytes(data)
    assert parts.split(tmp_path / "packed", tmp_path / "parts", size=500) == 5
    assert max(path.stat().st_size for path in (tmp_path / "parts").glob("*.0*")) == 500
    parts.join(tmp_path / "parts", tmp_path / "joined")
    assert {path.name: path.read_bytes() for path in (tmp_path / "joined").iterdir()} == contents

    (tmp_path / "parts" / "weights.bin.01").write_bytes(b"x" * 500)
    with pytest.raises(GossamerError, match=r"parts: weights\.bin has sha256"):
        parts.join(tmp_path / "parts", tmp_path / "wrong")
    (tmp_path / "parts" / "weights.bin.01").unlink()
    with pytest.raises(GossamerError, match=r"weights\.bin\.01: missing"):
        parts.join(tmp_path / "parts", tmp_path / "wrong")
    listed = tmp_path / "parts" / "parts.json"
    listed.write_text(json.dumps({"../out": {"sha256": "", "parts": []}}), encoding="utf-8")
    with pytest.raises(GossamerError, match="is no name of a file"):
        parts.join(tmp_path / "parts", tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()
