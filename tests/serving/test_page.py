"""The page: what it consists of, and that it reaches nothing but its own server."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx2 as httpx
import pytest

from serving import Running, serving, tiny_model

FILES = {"/": "text/html", "/page/chat.js": "text/javascript", "/page/chat.css": "text/css"}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    model = tiny_model(tmp_path_factory.mktemp("page") / "tiny")
    with serving({"tiny": model}, api_keys=("key",)) as server:
        yield server


@pytest.mark.parametrize("path", FILES)
def test_the_page_is_there_without_a_key_and_reaches_nothing_else(running: Running, path: str) -> None:
    answer = httpx.get(f"{running.url}{path}")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(FILES[path])
    assert answer.headers["x-content-type-options"] == "nosniff"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"https?://|innerHTML|\beval\b|\bon\w+=\"", answer.text)


def test_what_the_page_names_is_there(running: Running) -> None:
    text = httpx.get(running.url).text
    named = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert sorted(named) == ["/page/chat.css", "/page/chat.js"]
    script = httpx.get(f"{running.url}/page/chat.js").text
    ids = set(re.findall(r'\$\("([\w-]+)"\)', script))
    assert ids <= set(re.findall(r'id="([\w-]+)"', text))
    assert set(re.findall(r'fetch\("([^"]+)"', script)) == {"/v1/models", "/v1/chat/completions"}


def test_pages_of_others_are_not_answered(running: Running) -> None:
    key = {"authorization": "Bearer key"}
    assert httpx.get(f"{running.base}/models", headers={**key, "origin": running.url}).status_code == 200
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
        assert httpx.get(f"{running.base}/models", headers={**key, "origin": origin}).status_code == 403
