"""All verbs in any order, on both databases, against a model in plain dicts."""

from __future__ import annotations

import functools
import random

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

import runqueue
from runqueue import Runner
from tests.helpers import MovableClock
from tests.model.machine import Machine

SHORT = {"sqlite": 80, "postgresql": 30}
"""How many sequences of verbs are tried on each kind of database, of up to STEPS each."""
TIMES = 4
"""How many times as many are tried in the long form."""
STEPS = 50


@pytest.fixture
def dead(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The incarnations of processes that have ended.

    A runner's threads do nothing here: its heartbeat is one of the verbs. A claim looks at all
    demands that wait, where otherwise it may have looked a second ago.
    """
    ended: set[str] = set()
    for thread in ("_beat_on", "_watch_lease", "_watch_stops"):
        monkeypatch.setattr(Runner, thread, lambda runner: None)
    monkeypatch.setattr("runqueue.incarnation.is_dead", ended.__contains__)
    monkeypatch.setattr("runqueue.claims.LOOK_AROUND", 0.0)
    return ended


@pytest.fixture
def sequences(request: pytest.FixtureRequest, is_long: bool) -> int:
    """The seed: one for all in the short form, in the long one another each time."""
    given: int | None = request.config.getoption("--seed")
    if given is None:
        given = random.randrange(2**32) if is_long else 0
    print(f"these sequences are tried again with --seed {given}")  # shown when it fails
    return given


def test_any_order_of_verbs_does_what_the_model_does(
    database_url: str, clock: MovableClock, dead: set[str], is_long: bool, sequences: int
) -> None:
    """Rows, history, refusals, claims and counts are those of the model after each verb."""
    kind = database_url.partition(":")[0]
    connect = functools.partial(runqueue.connect, database_url, clock=clock)
    run_state_machine_as_test(
        seed(sequences)(functools.partial(Machine, connect, clock, dead)),
        settings=settings(
            max_examples=SHORT[kind] * (TIMES if is_long else 1),
            stateful_step_count=STEPS,
            database=None,
            deadline=None,
            print_blob=False,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        ),
    )
