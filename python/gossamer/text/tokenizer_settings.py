"""What the files beside tokenizer.json say of a tokenizer, done as `transformers` does it."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import GossamerError
from ..files import read_bytes, refuse_pointer
from .chat_template import LONGEST as LONGEST_TEMPLATE
from .source_language import mark_with
from .tokenizer_limits import LONGEST

if TYPE_CHECKING:
    import tokenizers

# The class of a family's tokenizer where files name none; of those that have "" tokenizer.json is taken as it is,
# whatever files name. Other families have the class that files name.
_CLASSES = {
    **dict.fromkeys(("bert", "distilbert"), "BertTokenizer"),
    **dict.fromkeys(("gpt2", "opt", "starcoder2"), "GPT2Tokenizer"),
    **dict.fromkeys(("gpt_neox", "mpt", "olmo", "olmoe"), "GPTNeoXTokenizer"),
    **dict.fromkeys(("bart", "roberta"), "RobertaTokenizer"),
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"), "Qwen2Tokenizer"),
    "cohere2": "CohereTokenizer",
    "mpnet": "MPNetTokenizer",
    "whisper": "WhisperTokenizer",
    **dict.fromkeys(("glm4", "granite", "granitemoe", "ministral3", "mistral", "mixtral", "modernbert"), ""),
    **dict.fromkeys(("olmo2", "olmo3", "phi3", "stablelm"), ""),
}
_OVERRULED = ("qwen2",)  # whose files often name another
_LLAMA, _CODE_LLAMA, _NLLB = "LlamaTokenizer", "CodeLlamaTokenizer", "NllbTokenizer"
# The mask of those that have one where files name none; some take the blanks before it, unless files say otherwise.
_MASKS = {_NLLB: "<mask>", "MPNetTokenizer": "<mask>", "BertTokenizer": "[MASK]", "DistilBertTokenizer": "[MASK]"}
_MASKS_WITH_BLANKS = (_NLLB, "MPNetTokenizer")
_MARKED = {_NLLB: "{}", "M2M100Tokenizer": "__{}__"}  # that mark texts with their language, and its token
_BYTE_LEVEL = (
    "BartTokenizer",
    "CohereTokenizer",
    "GPT2Tokenizer",
    "GPTNeoXTokenizer",
    "Qwen2Tokenizer",
    "RobertaTokenizer",
    "WhisperTokenizer",
)
# Those that make their normalizer themselves, whatever tokenizer.json has.
_BERT = ("BertTokenizer", "DistilBertTokenizer", "MPNetTokenizer")
_MORE = ("extra_special_tokens", "additional_special_tokens")
_FLAGS = ("lstrip", "normalized", "rstrip", "single_word", "special")
FORCED = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
TEMPLATE_FILES = ("chat_template.jinja", "additional_chat_templates/*.jinja")
"""Where chat templates lie: the default one, and others by their names."""
_LLAMA_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def apply_settings(
    backend: tokenizers.Tokenizer,
    settings: dict[str, Any],
    named: dict[str, Any],
    added: dict[str, Any],
    config: dict[str, Any],
) -> dict[str, str]:
    """Changes a tokenizer to what the files beside it say.

    Args:
        backend: The tokenizer of tokenizer.json.
        settings: Content of tokenizer_config.json.
        named: Content of special_tokens_map.json. Newer settings, which list all added tokens, come before it.
        added: Content of added_tokens.json, which settings that list all added tokens replace.
        config: Content of config.json.

    Returns:
        The texts of "bos_token", "eos_token", …; they are found in any text from now on.
    """
    usual: dict[str, Any] = {}
    kind = _class_of(settings, config)
    if kind in (_LLAMA, _CODE_LLAMA) and getattr(backend.model, "byte_fallback", False):
        usual = _LLAMA_TOKENS
        _begin_as_llama(backend, settings, kind == _CODE_LLAMA)
    if kind in _BYTE_LEVEL:
        _begin_with_blank(backend, settings.get("add_prefix_space") is True)
    if kind in _BERT:
        _normalize_as_bert(backend, settings)
    if settings.get("split_special_tokens") is True:  # special tokens that stand in a text are letters like others
        backend.encode_special_tokens = True
    listed = settings.get("added_tokens_decoder")
    if isinstance(listed, dict):
        # Those that the vocabulary lacks get the next numbers, in the order of their own.
        _register(backend, [entry for _, entry in sorted(listed.items(), key=lambda item: (len(item[0]), item[0]))])
    else:
        texts = sorted(added, key=lambda text: str(added[text]).zfill(12))
        _register(backend, [text for text in texts if backend.token_to_id(text) is None])
    special: dict[str, Any] = {}
    for values in (named, usual, settings) if isinstance(listed, dict) else (usual, settings, named):
        special |= {key: entry for key, entry in values.items() if key.endswith("_token") and _text(entry)}
    for values in (named, settings):  # newer settings name what they add
        if isinstance(values.get("extra_special_tokens"), dict):
            special |= {key: entry for key, entry in values["extra_special_tokens"].items() if _text(entry)}
    held = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    if kind in _MASKS:
        mask = special.setdefault("mask_token", _MASKS[kind])
        if kind in _MASKS_WITH_BLANKS and isinstance(mask, str) and mask not in held:
            special["mask_token"] = {"content": mask, "lstrip": True, "normalized": True}
    found = {text for text, token in held.items() if token.special}
    more = [values.get(key) for values in (settings, named) for key in _MORE]
    entries = [*special.values(), *(entry for part in more if isinstance(part, list) for entry in part)]
    new = [
        {**(entry if isinstance(entry, dict) else _flags(held.get(entry))), "content": _text(entry), "special": True}
        for entry in entries
        if _text(entry) not in found
    ]
    _register(backend, new)
    names = {key: _text(entry) for key, entry in special.items()}
    if kind in _MARKED and isinstance(language := settings.get("src_lang"), str):
        mark, end = _MARKED[kind].format(language), names.get("eos_token", "</s>")
        behind = kind == _NLLB and settings.get("legacy_behaviour") is True
        try:
            mark_with(backend, *(([], [end, mark]) if behind else ([mark], [end])))
        except GossamerError as error:
            raise GossamerError(f"src_lang {language!r:.80}: {error}") from None
    return names


def _class_of(settings: dict[str, Any], config: dict[str, Any]) -> str:
    """The class of tokenizer that `transformers` takes; "" where it takes tokenizer.json as it is."""
    named = next((name for holder in (settings, config) if (name := holder.get("tokenizer_class"))), "")
    named = named.removesuffix("Fast") if isinstance(named, str) else ""
    family = config.get("model_type")
    usual = _CLASSES.get(family) if isinstance(family, str) else None
    return named if usual is None or (usual and named and family not in _OVERRULED) else usual


def _flags(token: Any) -> dict[str, bool]:
    """How a token is found that a text names: as before, where it was known."""
    return {"normalized": False} if token is None else {flag: getattr(token, flag) for flag in _FLAGS}


def cleans(backend: tokenizers.Tokenizer, settings: dict[str, Any]) -> bool:
    """Whether blanks before punctuation are taken out of texts: of BPE's only where that is insisted on."""
    from tokenizers import models

    asked = settings.get("clean_up_tokenization_spaces") is True
    return asked and (settings.get(FORCED) is True or not isinstance(backend.model, models.BPE))


def _text(entry: Any) -> str:
    """A special token is a text, or an object that holds one; the empty text where there is none."""
    text = entry.get("content") if isinstance(entry, dict) else entry
    if isinstance(text, str):
        if len(text) > LONGEST:
            raise GossamerError(f"a special token has {len(text)} letters, more than {LONGEST}")
        return text
    if text is None or isinstance(text, bool):  # settings named add_bos_token and the like are flags
        return ""
    raise GossamerError(f"a special token must be a text or an object with one, got {entry!r:.80}")


def _register(backend: tokenizers.Tokenizer, entries: list[Any]) -> None:
    """Has tokens found in any text, before it is cut into words; what the vocabulary lacks is added to its end."""
    from tokenizers import AddedToken

    known = set(map(repr, backend.get_added_tokens_decoder().values()))
    tokens = []
    for entry in entries:
        if text := _text(entry):
            flags = entry if isinstance(entry, dict) else {}
            token = AddedToken(text, **{flag: flags[flag] for flag in _FLAGS if type(flags.get(flag)) is bool})
            if repr(token) not in known:
                known.add(repr(token))
                tokens.append(token)
    # Each call goes through all that there are, so that as many as can be go into one.
    for special, run in itertools.groupby(tokens, key=lambda token: bool(token.special)):
        (backend.add_special_tokens if special else backend.add_tokens)(list(run))


def _begin_with_blank(backend: tokenizers.Tokenizer, blank: bool) -> None:
    """Has a byte-level tokenizer put a blank before a text, or none, whatever tokenizer.json does."""
    from tokenizers import pre_tokenizers

    steps: Any = backend.pre_tokenizer
    several = isinstance(steps, pre_tokenizers.Sequence)
    for step in steps if several else [steps]:
        if isinstance(step, pre_tokenizers.ByteLevel):
            step.add_prefix_space = blank
    backend.pre_tokenizer = steps


def _normalize_as_bert(backend: tokenizers.Tokenizer, settings: dict[str, Any]) -> None:
    """Has a tokenizer of BERT's kind lower and part letters as its settings say, whatever tokenizer.json does."""
    from tokenizers import models, normalizers

    if isinstance(backend.model, models.WordPiece):
        backend.normalizer = normalizers.BertNormalizer(
            clean_text=True,
            handle_chinese_chars=settings.get("tokenize_chinese_chars") is not False,
            strip_accents=settings["strip_accents"] if isinstance(settings.get("strip_accents"), bool) else None,
            lowercase=settings.get("do_lower_case") is not False,
        )


def _begin_as_llama(backend: tokenizers.Tokenizer, settings: dict[str, Any], code: bool) -> None:
    """Puts a blank before a text as two settings of Llama's tokenizer say, whatever tokenizer.json does.

    Code Llama's heeds one of them, and takes a blank away from what it decodes in any case.
    """
    from tokenizers import decoders, pre_tokenizers

    prefix = settings.get("add_prefix_space") is not False
    scheme = ("always" if settings.get("legacy") is True and not code else "first") if prefix else "never"
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix or code else steps)


def chat_templates(folder: Path, settings: dict[str, Any]) -> dict[str, str]:
    """Finds the templates: in files of their own, or in the settings one or several.

    Returns:
        "default", and "tool_use" where there is another one for conversations with tools.

    Raises:
        GossamerError: a file cannot be read.
    """
    template = settings.get("chat_template")
    if isinstance(template, list):
        template = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
    found: dict[Any, Any] = template if isinstance(template, dict) else {"default": template}
    own = folder / TEMPLATE_FILES[0]
    if own.is_file():
        found = {"default": _read_template(own)}
    found |= {path.stem: _read_template(path) for path in folder.glob(TEMPLATE_FILES[1])}
    if "default" not in found or (found["default"] is None and len(found) > 1):
        names = ", ".join(map(str, found))
        logging.getLogger("gossamer").warning(
            "%s: of the chat templates (%s) none is the default, so there is none", folder, names
        )
        return {}
    return {name: found[name] for name in ("default", "tool_use") if isinstance(found.get(name), str)}


def _read_template(path: Path) -> str:
    refuse_pointer(path)
    try:
        return read_bytes(path, 4 * LONGEST_TEMPLATE).decode()
    except (OSError, ValueError) as error:
        raise GossamerError(f"{path}: {error}") from None
