"""Who may do what on PostgreSQL, as the SQL that an administrator executes.

The owner changes the schema, the operator changes rows, and a runner's role does what a runner
does and sees no more of the runs of others than claiming needs: columns by grants, rows by
row-level security. `docs/security.md` says what that protects, and what it does not.
"""

from __future__ import annotations

from typing import Final

ROLES: Final = ("owner", "operator", "runner")

READS: Final = " reads"
CHANGES: Final = " changes"
LONGEST: Final = 63 - len(CHANGES)
"""Bytes of a role's name: PostgreSQL cuts names at 63, and the policies are called after it."""

TABLES: Final = (
    *("sessions", "runs", "runners", "run_events", "run_attempts", "run_output", "daemons"),
    "runqueue_migrations",
)
GUARDED: Final = (*("sessions", "runs", "runners", "run_events", "run_attempts", "run_output"),)
"""The tables of which a runner's role sees a part of the rows."""

HEAL: Final = "runqueue_heal()"
"""Corrects the order of sessions, of which a runner's role sees too little to do it itself."""

_ON_RUNS: Final = (
    *("run_id", "session_id", "type", "agent_name", "prompt", "project_dir", "parent_session_id"),
    *("execution_mode", "demands", "status", "runner_id", "error", "created_at", "claimed_at"),
    *("started_at", "completed_at", "timeout_at", "priority", "result", "waiting", "claimed_by"),
    *("callback_run_id", "attempt", "tells"),
)
_MOVED: Final = (
    *("status", "runner_id", "claimed_at", "started_at", "completed_at", "result", "error"),
    # A session that is bound hands its home on to its pending runs.
    "demands",
)
_SEEN: Final = (
    *("session_id", "hostname", "home_dir", "project_dir", "executor_type", "executor_session_id"),
)
_BOUND: Final = (
    *("hostname", "executor_type", "home_dir", "project_dir", "last_resumed_at"),
    "executor_session_id",
)
_REGISTERED: Final = (
    *("incarnation", "hostname", "project_dir", "executor_type", "tags", "properties"),
    *("registered_at", "heartbeat_at", "lease_until", "state"),
)
_ON_ATTEMPTS: Final = (
    *("run_id", "former_run_id", "next_run_id", "retries", "delay", "on_lost", "lost", "due_at"),
)

_COLUMNS: Final = (
    ("SELECT", "runqueue_migrations", ("name",)),
    ("SELECT", "daemons", ("alive_until", "lease")),
    ("SELECT", "sessions", _SEEN),
    ("UPDATE", "sessions", _BOUND),
    ("SELECT", "runs", _ON_RUNS),
    ("UPDATE", "runs", _MOVED),
    ("SELECT", "runners", ("runner_id", *_REGISTERED, "registered_by")),
    ("INSERT", "runners", ("runner_id", *_REGISTERED)),
    ("UPDATE", "runners", _REGISTERED),
    ("INSERT", "run_events", ("run_id", "at", "status", "actor", "detail")),
    ("SELECT", "run_attempts", _ON_ATTEMPTS),
    # Asking for another attempt; a daemon makes it, for a runner's role adds no runs.
    ("UPDATE", "run_attempts", ("due_at", "lost")),
    *((right, "run_output", ("run_id", "output_at")) for right in ("SELECT", "INSERT")),
    ("UPDATE", "run_output", ("output_at",)),
)

# No condition of a policy may have the form of an index: the planner would take it for the first
# thing to look up, and a claim would read all pending runs.
_IS_PENDING: Final = "(status || '') = 'pending'"
_IS_ACTIVE: Final = "(status || '') IN ('claimed', 'running', 'stopping')"
_IS_ITS_OWN: Final = "claimed_by = current_user"
_BY_ITS_RUNNER: Final = (
    "(SELECT true FROM runners WHERE runners.runner_id = runs.runner_id "
    "AND runners.registered_by = current_user LIMIT 1)"
)
# A move is recorded with it or right after it, so an event says what its run says.
_IS_SO: Final = "runqueue_is_so(run_id, status)"

_IS_AT_WORK_IN_IT: Final = (
    "(SELECT true FROM runs WHERE runs.session_id = sessions.session_id "
    "AND (runs.status IN ('claimed', 'running', 'stopping')) IS NOT FALSE "
    "AND runs.claimed_by = current_user LIMIT 1)"
)

_IS_OF_ITS_RUN: Final = (
    "(SELECT true FROM runs WHERE runs.run_id = run_attempts.run_id "
    "AND runs.claimed_by = current_user LIMIT 1)"
)
_IS_ITS_OUTPUT: Final = (
    "(SELECT true FROM runs WHERE runs.run_id = run_output.run_id "
    "AND runs.claimed_by = current_user LIMIT 1)"
)

_RUNNERS_POLICIES: Final = (
    # A condition on which sessions are seen would have to be tested before that of a join, and a
    # claim would read all of them; what is tested afterwards is which ones may be changed.
    ("sessions", READS, "SELECT", "USING (true)"),
    ("sessions", CHANGES, "UPDATE", f"USING (true) WITH CHECK ({_IS_AT_WORK_IN_IT})"),
    ("runs", READS, "SELECT", f"USING ({_IS_PENDING} OR {_IS_ITS_OWN})"),
    (
        *("runs", CHANGES, "UPDATE"),
        # Of what it has finished, it can change nothing more.
        f"USING ({_IS_PENDING} OR ({_IS_ACTIVE} AND {_IS_ITS_OWN})) "
        f"WITH CHECK ({_IS_PENDING} OR ({_IS_ITS_OWN} AND {_BY_ITS_RUNNER}))",
    ),
    ("runners", CHANGES, "ALL", "USING (registered_by = current_user)"),
    (
        *("run_events", CHANGES, "INSERT"),
        f"WITH CHECK (actor = 'runner' AND {_IS_SO})",
    ),
    ("run_attempts", READS, "SELECT", f"USING ({_IS_OF_ITS_RUN})"),
    ("run_attempts", CHANGES, "UPDATE", f"USING ({_IS_OF_ITS_RUN})"),
    ("run_output", CHANGES, "ALL", f"USING ({_IS_ITS_OUTPUT})"),
)

_CREATE: Final = """IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = grantee) THEN
        EXECUTE format('CREATE ROLE %I NOLOGIN', grantee);
    END IF;"""

_OWN: Final = """\
DO $$
DECLARE
    grantee name := current_setting('runqueue.grantee');
    place name := current_schema();
    statement text;
BEGIN
    IF place IS NULL THEN
        RAISE EXCEPTION 'the search_path names no schema that exists; create the schema first';
    END IF;
    {create}
    EXECUTE format('GRANT USAGE, CREATE ON SCHEMA %I TO %I', place, grantee);
    -- Up to PostgreSQL 14 everybody may create tables in the schema public.
    EXECUTE format('REVOKE CREATE ON SCHEMA %I FROM PUBLIC', place);
    -- What somebody else has made already becomes the owner's.
    IF to_regclass(format('%I.runqueue_migrations', place)) IS NOT NULL THEN
        FOR statement IN
            SELECT format('ALTER TABLE %s OWNER TO %I', c.oid::regclass, grantee)
                FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                WHERE n.nspname = place AND c.relkind IN ('r', 'v')
                AND c.relname IN ({tables}, 'runqueue_closing')
                AND c.relowner <> quote_ident(grantee)::regrole
            UNION ALL
            SELECT format('ALTER FUNCTION %s OWNER TO %I', p.oid::regprocedure, grantee)
                FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
                WHERE n.nspname = place AND p.proname LIKE 'runqueue\\_%'
                AND p.proowner <> quote_ident(grantee)::regrole
        LOOP
            EXECUTE statement;
        END LOOP;
    END IF;
END $$;"""

_USE: Final = """\
DO $$
DECLARE
    grantee name := current_setting('runqueue.grantee');
    place name;
    owner oid;
BEGIN
    SELECT n.nspname, c.relowner INTO place, owner
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.oid = to_regclass('runqueue_migrations');
    IF place IS NULL THEN
        RAISE EXCEPTION 'there is no runqueue in the search_path; make it first: runqueue db init';
    END IF;
    {create}
    IF pg_has_role(grantee, owner, 'MEMBER') THEN
        RAISE EXCEPTION 'the role % can act as the owner of the tables; choose another', grantee;
    END IF;
    IF NOT has_database_privilege(grantee, current_database(), 'CONNECT') THEN
        EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), grantee);
    END IF;
    IF NOT has_schema_privilege(grantee, place, 'USAGE') THEN
        EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', place, grantee);
    END IF;
    -- From here on each name is that of a table in this schema.
    PERFORM set_config('search_path', format('%I, pg_temp', place), true);
END $$;"""

_NOT_BEYOND: Final = """\
DO $$ BEGIN
    IF EXISTS (
        SELECT 1 FROM pg_roles
        WHERE rolname = current_setting('runqueue.grantee') AND rolbypassrls
    ) THEN
        RAISE EXCEPTION 'the role has BYPASSRLS and would see every row; choose another';
    END IF;
END $$;"""


def sql(role: str, name: str | None = None) -> str:
    """Return the SQL that gives a PostgreSQL role the rights of an owner, operator or runner.

    It may be executed again, and takes away what an earlier version gave and this one does not.
    Raises ValueError for a name that cannot be a role's.
    """
    name = _checked(f"runqueue_{role}" if name is None else name)
    parts = [
        f"-- The rights of runqueue's {role}, on the schema that is first in the search_path.",
        "BEGIN;",
        # A lock that is waited for keeps everybody else out meanwhile.
        "SET LOCAL lock_timeout = '10s';",
        "SET LOCAL client_min_messages = 'warning';",
        # The one place where the name is a text: a DO block must not have it spliced in.
        f"SET LOCAL runqueue.grantee = {_quoted(name)};",
        (_OWN if role == "owner" else _USE)
        .replace("{create}", _CREATE)
        .replace("{tables}", ", ".join(f"'{table}'" for table in TABLES)),
    ]
    if role != "owner":
        rights = _operators if role == "operator" else _runners
        parts += [*_withdrawn(name), *rights(name)]
    return "\n".join((*parts, "COMMIT;", ""))


def _withdrawn(name: str) -> list[str]:
    """Take away all that was given, for the role may have been another of the three before."""
    return [
        f"REVOKE ALL ON {', '.join(TABLES)} FROM {_identifier(name)};",
        f"REVOKE ALL ON FUNCTION {HEAL} FROM {_identifier(name)};",
        *(
            f"DROP POLICY IF EXISTS {_identifier(name + kind)} ON {table};"
            for table in GUARDED
            for kind in (READS, CHANGES)
        ),
    ]


def _operators(name: str) -> list[str]:
    grantee = _identifier(name)
    return [
        f"GRANT SELECT ON runqueue_migrations TO {grantee};",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON sessions, runs, runners, run_attempts, daemons "
        f"TO {grantee};",
        # Events are only ever added; those of a deleted run go by the owner's right.
        f"GRANT SELECT, INSERT ON run_events TO {grantee};",
        f"GRANT SELECT, INSERT, UPDATE ON run_output TO {grantee};",
        f"GRANT EXECUTE ON FUNCTION {HEAL} TO {grantee};",
        *(_policy(name, table, CHANGES, "ALL", "USING (true)") for table in GUARDED),
    ]


def _runners(name: str) -> list[str]:
    grantee = _identifier(name)
    return [
        _NOT_BEYOND,
        *(
            f"GRANT {right} ({', '.join(columns)}) ON {table} TO {grantee};"
            for right, table, columns in _COLUMNS
        ),
        f"GRANT DELETE ON runners TO {grantee};",
        f"GRANT EXECUTE ON FUNCTION {HEAL} TO {grantee};",
        *(_policy(name, *policy) for policy in _RUNNERS_POLICIES),
        *(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY;" for table in GUARDED),
    ]


def _policy(name: str, table: str, kind: str, command: str, rule: str) -> str:
    called = _identifier(name + kind)
    return f"CREATE POLICY {called} ON {table} FOR {command} TO {_identifier(name)} {rule};"


def _checked(name: str) -> str:
    if not name.isprintable() or not name.strip():
        raise ValueError("the name of a role must be text that can be printed")
    if len(name.encode("utf-8", "replace")) > LONGEST:
        raise ValueError(f"the name of a role may have {LONGEST} bytes here")
    # Quoted or not, the first two are words to PostgreSQL: "public" would be everybody.
    if name in ("public", "none") or name.startswith("pg_"):
        raise ValueError(f"{name} cannot be the name of a role")
    return name


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _quoted(text: str) -> str:
    # As an E string where a setting of the server's would decide what a backslash is.
    escaped = text.replace("'", "''").replace("\\", "\\\\")
    return f"E'{escaped}'" if "\\" in text else f"'{escaped}'"
