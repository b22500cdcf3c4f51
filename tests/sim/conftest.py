"""With `--seed N` only the simulation of that seed is executed, of all that is here."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--seed") is None:
        return
    others = [
        item for item in items if HERE in item.path.parents and "seed" not in item.fixturenames
    ]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int | None:
    """The one seed that was asked for."""
    return request.config.getoption("--seed")
