"""Tokenizers rebuilt from the keys of a GGUF file: byte-level BPE and SentencePiece-like BPE."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import GossamerError
from ..text.generation_config import gguf_sampling
from ..text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import tokenizers
    from tokenizers.pre_tokenizers import PreTokenizer

NORMAL, _UNKNOWN, _CONTROL, USER, _BYTE = 1, 2, 3, 4, 6  # tokenizer.ggml.token_type

# Token ids among the keys, and what chat templates call them.
NAMED = {
    "bos": "bos_token",
    "eos": "eos_token",
    "unknown": "unk_token",
    "padding": "pad_token",
    "eot": "",
    "eom": "",
    "fim_pad": "",
    "fim_rep": "",
    "fim_sep": "",
}
_ENDS = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")

# Tokens that end a text or a turn by what they are called, as llama.cpp knows them: a file's eos is often another one.
_END_TEXTS = frozenset(
    {
        "</s>",
        "<EOT>",
        "<end_of_turn>",
        "<end_of_utterance>",
        "<eos>",
        "<turn|>",
        "<|call|>",
        "<|calls|>",
        "<|end_of_text|>",
        "<|endoftext|>",
        "<|end|>",
        "<|eom_id|>",
        "<|eot_id|>",
        "<|flush|>",
        "<|im_end|>",
        "<|return|>",
        "<|tool_response>",
        "[EOS]",
        "[EOT]",
        "_<EOT>",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
    }
)
_HARMONY = {"<|return|>", "<|call|>", "<|end|>"}  # where all three are there, the last one ends a part of an answer

_NEVER_STRIP = ("<unk>", "<s>", "<|endoftext|>")  # of Phi-3

# Keys of the tokenizer that are read, or change nothing in the kinds that there are here.
_KEYS = frozenset(
    {
        "add_bos_token",
        "add_eos_token",
        "add_sep_token",
        "add_space_prefix",
        "merges",
        "model",
        "pre",
        "precompiled_charsmap",
        "remove_extra_whitespaces",
        "scores",
        "token_type",
        "token_type_count",
        "tokens",
    }
)

_GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_DEFAULT_WORDS = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2_WORDS, r"\p{N}+", r"[0-9][0-9][0-9]")


class Splitting(NamedTuple):
    """How `tokenizer.ggml.pre` cuts a text into words: each expression cuts the pieces of those before it."""

    expressions: tuple[str, ...]
    whole_words: bool = False  # a word that is a token is not merged again
    add_bos: bool = False
    nfc: bool = False  # the model's own tokenizer composes characters first


_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"


def _cased(suffix: str, digits: str) -> str:
    """Words that also end where capitals begin."""
    word = r"[^\r\n\p{L}\p{N}]?"
    rest = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    return f"{word}{_UPPER}*{_LOWER}+{suffix}|{word}{_UPPER}+{_LOWER}*{suffix}|{digits}{rest}"


_LLAMA3 = Splitting((_LLAMA3_WORDS,), whole_words=True, add_bos=True)
_LLAMA3_PLAIN = Splitting((_LLAMA3_WORDS,))
_GPT2 = Splitting((_GPT2_WORDS,))
_QWEN2 = Splitting((_LLAMA3_WORDS.replace("{1,3}", ""),), nfc=True)
_SINGLE_DIGITS = Splitting((r"\p{N}", _GPT2_WORDS))
SPLITTINGS = {
    "default": Splitting(_DEFAULT_WORDS),
    "gpt-2": _GPT2,
    "mpt": _GPT2,
    "olmo": _GPT2,
    "phi-2": _GPT2,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "dbrx": _LLAMA3_PLAIN,
    "smaug-bpe": _LLAMA3_PLAIN,
    "chatglm-bpe": _LLAMA3_PLAIN,
    "glm4": _LLAMA3_PLAIN,
    "qwen2": _QWEN2,
    "stablelm2": Splitting(_QWEN2.expressions),
    "tekken": Splitting((_cased("", r"\p{N}"),), whole_words=True, add_bos=True),
    "gpt-4o": Splitting((_cased(_SUFFIX, r"\p{N}{1,3}"),)),
    "falcon": Splitting((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2_WORDS, r"[0-9][0-9][0-9]")),
    "bloom": Splitting((r" ?[^(\s|.,!?…。，、।۔،)]+",)),
    "smollm": _SINGLE_DIGITS,
    "starcoder": _SINGLE_DIGITS,
    "refact": _SINGLE_DIGITS,
    "command-r": _SINGLE_DIGITS,
}


def rebuild(path: Path, keys: dict[str, Any]) -> Tokenizer:
    """Builds the tokenizer that a GGUF file describes.

    Args:
        path: The file, for errors.
        keys: Its keys: those of `tokenizer.`, and of `general.`.

    Raises:
        GossamerError: a key is missing or does not fit the others, or the kind of tokenizer is not supported.
    """
    for key, value in keys.items():
        name = key.removeprefix("tokenizer.ggml.")
        if name != key and name not in _KEYS and not name.endswith("_token_id") and value:
            raise GossamerError(f"{path}: {key} is not supported, got {value!r:.80}")
    tokens = _texts(path, keys, "tokenizer.ggml.tokens")
    if not tokens or len(set(tokens)) != len(tokens):
        raise GossamerError(f"{path}: tokenizer.ggml.tokens is empty or holds a token twice")
    types = keys.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    if not isinstance(types, list) or len(types) != len(tokens):
        raise GossamerError(f"{path}: tokenizer.ggml.token_type must have {len(tokens)} entries")
    ends = {text for text in tokens if text in _END_TEXTS}
    if ends >= _HARMONY:
        ends.remove("<|end|>")
    types = [_CONTROL if text in ends else kind for text, kind in zip(tokens, types, strict=True)]
    model = keys.get("tokenizer.ggml.model")
    if model == "gpt2":
        backend, add_bos = _byte_level(path, keys, tokens)
    elif model == "llama":
        backend, add_bos = _sentencepiece(path, keys, tokens, types), True
    else:
        raise GossamerError(f"{path}: tokenizer.ggml.model {model!r} is not supported; there are: gpt2, llama")
    # Of Phi-3's own tokenizer, which takes the line's end behind <|user|> for a part of it; no key says so.
    strips = model == "llama" and keys.get("general.architecture") == "phi3"
    _add_special(backend, tokens, types, strips)

    ids = {name: _token_id(path, keys, f"tokenizer.ggml.{name}_token_id", len(tokens)) for name in NAMED}
    around = [
        ids[name] if keys.get(f"tokenizer.ggml.add_{name}_token", usual) else None
        for name, usual in (("bos", add_bos), ("eos", False))
    ]
    _put_around(backend, tokens, *around)
    special = {NAMED[name]: tokens[token] for name, token in ids.items() if token is not None and NAMED[name]}
    template, tools = (keys.get(f"tokenizer.chat_template{name}") for name in ("", ".tool_use"))
    return Tokenizer(
        backend,
        eos_ids=[token for name in _ENDS if (token := ids[name]) is not None]
        + [token for token, text in enumerate(tokens) if text in ends],
        special_tokens=special,
        chat_template=template if isinstance(template, str) else None,
        tool_template=tools if isinstance(tools, str) else None,
        generation=gguf_sampling(keys),
    )


def _texts(path: Path, keys: dict[str, Any], key: str) -> list[str]:
    values = keys.get(key)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise GossamerError(f"{path}: {key} is missing or not a list of texts")
    return values


def _token_id(path: Path, keys: dict[str, Any], key: str, count: int) -> int | None:
    value = keys.get(key)
    if value is not None and not (isinstance(value, int) and 0 <= value < count):
        raise GossamerError(f"{path}: {key} must be a token from 0 to {count - 1}, got {value!r:.80}")
    return value


def _byte_level(path: Path, keys: dict[str, Any], tokens: list[str]) -> tuple[tokenizers.Tokenizer, bool]:
    """GPT-2's kind: every byte is a letter, and merges come in order of rank."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers

    pre = keys.get("tokenizer.ggml.pre", "default")
    splitting = SPLITTINGS.get(pre) if isinstance(pre, str) else None
    if splitting is None:
        raise GossamerError(
            f"{path}: tokenizer.ggml.pre {pre!r:.80} is not supported; there are: {', '.join(SPLITTINGS)}"
        )
    merges = []
    for rank, text in enumerate(_texts(path, keys, "tokenizer.ggml.merges")):
        left, gap, right = text.partition(" ")  # a token is never empty, so a merge of " " itself cannot come
        if not (left and gap and right) or " " in right:
            raise GossamerError(f"{path}: tokenizer.ggml.merges has no two tokens at rank {rank}: {text!r:.80}")
        merges.append((left, right))
    try:
        bpe = models.BPE(_numbered(tokens), merges, ignore_merges=splitting.whole_words)
    except Exception as error:  # the package raises nothing narrower
        raise GossamerError(f"{path}: tokenizer.ggml.merges does not fit the tokens: {error}") from None
    backend = Backend(bpe)
    if splitting.nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizer(splitting)
    backend.decoder = decoders.ByteLevel()
    return backend, splitting.add_bos


def pre_tokenizer(splitting: Splitting) -> PreTokenizer:
    """Returns what cuts texts into words, and those into bytes."""
    from tokenizers import Regex, pre_tokenizers

    splits: list[PreTokenizer] = [
        pre_tokenizers.Split(Regex(expression), "isolated") for expression in splitting.expressions
    ]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _sentencepiece(path: Path, keys: dict[str, Any], tokens: list[str], types: list[int]) -> tokenizers.Tokenizer:
    """SentencePiece's BPE: of all neighbours, the pair that makes the token of the highest score is merged first."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers

    scores = keys.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise GossamerError(f"{path}: tokenizer.ggml.scores must have {len(tokens)} entries")
    if types.count(_BYTE) != 256 or types.count(_UNKNOWN) != 1:
        raise GossamerError(f"{path}: tokenizer.ggml.token_type must have 256 byte tokens and 1 unknown one")
    vocab = _numbered(tokens)
    pairs = sorted(_pairs(vocab, types), key=lambda pair: (-scores[vocab[pair[0] + pair[1]]], len(pair[0])))
    made = {left + right for left, right in pairs}
    _check_order(path, [scores[token] for text, token in vocab.items() if types[token] == NORMAL and text in made])
    bpe = models.BPE(vocab, pairs, unk_token=tokens[types.index(_UNKNOWN)], fuse_unk=True, byte_fallback=True)
    backend = Backend(bpe)
    prefix = bool(keys.get("tokenizer.ggml.add_space_prefix", True))
    spaces = normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(steps)
    return backend


def _check_order(path: Path, scores: list[float]) -> None:
    """Refuses scores of merged tokens that give no order, and tells those that leave some of it open."""
    several = len(scores) - len(set(scores))
    if several and several == len(scores) - 1:
        raise GossamerError(
            f"{path}: tokenizer.ggml.scores are {scores[0]:g} for all tokens that are merged of others, and give no "
            "order; convert the model with its tokenizer.model"
        )
    if several:
        logging.getLogger("gossamer").warning(
            "%s: tokenizer.ggml.scores: %d tokens have the score of another; where such tokens meet, a text may be cut "
            "in another way than by llama.cpp",
            path,
            several,
        )


def _pairs(vocab: dict[str, int], types: list[int]) -> Iterator[tuple[str, str]]:
    """Every way to make a plain token of two others."""
    for text, token in vocab.items():
        if types[token] in (NORMAL, USER):
            for cut in range(1, len(text)):
                if text[:cut] in vocab and text[cut:] in vocab:
                    yield text[:cut], text[cut:]


def _numbered(tokens: list[str]) -> dict[str, int]:
    return {text: number for number, text in enumerate(tokens)}


def _add_special(backend: tokenizers.Tokenizer, tokens: list[str], types: list[int], strips: bool) -> None:
    """Registers the tokens that are found in a text before it is cut into words; some with the blanks behind them."""
    from tokenizers import AddedToken

    special, plain = [], []
    for text, kind in zip(tokens, types, strict=True):
        rstrip = strips and text not in _NEVER_STRIP
        if kind in (_UNKNOWN, _CONTROL):
            special.append(AddedToken(text, rstrip=rstrip, special=True, normalized=False))
        elif kind == USER:
            plain.append(AddedToken(text, rstrip=rstrip, special=False, normalized=False))
    backend.add_special_tokens(special)
    backend.add_tokens(plain)


def _put_around(backend: tokenizers.Tokenizer, tokens: list[str], begin: int | None, end: int | None) -> None:
    """Puts tokens before and behind every text."""
    from tokenizers import processors

    before, behind = ([] if token is None else [tokens[token]] for token in (begin, end))
    if before or behind:
        backend.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *behind],
            pair=[*before, "$A", *behind, *before, "$B:1", *behind],
            special_tokens=[(tokens[token], token) for token in {begin, end} if token is not None],
        )
