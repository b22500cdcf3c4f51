"""Interrupting a wait, at any moment; see also tests/process/test_waiting.py for real signals."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest

from runqueue import Queue


@pytest.fixture
def interrupt_in(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Interrupts a verb of the queue, before it has done anything or right after it."""

    def plant(verb: str, moment: str, act: Callable[[], object] = lambda: None) -> None:
        real = getattr(Queue, verb)

        def interrupted(queue: Queue, *args: Any, **options: Any) -> Any:
            if moment == "after":
                real(queue, *args, **options)
            act()
            raise KeyboardInterrupt

        monkeypatch.setattr(Queue, verb, interrupted)

    return plant


@pytest.mark.parametrize(("moment", "left"), [("before", []), ("after", ["stopped"])])
def test_an_enqueue_that_is_interrupted_leaves_nothing_at_work(
    rq: Callable[..., Any],
    queue: Queue,
    interrupt_in: Callable[..., None],
    moment: str,
    left: list[str],
) -> None:
    """Also when the run was added and its id not printed yet."""
    interrupt_in("enqueue", moment)
    ended = rq("enqueue", "x", "--wait", "--stop-on-interrupt")
    assert ended.code == 130
    assert [str(run.status) for run in queue.find()] == left


@pytest.mark.parametrize("stops", [False, True])
def test_a_wait_that_is_interrupted_stops_the_run_only_if_that_is_wanted(
    rq: Callable[..., Any], queue: Queue, interrupt_in: Callable[..., None], stops: bool
) -> None:
    """For a run that somebody else has added."""
    run_id = queue.enqueue("x").run_id
    interrupt_in("wait", "before")
    ended = rq("wait", run_id, *(["--stop-on-interrupt"] if stops else []))
    assert ended.code == 130
    assert queue.get(run_id).status == ("stopped" if stops else "pending")


@pytest.mark.parametrize("end", ["stop", "delete"])
def test_a_run_that_ended_in_the_same_instant_is_left_as_it_is(
    rq: Callable[..., Any], queue: Queue, interrupt_in: Callable[..., None], end: str
) -> None:
    """There is nothing to stop any more, and nothing to complain of."""
    run = queue.enqueue("x")
    act = {
        "stop": lambda: queue.cancel(run.run_id, reason="by hand"),
        "delete": lambda: queue.delete_session(run.session_id),
    }
    interrupt_in("wait", "before", act[end])
    ended = rq("wait", run.run_id, "--stop-on-interrupt")
    assert ended.code == 130
    assert "Error" not in ended.err
    if end == "stop":
        assert queue.timeline(run.run_id)[-1].detail == "by hand"


def test_stopping_without_a_wait_is_a_matter_of_usage(rq: Callable[..., Any], queue: Queue) -> None:
    """Nothing is added."""
    ended = rq("enqueue", "x", "--stop-on-interrupt")
    assert ended.code == 2
    assert "--wait" in ended.err
    assert queue.find() == []


def test_a_run_keeps_the_id_that_was_chosen_for_it(
    rq: Callable[..., Any], queue: Queue, interrupt_in: Callable[..., None]
) -> None:
    """The one that is made up is for runs without one."""
    interrupt_in("wait", "before")
    given = "run_0123456789ab"
    rq("enqueue", "x", "--wait", "--stop-on-interrupt", "--run-id", given)
    assert queue.get(given).status == "stopped"


@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN], ids=["default", "nohup"])
def test_the_signals_of_the_process_are_as_before_afterwards(
    rq: Callable[..., Any],
    queue: Queue,
    interrupt_in: Callable[..., None],
    handler: signal.Handlers,
) -> None:
    """They are interruptions only while the run is waited for, and not if they are ignored."""
    seen: list[Any] = []

    def look() -> None:
        seen.extend(signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP))

    before = signal.getsignal(signal.SIGTERM)
    hangup = signal.signal(signal.SIGHUP, handler)
    try:
        interrupt_in("wait", "before", look)
        rq("enqueue", "x", "--wait", "--stop-on-interrupt")
        assert signal.getsignal(signal.SIGHUP) is handler
    finally:
        signal.signal(signal.SIGHUP, hangup)
    assert signal.getsignal(signal.SIGTERM) is before
    assert seen[0] not in (before, signal.SIG_IGN)
    assert (seen[1] is signal.SIG_IGN) == (handler is signal.SIG_IGN)
