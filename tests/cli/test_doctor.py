"""The command `doctor`: how it prints and ends, and what it sees of each kind of database."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import runqueue
from runqueue import Queue, grants, settings
from runqueue.daemon import Daemon
from runqueue.engines import postgres_health, sqlite_health
from runqueue.reading import NO_DAEMON
from tests import postgres
from tests.cli.conftest import Ended

SECRET = "s3cret"


@pytest.fixture
def seen(rq: Callable[..., Ended]) -> Callable[..., dict[str, Any]]:
    """Returns what the command says of each check, by its name."""

    def look(**options: Any) -> dict[str, Any]:
        lines = rq("doctor", "-o", "jsonl", **options).lines
        return {row["check"]: row for row in map(json.loads, lines)}

    return look


def test_a_line_says_what_was_looked_at_what_was_seen_and_what_to_do(
    rq: Callable[..., Ended], queue: Queue
) -> None:
    """One line for each check, on standard output; 1 when one failed, which is the error."""
    ended = rq("doctor")
    assert ended.code == 1
    assert ended.err == f"Error: daemon: {NO_DAEMON}\n"
    assert {line.split()[0] for line in ended.lines} <= {"ok", "warn", "fail"}
    (daemon,) = [line for line in ended.lines if line.split()[1] == "daemon"]
    assert daemon.startswith("fail  daemon ")
    assert daemon.endswith("rescued; start it: systemctl start runqueued, or runqueued")


def test_warnings_are_no_failure(rq: Callable[..., Ended], queue: Queue) -> None:
    """With a daemon and no runner, the exit code is 0."""
    Daemon(queue, interval=1.0, keep=None).tick()
    ended = rq("doctor")
    assert ended.code == 0
    assert "warn  runners" in ended.out


def test_the_outputs_for_programs_have_the_same(rq: Callable[..., Ended], queue: Queue) -> None:
    """As one list, as lines, and the names alone."""
    rows = json.loads(rq("doctor", "-o", "json").out)
    assert set(rows[0]) == {"level", "check", "seen", "advice"}
    names = [row["check"] for row in rows]
    assert [json.loads(line)["check"] for line in rq("doctor", "-o", "jsonl").lines] == names
    assert rq("doctor", "-o", "id").lines == names
    assert rq("doctor", "-o", "json").code == 1


def test_a_database_that_is_not_there_is_78_and_not_made(
    rq: Callable[..., Ended], path: Path
) -> None:
    """What could be found without it is printed."""
    ended = rq("doctor")
    assert ended.code == 78
    assert ended.err.startswith("Error: database: there is no database")
    assert ended.lines[0].startswith("ok    versions")
    assert ended.lines[-1].startswith("fail  database")
    assert "db init" in ended.lines[-1]
    assert not path.exists()


@pytest.mark.parametrize("url", ["queue.db", "mysql://host/x", "sqlite://", "sqlite:////no/such/q"])
def test_a_wrong_url_is_78(rq: Callable[..., Ended], url: str) -> None:
    """It is a line like the others."""
    ended = rq("doctor", db=url)
    assert ended.code == 78
    assert re.fullmatch("Error: database: .*\n", ended.err)
    assert ended.lines[-1].startswith("fail  database")


def test_a_file_of_another_program_is_78(rq: Callable[..., Ended], path: Path) -> None:
    """It is told as what it is."""
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA journal_mode = wal")
        other.execute("CREATE TABLE notes (text)")
    ended = rq("doctor")
    assert ended.code == 78
    assert "another program" in ended.lines[-1]


def test_an_empty_file_is_told_to_be_made(rq: Callable[..., Ended], path: Path) -> None:
    """And stays empty."""
    path.touch(0o600)
    ended = rq("doctor")
    assert ended.code == 1
    assert "fail  schema" in ended.out
    assert "db init" in ended.out
    assert path.stat().st_size == 0


def test_the_settings_file_that_is_used_is_named(
    seen: Callable[..., dict[str, Any]], queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that this user may not read, for its database may be another one."""
    assert seen()["settings"]["seen"] == f"from {os.environ['RUNQUEUE_ENV_FILE']}"
    del os.environ["RUNQUEUE_ENV_FILE"]
    assert seen()["settings"]["level"] == "ok"

    def closed(path: Path) -> dict[str, str]:
        raise PermissionError(path)

    monkeypatch.setattr(settings, "read_env_file", closed)
    found = seen()["settings"]
    assert found["level"] == "warn"
    assert settings.ENV_FILE in found["seen"]


def test_a_file_that_others_may_read_is_told_of_and_left_alone(
    seen: Callable[..., dict[str, Any]], queue: Queue, path: Path
) -> None:
    """Other commands close it; this one only looks."""
    path.chmod(0o644)
    assert seen()["file"]["level"] == "warn"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("name", ["queue.db-wal", "queue.db-shm", ""])
def test_what_belongs_to_somebody_else_is_named(
    seen: Callable[..., dict[str, Any]],
    queue: Queue,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """A log that root has left behind, or a directory in which no log can be made."""
    closed = path.parent / name
    true = os.access
    monkeypatch.setattr(os, "access", lambda one, mode: Path(one) != closed and true(one, mode))
    found = seen()["file"]
    assert found["level"] == "fail"
    assert str(closed) in found["seen"]


@pytest.mark.parametrize(
    ("kind", "level"), [("nfs4", "fail"), ("fuse.sshfs", "fail"), ("tmpfs", "warn"), ("xfs", "ok")]
)
def test_the_file_system_is_the_one_that_the_file_is_on(
    seen: Callable[..., dict[str, Any]],
    queue: Queue,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    kind: str,
    level: str,
) -> None:
    """Also behind a link, at a place with a blank, and mounted over another one."""
    place = tmp_path / "a place"
    place.mkdir()
    true = place / "true.db"
    mounts = tmp_path / "mountinfo"
    point = str(place).replace(" ", "\\040")
    mounts.write_text(
        "27 1 254:0 / / rw - ext4 /dev/vda rw\n"
        f"28 27 0:1 / {point} rw - ext2 /dev/vdb rw\n"
        f"29 27 0:2 / {point} rw shared:1 - {kind} server:/x rw\n"
        f"30 27 0:3 / {point}/tru rw - zfs pool rw\n"
    )
    monkeypatch.setattr(sqlite_health, "MOUNTS", mounts)
    runqueue.connect(f"sqlite:///{true}").close()
    link = tmp_path / "link.db"
    link.symlink_to(true)
    found = seen(db=f"sqlite:///{link}")["file system"]
    assert (found["level"], kind in found["seen"]) == (level, True)
    assert "ext4" in seen()["file system"]["seen"]


def test_a_system_that_tells_of_no_mounts_is_no_failure(
    seen: Callable[..., dict[str, Any]], queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be known is said."""
    monkeypatch.setattr(sqlite_health, "MOUNTS", Path("/no/such/file"))
    assert "does not tell" in seen()["file system"]["seen"]


@pytest.mark.parametrize(("free", "level"), [(10**6, "fail"), (5 * 10**8, "warn"), (10**11, "ok")])
def test_a_disk_that_is_nearly_full_is_told_of(
    seen: Callable[..., dict[str, Any]],
    queue: Queue,
    monkeypatch: pytest.MonkeyPatch,
    free: int,
    level: str,
) -> None:
    """Before an enqueue is refused."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    assert seen()["room"]["level"] == level


def test_a_long_log_is_told_of(
    seen: Callable[..., dict[str, Any]], queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With how to find the program that keeps it."""
    assert seen()["log"]["level"] == "ok"
    monkeypatch.setattr(sqlite_health, "LONG_LOG", 0)
    assert "fuser" in seen()["log"]["advice"]


def test_a_library_that_is_too_old_is_told_of(
    seen: Callable[..., dict[str, Any]], queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a statement fails on a word that it does not know."""
    monkeypatch.setattr(sqlite_health, "OLDEST", (99, 0, 0))
    assert "99.0.0" in seen()["library"]["advice"]


def test_another_journal_is_told_of(
    seen: Callable[..., dict[str, Any]], url: str, path: Path
) -> None:
    """Somebody has copied it with a tool that changed it."""
    runqueue.connect(url).close()
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA journal_mode = delete")
    found = seen()["journal"]
    assert (found["level"], "delete" in found["seen"]) == ("fail", True)


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.Server]:
    """A server with a queue, and roles that may do less and less."""
    with postgres.Server(listen=True) as server:
        server.create_database("queue")
        runqueue.connect(server.url("queue")).close()
        for role in ("reader", "frozen", "nobody"):
            server.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{SECRET}'")
        server.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader", "queue")
        server.execute("ALTER ROLE frozen SUPERUSER")
        server.execute("ALTER ROLE frozen SET default_transaction_read_only = on")
        server.execute(grants.sql("runner", "worker"), "queue")
        server.execute(f"ALTER ROLE worker LOGIN PASSWORD '{SECRET}'")
        yield server


def of(server: postgres.Server, role: str) -> str:
    return server.url("queue", role, SECRET)


def test_a_server_that_may_lose_what_it_acknowledged_is_told_of(
    seen: Callable[..., dict[str, Any]], server: postgres.Server
) -> None:
    """That of the tests does not sync; and what other programs commit may be lost by itself."""
    found = seen(db=server.url("queue"))
    assert found["durability"]["level"] == "fail"
    assert "fsync" in found["durability"]["advice"]
    assert found["server"]["seen"].startswith(f"PostgreSQL {server.version}")
    assert found["writable"]["level"] == found["rights"]["level"] == found["clock"]["level"] == "ok"


@pytest.mark.parametrize(
    ("kept", "level"),
    [
        ({}, "ok"),
        ({"synchronous_commit": "off"}, "warn"),
        ({"full_page_writes": "off"}, "warn"),
        ({"fsync": "off", "full_page_writes": "off"}, "fail"),
    ],
)
def test_durability_is_judged_by_what_is_off(kept: dict[str, str], level: str) -> None:
    """By the values that a new connection begins with."""
    usual = {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on"}
    rows = SimpleNamespace(fetchall=lambda: list((usual | kept).items()))
    database: Any = SimpleNamespace(execute_sql=lambda _: rows)
    checks = dict(postgres_health.checks(database, lambda: datetime.now(timezone.utc)))
    assert checks["durability"]().level == level


def test_a_role_that_may_only_look_sees_all_of_it(
    seen: Callable[..., dict[str, Any]], server: postgres.Server
) -> None:
    """Nothing that is asked takes a right to change."""
    found = seen(db=of(server, "reader"))
    assert found["rights"]["level"] == "warn"
    assert "reader may only look" in found["rights"]["seen"]
    assert [row for row in found.values() if "cannot be looked at" in row["seen"]] == []
    assert list(found)[-1] == "demands"


def test_a_runners_role_is_told_what_it_may_not_look_at(
    seen: Callable[..., dict[str, Any]], server: postgres.Server
) -> None:
    """It sees no daemon; that is no failure of the installation."""
    found = seen(db=of(server, "worker"))
    assert "may claim runs and add none" in found["rights"]["seen"]
    assert found["daemon"]["level"] == "warn"
    assert "cannot be looked at" in found["daemon"]["seen"]


def test_a_role_that_may_not_even_look_is_78(
    rq: Callable[..., Ended], server: postgres.Server
) -> None:
    """The schema cannot be known."""
    ended = rq("doctor", db=of(server, "nobody"))
    assert ended.code == 78
    assert ended.lines[-1].startswith("fail  schema")


def test_where_transactions_are_read_only_nothing_can_be_done(
    seen: Callable[..., dict[str, Any]], server: postgres.Server
) -> None:
    """As on a standby, where the same is asked; everything can be looked at."""
    found = seen(db=of(server, "frozen"))
    assert found["writable"]["level"] == "fail"
    assert list(found)[-1] == "demands"


def test_a_standby_is_told_of_with_the_way_to_the_primary() -> None:
    """Whether transactions are read-only is not asked then: they are."""
    row = SimpleNamespace(fetchone=lambda: (True, "on"))
    database: Any = SimpleNamespace(execute_sql=lambda _: row)
    checks = dict(postgres_health.checks(database, lambda: datetime.now(timezone.utc)))
    assert "primary" in checks["writable"]().advice


@pytest.mark.parametrize(("hours", "words"), [(1, "3600.0 s ahead"), (-1, "3600.0 s behind")])
def test_a_clock_that_is_off_is_told_of(hours: int, words: str) -> None:
    """By how much, and to which side."""
    moment = datetime.now(timezone.utc)
    database: Any = None
    kept = postgres_health.clock.system_clock
    try:
        postgres_health.clock.system_clock = lambda: moment + timedelta(hours=hours)
        found = dict(postgres_health.checks(database, lambda: moment))["clock"]()
    finally:
        postgres_health.clock.system_clock = kept
    assert (found.level, words in found.seen) == ("warn", True)


def test_a_transaction_that_is_left_open_is_told_of(
    seen: Callable[..., dict[str, Any]],
    server: postgres.Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the process to end; a role that may not see it is told that there is something."""
    import psycopg

    url = server.url("queue")
    assert seen(db=url)["transactions"]["seen"] == "none is open"
    monkeypatch.setattr(postgres_health, "OLD", 0.0)
    with psycopg.connect(url) as other:
        other.execute("SELECT 1")
        found = seen(db=url)["transactions"]
        unseen = seen(db=of(server, "reader"))["transactions"]
        assert found["level"] == "warn"
        assert f"({other.info.backend_pid})" in found["advice"]
        assert "1 sessions of other roles cannot be seen" in unseen["seen"]


def test_few_connections_left_are_told_of(
    seen: Callable[..., dict[str, Any]], server: postgres.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a process is refused one."""
    found = seen(db=server.url("queue"))["connections"]
    assert found["level"] == "ok"
    # All but the three that are kept for superusers, and the doctor's own.
    assert found["seen"] == "196 of 200 are left"
    monkeypatch.setattr(postgres_health, "FEW", 197)
    assert seen(db=server.url("queue"))["connections"]["level"] == "warn"


def test_a_server_that_is_away_or_refuses_is_told_as_a_line(
    rq: Callable[..., Ended], server: postgres.Server
) -> None:
    """75 and 78, with no password in it."""
    url = of(server, "reader")
    for wrong, code in ((url.replace(f":{server.port}", ":1"), 75), (url.replace(SECRET, "x"), 78)):
        ended = rq("doctor", db=wrong)
        assert ended.code == code
        assert re.fullmatch("Error: database: .*\n", ended.err)
        assert ended.lines[-1].startswith("fail  database")
        assert SECRET not in ended.out + ended.err
