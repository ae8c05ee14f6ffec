"""What the tests of the kernels share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(params=["forward", "backward", "late"])
def order(request: pytest.FixtureRequest) -> Iterator[str]:
    """Lanes, warps and blocks both ways round, and copies that land when they have to: a race changes the result."""
    from gossamer import _simt

    _simt.schedule(backwards=request.param == "backward", late_copies=request.param == "late")
    yield request.param
    _simt.schedule(backwards=False, late_copies=False)
