from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from serving import Running


@pytest.fixture
def client(running: Running) -> Iterator[Any]:
    """OpenAI's own, of the server that the module runs."""
    import openai

    with openai.OpenAI(base_url=running.base, api_key="none", max_retries=0, timeout=60) as made:
        yield made
