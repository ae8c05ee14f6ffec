"""Chat templates: programs of strangers, rendered in a process of its own that is given little time and memory.

A template may loop without an end, call itself, or ask for gigabytes in one expression, and no check of Python code
inside this process could stop all of that. One process serves all templates and threads; it starts with the first one.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import GossamerError
from .template_worker import frame

_SECONDS = 8.0  # of the clock, in which the process has used its processor time long since
LONGEST = 1 << 20
"""Characters of a template."""


class _Worker:
    """The process that renders, and the thread's turn to use it."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Returns the answer to a request; {"error": ...} also where there is none."""
        with self._turn:
            try:
                if self._process is None or self._process.poll() is not None:
                    self.stop()
                    self._process = _start()
                answer = _exchange(self._process, frame(request), time.monotonic() + _SECONDS)
            except BaseException:  # Ctrl-C, too: what the process still answers belongs to nobody
                self.stop()
                raise
            if answer is None:
                self.stop()
                return {"error": "it does not come to an end, or needs too much memory"}
            return answer

    def stop(self) -> None:
        """Ends the process, if there is one."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            for pipe in (process.stdin, process.stdout):
                if pipe:
                    with contextlib.suppress(OSError):
                        pipe.close()
            process.wait()

    def forget(self) -> None:
        """In a forked child: the process is the parent's."""
        if self._process is not None:
            self._process.returncode = 0  # or it would be waited for
        self._process, self._turn = None, threading.Lock()


def _start() -> subprocess.Popen[bytes]:
    """Starts the process, with the folders of jinja2 and markupsafe and nothing else on its path."""
    folders = [str(Path(spec.origin).parent.parent) for name in ("jinja2", "markupsafe") if (spec := _spec(name))]
    program = Path(__file__).with_name("template_worker.py")
    environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}  # its limits would not do
    try:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", str(program), *dict.fromkeys(folders)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=environment,
            start_new_session=True,  # Ctrl-C on the terminal is not for it
        )
    except OSError as error:
        raise GossamerError(f"the chat template cannot be rendered: {sys.executable}: {error.strerror}") from None


def _spec(name: str) -> Any:
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise GossamerError(f"the chat template cannot be rendered without {name}")
    return spec


def _exchange(process: subprocess.Popen[bytes], data: bytes, end: float) -> dict[str, Any] | None:
    """Sends a request and returns the answer, or None where the process ends first or takes too long."""
    assert process.stdin is not None
    assert process.stdout is not None
    source, sink = process.stdout.fileno(), process.stdin.fileno()
    os.set_blocking(sink, False)
    left, received = memoryview(data), bytearray()
    while len(received) < 8 or len(received) < 8 + int.from_bytes(received[:8], "little"):
        ready = select.poll()
        ready.register(source, select.POLLIN)
        if left:
            ready.register(sink, select.POLLOUT)
        events = dict(ready.poll(max(0.0, end - time.monotonic()) * 1000))
        if not events:
            return None
        if source in events:
            chunk = os.read(source, 1 << 20)
            if not chunk:
                return None
            received += chunk
        elif sink in events:
            try:
                left = left[os.write(sink, left[: 1 << 20]) :]
            except BlockingIOError:
                continue
            except OSError:
                return None
    answer = json.loads(received[8:])
    return answer if isinstance(answer, dict) else None


_worker = _Worker()
atexit.register(_worker.stop)
os.register_at_fork(after_in_child=_worker.forget)


def render(template: str, variables: dict[str, Any]) -> str:
    """Renders a chat template.

    Args:
        template: Jinja source.
        variables: What it may use, ready for JSON.

    Raises:
        GossamerError: it does not take these values, is not valid, or takes too much time or memory.
    """
    if len(template) > LONGEST:
        raise GossamerError(f"the chat template has {len(template)} characters, more than {LONGEST}")
    try:
        answer = _worker.ask({"template": template, "variables": variables})
    except (TypeError, ValueError, RecursionError) as error:
        raise GossamerError(f"the messages cannot be given to the chat template: {error}") from None
    if "error" in answer:
        reason = " ".join(str(answer["error"]).split())
        raise GossamerError(f"the chat template refuses the messages: {reason:.300}")
    return str(answer["text"])
