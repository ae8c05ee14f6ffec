from __future__ import annotations

import copy
import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from checkout import ROOT

FACTS = {
    "processor": "A processor", "cores": 2, "isa": "avx2", "compiler": "GCC 1", "date": "2031-02-03T04:05:06+00:00",
    "commit": "0123456789abcdef",
}  # fmt: skip


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module("report")


def kernel_row(kernel: str, rows: int, rate: float, **values: Any) -> dict[str, Any]:
    format, _, type, _ = kernel.partition("__")[0].split("_")
    return {
        "kernel": kernel, "models": ["m"], "format": format, "type": type, "rows": rows, "cols": 64, "zeros": 0.5,
        "batch": 1, "bytes": rows * 64 // 2, "positions_per_second": rate, "bandwidth": rate / 2, "plain_reads": 30.0,
        "prefetched_reads": 40.0, "share": rate / 80, **values,
    }  # fmt: skip


def spread(value: float) -> dict[str, float]:
    return {"median": value, "min": value - 0.25, "max": value + 0.25}


def results() -> dict[str, Any]:
    """One small result of each kind, with numbers that can be told apart."""
    rows = [
        kernel_row("bitmap_linear_int8_a8__avx2", 32, 20.0, zeros=0.4999),
        kernel_row("bitmap_linear_int8_a8__avx2", 64, 60.0, zeros=0.5001),
        kernel_row("bitmap_linear_int8_a8__scalar", 32, 1.0, zeros=0.4999),
        kernel_row("bitmap_linear_int8_a8__avx2", 32, 99.0, zeros=0.4999, batch=4),
        kernel_row("dense_linear_f16_f32__avx2", 32, 10.0, zeros=0.0),
    ]
    kernels = {"facts": FACTS, "threads": 2, "rounds": 5, "in_cache": False, "rows": rows}
    wanted = [
        {"what": "fast", "value": 0.875, "at_least": 0.9, "reached": False, "measured": rows[:1]},
        {"what": "small", "value": 1.125, "at_most": 1.2, "reached": True, "measured": rows[:2]},
    ]
    model = {
        "llama_cpp": {"type": "Q4_0", "head": "Q6_K", "file_bytes": 77e6, "tg8": {"median": 100.0}, "perplexity": 11.5},
        "gossamer": {
            "model": "packed", "synthetic": None, "weights": {"head dense int8": 1, "bitmap int4": 14},
            "bytes_per_token": 55e6, "tg8": {"median": 150.0}, "perplexity": 12.5,
        },
        "tg8_ratio": spread(1.5),
    }  # fmt: skip
    llama = {"facts": FACTS, "gguf": "a.gguf", "text": "prose", "threads": 2, "rounds": 3, "pairs": [model]}
    made_up = copy.deepcopy(llama)
    made_up |= {"gguf": None, "text": None}
    made_up["pairs"][0]["gossamer"] |= {"model": "shape", "synthetic": {"sparsity": 0.75, "pattern": None}}
    side = {"seconds": 1.0, "rounds": [1.0]}
    row = {"layers": 8, "sparsity": 0.75, "format": "bitmap", "deepsparse_version": "1.8", "ratio": spread(1.25)}
    row |= {name: {**side, "positions_per_second": speed} for name, speed in (("deepsparse", 80.0), ("gossamer", 99.5))}
    stacks = {"facts": FACTS, "size": 4096, "group": 64, "rounds": 5, "threads": 2, "median_ratio": 1.25, "rows": [row]}
    times = {"step": 0.004, "regions": 0.0035, "no_barriers": 0.003}
    shares = {"regions": 0.125, "no_barriers": 0.25}
    step = {"model": "packed", "threads": 2, "seconds": times, "overhead": shares}
    sides = {"dense": 20.0, "sparse": 30.0}
    whole = {
        "model": "shape", "weights": "int4", "head": "int8", "zeros": "0.75", "asked": 1.4, "speedup": 1.5,
        "formats": ["bitmap", "csr"], "bytes_allow": 1.625, "tokens_per_second": sides,
        "seconds": {"dense": [0.5, 0.75, 1.0], "sparse": [0.25, 0.5, 1.0]},
    }  # fmt: skip
    chosen = {
        "model": "shape", "weights": "int8", "zeros": "0.3", "best": "dense", "auto": ["bitmap"],
        "auto_over_best": 0.975, "tokens_per_second": {"auto": 39.0, **sides},
    }  # fmt: skip
    prompt = {"tokens": 2048, "tokens_per_second": {"f32": 1000.0, "bf16": 1250.0}, "speedup": {"f32": 1, "bf16": 1.3}}
    step_cost = {"weights": "int8", "zeros": "0.75", "cost": {"1": 1.0, "4": 1.25, "8": 1.75}}
    deep = {"weights": "int4", "depth": 4096, "tokens_per_second": {"f16": 50.0, "int8": 75.0}}
    read = {"shape": [9, 3, 64, 30], "kv": "f16", "gigabytes_per_second": 24.25, "share": 0.8125}
    kinds = {"copy greedy": {"mean": 2.5, "least": 1.75}}
    converted = {"what": "convert int4", "options": ["--weights", "int4"], "seconds": 12.5, "bytes": 2.5e9}
    return {
        "long_context_depth": {"facts": FACTS, "rows": [deep | {"over_f16": {"f16": 1.0, "int8": 1.5}}]},
        "long_context_attention": {"facts": FACTS, "rows": [read]},
        "drafts": {"facts": FACTS, "setup": {"weights": "int4", "tokens": 9, "rounds": 5}, "summary": kinds},
        "conversion": {"facts": FACTS, "setting": {"model": "shape"}, "rows": [converted | {"peak_bytes": 0.75e9}]},
        **uses(),
        **features(),
        "whole_models_batch": {"facts": FACTS, "rows": [step_cost]},
        "prompt_peers": {
            "facts": FACTS, "gguf": "m.gguf", "threads": 2,
            "rows": [
                {"tokens": 512, "tokens_per_second": {"gossamer": 30.0, "openvino": 20.0}, "over": {"openvino": 1.5}}
            ],
        },
        "whole_models_prompts": {"facts": FACTS, "rows": [prompt]},
        "whole_models_zeros": {"facts": FACTS, "rows": [whole, {**whole, "zeros": "2:4"}]},
        "whole_models_formats": {"facts": FACTS, "rows": [chosen]},
        "overhead": {"facts": FACTS, "context": 48, "steps": 20, "rows": [step]},
        "kernels": kernels,
        "kernels-in-cache": {**kernels, "in_cache": True},
        "kernels_acceptance": {
            "facts": FACTS, "threads": 2, "rows": wanted,
            "avx2_wins_below": {"dense_x": None, "bitmap_x": 6.25, "nm_x": None, "csr_x": 0.0},
        },
        "llama_cpp": llama,
        "llama_cpp-shape": made_up,
        "deepsparse": stacks,
    }  # fmt: skip


def uses() -> dict[str, Any]:
    """Of serving, with a peer, and the mixed load by itself; of Ray, and its simulation; of speech; of vectors."""
    fixed = {
        "tokens_per_second": {"gossamer": {"1": 100.0, "8": 300.0}, "peer": {"1": 50.0, "8": 200.0}},
        "over_one_client": {"1": 1.0, "8": 3.0},
        "over_peer": {"1": 2.0, "8": 1.5},
    }
    mixed = {"answers": 9, "wrong": 0, "errors": ["one"], "tokens_per_second": 80.0, "memory_ratio": 1.25}
    mixed |= {"first_token_p50": 1.5, "first_token_p95": 2.5}
    side = {"seconds": 2.0, "over_first": 1.0, "over_peer": 1.5, "wrong": 1, "words": 71}
    row = {"side": "dense int8", "batch": 32, "per_second": 200.0, "over_torch": 2.25, "least_cosine": 0.99875}
    served = {"model": "packed", "peer": "other -p 1", "fixed": fixed, "mixed": mixed, "gone": {"kv_bytes": 0.0}}
    served["serve"] = "--draft off"
    mixed_alone = {name: served[name] for name in ("model", "serve", "peer", "gone")}
    mixed_alone["mixed"] = {**mixed, "memory": [2.0**28] * 2, "keys_and_values": [2.0**27] * 2}
    once = {"ray": 75.0, "plain": 100.0, "ray_over_plain": 0.75}
    killed = {"whole": 16, "streams": 5, "streams_that_ended_in_an_error_event": 11, "lost": 0}
    load = {"rate": 1.5, "tokens_per_second": 99.0, "tokens_per_second_measured": 110.0, "p95": 2.5}
    load |= {"tokens_per_second_off": -0.1, "p95_measured": 2.0, "p95_off": 0.25}
    heard = [{"side": "dense", **side, "step_seconds": 0.005, "step_over_first": 1.0}, {"side": "peer", **side}]
    speech = {"files": 5, "beams": 5, "threads": 2, "peer_type": "int8", "rows": heard}
    return {
        "serve_load": {"facts": FACTS, **served},
        "serve_load-mixed": {"facts": FACTS, **mixed_alone},
        "ray_load": {"facts": FACTS, "model": "packed", "http": once, "killed": killed},
        "capacity_check": {"facts": FACTS, "model": "packed", "loads": [load]},
        "transcribe": {"facts": FACTS, **speech},
        "vectors": {"facts": FACTS, "texts": 256, "threads": 2, "rows": [row]},
    }


def features() -> dict[str, Any]:
    """Of many texts, schemas, adapters, experts, first runs, torch, and logits."""
    texts = {"model": "shape", "weights": "int8", "sparsity": 0.75, "texts": 8, "tokens_per_second": 960.0}
    held = {"schema": "person", "texts": 20, "valid": 19, "tokens": 656, "ratio": 1.75}
    adapter = {"what": "lora", "seconds": 0.006, "time_over": "base", "ratio": 1.25, "bytes_per_token": 148e6}
    routed = {"chosen": 2, "bytes_per_token": 1.25e9, "tokens_per_second": 25.0, "deviation": 0.5, "follows": 1.125}
    layer = {"size": 64, "zeros": 0.5, "batch": 4, "dense": "f32", "weights": "int8", "format": "csr", "ratio": 18.5}
    whole = {"weights": "auto", "packed": 7, "layers": 8, "ratio": 1.75, "tokens_per_second": 28.0}
    beside = {"positions": 320, "largest_difference": 1.75, "median_difference": 0.625, "same_where_clear": 135}
    beside |= {"clear_of_their_own_difference": 136, "same_anywhere": 310}
    first = {"setting": {"question": "What?"}, "rows": [{"run": "first", "seconds": 78.75}]}
    loaded = {"setting": {"question": "Why?"}, "rows": [{"run": "load", "seconds": 0.875}]}
    documents = {
        "batch": {"setup": {"prompt": 64, "new_tokens": 32}, "rows": [texts | {"times_one": 3.5}]},
        "grammars": {"model": "m", "valid": 19, "texts": 20, "ratio": 1.75, "rows": [held]},
        "adapters": {
            "shape": "s", "rank": 16, "share": 0.05, "context": 64, "threads": 2, "switch_seconds": 0.00025,
            "rows": [adapter],
        },
        "experts": {
            "model": "mixtral-4-layers", "weights": "int8", "sparsity": 0.5, "context": 64, "threads": 2,
            "rows": [routed | {"bytes_per_second": 32e9}],
        },
        "first_run": first,
        "first_run-avx2": loaded,
        "torch_linear": {
            "torch": "2.5", "threads": 2, "rows": [layer | {"dense_seconds": 0.037, "sparse_seconds": 0.002}],
        },
        "torch_generate_smollm2": {
            "torch": "2.5", "transformers": "5.0", "threads": 2, "tokens": 24, "dense_tokens_per_second": 16.0,
            "rows": [whole],
        },
        "accuracy": {
            "model": "tiny.gguf", "tokens": 256, "transformers_f32_kv": 9.5e-5, "transformers_f16_kv": 0.05,
            "formats_int8": {"dense": 0.0, "csr": 7e-5}, "llama_cpp": beside,
        },
    }  # fmt: skip
    return {name: {"facts": FACTS, **document} for name, document in documents.items()}


def test_the_committed_page_is_made_from_the_committed_results(report: ModuleType) -> None:
    text = (report.DOCS / "performance.md").read_text(encoding="utf-8")
    found = report.read_results()
    assert text == report.page(found), "run: python bench/report.py"
    assert (f"]({report.PLOT})" in text) == (report.DOCS / report.PLOT).exists() == ("kernels" in found)


def test_every_figure_has_its_place(report: ModuleType) -> None:
    text = report.page(results())
    lines = text.splitlines()
    speeds = "| 77 | 55 | 100.0 | 150.0 | 1.50 (1.25 to 1.75) |"
    for line in (
        "`bench/results/kernels.json`: A processor, 2 cores, avx2, GCC 1; 2031-02-03, commit 0123456789.",
        "| `bitmap_linear_int8_a8__avx2` | 50% | 1 | 40.0 | 20.0 | 0.50 (0.25 to 0.75) |",  # both shapes in one row
        "| `bitmap_linear_int8_a8__avx2` | 50% | 1 | 40.0 | 20.0 |",  # in cache
        "| `bitmap_linear_int8_a8__avx2` | 50% | 4 | 99.0 | 49.5 | 1.24 (1.24 to 1.24) |",
        "| fast | 0.88 | at least 0.9 | no | 10.0 |",
        "| small | 1.12 | at most 1.2 | yes | 10.0, 30.0 |",
        "| packed | 2 | 4.00 | 3.50 | 3.00 | 12.5% | 25.0% |",
        "| `bitmap_x` | 6.2 |",
        "| `nm_x` | any |",
        "| `csr_x` | none |",
        f"| Q4_0, head Q6_K | packed: bitmap int4, head dense int8 {speeds} 11.5 | 12.5 |",
        f"| Q4_0, head Q6_K | 75% zeros: bitmap int4, head dense int8 {speeds}",
        "| 8 | 75% | bitmap | 80.0 | 99.5 | 1.25 (1.00 to 1.50) |",
        "| shape | int4 | int8 | 75% | bitmap, csr | 20.0 | 30.0 | 1.50 (1.00 to 2.00) | 1.62 | 1.40 |",
        "| shape | int4 | int8 | 2:4 | bitmap, csr | 20.0 | 30.0 | 1.50 (1.00 to 2.00) | 1.62 | 1.40 |",
        "| int8 | 75% | 1.25 | 1.75 |",
        "| 2048 | 1000 (1.00) | 1250 (1.30) |",
        "| int4 | 4096 | 50 (1.00) | 75 (1.50) |",
        "| [9, 3, 64, 30] | f16 | 24.2 | 81% |",
        "| copy greedy | 2.50 | 1.75 |",
        "| convert --weights int4 | 12.5 | 0.75 |",
        "| 8 | 300 | 3.00 | 200 | 1.50 |",
        "| 512 | 30 | 20 (1.50) |",
        "| 1.50 | 110 | 99 (-10%) | 2.00 | 2.50 (+25%) |",
        "| dense | 2.00 | 1.00 | 1.50 | 5.0 (1.00) | 1 of 71 |",
        "| peer | 2.00 | 1.00 | 1.50 |  | 1 of 71 |",
        "| dense int8 | 32 | 200 | 2.25 | 0.99875 |",
        "| shape | int8, 75% zeros | 8 | 960 | 3.50 |",
        "| person | 19 of 20 | 656 | 1.75 |",
        "| lora | 6.00 | 148 | 1.25 | base |",
        "| 2 | 25.0 ± 0.5 | 1250 | 32.0 | 1.12 |",
        "| first | 78.8 |",
        "| import and load, in Python | 0.9 |",
        "| f32 | csr int8 | 64 | 50% | 4 | 37.00 | 2.00 | 18.50 |",
        "| auto | 7 of 8 | 28.0 | 1.75 |",
        "| csr for dense, int8 | 7.0e-05 |",
        "| shape | int8 | 30% | bitmap | 39.0 | 20.0 | 30.0 | 0.97 |",
    ):
        assert line in lines
    for isa in ("avx2", "scalar"):
        assert lines.count(f"### {isa}") == 2  # beyond and in cache
    assert "choose the same 135 of 136 times" in " ".join(lines)
    assert "Memory by fifths: 256, 256 MiB, of which 128, 128 MiB are keys and values" in " ".join(lines)
    assert "100 from two plain servers with half of the clients each: 0.75 of that." in " ".join(lines)
    assert "40.0 GB/s" in text  # the roof: the better kind of reads
    assert "dense_x" not in text
    assert "Not measured" not in text
    tables = [line.count("|") for line in lines if line.startswith("|")]
    heads = [line.count("|") for line in lines if line.startswith("| ---")]
    assert set(tables) == set(heads)


@pytest.mark.parametrize(
    "name", ["kernels", "kernels_acceptance", "llama_cpp", "overhead", "deepsparse", "whole_models_zeros"]
)
def test_what_is_not_measured_is_named(report: ModuleType, name: str) -> None:
    kept = {key: value for key, value in results().items() if key.split("-")[0] != name}
    text = report.page(kept)
    _, _, missing = text.partition("## Not measured yet")
    assert f"`bench/results/{name}.json`" in missing
    assert missing.count("bench/results/") == 1
    assert (f"]({report.PLOT})" in text) == (name != "kernels")


@pytest.mark.usefixtures("report")
def test_points_are_of_the_fastest_kernel_for_one_token() -> None:
    assert importlib.import_module("report_plot").points(results()["kernels"]) == {
        ("bitmap", "int8"): [(4.0, 20.0), (4.0, 60.0)],
        ("dense", "f16"): [(4.0, 10.0)],
    }


def test_the_plot_is_the_same_for_the_same_results(report: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("a.svg", "b.svg"):
        report.plot(results()["kernels"], tmp_path / name)
    drawn = (tmp_path / "a.svg").read_bytes()
    assert drawn == (tmp_path / "b.svg").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.svg", "b.svg"]
    assert all(f"<!-- {text} -->".encode() in drawn for text in ("bitmap int8", "dense f16", "reads, 40.0 GB/s"))


def test_it_writes_page_and_plot(report: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    made = tmp_path / "results"
    made.mkdir()
    for name, document in results().items():
        (made / f"{name}.json").write_text(json.dumps(document), encoding="utf-8")
    monkeypatch.setattr(report, "RESULTS", made)
    monkeypatch.setattr(report, "DOCS", tmp_path)
    report.main()
    assert (tmp_path / "performance.md").read_text(encoding="utf-8") == report.page(results())
    assert (tmp_path / report.PLOT).is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["performance.md", "results", report.PLOT]
