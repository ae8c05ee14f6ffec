"""How the states of a text's tokens become one vector, as the files beside a checkpoint say it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import GossamerError
from ..files import read_json, read_json_value

POOLS = ("mean", "cls")
_MODULES = "modules.json"
_PROMPTS = "config_sentence_transformers.json"
_OTHERS = "pooling_mode_"


@dataclass(frozen=True)
class Pooling:
    """What is made of the states.

    Attributes:
        pool: "mean" of all tokens, or "cls", the first one.
        normalize: Whether vectors get length 1.
    """

    pool: str = "mean"
    normalize: bool = True

    def __post_init__(self) -> None:
        if self.pool not in POOLS:
            raise GossamerError(f"pool must be one of {', '.join(POOLS)}, got {self.pool!r:.80}")

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
        fair = isinstance(values, dict) and set(values) == {"pool", "normalize"}
        if not (fair and isinstance(values["pool"], str) and isinstance(values["normalize"], bool)):
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
    return Pooling(pool, normalize)


def pooling_files(folder: Path) -> list[str]:
    """Returns which files beside a checkpoint say so, by their paths in the folder."""
    found = [name for name in (_MODULES, _PROMPTS, "sentence_bert_config.json") if (folder / name).is_file()]
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
