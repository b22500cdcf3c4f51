"""Filling a database in bulk: rows as the queue would have left them, without its triggers."""

# ruff: noqa: S608 - the SQL is put together from constants of this module and numbers
from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, Final

import psycopg

from benchmarks.places import Place

SERVED: Final = "s"
FOREIGN: Final = "f"
_AT: Final = "2025-01-01T00:00:00"


def tag(kind: str, number: int) -> str:
    """Return the tag that the runs of one demand text ask for."""
    return f"{kind}{number}"


def ended(number: int) -> str:
    """Return the time when the last of the first so many runs ended that a filler has added."""
    return f"{_AT}.{min(number, 999_999):06}Z"


class Filler(ABC):
    """Adds and removes rows by the hundred thousand.

    Its ids have letters that those of the queue have not: `x` for runs that have ended, `p` for
    those that wait.
    """

    padded: str
    """An expression of a number with six digits."""
    hexadecimal: str
    """Likewise, with eleven hexadecimal ones."""

    @abstractmethod
    def _numbers(self, number: int) -> str:
        """A table of the numbers from one on, as `number`."""

    @abstractmethod
    def _transaction(self) -> Any:
        """A context of a connection, on which no trigger of the tables fires."""

    @abstractmethod
    def settle(self) -> None:
        """Do what a database does in time: write back what is logged, renew its statistics."""

    def finished(self, number: int) -> None:
        """Add runs that have ended, each with a session and an event."""
        if not number:
            return
        numbers = self._numbers(number)
        run, session, at = self._id("run_x"), self._id("ses_x"), self._time()
        self._execute(
            f"INSERT INTO sessions (session_id, created_at) SELECT {session}, {at} FROM {numbers}",
            "INSERT INTO runs (run_id, session_id, type, prompt, status, runner_id, created_at, "
            f"claimed_at, started_at, completed_at) SELECT {run}, {session}, 'START_SESSION', "
            f"'nothing to do', 'completed', 'former', {at}, {at}, {at}, {at} FROM {numbers}",
            "INSERT INTO run_events (run_id, at, status, actor) "
            f"SELECT {run}, {at}, 'completed', 'runner' FROM {numbers}",
        )

    def pending(self, number: int, share: float, served: int, foreign: int) -> None:
        """Add runs that wait, `share` of them for runners with other tags than ours.

        The texts of each kind take turns, and so do the kinds in the order of time.
        """
        numbers = self._numbers(number)
        run, session, at = self._id("run_p"), self._id("ses_p"), self._time()
        # Of every twenty the first are foreign; `share` is a number of twentieths.
        is_foreign = f"number % 20 < {round(20 * share)}"
        # In parentheses, for to SQLite || binds closer than %.
        other = f"((number / 20 * 19 + number % 20) % {max(1, foreign)})"
        ours = f"((number / 20 + number) % {max(1, served)})"
        named = f"CASE WHEN {is_foreign} THEN '{FOREIGN}' || {other} ELSE '{SERVED}' || {ours} END"
        text = f"""'{{"tags":["' || {named} || '"]}}'"""
        self._execute(
            f"INSERT INTO sessions (session_id, created_at) SELECT {session}, {at} FROM {numbers}",
            "INSERT INTO runs (run_id, session_id, type, prompt, demands, status, created_at) "
            f"SELECT {run}, {session}, 'START_SESSION', 'nothing to do', {text}, 'pending', {at} "
            f"FROM {numbers}",
        )

    def only_finished(self) -> None:
        """Remove all but what `finished` has added."""
        self._execute(
            "DELETE FROM run_events WHERE run_id < 'run_x'",
            "DELETE FROM runs WHERE run_id < 'run_x'",
            "DELETE FROM sessions WHERE session_id < 'ses_x'",
        )

    def _execute(self, *statements: str) -> None:
        with self._transaction() as connection:
            for statement in statements:
                connection.execute(statement)
        self.settle()

    def _id(self, prefix: str) -> str:
        """Ids in no order, as random ones are: an odd factor meets each number of 44 bits once."""
        return f"'{prefix}' || {self.hexadecimal}"

    def _time(self) -> str:
        return f"'{_AT}.' || {self.padded} || 'Z'"


class SqliteFiller(Filler):
    padded = "printf('%06d', number % 1000000)"
    hexadecimal = "printf('%011x', (number * 7046029254387) % 17592186044416)"

    def __init__(self, place: Place) -> None:
        self._path = place.path

    def _numbers(self, number: int) -> str:
        return (
            "(WITH RECURSIVE counted (number) AS (SELECT 1 UNION ALL "
            f"SELECT number + 1 FROM counted WHERE number < {number}) SELECT number FROM counted)"
        )

    @contextmanager
    def _transaction(self) -> Iterator[Any]:
        with closing(sqlite3.connect(self._path, isolation_level=None, timeout=60)) as connection:
            connection.execute("PRAGMA synchronous = off")
            connection.execute("BEGIN IMMEDIATE")
            triggers = connection.execute(
                "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
            ).fetchall()
            for name, _ in triggers:
                connection.execute(f"DROP TRIGGER {name}")
            yield connection
            for _, sql in triggers:
                connection.execute(sql)
            connection.execute("COMMIT")

    def settle(self) -> None:
        with closing(sqlite3.connect(self._path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


class PostgresFiller(Filler):
    padded = "lpad((number % 1000000)::text, 6, '0')"
    hexadecimal = "lpad(to_hex((number * 7046029254387) % 17592186044416), 11, '0')"

    def __init__(self, place: Place) -> None:
        self._url = place.url

    def _numbers(self, number: int) -> str:
        return f"generate_series(1::bigint, {number}) AS counted (number)"

    @contextmanager
    def _transaction(self) -> Iterator[Any]:
        with psycopg.connect(self._url) as connection:
            connection.execute("SET LOCAL session_replication_role = replica")
            connection.execute("SET LOCAL synchronous_commit = off")
            yield connection

    def settle(self) -> None:
        with psycopg.connect(self._url, autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE runs, sessions, run_events")
            connection.execute("CHECKPOINT")


FILLERS: Final[dict[str, Any]] = {"sqlite": SqliteFiller, "postgres": PostgresFiller}
