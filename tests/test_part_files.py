"""What is being written: names that nobody can guess, links that are not followed, and what dead processes leave."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gossamer.errors import GossamerError
from gossamer.folders import check_destination, new_folder, remove_folder, write_file
from gossamer.part_files import Part, new_file

WRITE_AND_WAIT = """
import sys, time
from pathlib import Path
from gossamer.folders import new_folder
with new_folder(Path(sys.argv[1])) as part:
    (part / "half").write_text("written")
    Path(sys.argv[2]).write_text(part.name)
    time.sleep(60)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_a_killed_process_left_goes_with_the_next_write_to_its_place(tmp_path: Path) -> None:
    place, other, started = tmp_path / "a" / "model", tmp_path / "a" / "other", tmp_path / "started"
    processes = []
    for target in (place, other):
        started.unlink(missing_ok=True)
        processes.append(subprocess.Popen([sys.executable, "-c", WRITE_AND_WAIT, str(target), str(started)]))
        while not started.exists():
            assert processes[-1].poll() is None
            time.sleep(0.01)
    dead, alive = processes
    left = [name for name in names(place.parent) if name.startswith(".")]
    with new_folder(place) as part:
        (part / "mine").write_text("x")
    assert names(place.parent) == sorted([*left, "model"]), "while their writers live, parts stay"
    dead.kill()
    dead.wait()
    remove_folder(place)
    with new_folder(place) as part:
        (part / "mine").write_text("x")
    rest = names(place.parent)
    assert rest[1:] == ["model"]
    assert rest[0].startswith(".other."), "another place's part is none of this one's"
    alive.kill()
    alive.wait()


def test_a_model_put_aside_by_a_killed_process_comes_back(tmp_path: Path) -> None:
    place = tmp_path / "model"
    part = Part(place, folder=True)
    part.old.mkdir()  # killed between the two renames of a replacement
    (part.old / "config.json").write_text("{}")
    os.close(part.handle)
    with pytest.raises(GossamerError, match="exists already"), new_folder(place):
        pass
    assert names(place) == ["config.json"]
    assert names(tmp_path) == ["model"]


def test_names_cannot_be_guessed_and_links_are_not_taken(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "precious").write_text("x")
    place = tmp_path / "file"
    planted = [tmp_path / f".file.{os.getpid()}.part", tmp_path / f".file.{'0' * 16}.part"]
    for link in planted:
        link.symlink_to(victim)
    with new_file(place) as first, new_file(place) as second:
        assert first.path != second.path
        assert str(os.getpid()) not in first.path.name.split(".")[-2:]
    write_file(place, "text")
    assert place.read_text() == "text"
    assert names(victim) == ["precious"]
    assert all(link.is_symlink() for link in planted)
    assert (place.stat().st_mode & 0o777) == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("letter", ["n", "ü", "\U0001f600"])
def test_a_name_of_255_bytes_is_a_name(tmp_path: Path, letter: str) -> None:
    place = tmp_path / (letter * (255 // len(letter.encode())))
    with new_folder(place) as part:
        (part / "x").write_text("x")
    write_file(place / place.name, "y")
    assert names(place) == sorted(["x", place.name])


@pytest.mark.parametrize("name", ["n" * 256, "ü" * 200, "nul\0"])
def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(GossamerError, match=r"cannot write: (File name too long|.*null)"):
        check_destination(tmp_path / name)


def test_files_of_a_new_folder_wait_for_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.part_files.time.sleep", lambda _: pytest.fail("waits for its own lock"))
    with new_folder(tmp_path / "model") as part:
        write_file(part / "config.json", "{}")
    assert names(tmp_path / "model") == ["config.json"]
