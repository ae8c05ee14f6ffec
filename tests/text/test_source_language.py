"""The language of a text: the token beside it is that of the settings, or another that is chosen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer

from gossamer.errors import GossamerError
from gossamer.text.tokenizer import Tokenizer


def write_translator(folder: Path, kind: str, languages: list[str], **values: Any) -> Path:
    """A tokenizer that puts the first of its languages before a text."""
    words = ["<s>", "<pad>", "</s>", "<unk>", "\u2581", "a", "b", *languages, "<mask>"]
    backend = Backend(models.BPE({text: token for token, text in enumerate(words)}, [], unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    first = languages[0]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{first} $A </s>", pair=f"{first} $A $B </s>", special_tokens=[(first, 7), ("</s>", 2)]
    )
    backend.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"model_type": "m2m_100"}))
    named = {"tokenizer_class": kind, "additional_special_tokens": languages, **values}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return folder


@pytest.mark.parametrize("values", [{}, {"src_lang": "fra_Latn"}, {"src_lang": "eng_Latn", "legacy_behaviour": True}])
def test_the_language_that_is_translated_from_is_that_of_the_settings(tmp_path: Path, values: dict[str, Any]) -> None:
    languages = ["eng_Latn", "fra_Latn"]
    write_translator(tmp_path, "NllbTokenizerFast", languages, **values)
    ids = Tokenizer.from_folder(tmp_path).encode("ab")
    assert ids == AutoTokenizer.from_pretrained(tmp_path).encode("ab")
    assert ids[0] == (4 if "legacy_behaviour" in values else 8 if values else 7)
    write_translator(tmp_path, "NllbTokenizerFast", languages, **{**values, "src_lang": "deu_Latn"})
    with pytest.raises(GossamerError, match="src_lang 'deu_Latn': 'deu_Latn' is no token of the model"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("values", [{}, {"src_lang": "fra_Latn"}, {"src_lang": "fra_Latn", "legacy_behaviour": True}])
def test_the_language_that_is_translated_from_can_be_chosen(tmp_path: Path, values: dict[str, Any]) -> None:
    """Anew for each text, and of a packed model, too, whose files name no class of a tokenizer."""
    write_translator(tmp_path, "NllbTokenizerFast", ["eng_Latn", "fra_Latn", "deu_Latn"], **values)
    ours = Tokenizer.from_folder(tmp_path)
    (tmp_path / "saved").mkdir()
    ours.save(tmp_path / "saved")
    saved = Tokenizer.from_folder(tmp_path / "saved")
    for language in ("deu_Latn", "eng_Latn", "fra_Latn"):
        theirs = AutoTokenizer.from_pretrained(tmp_path, src_lang=language)
        for one in (ours, saved):
            one.translate_from(language)
            for text in ("ab", "", "b deu_Latn a"):
                assert one.encode(text) == theirs.encode(text)
    for language, words in (
        ("de", "the model has no token of the language 'de'; did you mean deu_Latn?"),
        ("</s>", "the model has no token of the language '</s>'"),
        ("", "the model has no token of the language ''"),
    ):
        before = ours.encode("ab")
        with pytest.raises(GossamerError) as error:
            ours.translate_from(language)
        assert str(error.value) == words
        assert ours.encode("ab") == before


_FLAGS = {"rstrip": False, "single_word": False, "special": True}


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"mask_token": "<mask>"},
        {"mask_token": {"__type": "AddedToken", "content": "<mask>", "lstrip": False, "normalized": False, **_FLAGS}},
        {"added_tokens_decoder": {"9": {"content": "<mask>", "lstrip": True, "normalized": True, **_FLAGS}}},
        {"mask_token": "<mask>", "added_tokens_decoder": {
            "9": {"content": "<mask>", "lstrip": False, "normalized": False, **_FLAGS}}},
    ],
)  # fmt: skip
@pytest.mark.parametrize("listed", [False, True])
def test_the_mask_of_nllb_is_found_as_by_transformers(tmp_path: Path, values: dict[str, Any], listed: bool) -> None:
    write_translator(tmp_path, "NllbTokenizerFast", ["eng_Latn", "fra_Latn"], src_lang="eng_Latn", **values)
    if listed:
        path = tmp_path / "tokenizer.json"
        content = json.loads(path.read_text())
        content["added_tokens"] = [{"id": 9, "content": "<mask>", "lstrip": True, "normalized": False, **_FLAGS}]
        path.write_text(json.dumps(content))
    ours, theirs = Tokenizer.from_folder(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in ("a<mask>b", "a <mask> b", "<mask>", " <mask>a", "b"):
        assert ours.encode(text) == theirs.encode(text)


def test_languages_of_m2m_100_stand_between_underscores(tmp_path: Path) -> None:
    languages = ["__en__", "__fr__", "__ast__"]
    assert Tokenizer.from_folder(write_translator(tmp_path, "M2M100Tokenizer", languages)).encode("ab")[0] == 7
    write_translator(tmp_path, "M2M100Tokenizer", languages, src_lang="fr")
    tokenizer = Tokenizer.from_folder(tmp_path)
    text = tokenizer.encode("ab", special=False)
    assert tokenizer.encode("ab") == [8, *text, 2]
    for language in ("ast", "__ast__"):
        tokenizer.translate_from("en")
        tokenizer.translate_from(language)
        assert tokenizer.encode("ab") == [9, *text, 2]
    tokenizer.translate_to("en")
    assert tokenizer.generation["forced_bos_token_id"] == 7
    with pytest.raises(GossamerError, match="no token of the language 'as'; did you mean ast"):
        tokenizer.translate_from("as")
