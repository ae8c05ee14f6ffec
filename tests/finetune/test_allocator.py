"""Blocks that a step frees are there for the next one."""

from __future__ import annotations

import ctypes
import resource
import subprocess
import sys

import pytest

from gossamer.finetune.allocator import kept_blocks

_BLOCK = 64 << 20
_PAGES = _BLOCK // resource.getpagesize()

glibc = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="there is no glibc"
)


# In a process of its own: in one that has run for long, blocks may fit what others left in the heap.
_CODE = """
import ctypes, resource
from gossamer.finetune.allocator import kept_blocks

library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = library.malloc({size})
    ctypes.memset(block, 1, {size})
    library.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with kept_blocks():
    print(faults(), faults())
print(faults(), faults())
"""


@glibc
def test_a_block_is_cleared_once_within_and_every_time_without() -> None:
    """Counts the pages that the system had to clear for a block that is taken, written and freed."""
    code = _CODE.format(size=_BLOCK)
    found = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True).stdout
    first, second, third, fourth = map(int, found.split())
    assert second < _PAGES / 10
    assert min(first, third, fourth) > _PAGES / 2


def test_other_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", None)
    with kept_blocks():
        pass
