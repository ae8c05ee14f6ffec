"""One-shot pruning of any model's linear layers, block after block, with its own forward as the only guide."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..kinds import check_kind
from ..progress import Progress
from ..pruning.masks import Target
from ..pruning.methods import CALIBRATED, DEFAULT_METHOD, METHODS
from ..pruning.methods.magnitude import magnitude
from ..pruning.moments import Moments
from .attachments import COMPUTED
from .dense import CONV1D, is_linear, kind_of
from .report import kinds_told, other_weights
from .swap import Patterns, listed, matches, owners_of
from .training import adapters_of

_log = logging.getLogger("gossamer")


@dataclass
class _Matrix:
    """A weight, the modules that multiply with it, and the second moments of what they were given."""

    name: str
    weight: nn.Parameter
    transposed: bool  # [inputs, outputs], as in GPT-2's Conv1D
    modules: list[nn.Module] = field(default_factory=list)
    moments: Moments | None = None

    def add(self, inputs: Tensor) -> None:
        """Adds inputs [..., cols]: products in float32, sums in float64."""
        x = inputs.detach().reshape(-1, inputs.shape[-1]).float()
        self.moments = self.moments or Moments()
        self.moments.add_product((x.T @ x).cpu().numpy())

    def prune(self, method: str, target: Target) -> float:
        """Prunes the weight where it lies and returns its fraction of zeros."""
        values = self.weight.detach().T if self.transposed else self.weight.detach()
        matrix = np.ascontiguousarray(values.float().cpu().numpy())
        if not np.isfinite(matrix).all():
            raise ValueError(f"{self.name}: the weight has NaN or infinite values")
        if method == "magnitude":
            pruned = magnitude(matrix, target)
        else:
            assert self.moments is not None
            if not self.moments.finite:
                raise ValueError(f"{self.name}: the inputs measured in calibration are not finite")
            pruned = CALIBRATED[method].solve(matrix, self.moments.gram, target, matrix != 0)
        values.copy_(torch.from_numpy(pruned))
        return 1.0 - int(torch.count_nonzero(values)) / values.numel()


class _Enough(Exception):
    """Ends a forward whose rest is of no use."""


def prune_linears(
    model: nn.Module,
    batches: Iterable[Any] = (),
    *,
    sparsity: float | None = None,
    pattern: tuple[int, int] | None = None,
    method: str = DEFAULT_METHOD,
    exclude: Patterns = None,
    forward: Callable[[nn.Module, Any], object] | None = None,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Prunes the linear layers of a model's blocks in place, each block on the outputs of the pruned ones before it.

    Blocks are the members of the outermost `ModuleList`s; embeddings, heads and whatever else lies outside of them stay
    as they are. A model without such lists is one block. Layers are those that `sparsify` can pack; a weight
    that several of them share is pruned once, for the inputs of all. What is zero stays zero, and counts. Other
    matrices of blocks, as those of `nn.MultiheadAttention`, of convolutions or of stacked experts, stay as they are,
    which a warning says.

    For every block the batches run through the model up to there, so that no assumption is made about what blocks hand
    to each other, and no more than one block's moments are in memory. Adapters of `peft` stay as they are, and so does
    a weight that is that of another module than linear ones, too, as a tied embedding's.

    Args:
        model: The model; it is left in the mode, training or not, that it is in.
        batches: Calibration inputs, a list or a DataLoader, read once: mappings are passed as keywords,
            tuples and lists as arguments, all else as the one argument. All positions count, padding too.
            "magnitude" needs none.
        sparsity: Fraction of zeros in every matrix, at least 0 and below 1.
        pattern: (N, M): keep N of every M consecutive inputs, instead of `sparsity`.
        method: "admm", "sparsegpt", "wanda" or "magnitude"; see `gossamer.pruning`.
        exclude: Glob patterns of qualified names, one or several: layers to leave alone.
        forward: How to run a batch, called with the model and the batch, instead.
        progress: Called with (done, total, what).

    Returns:
        The fraction of zeros of each pruned layer, by its name.

    Raises:
        GossamerError: the sparsity or the pattern is out of range.
        ValueError: the method is unknown, there is nothing to prune, batches are missing or do not reach a layer, a
            weight is computed from others (a pruning mask, a parametrization) or has no values, or a weight or an input
            is not finite; the line names the layer. In the last two cases, blocks before it may be pruned then.
    """
    check_kind("sparsity", sparsity, "float", "None")
    target = Target.parse(sparsity, pattern)
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if isinstance(batches, Mapping):
        raise ValueError("batches must be a list of inputs, got a single mapping")
    batches = list(batches)
    if method in CALIBRATED and not batches:
        raise ValueError(f"method {method!r} measures the inputs of layers and needs at least one batch")
    names = [name for name, module in model.named_modules() if is_linear(module)]
    report = progress or (lambda *_: None)
    run = forward or _call
    blocks = _blocks(model, listed("exclude", exclude, names))
    if not blocks:
        raise ValueError("the model has no linear layer to prune: none is dense, or all are excluded")
    _tell_left(model, [block for block, _ in blocks])
    zeros: dict[str, float] = {}
    with _evaluating(model), torch.no_grad():
        calls: list[nn.Module] = []
        if method in CALIBRATED:
            calls = _calls([block for block, _ in blocks], partial(run, model, batches[0]))
            blocks.sort(key=lambda entry: calls.index(entry[0]) if entry[0] in calls else len(calls))
        for done, (block, matrices) in enumerate(blocks):
            report(done, len(blocks), "pruning blocks")
            if method in CALIBRATED:
                for batch in batches:
                    _measure(block, matrices, calls.count(block), partial(run, model, batch))
            for matrix in matrices:
                if method in CALIBRATED and matrix.moments is None:
                    raise ValueError(f"{matrix.name}: no batch reaches this layer; exclude it or use others")
                zeros[matrix.name] = matrix.prune(method, target)
                matrix.moments = None
    report(len(blocks), len(blocks), "pruning blocks")
    return zeros


def _call(model: nn.Module, batch: Any) -> object:
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, (tuple, list)) else model(batch)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Switches dropout and the like off, and each module back to what it was.

    Torch's fused path of attention is off, too: it calls no linear layer, and `nn.TransformerEncoder` nests what a
    padding mask leaves for it, which layers with hooks then cannot read.
    """
    training = [module for module in model.modules() if module.training]
    fused = torch.backends.mha.get_fastpath_enabled()
    model.eval()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module in training:
            module.training = True


def _blocks(model: nn.Module, exclude: tuple[str, ...]) -> list[tuple[nn.Module, list[_Matrix]]]:
    """The blocks that hold anything to prune, with their matrices, each matrix once."""
    seen: dict[int, _Matrix] = {}
    found = []
    owners, (adapters, _) = owners_of(model), adapters_of(model)
    linears = {f"{name}.weight".lstrip(".") for name, module in model.named_modules() if is_linear(module)}
    listed = [(name, block) for name, block in _outermost(model, "") if any(map(_concerned, block.modules()))]
    for prefix, block in listed or [("", model)]:
        matrices = []
        for name, module in block.named_modules(prefix=prefix):
            if not _concerned(module) or matches(name, exclude) or name.startswith(tuple(adapters)):
                continue
            weight = module._parameters.get("weight")
            if weight is None:
                raise ValueError(f"{name}: {COMPUTED}, or exclude the layer")
            if weight.is_meta:
                raise ValueError(f"{name}: its weight is on device meta, which has no values")
            if tied := [owner for owner in owners[id(weight)] if owner not in linears]:
                _log.warning("%s: stays as it is, since its weight is that of %s, too", name, tied[0])
                continue
            if id(weight) not in seen:
                seen[id(weight)] = _Matrix(name, weight, kind_of(module) == CONV1D)
                matrices.append(seen[id(weight)])
            seen[id(weight)].modules.append(module)
        if matrices:
            found.append((block, matrices))
    return found


def _tell_left(model: nn.Module, blocks: Sequence[nn.Module]) -> None:
    """Logs which matrices of blocks are no linear layer's, and stay."""
    inside = {id(parameter) for block in blocks for parameter in block.parameters()}
    others = other_weights(model, (module for module in model.modules() if is_linear(module)))
    left = [other for other in others if other.kind != "embeddings" and id(model.get_parameter(other.name)) in inside]
    for line in kinds_told(left):
        _log.warning("%s of the blocks stay as they are: only linear layers are pruned", line)


def _concerned(module: nn.Module) -> bool:
    """Whether a module is a linear layer to prune, or one that would be if its weight were its own."""
    return is_linear(module) and (bool(kind_of(module)) or "weight" not in module._parameters)


def _outermost(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    for child_name, child in module.named_children():
        path = f"{name}.{child_name}" if name else child_name
        if isinstance(child, nn.ModuleList):
            yield from ((f"{path}.{index}", block) for index, block in enumerate(child))
        else:
            yield from _outermost(child, path)


def _calls(blocks: Sequence[nn.Module], run: Callable[[], object]) -> list[nn.Module]:
    """The blocks in the order in which they are called, as often as they are."""
    calls: list[nn.Module] = []
    hooks = [block.register_forward_pre_hook(lambda block, _: calls.append(block)) for block in blocks]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _measure(block: nn.Module, matrices: Sequence[_Matrix], calls: int, run: Callable[[], object]) -> None:
    """Adds up the moments of a block's inputs over one batch, and stops the forward behind its last call."""
    left = calls

    def count(*_: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise _Enough

    def add(matrix: _Matrix, _: nn.Module, inputs: tuple[Tensor, ...], named: Mapping[str, Tensor]) -> None:
        matrix.add(next(iter((*inputs, *named.values()))))

    hooks = [block.register_forward_hook(count)]
    hooks += [
        module.register_forward_pre_hook(partial(add, matrix), with_kwargs=True)
        for matrix in matrices
        for module in matrix.modules
    ]
    try:
        run()
    except _Enough:
        pass
    finally:
        for hook in hooks:
            hook.remove()
