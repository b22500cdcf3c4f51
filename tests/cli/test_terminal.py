"""Nothing that a stranger wrote reaches a terminal, a pipe or a log raw."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import sqlite3
import unicodedata
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runqueue import Queue
from runqueue.cli import render
from runqueue.cli.logs import Lines

NOW = "2026-01-01T00:00:00.000000Z"
HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
NASTY = (
    "".join(map(chr, range(0x01, 0xA0)))
    + "\x1b[31mred\x1b[2J\x1b]52;c;Zm9v\x07\x1bP+q\x1b\\\x9b31m"
    + "\u202eevil\u202c\u2066\u2069\u200b\u200d\ufeff\u00ad\u2028\u2029\U000e0041"
    + "\r\nrun_FAKE  completed\nses_FAKE  completed"
)
ANY = "\x00" + NASTY
RUN, PENDING, SESSION, RUNNER = (f"{kind}_{NASTY}" for kind in ("run", "run2", "ses", "worker"))
MANY_LINES = {"show", "wait", "why"}
"""What prints text of several lines as it is; a tab in it is a tab."""


def hidden(text: str, but: str = "\n") -> str:
    """The characters of a text that do not print."""
    return "".join(
        sorted({one for one in text if one not in but and unicodedata.category(one) in HIDDEN})
    )


@pytest.fixture
def nasty(queue: Queue, other: sqlite3.Connection) -> None:
    """Runs, a session, a runner and events whose every text is hostile, written by hand."""
    other.execute(
        "INSERT INTO sessions (session_id, created_at, agent_name, project_dir, hostname, "
        "executor_type, executor_session_id) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (SESSION, NOW, ANY, ANY, ANY, ANY, ANY),
    )
    demands = json.dumps({"tags": [ANY], ANY: ANY})
    for run_id, status in ((RUN, "completed"), (PENDING, "pending")):
        other.execute(
            "INSERT INTO runs (run_id, session_id, type, agent_name, prompt, project_dir, "
            "parent_session_id, demands, status, runner_id, error, created_at, result) "
            "VALUES (?, ?, 'START_SESSION', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (run_id, SESSION, ANY, ANY, ANY, ANY, demands, status, RUNNER, ANY, NOW, ANY),
        )
    other.execute(
        "INSERT INTO runners (runner_id, incarnation, hostname, project_dir, executor_type, tags, "
        "properties, registered_at, heartbeat_at, lease_until) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, "
        "'9999-01-01T00:00:00Z')",
        (RUNNER, ANY, ANY, ANY, ANY, json.dumps([ANY]), json.dumps({ANY: ANY}), NOW, NOW),
    )
    other.execute(
        "INSERT INTO run_events (run_id, at, status, actor, detail) "
        "VALUES (?, ?, 'completed', ?, ?)",
        (RUN, NOW, ANY, ANY),
    )


PRINTING = [
    *(("list", "-o", output) for output in render.FORMATS),
    *(("show", RUN, "-o", output) for output in render.FORMATS),
    *(("why", run_id, "-o", output) for run_id in (RUN, PENDING) for output in ("table", "json")),
    *(("timeline", RUN, "-o", output) for output in render.FORMATS),
    *(("wait", RUN, "-o", output) for output in render.FORMATS),
    ("wait", PENDING, "--timeout", "0"),
    *(("sessions", "list", "-o", output) for output in render.FORMATS),
    *(("sessions", "show", SESSION, "-o", output) for output in render.FORMATS),
    *(("runners", "list", "-o", output) for output in render.FORMATS),
    *(("runners", "show", RUNNER, "-o", output) for output in render.FORMATS),
    ("stop", PENDING),
    ("stop", RUN),
    ("release", PENDING),
    ("retry", RUN, "-o", "table"),
    ("retry", RUN, "-o", "json"),
    ("runners", "drain", RUNNER),
    ("runners", "remove", RUNNER),
    ("runners", "remove", "--force", RUNNER),
    ("sessions", "delete", SESSION),
    ("status",),
    ("db", "check"),
    ("top",),
    *(("doctor", "-o", output) for output in render.FORMATS),
    ("show", f"missing {NASTY}"),
    ("list", "--status", NASTY),
    ("list", f"--{NASTY}"),
    ("list", "-o", NASTY),
    (NASTY,),
    ("enqueue", "x", "--demand", NASTY.replace("=", "")),
    ("enqueue", "x", "--timeout", NASTY),
    ("enqueue", "x", "--session", NASTY),
    ("enqueue", "x", "--parent", NASTY),
    ("enqueue", "x", "--run-id", NASTY),
    ("enqueue", "x", "--demand", "hostname=" + NASTY * 20),
    ("enqueue", "x", "--tag", NASTY * 20),
    ("sessions", "show", NASTY),
    ("runners", "show", NASTY),
    ("db", "backup", f"/nowhere/{NASTY}"),
    ("completion", NASTY),
    ("list", "--db", f"sqlite:////nowhere/{NASTY}"),
    ("list", "--db", NASTY),
    ("list", "--db", f"{NASTY}://x"),
]


def named(words: tuple[str, ...]) -> str:
    return " ".join("NASTY" if NASTY in word else word for word in words)


@pytest.mark.parametrize("words", PRINTING, ids=named)
@pytest.mark.usefixtures("nasty")
def test_no_command_prints_what_does_not_print(
    rq: Callable[..., Any], words: tuple[str, ...]
) -> None:
    """Of what others wrote, and of the command line itself: on both outputs, in every format."""
    ended = rq(*words)
    assert ended.out + ended.err
    tab = "\t" if MANY_LINES & set(words) else ""
    assert hidden(ended.out, "\n" + tab) == ""
    assert hidden(ended.err, "\n" + tab) == ""


@pytest.mark.parametrize("words", PRINTING, ids=named)
@pytest.mark.usefixtures("nasty")
def test_no_text_can_pass_for_a_line_of_ours(
    rq: Callable[..., Any], words: tuple[str, ...]
) -> None:
    """A line break in a text begins no line: only the result itself is printed as it is."""
    ended = rq(*words)
    lines = ended.err.splitlines()
    if words[0] != "wait":
        lines += ended.lines
    assert [line for line in lines if re.match("(run|ses)_FAKE", line)] == []


@pytest.mark.usefixtures("nasty")
def test_a_table_has_as_many_rows_as_there_are_runs(rq: Callable[..., Any]) -> None:
    """In a pipe: a header and one line a row; nothing is cut."""
    for words, count in (
        (("list",), 2),
        (("sessions", "list"), 1),
        (("runners", "list"), 1),
        (("timeline", RUN), 2),
    ):
        assert len(rq(*words).lines) == 1 + count, words
    assert "\\u202eevil" in rq("list").out
    assert render.printable(RUN) in rq("list").out


def without_bold(said: str) -> str:
    """Without the only sequences of ours: bold letters in a table's header, its first line."""
    header, newline, rest = said.partition("\n")
    return re.sub(r"\x1b\[[01]m", "", header) + newline + rest


@pytest.mark.parametrize(
    ("words", "rows"),
    [
        (("list",), 2),
        (("sessions", "list"), 1),
        (("runners", "list"), 1),
        (("timeline", RUN), 2),
        (("show", RUN), None),
        (("why", PENDING), None),
        (("wait", RUN), None),
        (("sessions", "show", SESSION), None),
        (("runners", "show", RUNNER), None),
        (("stop", PENDING), 0),
        (("list", "-o", "json"), None),
        (("show", f"missing {NASTY}"), None),
    ],
    ids=lambda value: named(value) if isinstance(value, tuple) else "",
)
@pytest.mark.usefixtures("nasty")
def test_a_terminal_is_sent_nothing_that_drives_it(
    on_terminal: Callable[..., Any], words: tuple[str, ...], rows: int | None
) -> None:
    """Through a real terminal: no control character, and as many rows as there are."""
    said = without_bold(on_terminal(*words).out)
    assert said
    assert hidden(said, "\n\t" if MANY_LINES & set(words) else "\n") == ""
    if rows is not None:
        assert len(said.splitlines()) == 1 + rows


def test_a_terminal_shows_whole_ids(on_terminal: Callable[..., Any], queue: Queue) -> None:
    """What is cut to fit are the other columns: an id is there to be copied."""
    run = queue.enqueue("x", agent_name="a" * 300, project_dir="/srv" * 50)
    said = on_terminal("list").out
    assert run.run_id in said
    assert run.session_id in said


def test_a_pipe_gets_no_colour_and_no_cut(rq: Callable[..., Any], queue: Queue) -> None:
    """A script reads whole columns, however long they are."""
    name = "a" * 4096
    for _ in range(2):
        queue.enqueue("x", agent_name=name)
    ended = rq("list")
    assert "\x1b" not in ended.out
    assert ended.out.count(name) == 2


def test_a_column_of_escapes_is_not_cut_either(rq: Callable[..., Any], queue: Queue) -> None:
    """The longest name that is accepted, each of whose characters is shown as six."""
    queue.enqueue("x", agent_name="\u202e" * 4096)
    assert rq("list").out.count("\\u202e") == 4096


@given(st.text())
def test_printable_text_prints(text: str) -> None:
    """No character that does not print is left, whatever the text."""
    assert hidden(render.printable(text), "") == ""
    assert hidden(render.printable(text, lines=True), "\n\t") == ""


@given(st.text(st.characters(exclude_categories=sorted(HIDDEN))))
def test_text_that_prints_is_left_alone(text: str) -> None:
    """Letters of every script, symbols and spaces are shown as they are."""
    assert render.printable(text) == text


@given(st.text())
def test_printable_keeps_what_prints_in_its_order(text: str) -> None:
    """Each character becomes itself or an escape that names it."""
    pieces = [render.printable(one) for one in text]
    assert "".join(pieces) == render.printable(text)
    for one, piece in zip(text, pieces, strict=True):
        assert piece == one or piece.encode().decode("unicode_escape") == one or one >= "\ud800"


@given(st.text())
def test_lines_are_kept_when_asked_for(text: str) -> None:
    """And the lines are those of the line feeds alone."""
    shown = render.printable(text, lines=True)
    assert shown.count("\n") == text.count("\n")
    assert len(shown.splitlines()) <= 1 + text.count("\n")


texts = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.dictionaries(texts, texts | st.integers() | st.none()))
def test_json_is_ascii_that_prints_and_means_the_same(row: dict[str, Any]) -> None:
    """A program gets back what was stored; a terminal that is sent it is not driven."""
    for indent in (None, 2):
        text = render.to_json(row, indent)
        assert text.isascii()
        assert hidden(text) == ""
        assert json.loads(text) == row


@given(st.lists(st.tuples(texts, texts, texts), max_size=5))
def test_every_row_is_one_line(rows: list[tuple[str, str, str]]) -> None:
    """Of a table with any content."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        render.table(rows, ("run_id", "status", "error"))
    lines = out.getvalue().split("\n")
    assert len(lines) == len(rows) + 2
    assert hidden(out.getvalue()) == ""


@given(st.text())
def test_a_log_line_is_one_line_that_prints(text: str) -> None:
    """Whatever a message is about, also in a traceback."""
    record = logging.LogRecord("runqueue", logging.INFO, "", 0, "run %s", (text,), None)
    assert hidden(Lines().format(record), "") == ""
    try:
        raise ValueError(text)
    except ValueError as error:
        record.exc_info = (ValueError, error, error.__traceback__)
    assert hidden(Lines().format(record), "\n\t") == ""
