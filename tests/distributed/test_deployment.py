"""The application on a Ray of this machine: two replicas, killed in the middle."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

import gossamer
from serving import events

ray: Any = pytest.importorskip("ray")
serve: Any = pytest.importorskip("ray.serve")
pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray and what it stands on

LONG = 3500  # tokens, a second or two
ENDLESS = {"logit_bias": {"2": -100}}  # the token that ends a text


@pytest.fixture(scope="module")
def base(request: pytest.FixtureRequest, folder: Path) -> Iterator[str]:
    request.getfixturevalue("cluster")
    from gossamer.distributed import app

    port = cluster_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    given = {"model": str(folder), "name": "tiny", "replicas": "2", "threads": "1", "hosts": ["127.0.0.1"]}
    serve.run(app(given), route_prefix="/tiny")
    yield f"http://127.0.0.1:{port}/tiny"
    serve.shutdown()


def cluster_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def replicas() -> list[Any]:
    named = ray.util.list_named_actors(all_namespaces=True)
    own = [each for each in named if "#Replica#" in each["name"]]
    return [ray.get_actor(each["name"], namespace=each["namespace"]) for each in own]


def kill_all() -> None:
    for replica in replicas():
        ray.kill(replica)


def body(prompt: str, tokens: int, **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "repeat_penalty": 1, **more}


def ask(base: str, prompt: str, tokens: int, **more: Any) -> httpx.Response:
    return httpx.post(f"{base}/v1/completions", json=body(prompt, tokens, **more), timeout=60)


def pages_of(path: Path) -> list[dict[str, int]]:
    """Of each process but this one that maps a file: bytes by what `smaps` calls them."""
    found = []
    for maps in set(Path("/proc").glob("[0-9]*/smaps")) - {Path(f"/proc/{os.getpid()}/smaps")}:
        try:
            text = maps.read_text()
        except OSError:
            continue
        counts: dict[str, int] = {}
        inside = False
        for line in text.splitlines():
            if "-" in line.split(maxsplit=1)[0] and ":" not in line.split(maxsplit=1)[0]:
                inside = line.endswith(str(path))
            elif inside and line.endswith("kB"):
                name, value, _ = line.split()
                counts[name] = counts.get(name, 0) + int(value)
        if counts:
            found.append(counts)
    return found


def test_answers_are_those_of_the_model_alone(base: str, folder: Path) -> None:
    model = gossamer.load(folder, threads=1)
    prompts = [f"Spider {number} spins" for number in range(12)]
    sampling = {"max_new_tokens": 40, "temperature": 0, "repeat_penalty": 1, "chat": False}
    expected = [model.completions(prompt, **sampling)[0].text for prompt in prompts]
    with ThreadPoolExecutor(12) as pool:
        whole = list(pool.map(lambda prompt: ask(base, prompt, 40), prompts))
        streamed = list(pool.map(lambda prompt: ask(base, prompt, 40, stream=True), prompts))
    assert [answer.json()["choices"][0]["text"] for answer in whole] == expected
    for answer, text in zip(streamed, expected, strict=True):
        *chunks, last = events(answer)
        assert last == "[DONE]"
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == text


def test_streams_come_piece_by_piece(base: str) -> None:
    with httpx.stream(
        "POST", f"{base}/v1/completions", json=body("The web", LONG, stream=True, **ENDLESS), timeout=60
    ) as answer:
        times = [time.monotonic() for _ in answer.iter_bytes()]
    assert len(times) > 20
    assert times[len(times) // 4] - times[0] < 0.5 * (times[-1] - times[0])


def test_refusals_come_through(base: str) -> None:
    wrong = ask(base, "x", 1, temprature=1)
    assert wrong.status_code == 400
    assert wrong.json()["error"]["param"] == "temprature"
    other = httpx.get(f"{base}/v1/models", headers={"host": "evil.example"})
    assert other.status_code == 403
    large = httpx.post(f"{base}/v1/completions", json=body("x" * (5 << 20), 1), timeout=60)
    assert large.status_code == 413
    assert httpx.get(f"{base}/metrics").status_code == 404
    assert httpx.get(f"{base}/v1/models").json()["data"][0]["id"] == "tiny"
    assert "<html" in httpx.get(f"{base}/").text


def test_replicas_share_the_pages_of_the_weights(base: str, folder: Path) -> None:
    found = pages_of(folder / "weights.safetensors")
    assert len(found) == 2, base
    for counts in found:
        assert counts["Rss:"] > 0
        assert counts["Shared_Clean:"] == counts["Rss:"]
        assert counts["Private_Dirty:"] == counts["Private_Clean:"] == 0


def texts() -> tuple[float, dict[str, float]]:
    """How many texts are being written, and how many ended by how, as the replicas tell.

    They are asked at once, since the router hands what comes alone to whichever it likes, perhaps always the same.
    """
    asked = serve.get_deployment_handle("Replica", "default").options(stream=True, method_name="answer")
    scope = {"type": "http", "method": "GET", "path": "/metrics", "raw_path": b"/metrics", "root_path": ""}
    scope |= {"query_string": b"", "headers": [(b"host", b"127.0.0.1")]}
    running, ended = [], {}
    for told in [asked.remote(scope, b"") for _ in range(10)]:
        lines = b"".join(part.body for part in told).decode().splitlines()
        found = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        running += [float(value) for name, value in found.items() if name.startswith("gossamer_running_texts{")]
        for name, value in found.items():
            if name.startswith("gossamer_texts_total{"):
                # Figures of one replica have one date at which they began to count.
                began = found[name.replace("_total{", "_created{")]
                ended[re.findall(r'finish="(\w+)"', name)[0], began] = float(value)
    assert len(running) == 10
    by: dict[str, float] = {}
    for (finish, _), count in ended.items():
        by[finish] = by.get(finish, 0) + count
    return sum(running), by


def test_clients_that_leave_end_their_texts(base: str) -> None:
    asked = body("A", LONG, stream=True, **ENDLESS)
    _, before = texts()
    reading = []  # a stream whose reader is dropped ends by itself
    with contextlib.ExitStack() as streams:
        for number in range(4):  # so that both replicas write
            more = {**asked, "prompt": f"B{number}"}
            stream = streams.enter_context(httpx.stream("POST", f"{base}/v1/completions", json=more, timeout=60))
            reading.append(stream.iter_bytes())
            next(reading[-1])
        assert texts()[0] > 0
    until = time.monotonic() + 60
    while (now := texts())[0] > 0:
        assert time.monotonic() < until, "the texts go on"
    assert {finish: count - before.get(finish, 0) for finish, count in now[1].items()} == {
        finish: 4 if finish == "closed" else 0 for finish in now[1]
    }
    assert "closed" in now[1]


def test_what_has_not_begun_is_retried_and_what_has_ends_in_an_error(base: str) -> None:
    expected = ask(base, "Numbers", LONG, **ENDLESS).json()["choices"][0]["text"]
    before = {replica._actor_id for replica in replicas()}
    with ThreadPoolExecutor(4) as pool:
        with httpx.stream(
            "POST", f"{base}/v1/completions", json=body("A", LONG, stream=True, **ENDLESS), timeout=60
        ) as stream:
            pieces = stream.iter_bytes()
            read = next(pieces)
            whole = [pool.submit(ask, base, "Numbers", LONG, **ENDLESS) for _ in range(4)]
            time.sleep(0.3)
            assert not any(answer.done() for answer in whole)
            kill_all()
            read += b"".join(pieces)
        answers = [answer.result() for answer in whole]
    last = [line for line in read.split(b"\n\n") if line][-1]
    error = json.loads(last.removeprefix(b"data: "))["error"]
    assert (error["code"], error["type"]) == ("replica_died", "server_error")
    assert [answer.status_code for answer in answers] == [200] * 4
    assert all(answer.json()["choices"][0]["text"] == expected for answer in answers)
    assert not before & {replica._actor_id for replica in replicas()}
