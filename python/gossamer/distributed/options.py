"""What an application on Ray Serve is built with: `serve run gossamer.distributed:app NAME=VALUE …`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ..errors import GossamerError, did_you_mean
from ..generation.scheduler import MOST
from ..machine.memory import available_memory
from ..machine.threads import check_threads, usable_threads
from ..serving.settings import MiB, Settings

LOCAL = ("localhost", "127.0.0.1", "::1")
_KEY_VARIABLE = "GOSSAMER_API_KEY"


class Options(BaseModel):
    """Options of an application; where they share a name with `Settings` they mean the same.

    Attributes:
        model: A packed folder or a built-in model, by a path or name that holds on every machine.
        name: That clients write; empty takes the folder's.
        adapters: Paths of adapters by the names that clients write.
        replicas: Fewest that run.
        most_replicas: Most that run; 0 for as many as `replicas`.
        fronts: Processes that stand before them.
        threads: Of a replica, which takes as many CPUs from Ray; 0 for all that this machine has.
        batch: Texts that a replica writes at once.
        api_keys: As in `Settings`; without any, GOSSAMER_API_KEY where that is set here.
        hosts: Names that are answered; "*" is any.
        kv: As of `gossamer.load`.
        activations: As of `gossamer.load`.
        kv_limit: As of `gossamer.load`, of each replica; 0 for half of what is free where it starts, shared among as
            many replicas as that machine has processors for.
        draft: How tokens are guessed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(min_length=1)
    name: str = ""
    adapters: dict[str, str] = {}
    replicas: int = Field(1, ge=1)
    most_replicas: int = Field(0, ge=0)
    fronts: int = Field(1, ge=1)
    threads: Annotated[int, AfterValidator(check_threads)] = 0
    batch: int = Field(MOST, ge=1)
    api_keys: list[str] = []
    hosts: list[str] = list(LOCAL)
    kv: str = "f32"
    activations: str = "auto"
    kv_limit: int = Field(0, ge=0)
    draft: str = "auto"
    max_queue: int = Field(256, ge=0)
    max_body: int = Field(4 * MiB, ge=1)
    max_sound: int = Field(32 * MiB, ge=1)
    max_prompt: int = Field(0, ge=0)
    max_tokens: int = Field(0, ge=0)
    request_seconds: float = Field(20.0, gt=0)

    @property
    def cpus(self) -> int:
        """CPUs and threads of a replica."""
        return usable_threads(self.threads) or len(os.sched_getaffinity(0))

    @property
    def kv_bytes(self) -> int:
        """Most bytes of keys and values of a replica that starts here."""
        side_by_side = max(len(os.sched_getaffinity(0)) // self.cpus, 1)
        return self.kv_limit or (available_memory() or 0) // (2 * side_by_side)

    def settings(self) -> Settings:
        """Returns them as the server has them."""
        keys = self.api_keys or list(filter(None, [os.environ.get(_KEY_VARIABLE)]))
        return Settings(
            api_keys=tuple(keys),
            hosts=() if "*" in self.hosts else tuple(host.lower() for host in self.hosts),
            most=self.batch,
            max_queue=self.max_queue,
            max_body=self.max_body,
            max_sound=self.max_sound,
            max_prompt=self.max_prompt,
            max_tokens=self.max_tokens,
            request_seconds=self.request_seconds,
        )


def options(given: Mapping[str, Any]) -> Options:
    """Reads options.

    Raises:
        GossamerError: one is unknown, missing or out of range.
    """
    try:
        found = Options.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise GossamerError(f"{name} is no option{did_you_mean(name, Options.model_fields)}") from None
        raise GossamerError(f"{name}: {first['msg']}") from None
    if found.most_replicas and found.most_replicas < found.replicas:
        raise GossamerError(f"most_replicas must be at least replicas, {found.replicas}, got {found.most_replicas}")
    return found
