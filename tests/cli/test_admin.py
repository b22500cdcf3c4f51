"""The commands about the queue as a whole: status, prune and db."""

from __future__ import annotations

import json
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import runqueue
from runqueue import Queue
from runqueue.daemon import Daemon


@pytest.fixture
def daemon_of() -> Callable[[Queue], None]:
    """Makes a queue look as a daemon leaves it."""

    def sweep(queue: Queue) -> None:
        Daemon(queue, interval=1.0, keep=None).tick()

    return sweep


STATUSES = ["pending", "claimed", "running", "stopping", "completed", "failed", "stopped"]


def test_status_counts_every_status(
    rq: Callable[..., Any], queue: Queue, work: Callable[..., Any]
) -> None:
    """All seven, the oldest pending run, and who is alive; the same as JSON."""
    queue.enqueue("x")
    work("completed")
    queue.enqueue("x")
    ended = rq("status")
    assert ended.code == 0
    assert [line.split()[0] for line in ended.lines[:7]] == STATUSES
    assert ended.lines[0].split() == ["pending", "1"]
    assert "none alive" in ended.out
    row = json.loads(rq("status", "-o", "json").out)
    assert row["runs"] == {**dict.fromkeys(STATUSES, 0), "pending": 1, "completed": 1}
    assert (row["runners"], row["dead_runners"], row["daemons"]) == (0, 0, 0)
    assert json.loads(rq("status", "-o", "jsonl").out)["runs"] == row["runs"]


def test_status_says_where_it_counted_no_further(
    rq: Callable[..., Any], queue: Queue, other: sqlite3.Connection
) -> None:
    """What has ended may be any number; all of it is counted when that is asked for."""
    session_id = queue.enqueue("x").session_id
    with other:
        other.execute(
            "INSERT INTO runs (run_id, session_id, type, prompt, status, created_at) "
            "WITH RECURSIVE counted (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM counted "
            "WHERE n <= 100000) SELECT 'run_' || n, ?, 'START_SESSION', 'x', 'failed', "
            "'2020-01-01T00:00:00.000000Z' FROM counted",
            (session_id,),
        )
    lines = {line.split()[0]: line.split()[1] for line in rq("status").lines[:7]}
    assert (lines["failed"], lines["pending"]) == ("100,000+", "1")
    row = json.loads(rq("status", "-o", "json").out)
    assert (row["runs"]["failed"], row["at_least"]) == (100_000, ["failed"])
    row = json.loads(rq("status", "--exact", "-o", "json").out)
    assert (row["runs"]["failed"], row["at_least"]) == (100_001, [])


@pytest.mark.parametrize("output", ["id"])
def test_status_prints_only_what_it_offers(
    rq: Callable[..., Any], queue: Queue, output: str
) -> None:
    """It has no ids: an output of ids is either refused or the database's URL, not a table."""
    ended = rq("status", "-o", output)
    assert ended.code == 2 or ended.lines == [queue.store.url]


def test_a_check_without_a_daemon_is_1(rq: Callable[..., Any], queue: Queue) -> None:
    """One line on standard output says what is not well, for whoever reads the monitor."""
    ended = rq("status", "--check")
    assert (ended.code, ended.err) == (1, "")
    assert ended.lines == [
        "not well: no daemon is alive: nothing expires, and no dead runner's run is rescued"
    ]


def test_a_check_of_a_queue_that_is_well_is_0(
    rq: Callable[..., Any], queue: Queue, daemon_of: Callable[..., None]
) -> None:
    """With the numbers that people ask for next; as JSON it is one object."""
    daemon_of(queue)
    queue.enqueue("x")
    ended = rq("status", "--check")
    assert (ended.code, ended.err) == (0, "")
    assert ended.lines == ["ok: 1 pending, 0 running, 0 runners, 1 daemons"]
    row = json.loads(rq("status", "--check", "-o", "json").out)
    assert (row["ok"], row["problems"], row["runs"]["pending"]) == (True, [], 1)


def test_a_check_has_limits_of_ones_own(
    rq: Callable[..., Any], queue: Queue, daemon_of: Callable[..., None], other: sqlite3.Connection
) -> None:
    """How long a run may wait, and how many runners there are to be; each passed one is named."""
    daemon_of(queue)
    queue.enqueue("x")
    other.execute("UPDATE runs SET created_at = '2020-01-01T00:00:00.000000Z'")
    with queue.runner("worker"):
        assert rq("status", "--check", "--max-wait", "9000d", "--min-runners", "1").code == 0
        ended = rq("status", "--check", "--max-wait", "1h", "--min-runners", "2")
    assert ended.code == 1
    assert "1 runners are alive, fewer than 2; the oldest pending run has waited" in ended.out
    assert rq("status", "--max-wait", "1h").code == 2


def test_a_check_of_no_database_is_78(rq: Callable[..., Any], tmp_path: Path) -> None:
    """It is not the queue that is not well: nobody has looked at it."""
    assert rq("status", "--check", db=f"sqlite:///{tmp_path}/none.db").code == 78


def test_prune_deletes_what_ended_long_ago(
    rq: Callable[..., Any],
    queue: Queue,
    work: Callable[..., Any],
    other: sqlite3.Connection,
) -> None:
    """Runs and their sessions; not what waits, nor what ended lately."""
    old = queue.enqueue("old")
    work("completed")
    lately = queue.enqueue("lately").run_id
    work("completed")
    waits = queue.enqueue("waits").run_id
    past = "2020-01-01T00:00:00.000000Z"
    other.execute(
        "UPDATE runs SET created_at = ?, completed_at = ? WHERE run_id = ?",
        (past, past, old.run_id),
    )
    other.execute("UPDATE runs SET created_at = ? WHERE run_id = ?", (past, waits))
    assert rq("prune") == (0, "1 runs pruned\n", "")
    assert {run.run_id for run in queue.find()} == {lately, waits}
    assert rq("sessions", "show", old.session_id).code == 3
    assert rq("prune", "--older-than", "0s").out == "1 runs pruned\n"
    assert [run.run_id for run in queue.find()] == [waits]


@pytest.mark.parametrize("age", ["-1", "x", "", "1y", "٣d"])
def test_prune_refuses_what_is_no_age(
    rq: Callable[..., Any], rows: Callable[[], Any], age: str
) -> None:
    """A typing error must not delete anything."""
    before = rows()
    ended = rq("prune", "--older-than", age)
    assert ended.code == 2
    assert rows() == before


def test_db_init_makes_the_database_and_prints_its_url(
    rq: Callable[..., Any], path: Path, url: str
) -> None:
    """Closed to the world; a second time is harmless."""
    assert rq("db", "init") == (0, f"{url}\n", "")
    assert stat.S_IMODE(path.stat().st_mode) & 0o007 == 0
    assert rq("enqueue", "x").code == 0
    assert rq("db", "init") == (0, f"{url}\n", "")
    assert len(rq("list", "-o", "id").lines) == 1


def test_db_upgrade_tells_the_schemas_version(
    rq: Callable[..., Any], queue: Queue, url: str
) -> None:
    """Also when there is nothing to do."""
    from runqueue import schema

    assert rq("db", "upgrade") == (0, f"{url} has schema {schema.VERSION}\n", "")


def test_db_check_finds_a_sound_database_sound(
    rq: Callable[..., Any], queue: Queue, work: Callable[..., Any], url: str
) -> None:
    """Exit code 0, one sentence on standard output."""
    queue.enqueue("x")
    work("completed")
    assert rq("db", "check") == (0, f"{url} is sound\n", "")


def test_db_check_finds_what_is_wrong(
    rq: Callable[..., Any], queue: Queue, other: sqlite3.Connection
) -> None:
    """A run that can never be claimed is a problem, and is named; exit code 78."""
    run_id = queue.enqueue("x").run_id
    other.execute("UPDATE runs SET waiting = 1")
    ended = rq("db", "check")
    assert (ended.code, ended.out) == (78, "")
    assert run_id in ended.err
    assert ended.err.splitlines()[-1].startswith("Error: ")


def test_db_backup_copies_the_database_while_it_is_in_use(
    rq: Callable[..., Any], queue: Queue, other: sqlite3.Connection, tmp_path: Path
) -> None:
    """A whole queue, closed to the world, also while another program writes."""
    run_id = queue.enqueue("x").run_id
    other.execute("BEGIN IMMEDIATE")
    other.execute("UPDATE runs SET prompt = 'half written'")
    target = tmp_path / "backup.db"
    assert rq("db", "backup", str(target)) == (0, f"{target}\n", "")
    other.execute("ROLLBACK")
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    with runqueue.connect(f"sqlite:///{target}", create=False) as copy:
        assert copy.get(run_id).prompt == "x"


def test_db_backup_overwrites_nothing(
    rq: Callable[..., Any], queue: Queue, path: Path, tmp_path: Path
) -> None:
    """Neither a file, nor the database itself; a directory that is missing is named."""
    kept = tmp_path / "kept"
    kept.write_text("precious")
    for target in (kept, path, tmp_path):
        ended = rq("db", "backup", str(target))
        assert ended.code == 78
        assert str(target) in ended.err
    assert kept.read_text() == "precious"
    ended = rq("db", "backup", str(tmp_path / "nowhere" / "backup.db"))
    assert ended.code == 78
    assert "No such file or directory" in ended.err


def test_a_backup_that_fails_leaves_no_file(
    rq: Callable[..., Any], queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a backup would be taken for a whole one."""
    from runqueue.database import Store
    from runqueue.errors import StorageFull

    def fail(store: Store, target: sqlite3.Connection) -> None:
        raise StorageFull("the disk of the database is full; make room, try again")

    monkeypatch.setattr(Store, "back_up", fail)
    target = tmp_path / "backup.db"
    ended = rq("db", "backup", str(target))
    assert ended.code == 75
    assert not target.exists()


def test_a_database_without_a_schema_gets_one(rq: Callable[..., Any], path: Path) -> None:
    """An empty file, as `touch` makes it, is a database to be."""
    path.touch()
    assert rq("db", "upgrade").code == 0
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (0,)
