"""Chat templates are programs of strangers: each failure is one line, and none takes long or much memory."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from typing import Any

import pytest

from gossamer.errors import GossamerError
from gossamer.text import chat_template
from gossamer.text.chat_template import render

HELLO = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
MESSAGES: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}

ENDLESS = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% set n = namespace(l=[1]) %}{% for i in range(60) %}{% set n.l = [n.l, n.l] %}{% endfor %}{{ n.l }}",
]
HOSTILE = {
    "{{ 'a' * 10**10 }}": "it needs too much memory",
    "{% set x = 'a' * 10**10 %}": "it needs too much memory",
    "{{ '%9999999999d' % 1 }}": "",
    "{{ 'a'.center(9999999999) }}": "it needs too much memory",
    "{{ [0] * 10**9 }}": "it needs too much memory",
    "{% for i in range(99999) %}{{ 'a' * 100000 }}{% endfor %}": "it writes too long a text",
    "{{ 'a b ' * 300000 }}": "it writes too long a text",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "it calls itself too often",
    "{{" + "(" * 5000: "it calls itself too often",
    "{{ (": "unexpected 'end of template'",
    "{% for x in %}": "Expected an expression",
    "{% include 'other' %}": "no loader",
    "{{ messages.__class__.__mro__ }}": "unsafe",
    "{{ raise_exception('no') }}": "no",
    "{{ 1 / 0 }}": "division by zero",
    "{{ none() }}": "NoneType",
    "{{ strftime_now('%Y' * 100000000) }}": "",
    "{{ '\ud800' }}{{ nothing.x }}": "undefined",
    "x" * ((1 << 20) + 1): "characters",
}


@pytest.mark.parametrize(("template", "reason"), HOSTILE.items(), ids=range(len(HOSTILE)))
def test_every_failure_is_one_line(template: str, reason: str) -> None:
    with pytest.raises(GossamerError) as error:
        render(template, MESSAGES)
    assert reason in str(error.value)
    assert str(error.value).startswith("the chat template ")
    assert "\n" not in str(error.value)
    assert render(HELLO, MESSAGES) == "<user>hello"


@pytest.mark.parametrize("template", ENDLESS, ids=range(len(ENDLESS)))
def test_what_does_not_end_is_ended(template: str) -> None:
    with pytest.raises(GossamerError, match=r"^the chat template refuses the messages: it (does not come|needs)"):
        render(template, MESSAGES)
    assert render(HELLO, MESSAGES) == "<user>hello"


@pytest.mark.parametrize("template", ENDLESS, ids=range(len(ENDLESS)))
def test_what_does_not_end_takes_little_memory(template: str) -> None:
    """In a process of its own: what the system tells is the largest child that ever ended."""
    code = (
        "import resource, sys\nfrom gossamer import GossamerError\nfrom gossamer.text import chat_template\n"
        "try: chat_template.render(sys.argv[1], {})\nexcept GossamerError: pass\n"
        "chat_template._worker.stop()\nprint(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", code, template], capture_output=True, text=True, check=True)
    assert 5 << 10 < int(done.stdout) < 500 << 10, "kilobytes"


def test_long_conversations_have_room() -> None:
    messages = [{"role": "user", "content": "wörd " * 20_000} for _ in range(100)]
    text = render(
        "{% set n = namespace(t='') %}{% for m in messages %}{% set n.t = n.t ~ m.content %}{% endfor %}{{ n.t }}",
        {"messages": messages},
    )
    assert text == "wörd " * 2_000_000


def test_a_lone_surrogate_comes_back_as_it_was() -> None:
    assert render(HELLO, {"messages": [{"role": "user", "content": "\ud800"}]}) == "<user>\ud800"


def test_values_that_are_no_json_are_refused() -> None:
    with pytest.raises(GossamerError, match="cannot be given to the chat template"):
        render(HELLO, {"messages": [{1, 2}]})


def test_threads_take_turns() -> None:
    texts: dict[int, str] = {}

    def ask(number: int) -> None:
        for _ in range(5):
            texts[number] = render(HELLO, {"messages": [{"role": "user", "content": str(number)}]})

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {number: f"<user>{number}" for number in range(8)}


def test_a_killed_process_is_started_anew() -> None:
    render(HELLO, MESSAGES)
    process = chat_template._worker._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert render(HELLO, MESSAGES) == "<user>hello"


def _say(queue: Any) -> None:
    queue.put(render(HELLO, MESSAGES))


def test_a_forked_child_has_a_process_of_its_own() -> None:
    render(HELLO, MESSAGES)
    mine = chat_template._worker._process
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_say, args=(queue,))
    child.start()
    assert queue.get(timeout=30) == "<user>hello"
    child.join()
    assert chat_template._worker._process is mine
    assert render(HELLO, MESSAGES) == "<user>hello"


def test_an_interrupted_request_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(chat_template, "_exchange", interrupted)
        with pytest.raises(KeyboardInterrupt):
            render(HELLO, MESSAGES)
    assert chat_template._worker._process is None
    assert render(HELLO, MESSAGES) == "<user>hello"
