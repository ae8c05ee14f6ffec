"""Hostile and unlucky clients, and a server that is stopped: nobody crashes it, starves others or leaves anything."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from serving import Running, events, serving, tiny_model

LONG: dict[str, Any] = {"max_tokens": 400, "temperature": 0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_model(tmp_path_factory.mktemp("faults") / "tiny")


class Slow:
    """An engine whose steps take at least so long, until it is let go."""

    def __init__(self, engine: Any, seconds: float) -> None:
        self.engine = engine
        self.seconds = seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def step(self, *args: Any, **options: Any) -> Any:
        time.sleep(self.seconds)
        return self.engine.step(*args, **options)


@pytest.fixture
def slow(model: Any) -> Iterator[None]:
    engine = model.decoder
    model.decoder = Slow(engine, 0.01)
    yield
    model.decoder = engine


def stream_lines(running: Running, **body: Any) -> Iterator[bytes]:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "stream": True, **LONG, **body}
    with httpx.stream("POST", f"{running.base}/chat/completions", json=body, timeout=30) as response:
        assert response.status_code == 200
        yield from response.iter_bytes()


def gauge(running: Running, name: str) -> float:
    lines = httpx.get(f"{running.url}/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith(f"gossamer_{name}{{")).split()[-1])


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_pages_within_a_step(model: Any, stream: bool) -> None:
    with serving({"tiny": model}) as running:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "stream": stream, **LONG}
        raw = json.dumps(body).encode()
        client = connect(running, HEAD + f"content-length: {len(raw)}\r\n\r\n".encode() + raw)
        running.until(lambda: running.pages() > 0)
        steps = running.server.state.engine.rates(next(iter(running.server.state.registry))).steps
        client.close()
        running.until(lambda: running.pages() == 0, 1.0)
        assert running.server.state.admitted == 0
        after = running.server.state.engine.rates(next(iter(running.server.state.registry))).steps
        assert after - steps < 30  # of 400: what the machine needs to tell the server, and one step


@pytest.mark.usefixtures("slow")
def test_a_text_that_waits_is_dropped_with_its_client(model: Any) -> None:
    with serving({"tiny": model}, most=1) as running:
        first = stream_lines(running)
        next(first)
        second = stream_lines(running)
        next(second)
        running.until(lambda: gauge(running, "queue_texts") == 1)
        second.close()
        running.until(lambda: running.server.state.admitted == 1, 2.0)
        first.close()
        running.until(lambda: running.pages() == 0, 1.0)


@pytest.mark.usefixtures("slow")
def test_a_full_queue_says_when_to_try_again(model: Any) -> None:
    with serving({"tiny": model}, most=1, max_queue=1) as running:
        streams = [stream_lines(running) for _ in range(2)]
        for stream in streams:
            next(stream)
        assert httpx.get(f"{running.url}/ready").status_code == 503
        answer = running.chat("Hello")
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
        for stream in streams:
            stream.close()
        running.until(lambda: httpx.get(f"{running.url}/ready").status_code == 200)
        assert running.chat("Hello", max_tokens=1).status_code == 200


def test_keys(model: Any) -> None:
    with serving({"tiny": model}, api_keys=("first", "second")) as running:
        for headers, words in (({}, "is needed"), ({"authorization": "Bearer third"}, "is wrong")):
            answer = httpx.get(f"{running.base}/models", headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert words in answer.json()["error"]["message"]
            assert answer.headers["www-authenticate"] == "Bearer"
        for key in ("first", "second"):
            assert httpx.get(f"{running.base}/models", headers={"authorization": f"Bearer {key}"}).status_code == 200
        assert httpx.get(f"{running.url}/metrics").status_code == 401
        assert [httpx.get(f"{running.url}{path}").status_code for path in ("/", "/health", "/ready")] == [200] * 3


def test_names_of_others_are_not_answered(model: Any) -> None:
    with serving({"tiny": model}, hosts=("127.0.0.1", "::1")) as running:
        assert httpx.get(f"{running.base}/models").status_code == 200
        for name in ("evil.example", "127.0.0.1.evil.example:80", ""):
            assert httpx.get(f"{running.base}/models", headers={"host": name}).status_code == 403
        for name in ("127.0.0.1", "[::1]:8000", "127.0.0.1:1"):
            assert httpx.get(f"{running.base}/models", headers={"host": name}).status_code == 200
        for path in ("/health", "/ready"):  # a container asks by its own address, a cluster by the container's
            assert httpx.get(f"{running.url}{path}", headers={"host": "10.0.0.7:8000"}).status_code == 200


def connect(running: Running, data: bytes) -> socket.socket:
    host, port = running.url.removeprefix("http://").split(":")
    client = socket.create_connection((host, int(port)), timeout=20)
    client.sendall(data)
    return client


def answer_of(client: socket.socket) -> bytes:
    received = b""
    while part := client.recv(1 << 16):
        received += part
    return received


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


def test_a_large_body_is_refused_unread(model: Any) -> None:
    with serving({"tiny": model}, max_body=1000) as running:
        with connect(running, HEAD + b"content-length: 1000000000\r\n\r\n") as client:
            assert answer_of(client).startswith(b"HTTP/1.1 413 ")
        chunk = b"1f4\r\n" + b" " * 500 + b"\r\n"
        with connect(running, HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunk * 3) as client:
            received = answer_of(client)
        assert received.startswith(b"HTTP/1.1 413 ")
        assert b'"code":"request_too_large"' in received
        assert b"connection: close" in received.lower()


def test_a_client_that_sends_a_gigabyte_is_told_so(model: Any) -> None:
    def gigabyte() -> Iterator[bytes]:
        for _ in range(1 << 10):
            yield bytes(1 << 20)

    with serving({"tiny": model}) as running:
        start = time.monotonic()
        headers = {"content-type": "application/json", "content-length": str(1 << 30)}
        answer = httpx.post(f"{running.base}/chat/completions", content=gigabyte(), headers=headers, timeout=30)
        assert answer.status_code == 413
        assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", b""),
        (b"POST /v1/chat/comp", b""),
        (HEAD, b""),
        (HEAD + b"content-length: 100\r\n\r\n{", b"HTTP/1.1 408 "),
    ],
)
def test_half_a_request_is_not_waited_for(model: Any, sent: bytes, status: bytes) -> None:
    with serving({"tiny": model}, request_seconds=0.3) as running:
        start = time.monotonic()
        with connect(running, sent) as client:
            try:
                received = answer_of(client)
            except ConnectionResetError:
                received = b""
        assert received.startswith(status)
        assert bool(received) == bool(status)
        assert time.monotonic() - start < 5
        assert running.chat("Hello", max_tokens=1).status_code == 200


def test_half_a_second_request_is_not_waited_for(model: Any) -> None:
    with serving({"tiny": model}, request_seconds=0.3) as running:
        with connect(running, b"GET /health HTTP/1.1\r\nhost: x\r\n\r\nGET /hea") as client:
            try:
                received = answer_of(client)
            except ConnectionResetError:
                received = b"HTTP/1.1 200"
        assert received.startswith(b"HTTP/1.1 200")


def test_nonsense_is_no_request(model: Any) -> None:
    with serving({"tiny": model}) as running:
        for data in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"A" * 200_000):
            with connect(running, data) as client:
                try:
                    received = answer_of(client)
                except ConnectionResetError:
                    received = b""
                assert received.startswith(b"HTTP/1.1 400 ") or not received
        assert running.chat("Hello", max_tokens=1).status_code == 200


def test_a_client_that_does_not_read_keeps_nobody(model: Any) -> None:
    """Its answer is larger than what sockets hold: it is cut off, and the others are answered meanwhile."""
    with serving({"tiny": model}, send_buffer=4096, request_seconds=0.5, retained=0) as running:
        body = {"model": "tiny", "prompt": ["x" * 300] * 8, "max_tokens": 150, "stream": True}
        raw = json.dumps(body).encode()
        head = HEAD.replace(b"chat/", b"") + f"content-length: {len(raw)}\r\n\r\n".encode()
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", int(running.url.rsplit(":", 1)[1])))
        with client:
            client.sendall(head + raw)
            running.until(lambda: running.server.state.admitted > 0)
            assert running.chat("Hello", max_tokens=1).status_code == 200
            running.until(lambda: running.server.state.admitted == 0 and running.pages() == 0, 20)
            running.until(lambda: len(running.server.server_state.connections) == 0, 5)


def test_connections_beyond_the_limit_are_told(model: Any) -> None:
    with serving({"tiny": model}, max_connections=20, request_seconds=1.0) as running:
        clients = [connect(running, b"") for _ in range(20)]
        running.until(lambda: len(running.server.server_state.connections) == 20)
        with connect(running, b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n") as client:
            assert answer_of(client).startswith(b"HTTP/1.1 503 ")
        running.until(lambda: len(running.server.server_state.connections) == 0)  # they asked for nothing
        assert running.chat("Hello", max_tokens=1).status_code == 200
        for client in clients:
            client.close()


def test_a_model_that_fails_fails_its_texts_and_goes_on(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = model.decoder
    with serving({"tiny": model}, retained=0) as running:
        stream = stream_lines(running)
        next(stream)
        failing = Slow(engine, 0)
        monkeypatch.setattr(failing, "step", lambda *_: 1 / 0, raising=False)
        scheduler = next(iter(running.server.state.engine._schedulers.values()))
        scheduler._engine = failing
        rest = b"".join(stream)
        assert b"the model failed: ZeroDivisionError" in rest
        assert b"[DONE]" not in rest
        assert running.chat("Hello", max_tokens=2).status_code == 200
        assert running.pages() == 0


def test_a_template_bomb_keeps_nobody_else(model: Any, tmp_path: Path) -> None:
    endless = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"
    models = {"tiny": model, "bomb": tiny_model(tmp_path / "bomb", template=endless)}
    with serving(models) as running, ThreadPoolExecutor(1) as pool:
        stream = stream_lines(running)
        next(stream)
        bomb = pool.submit(running.chat, "Hi", model="bomb")
        assert b"[DONE]" in b"".join(stream)
        assert httpx.get(f"{running.url}/health").status_code == 200
        assert bomb.result().status_code == 400
        assert "does not come to an end" in bomb.result().json()["error"]["message"]
        assert running.chat("Hello", max_tokens=1).status_code == 200


@pytest.fixture
def command() -> Iterator[Callable[..., tuple[subprocess.Popen[str], str]]]:
    """Starts `gossamer serve`; gives the process and its address."""
    started: list[subprocess.Popen[str]] = []

    def start(*options: str) -> tuple[subprocess.Popen[str], str]:
        line = [sys.executable, "-m", "gossamer", "serve", "--port", "0", "--threads", "1", *options]
        process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env={**os.environ, "GOSSAMER_MEASURE": "0"})
        started.append(process)
        assert process.stderr is not None
        for text in process.stderr:
            if '"event": "listening"' in text:
                return process, json.loads(text)["url"]
        raise AssertionError("it did not start")

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def read_stream(url: str, begun: threading.Semaphore, tokens: int) -> httpx.Response:
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Hello"}],
        "stream": True,
        "max_tokens": tokens,
        "temperature": 0,
    }
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as response:
        parts = []
        for part in response.iter_bytes():
            if not parts:
                begun.release()
            parts.append(part)
        return httpx.Response(response.status_code, content=b"".join(parts))


@pytest.mark.parametrize("grace", ["20", "0.05"])
def test_sigterm_while_sixteen_stream(command: Any, tmp_path: Path, grace: str) -> None:
    tiny_model(tmp_path / "tiny")
    process, url = command("-m", f"tiny={tmp_path / 'tiny'}", "--grace", grace)
    begun = threading.Semaphore(0)
    with ThreadPoolExecutor(16) as pool:
        streams = [pool.submit(read_stream, url, begun, 400) for _ in range(16)]
        for _ in streams:
            begun.acquire()
        process.send_signal(signal.SIGTERM)
        late = httpx.post(f"{url}/v1/chat/completions", json={}, timeout=30) if grace == "20" else None
        answers = [events(stream.result()) for stream in streams]
    if late is not None:
        assert late.status_code == 503
        assert "the server is stopping" in late.json()["error"]["message"]
        assert "retry-after" in late.headers
    for sent in answers:
        if sent[-1] == "[DONE]":
            assert sent[-2]["choices"][0]["finish_reason"] in ("length", "stop")
        else:
            assert grace != "20"
            assert "did not end in time" in sent[-1]["error"]["message"]
    assert process.wait(20) == 0


def test_ten_thousand_connections(command: Any, tmp_path: Path) -> None:
    """They ask for nothing and do not go: those that the server takes are closed in time, and others are answered."""
    count = 10_000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count + 500:
        pytest.skip(f"the system allows {hard} open files")
    tiny_model(tmp_path / "tiny")
    process, url = command("-m", f"tiny={tmp_path / 'tiny'}", "--request-timeout", "2")
    with contextlib.ExitStack() as clients:
        if soft != resource.RLIM_INFINITY and soft < count + 500:
            resource.setrlimit(resource.RLIMIT_NOFILE, (count + 500, hard))
            clients.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(count):
            client = clients.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", int(url.rsplit(":", 1)[1])))
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
        end = time.monotonic() + 60
        status = 0
        while status != 200:
            assert time.monotonic() < end, "nobody is answered any more"
            assert process.poll() is None
            with contextlib.suppress(httpx.TransportError):
                status = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=10).status_code
                assert status in (200, 503)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0


def test_the_log_tells_of_requests_and_not_what_they_say(command: Any, tmp_path: Path) -> None:
    tiny_model(tmp_path / "tiny")
    process, url = command("-m", f"tiny={tmp_path / 'tiny'}")
    body = {"model": "tiny", "messages": [{"role": "user", "content": "secret"}], "max_tokens": 3, "user": "ada"}
    assert httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30).status_code == 200
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    assert process.stderr is not None
    text = process.stderr.read()
    lines = [json.loads(line) for line in text.splitlines()]
    assert "secret" not in text
    request = next(line for line in lines if line["event"] == "request")
    assert (request["path"], request["status"], request["model"]) == ("/v1/chat/completions", 200, "tiny")
    assert (request["completion_tokens"], request["finish"], request["user"]) == (3, "length", "ada")
    assert 0 < request["first_token_seconds"] <= request["seconds"]
    assert [line["event"] for line in lines][-1] == "stopped"
