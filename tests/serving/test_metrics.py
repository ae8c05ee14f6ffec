"""What Prometheus is told, held against what was asked."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2 as httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving import Running, serving, tiny_model


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving({"tiny": tiny_model(tmp_path_factory.mktemp("metrics") / "tiny")}, most=4) as server:
        yield server


def figures(running: Running) -> dict[str, float]:
    """Every figure of the model, by its name and what else it is of."""
    answer = httpx.get(f"{running.url}/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    found = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            more = [value for name, value in sample.labels.items() if name not in ("model", "le")]
            if sample.labels.get("model", "tiny") == "tiny":
                found[" ".join([sample.name.removeprefix("gossamer_"), *more])] = sample.value
    return found


def test_what_was_asked_is_counted(running: Running) -> None:
    before = figures(running)
    long = "spider " * 20
    answers = [running.chat(long, max_tokens=5, n=2).json() for _ in range(2)]
    assert running.chat("x", nothing=1).status_code == 400
    after = figures(running)

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert grown("requests_total /v1/chat/completions 200") == 2
    assert grown("requests_total /v1/chat/completions 400") == 1
    assert grown("request_seconds_count /v1/chat/completions") == 3
    assert grown("generated_tokens_total") == sum(answer["usage"]["completion_tokens"] for answer in answers)
    assert grown("prompt_tokens_total") == 2 * sum(answer["usage"]["prompt_tokens"] for answer in answers)
    assert grown("prefix_hit_tokens_total") >= 2 * (answers[0]["usage"]["prompt_tokens"] - 1)
    assert grown("time_to_first_token_seconds_count") == 2
    assert grown("time_per_token_seconds_count") == 4
    assert after["tokens_per_second"] > 0
    assert after["read_gigabytes_per_second"] > 0
    assert (after["queue_texts"], after["running_texts"]) == (0, 0)
    assert after["kv_bytes"] == running.pages() > 0, "for who begins as these did"


def test_gauges_tell_of_texts_that_run(running: Running) -> None:
    # Drawn from nearly anything but ends, so that neither drafts nor luck make short work of them.
    model = running.models["tiny"]
    drawn = {"temperature": 2.0, "logit_bias": {str(token): -100 for token in model.tokenizer.eos_ids}}
    body = {"model": "tiny", "prompt": ["spider"] * 6, "max_tokens": 400, "stream": True, **drawn}
    with httpx.stream("POST", f"{running.base}/completions", json=body, timeout=30) as response:
        assert response.status_code == 200
        seen: list[dict[str, float]] = []

        def busy() -> bool:
            seen.append(figures(running))
            return (seen[-1]["running_texts"], seen[-1]["queue_texts"]) == (4, 2)

        running.until(busy)
    now = seen[-1]
    assert now["kv_pages"] >= 4
    assert now["kv_bytes"] == now["kv_pages"] * model.decoder.kv_bytes_of(1, 1)


def test_health(running: Running) -> None:
    assert httpx.get(f"{running.url}/health").json() == {"status": "ok"}
    assert httpx.get(f"{running.url}/ready").json() == {"status": "ready"}
    running.server.state.stopping = True
    try:
        answer = httpx.get(f"{running.url}/ready")
        assert (answer.status_code, answer.json()) == (503, {"status": "stopping"})
    finally:
        running.server.state.stopping = False
