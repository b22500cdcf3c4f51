"""Whoever waits for a writer of an SQLite file outside of the line tries at the right times."""

from __future__ import annotations

from runqueue.engines.sqlite_turns import SLOW_WRITER, _pause


def test_the_end_of_a_quick_writer_is_noticed_at_once() -> None:
    """Most write for less than a millisecond."""
    assert max(_pause(SLOW_WRITER / 2) for _ in range(50)) < 0.0005


def test_a_slow_writer_is_left_alone() -> None:
    """It needs the processor that trying takes."""
    assert min(_pause(SLOW_WRITER * 1.1) for _ in range(50)) >= 0.001


def test_no_two_try_in_step() -> None:
    """They would meet again and again."""
    assert len({_pause(0.0) for _ in range(50)}) == 50
