"""What becomes of requests where the engine's thread fails, or is gone."""

from __future__ import annotations

from pathlib import Path

import httpx2 as httpx
import pytest

from serving import serving, tiny_model


def test_a_request_that_the_engine_cannot_take_fails_and_the_next_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving({"tiny": tiny_model(tmp_path / "tiny")}) as running:
        with monkeypatch.context() as patch:
            patch.setattr("gossamer.generation.scheduler.Scheduler.add", lambda *_: 1 / 0)
            answer = running.chat("Hello", n=2)
        assert answer.status_code == 500
        assert "ZeroDivisionError" in answer.json()["error"]["message"]
        assert running.chat("Hello", max_tokens=1).status_code == 200
        assert running.server.state.admitted == 0


def test_a_server_whose_engine_is_gone_is_not_ready(tmp_path: Path) -> None:
    with serving({"tiny": tiny_model(tmp_path / "tiny")}) as running:
        running.server.state.engine.stop()
        assert httpx.get(f"{running.url}/health").status_code == 500
        answer = httpx.get(f"{running.url}/ready")
        assert (answer.status_code, answer.json()) == (503, {"status": "failed"})
