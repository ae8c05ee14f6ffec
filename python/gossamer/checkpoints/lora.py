"""Adapters as PEFT writes them for LoRA (Hu et al. 2021): y = W x + U (V x) at some linears; V is its A, U its B.

What follows from the config, alpha / r, is in V already. Ranks that add nothing are left out: rows of A or columns of
B that are zero, or whose gate is (SoRA, Ding et al. 2023).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arch.fields import words
from ..errors import GossamerError
from ..files import read_json
from ..safetensors_io import SafetensorsFile

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
A, B = ".lora_A.weight", ".lora_B.weight"
_GATES = (".lora_gate", ".lora_gate.weight", ".gate", ".gate.weight")
# Keys that are read here, or that training and loading alone have a use for.
_KNOWN = words(
    """
    alpha_pattern auto_mapping base_model_name_or_path bias corda_config eva_config exclude_modules fan_in_fan_out
    inference_mode init_lora_weights layers_pattern layers_to_transform loftq_config lora_alpha lora_dropout
    megatron_config megatron_core peft_type peft_version qalora_group_size r rank_pattern revision runtime_config
    target_modules task_type use_rslora
    """
)
# Ways to begin that leave the model's own weights as they are; the others need it changed in the same way.
_PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
_NAME = re.compile(r"\^?[\w.]+")


@dataclass(frozen=True)
class LowRank:
    """U (V x).

    Attributes:
        u: [rows, rank].
        v: [rank, cols].
    """

    u: NDArray[np.float32]
    v: NDArray[np.float32]


def read_config(folder: Path) -> dict[str, Any]:
    """Reads adapter_config.json.

    Raises:
        GossamerError: it is not valid, or asks for what is not supported; the line names file and key.
    """
    config = read_json(folder / CONFIG)
    _check(folder / CONFIG, config)
    return config


def lacking(config: dict[str, Any], modules: Iterable[str], found: Collection[str]) -> list[str]:
    """Returns what a config names as targets and an adapter has no factors of: modules, and names that fit none.

    PEFT begins such factors with what adds nothing, and warns. Expressions, which are not run, name nothing here.

    Args:
        config: Of the adapter.
        modules: Of the model, those that may be targets.
        found: Those that there are factors of.
    """
    targets = config.get("target_modules")
    named = targets if isinstance(targets, list) else []
    excluded = config.get("exclude_modules")
    if (excluded and isinstance(excluded, str)) or not (named or targets == "all-linear"):
        return []
    modules = [module for module in modules if _among(config, "target_modules", module) is not False]
    missing = [module for module in modules if module not in found and not _left_out(config, module)]
    return missing + [str(name) for name in named if not any(_is_called(one, name) for one in (*modules, *found))]


def read_lora(folder: Path) -> dict[str, LowRank]:
    """Reads an adapter's branches.

    Args:
        folder: Holds adapter_config.json and adapter_model.safetensors.

    Returns:
        Branches by the name of the module, without what PEFT puts before it; of rank 1 where they add nothing.

    Raises:
        GossamerError: a file is missing or not valid, or has something that is not supported; the line names the file,
            and the key or tensor.
    """
    path, config = folder / CONFIG, read_config(folder)
    file = SafetensorsFile(folder / WEIGHTS)
    modules: dict[str, str] = {}  # module -> its gate, or ""
    for name in file.tensors:
        end = next((end for end in (A, B, *_GATES) if name.endswith(end)), "")
        if not end or not name.startswith(PREFIX):
            raise GossamerError(f"{file.path}: tensor {name} is no factor of a linear")
        module = name.removesuffix(end)
        modules[module] = modules.get(module, "") or (name if end in _GATES else "")
    if not modules:
        raise GossamerError(f"{file.path}: holds no tensors")
    branches = {}
    for module, gate in modules.items():
        name = module.removeprefix(PREFIX)
        branch = _factors(file, module, gate)
        _check_named(path, config, file.path, name)
        rank, scale = _scale(path, config, name)
        if len(branch.v) != rank:
            raise GossamerError(f"{file.path}: {module} has a rank of {len(branch.v)}, and {path.name} says {rank}")
        used = (branch.u != 0).any(axis=0) & (branch.v != 0).any(axis=1)
        used[0] |= not used.any()  # whoever has a place for it sees that it fits
        branches[name] = LowRank(branch.u[:, used], branch.v[used] * np.float32(scale))
    return branches


def _factors(file: SafetensorsFile, module: str, gate: str) -> LowRank:
    v, u = (file.float32(f"{module}{suffix}") for suffix in (A, B))
    if v.ndim != 2 or u.ndim != 2 or u.shape[1] != v.shape[0] or not v.shape[0]:
        raise GossamerError(
            f"{file.path}: tensors of {module} have shapes {list(u.shape)} and {list(v.shape)}, which do not fit"
        )
    if gate:
        factors = file.float32(gate)
        if factors.size != len(v):
            raise GossamerError(f"{file.path}: tensor {gate} has {factors.size} values for a rank of {len(v)}")
        v = v * factors.reshape(-1, 1)
    if not (np.isfinite(u).all() and np.isfinite(v).all()):
        raise GossamerError(f"{file.path}: a tensor of {module} has NaN or infinite values")
    return LowRank(u, v)


def _check(path: Path, config: dict[str, Any]) -> None:
    """Refuses what would be another function of the tensors."""
    if config.get("peft_type") != "LORA":
        raise GossamerError(f"{path}: peft_type {config.get('peft_type')!r:.80} is not supported; there is: LORA")
    for key, value in config.items():
        if key not in _KNOWN and value:
            raise GossamerError(f"{path}: {key} is not supported, got {value!r:.80}")
    if config.get("bias") not in (None, "none"):
        raise GossamerError(f"{path}: bias {config['bias']!r:.80} is not supported; there is: none")
    start = config.get("init_lora_weights")
    if not any(start is plain or (isinstance(start, str) and start == plain) for plain in _PLAIN_STARTS):
        raise GossamerError(
            f"{path}: init_lora_weights {start!r:.80} is not supported, since it changes the model's own weights, too"
        )
    if not isinstance(base := config.get("base_model_name_or_path"), (str, type(None))):
        raise GossamerError(f"{path}: base_model_name_or_path must be a text, got {base!r:.80}")
    if type(config.get("use_rslora", False)) is not bool:
        raise GossamerError(f"{path}: use_rslora must be true or false, got {config['use_rslora']!r:.80}")


def _is_called(module: str, name: Any) -> bool:
    return isinstance(name, str) and (module == name or module.endswith(f".{name}"))


def _among(config: dict[str, Any], key: str, module: str) -> bool | None:
    """Whether a key of the config names a module; None where it has no names."""
    named = config.get(key)
    return any(_is_called(module, name) for name in named) if isinstance(named, list) and named else None


def _left_out(config: dict[str, Any], module: str) -> str:
    """Returns the key that leaves a module out, or an empty text; expressions, which are not run, leave out none."""
    if _among(config, "target_modules", module) is False:
        return "target_modules"
    if _among(config, "exclude_modules", module):
        return "exclude_modules"
    layers = config.get("layers_to_transform")
    layers = [layers] if type(layers) is int else layers
    numbers = [int(part) for part in module.split(".") if part.isascii() and part.isdecimal()]
    outside = layers and numbers and isinstance(layers, list) and numbers[0] not in layers
    return "layers_to_transform" if outside else ""


def _check_named(path: Path, config: dict[str, Any], file: Path, module: str) -> None:
    """Refuses factors of a module that the config leaves out."""
    if left_out := _left_out(config, module):
        raise GossamerError(f"{file}: has factors of {module}, which {left_out} of {path.name} leaves out")


def _scale(path: Path, config: dict[str, Any], module: str) -> tuple[int, float]:
    """Rank and factor of a module."""
    rank, alpha = (
        _of_module(path, config, pattern, module, config.get(key))
        for pattern, key in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha"))
    )
    if (
        type(rank) is not int
        or rank < 1
        or isinstance(alpha, bool)
        or not isinstance(alpha, (int, float))
        or not abs(alpha) < 1e300
    ):
        raise GossamerError(f"{path}: r must be a number of at least 1 and lora_alpha a finite one")
    return rank, float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _of_module(path: Path, config: dict[str, Any], key: str, module: str, otherwise: Any) -> Any:
    """What a key such as rank_pattern says of a module: the value of the first one that its name ends with."""
    patterns = config.get(key) or {}
    if not isinstance(patterns, dict):
        raise GossamerError(f"{path}: {key} must be an object, got {patterns!r:.80}")
    for name, value in patterns.items():
        if not _NAME.fullmatch(name):
            raise GossamerError(f"{path}: {key}: {name!r:.80} is no name of a module, and other patterns are not read")
        if re.match(rf"(.*\.)?({name})$", module):  # as PEFT has it: a dot is any letter
            return value
    return otherwise
