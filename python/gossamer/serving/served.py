"""Models under their names, and how many texts each has taken on."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from ..errors import GossamerError, did_you_mean
from ..generation.drafts import guessing
from .errors import ApiError

if TYPE_CHECKING:
    from ..generation.drafts import Draft
    from ..generation.model import Model
    from .settings import Settings

T = TypeVar("T")

_PATHS = {
    "text": "/v1/chat/completions and /v1/completions",
    "embeddings": "/v1/embeddings",
    "speech": "/v1/audio/transcriptions and /v1/audio/translations",
}
_REMEMBERED = 64  # texts whose time tells how long one takes


class Served:
    """A model and what is under way on it.

    All but `model` belongs to the event loop's thread.

    Attributes:
        name: As clients write it.
        model: The model.
        created: When it was loaded, in seconds since 1970.
        admitted: Texts that were taken on and have not ended.
        drafts: How its tokens are guessed; None where they are not.
    """

    def __init__(self, name: str, model: Model, settings: Settings, draft: Draft = "auto") -> None:
        self.name = name
        self.model = model
        self.drafts = None if model.config.head is None else guessing(model, draft)
        self.created = int(time.time())
        self.admitted = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"encode-{name}")
        self._settings = settings
        self._seconds: deque[float] = deque(maxlen=_REMEMBERED)

    async def compute(self, work: Callable[[], T]) -> T:
        """Does work of requests in the model's thread, one after the other.

        What takes long, as a prompt's tokens may, keeps nobody waiting but those of the same model.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def need(self, what: str) -> None:
        """Checks that the model does something: "text", "embeddings" or "speech".

        Raises:
            ApiError: it does something else (400).
        """
        encoder = self.model.config.encoder
        if encoder is not None and encoder.embedding.mel is not None:
            does = "speech"
        else:
            does = "embeddings" if self.model.config.head is None else "text"
        if does != what:
            raise ApiError(400, f"{self.name} is for {_PATHS[does]}", param="model", code="model_not_supported")

    def admit(self, texts: int) -> None:
        """Takes texts on.

        Raises:
            ApiError: there are too many already (429).
        """
        room = self._settings.most + self._settings.max_queue - self.admitted
        if texts > room:
            raise ApiError(
                429,
                f"{self.name} has {self.admitted} texts under way and takes no more for now; try again later",
                code="queue_full",
                retry_after=self.wait(),
            )
        self.admitted += texts

    def release(self, texts: int = 1) -> None:
        """Says that texts have ended."""
        self.admitted -= texts

    def took(self, seconds: float) -> None:
        """Remembers how long a text took, once it ran."""
        self._seconds.append(seconds)

    def wait(self) -> int:
        """Returns the seconds after which there should be room for a text that there is none for now."""
        typical = sum(self._seconds) / len(self._seconds) if self._seconds else 1.0
        return min(max(math.ceil(typical / self._settings.most), 1), 60)


class Registry:
    """Models by name, and their adapters, which are model names, too."""

    def __init__(self) -> None:
        self._served: dict[str, Served] = {}
        self._adapters: dict[str, tuple[Served, str]] = {}

    def __iter__(self) -> Iterator[Served]:
        return iter(self._served.values())

    def add(self, served: Served) -> None:
        """Adds a model.

        Raises:
            GossamerError: its name is taken.
        """
        self._check(served.name)
        self._served[served.name] = served

    def add_adapter(self, name: str, served: Served, adapter: str) -> None:
        """Adds a name under which a model answers with an adapter.

        Raises:
            GossamerError: the name is taken.
        """
        self._check(name)
        self._adapters[name] = (served, adapter)

    def named(self, name: str) -> Served:
        """Returns the model of a name, adapters left out.

        Raises:
            GossamerError: there is none.
        """
        if name not in self._served:
            raise GossamerError(f"there is no model {name!r} here{did_you_mean(name, self._served)}")
        return self._served[name]

    def find(self, name: str) -> tuple[Served, tuple[str, ...]]:
        """Returns a model and the adapters that a name stands for.

        Raises:
            ApiError: there is no such model (404).
        """
        if name in self._served:
            return self._served[name], ()
        if name in self._adapters:
            served, adapter = self._adapters[name]
            return served, (adapter,)
        names = self.names()
        meant = did_you_mean(name, names) or f"; there are: {', '.join(names)}"
        raise ApiError(404, f"the model {name!r:.80} does not exist{meant}", param="model", code="model_not_found")

    def names(self) -> list[str]:
        """Returns all names, models first."""
        return [*self._served, *self._adapters]

    def listed(self, name: str) -> dict[str, object]:
        """Returns what `/v1/models` says of a name.

        Raises:
            ApiError: there is no such model (404).
        """
        served, adapters = self.find(name)
        about = {"id": name, "object": "model", "created": served.created, "owned_by": "gossamer"}
        return {**about, "parent": served.name} if adapters else about

    def _check(self, name: str) -> None:
        if name in self._served or name in self._adapters:
            raise GossamerError(f"two models have the name {name!r}; give one another, as in -m NAME=MODEL")
