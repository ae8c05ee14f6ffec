"""What files of models are called: those that go along with a model, and those that a folder may lose with it."""

from __future__ import annotations

import re
from pathlib import Path

from .errors import GossamerError
from .files import read_json

COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "normalizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "source.spm",
    "target.spm",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    *("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt"),
)
"""Files beside a checkpoint's weights that are copied where it is written again."""

TEXTS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""Files in which sentence-transformers says what texts become tokens; of several, the first counts."""

_SIGNS = ("gossamer.json", "config.json")
_SAMPLES = "samples.json"
# Others that programs around models write beside weights, by their full names.
_NAMES = {
    *(*COMPANIONS, *_SIGNS, _SAMPLES, "gossamer_prune.json", "gossamer_finetune.json"),
    *("modules.json", "config_sentence_transformers.json", *TEXTS, "quantize_config.json"),
    *("adapter_config.json", "pytorch_diff.bin", "vocabulary.json", "vocabulary.txt", "shared_vocabulary.json"),
    *("training_args.bin", "trainer_state.json", "README.md", ".gitattributes"),
}
_WEIGHTS = re.compile(
    r"(model|pytorch_model|adapter_model|weights|diff)([.-]\d+-of-\d+)?\.(safetensors|bin)"
    r"|\d{6}\.safetensors"  # parts of samples
)
_INDEX = re.compile(r"(model|pytorch_model)\.(safetensors|bin)\.index\.json")
# What the folders in a model's may hold, by their names.
_FOLDERS = {
    re.compile("low_rank"): re.compile(r"adapter_config\.json|adapter_model\.safetensors|README\.md"),
    re.compile(r"\d+_[A-Z]\w*"): re.compile(r"config\.json|model\.safetensors|pytorch_model\.bin"),
    re.compile("additional_chat_templates"): re.compile(r".+\.jinja"),
}


def holds_model(folder: Path) -> bool:
    """Whether a folder is one of a model or of samples, with nothing in it but what belongs to such."""
    signed = any((folder / sign).is_file() for sign in _SIGNS)
    weights = any(_WEIGHTS.fullmatch(path.name) for path in folder.iterdir())
    return ((signed and weights) or _begins_samples(folder / _SAMPLES)) and stranger(folder) is None


def _begins_samples(path: Path) -> bool:
    """Whether a file says how samples are written, which may not have begun."""
    try:
        return "tokenizer" in read_json(path)
    except (OSError, GossamerError):
        return False


def stranger(folder: Path) -> str | None:
    """Returns the name of something in a folder that is of no model and of no samples."""
    for path in sorted(folder.iterdir()):
        if not path.is_dir():
            if path.name not in _NAMES and not (_WEIGHTS.fullmatch(path.name) or _INDEX.fullmatch(path.name)):
                return path.name
            continue
        held = next((held for name, held in _FOLDERS.items() if name.fullmatch(path.name)), None)
        if held is None:
            return path.name
        for inside in sorted(path.iterdir()):
            if inside.is_dir() or not held.fullmatch(inside.name):
                return f"{path.name}/{inside.name}"
    return None
