"""What a daemon tells of its queue: how much there is to do, and what it decided of which run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from runqueue import Queue, Runner, telling
from tests.helpers import MovableClock, start, take


def test_what_is_at_hand_is_told_in_words(queue: Queue, open_runner: Callable[..., Runner]) -> None:
    """Pending and running always, the others where there are any."""
    assert telling.at_hand(queue.store) == "0 pending, 0 running"
    for _ in range(5):
        queue.enqueue("x")
    runner = open_runner()
    start(runner).complete()
    start(runner)
    take(runner)
    assert telling.at_hand(queue.store) == "2 pending, 1 claimed, 1 running"


def test_beyond_many_nobody_counts(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """It must cost the same however many there are."""
    monkeypatch.setattr(telling, "MANY", 3)
    for _ in range(5):
        queue.enqueue("x")
    assert telling.at_hand(queue.store) == "3+ pending, 0 running"


def test_decisions_are_those_of_a_daemon_since_then(
    queue: Queue, clock: MovableClock, open_runner: Callable[..., Runner]
) -> None:
    """With session and reason; not what an owner reports, nor what was told before."""
    runner = open_runner()
    queue.enqueue("x")
    start(runner).fail("by its owner")
    assert telling.decisions(queue.store, 0) == []
    run = queue.enqueue("x", timeout=1.0)
    clock.advance(2)
    queue.sweep()
    (decided,) = telling.decisions(queue.store, 0)
    assert (decided.run_id, decided.session_id) == (run.run_id, run.session_id)
    assert decided.status == "failed"
    assert str(decided.detail).startswith("expired: ")
    assert telling.decisions(queue.store, telling.last_event(queue.store)) == []


def test_of_a_flood_of_decisions_the_first_are_told(
    queue: Queue, clock: MovableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log is no place for ten thousand lines a second."""
    monkeypatch.setattr(telling, "TOLD", 3)
    queue.enqueue_many([{"prompt": "x", "timeout": 1.0}] * 5)
    clock.advance(2)
    queue.sweep()
    assert len(telling.decisions(queue.store, 0)) == 3
