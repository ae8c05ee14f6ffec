"""Which package client downloads what, over programs that only write down how they were called."""

from __future__ import annotations

import os
import re
import socket
import sys
from pathlib import Path

import pytest

from gossamer.errors import GossamerError
from gossamer.zoo import clients

NO_PIP = 'echo "$0: No module named pip" >&2; exit 1'


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment without pip, and a PATH of one empty folder."""
    for name in ("bin", "dst"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(sys, "executable", str(program(tmp_path / "python", NO_PIP)))
    monkeypatch.setattr(clients, "_bundled_pip", lambda: None)
    return tmp_path


def program(path: Path, body: str = "exit 0") -> Path:
    """A program that notes its name, arguments and folder in `calls` beside the test's folders."""
    log = path.parent if path.name == "python" else path.parent.parent
    path.write_text(f'#!/bin/sh\necho "{path.name} $* in $PWD" >> {log}/calls\n{body}\n')
    path.chmod(0o755)
    return path


def calls(here: Path) -> list[str]:
    return (here / "calls").read_text().splitlines()


def test_the_environments_own_pip_comes_first(here: Path) -> None:
    program(here / "python")
    program(here / "bin" / "uv")
    clients.download("data==1.0", here / "dst")
    (call,) = calls(here)
    assert call.startswith("python -I -m pip download ")
    assert "--only-binary :all: --dest" in call
    assert call.endswith(f"data==1.0 in {here / 'dst'}")
    clients.download("data==1.0", here / "dst", source=True)
    assert "--no-binary data " in calls(here)[1]


def test_without_pip_uv_unpacks_a_wheel(here: Path) -> None:
    program(here / "bin" / "uv")
    program(here / "bin" / "pip")
    clients.download("data==1.0", here / "dst")
    _, call = calls(here)
    assert call.startswith("uv pip install ")
    assert f"--target {here / 'dst' / clients.UNPACKED} data==1.0 in" in call
    clients.download("data==1.0", here / "dst", source=True)
    assert calls(here)[-1].startswith("pip download "), "uv has no source distributions to give"


def test_without_both_pythons_own_copy_of_pip_runs(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = here / "pip-1.0-py3-none-any.whl"
    monkeypatch.setattr(clients, "_bundled_pip", lambda: wheel)
    program(here / "python", f'case "$2" in -m) {NO_PIP};; esac')
    clients.download("data==1.0", here / "dst")
    assert calls(here)[-1].startswith(f"python -I {wheel}/pip download --quiet")


def test_another_pip_on_the_path_is_the_last(here: Path) -> None:
    program(here / "bin" / "pip3")
    clients.download("data==1.0", here / "dst")
    assert calls(here)[-1].startswith("pip3 download ")


def test_relative_entries_of_the_path_find_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(here / "bin" / "pip")
    monkeypatch.chdir(here / "bin")
    monkeypatch.setenv("PATH", os.pathsep.join(["", ".", "bin"]))
    with pytest.raises(GossamerError, match=r"there is no pip and no uv to fetch it with.*install pip into"):
        clients.download("data==1.0", here / "dst")
    with pytest.raises(GossamerError, match="there is no pip to fetch it with"):
        clients.download("data==1.0", here / "dst", source=True)


@pytest.mark.parametrize("name", ["uv", "pip"])
def test_what_a_client_says_last_is_told(here: Path, name: str) -> None:
    program(here / "bin" / name, 'echo "no such host" >&2; exit 3')
    with pytest.raises(GossamerError, match=f"data==1.0: cannot be fetched with {name}, .* needs that: no such host$"):
        clients.download("data==1.0", here / "dst")


@pytest.mark.parametrize("own", [None, "7"])
def test_retries_are_few_where_the_user_sets_none(here: Path, monkeypatch: pytest.MonkeyPatch, own: str | None) -> None:
    for name in ("PIP_RETRIES", "UV_HTTP_RETRIES"):
        monkeypatch.delenv(name, raising=False)
        if own is not None:
            monkeypatch.setenv(name, own)
    program(here / "bin" / "uv", f'echo "$PIP_RETRIES $UV_HTTP_RETRIES" > {here}/retries')
    clients.download("data==1.0", here / "dst")
    assert (here / "retries").read_text().split() == (["2", "1"] if own is None else [own, own])


def test_an_index_that_is_not_reached_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_RETRIES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and nobody listens
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{closed.getsockname()[1]}/simple")
        with pytest.raises(GossamerError) as caught:
            clients.download("data==1.0", tmp_path)
    said = str(caught.value)
    assert re.search(r"needs that: no connection to the package index \([^()]*refused\); ERROR: No matching", said)
    assert "\n" not in said


def test_pythons_own_copy_of_pip_is_a_pip() -> None:
    wheel = clients._bundled_pip()
    if wheel is None:
        pytest.skip("this Python keeps no pip")
    import subprocess

    done = subprocess.run([sys.executable, "-I", f"{wheel}/pip", "--version"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"pip ")
