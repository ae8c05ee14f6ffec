"""Running the command line inside a test."""

from __future__ import annotations

import pytest

from gossamer.cli import main


def usage_error(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Runs a command line that must be refused; returns the one line that says why."""
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err
