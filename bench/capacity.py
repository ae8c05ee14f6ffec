"""How many replicas a load takes, by simulation: texts that come at random, steps that take what the cost model says.

    python bench/capacity.py                                             # measures steps of three kinds, plays loads
    python bench/capacity.py --steps bench/results/capacity.json         # plays them with steps measured before
    python bench/capacity.py --check bench/results/ray_load-loads.json   # beside two replicas as they were measured

The first two write bench/results/capacity.json and docs/capacity.svg; run the first on an idle machine. --check tells
how far the simulation is off at each load that `bench/ray_load.py` measured, and fails beyond 15% of the throughput and
25% of the latency that 95 of 100 texts stay below. See docs/capacity.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, write_result
from replicas import Load, Steps, needed, play, play_texts

from gossamer.generation.cost import Table
from gossamer.pictures import new_figure, plain_ticks, save_figure

KINDS: dict[str, dict[str, Any]] = {
    "dense int8": {"weights": "int8", "head": "int8", "sparsity": 0.0},
    "dense int4": {"weights": "int4", "head": "int4", "sparsity": 0.0},
    "50% zeros, int8": {"weights": "int8", "head": "int8", "sparsity": 0.5},
}
PROMPTS, ANSWERS = (32, 100, 300, 1000), (32, 128, 256, 512)
BUSY = (0.3, 0.5, 0.7, 0.8, 0.9)
FLEETS = (1, 2, 10, 100, 1000)
LOADS = (0.5, 2, 8, 32, 128, 512)  # over what one replica does at most
SLOWER = 2.0
"""What 95 of 100 texts may take, over what the slowest tenth takes on a machine of its own."""
THROUGHPUT_OFF, LATENCY_OFF = 0.15, 0.25


def table_of(steps: dict[str, Any]) -> Table:
    """A table of steps from a file of results."""
    rows = (tuple(steps[name]) for name in ("tokens", "base", "kv"))
    return Table(*rows, steps["weights"], steps["measured"])


def rows_of(table: Table) -> dict[str, Any]:
    """A table of steps for a file of results."""
    return {name: getattr(table, name) for name in ("tokens", "base", "kv", "weights", "measured")}


def measured(model: str, threads: int) -> dict[str, Table]:
    """Steps of each kind, measured here."""
    from gossamer.generation.cost_measured import measure
    from gossamer.zoo import synthetic

    found = {}
    for kind, options in KINDS.items():
        made = synthetic.model(model, threads=threads, **options)
        measure(made, again=True)
        assert made.cost is not None
        found[kind] = made.cost.table
        print(f"{kind}: {1e3 * found[kind].base[0]:.2f} ms a token alone", flush=True)
        del made
    return found


def most_texts(steps: Steps) -> float:
    """Texts a second of one replica that always has enough to do."""
    full = play(steps, Load(1e6, PROMPTS, ANSWERS), 1, 600)
    done = [text.ended for text in full.texts]
    return (len(done) - 1) / (max(done) - min(done))


def kind_of_fleet(steps: Steps, texts: int) -> dict[str, Any]:
    """What replicas of one kind do: by how busy they are, by how many there are, and how many loads take."""
    most = most_texts(steps)
    alone = play(steps, Load(most / 1000, PROMPTS, ANSWERS), 1, 200).latency()
    busy = []
    for part in BUSY:
        played = play(steps, Load(part * most, PROMPTS, ANSWERS), 1, texts)
        row = {"busy": part, "p50": played.latency(50), "p95": played.latency(), "first_p95": played.first_token()}
        busy.append(row | {"tokens_per_second": played.tokens_per_second, "machine_hours": played.machine_hours})
    fleets = []
    for count in FLEETS:
        played = play(steps, Load(0.8 * most * count, PROMPTS, ANSWERS), count, max(texts, 40 * count))
        fleets.append({"replicas": count, "p95": played.latency(), "machine_hours": played.machine_hours})
    loads = []
    for factor in LOADS:
        load = Load(factor * most, PROMPTS, ANSWERS)
        count = needed(steps, load, SLOWER * alone, texts=texts)
        loads.append({"texts_per_second": load.rate, "tokens_per_second": load.tokens, "replicas": count})
    return {
        "most_texts_per_second": most,
        "alone_p95": alone,
        "latency": SLOWER * alone,
        "by_busy": busy,
        "by_replicas": fleets,
        "by_load": loads,
    }


def answer_seconds(steps: Steps, asked: dict[str, Any], replicas: int) -> float:
    """The median answer of clients that ask at once."""
    texts = [(0.0, asked["prompt"], asked["answer"])] * asked["clients"]
    return play_texts(steps, texts, replicas).latency(50)


def mean(tables: list[Table]) -> Table:
    """The table between some of one model."""
    base, kv = (tuple(np.mean([getattr(table, name) for table in tables], axis=0).tolist()) for name in ("base", "kv"))
    return Table(tables[0].tokens, base, kv, float(np.mean([table.weights for table in tables])), measured=True)


def calibrated(around: list[dict[str, Any]], replicas: int) -> Steps:
    """Steps as they were around a load, with what each text and each step takes beside the engine.

    That is what clients see who all ask at once: so few that each has a replica for itself, and more.
    """
    table = mean([table_of(each["steps"]) for each in around])
    points = []
    for same in zip(*(each["asked"] for each in around), strict=True):
        seconds = float(np.mean([asked["seconds"] for asked in same]))
        texts = same[0]["clients"] / replicas
        low, high = 0.0, seconds / same[0]["answer"]
        for _ in range(20):
            middle = (low + high) / 2
            slower = Steps(table, ((texts, middle),))
            low, high = (middle, high) if answer_seconds(slower, same[0], replicas) < seconds else (low, middle)
        points.append((texts, low))
    return Steps(table, tuple(points))


def check(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The simulation beside two replicas as they were measured, at each load, of texts that come when they came."""
    rows = []
    for load in document["loads"]:
        steps = calibrated(load["around"], load["replicas"])
        told = ", ".join(f"{1e3 * seconds:.2f} ms of {texts:.0f} texts" for texts, seconds in steps.beside)
        print(f"steps take beside the engine {told}")
        played = play_texts(steps, load["texts"], load["replicas"])
        row: dict[str, Any] = {"rate": load["rate"], "beside": steps.beside}
        row |= {"p50": played.latency(50), "p50_measured": load["p50"]}
        for name, value, most in (
            ("tokens_per_second", played.tokens_per_second, THROUGHPUT_OFF),
            ("p95", played.latency(), LATENCY_OFF),
        ):
            off = value / load[name] - 1
            row |= {name: value, f"{name}_measured": load[name], f"{name}_off": off, f"{name}_good": abs(off) <= most}
        rows.append(row)
        print(
            f"{load['rate']:.2f} texts/s: {row['tokens_per_second']:.1f} tokens/s "
            f"({row['tokens_per_second_off']:+.0%}), half of the texts within {row['p50']:.2f} s, measured "
            f"{row['p50_measured']:.2f}, 95% within {row['p95']:.2f} s ({row['p95_off']:+.0%})"
        )
    return rows


def draw(kinds: dict[str, Any], path: Path) -> None:
    """Draws replicas by load, and latency by how busy they are."""
    figure = new_figure(path, 9.0, 3.6)
    left, right = figure.subplots(1, 2)
    for kind, found in kinds.items():
        rows = [row for row in found["by_load"] if row["replicas"] is not None]
        left.loglog([row["tokens_per_second"] for row in rows], [row["replicas"] for row in rows], "o-", label=kind)
        busy = found["by_busy"]
        right.plot([100 * row["busy"] for row in busy], [row["p95"] for row in busy], "o-", label=kind)
    left.set(xlabel="tokens/s asked for", ylabel="replicas")
    right.set(xlabel="percent busy, one replica", ylabel="seconds that 95% of texts stay below")
    right.set_ylim(bottom=0)
    for axis in (left.xaxis, left.yaxis):
        plain_ticks(axis)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    left.legend()
    save_figure(figure, path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama-3.2-1b", help="shape of the model whose steps are measured")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--texts", type=int, default=4000, help="of each play, and 40 a replica at least")
    parser.add_argument("--steps", type=Path, help="a file of results with steps, instead of measuring")
    parser.add_argument("--overhead", type=float, default=0.0, help="seconds that a token takes beside the engine")
    parser.add_argument("--check", type=Path, help="a file of bench/ray_load.py")
    parser.add_argument("--name", default="capacity", help="of the file of results, and of the picture in docs/")
    args = parser.parse_args()
    if args.check:
        document = json.loads(args.check.read_text())
        rows = check(document)
        about = {"model": document["model"], "measured": args.check.name}
        print(write_result(f"{args.name}_check", {**about, "loads": rows}))
        return int(not all(row["tokens_per_second_good"] and row["p95_good"] for row in rows))
    if args.steps:
        document = json.loads(args.steps.read_text())
        about = {**document["setup"], "overhead": args.overhead}
        tables = {kind: table_of(found["steps"]) for kind, found in document["kinds"].items()}
    else:
        about = {"model": args.model, "threads": args.threads, "prompts": PROMPTS, "answers": ANSWERS}
        about["overhead"] = args.overhead
        tables = measured(args.model, args.threads)
    kinds = {}
    for kind, table in tables.items():
        kinds[kind] = {"steps": rows_of(table), **kind_of_fleet(Steps(table, ((1, args.overhead),)), args.texts)}
        for row in kinds[kind]["by_load"]:
            print(f"{kind}: {row['replicas']} replicas for {row['tokens_per_second']:.0f} tokens/s", flush=True)
    draw(kinds, ROOT / "docs" / f"{args.name}.svg")
    print(write_result(args.name, {"setup": about, "kinds": kinds}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
