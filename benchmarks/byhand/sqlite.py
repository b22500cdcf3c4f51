"""By hand with `sqlite3`."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.byhand import PLACE, RUNNER, TEXTS, Token, insist, new_id, now
from benchmarks.places import Place

INSERT_SESSION = (
    "INSERT INTO sessions (session_id, created_at, execution_mode) VALUES (?, ?, 'sync')"
)
INSERT_RUN = (
    "INSERT INTO runs (run_id, session_id, type, prompt, status, created_at) "
    "VALUES (?, ?, 'START_SESSION', ?, 'pending', ?)"
)
INSERT_EVENT = "INSERT INTO run_events (run_id, at, status, actor, detail) VALUES (?, ?, ?, ?, ?)"
CLAIM = """
    UPDATE runs SET status = 'claimed', runner_id = ?, claimed_at = ?
    WHERE run_id = (
        SELECT best.run_id FROM json_each(?) AS text JOIN runs AS best ON best.run_id = (
            SELECT run_id FROM runs
            WHERE status = 'pending' AND waiting = 0 AND coalesce(demands, '') = text.value
            AND (timeout_at > ? OR timeout_at IS NULL)
            ORDER BY priority DESC, created_at, run_id LIMIT 1)
        ORDER BY best.priority DESC, best.created_at, best.run_id LIMIT 1)
    RETURNING run_id, session_id, claimed_at, type, agent_name, prompt, project_dir,
        parent_session_id, execution_mode, demands, created_at, timeout_at, priority"""
START = (
    "UPDATE runs SET status = 'running', started_at = ? "
    "WHERE run_id = ? AND status = 'claimed' AND runner_id = ? AND claimed_at = ?"
)
BIND = (
    "UPDATE sessions SET hostname = ?, last_resumed_at = ? "
    "WHERE session_id = ? AND hostname IS NULL"
)
COMPLETE = (
    "UPDATE runs SET status = 'completed', completed_at = ?, result = ? WHERE run_id = ? "
    "AND status IN ('running', 'stopping') AND runner_id = ? AND claimed_at = ?"
)


class ByHand:
    """The work on one connection."""

    def __init__(self, place: Place) -> None:
        self._connection = sqlite3.connect(place.path, isolation_level=None)
        for pragma in ("synchronous = full", "foreign_keys = on", "temp_store = memory"):
            self._connection.execute(f"PRAGMA {pragma}")
        self._texts = json.dumps(TEXTS)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._connection.execute("BEGIN IMMEDIATE")
        with self._connection:
            yield self._connection

    def enqueue(self, prompt: str) -> None:
        session_id, run_id, at = new_id("ses"), new_id("run"), now()
        with self._transaction() as connection:
            connection.execute(INSERT_SESSION, (session_id, at))
            connection.execute(INSERT_RUN, (run_id, session_id, prompt, at))
            connection.execute(INSERT_EVENT, (run_id, at, "pending", "caller", None))

    def claim(self) -> Token:
        at = now()
        with self._transaction() as connection:
            (row,) = connection.execute(CLAIM, (RUNNER, at, self._texts, at)).fetchall()
            connection.execute(INSERT_EVENT, (row[0], at, "claimed", "runner", RUNNER))
        return Token(*row[:3])

    def start(self, claim: Token) -> None:
        at = now()
        with self._transaction() as connection:
            fence = (claim.run_id, RUNNER, claim.claimed_at)
            insist(connection.execute(START, (at, *fence)).rowcount)
            connection.execute(INSERT_EVENT, (claim.run_id, at, "running", "runner", None))
            connection.execute(BIND, (PLACE, at, claim.session_id))

    def complete(self, claim: Token, result: str) -> None:
        at = now()
        with self._transaction() as connection:
            fence = (claim.run_id, RUNNER, claim.claimed_at)
            insist(connection.execute(COMPLETE, (at, result, *fence)).rowcount)
            connection.execute(INSERT_EVENT, (claim.run_id, at, "completed", "runner", None))

    def enqueue_many(self, prompts: list[str]) -> None:
        rows = [(new_id("run"), new_id("ses"), prompt, now()) for prompt in prompts]
        with self._transaction() as connection:
            connection.executemany(INSERT_SESSION, [(row[1], row[3]) for row in rows])
            connection.executemany(INSERT_RUN, rows)
            connection.executemany(
                INSERT_EVENT, [(row[0], row[3], "pending", "caller", None) for row in rows]
            )

    def claim_many(self, limit: int) -> list[Token]:
        at = now()
        claims: list[Token] = []
        with self._transaction() as connection:
            while len(claims) < limit:
                rows = connection.execute(CLAIM, (RUNNER, at, self._texts, at)).fetchall()
                if not rows:
                    break
                claims.append(Token(*rows[0][:3]))
            connection.executemany(
                INSERT_EVENT, [(one.run_id, at, "claimed", "runner", RUNNER) for one in claims]
            )
        return claims

    def finish_many(self, claims: list[Token], result: str) -> None:
        at = now()
        with self._transaction() as connection:
            fences = [(one.run_id, RUNNER, one.claimed_at) for one in claims]
            started = connection.executemany(START, [(at, *fence) for fence in fences])
            insist(started.rowcount, len(claims))
            connection.executemany(
                INSERT_EVENT, [(one.run_id, at, "running", "runner", None) for one in claims]
            )
            connection.executemany(BIND, [(PLACE, at, one.session_id) for one in claims])
            completed = connection.executemany(COMPLETE, [(at, result, *one) for one in fences])
            insist(completed.rowcount, len(claims))
            connection.executemany(
                INSERT_EVENT, [(one.run_id, at, "completed", "runner", None) for one in claims]
            )

    def close(self) -> None:
        self._connection.close()
