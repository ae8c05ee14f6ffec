"""How the states of a text's tokens become one vector, as the files beside a checkpoint say it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import GossamerError
from ..files import read_json, read_json_value

POOLS = ("mean", "cls")
_MODULES = "modules.json"
_PROMPTS = "config_sentence_transformers.json"
_TEXTS = "sentence_bert_config.json"
_OTHERS = "pooling_mode_"


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
    modules = read_json_value(path)
    if not isinstance(modules, list):
        raise GossamerError(f"{path}: must hold a JSON list")
    prompts = folder / _PROMPTS
    if prompts.is_file() and (name := read_json(prompts).get("default_prompt_name")) is not None:
        raise GossamerError(f"{prompts}: default_prompt_name is not supported, got {name!r:.80}")
    pool, normalize = None, False
    for number, module in enumerate(modules):
        kind = module.get("type") if isinstance(module, dict) else None
        name = kind.rpartition(".")[2] if isinstance(kind, str) else None
        if name == "Transformer" and number == 0:
            continue
        if name == "Pooling" and pool is None:
            pool = _pool(folder, module.get("path"), path)
        elif name == "Normalize":
            normalize = True
        else:
            raise GossamerError(f"{path}: module {kind!r:.80} is not supported")
    if pool is None:
        raise GossamerError(f"{path}: there is no pooling")
    texts = read_json(folder / _TEXTS) if (folder / _TEXTS).is_file() else {}
    longest, lower = texts.get("max_seq_length"), texts.get("do_lower_case")
    try:
        return Pooling(pool, normalize, longest, False if lower is None else lower)
    except GossamerError as error:
        raise GossamerError(f"{folder / _TEXTS}: {error}") from None


def pooling_files(folder: Path) -> list[str]:
    """Returns which files beside a checkpoint say so, by their paths in the folder."""
    found = [name for name in (_MODULES, _PROMPTS, _TEXTS) if (folder / name).is_file()]
    return (
        found + [f"{path.parent.name}/config.json" for path in sorted(folder.glob("*_*/config.json"))] if found else []
    )


def _pool(folder: Path, name: Any, modules: Path) -> str:
    if not isinstance(name, str) or Path(name).name != name:
        raise GossamerError(f"{modules}: {name!r:.80} is no folder beside it")
    path = folder / name / "config.json"
    settings = read_json(path)
    chosen = [key for key, value in settings.items() if key.startswith(_OTHERS) and value is True]
    known = {f"{_OTHERS}cls_token": "cls", f"{_OTHERS}mean_tokens": "mean"}
    if len(chosen) != 1 or chosen[0] not in known:
        raise GossamerError(f"{path}: {' with '.join(chosen) or 'no pooling mode'} is not supported")
    if settings.get("include_prompt", True) is not True:
        raise GossamerError(f"{path}: include_prompt false is not supported")
    return known[chosen[0]]
