"""`gossamer bench`: its rows, and options that do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from fakes import FakeDecoder, fake_model
from gossamer.cli import main
from gossamer.generation.model import Model


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Model]:
    """Returns a function that makes the command load a model of some context."""

    def load(context: int) -> Model:
        model = fake_model(context=context)
        monkeypatch.setattr("gossamer.loading.load", lambda *_, **__: model)
        return model

    return load


def failure(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Runs a command that must fail; returns what it says on stderr."""
    assert main(argv) == 1
    return capsys.readouterr().err


def test_bench_rows_and_spread(fake, capsys):
    model = fake(64)
    decoder = model.decoder
    assert isinstance(decoder, FakeDecoder)
    assert main(["bench", "m", "-p", "32", "-n", "16", "-r", "3"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[:2] for line in out.splitlines()[-2:]] == [["pp32", "2"], ["tg16", "2"]]
    fed = [len(tokens) for _, tokens in decoder.steps]
    assert fed == ([32] + [1] * 16) * 4  # one round warms up; decoding begins behind what is left of the prompt
    assert decoder.held == {}


def test_bench_sweeps_depths_and_batches(fake, capsys):
    model = fake(512)
    decoder = model.decoder
    assert isinstance(decoder, FakeDecoder)
    line = ["bench", "m", "-p", "4", "-n", "2", "-r", "1", "-d", "0,300", "-B", "1,3", "--json"]
    assert main(line) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["test"], row["batch"], row["depth"]) for row in rows] == [
        ("pp4", 1, 0), ("tg2", 1, 0), ("tg2", 3, 0),
        ("pp4 @ d300", 1, 300), ("tg2 @ d300", 1, 300), ("tg2 @ d300", 3, 300),
    ]  # fmt: skip
    fed = [(seq, len(tokens)) for seq, tokens in decoder.steps]
    deep = fed[fed.index((0, 256)) :]  # filled once, and cut back behind every run
    assert [one for one in deep if one[1] > 4] == [(seq, count) for seq in range(3) for count in (256, 44)]
    assert decoder.held == {}
    assert "-d 512 leaves no room" in failure(capsys, "bench", "m", "-d", "512")
    assert "-n 13, behind 500 others, is more" in failure(capsys, "bench", "m", "-p", "0", "-n", "13", "-d", "500")


def test_bench_options_that_do_not_fit_the_context(fake, capsys):
    fake(64)
    assert "-p 65 is more than the model's context of 64 tokens" in failure(capsys, "bench", "m", "-p", "65", "-n", "0")
    assert "-n 60, behind 8 others, is more than the model's context of 64" in failure(
        capsys, "bench", "m", "-p", "0", "-n", "60"
    )
