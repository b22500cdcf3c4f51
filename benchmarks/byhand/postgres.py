"""By hand with `psycopg`; batches go as arrays, for a statement a row would cost a trip each."""

# ruff: noqa: S608 - the SQL is put together from constants of this module and numbers
from __future__ import annotations

import psycopg

from benchmarks.byhand import PLACE, RUNNER, TEXTS, Token, insist, new_id, now
from benchmarks.places import Place

SETTINGS = """
    SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off;
    SET join_collapse_limit = 1; SET jit = off;
    SET plan_cache_mode = force_generic_plan; SET runqueue.rings = 'after commit'"""
"""Keep plans by index; the last has the triggers tell nobody, which would cost each commit."""
INSERT_SESSION = (
    "INSERT INTO sessions (session_id, created_at, execution_mode) VALUES (%s, %s, 'sync')"
)
INSERT_RUN = (
    "INSERT INTO runs (run_id, session_id, type, prompt, status, created_at) "
    "VALUES (%s, %s, 'START_SESSION', %s, 'pending', %s)"
)
INSERT_EVENT = (
    "INSERT INTO run_events (run_id, at, status, actor, detail) VALUES (%s, %s, %s, %s, %s)"
)
INSERT_SESSIONS = (
    "INSERT INTO sessions (session_id, created_at, execution_mode) "
    "SELECT *, 'sync' FROM unnest(%s::text[], %s::text[])"
)
INSERT_RUNS = (
    "INSERT INTO runs (run_id, session_id, prompt, created_at, type, status) "
    "SELECT *, 'START_SESSION', 'pending' "
    "FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[])"
)
INSERT_EVENTS = (
    "INSERT INTO run_events (run_id, at, status, actor, detail) "
    "SELECT *, %s, %s, %s, %s FROM unnest(%s::text[])"
)


def claim(limit: int, depth: int) -> str:
    return f"""
        UPDATE runs SET status = 'claimed', runner_id = %s, claimed_at = %s
        WHERE run_id = ANY (ARRAY(
            SELECT run.run_id FROM unnest(%s::text[]) AS text
            CROSS JOIN LATERAL (
                SELECT run_id, priority, created_at FROM runs
                WHERE (status = 'pending') IS TRUE AND waiting = 0
                AND (CASE WHEN demands IS NULL THEN '' ELSE demands END) = text
                AND (timeout_at > %s OR timeout_at IS NULL)
                ORDER BY priority DESC, created_at, run_id LIMIT {depth}) AS first
            JOIN runs AS run ON run.run_id = first.run_id
            WHERE (run.status || '') = 'pending'
            ORDER BY first.priority DESC, first.created_at, first.run_id LIMIT {limit}
            FOR NO KEY UPDATE OF run SKIP LOCKED))
        RETURNING run_id, session_id, claimed_at, type, agent_name, prompt, project_dir,
            parent_session_id, execution_mode, demands, created_at, timeout_at, priority"""


CLAIM = claim(1, 4)
# Not by plain columns, or the planner takes the index of runners or statuses for each run.
START = (
    "UPDATE runs SET status = 'running', started_at = %s "
    "WHERE run_id = %s AND (status || '') = 'claimed' "
    "AND (runner_id || '') = %s AND claimed_at = %s"
)
BIND = (
    "UPDATE sessions SET hostname = %s, last_resumed_at = %s "
    "WHERE session_id = %s AND hostname IS NULL"
)
COMPLETE = (
    "UPDATE runs SET status = 'completed', completed_at = %s, result = %s WHERE run_id = %s "
    "AND (status || '') IN ('running', 'stopping') "
    "AND (runner_id || '') = %s AND claimed_at = %s"
)
_OF_LIST = (
    "FROM unnest(%s::text[], %s::text[]) AS listed (id, at) "
    "WHERE run_id = listed.id AND claimed_at = listed.at AND (runner_id || '') = %s "
    "AND (status || '') "
)
START_MANY = f"UPDATE runs SET status = 'running', started_at = %s {_OF_LIST} = 'claimed'"
BIND_MANY = (
    "UPDATE sessions SET hostname = %s, last_resumed_at = %s "
    "WHERE session_id = ANY (%s) AND hostname IS NULL"
)
COMPLETE_MANY = (
    f"UPDATE runs SET status = 'completed', completed_at = %s, result = %s {_OF_LIST} "
    "IN ('running', 'stopping')"
)


class ByHand:
    """The work on one connection."""

    def __init__(self, place: Place) -> None:
        self._connection = psycopg.connect(place.url, autocommit=True)
        self._connection.execute(SETTINGS)
        self._connection.prepare_threshold = 0

    def enqueue(self, prompt: str) -> None:
        session_id, run_id, at = new_id("ses"), new_id("run"), now()
        with self._connection.transaction():
            self._connection.execute(INSERT_SESSION, (session_id, at))
            self._connection.execute(INSERT_RUN, (run_id, session_id, prompt, at))
            self._connection.execute(INSERT_EVENT, (run_id, at, "pending", "caller", None))

    def claim(self) -> Token:
        at = now()
        with self._connection.transaction():
            (row,) = self._connection.execute(CLAIM, (RUNNER, at, TEXTS, at)).fetchall()
            self._connection.execute(INSERT_EVENT, (row[0], at, "claimed", "runner", RUNNER))
        return Token(*row[:3])

    def start(self, claim: Token) -> None:
        at = now()
        with self._connection.transaction():
            fence = (claim.run_id, RUNNER, claim.claimed_at)
            insist(self._connection.execute(START, (at, *fence)).rowcount)
            self._connection.execute(INSERT_EVENT, (claim.run_id, at, "running", "runner", None))
            self._connection.execute(BIND, (PLACE, at, claim.session_id))

    def complete(self, claim: Token, result: str) -> None:
        at = now()
        with self._connection.transaction():
            fence = (claim.run_id, RUNNER, claim.claimed_at)
            insist(self._connection.execute(COMPLETE, (at, result, *fence)).rowcount)
            self._connection.execute(INSERT_EVENT, (claim.run_id, at, "completed", "runner", None))

    def enqueue_many(self, prompts: list[str]) -> None:
        runs = [new_id("run") for _ in prompts]
        sessions = [new_id("ses") for _ in prompts]
        times = [now() for _ in prompts]
        with self._connection.transaction():
            self._connection.execute(INSERT_SESSIONS, (sessions, times))
            self._connection.execute(INSERT_RUNS, (runs, sessions, prompts, times))
            self._events(runs, now(), "pending", "caller", None)

    def claim_many(self, limit: int) -> list[Token]:
        at = now()
        with self._connection.transaction():
            statement = claim(limit, 2 * limit)
            rows = self._connection.execute(statement, (RUNNER, at, TEXTS, at)).fetchall()
            self._events([row[0] for row in rows], at, "claimed", "runner", RUNNER)
        return [Token(*row[:3]) for row in rows]

    def finish_many(self, claims: list[Token], result: str) -> None:
        at = now()
        runs = [one.run_id for one in claims]
        fences = (runs, [one.claimed_at for one in claims], RUNNER)
        with self._connection.transaction():
            insist(self._connection.execute(START_MANY, (at, *fences)).rowcount, len(claims))
            self._events(runs, at, "running", "runner", None)
            sessions = [one.session_id for one in claims]
            self._connection.execute(BIND_MANY, (PLACE, at, sessions))
            completed = self._connection.execute(COMPLETE_MANY, (at, result, *fences))
            insist(completed.rowcount, len(claims))
            self._events(runs, at, "completed", "runner", None)

    def _events(
        self, runs: list[str], at: str, status: str, actor: str, detail: str | None
    ) -> None:
        self._connection.execute(INSERT_EVENTS, (at, status, actor, detail, runs))

    def close(self) -> None:
        self._connection.close()
