"""Whoever waits for the one writer of an SQLite file tries at the right times."""

from __future__ import annotations

import itertools
import random

import pytest

from runqueue.engines.sqlite_turns import QUICK_TRIES, SLOW_WRITER, _pause


@pytest.fixture(autouse=True)
def _dice() -> None:
    random.seed(7)


def usual(tries: int, waited: float) -> float:
    """The pause in the middle of many."""
    return sorted(_pause(tries, waited) for _ in range(99))[49]


def test_who_has_waited_longer_tries_more_often() -> None:
    """Or whoever came later would be as likely to be next."""
    pauses = [usual(9, waited) for waited in (0.004, 0.006, 0.008, 0.012, 0.019)]
    assert all(after < 0.8 * before for before, after in itertools.pairwise(pauses))
    assert usual(9, 0.001) == pytest.approx(0.0015, rel=0.2)


def test_the_end_of_a_lone_writer_is_noticed_at_once() -> None:
    """Most wait for one only."""
    assert usual(QUICK_TRIES, 0.0005) < 0.0003


def test_a_slow_writer_is_left_alone() -> None:
    """It needs the processor that trying takes."""
    assert usual(500, SLOW_WRITER / 2) < 0.0002
    assert usual(500, SLOW_WRITER * 1.1) >= 0.001


def test_no_two_try_in_step() -> None:
    """They would meet again and again."""
    assert len({_pause(9, 0.006) for _ in range(50)}) == 50
