"""Kill -9 between the end of a child and what follows it: neither lost nor doubled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone

import pytest

import runqueue
from runqueue import Queue, parse_callback
from tests.helpers import execute_sql, in_another_process

pytestmark = pytest.mark.chaos

PROCESSES = """
import signal, threading

parent_id, deed, first, stride = args

def arm(queue, point):
    # Dies before the call of this number of those that this thread makes, or after a commit.
    mine, made = threading.get_ident(), 0

    def step():
        nonlocal made
        if threading.get_ident() == mine:
            if made == point:
                os.kill(os.getpid(), signal.SIGKILL)
            made += 1

    def after_a_step(execute):
        def executing(*arguments):
            step()
            return execute(*arguments)

        return executing

    def commit(*arguments, **options):
        step()
        answer = committing(*arguments, **options)
        step()  # it was made, and nobody heard of it
        return answer

    database, engine = queue.database, queue.store.engine
    engine.rows, engine.change = after_a_step(engine.rows), after_a_step(engine.change)
    committing, database.commit = database.commit, commit

def live(point):
    queue = runqueue.connect(url)
    terms = {"retries": 2} if deed == "retry" else {}
    run = queue.enqueue(
        "child", parent_session_id=parent_id, execution_mode="async_callback", priority=9, **terms
    )
    if deed == "by hand":
        with queue.database.atomic():
            queue.database.execute_sql("UPDATE runs SET status = 'failed' WHERE priority = 9")
        arm(queue, point)
        queue.sweep()
    elif deed == "expire":
        now = queue.now()
        with queue.database.atomic():
            queue.database.execute_sql(
                f"UPDATE runs SET timeout_at = '{now}' WHERE status = 'pending' AND priority = 9"
            )
        arm(queue, point)
        queue.sweep()
    else:
        runner = queue.runner(f"doomed-{point}")
        runner.open()
        claim = runner.claim(timeout=0)
        claim.start()
        arm(queue, point)
        if deed == "complete":
            claim.complete("the result")
        else:
            claim.fail("busy", retry=True)
    os._exit(0)

queue.close()
for count, point in enumerate(range(int(first), 200, int(stride)), 1):
    pid = os.fork()
    if not pid:
        try:
            live(point)
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    if not os.WIFSIGNALED(status):
        print(count, os.WEXITSTATUS(status))
        break
"""


@pytest.fixture
def real_queue(database_url: str) -> Iterator[Queue]:
    """With the system's clock, as the processes have."""
    with runqueue.connect(database_url) as queue:
        yield queue


DEEDS = ["complete", "retry", "by hand", "expire"]


@pytest.mark.parametrize("deed", DEEDS)
def test_a_kill_at_any_call_neither_loses_nor_doubles_what_follows(
    real_queue: Queue, database_url: str, deed: str, is_long: bool
) -> None:
    """A process dies before each of its calls to the database, and after its commits.

    In the short form at every third of these places, at others with every deed.
    """
    queue = real_queue
    parent = queue.enqueue("parent", max_depth=1)
    execute_sql(queue, 'UPDATE sessions SET tree_limits = \'{"children":1000,"runs":5000}\'')
    places = ("0", "1") if is_long else (str(DEEDS.index(deed) % 3), "3")
    out = in_another_process(database_url, PROCESSES, parent.session_id, deed, *places)
    processes, code = map(int, out.split())
    assert code == 0
    assert processes * int(places[1]) > 8, "there were calls to die at"
    # The dead runners' leases are over, and what is retried is executed by one that lives.
    later = datetime.now(timezone.utc) + timedelta(minutes=10)
    with queue.database.atomic():
        execute_sql(queue, "UPDATE runners SET lease_until = '2001-01-01T00:00:00.000000Z'")
    queue.sweep(later)
    with queue.runner("survivor") as runner:
        while claim := runner.claim(timeout=0):
            claim.start()
            claim.complete("by the survivor")
    queue.sweep(later)
    children = [run for run in queue.find() if run.priority == 9 and run.tells is None]
    chains = {tuple(run.run_id for run in queue.attempts(one.run_id)) for one in children}
    told = Counter(
        end.run_id for run in queue.find() if run.tells for end in parse_callback(run.prompt) or []
    )
    assert len(chains) == processes
    for run in children:
        assert run.is_terminal
    for chain in chains:
        assert [told.pop(run_id, 0) for run_id in chain] == [0] * (len(chain) - 1) + [1], chain
    assert not told
    assert sum(len(chain) for chain in chains) == len(children)
    if deed == "retry" and is_long:
        assert max(map(len, chains)) > 1
