"""pytorch_model.bin: a checkpoint's tensors in a file of torch.save, read without running anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import GossamerError
from ..files import refuse_pointer
from ..safetensors_io import NAMES, TensorInfo
from .torch_archive import Bits, floats, read_archive

FILE = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"


class TorchFile:
    """An open file; arrays are views of it.

    Attributes:
        path: The file.
        tensors: What it holds, in its order.
        metadata: Nothing; it has none.
    """

    def __init__(self, path: str | Path) -> None:
        """Reads the pickle, and maps what its tensors lie in.

        Raises:
            GossamerError: it is not valid, or holds something else than tensors by name; the line names both.
        """
        self.path = Path(path)
        refuse_pointer(self.path)
        held = read_archive(self.path)
        if not isinstance(held, dict) or not held:
            raise GossamerError(f"{self.path}: holds no tensors by name")
        self.metadata: dict[str, str] = {}
        self.tensors: dict[str, TensorInfo] = {}
        self._values: dict[str, NDArray[Any]] = {}
        for name, values in held.items():
            if not isinstance(name, str) or not isinstance(values, np.ndarray):
                raise GossamerError(f"{self.path}: holds {name!r:.80}, which is no tensor")
            dtype = "BF16" if isinstance(values, Bits) else NAMES[values.dtype]
            self.tensors[name] = TensorInfo(dtype, values.shape, 0, values.nbytes)
            self._values[name] = values

    def raw(self, name: str) -> NDArray[Any]:
        """Returns a tensor as it is stored; bfloat16 as its bits."""
        return np.asarray(self._values[name])

    def float32(self, name: str) -> NDArray[np.float32]:
        """Returns a tensor of floats.

        Raises:
            GossamerError: it is one of whole numbers.
        """
        if self.tensors[name].dtype not in ("F32", "F16", "BF16", "F64"):
            raise GossamerError(f"{self.path}: tensor {name} is of type {self.tensors[name].dtype}, and not of floats")
        return np.ascontiguousarray(floats(self._values[name]), np.float32)
