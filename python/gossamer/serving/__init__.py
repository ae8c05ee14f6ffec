"""Models behind HTTP, in the form that OpenAI's clients speak: one thread steps the models, asyncio does the rest.

`server.serve` runs it; `app.build` makes the ASGI application by itself.
"""

from __future__ import annotations

from ..errors import GossamerError


def need_packages() -> None:
    """Raises `GossamerError` where a package is missing that serving needs."""
    try:
        import prometheus_client  # noqa: F401 - to say at once what is missing
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise GossamerError(f"serving needs {error.name}: pip install 'gossamer[serve]'") from None
