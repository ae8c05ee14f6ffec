"""What a packed layer gives to whoever asks for its weight: a tensor that knows what it is, and has no values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import GossamerError

_ATTRIBUTES = (
    *("shape", "dtype", "device", "requires_grad", "layout", "ndim", "itemsize", "nbytes", "names", "grad_fn"),
    *("is_cpu", "is_cuda", "is_meta", "is_mkldnn", "is_mps", "is_nested", "is_quantized", "is_sparse"),
    *("is_sparse_csr", "is_vulkan", "is_xla", "is_xpu"),
)
_METHODS = (
    *("size", "dim", "ndimension", "numel", "nelement", "element_size", "stride", "storage_offset", "is_contiguous"),
    *("is_floating_point", "is_complex", "is_signed", "is_conj", "is_neg", "is_inference", "get_device", "__hash__"),
    "__dir__",
)
_NEW = ("new_empty", "new_zeros", "new_ones", "new_full", "new_tensor")
_FUNCTIONS = ("numel", "is_floating_point", "is_complex", "is_conj", "is_neg", "is_inference", "is_signed")

ANSWERED = frozenset((*_ATTRIBUTES, *_METHODS, *_NEW))
"""Attributes and methods that need no values."""

# What is answered as a tensor with values would.
_TELLS = {
    *(getattr(Tensor, name).__get__ for name in _ATTRIBUTES if hasattr(Tensor, name)),
    *(getattr(Tensor, name) for name in _METHODS),
    *(getattr(torch, name) for name in _FUNCTIONS),
}
# What makes a tensor of the same shape, type or device.
_MAKES = {
    *(torch.empty_like, torch.zeros_like, torch.ones_like, torch.full_like, torch.rand_like, torch.randn_like),
    *(getattr(Tensor, name) for name in _NEW),
}
_attribute: Any = Tensor
_ITSELF = {Tensor.detach, torch.detach, _attribute.data.__get__}
# Functions that ask no Python, as `to_dlpack` does, would hand on the address of nothing; a torch without it has it so.
_no_address = getattr(torch._C, "_set_throw_on_mutable_data_ptr", lambda _: None)
_GET_GRAD, _SET_REQUIRES_GRAD = _attribute.grad.__get__, _attribute.requires_grad.__set__


class PackedWeight(Tensor):
    """Stands for the weight of a packed layer: shape, type, device and whether it is trained, without the values.

    A tensor on device "meta" would do for those, but torch multiplies it with others of the CPU and returns whatever
    lies in memory. This one raises `GossamerError`, with its name, wherever values are read or written.

    Attributes:
        title: What it is called in errors.
    """

    title: str
    _is_hf_initialized = True  # transformers asks, and fills what is not

    @staticmethod
    def __new__(
        cls, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, requires_grad: bool, title: str
    ) -> PackedWeight:
        """Makes one; without memory."""
        del title
        made = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device, requires_grad=requires_grad)
        _no_address(made)
        return made

    def __init__(
        self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, requires_grad: bool, title: str
    ) -> None:
        """See the class."""
        del shape, dtype, device, requires_grad
        super().__init__()
        self.title = title

    # Methods rather than entries of the lists above where `torch.compile` has to trace them.
    def size(self, dim: Any = None) -> Any:
        """Returns the shape, or one number of it."""
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        """Returns 2."""
        return len(self.shape)

    def numel(self) -> int:
        """Returns how many values there would be."""
        return self.shape[0] * self.shape[1]

    def is_floating_point(self) -> bool:
        """Returns True."""
        return True

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """Says what it stands for."""
        del tensor_contents
        return f"PackedWeight({self.title}, {tuple(self.shape)}, {self.dtype}, {self.device})"

    def __format__(self, spec: str) -> str:
        """As `repr`."""
        return format(repr(self), spec)

    def __deepcopy__(self, memo: Any) -> PackedWeight:
        """Returns another without values."""
        del memo
        return self._like(self.requires_grad)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Raises: whoever saves a weight wants its values."""
        raise self._refusal("pickle")

    def _like(self, requires_grad: bool) -> PackedWeight:
        return PackedWeight(tuple(self.shape), self.dtype, self.device, requires_grad, self.title)

    def _refusal(self, what: str) -> GossamerError:
        return GossamerError(
            f"{self.title}: {what} asks for the values of a packed weight; call the layer, leave it dense "
            "(sparsify(exclude=...)), or go back to dense ones (desparsify, to_dense)"
        )

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answers what needs no values; see the class."""
        options = kwargs or {}
        if func in _TELLS:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **options)
        own = _find((args, options))
        assert own is not None
        first = bool(args) and args[0] is own
        if first and func in _ITSELF:
            return own._like(False)
        if first and func in _MAKES:
            dense = torch.empty((), dtype=own.dtype, device=own.device).expand(own.shape)
            return func(dense, *args[1:], **options)
        if first and func == _SET_REQUIRES_GRAD and args[1] == own.requires_grad:
            return None
        if (
            first
            and func == Tensor.requires_grad_
            and (args[1:] or (options.get("requires_grad", True),)) == (own.requires_grad,)
        ):
            return own
        if first and func == _GET_GRAD and not own.requires_grad:
            return None
        raise own._refusal(_name(func))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Raises: what comes here goes for the values."""
        own = _find((args, kwargs or {}))
        assert own is not None
        raise own._refusal(str(func))


def _find(place: Any) -> PackedWeight | None:
    """The first stand-in among arguments, lists and dicts of them included."""
    if isinstance(place, PackedWeight):
        return place
    if isinstance(place, dict):
        place = place.values()
    elif not isinstance(place, (list, tuple)):
        return None
    return next((found for found in map(_find, place) if found is not None), None)


def _name(func: Any) -> str:
    """What a function that torch hands over is called: attributes come as their getters and setters."""
    owner: Any = getattr(func, "__self__", None)
    if getattr(func, "__name__", "") in ("__get__", "__set__", "__delete__") and hasattr(owner, "__name__"):
        return f"torch.Tensor.{owner.__name__}"
    resolved = None if torch.compiler.is_compiling() else torch.overrides.resolve_name(func)
    return resolved or getattr(func, "__name__", None) or str(func)
