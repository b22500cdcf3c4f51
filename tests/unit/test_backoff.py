"""Waiting for a database that is away, with the patience that was given."""

from __future__ import annotations

import threading

import pytest

from runqueue.backoff import patiently
from runqueue.errors import ConfigurationError, StorageDamaged, StorageError, StorageLost
from tests.helpers import LONG


class Act:
    """What fails so often, and then returns."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.failures = failures
        self.error = error
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return "done"


@pytest.fixture
def told() -> list[StorageError]:
    return []


def test_what_comes_back_is_waited_for(told: list[StorageError]) -> None:
    """Each failure is told, and the result is that of the first success."""
    act = Act(2, StorageLost("away"))
    assert patiently(act, LONG, threading.Event(), told.append) == "done"
    assert (act.calls, len(told)) == (3, 2)


def test_without_patience_one_failure_is_enough(told: list[StorageError]) -> None:
    act = Act(9, StorageLost("away"))
    with pytest.raises(StorageLost):
        patiently(act, 0.0, threading.Event(), told.append)
    assert (act.calls, told) == (1, [])


@pytest.mark.parametrize("error", [StorageDamaged("broken"), ConfigurationError("wrong")])
def test_what_no_waiting_mends_is_not_waited_for(
    told: list[StorageError], error: Exception
) -> None:
    act = Act(9, error)
    with pytest.raises(type(error)):
        patiently(act, LONG, threading.Event(), told.append)
    assert (act.calls, told) == (1, [])


def test_whoever_is_told_to_end_waits_no_longer() -> None:
    """And nothing is raised: it is no failure to be stopped."""
    ended = threading.Event()
    act = Act(9, StorageLost("away"))
    assert patiently(act, LONG, ended, lambda _: ended.set()) is None
    assert act.calls == 1
