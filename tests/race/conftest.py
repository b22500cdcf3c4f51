"""How many orders of two callers are tried."""

from __future__ import annotations

import pytest


@pytest.fixture
def most_orders(request: pytest.FixtureRequest, is_long: bool) -> int:
    """As many as are asked for; else most pairs' all in the long form, or a sample."""
    return int(request.config.getoption("--orders") or (120 if is_long else 8))
