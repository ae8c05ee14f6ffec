"""Chat messages as clients send them, checked and made plain."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import GossamerError

_SAYING = ("system", "developer", "user")  # whose messages are nothing without a content
# Of a message, what is looked for in the text, or only says to what it belongs.
_KEYS = ("role", "content", "name", "tool_calls", "tool_call_id")
Message = Mapping[str, Any]
Tool = Mapping[str, Any]
"""A function that a model may call, in OpenAI's form."""


def check_text(what: str, text: str) -> None:
    """Raises `GossamerError` where a text cannot be written, as bytes of a command line that are no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise GossamerError(f"{what} is no valid Unicode text: it holds half a surrogate pair, {half!r}") from None


def checked(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Returns copies of messages, without contents that are null, and with lists of parts checked.

    Args:
        messages: `{"role": ..., "content": ...}` each; the content is a text, null, or a list of parts, which are
            texts or `{"type": "text", "text": ...}`.

    Raises:
        GossamerError: it is no list of messages, there are none, or a content is something else, or missing in a
            message of a system or a user.
    """
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
        raise GossamerError(f"messages must be a list of objects with role and content, got {messages!r:.80}")
    if not messages:
        raise GossamerError("there are no messages")
    return [_checked(number, message) for number, message in enumerate(messages, 1)]


def _checked(number: int, message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise GossamerError(f"message {number} must be an object with role and content, got {message!r:.80}")
    copy = {key: value for key, value in message.items() if key != "content" or value is not None}
    if "content" not in copy and message["role"] in _SAYING:
        raise GossamerError(f"message {number}, of role {message['role']}, has no content: {message!r:.80}")
    content = copy.get("content", "")
    check_text(f"the role of message {number}", message["role"])
    if isinstance(content, (list, tuple)):
        copy["content"] = [_part(number, part) for part in content]
    elif isinstance(content, str):
        check_text(f"message {number}", content)
    else:
        raise GossamerError(f"message {number}: content must be text or a list of parts, got {content!r:.80}")
    return copy


def _part(number: int, part: Any) -> dict[str, Any]:
    if isinstance(part, str):
        part = {"type": "text", "text": part}
    kind = part.get("type") if isinstance(part, Mapping) else part
    if kind != "text":
        raise GossamerError(f"message {number}: a part of type {kind!r:.80} is not supported; there is: text")
    if not isinstance(part.get("text"), str):
        raise GossamerError(f"message {number}: a part of type text must have a text, got {part.get('text')!r:.80}")
    check_text(f"message {number}", part["text"])
    return dict(part)


def has_parts(messages: list[dict[str, Any]]) -> bool:
    """Returns whether the content of a message is a list of parts."""
    return any(isinstance(message.get("content"), list) for message in messages)


def joined(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns messages with the texts of parts put together."""
    return [
        {**message, "content": "".join(part["text"] for part in message["content"])}
        if has_parts([message])
        else message
        for message in messages
    ]


def completed(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns messages with an empty text where there is no content."""
    return [{"content": "", **message} for message in messages]


def check_told(messages: Sequence[Message], tools: Sequence[Tool], text: str, template: str) -> None:
    """Refuses a conversation of which a chat template leaves something out, as roles that it does not know.

    What an assistant has said is not looked for: templates drop thoughts, and words beside calls.

    Args:
        messages: The conversation.
        tools: That the model is told of.
        text: What the template made of both.
        template: The template.

    Raises:
        GossamerError: the text lacks a message, a call, a tool or the name of who speaks, or the template has no use
            for a key of a message.
    """
    at = 0  # what messages say stands in their order, and is looked for from the one before on

    def told(words: str) -> bool:
        nonlocal at
        found = text.find(words, at)
        at = max(at, found)
        return found >= 0 or words in text

    for tool in tools:
        name = str(tool.get("function", tool).get("name", ""))
        if name not in text:
            raise GossamerError(f"the chat template leaves the tool {name} out: this model takes none")
    for number, message in enumerate(checked(messages), 1):
        role = message["role"]
        said = role == "assistant" or all(told(words) for words in _words(message))
        if role == "system" and not said:
            raise GossamerError("the chat template leaves the system message out: this model takes none")
        if not said:
            raise GossamerError(f"the chat template leaves message {number} out: this model takes none of role {role}")
        for called in _called(message):
            if called not in text:
                raise GossamerError(f"message {number}: the chat template leaves the call of {called:.80} out")
        speaker = message.get("name")
        if isinstance(speaker, str) and role != "tool" and speaker not in text:
            raise GossamerError(f"message {number}: the chat template leaves the name {speaker!r:.80} out")
        for key, value in message.items():
            if key not in _KEYS and value and not re.search(rf"(?<!\w){re.escape(str(key))}(?!\w)", template):
                raise GossamerError(f"message {number}: the chat template has no use for {key!r:.80}")


def _words(message: Message) -> list[str]:
    """Of each text of a message the longest run of plain words, which stays where a template trims or quotes."""
    content = message.get("content", "")
    texts = [part["text"] for part in content] if isinstance(content, list) else [content]
    return [max(re.split(r"[^\w ]+", text), key=len).strip() for text in texts]


def _called(message: Message) -> list[str]:
    """The names of the functions that a message calls, in OpenAI's form or without its envelope."""
    calls = message.get("tool_calls")
    found = (
        [call.get("function", call) for call in calls if isinstance(call, Mapping)] if isinstance(calls, list) else []
    )
    return [str(call.get("name", "")) for call in found if isinstance(call, Mapping)]
