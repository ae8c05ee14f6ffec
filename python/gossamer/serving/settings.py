"""What a server allows: limits that hold for every client, whoever it is."""

from __future__ import annotations

from dataclasses import dataclass

MiB = 1 << 20


@dataclass(frozen=True)
class Settings:
    """Limits and names of a server.

    Attributes:
        host: What it listens on.
        port: The same; 0 lets the system choose.
        api_keys: Of which a client has to have one; empty lets everybody in.
        hosts: Values of a request's Host header that are answered, without ports; empty takes all. A page of somebody
            else that a browser shows cannot then reach a server of this machine under a name of its own.
        most: Texts of a model that are written at once.
        max_queue: Texts of a model that may wait beside these.
        retained: Ended texts of a model whose keys and values stay for texts that begin alike; they go when others
            need the room.
        max_body: Bytes of a request.
        max_sound: Bytes of a request that has a file of sound.
        max_prompt: Tokens of a prompt; 0 leaves it at the model's context.
        max_tokens: Tokens of an answer; 0 leaves it at the model's context.
        max_choices: Texts that one request may ask for.
        max_connections: At once.
        request_seconds: That a client may take to send a request, and to take a piece of an answer.
        idle_seconds: That a connection may stay without a request.
        grace_seconds: That texts get to end when the server is stopped.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    most: int = 16
    max_queue: int = 256
    retained: int = 16
    max_body: int = 4 * MiB
    max_sound: int = 32 * MiB
    max_prompt: int = 0
    max_tokens: int = 0
    max_choices: int = 16
    max_connections: int = 1000
    request_seconds: float = 20.0
    idle_seconds: float = 30.0
    grace_seconds: float = 30.0
