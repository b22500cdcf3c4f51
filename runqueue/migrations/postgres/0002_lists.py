"""Lists read what they show and nothing else, and a new session is not put in order.

For the lists there are indexes by agent and by runner, and of sessions. And a move and its event
may be one statement, also for a role that may only record what is so.
"""

from __future__ import annotations

from peewee import PostgresqlDatabase

# In forms that no other statement and no other list has, so that the planner has no choice, who may
# not know yet how many runs there are, and can skip the first column of an index. Nor are they
# partial: a condition that keeps a column off its indexes implies that it is not null, and all of
# such an index would be read. The first 200 characters, for an entry has its limit, and a name that
# others write has none.
INDEXES = {
    "idx_runs_agent_status_created": "runs "
    "((left(agent_name, 200) || '/' || status), ('' || created_at))",
    "idx_runs_runner_status_created": "runs "
    "((left(runner_id, 200) || '/' || status), (created_at || ''))",
    "idx_sessions_created": "sessions (created_at)",
}


# Of a run that is alone in a session which this very transaction has made or changed, nothing is to
# be marked: it holds the lock of the session, so nobody else is adding one. In a savepoint the row
# is of the savepoint's own transaction, and the long way is right, too.
ON_INSERT = """
    BEGIN
        IF NEW.waiting = 0
            AND (SELECT xmin FROM sessions WHERE session_id = NEW.session_id)
                = pg_current_xact_id()::xid
            AND NOT EXISTS (
                SELECT 1 FROM runs WHERE session_id = NEW.session_id AND run_id <> NEW.run_id)
        THEN
            RETURN NULL;
        END IF;
        PERFORM runqueue_order_session(NEW.session_id, NEW.run_id);
        RETURN NULL;
    END"""

ORDER_INSERT = (
    "CREATE TRIGGER runs_order_insert AFTER INSERT ON runs FOR EACH ROW "
    "WHEN (NEW.status IN ('pending', 'claimed', 'running', 'stopping')) "
    "EXECUTE FUNCTION runqueue_on_insert()"
)


# Whether the role sees a run, and in this status. A function and not a query of its policy, for
# that would see the rows as they were before the statement that makes the move and records it.
IS_SO = """CREATE FUNCTION runqueue_is_so(run text, entered text) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SET search_path = {schema}, pg_temp AS $$
    BEGIN
        RETURN EXISTS (SELECT 1 FROM runs WHERE run_id = run AND status = entered);
    END $$"""

POLICIES = """
    SELECT quote_ident(policyname) FROM pg_policies WHERE schemaname = current_schema()
    AND tablename = 'run_events' AND cmd = 'INSERT' AND with_check LIKE '%%''runner''%%'"""


def function(name: str, body: str) -> str:
    """As in the first step: of the owner's rights, with a fixed path, planned for a full table."""
    return (
        f"CREATE FUNCTION {name} RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER "
        f"SET search_path = pg_catalog, {{schema}}, pg_temp "
        f"SET enable_seqscan = off AS $$ {body} $$"
    )


def up(migrator: object, db: PostgresqlDatabase) -> None:
    (schema,) = db.execute_sql("SELECT quote_ident(current_schema())").fetchone()
    schema = schema.replace("%", "%%")  # which the driver would take for a parameter
    for name, definition in INDEXES.items():
        db.execute_sql(f"CREATE INDEX {name} ON {definition}")
    db.execute_sql(function("runqueue_on_insert()", ON_INSERT).replace("{schema}", schema))
    db.execute_sql("DROP TRIGGER runs_order_insert ON runs")
    db.execute_sql(ORDER_INSERT)
    db.execute_sql(IS_SO.replace("{schema}", schema))
    for (policy,) in db.execute_sql(POLICIES).fetchall():
        policy = policy.replace("%", "%%")
        db.execute_sql(
            f"ALTER POLICY {policy} ON run_events "
            "WITH CHECK (actor = 'runner' AND runqueue_is_so(run_id, status))"
        )
