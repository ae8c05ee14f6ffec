"""Renders chat templates in a process of its own, under limits of time and memory; `chat_template.py` runs this file.

Requests come on standard input and answers go to standard output, each as 8 bytes of length and JSON. Nothing of the
package is imported, so that it starts at once.
"""

from __future__ import annotations

import datetime as dt
import json
import resource
import sys
from typing import Any, BinaryIO

_PROCESSOR_SECONDS = 2
_BASE_BYTES = 384 << 20  # Python with jinja2 takes a tenth of it
_BYTES_PER_BYTE = 24  # of the request
_TEXT_BYTES = 1 << 20  # whose tokens take a fifth of a gigabyte and a second
_TEXT_PER_BYTE = 8


def read(stream: BinaryIO) -> tuple[Any, int]:
    """Returns the next message and its bytes; None at the end."""
    head = stream.read(8)
    size = int.from_bytes(head, "little")
    return (json.loads(stream.read(size)) if len(head) == 8 else None), size


def frame(message: Any) -> bytes:
    """Returns a message as it is sent; halves of surrogate pairs are kept."""
    data = json.dumps(message).encode()
    return len(data).to_bytes(8, "little") + data


def compile_template(source: str) -> Any:
    """Compiles a template in a sandbox, with what templates written for `transformers` expect."""
    import jinja2
    from jinja2 import ext, nodes, sandbox

    class Generation(ext.Extension):
        """`{% generation %}` marks what the assistant said; the mark itself has no text."""

        tags = {"generation"}  # noqa: RUF012 - the base class types it as an instance variable

        def parse(self, parser: Any) -> list[nodes.Node]:
            next(parser.stream)
            body: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return body

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def strftime_now(form: str) -> str:
        return dt.datetime.now().strftime(form)

    def tojson(value: Any, **options: Any) -> str:
        return json.dumps(value, **{"ensure_ascii": False, **options})

    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    return environment.from_string(source)


def limit(request_bytes: int) -> None:
    """Lets the next request have so much processor time and memory, and no files."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(usage.ru_utime + usage.ru_stime) + 1 + _PROCESSOR_SECONDS
    memory = _BASE_BYTES + _BYTES_PER_BYTE * request_bytes
    for kind, most in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, 0)):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def render(request: Any, size: int, templates: dict[str, Any]) -> dict[str, Any]:
    """Returns {"text": ...} or {"error": ...}."""
    source, variables = request["template"], request["variables"]
    limit(size)
    try:
        if source not in templates:
            templates.clear()
            templates[source] = compile_template(source)
        room, pieces = _TEXT_BYTES + _TEXT_PER_BYTE * size, []
        for piece in templates[source].generate(**variables):
            room -= len(piece)
            if room < 0:
                return {"error": "it writes too long a text"}
            pieces.append(piece)
        return {"text": "".join(pieces)}
    except MemoryError:
        return {"error": "it needs too much memory"}
    except RecursionError:
        return {"error": "it calls itself too often"}
    except Exception as error:
        return {"error": str(error) or type(error).__name__}


def main() -> None:
    """Answers requests until there are no more."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    templates: dict[str, Any] = {}
    while True:
        request, size = read(requests)
        if request is None:
            return
        try:
            answer = frame(render(request, size, templates))
        except MemoryError:
            answer = frame({"error": "it needs too much memory"})
        answers.write(answer)
        answers.flush()


if __name__ == "__main__":
    sys.path += sys.argv[1:]
    main()
