"""What steps cost: predictions between and beyond what is known, what is followed, and what is measured and kept."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine_cases import config, decoder
from fakes import decoder_of, fake_model
from gossamer.errors import GossamerError
from gossamer.generation import cost_measured
from gossamer.generation.cost import StepCost, Table, context_read, estimated, known_table
from gossamer.generation.model import Model
from gossamer.machine import format_rates, roofline
from windowed import windowed_decoder

TABLE = Table((1, 2, 4, 16), (1.0, 1.5, 2.0, 8.0), (0.01, 0.02, 0.04, 0.16), 0.75, measured=True)


def test_steps_are_predicted_by_parts() -> None:
    cost = StepCost(TABLE)
    assert cost.predict([1], [0]) == (0.75, 0.0, 0.25)
    assert cost.predict([3], [100]) == pytest.approx((0.75, 3.0, 1.0))
    assert cost.predict([10], [10]).total == pytest.approx(5.0 + 1.0)
    assert cost.predict([20], [0]).total == pytest.approx(10.0)
    assert cost.predict([1, 1, 2], [10, 20, 30]) == pytest.approx((0.75, 0.1 + 0.2 + 0.6, 1.25))
    assert cost.seconds([3], [100]) == pytest.approx(cost.predict([3], [100]).total)


def test_context_behind_a_window_costs_nothing() -> None:
    engine = windowed_decoder(40, None)
    whole, half = (StepCost(TABLE, *reads) for reads in ((), (context_read(engine),)))
    assert whole.predict([1], [40]) == half.predict([1], [40])
    assert half.predict([1], [1000]).kv == pytest.approx(0.01 * (40 + 1000) / 2)
    assert half.seconds([2], [1000]) == pytest.approx(1.5 + 0.02 * 520)


def test_what_steps_take_is_followed_and_predictions_stay() -> None:
    cost = StepCost(TABLE)
    for _ in range(60):
        cost.observe([1], [0], 2.0)
    assert cost.seconds([1], [0]) == pytest.approx(2.0, rel=0.01)
    assert cost.seconds([4], [0]) == pytest.approx(4.0, rel=0.01), "as far off as the step below"
    assert cost.predict([1], [0]).total == 1.0
    for _ in range(60):
        cost.observe([4], [0], 2.4)
    assert cost.seconds([4], [0]) == pytest.approx(2.4, rel=0.01)
    assert cost.seconds([8], [0]) == pytest.approx(4.8, rel=0.01)


def test_a_single_step_that_was_held_up_says_little() -> None:
    cost = StepCost(TABLE)
    for _ in range(20):
        cost.observe([1], [0], 1.0)
    cost.observe([1], [0], 50.0)
    assert cost.seconds([1], [0]) < 1.1


def test_what_no_longer_runs_is_forgotten() -> None:
    """A draft that was held up once must not be thought dear for ever."""
    cost = StepCost(TABLE)
    cost.observe([4], [0], 1e9)
    dear = cost.seconds([4], [0])
    for _ in range(400):
        cost.observe([1], [0], 1.0)
    assert dear > 2.4
    assert cost.seconds([4], [0]) == pytest.approx(2.0, rel=0.02)


def test_measurements_that_cannot_be_are_not_kept() -> None:
    table = known_table([1, 2, 3], [1.0, 0.9, 1.2], [-0.1, 0.0, 0.1], 2.0)
    assert table.base == (1.0, 1.0, 1.2)
    assert table.kv == (0.0, 0.0, 0.1)
    parts = StepCost(table).predict([1], [10])
    assert parts == (1.0, 0.0, 0.0), "no part takes more than there is"


def native() -> Model:
    described = config(context=300)
    fake = fake_model("abc")
    engine = decoder(described, type="int8", threads=1)
    return Model(engine, described.describe(), fake.tokenizer, {"name": "tiny"}, {})


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("GOSSAMER_HOME", str(tmp_path))
    monkeypatch.setenv("GOSSAMER_MEASURE", "1")
    monkeypatch.setattr(cost_measured, "_ONCE", 1e-5)
    monkeypatch.setattr(cost_measured, "_FAR_SECONDS", 0.02)
    return tmp_path


def test_a_model_is_measured_once_and_kept(measuring: Path) -> None:
    model = native()
    assert model.cost is not None
    assert not model.cost.table.measured
    before, told = model.cost, []
    cost_measured.measure(model, lambda *where: told.append(where))
    assert model.cost is before, "those who have it see what was measured"
    assert model.cost.table.measured
    assert told[0][:2] == (0, told[-1][1])
    assert told[-1][0] == told[-1][1]
    assert all(a[0] <= b[0] for a, b in itertools.pairwise(told))
    assert model.decoder.kv_bytes == 0
    assert len(list(measuring.rglob("*.json"))) == 1
    again = native()
    assert again.cost is not None
    assert again.cost.table == model.cost.table
    cost_measured.measure(again, lambda *_: pytest.fail("it is known"))


@pytest.mark.usefixtures("measuring")
def test_measured_steps_are_near_to_what_they_take() -> None:
    """No test of speed: the sum of many steps and the predictions of them are of one size."""
    model = native()
    cost_measured.measure(model)
    assert model.cost is not None
    model.decoder.step([(5000, np.arange(200) % 150)])
    took = min(cost_measured._once(model.decoder, 5000, np.arange(4)) for _ in range(20))
    assert 0.1 < model.cost.predict([4], [200]).total / took < 10


@pytest.mark.parametrize("damage", ["{", "[]", '{"key": 1}', "zeros", "short"])
def test_a_damaged_file_is_measured_again(measuring: Path, damage: str) -> None:
    model = native()
    cost_measured.measure(model)
    (path,) = measuring.rglob("*.json")
    text = path.read_text()
    if damage == "zeros":
        text = text.replace('"base": [', '"base": [0.0,')
    elif damage == "short":
        text = text.replace('"tokens": [', '"tokens": [0,')
    else:
        text = damage
    path.write_text(text)
    other = native()
    assert other.cost is not None
    assert not other.cost.table.measured
    cost_measured.measure(other)
    assert other.cost.table.measured
    assert native().cost.table == other.cost.table  # type: ignore[union-attr]


@pytest.mark.usefixtures("measuring")
def test_another_model_is_another_measurement() -> None:
    cost_measured.measure(native())
    described = config(context=300, layers=1)
    other = Model(decoder(described, type="int8", threads=1), described.describe(), None, {}, {})  # type: ignore[arg-type]
    assert other.cost is not None
    assert not other.cost.table.measured


@pytest.mark.usefixtures("measuring")
def test_measuring_can_be_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOSSAMER_MEASURE", "0")
    model = native()
    cost_measured.measure(model, lambda *_: pytest.fail("it is forbidden"))
    assert model.cost is not None
    assert not model.cost.table.measured
    assert not format_rates.wanted()
    monkeypatch.setenv("GOSSAMER_MEASURE", "no")
    with pytest.raises(GossamerError, match="GOSSAMER_MEASURE must be 0 or 1, got 'no'"):
        format_rates.wanted()


@pytest.mark.usefixtures("measuring")
def test_a_cache_without_room_is_left_alone() -> None:
    described = config(context=300)
    made = decoder(described, type="int8", threads=1)
    engine = decoder(described, type="int8", threads=1, kv_limit=made.kv_bytes_of(1, 1))
    model = Model(engine, described.describe(), None, {}, {})  # type: ignore[arg-type]
    cost_measured.measure(model)
    assert model.cost is not None
    assert not model.cost.table.measured
    assert engine.kv_bytes == 0


def test_estimates_come_from_bytes_and_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    def reads(speed: float) -> Any:
        row = roofline.Reads(2, speed, speed)
        return lambda: roofline.Roofline({}, "", 1 << 20, 1 << 30, (row,), ())

    engine = decoder_of(fake_model("abc"))
    engine.weight_bytes = 1 << 30
    monkeypatch.setattr(roofline, "cached", reads(10.0))
    slow = estimated(engine, {})
    assert slow.base[0] == pytest.approx((1 << 30) / 10e9)
    assert slow.weights == slow.base[0]
    assert slow.kv[0] == pytest.approx(10 / 10e9)
    assert slow.base[-1] > slow.base[0]
    monkeypatch.setattr(roofline, "cached", reads(20.0))
    assert estimated(engine, {}).base[0] == pytest.approx(slow.base[0] / 2)
    monkeypatch.setattr(roofline, "cached", lambda: None)
    assert estimated(engine, {}).base[0] > 0


def test_an_engine_that_says_nothing_of_threads_has_no_cost() -> None:
    class Engine:
        def __init__(self, inner: Any) -> None:
            self.step, self.length, self.rollback, self.free = inner.step, inner.length, inner.rollback, inner.free
            self.weight_bytes, self.kv_bytes_read = inner.weight_bytes, inner.kv_bytes_read
            self.shortest = inner.shortest

    expected = fake_model("aaabc.").generate("a", max_new_tokens=5)
    model = fake_model("aaabc.")
    model.decoder = Engine(model.decoder)
    assert model.cost is None
    assert model.generate("a", max_new_tokens=5) == expected != ""
