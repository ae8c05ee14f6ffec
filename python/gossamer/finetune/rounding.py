"""Rounding in the loop: the model computes with the very values that `convert` will store.

The weights that training moves stay float32; the model holds them rounded, and what the loss says about a rounded value
goes to the weight behind it unchanged (the straight-through estimator, Bengio et al. 2013).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from .. import _core
from ..arch.spec import Transformer
from ..formats import INTEGER_TYPES, check_group
from ..nn.linears import parameter_name
from ..packing.convert import wanted_type

_SMALLEST = 2.0**-24  # the smallest scale that f16 has
_PART = 1 << 18  # values that are rounded at once: they stay in a core's cache between the passes
# Scales that are searched replace those that are held where they lose less than this part of what those lose. A new
# scale moves all values of its group, though none of the weights behind them has moved, and training has to make up for
# that, which it cannot in the end, when the learning rate is low.
_BETTER = 0.5
_LIMITS = {"int8": (-127.0, 127.0), "int4": (-8.0, 7.0)}


def rounded_types(config: Transformer, weights: str, head: str = "auto") -> dict[str, str]:
    """Returns the types that matrices are rounded to as `convert` does it, by the names of their parameters.

    Args:
        config: Of the model.
        weights: Type of the blocks' matrices: "int8", "int4", or "stored", with which nothing is rounded.
        head: Type of embedding and head; "auto" is int8 with either, and none with "stored".
    """
    types = {parameter_name(name): wanted_type(config, name, weights, head) for name in config.weights}
    return {name: type for name, type in types.items() if type in INTEGER_TYPES}


@dataclass
class Rounding:
    """How the matrices of a model are rounded.

    Scales of int8 values follow the largest magnitude of their group, as `convert` takes them, at every step. Those of
    int4 values are searched by `convert`'s own code, which takes a while: they are held between calls of `refresh`, and
    beyond them unless much better ones are found.
    Values rounded with any scales of int4 are found again exactly by `convert`, and those of int8 by construction.

    Attributes:
        types: "int8" or "int4" of each matrix that is rounded, by the name of its parameter.
        group: Inputs that share a scale: 32, 64, 128, or 0 for a whole row.
    """

    types: Mapping[str, str]
    group: int = 64
    _scales: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_group(self.group)

    @property
    def held(self) -> dict[str, Tensor]:
        """The scales that are held, float32 [rows, groups] by name; what a resumed run has to put back."""
        return self._scales

    def refresh(self, matrices: Mapping[str, Tensor], *, anew: bool = False) -> None:
        """Searches the scales of matrices that are held: those that lose least.

        Args:
            matrices: Float32 weights, [rows, cols], by the name of the parameter; those of other types are left alone.
            anew: Take all that are found; else those of groups that lose less than half of what they lose now.
        """
        held = {name: values for name, values in matrices.items() if self.types.get(name) == "int4"}
        if anew:
            self._scales.clear()
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # the search leaves Python's lock alone
            self._scales.update(zip(held, pool.map(self._searched, held, held.values()), strict=True))

    @torch.no_grad()
    def _searched(self, name: str, values: Tensor) -> Tensor:
        found = _core.choose_scales(values.detach().cpu().numpy(), "int4", self.group)
        scales = torch.from_numpy(found.astype("f4")).to(values.device)
        before = self._scales.get(name)
        if before is None:
            return scales
        better = self._lost(values, scales) < _BETTER * self._lost(values, before)
        return torch.where(functional.pad(better, (0, scales.shape[1] - better.shape[1])), scales, before)

    def _lost(self, values: Tensor, scales: Tensor) -> Tensor:
        """Returns the squared errors of int4 values, summed over each group, [rows, groups]."""
        span = self.group or values.shape[1]
        sums = []
        for part in _parts(values):
            rounded = torch.empty_like(values[part])
            _round_rows(values[part], scales[part], span, _LIMITS["int4"], rounded)
            lost = rounded.sub_(values[part]).square_()
            sums.append(functional.pad(lost, (0, -values.shape[1] % span)).view(len(lost), -1, span).sum(-1))
        return torch.cat(sums)

    @torch.no_grad()
    def round(self, name: str, values: Tensor, out: Tensor) -> None:
        """Computes the values that are stored of a matrix, scales applied.

        Args:
            name: Of the parameter, one of `types`.
            values: Its float32 weights, [rows, cols]; `refresh` must have seen it once.
            out: Takes the result; of the same shape, contiguous.
        """
        kind = self.types[name]
        for part in _parts(values):
            scales = self._scales[name][part] if kind == "int4" else None
            _round_rows(values[part], scales, self.group or values.shape[1], _LIMITS[kind], out[part])


def _parts(values: Tensor) -> Iterator[slice]:
    """The rows of a matrix that are rounded at once."""
    step = max(1, _PART // values.shape[1]) if values.device.type == "cpu" else len(values)
    for start in range(0, len(values), step):
        yield slice(start, start + step)


def _round_rows(values: Tensor, scales: Tensor | None, span: int, limits: tuple[float, float], out: Tensor) -> None:
    """Rounds rows [n, cols] with scales [n, groups], by default those of int8."""
    cols = values.shape[1]
    padded = functional.pad(values, (0, -cols % span)) if cols % span else values
    grouped = padded.reshape(len(values), -1, span)
    scales = int8_scales(grouped) if scales is None else scales
    scales = scales[:, : grouped.shape[1], None]  # the format pads columns to whole blocks; those have no values
    # As the native code has it: a product with the reciprocal, ties to even. In place, since temporaries cost more than
    # the arithmetic.
    codes = torch.mul(
        grouped, torch.where(scales != 0, 1.0 / scales, 0.0), out=None if cols % span else out.view_as(grouped)
    )
    codes.round_().clamp_(*limits).mul_(scales)
    if cols % span:
        out.copy_(codes.flatten(1)[:, :cols])


def int8_scales(grouped: Tensor) -> Tensor:
    """Returns the f16 scales of int8 values as float32, [rows, groups], of weights [rows, groups, span]."""
    largest = grouped.abs().amax(-1)
    scales = (largest / 127.0).clamp(min=_SMALLEST).half().float()
    return torch.where(largest > 0, scales, 0.0)
