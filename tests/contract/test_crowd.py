"""Of many runners that one commit wakes, the late ones keep out of the way of the first."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from runqueue import Queue, Runner, claims
from tests.helpers import take


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The longest pauses that were allowed before a look; none is really made."""
    found: list[float] = []

    def uniform(low: float, high: float) -> float:
        found.append(high)
        return low

    monkeypatch.setattr(claims, "random", SimpleNamespace(uniform=uniform))
    return found


@pytest.fixture
def late(open_runner: Callable[..., Runner]) -> Runner:
    return open_runner("late")


@pytest.fixture
def too_late(
    queue: Queue,
    late: Runner,
    open_runner: Callable[..., Runner],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[], None]:
    """Has `late` see a run that another one claims before `late` can."""
    early = open_runner("early")
    look = claims.Matcher.look

    def meet() -> None:
        queue.enqueue("x")

        def looking(matcher: claims.Matcher, *args: object) -> bool:
            found = look(matcher, *args)  # type: ignore[arg-type]
            if matcher is late._matcher and found:
                take(early)
            return found

        with monkeypatch.context() as patch:
            patch.setattr(claims.Matcher, "look", looking)
            assert late.claim(timeout=0) is None

    return meet


def test_who_was_too_late_looks_a_little_later_than_the_others(
    too_late: Callable[[], None], pauses: list[float]
) -> None:
    """The later, the more often; and not at all before it has met others."""
    shortest, longest = claims.CROWD
    too_late()
    assert pauses == []
    for _ in range(4):
        too_late()
    assert pauses == [shortest, 2 * shortest, longest, longest]


def test_who_has_claimed_a_run_is_among_the_first_again(
    queue: Queue, pauses: list[float], too_late: Callable[[], None], late: Runner
) -> None:
    """It looks at once the next time that it is idle."""
    too_late()
    queue.enqueue("for it alone")
    take(late)
    assert len(pauses) == 1
    assert late.claim(timeout=0) is None  # a busy runner's claim in vain
    assert late.claim(timeout=0) is None
    assert len(pauses) == 1
