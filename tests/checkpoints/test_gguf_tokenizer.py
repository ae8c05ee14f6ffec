from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gguf_files import write_gguf
from gossamer.checkpoints import open_checkpoint
from gossamer.checkpoints.gguf_tokenizer import rebuild
from gossamer.errors import GossamerError
from gossamer.text.tokenizer import Tokenizer

EOS = "tokenizer.ggml.eos_token_id"


def tokenizer(path: Path, **options: Any) -> Tokenizer:
    return open_checkpoint(write_gguf(path, **options)).tokenizer()


@pytest.mark.parametrize(
    ("texts", "ends"),
    [
        ({0: "<s>"}, {1, 2}),  # ChatML whose eos is another token
        ({0: "<s>", 2: "<|eot_id|>"}, {1, 2}),
        ({0: "<s>", 2: "<end_of_turn>", 200: "<|end_of_text|>"}, {1, 2, 200}),
        ({0: "<s>", 2: "<\uff5cend\u2581of\u2581sentence\uff5c>"}, {1, 2}),
        ({0: "<s>", 2: "<|im_stop|>"}, {1}),
        ({0: "<|return|>", 2: "<|call|>", 200: "<|end|>"}, {0, 1, 2}),  # there the last one ends no answer
        ({0: "<s>", 2: "<|call|>", 200: "<|end|>"}, {1, 2, 200}),
    ],
)
def test_a_text_ends_at_what_its_tokens_are_called(tmp_path: Path, texts: dict[int, str], ends: set[int]) -> None:
    got = tokenizer(tmp_path / "m.gguf", keys={EOS: 1}, texts=texts)
    assert got.eos_ids == ends
    for token in ends:
        assert got.decode([5, token]) == got.decode([5])  # whatever its type in the file
        assert got.encode(f"x{got._backend.id_to_token(token)}", special=False)[-1] == token


def test_ends_that_the_file_names(tmp_path: Path) -> None:
    keys = {EOS: 1, "tokenizer.ggml.eot_token_id": 20, "tokenizer.ggml.fim_pad_token_id": 21}
    assert tokenizer(tmp_path / "m.gguf", keys=keys, texts={0: "<s>", 2: "</t>"}).eos_ids == {1, 20, 21}


@pytest.mark.parametrize(
    ("keys", "before", "behind"),
    [
        ({}, [], []),
        ({"tokenizer.ggml.add_bos_token": True}, [0], []),
        ({"tokenizer.ggml.add_eos_token": True}, [], [2]),
        ({"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}, [0], [2]),
        ({"tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.add_space_prefix": False}, [], []),
    ],
)
def test_what_stands_around_a_text(tmp_path: Path, keys: dict[str, Any], before: list[int], behind: list[int]) -> None:
    got = tokenizer(tmp_path / "m.gguf", keys=keys)
    assert got.encode("net") == [*before, *got.encode("net", special=False), *behind]


def test_keys_that_are_not_known_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(GossamerError, match=r"m\.gguf: tokenizer\.ggml\.normalizer\.lowercase is not supported"):
        tokenizer(tmp_path / "m.gguf", keys={"tokenizer.ggml.normalizer.lowercase": True})
    tokenizer(
        tmp_path / "m.gguf", keys={"tokenizer.ggml.mask_token_id": 4, "tokenizer.ggml.remove_extra_whitespaces": True}
    )


def test_conversations_with_tools_have_a_template_of_their_own(tmp_path: Path) -> None:
    keys = {"tokenizer.chat_template.tool_use": "T{{ tools[0].function.name }}{{ messages[0].content }}"}
    tokenizer = open_checkpoint(write_gguf(tmp_path / "m.gguf", keys=keys)).tokenizer()
    messages = [{"role": "user", "content": "hi"}]
    assert tokenizer.render(messages) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.render(messages, tools=[{"type": "function", "function": {"name": "f"}}]) == "Tfhi"


@pytest.mark.parametrize("architecture", ["phi3", "llama"])
def test_phi_3_takes_what_stands_behind_its_special_tokens(tmp_path: Path, architecture: str) -> None:
    """As its own tokenizer.json says, and no key of a GGUF file."""
    texts = ["<unk>", "<s>", "</s>", "<|user|>", *(f"<0x{byte:02X}>" for byte in range(256)), "a", "\u2581"]
    keys: dict[str, Any] = {
        "general.architecture": architecture,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": [2, 3, 3, 3, *[6] * 256, 1, 1],
        "tokenizer.ggml.scores": [0.0] * len(texts),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_space_prefix": False,
    }
    rebuilt = rebuild(tmp_path, keys)
    ids = [texts[token] for token in rebuilt.encode("<|user|>\n a</s> \n<s> a", special=False)]
    blanks = (["<0x0A>", "\u2581"], ["\u2581", "<0x0A>"]) if architecture == "llama" else ([], [])
    assert ids == ["<|user|>", *blanks[0], "a", "</s>", *blanks[1], "<s>", "\u2581", "a"]


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ([-3.0, -2.0, -1.0], ""),
        ([-2.0, -2.0, -1.0], "tokenizer.ggml.scores: 1 tokens have the score of another"),
        ([-1000.0] * 3, "tokenizer.ggml.scores are -1000 for all tokens that are merged of others"),
    ],
)
def test_scores_that_give_no_order(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, scores: list[float], words: str
) -> None:
    """Some programs wrote one score for all tokens; then the order of merges is lost."""
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "a", "b", "c", "ab", "bc", "abc"]
    keys: dict[str, Any] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * 6],
        "tokenizer.ggml.scores": [0.0] * 262 + scores,
        "tokenizer.ggml.add_space_prefix": False,
    }
    if scores[0] == -1000:
        with pytest.raises(GossamerError, match=words):
            rebuild(tmp_path, keys)
    else:
        assert [texts[token] for token in rebuild(tmp_path, keys).encode("abcb")] == ["abc", "b"]
        assert [record.message.partition(": ")[2].partition(";")[0] for record in caplog.records] == [words] * bool(
            words
        )
