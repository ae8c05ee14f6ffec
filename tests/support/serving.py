"""A server over a tiny model, on a real socket of this machine, in a thread."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2 as httpx

import gossamer
from gossamer.serving.served import Registry, Served
from gossamer.serving.server import Server, listen, url
from gossamer.serving.settings import Settings
from tiny import CHAT_TEMPLATE, tiny_llama

SETTINGS = Settings(port=0, request_seconds=5.0, grace_seconds=10.0)
CONTEXT = 512


TOOLS_TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}{{ message.content or '' }}"
    "{% for call in message.tool_calls or [] %}MARK{{ call.function.name }}{{ call.function.arguments | tojson }}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Writes tools and calls; MARK is what names the form of a family."""


class Saying:
    """An engine that says a script after every prompt, whatever the model would say, and then ends the text."""

    def __init__(self, model: gossamer.Model, text: str) -> None:
        self.engine: Any = model.decoder
        self.script = [*model.tokenizer.encode(text, special=False), min(model.tokenizer.eos_ids)]
        self.said: dict[int, int] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def step(self, batch: Any) -> Any:
        logits = self.engine.step(batch)
        for row, (seq, tokens) in zip(logits, batch, strict=True):
            self.said[seq] = self.said.get(seq, -1) + 1 if len(tokens) == 1 else 0
            row[self.script[min(self.said[seq], len(self.script) - 1)]] = 1000.0
        return logits


@dataclass
class Running:
    """A server that runs.

    Attributes:
        url: Its address.
        server: Itself.
        models: By name.
    """

    url: str
    server: Server
    models: dict[str, gossamer.Model]

    @property
    def base(self) -> str:
        """What OpenAI's clients call the base URL."""
        return f"{self.url}/v1"

    def post(self, path: str, **body: Any) -> httpx.Response:
        return httpx.post(f"{self.base}/{path}", json=body, timeout=30)

    def chat(self, text: str, **body: Any) -> httpx.Response:
        return self.post(
            "chat/completions", **{"model": "tiny", "messages": [{"role": "user", "content": text}], **body}
        )

    def until(self, condition: Any, seconds: float = 10.0) -> None:
        """Waits until something holds."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it did not happen"
            time.sleep(0.005)

    def pages(self) -> int:
        """Bytes of keys and values that all models hold."""
        return sum(model.decoder.kv_bytes for model in self.models.values())


def tiny_model(folder: Path, *, template: str | None = None, **options: Any) -> gossamer.Model:
    """A tiny model that never ends a text by itself."""
    tiny_llama(folder, **{"max_position_embeddings": CONTEXT, **options.pop("config", {})})
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = template or CHAT_TEMPLATE
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return gossamer.load(folder, threads=1, **options)


@contextlib.contextmanager
def serving(models: dict[str, gossamer.Model], *, send_buffer: int = 0, **changed: Any) -> Iterator[Running]:
    """Serves models while the block runs.

    Args:
        models: By name; their adapters are served, too.
        send_buffer: Bytes that the system takes for a client that does not read; 0 leaves that to it.
        **changed: Settings.
    """
    settings = replace(SETTINGS, **changed)
    registry = Registry()
    for name, model in models.items():
        registry.add(Served(name, model, settings))
        for adapter in model.adapters:
            registry.add_adapter(adapter, registry.named(name), adapter)
    started = threading.Event()
    with contextlib.closing(listen(settings)) as listener:
        if send_buffer:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        server = Server(registry, settings, lambda _: started.set())
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        address = url(listener)
        thread.start()
        assert started.wait(10)
        try:
            yield Running(address, server, models)
        finally:
            server.stop()
            thread.join(20)
            assert not thread.is_alive(), "the server did not stop"


def events(response: httpx.Response) -> list[Any]:
    """The objects of a stream of events; the last one is "[DONE]" where all went well."""
    lines = [line for line in response.text.split("\n\n") if line and not line.startswith(":")]
    assert all(line.startswith("data: ") for line in lines)
    return [line[6:] if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]
