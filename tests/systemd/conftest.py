"""Fixtures of the tests under a real systemd."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

import pytest

from tests.systemd.box import DAEMON, Box
from tests.systemd.machine import Machine, why_not

REQUIRED: Final = "TEST_SYSTEMD_REQUIRED"
"""Set where it is a failure that there can be no systemd, as in the gate."""


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """The one machine of all tests."""
    if reason := why_not():
        if REQUIRED in os.environ:
            pytest.fail(f"the tests under systemd are required here, but {reason}")
        pytest.skip(reason)
    box = Box(tmp_path_factory.mktemp("systemd"))
    yield box
    box.forget_looker()
    box.machine.close()


@pytest.fixture
def box(installed: Box, request: pytest.FixtureRequest) -> Iterator[Box]:
    """A machine on which runqueue has just been installed; what it logged is shown on failure."""
    installed.reset()
    yield installed
    report = getattr(request.node, "failed_report", None)
    if report is not None and installed.machine.pid:
        entries = installed.machine.journal("--unit=runqueue*", "--unit=tests-*")
        print("\n".join(f"{one['SYSLOG_IDENTIFIER']}: {one['MESSAGE']}" for one in entries))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Let the fixture know that the test failed."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.when == "call" and report.failed:
        item.failed_report = report  # type: ignore[attr-defined]


@pytest.fixture
def machine(box: Box) -> Machine:
    return box.machine


@pytest.fixture
def daemon(box: Box) -> str:
    """The daemon's unit, started."""
    box.machine.systemctl("start", DAEMON)
    return DAEMON
