"""`gossamer chat`: messages of several lines."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest

from fakes import LETTERS, fake_model
from gossamer.cli import main


@pytest.mark.parametrize(
    ("lines", "messages"),
    [
        (["a", "b"], ["a", "b"]),
        (["a\\", "b", "c"], ["a\nb", "c"]),
        (["a\\", "\\", "b"], ["a\n\nb"]),
        (["a\\"], ["a"]),  # the input ends
        (['"""', "a", "", "b", '"""', "c"], ["a\n\nb", "c"]),
        (['"""a', 'b"""', '"""c"""'], ["a\nb", "c"]),
        (['"""a\\', 'b  """  '], ["a\\\nb"]),
        (['  """a', "b"], ["a\nb"]),  # the input ends
        (['"""', '"""', "a"], ["a"]),  # nothing is no message
    ],
)
def test_messages_may_have_several_lines(
    lines: list[str], messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fake_model(words=[*LETTERS, "\n", "\\"], template=True)
    said: list[str] = []
    conversation = model.conversation()

    def say(text: str, **_: Any) -> Any:
        said.append(text)
        return (piece for piece in ("b",))

    monkeypatch.setattr(conversation, "say", say)
    monkeypatch.setattr(model, "conversation", lambda *_, **__: conversation)
    monkeypatch.setattr("gossamer.loading.load", lambda *_, **__: model)
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    assert main(["chat"]) == 0
    assert said == messages
