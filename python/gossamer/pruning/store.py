"""Where a run of pruning keeps what it makes: in memory, or in a folder from which a stopped run goes on.

In a folder, matrices and hidden states are files that are mapped. Of the matrices memory holds those of the block that
is worked on: when it is done, all of it is given back.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import GossamerError, naming
from ..files import read_json
from ..folders import write_file
from ..safetensors_io import SafetensorsFile, SafetensorsWriter

if TYPE_CHECKING:
    from .. import _core

STATE = "walk.json"

_WEIGHT, _ARRAY = ".safetensors", ".npy"
_ABOUT = "weight"  # the entry of a file's header that describes the weight


class Store:
    """Keeps everything in memory, so that there is nothing to go on from.

    Attributes:
        blocks: The blocks that are done.
        notes: Numbers by name that are kept when a block is done.
        mapped: Whether what is kept takes no memory of the process.
    """

    mapped = False

    def __init__(self) -> None:
        self.blocks = 0
        self.notes: dict[str, int] = {}

    def weight(self, name: str) -> _core.Weight | None:  # noqa: ARG002
        """Returns a weight that an earlier part of the run kept."""
        return None

    def keep_weight(self, name: str, weight: _core.Weight) -> _core.Weight:  # noqa: ARG002
        """Keeps a weight, and returns it as it is kept."""
        return weight

    def array(self, name: str) -> NDArray[Any] | None:  # noqa: ARG002
        """Returns an array that an earlier part of the run kept."""
        return None

    def keep(self, name: str, values: NDArray[Any]) -> NDArray[Any]:  # noqa: ARG002
        """Keeps an array, and returns it as it is kept: not to be written to."""
        return values

    def begun(self) -> None:
        """Says that all is kept that comes before the blocks."""

    def done(self, block: int) -> None:
        """Says that a block is done, and that all is kept that the next one begins with."""

    def give_back(self) -> None:
        """Gives back the memory of weights that were read; who reads them later finds them where they are kept."""


class FolderStore(Store):
    """Keeps everything in files of a folder, under names without slashes.

    What is kept under "3.…" is what block 3 works with: it goes when that is done.
    """

    mapped = True

    def __init__(self, folder: Path) -> None:
        """Finds how far an earlier part of the run came; what it had not finished goes.

        Raises:
            GossamerError: what it left cannot be read.
        """
        super().__init__()
        self._folder = folder
        self._files: list[SafetensorsFile] = []
        state = folder / STATE
        if state.exists():
            found = read_json(state)
            blocks, notes = found.get("blocks"), found.get("notes")
            if type(blocks) is not int or blocks < 0 or not isinstance(notes, dict):
                raise GossamerError(f"{state}: does not say how far the run was")
            self.blocks, self.notes = blocks, notes
        else:
            for path in (*folder.glob(f"*{_WEIGHT}"), *folder.glob(f"*{_ARRAY}")):
                path.unlink()

    def weight(self, name: str) -> _core.Weight | None:  # noqa: D102 - as in the base class, as are those below
        path = self._folder / f"{name}{_WEIGHT}"
        return self._mapped(path) if path.exists() else None

    def keep_weight(self, name: str, weight: _core.Weight) -> _core.Weight:  # noqa: D102
        path = self._folder / f"{name}{_WEIGHT}"
        streams = weight.streams()
        about = [weight.format, weight.type, weight.rows, weight.cols, weight.group, weight.pattern]
        with SafetensorsWriter(path, streams, metadata={_ABOUT: json.dumps(about)}) as writer:
            for stream, values in streams.items():
                writer.add(stream, values)
        return self._mapped(path)

    def _mapped(self, path: Path) -> _core.Weight:
        from .. import _core

        file = SafetensorsFile(path)
        self._files.append(file)
        try:
            format_, type_, rows, cols, group, pattern = json.loads(file.metadata[_ABOUT])
            streams = {stream: file.raw(stream) for stream in file.tensors}
            weight = _core.weight_from_streams(format_, type_, rows, cols, group, pattern, streams)
        except (KeyError, TypeError, ValueError) as error:
            raise GossamerError(f"{path}: is not the state of such a run: {error}") from None
        file.give_back()  # it was looked through
        return weight

    def array(self, name: str) -> NDArray[Any] | None:  # noqa: D102
        path = self._folder / f"{name}{_ARRAY}"
        try:
            return np.asarray(np.load(path, mmap_mode="r")) if path.exists() else None
        except (OSError, ValueError) as error:
            raise GossamerError(f"{path}: is not the state of such a run: {error}") from None

    def keep(self, name: str, values: NDArray[Any]) -> NDArray[Any]:  # noqa: D102
        path = self._folder / f"{name}{_ARRAY}"
        part = self._folder / f"part{_ARRAY}"
        with naming(path, "cannot write"):
            with part.open("wb") as file:
                np.save(file, values)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        kept = self.array(name)
        assert kept is not None
        return kept

    def begun(self) -> None:  # noqa: D102
        if not (self._folder / STATE).exists():
            self._mark(0)

    def done(self, block: int) -> None:  # noqa: D102
        self._mark(block + 1)
        self.give_back()
        for path in self._folder.glob(f"{block}.*{_ARRAY}"):
            path.unlink()

    def give_back(self) -> None:  # noqa: D102
        for file in self._files:
            file.give_back()

    def _mark(self, blocks: int) -> None:
        with naming(self._folder, "cannot write"):
            write_file(self._folder / STATE, json.dumps({"blocks": blocks, "notes": self.notes}) + "\n")
        self.blocks = blocks
