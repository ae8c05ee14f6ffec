"""Pictures as people see them: no text on another one or outside of the figure, plain ticks."""

from __future__ import annotations

import importlib
import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest

from checkout import ROOT
from gossamer.cli import layer_picture, speed_picture
from gossamer.cli.layers import Layer

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure
from matplotlib.text import Text

from gossamer.finetune import plot
from gossamer.pictures import new_figure


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Draws a figure again and looks at every text that is really drawn."""

    def look(figure: Figure) -> list[str]:
        found: list[Text] = []
        original = Text.draw
        with monkeypatch.context() as patch:
            patch.setattr(Text, "draw", lambda text, renderer: (found.append(text), original(text, renderer)))
            figure.draw_without_rendering()
        texts = [text for text in dict.fromkeys(found) if text.get_text().strip() and text.get_visible()]
        boxes = [(text.get_text(), Text.get_window_extent(text)) for text in texts]
        for name, box in boxes:
            assert min(box.x0, box.y0) >= 0, f"{name!r} leaves the figure"
            assert box.x1 <= figure.bbox.x1, f"{name!r} leaves the figure"
            assert box.y1 <= figure.bbox.y1, f"{name!r} leaves the figure"
        for (one, a), (two, b) in itertools.combinations(boxes, 2):
            assert not a.overlaps(b), f"{one!r} covers {two!r}"
        names = [name for name, _ in boxes]
        assert not any("$" in name or "times" in name for name in names)
        return names

    return look


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module


def crowd() -> list[dict[str, Any]]:
    """Forty variants, most in a heap, with long names."""
    source = random.Random(1)
    return [
        {
            "side": "gossamer" if i % 2 else "llama.cpp",
            "name": f"variant {i}" + " of a long name" * (i % 6),
            "tokens_per_second": {"median": 100 + source.gauss(0, 1 if i % 4 else 60)},
            "perplexity": {text: 20 + abs(source.gauss(0, 0.2 if i % 4 else 9)) for text in ("one", "two")},
        }
        for i in range(40)
    ]


@pytest.mark.parametrize("made_up", [False, True])
def test_frontier(bench: Any, check: Any, tmp_path: Path, made_up: bool) -> None:
    frontier = bench("frontier")
    points = crowd() if made_up else bench("report").read_results()["frontier"]["points"]
    figure = new_figure(tmp_path / "a.svg")
    frontier.draw(figure, points, tmp_path / "a.svg")
    names = check(figure)
    for number in range(1, len(points) + 1):
        assert names.count(str(number)) >= 2


def test_roofline(bench: Any, check: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = bench("report_plot")
    figure = Figure(figsize=(8, 6), layout="constrained")
    monkeypatch.setattr(report, "new_figure", lambda _: figure)
    report.plot(bench("report").read_results()["kernels"], tmp_path / "a.svg")
    assert "bits a weight position" in check(figure)


@pytest.mark.parametrize("name", ["finetune", "finetune-int4", "finetune-both-kinds"])
def test_finetuning(check: Any, tmp_path: Path, name: str) -> None:
    report = json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text("utf-8"))["training"]
    figure = new_figure(tmp_path / "a.svg")
    plot.draw(figure, report, tmp_path / "a.svg")
    names = " ".join(check(figure))
    assert "cross-entropy" in names
    assert "SquareHead" not in names  # it has no weight in these runs


@pytest.mark.parametrize("blocks", [1, 30, 100])
@pytest.mark.parametrize(
    "parts", [("q", "down"), ("attention.query_key_value", "moe.experts.3.a_long_name_of_a_part.w1")]
)
def test_inspect(check: Any, tmp_path: Path, blocks: int, parts: tuple[str, ...]) -> None:
    layers = [Layer("embed", 100, 10, 0.0, "", "dense", "f16", 2000)]
    for block in range(blocks):
        for i, part in enumerate(parts):
            kind = ("bitmap", "csr", "nm")[(block + i) % 3]
            layers.append(Layer(f"model.layers.{block}.{part}.weight", 10, 10, 0.5, "", kind, "int8/64", 50))
    figure = new_figure(tmp_path / "a.svg")
    layer_picture.draw(figure, layers, tmp_path / "a.svg")
    names = check(figure)
    assert {"embed", "zeros, %", "50.0%", "0.0%"} <= set(names)


@pytest.mark.parametrize("roof", [None, 40.0])
@pytest.mark.parametrize("depths", [(0,), (0, 512, 4096)])
@pytest.mark.parametrize("kinds", ["pp", "tg", "pp tg"])
def test_bench(check: Any, tmp_path: Path, kinds: str, depths: tuple[int, ...], roof: float | None) -> None:
    rows: list[dict[str, Any]] = []
    for depth in depths:
        common = {"threads": 2, "depth": depth}
        if "pp" in kinds:
            rows.append({**common, "batch": 1, "tokens_per_second": 500.0, "bytes_per_token": None})
        for batch in (1, 2, 4, 8, 16) if "tg" in kinds else ():
            parts = {"attn": 2e7 / batch, "mlp": 8e7 / batch, "KV": 4e4 * depth}
            read = {"bytes_per_token": sum(parts.values()), "bytes_by_part": parts, "percent_of_roof": roof}
            rows.append({**common, "batch": batch, "tokens_per_second": 70.0 * batch**0.5, **read})
    figure = new_figure(tmp_path / "a.svg", 12.0, 4.0)
    speed_picture.draw(figure, rows, "a-model", tmp_path / "a.svg")
    names = check(figure)
    assert ("bytes: mlp" in names) == ("16 texts at once" in names) == ("tg" in kinds)
    assert ("what bandwidth allows" in names) == (roof is not None and "tg" in kinds)
    assert ("tokens/s of prompts" in names) == ("pp" in kinds)


def test_parts_are_found_by_names_alone() -> None:
    names = ("head", "h.0.attn.w", "h.0.mlp.w", "h.1.attn.w", "h.1.mlp.w", "h.1.mlp.7.w", "h.1.mlp.8.w")
    parts, single = layer_picture.cells([Layer(name, 1, 1, 0.0, "", "dense", "f32", 4) for name in names])
    assert list(single) == ["head"]
    assert {part: {b: len(found) for b, found in row.items()} for part, row in parts.items()} == {
        "attn": {0: 1, 1: 1},
        "mlp": {0: 1, 1: 1},
        "mlp.*": {1: 2},
    }
