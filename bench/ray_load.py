"""Two replicas on Ray beside two plain processes, a replica that is killed, and loads for the simulation.

    python bench/ray_load.py --model PACKED_FOLDER [--parts offline http loads] [--seconds 120] [--name ray_load]

In one sitting, with one thread a replica, and no token guessed, since the simulation guesses none:

- offline: a file of prompts by `answer_file` with two actors, and its halves by two `gossamer batch`.
- http: 32 clients at Ray's front, and 16 at each of two `gossamer serve`; then one of two replicas is killed under
  that load, once half of the clients' streams have begun: what has not is answered, what has ends in an error event.
- loads: texts at random times, at three rates: when each came, tokens a second, and the latency that 95 of 100 stay
  below. Before and behind each load, since a machine's speed changes: the cost model's table of steps, measured in two
  processes at once, which share the memory's bandwidth, and answers of clients that ask at once: one for each replica,
  four, and as many as are written at once.

`python bench/capacity.py --check` holds the simulation against the last one.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import ray
from common import write_result
from ray import serve
from serve_load import TIMEOUT, Served, answered, free_port, prompts, start

import gossamer
from gossamer.distributed import answer_file, app
from gossamer.generation.scheduler import MOST

PARTS = ("offline", "http", "loads")
REPLICAS, CLIENTS, NEW = 2, 32, 128
TOGETHER = ((1, 6), (4, 3), (MOST, 2))  # clients a replica that ask at once, and answers of each
KNOWN, FRESH = 64, 1200  # texts of each length: for clients that ask again and again, and that are asked for once
LENGTHS, ANSWERS = (32, 100, 300), (32, 128, 256)
BUSY = (0.3, 0.6, 0.85)  # of the throughput over HTTP


def steps(model: str) -> dict[str, Any]:
    """Steps of the model while it runs twice."""
    command = [sys.executable, __file__, "--model", model, "--steps"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(REPLICAS)]
    found = [json.loads(process.communicate()[0].splitlines()[-1]) for process in running]
    mean = {name: np.mean([each[name] for each in found], axis=0).tolist() for name in ("base", "kv", "weights")}
    return {"tokens": found[0]["tokens"], **mean, "measured": True}


def print_steps(model: str) -> None:
    from gossamer.generation.cost_measured import measure

    opened = gossamer.load(model, threads=1)
    measure(opened, again=True)
    assert opened.cost is not None
    table = opened.cost.table
    print(json.dumps({"tokens": table.tokens, "base": table.base, "kv": table.kv, "weights": table.weights}))


def offline(model: str, texts: list[str], special: dict[str, Any]) -> dict[str, float]:
    """Seconds of a file by Ray and by plain processes, models loaded in both."""
    lines = [json.dumps({"prompt": text, **special}) + "\n" for text in texts]
    options = {"max_new_tokens": NEW, "temperature": 0.0, "draft": "off"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "all.jsonl").write_text("".join(lines))
        begun = time.perf_counter()
        answer_file(
            model,
            folder / "all.jsonl",
            folder / "ray.jsonl",
            replicas=REPLICAS,
            threads=1,
            chat=False,
            rows=len(lines) // (2 * REPLICAS),
            **options,
        )
        by_ray = time.perf_counter() - begun
        begun = time.perf_counter()
        running = []
        for half in range(REPLICAS):
            (folder / f"{half}.jsonl").write_text("".join(lines[half::REPLICAS]))
            command = [
                sys.executable,
                "-m",
                "gossamer",
                "batch",
                f"{folder}/{half}.jsonl",
                f"{folder}/{half}.out.jsonl",
            ]
            command += ["-m", model, "--raw", "--threads", "1", "-n", str(NEW), "--temperature", "0", "--draft", "off"]
            running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        if any(process.wait() for process in running):
            raise SystemExit("gossamer batch failed")
        plain = time.perf_counter() - begun
        answers = [json.loads(line)["text"] for line in (folder / "ray.jsonl").read_text().splitlines()]
        for half in range(REPLICAS):
            own = [json.loads(line)["text"] for line in (folder / f"{half}.out.jsonl").read_text().splitlines()]
            if own != answers[half::REPLICAS]:
                raise SystemExit("answers differ")
    return {"ray_seconds": by_ray, "plain_seconds": plain, "ray_over_plain": plain / by_ray}


async def closed(served: list[Served], texts: list[str], rounds: int) -> float:
    """Tokens a second of clients that ask again once they are answered."""
    waiting = itertools.cycle(texts)

    async def ask(client: httpx.AsyncClient, number: int) -> int:
        own = served[number % len(served)]
        bodies = [own.body(next(waiting), NEW) for _ in range(rounds)]
        return sum([(await answered(client, own, body))[1] for body in bodies])

    async with httpx.AsyncClient(timeout=TIMEOUT, limits=httpx.Limits(max_connections=CLIENTS)) as client:
        begun = time.perf_counter()
        counts = await asyncio.gather(*(ask(client, number) for number in range(CLIENTS)))
        return sum(counts) / (time.perf_counter() - begun)


async def killed(served: Served, texts: list[str]) -> dict[str, int]:
    """One replica of two dies once half of the streams have begun; half of the clients stream."""
    outcome = {"whole": 0, "streams": 0, "streams_that_ended_in_an_error_event": 0, "lost": 0}
    begun, half = itertools.count(1), asyncio.Event()

    def started() -> None:
        if next(begun) == CLIENTS // 4:
            half.set()

    async def ask(client: httpx.AsyncClient, number: int) -> None:
        stream = number % 2 == 1
        try:
            await answered(client, served, served.body(texts[number % len(texts)], NEW, stream=stream), started)
            outcome["streams" if stream else "whole"] += 1
        except RuntimeError:  # an event that says so
            outcome["streams_that_ended_in_an_error_event"] += 1
        except httpx.HTTPError:
            outcome["lost"] += 1

    async with httpx.AsyncClient(timeout=TIMEOUT, limits=httpx.Limits(max_connections=CLIENTS)) as client:
        asked = [asyncio.ensure_future(ask(client, number)) for number in range(CLIENTS)]
        await half.wait()
        named = [each for each in ray.util.list_named_actors(all_namespaces=True) if "#Replica#" in each["name"]]
        ray.kill(ray.get_actor(named[0]["name"], namespace=named[0]["namespace"]))
        await asyncio.gather(*asked)
    return outcome


async def poisson(served: Served, texts: dict[int, Iterator[str]], rate: float, seconds: float) -> dict[str, Any]:
    """Texts at random times, none of them twice; the first fifth does not count."""
    draw = random.Random(5)
    came: list[tuple[float, float, int, int]] = []

    async def ask(client: httpx.AsyncClient, prompt: int, body: dict[str, Any]) -> None:
        begun = time.perf_counter()
        tokens = (await answered(client, served, body))[1]
        came.append((begun, time.perf_counter(), prompt, tokens))

    running = []
    async with httpx.AsyncClient(timeout=TIMEOUT, limits=httpx.Limits(max_connections=None)) as client:
        start_time = time.perf_counter()
        at = start_time
        while at - start_time < seconds:
            at += draw.expovariate(rate)
            await asyncio.sleep(max(at - time.perf_counter(), 0))
            prompt = draw.choice(LENGTHS)
            body = served.body(next(texts[prompt]), draw.choice(ANSWERS))
            running.append(asyncio.ensure_future(ask(client, prompt, body)))
        end = time.perf_counter()
        await asyncio.gather(*running)
    begin = start_time + 0.2 * (end - start_time)
    tokens = sum(n * max(min(done, end) - max(begun, begin), 0) / (done - begun) for begun, done, _, n in came)
    latencies = [done - begun for begun, done, _, _ in came if begun >= begin]
    asked = sorted((round(begun - start_time, 3), prompt, n) for begun, _, prompt, n in came)
    result = {"rate": rate, "replicas": REPLICAS, "tokens_per_second": tokens / (end - begin)}
    return result | {f"p{n}": float(np.percentile(latencies, n)) for n in (50, 95)} | {"texts": asked}


async def together(served: Served, texts: Iterator[str], clients: int, rounds: int) -> dict[str, Any]:
    """The median answer of so many clients that ask at once; each text is asked for once, so that none is known."""

    async def ask(client: httpx.AsyncClient, text: str) -> float:
        begun = time.perf_counter()
        await answered(client, served, served.body(text, NEW))
        return time.perf_counter() - begun

    seconds: list[float] = []
    async with httpx.AsyncClient(timeout=TIMEOUT) as client:
        for _ in range(rounds):
            seconds += await asyncio.gather(*(ask(client, next(texts)) for _ in range(clients)))
    return {"clients": clients, "prompt": LENGTHS[1], "answer": NEW, "seconds": float(np.median(seconds))}


def loads(served: Served, model: str, by_length: dict[int, list[str]], most: float, seconds: float) -> Any:
    """The loads, each with what was measured before and behind it; `most` is how many texts a second are answered."""
    fresh = {length: iter(texts) for length, texts in by_length.items()}

    def around() -> dict[str, Any]:
        own = fresh[LENGTHS[1]]
        asked = [asyncio.run(together(served, own, REPLICAS * clients, rounds)) for clients, rounds in TOGETHER]
        return {"steps": steps(model), "asked": asked}

    measured = [around()]
    found = []
    for busy in BUSY:
        row = asyncio.run(poisson(served, fresh, busy * most, seconds))
        measured.append(around())
        found.append({**row, "around": measured[-2:]})
        print(f"{row['rate']:.2f} texts/s: {row['tokens_per_second']:.1f} tokens/s, p95 {row['p95']:.1f} s", flush=True)
    return found


def over_http(args: argparse.Namespace, model: str, by_length: dict[int, list[str]], special: dict[str, Any]) -> Any:
    """What is asked of Ray's front, and, of plain servers, the same."""
    texts = by_length[LENGTHS[1]][:KNOWN]
    result: dict[str, Any] = {}
    if "http" in args.parts:
        plain = f"{sys.executable} -m gossamer serve -m model={model} --port {{port}} --threads 1 --draft off"
        both = [start(plain, "model", special) for _ in range(REPLICAS)]
        try:
            asyncio.run(closed(both, texts, 1))
            result["http"] = {"plain": asyncio.run(closed(both, texts, args.rounds))}
        finally:
            for each in both:
                each.stop()
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(app({"model": model, "name": "model", "replicas": REPLICAS, "threads": 1, "draft": "off"}))
    served = Served(f"http://127.0.0.1:{port}", subprocess.Popen(["true"], text=True), "model", special)
    asyncio.run(closed([served], texts, 1))
    by_ray = asyncio.run(closed([served], texts, args.rounds))
    if "loads" in args.parts:
        unknown = {length: texts[KNOWN:] for length, texts in by_length.items()}
        result["loads"] = loads(served, model, unknown, by_ray / float(np.mean(ANSWERS)), args.seconds)
    if "http" in args.parts:
        result["http"] |= {"ray": by_ray, "ray_over_plain": by_ray / result["http"]["plain"]}
        result["killed"] = asyncio.run(killed(served, texts))
    serve.shutdown()
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a packed folder")
    parser.add_argument("--parts", nargs="+", default=[*PARTS], choices=PARTS)
    parser.add_argument("--seconds", type=float, default=120.0, help="of each load")
    parser.add_argument("--rounds", type=int, default=4, help="answers of each client over HTTP")
    parser.add_argument("--rows", type=int, default=1024, help="of the file of prompts; the start of Ray counts")
    parser.add_argument("--name", default="ray_load", help="of the file of results")
    parser.add_argument("--steps", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    model = str(Path(args.model).resolve())
    if args.steps:
        print_steps(model)
        return 0
    ends = gossamer.load(model, threads=1).tokenizer.eos_ids
    special = {"logit_bias": {str(token): -100 for token in ends}, "repeat_penalty": 1}
    lengths = [length for length in LENGTHS for _ in range(KNOWN + FRESH)]
    by_length: dict[int, list[str]] = {}
    for length, text in zip(lengths, prompts(model, lengths), strict=True):
        by_length.setdefault(length, []).append(text)
    result: dict[str, Any] = {"model": Path(model).name}
    ray.init(num_cpus=REPLICAS, include_dashboard=False, object_store_memory=200 << 20, log_to_driver=False)
    if "offline" in args.parts:
        texts = (by_length[LENGTHS[1]][:KNOWN] * args.rows)[: args.rows]
        result["offline"] = {"rows": args.rows, **offline(model, texts, {"repeat_penalty": 1})}
    if "http" in args.parts or "loads" in args.parts:
        result |= over_http(args, model, by_length, special)
    ray.shutdown()
    print(json.dumps(result, indent=1))
    print(write_result(args.name, result))
    ends = result.get("killed", {"lost": 0, "streams_that_ended_in_an_error_event": 1})
    return int(ends["lost"] > 0 or not ends["streams_that_ended_in_an_error_event"])


if __name__ == "__main__":
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    raise SystemExit(main())
