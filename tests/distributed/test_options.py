from __future__ import annotations

from pathlib import Path

import pytest

from gossamer.distributed.models import shared_folder
from gossamer.distributed.options import LOCAL, options
from gossamer.errors import GossamerError
from tiny import tiny_llama


def test_words_of_a_command_line_become_numbers() -> None:
    found = options({"model": "x", "replicas": "2", "most_replicas": "4", "threads": "1", "request_seconds": "2.5"})
    assert (found.replicas, found.most_replicas, found.cpus, found.request_seconds) == (2, 4, 1, 2.5)


def test_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOSSAMER_API_KEY", "of the environment")
    settings = options({"model": "x", "batch": 3, "max_queue": 5, "max_prompt": 7}).settings()
    assert (settings.most, settings.max_queue, settings.max_prompt) == (3, 5, 7)
    assert (settings.hosts, settings.api_keys) == (LOCAL, ("of the environment",))
    settings = options({"model": "x", "hosts": ["*"], "api_keys": ["a", "b"]}).settings()
    assert (settings.hosts, settings.api_keys) == ((), ("a", "b"))


def test_keys_and_values_are_limited_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.distributed.options.available_memory", lambda: 1000)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    assert options({"model": "x", "threads": 8}).kv_bytes == 500
    assert options({"model": "x", "threads": 3}).kv_bytes == 250
    assert options({"model": "x", "threads": 3, "kv_limit": 7}).kv_bytes == 7


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "model: Field required"),
        ({"model": ""}, "model: "),
        ({"model": "x", "replica": "2"}, "replica is no option; did you mean replicas?"),
        ({"model": "x", "replicas": "two"}, "replicas: Input should be a valid integer"),
        ({"model": "x", "replicas": 0}, "replicas: "),
        ({"model": "x", "threads": "-1"}, "threads must be from 0 to 1024, got -1"),
        ({"model": "x", "threads": 2000}, "threads must be from 0 to 1024, got 2000"),
        ({"model": "x", "replicas": 3, "most_replicas": 2}, "most_replicas must be at least replicas, 3, got 2"),
    ],
)
def test_options_that_are_no_good(given: dict[str, object], words: str) -> None:
    with pytest.raises(GossamerError, match=words.replace("?", r"\?")):
        options(given)


def test_only_packed_models_are_shared(tmp_path: Path) -> None:
    with pytest.raises(GossamerError, match=r"is not packed.*gossamer convert"):
        shared_folder(tiny_llama(tmp_path / "tiny"))
