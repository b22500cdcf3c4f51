"""The people of the world: callers, operators, and somebody with a shell.

Each is a program, a generator that yields the seconds until it wants to go on.
"""

from __future__ import annotations

import sqlite3
from functools import partial
from typing import Any, Final

from runqueue import retention
from tests.sim.asking import insist
from tests.sim.observer import ENDED, OWNED, Row
from tests.sim.process import Process, Steps
from tests.sim.world import FLEET, World

DEMANDS: Final = (None, None, None, {"tags": ["gpu"]}, {"hostname": "beta"}, {"tags": ["nobody"]})
SENSIBLE: Final = {
    "pending": ("stop", "cancel"),
    "claimed": ("release", "release", "release", "stop"),
    "running": ("stop",),
    "stopping": ("stop",),
    **dict.fromkeys(ENDED, ("retry",)),
}


def caller(process: Process) -> Steps:
    """Enqueues."""
    rng = process.world.rng
    while not process.world.is_calm:
        yield from rng.choice((enqueue, enqueue, enqueue, enqueue_many))(process)
        yield rng.uniform(0.1, 3.0)
    process.end()


def operator(process: Process) -> Steps:
    """Does to runs, sessions and runners whatever else anybody may do."""
    rng = process.world.rng
    while not process.world.is_calm:
        yield from rng.choice((change, change, change, change, change, delete, look_after))(process)
        yield rng.uniform(0.1, 3.0)
    process.end()


def enqueue(process: Process) -> Steps:
    world, rng = process.world, process.world.rng
    row = _one(process) if rng.random() < 0.5 else None
    session_id = row.session_id if row else None
    request: dict[str, Any] = {
        "prompt": f"prompt {rng.randrange(1000)}",
        "session_id": session_id,
        "demands": rng.choice(DEMANDS),
        "timeout": rng.choice((None, 3.0, 20.0, 45.0)),
        "priority": rng.choice((0, 0, 0, 5)),
        "run_id": f"run_{rng.getrandbits(48):012x}",
    }
    if request["demands"] and request["timeout"] is None:
        request["timeout"] = 45.0
    what = f"enqueue {request['run_id']} in {session_id}, demands {request['demands']}"
    run = yield from insist(process, partial(process.queue.enqueue, **request), what)
    if run is not None:
        acknowledge(world, [run])


def enqueue_many(process: Process) -> Steps:
    rng = process.world.rng
    requests = [{"prompt": "many", "priority": rng.choice((0, 5))} for _ in range(3)]
    if row := _one(process):
        requests[0]["session_id"] = requests[1]["session_id"] = row.session_id
    verb = partial(process.queue.enqueue_many, requests)
    acknowledge(process.world, (yield from insist(process, verb, "enqueue many")) or [])


def acknowledge(world: World, runs: list[Any]) -> None:
    """Hold the database to the answer that these runs are there."""
    for run in runs:
        if run.run_id not in world.observer.runs and run.session_id not in world.doomed:
            world.found.append(f"{run.run_id} was acknowledged and is not there")


def change(process: Process) -> Steps:
    """Stop, cancel, release or retry some run, usually one that can be."""
    rng, row = process.world.rng, _one(process)
    if row is None:
        return
    every = ("stop", "cancel", "release", "retry")
    name = rng.choice(SENSIBLE[row.status] if rng.random() < 0.8 else every)
    verb = partial(getattr(process.queue, name), row.run_id)
    done = yield from insist(process, verb, f"{name} {row.run_id}")
    if done is not None and name == "retry":
        acknowledge(process.world, [done])


def delete(process: Process) -> Steps:
    """Delete a session; what was in it may be gone from now on."""
    rng, world = process.world.rng, process.world
    row = _one(process)
    if row is not None and rng.random() < 0.4:
        world.doomed.add(row.session_id)
        verb = partial(process.queue.delete_session, row.session_id, force=rng.random() < 0.5)
        yield from insist(process, verb, f"delete {row.session_id}")


def look_after(process: Process) -> Steps:
    """What operators do: sweep by hand, drain a runner, remove one even though it lives."""
    rng, queue, store = process.world.rng, process.queue, process.queue.store
    runner_id = rng.choice(list(FLEET))
    is_forced = rng.random() < 0.3

    def drain() -> None:
        retention.drain_runner(store, runner_id)

    def remove() -> None:
        process.removes = runner_id if is_forced else None
        try:
            retention.remove_runner(store, runner_id, now=queue.now(), force=is_forced)
        finally:
            process.removes = None

    verb = rng.choice((queue.sweep, drain, remove))
    yield from insist(process, verb, f"{verb.__name__} ({runner_id})")


def _one(process: Process) -> Row | None:
    """Some run of late, more often one that has not ended."""
    rng, runs = process.world.rng, process.world.observer.runs.values()
    late = sorted(runs, key=lambda row: (row.created_at, row.run_id))[-12:]
    if rng.random() < 0.7:
        late = [row for row in late if row.status not in ENDED] or late
    return rng.choice(late) if late else None


def by_hand(process: Process) -> Steps:
    """Somebody with a shell: ends a run, asks for its stop, adds a minimal row."""
    world, rng = process.world, process.world.rng
    connection = sqlite3.connect(world.path, isolation_level=None)
    try:
        while not world.is_calm:
            yield rng.uniform(2.0, 15.0)
            row = _one(process)
            if row is None or row.status in ENDED:
                continue
            now, run_id = world.now_text(), row.run_id
            if rng.random() < 0.4:
                values = (f"run_{rng.getrandbits(48):012x}", row.session_id, now[:19] + "Z")
                connection.execute(
                    "INSERT INTO runs (run_id, session_id, type, prompt, status, created_at) "
                    "VALUES (?, ?, 'RESUME_SESSION', 'by hand', 'pending', ?)",
                    values,
                )
            elif row.status in OWNED and rng.random() < 0.5:
                sql = "UPDATE runs SET status = 'stopping' WHERE run_id = ?"
                connection.execute(sql, (run_id,))
            else:
                connection.execute(
                    "UPDATE runs SET status = ?, completed_at = ? WHERE run_id = ?",
                    (rng.choice(sorted(ENDED)), now, run_id),
                )
            process.log(f"writes to {row.session_id}")
            world.observe(None)
    finally:
        connection.close()
