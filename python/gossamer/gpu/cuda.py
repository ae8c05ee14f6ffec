"""Packed weights on a GPU: the same weights at the speed of its memory.

Memory, streams and large products are torch's; the kernels are gossamer's, in the optional module `_cuda`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _core
from ..errors import GossamerError
from ..formats import INTEGER_TYPES
from . import nonzeros
from .counters import counters_of

if TYPE_CHECKING:
    import torch

_HALVES = {"torch.float16": "f16", "torch.bfloat16": "bf16"}
MINIMUM_CAPABILITY = (8, 0)  # asynchronous copies, bf16 and sparse matrix instructions


def why_unavailable() -> str | None:
    """Returns in one line why GPUs cannot be used, or None when they can."""
    try:
        from .. import _cuda
    except ImportError as error:
        if error.name == "gossamer._cuda" or "cannot import name" in str(error):
            return "this installation has no CUDA kernels; install with nvcc and SKBUILD_CMAKE_DEFINE=GOSSAMER_CUDA=ON"
        return f"the CUDA kernels do not load: {error}"
    try:
        count = _cuda.device_count()
    except RuntimeError as error:
        return str(error).removeprefix("CUDA: ")
    if count == 0:
        return "there is no GPU"
    try:
        import torch
    except ImportError:
        return 'torch is missing; install "gossamer[torch]"'
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} cannot use a GPU"
    facts = [_cuda.device_facts(device) for device in range(count)]
    if not any(fact["capability"] >= MINIMUM_CAPABILITY for fact in facts):
        names = ", ".join(f"{fact['name']} ({'.'.join(map(str, fact['capability']))})" for fact in facts)
        return f"compute capability 8.0 or later is needed, found {names}"
    return None


def check_available() -> None:
    """Raises `GossamerError` in one line where GPUs cannot be used."""
    if reason := why_unavailable():
        raise GossamerError(f"CUDA is not available: {reason}")


def number_of(device: torch.device) -> int:
    """Returns what kernels call a device: the number of a GPU, or -1 for the processor, where they run as loops."""
    return int(device.index) if device.type == "cuda" else -1


def stream_of(device: torch.device) -> int:
    """Returns the handle of torch's current stream on a GPU; 0 for the processor."""
    import torch

    return int(torch.cuda.current_stream(device).cuda_stream) if device.type == "cuda" else 0


def pick_layout(weight: _core.Weight) -> str:
    """Returns the layout that suits a packed weight on a GPU.

    2:4, 1:4 and 2:8 go through the sparse matrix instructions as they are; everything else is expanded from bitmaps.
    """
    return "nm24" if weight.pattern in {(2, 4), (1, 4), (2, 8)} else "bitmap"


class CudaWeight:
    """A packed weight in the memory of a GPU.

    Attributes:
        rows: Outputs.
        cols: Inputs.
        type: Value type: f16, bf16, int8 or int4.
        layout: "bitmap" or "nm24".
        device: The torch device that it lies on.
        nbytes: Bytes that a call with one token reads.
    """

    def __init__(
        self,
        weight: _core.Weight,
        device: torch.device | str | int = "cuda",
        *,
        layout: str = "auto",
        splits: int = 0,
        loop: bool | None = None,
        kernels: ModuleType | None = None,
    ) -> None:
        """Copies a packed weight to a GPU and puts it in the GPU's layout there.

        Args:
            weight: Any format; the values must not be f32.
            device: A CUDA device of torch.
            layout: "bitmap", "nm24" (patterns that keep at most 2 of every 4 inputs), or "auto".
            splits: Shares that the inputs are cut into, at most one for every 256; 0 chooses for the GPU.
            loop: Whether up to 4 tokens go through a loop over the non-zeros, which are then held beside the records;
                None does so where nearly all values are zero.
            kernels: The native module, for tests: with `gossamer._simt`, kernels run on the processor and `device` is
                "cpu".

        Raises:
            GossamerError: no GPU can be used, or it has too little memory.
            ValueError: the weight or an argument is not possible on a GPU.
        """
        import torch

        if kernels is None:
            check_available()
        self._kernels = kernels or _load()
        self.device = _device(device, on_gpu=kernels is None)
        self._index = number_of(self.device)
        if layout == "auto":
            layout = pick_layout(weight)
        self._weight = self._kernels.DeviceWeight(layout, weight.type, weight.rows, weight.cols, weight.group)
        if layout == "nm24" and (weight.pattern is None or weight.pattern[0] > 2):
            raise ValueError(f"layout nm24 needs a pattern that keeps at most 2 of 4 inputs, got {weight.pattern}")
        self.rows, self.cols, self.type, self.layout = weight.rows, weight.cols, weight.type, layout
        self._multiprocessors = 1
        if self.device.type == "cuda":
            facts = self._kernels.device_facts(self.device.index)
            if facts["capability"] < MINIMUM_CAPABILITY:
                raise GossamerError(f"{self.device} ({facts['name']}) is older than compute capability 8.0")
            self._multiprocessors = facts["multiprocessors"]
        self._splits = splits or self._weight.plan_splits(self._multiprocessors)
        try:
            self._repack(weight if weight.format in ("bitmap", "nm") else _as_bitmap(weight))
            self._zeros = 1 - weight.nnz / (weight.rows * weight.cols)
            self._find_nonzeros(self._zeros >= nonzeros.MIN_ZEROS if loop is None else loop)
            self._settle()
        except torch.cuda.OutOfMemoryError:
            raise GossamerError(
                f"out of memory on {self.device} while repacking a weight of {weight.rows} x {weight.cols}"
            ) from None

    @property
    def nbytes(self) -> int:
        """Bytes that a call with one token reads."""
        scales = 0 if self._scales is None else self._scales.numel()
        if self._nonzeros is not None:
            return self._nonzeros.nbytes + scales
        return 4 * int(self._weight.words) + (4 * self._offsets.numel() if self._offsets is not None else 0) + scales

    def kernel(self, dtype: torch.dtype) -> str:
        """Returns the name of the kernel that multiplies one token of a type."""
        format = "csr" if self._nonzeros is not None else self.layout.removesuffix("24")
        return f"{format}_linear_{self.type}_{self._type_name(dtype, 'x')}__cuda"

    def linear(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Returns x W^T (+ bias), without gradients.

        Up to 64 tokens are multiplied from the packed weight; for more it is expanded, and torch multiplies.

        Args:
            x: [..., cols], float16 or bfloat16, on the weight's device; float weights take their own type alone.
            bias: [rows], as x.

        Returns:
            [..., rows], as x.

        Raises:
            ValueError: shape, type or device do not fit.
        """
        import torch

        type_name = self._check(x, "x", self.cols)
        if bias is not None:
            self._check(bias, "bias", self.rows)
            if bias.dim() != 1 or bias.dtype != x.dtype:
                raise ValueError(f"bias must be a vector of {x.dtype}, got {bias.dim()} dimensions of {bias.dtype}")
        rows = x.reshape(-1, self.cols)
        tokens = len(rows)
        shape = (*x.shape[:-1], self.rows)
        if tokens == 0:
            return x.new_empty(shape)
        if tokens > self._kernels.MAX_TOKENS:
            with torch.autocast(self.device.type, enabled=False):
                return torch.nn.functional.linear(x, self.dense(x.dtype), bias)
        if rows.stride(1) != 1 or (tokens > 1 and rows.stride(0) < self.cols):  # the latter: one row, expanded
            rows = rows.contiguous()
        bias = bias.contiguous() if bias is not None else None
        y = rows.new_empty((tokens, self.rows))
        stream, partials, counters = stream_of(self.device), None, 0
        if self._nonzeros is not None and tokens <= self._kernels.MAX_FEW_TOKENS:
            if self._nonzeros.chunks > 1:
                counters = counters_of(self.device).address(stream, self._nonzeros.counters)
            self._nonzeros.linear(
                self._kernels, rows, type_name, y, bias, self._scales, self._multiprocessors, counters, self._index,
                stream,
            )  # fmt: skip
            return y.view(shape)
        if self._splits > 1:
            floats = self._weight.partials(self._splits, tokens)
            partials = torch.empty(floats, dtype=torch.float32, device=self.device)
            counters = counters_of(self.device).address(stream, self._weight.counters)
        self._kernels.linear(
            self._weight, rows.data_ptr(), rows.stride(0), type_name, tokens, y.data_ptr(), self.rows,
            0 if bias is None else bias.data_ptr(), self._splits, 0 if partials is None else partials.data_ptr(),
            counters, self._index, stream,
        )  # fmt: skip
        return y.view(shape)

    def takes(self, dtype: torch.dtype) -> bool:
        """Whether inputs of a type can be multiplied."""
        return (name := _HALVES.get(str(dtype))) is not None and self.type in (name, *INTEGER_TYPES)

    def dense(self, dtype: torch.dtype, *, scaled: bool = True) -> torch.Tensor:
        """Returns the matrix [rows, cols] in a float type; integer codes as they are if not `scaled`.

        A float value is rounded where its own type is another; in 16 bits, a code times its scale is rounded once.
        """
        import torch

        if dtype.is_floating_point and not self.takes(dtype):
            if self.type in ("f16", "bf16"):
                return self.dense(torch.float16 if self.type == "f16" else torch.bfloat16).to(dtype)
            codes = self.dense(torch.float16, scaled=False).to(dtype)
            return codes * self._scale_of_each(dtype) if scaled else codes
        out = torch.empty((self.rows, self.cols), dtype=dtype, device=self.device)
        name = self._type_name(dtype, "dtype")
        self._kernels.expand(self._weight, name, scaled, out.data_ptr(), self.cols, self._index, stream_of(self.device))
        return out

    def clone(self) -> CudaWeight:
        """Returns the same weight in memory of its own."""
        twin = copy.copy(self)
        twin._weight = self._kernels.DeviceWeight(self.layout, self.type, self.rows, self.cols, self._weight.group)
        twin._records = self._records.clone()
        twin._offsets, twin._scales = (None if t is None else t.clone() for t in (self._offsets, self._scales))
        twin._nonzeros = None if self._nonzeros is None else self._nonzeros.clone()
        twin._attach(int(self._weight.words))
        return twin

    @staticmethod
    def stack(parts: Sequence[CudaWeight]) -> CudaWeight | None:
        """Returns one weight whose outputs are those of several, one after the other, in memory of its own.

        None where that is not possible: layouts, types, inputs, groups or devices differ, or one that is not the last
        has a number of outputs that is no multiple of 16.
        """
        import torch

        def kind(part: CudaWeight) -> tuple[Any, ...]:
            return part.layout, part.type, part.cols, part._weight.group, part.device

        first = parts[0]
        if any(kind(part) != kind(first) for part in parts) or any(part.rows % 16 for part in parts[:-1]):
            return None
        out = copy.copy(first)
        out.rows = sum(part.rows for part in parts)
        out._weight = out._kernels.DeviceWeight(out.layout, out.type, out.rows, out.cols, out._weight.group)
        counts = [int(part._weight.words) for part in parts]
        spare = first._records.new_zeros(out._kernels.SPARE_WORDS)
        out._records = torch.cat([*(p._records[:count] for p, count in zip(parts, counts, strict=True)), spare])
        if first._offsets is not None:
            begins = [_as_int32(sum(counts[:i])) for i in range(len(parts))]
            moved = [p._offsets[:-1] + begin for p, begin in zip(parts, begins, strict=True)]  # type: ignore[index]
            out._offsets = torch.cat([*moved, moved[0].new_tensor([_as_int32(sum(counts))])])
        if first._scales is not None:
            out._scales = torch.cat([part._scales[: part._scale_bytes()] for part in parts])  # type: ignore[index]
        out._largest = [max(sizes) for sizes in zip(*(part._largest for part in parts), strict=True)]
        out._splits = out._weight.plan_splits(out._multiprocessors)
        out._attach(sum(counts))
        out._zeros = sum(part._zeros * part.rows for part in parts) / out.rows
        out._find_nonzeros(all(part._nonzeros is not None for part in parts))
        out._settle()
        return out

    def _scale_bytes(self) -> int:
        return -(-self.rows // 16) * self._groups * 32

    @property
    def _groups(self) -> int:
        """Scales a row: of whole tiles of 64 inputs."""
        group = int(self._weight.group)
        return -(-(-(-self.cols // 64) * 64) // group) if group else 1

    def _scale_of_each(self, dtype: torch.dtype) -> torch.Tensor:
        """The scales that go with the codes, [rows, cols] or, with one a row, [rows, 1]."""
        import torch

        assert self._scales is not None
        stored = self._scales[: self._scale_bytes()].view(torch.float16).view(-1, self._groups, 16)
        scales = stored.transpose(1, 2).reshape(-1, self._groups)[: self.rows].to(dtype)
        group = int(self._weight.group)
        return scales.repeat_interleave(group, 1)[:, : self.cols] if group else scales

    # --- memory -------------------------------------------------------------------------------------------------------

    def _repack(self, weight: _core.Weight) -> None:
        import torch

        streams = {name: _to_device(array, self.device) for name, array in weight.streams().items()}
        pattern, masks = weight.pattern, streams["masks"].data_ptr()
        self._scales = streams.get("scales")
        self._offsets: torch.Tensor | None = None
        words, largest = int(self._weight.words), torch.zeros(3, dtype=torch.int32, device=self.device)
        if self.layout == "bitmap":
            sizes = torch.empty(self._weight.records, dtype=torch.int32, device=self.device)
            self._offsets = torch.empty(self._weight.records + 1, dtype=torch.int32, device=self.device)
            self._kernels.record_offsets(
                self._weight, pattern, masks, sizes.data_ptr(), self._offsets.data_ptr(), largest.data_ptr(),
                self._index, stream_of(self.device),
            )  # fmt: skip
            words = int(self._offsets[-1].item()) & 0xFFFFFFFF
        self._records = torch.zeros(words + self._kernels.SPARE_WORDS, dtype=torch.int32, device=self.device)
        offsets = 0 if self._offsets is None else self._offsets.data_ptr()
        value_offsets = streams["offsets"].data_ptr() if "offsets" in streams else 0
        self._kernels.make_records(
            self._weight, pattern, masks, streams["values"].data_ptr(), value_offsets, offsets,
            self._records.data_ptr(), self._index, stream_of(self.device),
        )  # fmt: skip
        self._largest = largest.tolist()
        self._attach(words)

    def _find_nonzeros(self, wanted: bool) -> None:
        import torch

        self._nonzeros: nonzeros.NonZeros | None = None
        if not wanted:
            return
        stored = self.dense(torch.bfloat16 if self.type == "bf16" else torch.float16, scaled=False)
        group, columns = int(self._weight.group), self._kernels.CHUNK_COLS
        self._nonzeros = nonzeros.NonZeros.of(stored, self.type, group, columns)

    def _settle(self) -> None:
        """Sets counters aside, and waits for what was made: any stream may use it from here on."""
        import torch

        counters = counters_of(self.device)
        counters.reserve(max(self._weight.counters, self._nonzeros.counters if self._nonzeros else 0))
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    def _attach(self, words: int) -> None:
        offsets, scales = (0 if t is None else t.data_ptr() for t in (self._offsets, self._scales))
        self._weight.attach(self._records.data_ptr(), offsets, scales, words, self._largest)

    # --- checks -------------------------------------------------------------------------------------------------------

    def _type_name(self, dtype: torch.dtype, what: str) -> str:
        name = _HALVES.get(str(dtype))
        if name is None or (self.type in ("f16", "bf16") and name != self.type):
            wanted = f"{self.type} as the weight is" if self.type in ("f16", "bf16") else "float16 or bfloat16"
            raise ValueError(f"{what} must be {wanted}, got {dtype}")
        return name

    def _check(self, tensor: torch.Tensor, what: str, size: int) -> str:
        if tensor.device != self.device:
            raise ValueError(f"{what} is on {tensor.device}, the weight on {self.device}")
        if tensor.dim() == 0 or tensor.shape[-1] != size:
            raise ValueError(f"{what} must have {size} elements in its last dimension, got shape {tuple(tensor.shape)}")
        return self._type_name(tensor.dtype, what)


def _as_int32(word: int) -> int:
    """The signed number with the bits of an unsigned one."""
    return word - (1 << 32) if word >= 1 << 31 else word


def _load() -> ModuleType:
    from .. import _cuda

    return _cuda


def _device(device: torch.device | str | int, *, on_gpu: bool) -> torch.device:
    import torch

    chosen = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    if (chosen.type == "cuda") != on_gpu:
        raise ValueError(f"device must be a {'CUDA device' if on_gpu else 'processor'}, got {chosen}")
    return torch.device("cuda", torch.cuda.current_device()) if str(chosen) == "cuda" else chosen


def _to_device(array: np.ndarray[Any, Any], device: torch.device) -> torch.Tensor:
    import torch

    return torch.from_numpy(array.view(np.uint8).copy()).to(device)


def _as_bitmap(weight: _core.Weight) -> _core.Weight:
    """The same stored values as bitmap, packed anew on the host."""
    if weight.type in ("int8", "int4"):
        return _core.pack_codes(*weight.codes(), "bitmap", weight.type, weight.group)
    return _core.pack(weight.unpack(), "bitmap", weight.type)
