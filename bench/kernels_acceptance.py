"""The kernel rows that this project promises: 4096x4096, ratios within one run. Run by `kernels.py --acceptance`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kernels import BEYOND, Timer, check
from weights import copies, random_weight

import gossamer
from gossamer import _core

SIZE = 4096

Kind = tuple[str, str, float, "tuple[int, int] | None"]  # format, type, zeros, pattern

# Bytes a second over those of reads, beyond the cache: kind, activations, least share.
SHARES: tuple[tuple[Kind, str, float], ...] = (
    (("bitmap", "bf16", 0.5, None), "f32", 0.90),
    (("bitmap", "bf16", 0.5, None), "bf16", 0.90),
    (("bitmap", "int8", 0.5, None), "a8", 0.90),
    (("bitmap", "int8", 0.75, None), "a8", 0.90),
    (("nm", "int8", 0.0, (2, 4)), "a8", 0.90),
    (("dense", "int8", 0.0, None), "a8", 0.90),
    (("dense", "int4", 0.0, None), "a8", 0.90),
    (("bitmap", "int4", 0.5, None), "a8", 0.75),
    (("csr", "int8", 0.9, None), "a8", 0.75),  # what the planner takes there
)
# Time of a batch over that of one token, int8 at 75% zeros: beyond the cache, batch, at most.
BATCHES = ((True, 4, 1.2), (True, 8, 1.7), (False, 4, 1.8), (False, 8, 2.7))
# AVX2: speed over dense weights of the same type, beyond the cache: kind, activations, at least.
AVX2: tuple[tuple[Kind, str, float], ...] = (
    (("nm", "int8", 0.0, (2, 4)), "a8", 1.3),
    (("bitmap", "bf16", 0.5, None), "f32", 1.2),
    (("bitmap", "bf16", 0.75, None), "f32", 1.5),
    (("bitmap", "int8", 0.75, None), "a8", 0.9),
)


def acceptance(threads: int, rounds: int) -> dict[str, Any]:
    """Measures every row; AVX2 in a process of its own, whose tier is forced."""
    rows = [*_shares(threads, rounds), *_csr(threads, rounds), *_batches(threads, rounds)]
    command = [sys.executable, str(Path(__file__).resolve()), str(threads), str(rounds)]
    child = subprocess.run(
        command, env={**os.environ, "GOSSAMER_ISA": "avx2"}, stdout=subprocess.PIPE, text=True, check=False
    )
    if child.returncode:
        raise SystemExit(f"exit code {child.returncode} of {' '.join(command)}")
    avx2 = json.loads(child.stdout)
    for row in avx2["rows"]:
        _tell(row)
    return {"rows": rows + avx2["rows"], "avx2_wins_below": avx2["wins_below"]}


def _shares(threads: int, rounds: int) -> list[dict[str, Any]]:
    rows = []
    for kind, activations, least in SHARES:
        (timer,) = _timed([(kind, activations, 1)], threads, rounds, beyond=True)
        figures = timer.result()
        rows.append(_row(f"{_label(kind)}, {activations}: share of reads", figures["share"], least, [figures]))
    return rows


def _csr(threads: int, rounds: int) -> list[dict[str, Any]]:
    kinds: list[Kind] = [(format, "int8", 0.95, None) for format in ("csr", "bitmap")]
    timers = _timed([(kind, "a8", 1) for kind in kinds], threads, rounds, beyond=False)
    csr, bitmap = (timer.result() for timer in timers)
    return [_row("csr over bitmap, int8 95%, in cache", bitmap["seconds"] / csr["seconds"], 1.2, [csr, bitmap])]


def _batches(threads: int, rounds: int) -> list[dict[str, Any]]:
    rows = []
    kind: Kind = ("bitmap", "int8", 0.75, None)
    for beyond in (True, False):
        wanted = [(batch, most) for where, batch, most in BATCHES if where is beyond]
        timers = _timed([(kind, "a8", batch) for batch in (1, *dict(wanted))], threads, rounds, beyond=beyond)
        one, *more = (timer.result() for timer in timers)
        place = "beyond" if beyond else "in"
        for (batch, most), figures in zip(wanted, more, strict=True):
            label = f"{_label(kind)}: batch {batch} over 1, {place} cache"
            rows.append(_row(label, figures["seconds"] / one["seconds"], most, [figures, one], at_most=True))
    return rows


def _avx2(threads: int, rounds: int) -> dict[str, Any]:
    rows = []
    for kind, activations, least in AVX2:
        dense: Kind = ("dense", kind[1], 0.0, None)
        timers = _timed([(kind, activations, 1), (dense, activations, 1)], threads, rounds, beyond=True)
        ours, theirs = (timer.result() for timer in timers)
        label = f"AVX2 {_label(kind)} over dense"
        rows.append(_row(label, theirs["seconds"] / ours["seconds"], least, [ours, theirs], told=False))
    rates = gossamer.roofline(threads=threads).kernels
    return {"rows": rows, "wins_below": {rate.kernel: rate.wins_below for rate in rates if rate.chosen}}


def _timed(what: Sequence[tuple[Kind, str, int]], threads: int, rounds: int, *, beyond: bool) -> list[Timer]:
    """Checks and times products (kind, activations, batch) that take turns."""
    timers = []
    made: dict[Kind, list[_core.Weight]] = {}
    for kind, activations, batch in what:
        if kind not in made:
            format, type, zeros, pattern = kind
            weight = random_weight(SIZE, SIZE, format, type, zeros, pattern)
            made[kind] = copies(weight, BEYOND) if beyond else [weight]
        check(made[kind][0], activations, batch, threads)
        timers.append(Timer(made[kind], activations=activations, batch=batch, threads=threads))
    for _ in range(rounds):
        for timer in timers:
            timer.round()
    return timers


def _label(kind: Kind) -> str:
    format, type, zeros, pattern = kind
    return f"{format} {type} " + (f"{pattern[0]}:{pattern[1]}" if pattern else f"{zeros:.0%}")


def _row(
    label: str, value: float, wanted: float, measured: list[dict[str, Any]], *, at_most: bool = False, told: bool = True
) -> dict[str, Any]:
    reached = value <= wanted if at_most else value >= wanted
    row = {"what": label, "value": value, "at_most" if at_most else "at_least": wanted, "reached": reached}
    row["measured"] = measured
    if told:
        _tell(row)
    return row


def _tell(row: dict[str, Any]) -> None:
    bound = f"at most {row['at_most']}" if "at_most" in row else f"at least {row['at_least']}"
    speeds = ", ".join(f"{one['positions_per_second']:.1f}" for one in row["measured"])
    rates = ", ".join(f"{one['bandwidth']:.1f}" for one in row["measured"])
    mark = "" if row["reached"] else "  <-- short"
    print(f"{row['what']:46} {row['value']:5.2f} ({bound}) | G positions/s {speeds} | GB/s {rates}{mark}", flush=True)


if __name__ == "__main__":
    assert _core.isa() == "avx2", "run by kernels.py --acceptance"
    print(json.dumps(_avx2(*map(int, sys.argv[1:]))))
