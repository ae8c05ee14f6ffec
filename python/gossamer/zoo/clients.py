"""Downloading a distribution with whatever package client there is: pip of this environment or another, or uv.

Each is run as the user would run it, so that it takes the index that the user has set up.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from ..errors import GossamerError

UNPACKED = "unpacked"
"""Where uv, which downloads no archives, leaves the content of a wheel."""

# Without a network the usual five retries of pip are ten seconds of silence.
_RETRIES = {"PIP_RETRIES": "2", "UV_HTTP_RETRIES": "1"}
# As pip warns of a retry: what broke, behind the object that it happened to.
_BROKEN = re.compile(r"connection broken by '(?:.*>: )?(.*?)[')\"]*: /")


def download(requirement: str, folder: Path, *, source: bool = False) -> None:
    """Downloads a distribution into a folder, as an archive, or as the folder `UNPACKED` with what a wheel holds.

    Args:
        requirement: name==version.
        folder: An empty folder.
        source: Whether the source distribution is wanted, and not a wheel.

    Raises:
        GossamerError: there is no client, or the one that there is cannot fetch it.
    """
    environment = _RETRIES | os.environ  # what the user has set there holds
    for client in _clients(source=source):
        command = [*client, *_arguments(client, requirement, folder, source=source)]
        # In a folder of ours: Python, pip and uv look at files of the one that they are run in.
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)
        if done.returncode == 0:
            return
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        if lines and lines[-1].endswith("No module named pip"):
            continue
        errors = [line for line in lines if line.startswith("ERROR")] or lines or [f"{client[-1]} says nothing"]
        broken = [found[1] for line in lines if (found := _BROKEN.search(line))]
        # Where pip reached no index it ends with no more than that there is no such distribution.
        reason = f"no connection to the package index ({broken[-1]}); " if broken else ""
        name = "uv" if _is_uv(client) else "pip"
        raise GossamerError(
            f"{requirement}: cannot be fetched with {name}, and the first use of a built-in model needs that: "
            f"{reason}{errors[-1]}"
        )
    raise GossamerError(
        f"{requirement}: there is no pip{'' if source else ' and no uv'} to fetch it with, and the first use of a "
        f"built-in model needs that: install pip into {sys.prefix}"
    )


def _clients(*, source: bool) -> Iterator[list[str]]:
    """The beginnings of command lines to try in turn; the first one always, and it may turn out to be no pip."""
    yield [sys.executable, "-I", "-m", "pip"]
    uv = _on_path("uv")
    if uv and not source:
        yield [uv, "pip"]
    bundled = _bundled_pip()
    if bundled:
        yield [sys.executable, "-I", f"{bundled}/pip"]
    for name in ("pip", "pip3"):
        pip = _on_path(name)
        if pip:
            yield [pip]


def _arguments(client: list[str], requirement: str, folder: Path, *, source: bool) -> list[str]:
    if _is_uv(client):
        target = str(folder.absolute() / UNPACKED)
        wheels = ["--only-binary", ":all:", "--link-mode", "copy"]
        return ["install", "--quiet", "--python", sys.executable, "--no-deps", *wheels, "--target", target, requirement]
    kind = ["--no-binary", requirement.partition("==")[0]] if source else ["--only-binary", ":all:"]
    quiet = ["--quiet", "--disable-pip-version-check", "--no-input"]
    return ["download", *quiet, "--no-deps", *kind, "--dest", str(folder.absolute()), requirement]


def _is_uv(client: list[str]) -> bool:
    return Path(client[0]).stem == "uv"


def _on_path(name: str) -> str | None:
    """The program of that name; relative entries of PATH do not count, which would find one in any folder."""
    absolute = [entry for entry in os.get_exec_path() if Path(entry).is_absolute()]
    return shutil.which(name, path=os.pathsep.join(absolute)) if absolute else None


def _bundled_pip() -> Path | None:
    """The wheel of pip that Python keeps for `ensurepip`; it runs as it lies. Some systems leave it out."""
    places = [Path(sysconfig.get_path("stdlib")) / "ensurepip" / "_bundled"]
    if own := sysconfig.get_config_var("WHEEL_PKG_DIR"):
        places.append(Path(own))
    return max((wheel for place in places for wheel in place.glob("pip-*.whl")), default=None)
