"""Blocks that a step frees are there for the next one."""

from __future__ import annotations

import ctypes
import resource
import sys

import pytest

from gossamer.finetune.allocator import kept_blocks

_BLOCK = 64 << 20
_PAGES = _BLOCK // resource.getpagesize()

glibc = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="there is no glibc"
)


def faults() -> int:
    """Pages that the system had to clear for a block that is taken, written and freed."""
    library = ctypes.CDLL(None)
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = library.malloc(_BLOCK)
    ctypes.memset(block, 1, _BLOCK)
    library.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@glibc
def test_a_block_is_cleared_once_within_and_every_time_without() -> None:
    with kept_blocks():
        faults()
        assert faults() < _PAGES / 10
    assert faults() > _PAGES / 2
    assert faults() > _PAGES / 2


def test_other_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", None)
    with kept_blocks():
        pass
