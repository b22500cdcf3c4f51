"""A file that is damaged, or that is no queue: one sentence, an exit code, and no byte changed."""

from __future__ import annotations

import contextlib
import io
import random
import sqlite3
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import runqueue
from runqueue import RunqueueError, schema
from runqueue.cli import cli
from runqueue.cli.base import run
from tests.chaos import places
from tests.helpers import wait_until
from tests.outage.processes import Process, Programs

pytestmark = pytest.mark.chaos

LOOKING = [("status",), ("list",), ("sessions", "list"), ("runners", "list"), ("db", "check")]
if "doctor" in cli.commands:
    LOOKING.append(("doctor",))
REFUSALS = (1, 75, 78)
"""Exit codes of the contract for a database that cannot be used."""
SLOW = 30.0
DEAD_RUNNER = """
INSERT INTO runners (runner_id, incarnation, hostname, tags, properties, registered_at,
                     heartbeat_at, lease_until)
SELECT 'dead', 'x', 'host', '["gpu"]', '{}', created_at, created_at, created_at FROM runs LIMIT 1
"""
CANARY = "canary in a prompt"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """None of the tester's own settings."""
    (tmp_path / "empty.env").touch()
    monkeypatch.setenv("RUNQUEUE_ENV_FILE", str(tmp_path / "empty.env"))
    monkeypatch.delenv("RUNQUEUE_DB", raising=False)


@pytest.fixture(scope="module")
def whole() -> bytes:
    """The file of a queue that has runs of several kinds, and a runner."""
    with places.in_memory() as directory:
        path = directory / "queue.db"
        with runqueue.connect(f"sqlite:///{path}") as queue:
            content = {"agent_name": "writer", "demands": {"tags": ["gpu"]}, "timeout": 600}
            queue.enqueue_many([{"prompt": CANARY * 20, **content} for _ in range(30)])
            with queue.runner("worker", tags=["gpu"], properties={"model": "x"}) as runner:
                for number in range(10):
                    claim = runner.claim(timeout=0)
                    assert claim is not None
                    claim.start()
                    claim.complete("ok") if number % 2 else claim.fail("bad")
        with contextlib.closing(sqlite3.connect(path)) as other:
            other.execute(DEAD_RUNNER)
            other.commit()
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return path.read_bytes()


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory for many files."""
    with places.in_memory() as directory:
        yield directory


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def call(path: Path, *words: str) -> Ended:
    """Run a command on a database, in this process; what escapes it is raised."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(cli, argv=["--db", f"sqlite:///{path}", *words])
    return Ended(code, out.getvalue(), err.getvalue())


def faults_of(path: Path, *words: str) -> Iterator[str]:
    """Yield what is wrong with how a command meets the file."""
    before = path.read_bytes()
    try:
        ended = call(path, *words)
    except Exception:  # noqa: BLE001 - that it escapes is the fault
        yield f"{' '.join(words)}: {traceback.format_exc(limit=-2)}"
        return
    if ended.code == 0:
        return
    *problems, last = ended.err.splitlines()
    if ended.code not in REFUSALS:
        yield f"{' '.join(words)} ended with {ended.code}: {ended.err}"
    if not last.startswith("Error: ") or (problems and words[-1] not in ("check", "doctor")):
        yield f"{' '.join(words)} said more than a sentence: {ended.err}"
    if CANARY in ended.err:
        yield f"{' '.join(words)} told of a prompt: {ended.err}"
    if path.read_bytes() != before:
        yield f"{' '.join(words)} refused the file and changed it"


def faults_of_api(path: Path) -> Iterator[str]:
    """Yield what is wrong with how a caller meets the file."""
    try:
        with runqueue.connect(f"sqlite:///{path}") as queue:
            for found in queue.find(limit=3):
                queue.why(found.run_id)
                queue.timeline(found.run_id)
    except RunqueueError as error:
        if CANARY in str(error):
            yield f"a caller was told of a prompt: {error}"
    except Exception:  # noqa: BLE001
        yield f"a caller met {traceback.format_exc(limit=-2)}"


def all_faults(path: Path) -> list[str]:
    """What is wrong with how all commands and a caller meet the file."""
    found = [fault for words in LOOKING for fault in faults_of(path, *words)]
    return found + list(faults_of_api(path))


def test_whichever_bytes_are_flipped(whole: bytes, place: Path, is_long: bool) -> None:
    """Either it does not matter, or it is one sentence; a prompt is never a part of it."""
    used = [offset for offset, byte in enumerate(whole) if byte]
    files = 200 if is_long else 20
    found: list[str] = []
    damaged = 0
    for seed in range(files):
        rng = random.Random(seed)
        content = bytearray(whole)
        # Rot of one byte, in the first page, on which all hangs, or anywhere; or a bad sector.
        first = rng.randrange(4096) if seed % 3 == 0 else rng.choice(used)
        length = 512 if seed % 3 == 1 else 1
        for offset in range(first, min(first + length, len(content))):
            content[offset] ^= rng.randrange(1, 256)
        path = place / f"{seed}.db"
        path.write_bytes(content)
        found += [f"seed {seed}: {fault}" for fault in all_faults(path)]
        path.write_bytes(content)
        damaged += call(path, "db", "check").code != 0
    assert found == []
    assert damaged > files // 5


@pytest.mark.parametrize(
    ("text", "rotten"),
    [
        (b"pending", b"pendinG"),
        (b"completed", b"completee"),
        (b"START_SESSION", b"START_SESSIOM"),
        (b"Z20", b"(20"),
        (b'{"tags":["gpu"]}', b'{"tags":["gpu"]('),
        (b'["gpu"]{}', b'["gpu"[{}'),
        (2 * CANARY.encode(), b"\xff" + (2 * CANARY.encode())[1:]),
        (b"daemon", b"daemom"),
        (b"CREATE TABLE", b"CREATE\xffTABLE"),
        (b"CREATE TRIGGER", b"CREATE\xffTRIGGER"),
    ],
)
def test_a_text_that_no_program_wrote(
    whole: bytes, place: Path, text: bytes, rotten: bytes
) -> None:
    """Past every CHECK, for nobody wrote it: it is met where it is read, and told of."""
    path = place / "queue.db"
    assert text in whole
    path.write_bytes(whole.replace(text, rotten))
    assert all_faults(path) == []


@pytest.mark.parametrize("percent", [25, 50, 75])
def test_a_truncated_file(whole: bytes, place: Path, percent: int) -> None:
    """Every command that meets the gap says so, and the check always does."""
    path = place / "queue.db"
    path.write_bytes(whole[: len(whole) * percent // 100])
    assert all_faults(path) == []
    ended = call(path, "db", "check")
    assert ended.code == 78
    assert path.read_bytes() == whole[: len(whole) * percent // 100]


def end_of(daemon: Process) -> int:
    """The exit code of a daemon that either refuses to start, or sweeps and is then told to end."""
    wait_until(lambda: not daemon.is_alive or " sweeps " in daemon.log, timeout=SLOW)
    return daemon.end(SLOW) if daemon.is_alive else daemon.wait()


def test_a_daemon_on_a_file_that_is_damaged(whole: bytes, place: Path, programs: Programs) -> None:
    """It says so and ends with a code that systemd need not try again, or meets no damage."""
    daemons = {}
    for percent in (25, 50, 75):
        path = place / f"{percent}.db"
        path.write_bytes(whole[: len(whole) * percent // 100])
        daemons[percent] = programs.start("runqueued", f"sqlite:///{path}")
    codes = {percent: end_of(daemon) for percent, daemon in daemons.items()}
    for percent, daemon in daemons.items():
        assert "Traceback" not in daemon.log, percent
        if codes[percent] != 0:
            assert codes[percent] == 78, daemon.log
            assert daemon.log.count("\n") == 1
            assert daemon.log.startswith("Error: ")
    assert codes[25] == 78


def test_a_daemon_on_a_queue_of_a_newer_runqueue_and_on_an_empty_file(
    whole: bytes, place: Path, programs: Programs
) -> None:
    """The one is refused and stays as it is, the other becomes a queue."""
    newer, empty = place / "newer.db", place / "empty.db"
    empty.touch()
    newer.write_bytes(whole)
    with contextlib.closing(sqlite3.connect(newer, isolation_level=None)) as other:
        other.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    content = newer.read_bytes()
    daemons = [programs.start("runqueued", f"sqlite:///{path}") for path in (newer, empty)]
    assert [end_of(daemon) for daemon in daemons] == [78, 0]
    assert daemons[0].log.startswith("Error: ")
    assert "newer runqueue" in daemons[0].log
    assert daemons[0].log.count("\n") == 1
    assert newer.read_bytes() == content
    assert call(empty, "db", "check").code == 0


@pytest.mark.parametrize("words", [*LOOKING, ("enqueue", "x")], ids=" ".join)
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("text", "not a database"),
        ("directory", "is a directory"),
        ("another program's", "another program"),
        ("newer", "newer runqueue"),
    ],
)
def test_what_is_no_queue_of_ours_is_78(
    whole: bytes, place: Path, kind: str, reason: str, words: tuple[str, ...]
) -> None:
    """Whatever is asked of it, and the sentence says what it is."""
    path = place / "queue.db"
    if kind == "text":
        path.write_text("this is no database\n" * 500)
    elif kind == "directory":
        path.mkdir()
    else:
        path.write_bytes(whole)
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            mark = "application_id" if kind == "another program's" else "user_version"
            other.execute(f"PRAGMA {mark} = {schema.VERSION + 1}")
    before = path.read_bytes() if path.is_file() else None
    ended = call(path, *words)
    assert ended.code == 78
    assert not ended.out or words == ("doctor",)  # whose result is what it found
    assert ended.err.startswith("Error: ")
    assert reason in ended.err
    assert ended.err.count("\n") == 1
    assert before == (path.read_bytes() if path.is_file() else None)


def test_a_queue_on_a_read_only_disk_is_78(whole: bytes, tmp_path: Path) -> None:
    """Also for root, whom no mode of a file keeps from writing."""
    with places.small_disk(tmp_path / "disk") as disk:
        path = disk.path / "queue.db"
        path.write_bytes(whole)
        disk.close_to_writers()
        for words in [*LOOKING, ("enqueue", "x")]:
            ended = call(path, *words)
            assert (ended.code, ended.err.count("\n")) == (78, 1), ended
            assert "may not be read and written" in ended.err
        with pytest.raises(runqueue.ConfigurationError):
            runqueue.connect(f"sqlite:///{path}")
        assert path.read_bytes() == whole
        assert sorted(disk.path.iterdir()) == [path]
