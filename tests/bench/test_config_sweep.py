"""bench/config_sweep.py in small: a config that both read alike is equal, and faults of every kind are seen."""

from __future__ import annotations

import importlib
import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="transformers' models are the oracle here")
pytest.importorskip("transformers", reason="the oracle")

from checkout import ROOT
from gossamer.arch import gpt2


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module("config_sweep")


def judge(bench: Any, folder: Path, change: dict[str, Any]) -> tuple[str, str]:
    """What comes of a change to GPT-2's config, and the line about it."""
    sweep = bench.Sweep("gpt2", folder)
    base = bench.made.BASES["gpt2"][0]
    assert sweep.judge("small", base, {})["outcome"] == "equal"
    found = sweep.judge("small", base, change)
    return found["outcome"], found["line"]


@pytest.mark.parametrize(
    ("change", "outcome", "words"),
    [
        ({"layer_norm_epsilon": 0.3}, "equal", ""),
        ({"activation_function": "REMOVED"}, "equal", ""),
        ({"scale_attn_by_inverse_layer_idx": True}, "refused", "scale_attn_by_inverse_layer_idx is not supported"),
        ({"logit_scale": 0.5}, "unkind", "logit_scale is not supported"),
        ({"n_head": 5}, "both refuse", "n_embd 48 is not a multiple of n_head 5"),
        ({"use_cache": 1}, "ours alone", "use_cache"),
    ],
)
def test_outcomes(bench: Any, tmp_path: Path, change: dict[str, Any], outcome: str, words: str) -> None:
    found, line = judge(bench, tmp_path, change)
    assert found == outcome
    assert words in line


def test_faults_are_seen(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    number = gpt2.number
    monkeypatch.setattr(gpt2, "number", lambda config, key, default: min(number(config, key, default), 0.1))
    assert judge(bench, tmp_path, {"layer_norm_epsilon": 0.3})[0] == "WRONG"
    assert judge(bench, tmp_path, {"layer_norm_epsilon": "x"})[0] == "both refuse"
    monkeypatch.setattr(gpt2, "number", lambda config, key, default: float(config.get(key, default)))
    outcome, line = judge(bench, tmp_path, {"layer_norm_epsilon": "x"})
    assert outcome == "CRASH"
    assert line.startswith("ValueError: could not convert string to float: 'x'")


def test_the_same_seed_gives_the_same_inputs(bench: Any) -> None:
    first, again, other = (list(bench.made.inputs("llama", seed, 5)) for seed in (1, 1, 2))
    assert first == again != other
    keys = {key for _, _, change in first for key in change}
    assert {"rope_parameters", "sliding_window", "rotary_pct", "head_dim", "layer_types"} <= keys
    assert {len(change) for _, _, change in first} == {0, 1, 2, 3}


def test_a_few_inputs_of_every_family_have_no_fault(bench: Any, tmp_path: Path) -> None:
    faults, outcomes = [], set()
    for family in bench.made.BASES:
        folder = tmp_path / family
        folder.mkdir()
        sweep = bench.Sweep(family, folder)
        every = list(bench.made.inputs(family, 1, 5))
        base = [one for one in every if not one[2]][:1]
        for name, config, change in base + random.Random(f"few {family}").sample(every, 6):
            found = sweep.judge(name, config, change)
            outcomes.add(found["outcome"])
            if found["outcome"] in ("WRONG", "CRASH") or not (change or found["outcome"] == "equal"):
                faults.append((family, change, found))
    assert not faults
    assert {"equal", "both refuse", "refused"} <= outcomes
