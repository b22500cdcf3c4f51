"""How commands end when they cannot do it: one sentence, the contract's code, nothing changed."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

import runqueue.queue
from runqueue import Queue

MISSING_RUN = "run_ffffffffffff"
MISSING_SESSION = "ses_ffffffffffff"
ON_A_RUN = ["show", "wait", "why", "timeline", "stop", "release", "retry", "tree"]
READING = [
    *(("list",), ("show", "x"), ("wait", "x"), ("why", "x"), ("timeline", "x"), ("stop", "x")),
    *(("release", "x"), ("retry", "x"), ("sessions", "list"), ("sessions", "show", "x")),
    *(("sessions", "delete", "x"), ("runners", "list"), ("runners", "show", "x")),
    *(("runners", "drain", "x"), ("runners", "remove", "x"), ("status",), ("prune",), ("top",)),
    *(("tree", "x"), ("stop", "--tree", "x")),
    *(("db", "upgrade"), ("db", "check"), ("db", "backup", "copy.db")),
]


def assert_is_one_sentence(ended: Any) -> None:
    """Standard output is empty; standard error is one line that begins with Error."""
    assert ended.out == ""
    assert ended.err.startswith("Error: ")
    assert ended.err.endswith("\n")
    assert ended.err.count("\n") == 1
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    "words",
    [
        *((command, MISSING_RUN) for command in ON_A_RUN),
        ("tree", MISSING_SESSION),
        ("stop", "--tree", MISSING_RUN),
        ("stop", "--tree", MISSING_SESSION),
        ("sessions", "show", MISSING_SESSION),
        ("sessions", "delete", MISSING_SESSION),
        ("enqueue", "x", "--session", MISSING_SESSION),
        ("enqueue", "x", "--parent", MISSING_SESSION),
        ("runners", "show", "nobody"),
        ("runners", "drain", "nobody"),
        ("runners", "remove", "nobody"),
    ],
    ids=" ".join,
)
def test_what_is_not_there_is_3(
    rq: Callable[..., Any], queue: Queue, rows: Callable[[], Any], words: tuple[str, ...]
) -> None:
    """Not found, with the id in the sentence."""
    queue.enqueue("x")
    before = rows()
    ended = rq(*words)
    assert ended.code == 3
    assert_is_one_sentence(ended)
    assert words[-1] in ended.err
    assert rows() == before


@pytest.mark.parametrize(
    ("command", "status"),
    [
        *(("stop", status) for status in ("completed", "failed", "stopped")),
        *(("release", status) for status in ("pending", "running", "stopping", "completed")),
        *(("retry", status) for status in ("pending", "claimed", "running", "stopping")),
    ],
)
def test_the_wrong_status_is_4(
    rq: Callable[..., Any],
    queue: Queue,
    set_status: Callable[..., None],
    rows: Callable[[], Any],
    command: str,
    status: str,
) -> None:
    """The sentence names the run and its status."""
    run_id = queue.enqueue("x").run_id
    set_status(run_id, status)
    before = rows()
    ended = rq(command, run_id)
    assert ended.code == 4
    assert_is_one_sentence(ended)
    assert run_id in ended.err
    assert f" is {status}" in ended.err
    assert rows() == before


@pytest.mark.parametrize(
    "words",
    [
        ("nonsense",),
        ("list", "--status", "sleeping"),
        ("list", "--limit", "-1"),
        ("list", "--limit", "many"),
        ("list", "-o", "yaml"),
        ("show",),
        ("show", "a", "b"),
        ("stop",),
        ("wait", "x", "--timeout", "never"),
        ("prune", "--older-than", "old"),
        ("sessions", "nonsense"),
        ("db", "backup"),
        ("--nonsense", "list"),
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_2(
    rq: Callable[..., Any], queue: Queue, words: tuple[str, ...]
) -> None:
    """Usage, with a hint on standard error."""
    ended = rq(*words)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("Usage: runqueue")
    assert ended.err.splitlines()[-1].startswith("Error: ")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands wait for other writers for a moment only, so that the tests are fast."""
    connect = partial(runqueue.queue.connect, busy_timeout=0.05)
    monkeypatch.setattr(runqueue.queue, "connect", connect)


@pytest.fixture
def locked(queue: Queue, other: sqlite3.Connection) -> Iterator[str]:
    """A run in a database that another program is writing to."""
    run_id = queue.enqueue("x").run_id
    other.execute("BEGIN IMMEDIATE")
    yield run_id
    other.execute("ROLLBACK")


@pytest.mark.parametrize(
    "words",
    [("enqueue", "y"), ("stop", "RUN"), ("retry", "RUN"), ("prune",), ("sessions", "delete", "S")],
    ids=" ".join,
)
@pytest.mark.usefixtures("impatient")
def test_a_busy_database_is_75(
    rq: Callable[..., Any], queue: Queue, locked: str, words: tuple[str, ...]
) -> None:
    """Writing commands give up in the end, and say that a retry can help."""
    names = {"RUN": locked, "S": queue.get(locked).session_id}
    ended = rq(*(names.get(word, word) for word in words))
    assert ended.code == 75
    assert_is_one_sentence(ended)
    assert "try again" in ended.err
    assert [run.run_id for run in queue.find()] == [locked]


@pytest.mark.parametrize(
    "words",
    [("list",), ("show", "RUN"), ("why", "RUN"), ("status",), ("db", "check")],
    ids=" ".join,
)
@pytest.mark.usefixtures("impatient")
def test_looking_does_not_wait_for_a_writer(
    rq: Callable[..., Any], locked: str, words: tuple[str, ...]
) -> None:
    """A busy database can still be looked at."""
    assert rq(*(locked if word == "RUN" else word for word in words)).code == 0


@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_a_database_that_is_not_there_is_78(
    rq: Callable[..., Any], path: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    """A typing error in the URL must not look like an empty queue, nor leave a file."""
    before = sorted(tmp_path.iterdir())
    ended = rq(*words)
    assert ended.code == 78
    assert_is_one_sentence(ended)
    assert str(path) in ended.err
    assert "db init" in ended.err
    assert sorted(tmp_path.iterdir()) == before


def test_without_a_url_the_default_place_is_meant(rq: Callable[..., Any], tmp_path: Path) -> None:
    """Reading it before anything was enqueued is 78; enqueue makes it, for its owner only."""
    assert rq("list", db=None).code == 78
    assert rq("enqueue", "x", db=None).code == 0
    assert (tmp_path / "state" / "runqueue" / "runqueue.db").exists()
    assert (tmp_path / "state" / "runqueue").stat().st_mode & 0o077 == 0
    assert len(rq("list", "-o", "id", db=None).lines) == 1


@pytest.mark.parametrize(
    "url",
    [
        *("queue.db", "/tmp/queue.db", "mysql://host/db", "sqlite://", "sqlite:///", "://"),
        *("sqlite:///:memory:", "sqlite:////tmp/q.db?mode=ro", "sqlite:///%00", "sqlite://host/q"),
        *(
            "postgresql://user:secret@host/db?such=none",
            "user:secret@host",
            "sqlite:////nowhere/at/all.db",
        ),
        *("sqlite:////dev/null", "sqlite:////tmp"),
    ],
)
def test_a_url_that_cannot_be_used_is_78(rq: Callable[..., Any], url: str) -> None:
    """For enqueue, which would create it; a password is not repeated."""
    ended = rq("enqueue", "x", db=url)
    assert ended.code == 78
    assert_is_one_sentence(ended)
    assert "secret" not in ended.err


def break_it(path: Path, how: str) -> None:
    if how == "text":
        path.write_text("this is no database " * 100)
        return
    with closing(sqlite3.connect(path)) as connection:
        if how == "another program's":
            connection.execute("CREATE TABLE songs (title TEXT)")
        elif how == "another program's by its mark":
            connection.execute("PRAGMA application_id = 1234")
            connection.execute("CREATE TABLE runs (x)")
        else:
            connection.execute("PRAGMA user_version = 9999")


@pytest.mark.parametrize(
    "how", ["text", "another program's", "another program's by its mark", "of a newer runqueue"]
)
@pytest.mark.parametrize("words", [("list",), ("enqueue", "x"), ("db", "init")], ids=" ".join)
def test_a_file_that_is_no_queue_is_78_and_left_alone(
    rq: Callable[..., Any], path: Path, how: str, words: tuple[str, ...]
) -> None:
    """Text, another program's database, and the schema of a newer version."""
    if how == "of a newer runqueue":
        with runqueue.connect(f"sqlite:///{path}"):
            pass
    break_it(path, how)
    before = path.read_bytes()
    ended = rq(*words)
    assert ended.code == 78
    assert_is_one_sentence(ended)
    assert path.read_bytes() == before


def test_the_sentence_names_the_file_that_is_no_database(
    rq: Callable[..., Any], path: Path
) -> None:
    """With several queues, which one is meant is the first question."""
    break_it(path, "text")
    assert str(path) in rq("list").err


@pytest.mark.parametrize(
    "words",
    [
        *((command, "\udcff") for command in ON_A_RUN),
        ("stop", MISSING_RUN, "--reason", "\udcff"),
        ("enqueue", "\udcff"),
        ("enqueue", "x", "--agent", "\udcff"),
        ("enqueue", "x", "--session", "\udcff"),
        ("enqueue", "x", "--parent", "\udcff"),
        ("enqueue", "x", "--tag", "\udcff"),
        ("list", "--agent", "\udcff"),
        ("list", "--session", "\udcff"),
        ("list", "--runner", "\udcff"),
        ("sessions", "show", "\udcff"),
        ("sessions", "delete", "\udcff"),
        ("runners", "show", "\udcff"),
        ("runners", "drain", "\udcff"),
        ("runners", "remove", "\udcff"),
    ],
    ids=lambda words: " ".join(words[:-1]),
)
def test_an_argument_that_is_not_utf8_is_refused(
    rq: Callable[..., Any], queue: Queue, rows: Callable[[], Any], words: tuple[str, ...]
) -> None:
    """A byte that is no text reaches a program as a lone surrogate: bad input, or unknown."""
    queue.enqueue("x")
    before = rows()
    ended = rq(*words)
    assert ended.code in (0, 2, 3)
    assert ended.out == ""
    assert ended.code == 0 or "Error: " in ended.err
    assert rows() == before


@pytest.mark.parametrize("stdin", [b"\xff\n", b"run_\x00\n", b"\x1b]52;c;eA==\x07\n"])
def test_ids_on_standard_input_that_are_no_text_are_refused(
    rq: Callable[..., Any], queue: Queue, rows: Callable[[], Any], stdin: bytes
) -> None:
    """As any id that does not exist."""
    before = rows()
    ended = rq("stop", "-", stdin=stdin)
    assert ended.code in (2, 3)
    assert_is_one_sentence(ended)
    assert rows() == before


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("runqueue.cli.daemon", ("--interval", "9" * 18)),
        ("runqueue.cli.daemon", ("--interval", "9" * 400)),
        ("runqueue.cli.daemon", ("--lease", "9" * 400)),
        ("runqueue.cli.runner", ("--lease", "9" * 400, "--", "true")),
        ("runqueue.cli.runner", ("--drain", "9" * 400, "--", "true")),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value)[:12],
)
def test_a_time_beyond_all_time_is_refused(
    spawn: Callable[..., subprocess.Popen[str]],
    queue: Queue,
    module: str,
    words: tuple[str, ...],
) -> None:
    """Exit code 2 at once: neither a traceback nor a process that fails later."""
    process = spawn(*words, module=module)
    try:
        _, err = process.communicate(timeout=3)
    except subprocess.TimeoutExpired:
        pytest.fail("it was accepted")
    assert process.returncode == 2
    assert "Traceback" not in err


def test_an_interrupted_wait_is_130(
    spawn: Callable[..., subprocess.Popen[str]],
    queue: Queue,
    path: Path,
    until: Callable[..., None],
) -> None:
    """Ctrl-C ends the waiting without a traceback, and the run goes on."""
    run_id = queue.enqueue("x").run_id
    process = spawn("wait", run_id)

    def is_waiting() -> bool:
        return any(file.path == str(path) for file in psutil.Process(process.pid).open_files())

    until(is_waiting)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err.strip()) == (130, "", "")
    assert queue.get(run_id).status == "pending"


def test_an_interrupted_enqueue_has_told_the_id(
    spawn: Callable[..., subprocess.Popen[str]], queue: Queue
) -> None:
    """Whoever interrupts `enqueue --wait` can still find the run."""
    process = spawn("enqueue", "--wait", "x")
    assert process.stderr is not None
    run_id = process.stderr.readline().strip()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err.strip()) == (130, "", "")
    assert queue.get(run_id).status == "pending"


def test_a_reader_that_has_seen_enough_is_no_error_to_talk_about(
    spawn: Callable[..., subprocess.Popen[str]], queue: Queue
) -> None:
    """`runqueue list | head -1` ends without a traceback, however much is left."""
    queue.enqueue_many([{"prompt": "x", "agent_name": "a" * 200} for _ in range(500)])
    for arguments in (("-o", "jsonl"), ("-o", "json"), ("-o", "table"), ("-o", "id")):
        read, write = os.pipe()
        process = spawn("list", "--limit", "0", *arguments, stdout=write)
        os.close(write)
        os.close(read)
        _, err = process.communicate(timeout=10)
        assert err == "", arguments
        assert process.returncode != 0


def test_a_full_disk_behind_standard_output_is_a_failure(
    spawn: Callable[..., subprocess.Popen[str]], queue: Queue
) -> None:
    """`runqueue list > /full/disk` must not exit with 0, nor with a traceback."""
    queue.enqueue("x")
    with open("/dev/full", "w") as full:
        process = spawn("list", stdout=full)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 1
    assert "Traceback" not in err
    assert err.startswith("Error: ")


def test_the_settings_file_must_be_readable_and_right(
    rq: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was named and is missing or broken is 78; the line is told, not its content."""
    monkeypatch.setenv("RUNQUEUE_ENV_FILE", str(tmp_path / "missing.env"))
    missing = rq("list")
    assert missing.code == 78
    assert_is_one_sentence(missing)
    broken = tmp_path / "broken.env"
    broken.write_text("# fine\nRUNQUEUE_DB\n")
    monkeypatch.setenv("RUNQUEUE_ENV_FILE", str(broken))
    ended = rq("list")
    assert ended.code == 78
    assert f"line 2 of {broken}" in ended.err


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((), 2),
        (("--slots", "0", "--", "true"), 2),
        (("--property", "x", "--", "true"), 2),
        (("--tag", "", "--", "true"), 2),
        (("--", "/no/such/command"), 78),
        (("--project-dir", "/no/such/directory", "--", "true"), 78),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)
def test_a_runner_that_cannot_work_does_not_start(
    execute: Callable[..., Any], queue: Queue, words: tuple[str, ...], code: int
) -> None:
    """It ends at once with one sentence, and is not registered."""
    ended = execute(*words, module="runqueue.cli.runner")
    assert ended.code == code
    assert ended.err.splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in ended.err


def test_a_runner_does_not_take_the_id_of_a_live_one(
    execute: Callable[..., Any], queue: Queue
) -> None:
    """Exit code 4, and the live one is not disturbed."""
    with queue.runner("alpha"):
        ended = execute("--runner-id", "alpha", "--", "true", module="runqueue.cli.runner")
    assert ended.code == 4
    assert_is_one_sentence(ended)
    assert "alpha is alive" in ended.err
