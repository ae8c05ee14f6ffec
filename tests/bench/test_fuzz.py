"""bench/fuzz.py in small: inputs are the same for the same seed, and faults of every kind are seen."""

from __future__ import annotations

import importlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

from checkout import ROOT
from gossamer import GossamerError

KINDS = ["gguf", "safetensors", "packed", "compressed"]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "bench"))
        folder = tmp_path_factory.mktemp("fuzz") / "inputs"
        importlib.import_module("fuzz_inputs").make(folder, KINDS)
    return folder


@pytest.fixture
def fuzz(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module("fuzz")


def answers(fuzz: Any, inputs: Any, numbers: list[int]) -> list[dict[str, Any]]:
    out = io.StringIO()
    fuzz.work(inputs, numbers, out)
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["number"] for line in lines[::2]] == numbers
    return lines[1::2]


def test_valid_inputs_run(fuzz: Any, places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "changed", lambda _kind, files, _rng: files)
    found = answers(fuzz, fuzz.Inputs(places, 1), list(range(12)))
    assert {answer["outcome"] for answer in found} == {"ran"}, found


def test_changed_inputs_run_or_are_refused(fuzz: Any, places: Path) -> None:
    found = answers(fuzz, fuzz.Inputs(places, 2), list(range(60)))
    outcomes = [answer["outcome"] for answer in found]
    assert set(outcomes) == {"ran", "refused"}, found


def test_the_same_number_is_the_same_input(fuzz: Any, places: Path) -> None:
    first, second, other = (fuzz.Inputs(places, seed) for seed in (1, 1, 2))
    assert [first.get(n)[:2] for n in range(20)] == [second.get(n)[:2] for n in range(20)]
    assert [first.get(n)[:2] for n in range(20)] != [other.get(n)[:2] for n in range(20)]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (GossamerError("a.gguf: truncated"), "refused"),
        (GossamerError(""), "bad line"),
        (KeyError("x"), "elsewhere"),
    ],
)
def test_errors_are_judged(fuzz: Any, error: Exception, outcome: str) -> None:
    assert fuzz.judge(error)[0] == outcome


def test_an_error_out_of_the_package_is_a_fault(fuzz: Any) -> None:
    from gossamer.text.tokenizer import Tokenizer

    with pytest.raises(TypeError) as raised:
        Tokenizer.from_folder("no path")  # type: ignore[arg-type]
    outcome, line = fuzz.judge(raised.value)
    assert outcome == "exception"
    assert line.startswith("TypeError: ")
    assert "tokenizer.py" in line
