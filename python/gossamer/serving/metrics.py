"""What Prometheus reads: queue, texts, tokens, times, memory of keys and values, and how near the roof steps come."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

from ..machine import roofline

if TYPE_CHECKING:
    from ..generation.stats import Stats
    from .engine_thread import EngineThread
    from .served import Registry, Served

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SHORT = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0)


class Metrics:
    """The figures of one server."""

    def __init__(self, registry: Registry, engine: EngineThread) -> None:
        self._all = CollectorRegistry()
        own: dict[str, Any] = {"registry": self._all}
        self._requests = Counter("gossamer_requests", "Requests that were answered", ["path", "status"], **own)
        self._texts = Counter("gossamer_texts", "Texts that ended", ["model", "finish"], **own)
        self._prompt = Counter("gossamer_prompt_tokens", "Tokens of prompts", ["model"], **own)
        self._generated = Counter("gossamer_generated_tokens", "Tokens that were written", ["model"], **own)
        self._hits = Counter(
            "gossamer_prefix_hit_tokens", "Tokens of prompts that were computed already", ["model"], **own
        )
        self._first = Histogram(
            "gossamer_time_to_first_token_seconds",
            "From a request's arrival to its first token",
            ["model"],
            buckets=_SHORT,
            **own,
        )
        self._token = Histogram(
            "gossamer_time_per_token_seconds",
            "Mean time of a text's tokens after the first",
            ["model"],
            buckets=_TOKEN,
            **own,
        )
        self._request = Histogram(
            "gossamer_request_seconds", "From a request's arrival to its answer's end", ["path"], buckets=_SHORT, **own
        )
        self._all.register(_Gauges(registry, engine))

    def request(self, path: str, status: int, seconds: float) -> None:
        """Counts a request."""
        self._requests.labels(path, str(status)).inc()
        self._request.labels(path).observe(seconds)

    def first_token(self, model: str, seconds: float) -> None:
        """Notes how long a request's first token took."""
        self._first.labels(model).observe(seconds)

    def text(self, model: str, stats: Stats) -> None:
        """Counts a text that has ended."""
        self._texts.labels(model, stats.finish).inc()
        self._prompt.labels(model).inc(stats.prompt_tokens)
        self._generated.labels(model).inc(stats.new_tokens)
        self._hits.labels(model).inc(stats.reused_tokens)
        if stats.new_tokens > 1:
            self._token.labels(model).observe(stats.decode_seconds / (stats.new_tokens - 1))

    def write(self) -> bytes:
        """Returns all figures as Prometheus reads them."""
        return generate_latest(self._all)


class _Gauges:
    """What is so at the moment, asked when somebody reads it."""

    _ABOUT = {  # noqa: RUF012 - nobody changes it
        "queue_texts": "Texts that wait to be computed",
        "running_texts": "Texts that are being computed",
        "admitted_texts": "Texts that were taken on and have not ended",
        "tokens_per_second": "Tokens written a second, over the last ten",
        "read_gigabytes_per_second": "Weights, keys and values that steps read a second, in 1e9 bytes",
        "percent_of_roof": "The same in percent of what `gossamer roofline` measured; not there where it has not",
        "kv_bytes": "Bytes of keys and values that texts have",
        "kv_limit_bytes": "Most of these; 0 where there is no limit",
        "kv_pages": "Pages of keys and values that texts have",
    }

    def __init__(self, registry: Registry, engine: EngineThread) -> None:
        self._registry = registry
        self._engine = engine

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Gives the gauges."""
        families = {
            name: GaugeMetricFamily(f"gossamer_{name}", about, labels=["model"]) for name, about in self._ABOUT.items()
        }
        for served in self._registry:
            for name, value in self._values(served).items():
                families[name].add_metric([served.name], value)
        yield from families.values()

    def _values(self, served: Served) -> dict[str, float]:
        running, waiting = self._engine.counts(served)
        tokens, read, step = self._engine.rates(served).latest()
        engine = served.model.decoder
        kept = engine.kv_bytes
        measured = roofline.cached() if step and served.model.device == "cpu" else None
        values: dict[str, float] = {
            "queue_texts": max(served.admitted - running, waiting),
            "running_texts": running,
            "admitted_texts": served.admitted,
            "tokens_per_second": tokens,
            "read_gigabytes_per_second": read / 1e9,
            "kv_bytes": kept,
            "kv_limit_bytes": getattr(engine, "kv_limit", 0),
            "kv_pages": kept // max(engine.kv_bytes_of(1, 1), 1),
        }
        if measured is not None:
            values["percent_of_roof"] = 100 * read / 1e9 / measured.roof(step)
        return values
