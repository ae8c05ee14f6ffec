"""`Adapters`: what is added to a model's linears, unmerged, for the texts that ask for it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .. import _core
from ..checkpoints.adapter import Adapter, Places, read_adapter
from ..checkpoints.branches import delta_name
from ..checkpoints.low_rank import LOW_RANK_U, LOW_RANK_V
from ..engine import Adaptable, Mix
from ..errors import GossamerError, did_you_mean, one_line
from ..folders import called, shown_name
from ..formats import INTEGER_TYPES
from ..kinds import check_kind
from ..packing.matrix import round_values

if TYPE_CHECKING:
    from .model import Model

_log = logging.getLogger("gossamer")

Chosen = str | Iterable[str] | Mapping[str, float] | None
"""Names of adapters, with weights or without, which is 1; None takes what `Adapters.set` said last."""

_GROUP = 64  # inputs a scale
_MOST_WEIGHT = 3e38  # a float32


class Adapters:
    """The adapters of a model, by name.

    Nothing is merged: the same packed weights serve texts with different adapters, side by side in one step, too.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._numbers: dict[str, int] = {}
        self._weights: dict[str, float] = {}
        self._places: Places | None = None

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    def __contains__(self, name: object) -> bool:
        return name in self._numbers

    def __repr__(self) -> str:
        listed = ", ".join(f"{name}={self._weights.get(name, 0):g}" for name in self)
        return f"<gossamer adapters: {listed or 'none'}>"

    @property
    def weights(self) -> dict[str, float]:
        """What texts use that say nothing else: weights by name."""
        return dict(self._weights)

    def load(self, path: str | Path, name: str | None = None, *, weight: float = 1.0, type: str = "auto") -> str:
        """Reads an adapter and adds it to those that texts use.

        Args:
            path: A PEFT folder (LoRA), or a folder or file of differences, see `gossamer.checkpoints.adapter`.
            name: What to call it; None takes the name of the folder or file.
            weight: Factor of what it adds; 0 only loads it.
            type: Type of its values: f32 or bf16; "auto" is f32 where the model's own weights are f32 throughout,
                otherwise bf16, and int8 for differences where the model's own weights are integers.

        Returns:
            Its name.

        Raises:
            GossamerError: it is no adapter of this model, or is not supported; the line names file and tensor.
        """
        name = Path(path).name if name is None else name
        if name in self._numbers:
            raise GossamerError(f"an adapter {name!r} is loaded already; give this one another name")
        if type not in ("auto", "f32", "bf16"):
            raise GossamerError(f"type must be one of auto, f32, bf16, got {type!r}")
        weight = _weight(name, weight)
        engine = self._engine()
        adapter = read_adapter(path, self._find_places())
        self._tell(adapter)
        weights = packed(adapter, *self._types() if type == "auto" else (type, type))
        if not weights and not adapter.biases:
            raise GossamerError(f"{path}: the adapter adds nothing: all of it is zero")
        try:
            number = engine.add_adapter(weights, adapter.biases)
        except ValueError as error:
            raise GossamerError(f"{path}: {error}") from None
        self._numbers[name] = number
        if weight:
            self._weights[name] = weight
        return name

    def _tell(self, adapter: Adapter) -> None:
        """Logs where an adapter is not what its own config says, or was made for a model of another name."""
        if adapter.lacking:
            first, more = ", ".join(adapter.lacking[:3]), len(adapter.lacking) - 3
            shown = f"{first} and {more} more" if more > 0 else first
            _log.warning("%s: target_modules names %s, and there are no factors of them", adapter.path, shown)
        info = self._model.info
        own = (info.get("name"), info.get("source"), info.get("path"), info.get("config", {}).get("_name_or_path"))
        called = {_called(name) for name in own if isinstance(name, str)}
        if adapter.base and _called(adapter.base) not in called:
            name = info.get("name", "the model")
            _log.warning("%s: was trained beside %s, and this is %s", adapter.path, one_line(adapter.base), name)

    def remove(self, name: str) -> None:
        """Forgets an adapter.

        Raises:
            GossamerError: there is no such adapter, or a conversation uses it.
        """
        number = self._number(name)
        try:
            self._engine().remove_adapter(number)
        except ValueError as error:
            raise GossamerError(f"{name}: {error}") from None
        del self._numbers[name]
        self._weights.pop(name, None)

    def set(self, chosen: Chosen) -> None:
        """Says what texts use from now on that say nothing else; those that have begun go on with theirs.

        Args:
            chosen: Names, each with weight 1, or weights by name; what is not named is not used.

        Raises:
            GossamerError: there is no such adapter, or a weight is not finite.
        """
        self._weights = self._chosen(chosen)

    def mix(self, chosen: Chosen = None) -> Mix:
        """Returns numbers and weights for the engine.

        Raises:
            GossamerError: as `set`.
        """
        return tuple((self._number(name), weight) for name, weight in self._chosen(chosen).items())

    def choose(self, seq: int, chosen: Chosen = None) -> None:
        """Sets the adapters of a sequence of the engine that holds no tokens, for those who step it themselves.

        Raises:
            GossamerError: as `set`.
        """
        if mix := self.mix(chosen):
            self._engine().choose(seq, mix)

    def bytes(self, mix: Mix) -> int:
        """Returns what a token of such a sequence reads beside the model's own weights."""
        return sum(self._engine().adapter_bytes(number) for number, _ in mix)

    def _chosen(self, chosen: Chosen) -> dict[str, float]:
        if chosen is None:
            return self.weights
        if isinstance(chosen, str):
            chosen = [chosen]
        weights = chosen if isinstance(chosen, Mapping) else dict.fromkeys(chosen, 1.0)
        for name in weights:
            self._number(name)
        return {name: weight for name, given in weights.items() if (weight := _weight(name, given))}

    def _number(self, name: str) -> int:
        number = self._numbers.get(name)
        if number is None:
            known = ", ".join(self) or "none"
            raise GossamerError(f"there is no adapter {name!r}; loaded: {known}{did_you_mean(name, self)}")
        return number

    def _engine(self) -> Adaptable:
        engine = self._model.decoder
        if not isinstance(engine, Adaptable):
            raise GossamerError(f"adapters run on the processor, and the model runs on {self._model.device}")
        return engine

    def _types(self) -> tuple[str, str]:
        """Types of factors and of differences that are no coarser than the model's own weights."""
        own = {weight.type for name, weight in self._model.weights.items() if name.startswith("layers.")}
        if own == {"f32"}:
            return "f32", "f32"
        return "bf16", "int8" if own <= set(INTEGER_TYPES) else "bf16"

    def _find_places(self) -> Places:
        info = self._model.info
        if self._places is None:
            where = called(info)
            if not isinstance(config := info.get("config"), dict):
                raise GossamerError(f"{where}: was packed before adapters were known; convert the checkpoint again")
            try:
                self._places = Places(config)
            except GossamerError as error:
                raise GossamerError(f"{where}: {error}") from None
        return self._places


def packed(adapter: Adapter, type: str, sparse: str) -> dict[str, _core.Weight]:
    """Returns an adapter's matrices as the engine takes them.

    Args:
        adapter: What was read.
        type: Type of the values of factors.
        sparse: Type of those of differences.
    """
    weights = {}
    for name, branch in adapter.low_rank.items():
        weights[name + LOW_RANK_U] = _core.pack(branch.u, "bitmap", type)  # few inputs, and blocks of 64
        weights[name + LOW_RANK_V] = _core.pack(branch.v, "dense", type)
    for name, values in adapter.deltas.items():
        matrix = round_values(values, sparse, _GROUP if sparse in INTEGER_TYPES else 0)
        weights[delta_name(name, 1)] = matrix.pack(matrix.choose())
    return weights


def _called(model: str) -> str:
    """The last part of a model's name or path, in small letters."""
    return shown_name(model.replace("\\", "/")).rpartition("/")[2].lower()


def _weight(name: str, weight: float) -> float:
    what = f"the weight of adapter {name!r}"
    check_kind(what, weight, "float")
    if not abs(weight) <= _MOST_WEIGHT:
        raise GossamerError(f"{what} must be a finite number, got {weight!r:.80}")
    return float(weight)
