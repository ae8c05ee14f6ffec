from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
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
@pytest.mark.parametrize(
    ("kind", "model_type"),
    [
        ("GPT2Tokenizer", "llama"),
        ("Qwen2Tokenizer", "llama"),
        ("PreTrainedTokenizerFast", "llama"),
        ("GPT2TokenizerFast", "granite"),  # whose files are taken as they are, whatever they name
        ("GPTNeoXTokenizerFast", "gpt_neox"),
        ("RobertaTokenizer", "roberta"),
        ("BartTokenizer", "bart"),
        ("CohereTokenizerFast", "cohere2"),
        ("LlamaTokenizerFast", "qwen2"),
        (None, "gpt2"),
        (None, "olmo"),
        (None, "llama"),
    ],
)
@pytest.mark.parametrize("blank", [True, False, None])
def test_byte_level_tokenizers_begin_with_a_blank_as_transformers_does(
    tmp_path: Path, kind: str | None, model_type: str, steps: str, blank: bool | None
) -> None:
    save_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    if steps == "several":
        backend = Backend.from_file(str(tmp_path / "tokenizer.json"))
        regex = kind != "Qwen2Tokenizer" and model_type != "qwen2"
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)
        backend.pre_tokenizer = pre_tokenizers.Sequence([byte_level])
        backend.save(str(tmp_path / "tokenizer.json"))
    named: dict[str, Any] = {} if blank is None else {"add_prefix_space": blank}
    named |= {} if kind is None else {"tokenizer_class": kind}
    named |= {f"{name}_token": "<|im_end|>" for name in ("bos", "eos", "sep", "cls", "unk", "pad", "mask")}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    ours, theirs = Tokenizer.from_folder(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in ("ab c", " ab", "the net", "<|im_end|>ab"):
        assert ours.encode(text, special=False) == theirs.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("values", [{}, {"add_prefix_space": False}, {"legacy": True}])
def test_code_llama_begins_as_transformers_has_it(tmp_path: Path, values: dict[str, Any]) -> None:
    named = {"tokenizer_class": "CodeLlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    write(tmp_path, tokenizer_config={**named, **values})
    ours, theirs = Tokenizer.from_folder(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in ("ab c", " ab", "  ab c ", "ab</s>ab c"):
        ids = ours.encode(text, special=False)
        assert ids == theirs.encode(text, add_special_tokens=False)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_a_byte_level_tokenizer_that_says_llama_gets_none_of_its_tokens(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(tiny_config(eos_token_id=None)))
    named = {"tokenizer_class": "LlamaTokenizerFast", "eos_token": "<|im_end|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    ours, theirs = Tokenizer.from_folder(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert ours.encode("a<s>b</s><unk>") == theirs.encode("a<s>b</s><unk>")
    assert ours.eos_ids == {theirs.eos_token_id}


def test_a_token_that_is_named_is_found_as_it_is_listed(tmp_path: Path) -> None:
    """By a name it becomes special; the blanks that go with it stay."""
    flags = {"special": False, "lstrip": True, "rstrip": False, "single_word": False, "normalized": False}
    listed = {"3": {"content": "[STOP]", **flags}}
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "[STOP]", "added_tokens_decoder": listed}
    tokenizer = compare(write(tmp_path, tokenizer_config=named))
    assert tokenizer.decode(tokenizer.encode("ab [STOP]")) == "ab"


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "bpe"])
def test_blanks_before_punctuation_go_where_the_settings_say_so(
    tmp_path: Path, kind: str, asked: bool, forced: bool
) -> None:
    words = ["[UNK]", "</s>", "it", "is", "n", "t", "do", "s", "m", "ve", "re", *"'.,!?"]
    backend = Backend(models.WordPiece({text: token for token, text in enumerate(words)}))
    backend.decoder, backend.pre_tokenizer = decoders.WordPiece(cleanup=False), pre_tokenizers.BertPreTokenizer()
    if kind != "wordpiece":
        pieces = [*words, *(f"\u2581{word}" for word in words[2:])]
        vocab = {text: token for token, text in enumerate(pieces)}
        backend = Backend(models.Unigram([(piece, -1.0) for piece in pieces], 0))
        if kind == "bpe":
            backend = Backend(models.BPE(vocab, [], unk_token="[UNK]"))
        backend.decoder = decoders.Metaspace()
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps(tiny_config(eos_token_id=None)))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": asked, "eos_token": "</s>"}
    named |= {"clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": forced}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    (tmp_path / "saved").mkdir()
    Tokenizer.from_folder(tmp_path).save(tmp_path / "saved")
    behind = len(words) - 2 if kind != "wordpiece" else 0  # from a piece to the one that begins a word
    random = np.random.default_rng(0)
    changed = 0
    both = [Tokenizer.from_folder(folder) for folder in (tmp_path, tmp_path / "saved")]
    for _ in range(300):
        ids = (random.integers(2, len(words), 12) + behind).tolist()
        expected = theirs.decode(ids)
        changed += expected != theirs.decode(ids, clean_up_tokenization_spaces=False)
        for ours in both:
            assert ours.decode(ids) == expected
            stream = ours.stream(begins=True)
            assert "".join(stream.push(token) for token in ids) + stream.flush() == expected
    assert bool(changed) is (asked and (kind != "bpe" or forced))


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
    for text in ("HELLO w\u00f6rld", "a \u4e2d\u6587b", "Hello", "hello", "O\u0308l", "a <mask> b", "a [MASK]"):
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
