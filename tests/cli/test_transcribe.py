"""`gossamer transcribe`: files, folders, stdout and stdin, Ctrl-C, and what is wrong in a line."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gossamer.audio.transcript import Heard, Segment
from gossamer.cli import main
from gossamer.errors import GossamerError


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    """Has audio named N.wav say N segments; what is named bad fails, behind its first one. Notes what was asked."""
    calls: list[tuple[Any, dict[str, Any]]] = []

    def segments(_: Any, audio: Any, heard: Heard, __: Any, **options: Any) -> Iterator[Segment]:
        calls.append((audio, options))
        heard.language, heard.seconds = "en", 9.0
        if str(audio).startswith("none"):
            raise GossamerError(f"{audio}: not audio")
        for number in range(3):
            if str(audio).startswith("stop") and number == 1:
                signal.raise_signal(signal.SIGINT)
            if str(audio).startswith("bad") and number == 1:
                raise GossamerError(f"{audio}: broken after 5.0 s")
            yield Segment(number, number + 1.0, f" s{number}", [1], 0.0, 0.0, 0.0, 1.0)

    monkeypatch.setattr("gossamer.generation.speech.segments", segments)
    monkeypatch.setattr("gossamer.cli.transcribe.open_model", lambda *_: SimpleNamespace())
    return calls


def test_one_file_goes_to_stdout(asked: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transcribe", "a.wav", "-m", "m", "--language", "German", "--translate", "--beams", "2"]) == 0
    assert capsys.readouterr().out == "s0\ns1\ns2\n"
    assert asked == [("a.wav", {"language": "de", "task": "translate", "beams": 2})]


def test_several_files_are_told_apart(asked: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transcribe", "a.wav", "none.wav", "b.wav", "-m", "m"]) == 1
    out, err = capsys.readouterr()
    assert out == "==> a.wav <==\ns0\ns1\ns2\n==> b.wav <==\ns0\ns1\ns2\n"
    assert err == "gossamer: error: none.wav: not audio\n"
    assert len(asked) == 3


@pytest.mark.usefixtures("asked")
def test_a_folder_has_a_file_each(tmp_path: Path) -> None:
    line = ["transcribe", "a.wav", "b.mp3", "-m", "m", "--format", "srt", "-o", str(tmp_path / "out")]
    assert main(line) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.srt", "b.srt"]
    assert (tmp_path / "out" / "b.srt").read_text().startswith("1\n00:00:00,000 --> 00:00:01,000\ns0\n\n2\n")


@pytest.mark.usefixtures("asked")
def test_a_name_that_ends_in_a_slash_is_a_folder(tmp_path: Path) -> None:
    assert main(["transcribe", "a.wav", "-m", "m", "-o", f"{tmp_path / 'out'}/"]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.txt"]


@pytest.mark.usefixtures("asked")
def test_ctrl_c_keeps_what_was_written(tmp_path: Path) -> None:
    line = ["transcribe", "stop.wav", "b.wav", "-m", "m", "--format", "json", "-o", str(tmp_path)]
    assert main(line) == 130
    found = json.loads((tmp_path / "stop.json").read_text())
    assert found["complete"] is False
    assert found["text"] == "s0 s1"
    assert not (tmp_path / "b.json").exists()


@pytest.mark.usefixtures("asked")
def test_a_file_that_breaks_off_keeps_what_was_heard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transcribe", "bad.wav", "-m", "m", "-o", str(tmp_path / "a.txt")]) == 1
    assert (tmp_path / "a.txt").read_text() == "s0\n"
    assert capsys.readouterr().err == "gossamer: error: bad.wav: broken after 5.0 s\n"
    assert main(["transcribe", "bad.wav", "-m", "m", "--json", "-o", str(tmp_path / "a.json")]) == 1
    found = json.loads((tmp_path / "a.json").read_text())
    assert (found["text"], found["complete"]) == ("s0", False)


@pytest.mark.usefixtures("asked")
def test_what_is_no_audio_leaves_nothing(tmp_path: Path) -> None:
    assert main(["transcribe", "none.wav", "-m", "m", "-o", str(tmp_path / "a.txt")]) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device that is always full")
@pytest.mark.usefixtures("asked")
def test_a_full_disk_is_one_line_that_names_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transcribe", "a.wav", "-m", "m", "-o", "/dev/full", "--force"]) == 1
    assert capsys.readouterr().err == "gossamer: error: /dev/full: cannot write: No space left on device\n"


@pytest.mark.usefixtures("asked")
def test_files_are_replaced_with_force_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("mine")
    line = ["transcribe", "a.wav", "-m", "m", "-o", str(tmp_path / "a.txt")]
    assert main(line) == 1
    assert "a.txt: exists already; --force replaces it" in capsys.readouterr().err
    assert (tmp_path / "a.txt").read_text() == "mine"
    assert main([*line, "--force"]) == 0
    assert (tmp_path / "a.txt").read_text() == "s0\ns1\ns2\n"


@pytest.mark.usefixtures("asked")
def test_a_file_that_is_there_is_replaced_by_a_whole_transcript_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "a.txt").symlink_to("mine.txt")
    for audio, code, says in (
        ("none.wav", 1, "gossamer: error: none.wav: not audio\n"),
        ("bad.wav", 1, "gossamer: error: bad.wav: broken after 5.0 s\n"),
        (
            "stop.wav",
            130,
            f"gossamer: note: {tmp_path}/a.txt: is left as it was, since the new transcript did not come to its end\n",
        ),
    ):
        assert main(["transcribe", audio, "-m", "m", "-o", str(tmp_path / "a.txt"), "--force"]) == code
        assert capsys.readouterr().err == says
        assert (tmp_path / "mine.txt").read_text() == "mine"
    assert main(["transcribe", "a.wav", "-m", "m", "-o", str(tmp_path / "a.txt"), "--force"]) == 0
    assert (tmp_path / "mine.txt").read_text() == "s0\ns1\ns2\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "mine.txt"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["a.wav", "b.wav", "-m", "m", "--json"], "--output: is needed for several files as json"),
        (["-", "-", "-m", "m"], "standard input can be read once"),
        (["a.wav"], "-m/--model"),
        (["a.wav", "-m", "m", "--language", "klingon"], "language 'klingon' is not known"),
        (["a.wav", "-m", "m", "--words"], "--words: needs --format"),
        (["a.wav", "-m", "m", "--json", "--format", "srt"], "--json: not allowed with argument --format srt"),
        (["a.wav", "-m", "m", "--timestamps", "--format", "vtt"], "--timestamps: is for txt"),
        (["a.wav", "-m", "m", "--timestamps", "--json"], "--timestamps: is for txt"),
        (["a.wav", "-m", "m", "--force"], "--force: needs -o/--output"),
    ],
)
def test_wrong_usage_is_one_line(line: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["transcribe", *line])
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


@pytest.mark.usefixtures("asked")
def test_names_that_meet_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transcribe", "x/a.wav", "y/a.wav", "-m", "m", "-o", str(tmp_path)]) == 1
    assert "two files would be written as one" in capsys.readouterr().err
