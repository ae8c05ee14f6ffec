from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer

from gossamer.errors import GossamerError
from gossamer.text.tokenizer import Tokenizer
from tiny import save_tokenizer, tiny_config

WORDS = ["<unk>", "<s>", "</s>", "[STOP]", *(f"<0x{i:02X}>" for i in range(256)), *"▁abcdefghijklmnopqrstuvwxyz"]
TEXTS = ["ab c", " ab", "ab</s>ab c", "x [STOP]y", "</s>", "é", "a[TOOL] b[MORE]"]


def write(folder: Path, metaspace: bool = False, model_type: str = "llama", **files: dict[str, Any]) -> Path:
    """A SentencePiece-like tokenizer that puts a blank before texts, with nothing added; `files` lie beside it."""
    vocab = {text: token for token, text in enumerate(WORDS)}
    backend = Backend(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if metaspace:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    else:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(tiny_config(model_type=model_type, eos_token_id=None)))
    for name, values in files.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    return folder


def compare(folder: Path) -> Tokenizer:
    ours, theirs = Tokenizer.from_folder(folder), AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == theirs.encode(text)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.eos_ids == ({theirs.eos_token_id} - {None})
    return ours


@pytest.mark.parametrize("model_type", ["llama", "mistral"])
@pytest.mark.parametrize("kind", ["LlamaTokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize(
    "values", [{}, {"add_prefix_space": False}, {"add_prefix_space": True, "legacy": True}, {"legacy": False}]
)
@pytest.mark.parametrize("metaspace", [False, True])
def test_blanks_before_texts_are_those_of_transformers(
    tmp_path: Path, model_type: str, kind: str, values: dict[str, Any], metaspace: bool
) -> None:
    named = {"tokenizer_class": kind, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = compare(write(tmp_path, metaspace, model_type, tokenizer_config={**named, **values}))
    plain = tokenizer.decode(tokenizer.encode("ab c")[:3])
    stream = tokenizer.stream()
    rest = "".join(stream.push(token) for token in tokenizer.encode("ab c")[3:]) + stream.flush()
    assert plain + rest == "ab c"


@pytest.mark.parametrize(
    "files",
    [
        {"added_tokens": {"[TOOL]": 288, "[MORE]": 287}},
        {
            "added_tokens": {"[TOOL]": 287},
            "tokenizer_config": {
                "added_tokens_decoder": {
                    "288": {"content": "[TOOL]", "special": True},
                    "287": {"content": "[MORE]", "special": False},
                }
            },
        },
        {"tokenizer_config": {"extra_special_tokens": {"tool_token": "[TOOL]"}, "eos_token": "</s>"}},
        {"tokenizer_config": {"additional_special_tokens": ["[TOOL]", "[MORE]"], "eos_token": "</s>"}},
        {"special_tokens_map": {"eos_token": "[STOP]"}},
        {"special_tokens_map": {"eos_token": {"content": "[STOP]", "lstrip": True}}, "tokenizer_config": {}},
        {"special_tokens_map": {"eos_token": "[STOP]"}, "tokenizer_config": {"eos_token": "</s>"}},
        {"tokenizer_config": {"eos_token": "[STOP]", "tokenizer_class": "PreTrainedTokenizerFast"}},
        {
            "special_tokens_map": {"eos_token": "</s>"},
            "tokenizer_config": {
                "eos_token": "[STOP]",
                "added_tokens_decoder": {"3": {"content": "[STOP]", "special": True}},
            },
        },
        {"tokenizer_config": {"added_tokens_decoder": {"3": {"content": "[STOP]", "special": False, "rstrip": True}}}},
        {"tokenizer_config": {"tokenizer_class": "LlamaTokenizer"}},
        {"tokenizer_config": {"tokenizer_class": "LlamaTokenizer", "additional_special_tokens": ["[STOP]"]}},
        {"special_tokens_map": {"additional_special_tokens": ["[STOP]"]}},
    ],
)
def test_special_tokens_are_those_of_transformers(tmp_path: Path, files: dict[str, dict[str, Any]]) -> None:
    compare(write(tmp_path, **files))


def test_a_map_of_special_tokens_fills_what_the_settings_lack(tmp_path: Path) -> None:
    """Whatever the age of the settings: a model that ends its text nowhere helps nobody."""
    settings = {"added_tokens_decoder": {"2": {"content": "</s>", "special": True}}}
    folder = write(tmp_path, tokenizer_config=settings, special_tokens_map={"eos_token": "</s>", "bos_token": "<s>"})
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.eos_ids == {2}
    assert tokenizer.special_tokens["bos_token"] == "<s>"


def test_settings_are_saved_with_what_they_changed(tmp_path: Path) -> None:
    values = {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False}
    tokenizer = Tokenizer.from_folder(write(tmp_path, tokenizer_config=values))
    (tmp_path / "saved").mkdir()
    tokenizer.save(tmp_path / "saved")
    again = Tokenizer.from_folder(tmp_path / "saved")
    for text in TEXTS:
        assert again.encode(text) == tokenizer.encode(text)
    assert again.eos_ids == tokenizer.eos_ids == {2}


@pytest.mark.parametrize(
    "values",
    [
        {"tokenizer_config": {"bos_token": 5}},
        {"tokenizer_config": {"eos_token": ["</s>"]}},
        {"tokenizer_config": {"added_tokens_decoder": {"3": {"content": 7}}}},
        {"special_tokens_map": {"unk_token": {"content": ["<unk>"]}}},
        {"special_tokens_map": {"additional_special_tokens": ["<a>", 3]}},
        {"tokenizer_config": {"extra_special_tokens": {"tool": 1.5}}},
    ],
)
def test_special_tokens_that_are_no_texts_are_refused(tmp_path: Path, values: dict[str, dict[str, Any]]) -> None:
    with pytest.raises(GossamerError, match=f"{re.escape(str(tmp_path))}: .*a special token must be a text"):
        Tokenizer.from_folder(write(tmp_path, **values))


def test_special_tokens_never_stand_for_the_messages(tmp_path: Path) -> None:
    named = {"messages": "[TOOL]", "add_generation_prompt": "[MORE]", "tool_token": "[A]", "chat_template": "[B]"}
    template = "{{ messages[0].content }}{{ add_generation_prompt }}{{ tool_token }}"
    write(tmp_path, tokenizer_config={"chat_template": template, "extra_special_tokens": named})
    tokenizer = Tokenizer.from_folder(tmp_path)
    for _ in range(2):
        assert tokenizer.render([{"role": "user", "content": "hi"}]) == "hiTrue[A]"
        assert tokenizer.special_tokens == named
        (tmp_path / "again").mkdir(exist_ok=True)
        tokenizer.save(tmp_path / "again")  # and as it is saved
        tokenizer = Tokenizer.from_folder(tmp_path / "again")


def test_many_added_tokens_have_the_numbers_of_transformers(tmp_path: Path) -> None:
    listed = {
        str(1000 + number): {"content": f"<{number}>", "special": number % 3 == 0, "normalized": False}
        for number in range(300)
    }
    named = {"additional_special_tokens": [f"<{number}>" for number in range(290, 320)], "bos_token": "<s>"}
    tokenizer = compare(write(tmp_path, tokenizer_config={"added_tokens_decoder": listed, **named}))
    text = "".join(f"<{number}>" for number in range(320))
    assert tokenizer.encode(text) == AutoTokenizer.from_pretrained(tmp_path).encode(text)


def test_special_tokens_are_split_where_the_settings_say_so(tmp_path: Path) -> None:
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "split_special_tokens": True}
    write(tmp_path, tokenizer_config=named)
    tokenizer = Tokenizer.from_folder(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    (tmp_path / "again").mkdir()
    tokenizer.save(tmp_path / "again")
    for ours in (tokenizer, Tokenizer.from_folder(tmp_path / "again")):
        for text in TEXTS:
            assert ours.encode(text) == theirs.encode(text)
        assert WORDS.index("</s>") not in ours.encode("ab</s>")


@pytest.mark.parametrize("steps", ["one", "several"])
@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "Qwen2Tokenizer", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize("blank", [True, False, None])
def test_byte_level_tokenizers_begin_with_a_blank_as_transformers_does(
    tmp_path: Path, kind: str, steps: str, blank: bool | None
) -> None:
    save_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(tiny_config(eos_token_id=None)))
    if steps == "several":
        backend = Backend.from_file(str(tmp_path / "tokenizer.json"))
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind != "Qwen2Tokenizer")
        backend.pre_tokenizer = pre_tokenizers.Sequence([byte_level])
        backend.save(str(tmp_path / "tokenizer.json"))
    named: dict[str, Any] = {"tokenizer_class": kind, "eos_token": "<|im_end|>"}
    named |= {} if blank is None else {"add_prefix_space": blank}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    ours, theirs = Tokenizer.from_folder(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in ("ab c", " ab", "the net", "<|im_end|>ab"):
        assert ours.encode(text) == theirs.encode(text)


@pytest.mark.parametrize(
    "kind", ["BertTokenizer", "DistilBertTokenizerFast", "MPNetTokenizer", "PreTrainedTokenizerFast", None]
)
@pytest.mark.parametrize("lowers", [False, True])
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"do_lower_case": False},
        {"do_lower_case": True},
        {"do_lower_case": True, "strip_accents": False},
        {"do_lower_case": False, "tokenize_chinese_chars": False, "strip_accents": True},
    ],
)
def test_letters_are_lowered_as_the_settings_say(
    tmp_path: Path, kind: str | None, lowers: bool, values: dict[str, Any]
) -> None:
    letters = [*"abcdeowrHELO\u00f6\u4e2d\u6587"]
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "<s>", "</s>", "<pad>", "<unk>", "<mask>"]
    backend = Backend(
        models.WordPiece({text: token for token, text in enumerate([*special, *letters, *("##" + c for c in letters)])})
    )
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowers)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    family = {"DistilBertTokenizerFast": "distilbert", "MPNetTokenizer": "mpnet"}.get(str(kind), "bert")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    named = {"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "pad_token": "[PAD]", **values}
    named |= {} if kind is None else {"tokenizer_class": kind}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    ours, theirs = Tokenizer.from_folder(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in ("HELLO w\u00f6rld", "a \u4e2d\u6587b", "Hello", "hello", "O\u0308l"):
        assert ours.encode(text) == theirs.encode(text)


@pytest.mark.parametrize("place", ["list", "object", "files"])
def test_conversations_with_tools_have_a_template_of_their_own(tmp_path: Path, place: str) -> None:
    write(tmp_path)
    texts = {"default": "D{{ messages[0].content }}", "tool_use": "T{{ tools | tojson }}{{ messages[0].content }}"}
    if place == "files":
        (tmp_path / "chat_template.jinja").write_text(texts["default"])
        (tmp_path / "additional_chat_templates").mkdir()
        (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text(texts["tool_use"])
        named: dict[str, Any] = {}
    else:
        listed = [{"name": name, "template": text} for name, text in texts.items()]
        named = {"chat_template": listed if place == "list" else texts}
    named |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    messages = [{"role": "user", "content": "hi"}]
    tools: list[Any] = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    (tmp_path / "saved").mkdir()
    Tokenizer.from_folder(tmp_path).save(tmp_path / "saved")
    for ours in (Tokenizer.from_folder(tmp_path), Tokenizer.from_folder(tmp_path / "saved")):
        for given in (None, tools):
            expected = theirs.apply_chat_template(messages, tools=given, tokenize=False, add_generation_prompt=True)
            assert ours.render(messages, tools=given) == expected
