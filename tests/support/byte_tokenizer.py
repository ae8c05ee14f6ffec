"""A tokenizer whose tokens are bytes, with a chat template of three marks: what calibration needs of one."""

from __future__ import annotations

EOS = 3


class Bytes:
    """A tokenizer of bytes, moved up by 4; chats are put between 1 and 2."""

    eos_ids = frozenset({EOS})

    def __init__(self, has_chat_template: bool = True) -> None:
        self.has_chat_template = has_chat_template

    def encode(self, text: str, special: bool = True) -> list[int]:  # noqa: ARG002 - as the protocol has it
        return [b if b < 4 else b + 4 for b in text.encode()]

    def render(self, messages: list[dict[str, str]]) -> str:
        return "".join({"user": "\1{}\2", "assistant": "{}\3\n"}[m["role"]].format(m["content"]) for m in messages)

    def chat(self, messages: list[dict[str, str]]) -> list[int]:
        return self.encode(self.render(messages))
