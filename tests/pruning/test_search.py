"""Zeros, bits and rank as one search: what forms weigh, what is chosen under a budget, and what comes out as files."""

from __future__ import annotations

import itertools
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import gossamer
from gossamer import _core
from gossamer.arch.spec import Linear
from gossamer.checkpoints import open_checkpoint
from gossamer.errors import GossamerError
from gossamer.formats import STORED
from gossamer.packing.convert import convert
from gossamer.pruning import prune
from gossamer.pruning.allocation import Size
from gossamer.pruning.masks import Form, Target
from gossamer.pruning.search import Costs, bits, measured, search
from tiny import tiny_llama

SHAPES = {"a": (576, 576), "b": (192, 576), "c": (1536, 576), "d": (576, 1536)}
LINEARS = {f"{block}.{name}": Linear(*shape, False) for block in range(6) for name, shape in SHAPES.items()}
SIZES = {name: Size(linear.rows * linear.cols, 0) for name, linear in LINEARS.items()}


def some_costs(seed: int) -> dict[str, Costs]:
    rng = np.random.default_rng(seed)
    scales = rng.lognormal(-6, 1.5, len(LINEARS))
    return {
        name: Costs(scale * 100, rng.uniform(3, 9), scale * rng.uniform(0.2, 2), rng.uniform(0.3, 1))
        for name, scale in zip(LINEARS, scales, strict=True)
    }


def lost(forms: dict[str, Form], costs: dict[str, Costs]) -> float:
    return sum(costs[name].of(form) for name, form in forms.items())


bits_of = cache(partial(bits, group=64))


def mean_bits(forms: dict[str, Form]) -> float:
    entries = {name: size.entries for name, size in SIZES.items()}
    return sum(bits_of(LINEARS[name], form) * entries[name] for name, form in forms.items()) / sum(entries.values())


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.8])
@pytest.mark.parametrize(("weights", "type"), [(STORED, "int8"), ("int4", "int4")])
@pytest.mark.parametrize("group", [0, 32, 64])
def test_bits_are_those_of_the_smallest_format(sparsity: float, weights: str, type: str, group: int) -> None:
    rng = np.random.default_rng(1)
    values = rng.uniform(1, 2, (192, 576)).astype(np.float32)  # none of which is rounded to zero
    values.ravel()[rng.permutation(values.size)[: round(sparsity * values.size)]] = 0
    packed = min(_core.pack(values, format, type, group).nbytes for format in ("dense", "bitmap", "csr"))
    assert bits(Linear(192, 576, False), Form(Target(sparsity), weights), group) == pytest.approx(
        8 * packed / values.size, rel=0.02
    )


def test_a_branch_weighs_what_its_factors_do() -> None:
    form = Form(Target(0.5), "int4")
    factors = _core.pack(np.ones((192, 16), np.float32), "dense", "int8", 64).nbytes
    factors += _core.pack(np.ones((16, 576), np.float32), "dense", "int8", 64).nbytes
    added = bits(Linear(192, 576, False), Form(form.target, "int4", 16), 64) - bits(Linear(192, 576, False), form, 64)
    assert added == pytest.approx(8 * factors / (192 * 576), rel=0.02)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("budget", [2.0, 2.9, 3.4, 4.2, 6.0])
def test_the_budget_is_kept_and_no_single_choice_loses_less(seed: int, budget: float) -> None:
    costs = some_costs(seed)
    forms = search(budget, LINEARS, SIZES, costs, rank=16)
    assert forms.keys() == LINEARS.keys()
    assert budget - 0.05 < mean_bits(forms) <= budget
    zeros = [percent / 100 for percent in range(86)]
    for sparsity, weights, rank in itertools.product(zeros, (STORED, "int4"), (0, 16)):
        single = dict.fromkeys(LINEARS, Form(Target(sparsity), weights, rank))
        if mean_bits(single) <= budget:
            assert lost(forms, costs) <= lost(single, costs)


def test_no_exchange_of_two_matrices_loses_less() -> None:
    costs = some_costs(7)
    forms = search(3.0, LINEARS, SIZES, costs)
    choices = [Form(Target(p / 100), w) for p in (0, *range(20, 86, 2)) for w in (STORED, "int4")]
    spare = (3.0 - mean_bits(forms)) * sum(size.entries for size in SIZES.values())

    def changes(name: str) -> NDArray[np.float64]:  # more bits, and what is gained
        now, size = forms[name], SIZES[name].entries
        more = [(bits_of(LINEARS[name], form) - bits_of(LINEARS[name], now)) * size for form in choices]
        return np.array([more, [costs[name].of(now) - costs[name].of(form) for form in choices]])

    gain = 0.0
    for one, other in itertools.combinations(LINEARS, 2):
        more, gained = changes(one)[:, :, None] + changes(other)[:, None, :]
        gain = max(gain, gained[more <= spare].max())
    assert gain < 0.01 * lost(forms, costs)  # what steps between forms leave of the budget


def test_what_matters_gets_more_bits() -> None:
    costs = dict.fromkeys(LINEARS, Costs(1e-2, 5, 1e-3))
    costs["2.c"] = Costs(1.0, 5, 1e-1)
    costs["3.c"] = Costs(0.0, 5, 0.0)
    forms = search(3.0, LINEARS, SIZES, costs)
    weights = {name: bits(LINEARS[name], form, 64) for name, form in forms.items()}
    assert max(weights, key=weights.__getitem__) == "2.c"
    assert min(weights, key=weights.__getitem__) == "3.c"


def test_types_ranks_and_zeros_that_are_there_are_kept_to() -> None:
    costs, sizes = some_costs(3), {**SIZES, "0.a": Size(576 * 576, 576 * 576 // 2)}
    forms = search(3.0, LINEARS, sizes, costs, types=("int4",))
    assert {form.weights for form in forms.values()} == {"int4"}
    assert {form.rank for form in forms.values()} == {0}
    assert forms["0.a"].target.zeros(576 * 576) >= 576 * 576 // 2
    with pytest.raises(GossamerError, match=r"1 bits a weight are too few: 1\.\d\d are the least here"):
        search(1.0, LINEARS, SIZES, costs)


class Told:
    """A probe whose changes move predictions by what is said, those of zeros, rounding and a branch, in this order."""

    def __init__(self, *moved: dict[str, float]) -> None:
        self._moved = list(moved)

    def pruned(self, _target: Target) -> None:
        """Not looked at."""

    def moved(self, changes: Any, _put: Any, _progress: Any) -> list[dict[str, float]]:
        assert len(changes) == len(self._moved)
        return self._moved


def test_costs_go_through_what_was_measured() -> None:
    names = {"a": 1.0, "b": 2.0, "c": 40.0}
    told = Told(
        {name: 0.01 * scale for name, scale in names.items()},
        {name: 0.01 * scale * 1.5**5 for name, scale in names.items()},
        dict.fromkeys(names, 0.02),
        {name: 0.004 * scale * 1.5**5 for name, scale in names.items()},
    )
    found = measured(told, dict.fromkeys(names, Linear(16, 16, False)), 64, 4, None, None)  # type: ignore[arg-type]
    for name, scale in names.items():
        costs = found[name]
        assert costs.power == pytest.approx(5)
        assert costs.of(Form(Target(0.5))) == pytest.approx(0.01 * scale)
        assert costs.of(Form(Target(0.75))) == pytest.approx(0.01 * scale * 1.5**5)
        assert costs.of(Form(Target(0.75), rank=4)) == pytest.approx(0.004 * scale * 1.5**5)
        assert costs.of(Form(Target(0.0), "int4")) == pytest.approx(0.02)
        assert costs.of(Form(Target(0.5), "int4")) == pytest.approx(0.01 * scale + 0.01)
    odd = Told({"a": 0.0, "b": 0.01, "c": 0.01}, {"a": 9.0, "b": 0.01 * 1.5**4, "c": 0.01 * 1.5**4}, names)
    without = measured(odd, dict.fromkeys(names, Linear(16, 16, False)), 64, 0, None, None)  # type: ignore[arg-type]
    assert without["b"].power == pytest.approx(4)  # one matrix does not move it
    assert without["b"].branch == 1


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("The spider spins a thread of gossamer, and the thread holds the spider. " * 20, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("options", "types"), [({"weights": "auto", "rank": 4}, {"int8", "int4"}), ({"weights": "int4"}, {"int4"})]
)
def test_what_was_searched_for_is_what_convert_packs(
    tmp_path: Path, text: Path, options: dict[str, Any], types: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOSSAMER_MEASURE", "0")
    wide = {"hidden_size": 128, "intermediate_size": 256}
    source = tiny_llama(tmp_path / "dense", **wide)
    asked = {"bits": 5.5, "method": "sparsegpt", "calibration": text, "windows": 6, "length": 40, **options}
    report = prune(source, tmp_path / "pruned", **asked)
    assert (report.bits, report.allocation, report.group) == (5.5, "divergence", 64)
    assert report.sparsity == report.reached
    assert set(report.types.values()) == types
    assert set(report.ranks.values()) <= {0, options.get("rank", 0)}
    checkpoint = open_checkpoint(tmp_path / "pruned")
    branches = {name for name, rank in report.ranks.items() if rank}
    assert checkpoint.low_rank.keys() == branches
    for name, zeros in report.layers.items():
        assert np.mean(checkpoint.tensor(name) == 0) == pytest.approx(zeros, abs=1e-12)

    convert(tmp_path / "pruned", tmp_path / "packed")
    model = gossamer.load(str(tmp_path / "packed"))
    packed = {name: model.weights[name] for name in model.config.linears}
    sources = checkpoint.sources()
    assert {name: weight.type for name, weight in packed.items()} == {
        name: report.types[sources[name].tensor] for name in packed
    }
    assert np.isfinite(model.logits([1, 2, 3])).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": -1.0}, "bits must be above 0, got -1"),
        ({"sparsity": 0.5}, "a budget of bits divides the zeros itself"),
        ({"pattern": (2, 4)}, "a budget of bits divides the zeros itself"),
        ({"allocation": "owl"}, "a budget of bits divides the zeros itself"),
        ({"method": "magnitude"}, "method magnitude cannot round to int4|method magnitude measures nothing"),
        ({"weights": "stored"}, "a budget of bits needs weights auto or int4, got stored"),
        ({"bits": 0.5}, r"0\.5 bits a weight are too few: \d\.\d\d are the least here"),
        ({"bits": 20.0}, r"20 bits a weight are enough for all as int8: \d\.\d\d are the most"),
    ],
)
def test_budgets_that_make_no_sense(tmp_path: Path, text: Path, options: dict[str, Any], message: str) -> None:
    source = tiny_llama(tmp_path / "dense")
    asked = {"bits": 4.0, "weights": "auto", "calibration": text, "windows": 2, "length": 16, **options}
    with pytest.raises(GossamerError, match=message):
        prune(source, tmp_path / "pruned", **asked)
    assert not (tmp_path / "pruned").exists()
