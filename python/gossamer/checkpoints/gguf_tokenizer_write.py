"""Tokenizers as keys of a GGUF file: the inverse of `gguf_tokenizer`, which says what there is."""

from __future__ import annotations

import json
from typing import Any

from ..errors import GossamerError
from .base import Checkpoint
from .gguf_tokenizer import NAMED, NORMAL, SPLITTINGS, USER, Splitting, pre_tokenizer

_UNKNOWN, _CONTROL, _UNUSED, _BYTE = 2, 3, 5, 6
_PROBE = (
    "Hello WORLD aBc, don't WE'LL  they've\t12345 6,789.01 x=y+z `q` <a|b> ünï 漢字 Straße\n\n\r\n  end... 3rd "
    "(foo_bar) [baz] $5^2~ 'tis ²x"
)
"""What tells the known ways to cut texts apart."""


def tokenizer_keys(checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns the keys of a checkpoint's tokenizer.

    Raises:
        GossamerError: it is of another kind than those that GGUF files have, or cuts texts in a way that is not known.
    """
    tokenizer = checkpoint.tokenizer()
    backend: dict[str, Any] = json.loads(tokenizer.to_json())
    model, where = backend["model"], checkpoint.path
    if model.get("type") != "BPE" or model.get("dropout") or model.get("continuing_subword_prefix"):
        raise GossamerError(f"{where}: its tokenizer, {model.get('type')!r:.80}, cannot be written as GGUF; only BPE")
    vocabulary = tokenizer.vocabulary()
    count = max(int(checkpoint.config["vocab_size"]), max(vocabulary.values()) + 1)
    tokens = [f"[PAD{number}]" for number in range(count)]
    types = [_UNUSED] * count
    for text, number in vocabulary.items():
        tokens[number], types[number] = text, NORMAL
    for added in backend["added_tokens"]:
        types[added["id"]] = _CONTROL if added["special"] else USER
    pairs = (pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model["merges"])
    merges: list[tuple[str, str]] = [(left, right) for left, right in pairs]
    special = {name: tokenizer.special_tokens.get(named) for name, named in NAMED.items() if named}
    ids = {name: vocabulary[text] for name, text in special.items() if text is not None and text in vocabulary}
    around = tokenizer.encode("a")
    keys: dict[str, Any] = {
        **{f"tokenizer.ggml.{name}_token_id": number for name, number in ids.items()},
        "tokenizer.ggml.add_bos_token": "bos" in ids and around[:1] == [ids["bos"]],
        "tokenizer.ggml.add_eos_token": "eos" in ids and len(around) > 1 and around[-1] == ids["eos"],
    }
    if tokenizer.chat_template is not None:
        keys["tokenizer.chat_template"] = tokenizer.chat_template
    if tokenizer.tool_template is not None:
        keys["tokenizer.chat_templates"] = ["tool_use"]
        keys["tokenizer.chat_template.tool_use"] = tokenizer.tool_template
    if model.get("byte_fallback"):
        return keys | _sentencepiece(backend, tokens, types, merges)
    return keys | {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _splitting(checkpoint, tokenizer.words(_PROBE), bool(model.get("ignore_merges"))),
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
    }


def _sentencepiece(
    backend: dict[str, Any], tokens: list[str], types: list[int], merges: list[tuple[str, str]]
) -> dict[str, Any]:
    """Scores stand for the order of the merges: of all neighbours the pair with the highest is merged first."""
    ranks = {left + right: -float(rank) for rank, (left, right) in reversed(list(enumerate(merges)))}
    for number, text in enumerate(tokens):
        if text == backend["model"].get("unk_token"):
            types[number] = _UNKNOWN
        elif len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            types[number] = _BYTE
    steps = [step for name in ("normalizer", "pre_tokenizer") if (step := backend.get(name))]
    steps += [inner for step in steps for inner in step.get("normalizers", [])]
    prefix = any(step["type"] == "Prepend" or step.get("prepend_scheme") in ("always", "first") for step in steps)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.scores": [ranks.get(text, 0.0) for text in tokens],
        "tokenizer.ggml.add_space_prefix": prefix,
    }


def _splitting(checkpoint: Checkpoint, words: list[str], whole_words: bool) -> str:
    """The name of the way in which a tokenizer cuts texts."""

    def alike(one: Splitting) -> bool:
        cut = pre_tokenizer(one).pre_tokenize_str(_PROBE)
        return one.whole_words == whole_words and [_PROBE[start:end] for _, (start, end) in cut] == words

    name = next((name for name, one in SPLITTINGS.items() if alike(one)), None)
    if name is None:
        raise GossamerError(
            f"{checkpoint.path}: its tokenizer cuts texts into words in a way that GGUF files have no name for"
        )
    return name
