"""Sound of files, streams and arrays as mono samples at 16 kHz, read forward and never whole."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import GossamerError, naming
from ..files import refuse_pointer
from .features import RATE, Samples

Source = str | Path | BinaryIO | NDArray[Any]
"""A path, an open binary file (a pipe, too), or mono samples at 16 kHz as an array of floats."""

_log = logging.getLogger("gossamer")

_BLOCK, _MOST = 5, 1 << 20  # seconds read at once, and samples, whatever rate a header names
_LOUDEST = 64.0  # of samples from -1 to 1, which mixing may take some way beyond
_LOOK, _PAGE = 4096, 1 << 16  # bytes of what may follow; a page of OGG has no more
# What libsndfile says of a header: a size that is not that of the file, and where it met no chunk that it knows.
_SIZES = re.compile(r": (\d+) \(should be (\d+)\)")
_UNKNOWN = re.compile(r"Unknown chunk marker \(\w+\) at position (\d+)\. Exiting")
_STREAMED = 0x7FFF_0000  # sizes from it on stand in headers of what was written before anybody knew its end
_SLACK = 1024  # bytes by which sizes may be off: some programs count their header, others do not
_COUNTED = (b"Xing", b"Info")  # in MP3 files whose header counts their frames


class Sound:
    """Samples that are read forward: what lies before the last window that was asked for is forgotten.

    Attributes:
        name: What messages call it.
        length: Samples as the file's header counts them, for progress alone; 0 where it does not.
    """

    def __init__(self, blocks: Iterator[Samples], name: str, length: int) -> None:
        self.name, self.length = name, length
        self._blocks = blocks
        self._held = np.zeros(0, np.float32)
        self._start = 0  # of what is held
        self._whole = False  # whether the input has ended

    def window(self, start: int, length: int) -> Samples:
        """Returns samples from `start` on, fewer than `length` where the sound ends; none behind its end.

        Raises:
            ValueError: they are forgotten already.
            GossamerError: the file is broken there.
        """
        if start < self._start:
            raise ValueError(f"samples before {self._start} are forgotten, asked for {start}")
        parts, held = [self._held], len(self._held)
        while not self._whole and self._start + held < start + length:
            block = next(self._blocks, None)
            if block is None:
                self._whole = True
            elif self._start + held + len(block) <= start:  # a jump ahead: nothing before it is kept
                self._start += held + len(block)
                parts, held = [], 0
            else:
                parts.append(block)
                held += len(block)
        values = np.concatenate(parts) if parts else np.zeros(0, np.float32)
        drop = min(start - self._start, len(values))
        self._held, self._start = values[drop:].copy() if drop else values, self._start + drop
        return self._held[:length]

    @property
    def heard(self) -> int:
        """Samples that have been read: all that there are, once a window came back shorter than asked for."""
        return self._start + len(self._held)


@contextlib.contextmanager
def open_sound(source: Source) -> Generator[Sound, None, None]:
    """Opens what has sound; WAV, FLAC, OGG, MP3 and what else the installed libsndfile reads.

    Args:
        source: See `Source`. What cannot be sought in is copied to a temporary file first.

    Raises:
        GossamerError: a package is missing, or the source is no sound; the line names it.
    """
    if isinstance(source, np.ndarray):
        yield _array(source)
        return
    with contextlib.ExitStack() as stack:
        if isinstance(source, (str, Path)):
            name = str(source)
            with naming(name):
                file: Any = stack.enter_context(Path(source).open("rb"))
            refuse_pointer(Path(source))
        else:
            name, file = str(getattr(source, "name", "audio")), source
            if not hasattr(source, "read"):
                raise GossamerError(
                    f"audio must be a path, an open file, or an array of numpy, got {type(source).__name__}"
                )
        if not file.seekable():
            copy = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(file, copy)
            copy.seek(0)
            file = copy
        yield _decode(stack, file, name)


def _decode(stack: contextlib.ExitStack, file: BinaryIO, name: str) -> Sound:
    soundfile, soxr = _packages()
    if (size := file.seek(0, os.SEEK_END)) == 0:
        raise GossamerError(f"{name}: is empty")
    file.seek(0)
    head = file.read(_LOOK)
    counted = any(mark in head for mark in _COUNTED)
    file.seek(0)
    try:
        sound = stack.enter_context(soundfile.SoundFile(file))
    except (soundfile.LibsndfileError, TypeError) as error:  # the latter of names that say that there is no header
        raise GossamerError(f"{name}: not audio that libsndfile reads: {_said(error)}") from None
    for line in _doubts(str(sound.extra_info), size):
        _log.warning("%s: %s", name, line)
    sound.seekable = lambda: False  # otherwise each read seeks, and MP3 is no longer what it was behind that
    rate = int(sound.samplerate)

    def blocks() -> Iterator[Samples]:
        resampler = None if rate == RATE else soxr.ResampleStream(rate, RATE, 1, dtype="float32")
        done = 0
        while True:
            try:
                block = sound.read(min(_BLOCK * rate, _MOST), dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                raise GossamerError(f"{name}: broken after {done / rate:.1f} s: {_said(error)}") from None
            _check(block, name, f" after {done / rate:.1f} s")
            done += len(block)
            mono = block.mean(axis=1)
            if resampler is not None:
                mono = resampler.resample_chunk(mono, last=not len(block))
            if len(mono):
                yield mono
            if not len(block):
                break
        if not done:
            raise GossamerError(f"{name}: has no sound")
        if counted and sound.format == "MP3" and done < 0.99 * sound.frames:
            said = "%s: is cut: its header counts %.1f s, and %.1f s are there"
            _log.warning(said, name, sound.frames / rate, done / rate)
        if _goes_on(file, str(sound.format)):
            _log.warning(
                "%s: only its first %.1f s are heard: behind them another sound begins, a file of its own",
                name,
                done / rate,
            )

    length = int(sound.frames)
    return Sound(blocks(), name, length * RATE // rate if 0 < length < 1 << 48 else 0)


def _doubts(header: str, size: int) -> Iterator[str]:
    """Says where a header and its file of some bytes contradict each other, by what libsndfile has found."""
    sizes = [(int(says), int(has)) for says, has in _SIZES.findall(header)]
    if cut := next((one for one in sizes if one[1] + _SLACK < one[0] < _STREAMED), None):
        yield f"is cut: its header counts {cut[0]} bytes, and {cut[1]} are there"
    if (found := _UNKNOWN.search(header)) and (left := size - int(found[1])) > _SLACK:
        yield f"its last {left} bytes are not heard: its header does not count them"


def _goes_on(file: BinaryIO, kind: str) -> bool:
    """Whether another file follows the one that libsndfile has read to its end, as `cat a.mp3 b.mp3` makes it."""
    if kind == "MP3":
        rest = file.read(_LOOK)
        while rest.startswith(b"ID3") and len(rest) >= 10:  # a tag in front of it, whose size is in sevens of bits
            size = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(rest[9:5:-1]))
            file.seek(10 + size - len(rest), os.SEEK_CUR)
            rest = file.read(_LOOK)
        return len(rest) > 2 and rest[0] == 0xFF and rest[1] >= 0xE0
    if kind == "OGG":
        file.seek(max(file.tell() - _PAGE, 0))
        rest, ended = file.read(2 * _PAGE), False
        for page in re.finditer(rb"OggS\0(.)", rest, re.DOTALL):
            first = bool(page[1][0] & 2)
            if first and ended:
                return True
            ended |= not first
    return False


def _array(values: NDArray[Any]) -> Sound:
    if values.ndim != 1 or values.dtype.kind != "f":
        raise GossamerError(f"audio must be mono samples, floats at 16 kHz, got {values.dtype} {list(values.shape)}")
    if not len(values):
        raise GossamerError("audio has no samples")
    with np.errstate(over="ignore"):
        samples = np.asarray(values, np.float32)
    _check(samples, "audio")
    return Sound(iter([samples]), "audio", len(samples))


def _check(samples: Samples, name: str, where: str = "") -> None:
    """Refuses samples that are no numbers, and whole numbers that were made floats and never scaled."""
    loudest = float(np.abs(samples).max(initial=0))
    if not np.isfinite(loudest):
        raise GossamerError(f"{name}: has a sample that is no number{where}")
    if loudest > _LOUDEST:
        raise GossamerError(
            f"{name}: has a sample of {loudest:g}{where}; floats are from -1 to 1, so divide by its scale"
        )


def _packages() -> tuple[Any, Any]:
    try:
        import soundfile
        import soxr
    except (ImportError, OSError):  # the latter where the library behind it is missing
        raise GossamerError("reading audio needs soundfile and soxr: pip install 'gossamer[audio]'") from None
    return soundfile, soxr


def _said(error: Exception) -> str:
    return str(getattr(error, "error_string", error)).rstrip(". ")
