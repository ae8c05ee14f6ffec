"""How the states of a text's tokens become one vector, as the files beside a checkpoint say it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import GossamerError
from ..files import read_json, read_json_value
from ..model_files import TEXTS

POOLS = ("mean", "cls")
_MODULES = "modules.json"
_PROMPTS = "config_sentence_transformers.json"
_TOKENIZER = "tokenizer_config.json"
_MODE = "pooling_mode"
_OLDER = {f"{_MODE}_cls_token": "cls", f"{_MODE}_mean_tokens": "mean"}
_ENDLESS = 1 << 30  # tokens: those who write that there may be any number of them write far more

# What the files may say beside what is read, with the values that ask for nothing.
_UNHEEDED: dict[str, tuple[Any, ...]] = {
    "transformer_task": ("feature-extraction",),
    "module_output_name": ("token_embeddings",),
    "unpad_inputs": (True, False),
    **dict.fromkeys(("model_args", "tokenizer_args", "config_args"), ({},)),
    **dict.fromkeys(("model_kwargs", "processor_kwargs", "config_kwargs", "processing_kwargs"), ({},)),
    **dict.fromkeys(("query_length", "document_length", "query_expansion"), ()),
}
_READ = ("max_seq_length", "do_lower_case")
_STATES = {"method": "forward", "method_output_name": "last_hidden_state"}


@dataclass(frozen=True)
class Pooling:
    """What is made of the states, and of texts before.

    Attributes:
        pool: "mean" of all tokens, or "cls", the first one.
        normalize: Whether vectors get length 1.
        longest: Tokens that a text may have; None for as many as the context holds.
        lower: Whether letters of texts are lowered, before the tokenizer sees them.
    """

    pool: str = "mean"
    normalize: bool = True
    longest: int | None = None
    lower: bool = False

    def __post_init__(self) -> None:
        if self.pool not in POOLS:
            raise GossamerError(f"pool must be one of {', '.join(POOLS)}, got {self.pool!r:.80}")
        if self.longest is not None and (type(self.longest) is not int or self.longest < 1):
            raise GossamerError(f"max_seq_length must be a whole number above 0, got {self.longest!r:.80}")
        for key, value in (("normalize", self.normalize), ("do_lower_case", self.lower)):
            if not isinstance(value, bool):
                raise GossamerError(f"{key} must be true or false, got {value!r:.80}")

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON-ready values, which `from_dict` takes."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> Pooling:
        """Builds one from what `to_dict` returns; None is the default.

        Raises:
            GossamerError: it is something else.
        """
        if values is None:
            return cls()
        known = {each.name for each in fields(cls)}
        if not isinstance(values, dict) or not {"pool", "normalize"} <= set(values) <= known:
            raise GossamerError(f"pooling must have pool and normalize, got {values!r:.80}")
        return cls(**values)


def read_pooling(folder: Path) -> Pooling | None:
    """Reads what `sentence-transformers` writes beside a checkpoint; None where it wrote nothing.

    Raises:
        GossamerError: it asks for something else than a mean or the first token's state, or for a module behind that.
    """
    path = folder / _MODULES
    if not path.is_file():
        return None
    _check_vectors(folder / _PROMPTS)
    pool, normalize = None, False
    for number, module in enumerate(_modules(path)):
        kind = module.get("type") if isinstance(module, dict) else None
        name = kind.rpartition(".")[2] if isinstance(kind, str) else None
        if name == "Transformer" and number == 0:
            if (place := module.get("path", "")) != "":
                raise GossamerError(f"{path}: a {name} that lies in {place!r:.80} is not supported")
        elif name == "Pooling" and pool is None:
            pool = _pool(folder, module.get("path"), path)
        elif name == "Normalize":
            normalize = True
        else:
            raise GossamerError(f"{path}: module {kind!r:.80} is not supported")
    if pool is None:
        raise GossamerError(f"{path}: there is no pooling")
    path = next((folder / name for name in TEXTS if (folder / name).is_file()), folder / TEXTS[0])
    texts = read_json(path) if path.is_file() else {}
    try:
        _check_settings(texts)
        longest, lower = (texts.get(key) for key in _READ)
        longest = _longest(folder) if longest is None else longest
        return Pooling(pool, normalize, longest, False if lower is None else lower)
    except GossamerError as error:
        raise GossamerError(f"{path}: {error}") from None


def pooling_files(folder: Path) -> list[str]:
    """Returns which files beside a checkpoint say so, by their paths in the folder."""
    if not (folder / _MODULES).is_file():
        return []
    places = [module.get("path") for module in _modules(folder / _MODULES) if isinstance(module, dict)]
    inside = [f"{name}/config.json" for name in places if isinstance(name, str) and name and Path(name).name == name]
    return [name for name in (_MODULES, _PROMPTS, *TEXTS, *inside) if (folder / name).is_file()]


def _modules(path: Path) -> list[Any]:
    modules = read_json_value(path)
    if not isinstance(modules, list):
        raise GossamerError(f"{path}: must hold a JSON list")
    return modules


def _check_vectors(path: Path) -> None:
    """Refuses what is done to every text or vector, whoever asks for it."""
    said = read_json(path) if path.is_file() else {}
    for key in ("default_prompt_name", "truncate_dim"):
        if said.get(key) is not None:
            raise GossamerError(f"{path}: {key} is not supported, got {said[key]!r:.80}")


def _check_settings(texts: dict[str, Any]) -> None:
    """Refuses what changes tokens or states and is not done."""
    for key, value in texts.items():
        if key == "modality_config":
            fair = isinstance(value, dict) and value.get("text") == _STATES
        else:
            fair = key in _READ or value is None or value in _UNHEEDED.get(key, ())
        if not fair:
            raise GossamerError(f"{key} {value!r:.80} is not supported")


def _longest(folder: Path) -> int | None:
    """Tokens that the tokenizer lets texts have, where nothing else says how many."""
    path = folder / _TOKENIZER
    most = read_json(path).get("model_max_length") if path.is_file() else None
    return int(most) if isinstance(most, (int, float)) and 1 < most < _ENDLESS else None


def _pool(folder: Path, name: Any, modules: Path) -> str:
    if not isinstance(name, str) or Path(name).name != name:
        raise GossamerError(f"{modules}: {name!r:.80} is no folder beside it")
    path = folder / name / "config.json"
    settings = read_json(path)
    if settings.get("include_prompt", True) is not True:
        raise GossamerError(f"{path}: include_prompt false is not supported")
    if (mode := settings.get(_MODE)) is not None:  # beside which older keys say nothing
        mode = mode[0] if isinstance(mode, list) and len(mode) == 1 else mode
        if mode not in POOLS:
            raise GossamerError(f"{path}: {_MODE} {mode!r:.80} is not supported")
        return str(mode)
    chosen = [key for key, value in settings.items() if key.startswith(f"{_MODE}_") and value]
    if len(chosen) > 1 or not set(chosen) <= set(_OLDER):
        raise GossamerError(f"{path}: {' with '.join(chosen)} is not supported")
    return _OLDER[chosen[0]] if chosen else "mean"
