from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import gossamer


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A Ray of this machine, with little memory."""
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, object_store_memory=100 << 20, include_dashboard=False, configure_logging=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed model with room for long texts."""
    from serving import tiny_model

    path = tmp_path_factory.mktemp("distributed")
    tiny_model(path / "tiny", config={"max_position_embeddings": 4096})
    gossamer.convert(path / "tiny", path / "packed")
    return path / "packed"
