"""The harness's own command line, with the model `gossamer` in its registry."""

from __future__ import annotations

import sys

from ..errors import GossamerError


def main() -> int:
    """Registers the model and runs the harness; returns the exit code."""
    try:
        from lm_eval.__main__ import cli_evaluate

        from . import harness  # noqa: F401 - which registers it
    except ImportError as error:
        print(f"gossamer: error: evaluation needs {error.name}: pip install 'gossamer[eval]'", file=sys.stderr)
        return 1
    try:
        cli_evaluate()
    except GossamerError as error:
        print(f"gossamer: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
