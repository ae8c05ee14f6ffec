"""Sound of files, pipes and arrays: mono at 16 kHz, by windows, and broken files in one line."""

from __future__ import annotations

import io
import os
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gossamer.audio import reading
from gossamer.audio.reading import Sound, open_sound
from gossamer.errors import GossamerError

RATE = 16_000


def tone(seconds: float, rate: int, channels: int = 1) -> Any:
    """A tone of 440 Hz in the first channel, silence in the others."""
    wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)
    return np.stack([wave, *[0 * wave] * (channels - 1)], axis=1).astype(np.float32)


def whole(source: Any, step: int = 5 * RATE) -> Any:
    with open_sound(source) as sound:
        parts = []
        while len(part := sound.window(sum(map(len, parts)), step)):
            parts.append(part)
    return np.concatenate(parts)


@pytest.mark.parametrize(("ending", "within"), [("wav", 1e-3), ("flac", 1e-3), ("ogg", 0.05), ("mp3", 0.05)])
@pytest.mark.parametrize("rate", [16_000, 44_100, 8_000])
def test_files_are_mono_at_16_khz(tmp_path: Path, ending: str, within: float, rate: int) -> None:
    soundfile = pytest.importorskip("soundfile")
    pytest.importorskip("soxr")
    path = tmp_path / f"a.{ending}"
    soundfile.write(path, tone(7, rate, channels=2), rate)
    found = whole(path)
    assert abs(len(found) - 7 * RATE) <= 1
    middle = slice(RATE, -RATE)
    np.testing.assert_allclose(found[middle], tone(7, RATE)[: len(found), 0][middle] / 2, rtol=0, atol=within)


@pytest.mark.parametrize("ending", ["ogg", "mp3"])
@pytest.mark.parametrize("seconds", [1.0, 12.0])
def test_files_one_behind_the_other_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, ending: str, seconds: float
) -> None:
    """libsndfile ends with the first one, as `cat a.mp3 b.mp3` and recordings of streams have several."""
    soundfile = pytest.importorskip("soundfile")
    pytest.importorskip("soxr")
    path = tmp_path / f"one.{ending}"
    soundfile.write(path, tone(seconds, RATE), RATE)
    tags = b"ID3\x03\x00\x00\x00\x00\x02\x01" + bytes(257) if ending == "mp3" else b""
    plain = path.read_bytes()
    for behind, told in ((b"", False), (b"TAG" + b" " * 125, False), (plain, True), (tags + plain, True)):
        path.write_bytes(plain + behind)
        caplog.clear()
        assert len(whole(path)) == pytest.approx(seconds * RATE, rel=0.01)
        line = f"{path}: only its first {seconds:.1f} s are heard: behind them another sound begins, a file of its own"
        assert [record.getMessage() for record in caplog.records] == ([line] if told else [])


def test_a_pipe_is_read() -> None:
    soundfile = pytest.importorskip("soundfile")
    data = io.BytesIO()
    soundfile.write(data, tone(2, RATE), RATE, format="FLAC")
    read, write = os.pipe()
    writer = threading.Thread(target=lambda: (os.write(write, data.getvalue()), os.close(write)))
    writer.start()
    with os.fdopen(read, "rb") as pipe:
        found = whole(pipe)
    writer.join()
    assert len(found) == 2 * RATE


def blocks(count: int, size: int = RATE) -> Any:
    return (np.full(size, number, np.float32) for number in range(count))


def test_windows_overlap_jump_and_end() -> None:
    sound = Sound(blocks(10), "made up", 0)
    assert sound.window(0, 2 * RATE).tolist() == [0] * RATE + [1] * RATE
    assert sound.window(RATE, RATE + 1).tolist() == [1] * RATE + [2]
    assert set(sound.window(7 * RATE, RATE)) == {7}
    assert len(sound.window(9 * RATE, 5 * RATE)) == RATE
    assert sound.heard == 10 * RATE
    assert len(sound.window(10 * RATE + 5, RATE)) == 0
    with pytest.raises(ValueError, match="forgotten"):
        sound.window(0, RATE)


def test_memory_stays_flat() -> None:
    """An hour by windows of half a minute: a window is held, and while the next one is read some copies."""
    sound = Sound(blocks(3600), "made up", 0)
    tracemalloc.start()
    for start in range(0, 3600 * RATE, 30 * RATE):
        assert len(sound.window(start, 30 * RATE)) == 30 * RATE
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 6 * (30 * RATE * 4)


def test_arrays_are_taken_as_they_are() -> None:
    values = np.linspace(-1, 1, 1000)
    np.testing.assert_array_equal(whole(values), values.astype(np.float32))


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (np.zeros((2, 100), np.float32), r"mono samples.*\[2, 100\]"),
        (np.zeros(100, np.int16), "int16"),
        (np.zeros(0), "no samples"),
        (np.array([0.0, np.nan]), "no number"),
        (np.full(100, 1e300), "no number"),
        (np.array([3.0, -12000.0, 5.0]), "a sample of 12000; floats are from -1 to 1"),
    ],
)
def test_bad_arrays_are_one_line(values: Any, line: str) -> None:
    with pytest.raises(GossamerError, match=line):
        whole(values)


def bad_file(folder: Path, what: str) -> Path:
    import soundfile

    path = folder / "a.flac"
    soundfile.write(path, tone(20, RATE) + np.random.default_rng(0).normal(0, 0.1, (20 * RATE, 1)), RATE)
    data = path.read_bytes()
    if what == "broken":
        half = len(data) // 2
        path.write_bytes(data[:half] + bytes(20_000) + data[half + 20_000 :])
    if what == "empty":
        path.write_bytes(b"")
    if what == "text":
        path.write_text("no sound at all\n" * 100)
    if what in ("silent", "endless"):
        path = folder / "a.wav"
    if what == "silent":
        soundfile.write(path, tone(0, RATE), RATE)
    if what == "endless":
        soundfile.write(path, np.full(100, np.nan, np.float32), RATE, subtype="FLOAT")
    if what == "loud":  # 16-bit samples that somebody wrote as floats
        path = folder / "a.wav"
        soundfile.write(path, np.full(100, 9000.0, np.float32), RATE, subtype="FLOAT")
    if what == "raw":
        path = folder / "a.raw"
        path.write_bytes(bytes(1000))
    if what == "pointer":
        path.write_text("version https://git-lfs.github.com/spec/v1\n")
    return folder if what == "folder" else folder / "none.wav" if what == "missing" else path


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("broken", "broken after"),
        ("empty", "is empty"),
        ("text", "not audio that libsndfile reads"),
        ("silent", "has no sound"),
        ("endless", "no number"),
        ("loud", "a sample of 9000 after 0.0 s; floats are from -1 to 1"),
        ("raw", "not audio that libsndfile reads: samplerate must be specified"),
        ("pointer", "git-lfs"),
        ("missing", "No such file"),
        ("folder", "Is a directory"),
    ],
)
def test_bad_files_are_one_line(tmp_path: Path, what: str, line: str) -> None:
    pytest.importorskip("soundfile")
    pytest.importorskip("soxr")
    path = bad_file(tmp_path, what)
    with pytest.raises(GossamerError, match=line) as error:
        whole(path)
    assert str(path) in str(error.value)


def test_missing_packages_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    monkeypatch.setitem(__import__("sys").modules, "soundfile", None)
    with pytest.raises(GossamerError, match=r"gossamer\[audio\]"):
        whole(tmp_path / "a.wav")
    assert reading.RATE == RATE


def test_a_rate_that_no_sound_has_takes_no_memory(tmp_path: Path) -> None:
    """A block is some seconds of what a header says, and no more samples than a sound may have of those."""
    soundfile = pytest.importorskip("soundfile")
    pytest.importorskip("soxr")
    soundfile.write(tmp_path / "a.wav", np.zeros(1000), (1 << 31) - 1)
    with open_sound(tmp_path / "a.wav") as sound:
        assert len(sound.window(0, RATE)) < 100


def test_sound_that_is_cut_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A download that broke off is heard as far as it goes; headers that were written before the end are fair."""
    soundfile = pytest.importorskip("soundfile")
    pytest.importorskip("soxr")
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(2, RATE), RATE, subtype="PCM_16")
    data = path.read_bytes()
    at = data.index(b"data") + 4

    def counting(size: int) -> bytes:
        return data[:at] + size.to_bytes(4, "little") + data[at + 4 :]

    short = "its last 62976 bytes are not heard: its header does not count them"
    cases = (
        (data, 2 * RATE, ""),
        (data[: at + 4 + 20_000], 10_000, "is cut: its header counts 64036 bytes, and 20036 are there"),
        (counting(70_000), 2 * RATE, "is cut: its header counts 70000 bytes, and 64000 are there"),
        (counting(0xFFFF_FFFF), 2 * RATE, ""),
        (counting(0x7FFF_FFFF - 36), 2 * RATE, ""),
        (counting(1024), 512, short),
        (data + b"LIST\x04\0\0\0abcd", 2 * RATE, ""),
    )
    for content, length, told in cases:
        path.write_bytes(content)
        caplog.clear()
        assert len(whole(path)) == length
        assert [record.getMessage() for record in caplog.records] == ([f"{path}: {told}"] if told else [])


def test_mp3_that_is_cut_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    soundfile = pytest.importorskip("soundfile")
    pytest.importorskip("soxr")
    path = tmp_path / "a.mp3"
    soundfile.write(path, tone(4, RATE), RATE)
    assert len(whole(path)) == 4 * RATE
    assert not caplog.records
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    seconds = len(whole(path)) / RATE
    assert 1 < seconds < 3
    line = f"{path}: is cut: its header counts 4.0 s, and {seconds:.1f} s are there"
    assert [record.getMessage() for record in caplog.records] == [line]


@pytest.mark.parametrize("source", [[0.0, 0.1], None, (RATE, np.zeros(9, np.float32)), {"array": np.zeros(9)}])
def test_what_is_no_source_of_sound_is_told(source: Any) -> None:
    line = f"audio must be a path, an open file, or an array of numpy, got {type(source).__name__}"
    with pytest.raises(GossamerError, match=line), open_sound(source):
        pass
