"""Words in a GPU's memory by which the blocks of a call count who is last."""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING

from ..errors import GossamerError

if TYPE_CHECKING:
    import torch


class Counters:
    """Counters of one device: zero before a call, and zero again behind it.

    Calls of one stream take turns, so each stream has words of its own. They are set aside when a weight is made,
    since a graph that is being captured could not have them zeroed before its first replay; what is outgrown stays for
    graphs that know it.
    """

    STREAMS = 256  # torch makes 32 of each priority

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._blocks: list[torch.Tensor] = []
        self._words = 256
        self._addresses: dict[int, int] = {}
        self._lock = threading.Lock()

    def reserve(self, words: int) -> None:
        """Sets words aside for all streams, so many for each."""
        import torch

        with self._lock:
            if self._blocks and words <= self._words:
                return
            self._words = max(self._words, words)
            self._blocks.append(torch.zeros((self.STREAMS, self._words), dtype=torch.int32, device=self._device))
            self._addresses = {}

    def address(self, stream: int, words: int) -> int:
        """Returns where a stream's words are."""
        assert words <= self._words
        found = self._addresses.get(stream)
        if found is not None:
            return found
        with self._lock:
            taken = len(self._addresses)
            if taken == self.STREAMS and stream not in self._addresses:
                raise GossamerError(f"sparse weights on {self._device} are used on more than {self.STREAMS} streams")
            return self._addresses.setdefault(stream, self._blocks[-1][taken].data_ptr())


@functools.cache
def counters_of(device: torch.device) -> Counters:
    """Returns the counters of a device."""
    return Counters(device)
