from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models

from gossamer.errors import GossamerError
from gossamer.text.tokenizer import Tokenizer
from tiny import CHAT_TEMPLATE, EOS_ID, save_tokenizer, tiny_llama, tiny_tokenizer

MESSAGES = [{"role": "user", "content": "Who spins? "}, {"role": "assistant", "content": "The spider."}]
TEXTS = ["", "The spider spins.", "naïve 漢字 🙂👍🏽 👨‍👩‍👧", "  \n\t x", "\ufffd kept \ufffd", "a\x00b"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tokenizer(tmp_path)
    return tmp_path


@pytest.fixture
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(folder)


def settings(folder: Path, **changes: Any) -> Tokenizer:
    path = folder / "tokenizer_config.json"
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return Tokenizer.from_folder(folder)


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_are_found_in_text_and_not_shown(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a<|im_end|>b")
    assert ids[1] == EOS_ID
    assert tokenizer.decode(ids) == "ab"
    assert tokenizer.vocab_size == 300


def test_encode_adds_a_begin_token_only_when_asked(folder: Path) -> None:
    backend = tiny_tokenizer()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    backend.save(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.encode("net") == [0, *tokenizer.encode("net", special=False)]
    assert tokenizer.chat(MESSAGES)[0] == 1  # the template says all


def test_settings_of_padding_and_truncation_in_the_file_do_not_matter(folder: Path) -> None:
    backend = tiny_tokenizer()
    plain = backend.encode("the net " * 20).ids
    backend.enable_padding(length=512)
    backend.enable_truncation(8)
    backend.save(str(folder / "tokenizer.json"))
    assert Tokenizer.from_folder(folder).encode("the net " * 20) == plain


def test_half_a_surrogate_pair_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(GossamerError, match="no valid Unicode text"):
        tokenizer.encode("a\udc80")


def test_end_tokens_come_from_every_file(folder: Path) -> None:
    assert Tokenizer.from_folder(folder).eos_ids == {2}
    (folder / "generation_config.json").write_text('{"eos_token_id": [5, 6]}')
    (folder / "config.json").write_text('{"eos_token_id": 7}')
    assert Tokenizer.from_folder(folder).eos_ids == {2, 5, 6, 7}
    (folder / "generation_config.json").write_text('{"eos_token_id": []}')
    (folder / "config.json").write_text('{"eos_token_id": null}')
    assert settings(folder, eos_token=None).eos_ids == set()


@pytest.mark.parametrize("value", ['"2"', "true", "2.0", "[2, null]", "{}"])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_end_tokens_that_are_no_tokens_are_refused(folder: Path, name: str, value: str) -> None:
    (folder / name).write_text('{"eos_token_id": ' + value + "}")
    with pytest.raises(GossamerError, match=f"{re.escape(str(folder))}: eos_token_id must be a token's number"):
        Tokenizer.from_folder(folder)


def test_a_folder_whose_name_is_no_unicode(folder: Path) -> None:
    other = folder.with_name(os.fsdecode(b"caf\xe9"))
    folder.rename(other)
    assert Tokenizer.from_folder(other).encode("ab")
    Tokenizer.from_folder(other).save(other)
    assert Tokenizer.from_folder(other).eos_ids == {2}


def test_special_tokens_may_be_objects(folder: Path) -> None:
    assert settings(folder, eos_token={"content": "<|endoftext|>", "lstrip": False}).eos_ids == {0}


@pytest.mark.parametrize(
    ("content", "words"), [("{", "tokenizer.json: not a valid tokenizer"), (None, "no tokenizer.json")]
)
def test_bad_files_are_named(folder: Path, content: str | None, words: str) -> None:
    (folder / "tokenizer.json").unlink()
    if content:
        (folder / "tokenizer.json").write_text(content)
    with pytest.raises(GossamerError, match=words):
        Tokenizer.from_folder(folder)


def test_saved_tokenizers_are_the_same_and_transformers_reads_them(tokenizer: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    (tmp_path / "copy").mkdir()
    tokenizer.save(tmp_path / "copy")
    again = Tokenizer.from_folder(tmp_path / "copy")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "copy")
    assert (again.eos_ids, again.special_tokens) == (tokenizer.eos_ids, tokenizer.special_tokens)
    for text in TEXTS:
        assert again.encode(text) == tokenizer.encode(text) == theirs.encode(text)
    assert again.render(MESSAGES) == theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert theirs.eos_token_id == EOS_ID


def test_chat(tokenizer: Tokenizer) -> None:
    text = "<|im_start|>user\nWho spins? <|im_end|>\n<|im_start|>assistant\nThe spider.<|im_end|>\n"
    assert tokenizer.render(MESSAGES, add_generation_prompt=False) == text
    assert tokenizer.render(MESSAGES) == text + "<|im_start|>assistant\n"
    assert tokenizer.chat(MESSAGES) == tokenizer.encode(text + "<|im_start|>assistant\n")
    assert tokenizer.chat_template == CHAT_TEMPLATE


TEMPLATES = [
    "{% if true %}\n  a\n{% endif %}\n  {% for m in messages %}\n{{ m.content }}\n{% endfor %}\n",
    "{%- for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m | tojson }}{% endfor %}",
    "{{ bos_token }}{% for m in messages %}{{ m['content'] | trim }}{{ eos_token }}{% endfor %}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "{% if tools is none and not documents %}{{ messages | length }}{% endif %}{{ strftime_now('%Y') }}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "{{ {'ü': '<'} | tojson(indent=2) }}",
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_templates_render_as_in_transformers(folder: Path, template: str) -> None:
    from transformers import PreTrainedTokenizerFast

    ours = settings(folder, chat_template=template)
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    for prompt in (False, True):
        expected = theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=prompt)
        assert ours.render(MESSAGES, prompt) == expected


def test_where_the_template_is_found(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    assert settings(folder, chat_template=named).render(MESSAGES) == "plain"
    assert settings(folder, chat_template={"default": "of a dict"}).render(MESSAGES) == "of a dict"
    assert not settings(folder, chat_template=named[:1]).has_chat_template
    assert caplog.messages == [f"{folder}: of the chat templates (tool_use) none is the default, so there is none"]
    (folder / "chat_template.jinja").write_text("own file")
    assert Tokenizer.from_folder(folder).render(MESSAGES) == "own file"
    (folder / "chat_template.jinja").unlink()
    without = settings(folder, chat_template=None)
    assert not without.has_chat_template
    with pytest.raises(GossamerError, match="no chat template"):
        without.chat(MESSAGES)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for %}", "chat template refuses"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ nothing.more }}", "undefined"),
        ("{{ 1 // 0 }}", "zero"),
        ("{{ range(10 ** 9) | list }}", "too big"),
    ],
)
def test_templates_that_fail_or_misbehave(folder: Path, template: str, words: str) -> None:
    with pytest.raises(GossamerError, match=words):
        settings(folder, chat_template=template).chat(MESSAGES)


def pieces(tokenizer: Tokenizer, ids: list[int], begins: bool = False) -> list[str]:
    stream = tokenizer.stream(begins)
    return [*(stream.push(token) for token in ids), stream.flush()]


@pytest.mark.parametrize("text", [*TEXTS, "漢字🙂" * 50, "the net " * 50])
def test_streams_join_to_the_text_and_hold_no_half_characters(tokenizer: Tokenizer, text: str) -> None:
    got = pieces(tokenizer, tokenizer.encode(text))
    assert "".join(got) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in got)


def test_streams_are_prompt(tokenizer: Tokenizer) -> None:
    stream = tokenizer.stream()
    for token in tokenizer.encode("the net is thin"):
        assert stream.push(token) == tokenizer.decode([token]) != ""


def test_streams_with_special_tokens_and_broken_bytes(tokenizer: Tokenizer) -> None:
    (lone,) = [token for token in range(300) if tokenizer._backend.id_to_token(token) == "ð"]  # byte 0xF0
    ids = [1, *tokenizer.encode("net"), lone, *tokenizer.encode(" net"), 1, 1, lone, lone]
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids) == "net\ufffd net\ufffd\ufffd"
    assert pieces(tokenizer, [lone])[-1] == "\ufffd"


@pytest.mark.parametrize("kind", ["text", "broken", "special"])
def test_the_cost_of_a_token_does_not_grow(tokenizer: Tokenizer, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (broken,) = [token for token in range(300) if tokenizer._backend.id_to_token(token) == "ÿ"]
    ids = {"text": tokenizer.encode("the net is thin "), "broken": [broken], "special": [1]}[kind]
    decoded = []  # tokens of each call
    decode, stream = tokenizer.decode, tokenizer.stream()
    monkeypatch.setattr(tokenizer, "decode", lambda ids: decoded.append(len(ids)) or decode(ids))
    for token in (ids * 2000)[:2000]:
        stream.push(token)
    assert max(decoded) <= 2 * 64  # a window and the one before it
    assert len(decoded) <= 2 * 2000


def test_leading_spaces_of_sentencepiece_streams() -> None:
    vocab = {"<unk>": 0, "▁the": 1, "▁net": 2, "<0xE6>": 3, "<0xBC>": 4, "<0xA2>": 5, "</s>": 6}
    backend = tokenizers.Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    backend.add_special_tokens(["</s>"])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = Tokenizer(backend)
    ids = [1, 2, 3, 4, 5, 2, 6, 6, 1, 2]
    for begins, first in ((True, "the"), (False, " the")):
        got = pieces(tokenizer, ids, begins)
        assert got == [first, " net", "", "", "漢", " net", "", "", " the", " net", ""]


def test_a_checkpoint_without_chat_template_or_settings(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "m")
    (folder / "tokenizer_config.json").unlink()
    tokenizer = Tokenizer.from_folder(folder)
    assert not tokenizer.has_chat_template
    assert tokenizer.eos_ids == {EOS_ID}  # config.json has it
