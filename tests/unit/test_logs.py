"""Lines that are logged: for people, for the journal, and for collectors."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import logging_journald
import pytest

from runqueue.about import about, everywhere, fields
from runqueue.cli import logs
from tests.helpers import LONG, in_background

log = logging.getLogger("runqueue.test")


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave pytest's own handlers, and nothing that lines are about."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    # `configure` closes what it replaces.
    root.handlers = []
    monkeypatch.setattr("runqueue.about._everywhere", {})
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers = handlers
    root.setLevel(level)


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The journal's socket."""
    path = tmp_path / "journal"
    monkeypatch.setattr(logging_journald.JournaldTransport, "SOCKET_PATH", path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(path))
        heard.settimeout(LONG)
        yield heard


def told(journal: socket.socket) -> dict[str, str]:
    """The next entry's fields, of those that are one line."""
    lines = journal.recv(65536).decode().split("\n")
    return dict(line.split("=", 1) for line in lines if "=" in line)


def test_a_thread_says_what_its_lines_are_about() -> None:
    """An inner word adds to an outer one, and no other thread is meant."""
    everywhere(runner_id="alpha")
    with about(run_id="run_1"):
        with about(session_id="ses_1"):
            assert fields() == {"runner_id": "alpha", "run_id": "run_1", "session_id": "ses_1"}
            with in_background(fields) as elsewhere:
                assert elsewhere.result(LONG) == {"runner_id": "alpha"}
        assert fields() == {"runner_id": "alpha", "run_id": "run_1"}
    assert fields() == {"runner_id": "alpha"}


@pytest.mark.parametrize(
    ("level", "priority"),
    [("critical", "3"), ("error", "3"), ("warning", "4"), ("info", "6"), ("debug", "7")],
)
def test_the_journal_gets_priority_and_fields(
    journal: socket.socket, level: str, priority: str
) -> None:
    """Under the names that `journalctl RUN_ID=...` looks for, with nothing else of the record."""
    logs.configure("debug", "journal", "runqueued")
    with about(run_id="run_1", session_id="ses_1"):
        getattr(log, level)("run %s", "run_1")
    assert told(journal) == {
        "MESSAGE": "run run_1",
        "PRIORITY": priority,
        "SYSLOG_IDENTIFIER": "runqueued",
        "LOGGER": "runqueue.test",
        "RUN_ID": "run_1",
        "SESSION_ID": "ses_1",
    }


def test_nothing_that_drives_reaches_the_journal(journal: socket.socket) -> None:
    """Nor a line feed, which in its protocol would begin a field of the stranger's own."""
    logs.configure("info", "journal")
    with about(runner_id="w\x1b[2J\nPRIORITY=0"):
        log.info("%s", "a\nPRIORITY=0\x07")
    entry = told(journal)
    assert entry["MESSAGE"] == "a\\nPRIORITY=0\\x07"
    assert entry["RUNNER_ID"] == "w\\x1b[2J\\nPRIORITY=0"
    assert entry["PRIORITY"] == "6"


def test_a_journal_that_is_gone_leaves_lines(
    journal: socket.socket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On standard error, with the priority as systemd reads it from there."""
    logs.configure("info", "journal")
    journal.close()
    log.warning("still here")
    assert capsys.readouterr().err == "<4>still here\n"


def test_the_journal_is_used_where_standard_error_is_the_journal(
    journal: socket.socket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By what systemd says of the stream; elsewhere, and after a redirection, it is lines."""
    with (tmp_path / "stream").open("w+") as stream:
        monkeypatch.setattr("sys.stderr", stream)
        status = os.fstat(stream.fileno())
        for named, kind in (
            (f"{status.st_dev}:{status.st_ino}", logs.Journal),
            (f"{status.st_dev}:{status.st_ino + 1}", logging.StreamHandler),
            ("", logging.StreamHandler),
            ("nonsense", logging.StreamHandler),
        ):
            monkeypatch.setenv("JOURNAL_STREAM", named)
            logs.configure("info")
            (handler,) = logging.getLogger().handlers
            assert type(handler) is kind, named
        logs.configure("info", "text")


def test_json_is_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """With the time as everywhere else, the fields, a traceback if there is one, and only ASCII."""
    logs.configure("info", "json")
    with about(run_id="run_1"):
        try:
            raise ValueError("what\x7f\u202e")
        except ValueError:
            log.exception("it failed: %s", "a\nb")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isascii()
    assert line.isprintable()
    found = json.loads(line)
    assert set(found) == {"time", "level", "logger", "message", "run_id", "exception"}
    assert (found["level"], found["logger"]) == ("ERROR", "runqueue.test")
    assert found["message"] == "it failed: a\nb"
    assert found["exception"].startswith("Traceback")
    assert len(found["time"]) == len("2026-01-01T00:00:00.000Z")
