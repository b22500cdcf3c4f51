"""A new database is exactly what design.md says, and what the models say."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import peewee
import pytest

import runqueue
from runqueue import models, schema
from runqueue.engines import base
from runqueue.engines.sqlite import APPLICATION_ID

GIVEN = [  # name, may be null, default: section 2 of design.md
    ("run_id", False, None),
    ("session_id", False, None),
    ("type", False, None),
    ("agent_name", True, None),
    ("prompt", False, None),
    ("project_dir", True, None),
    ("parent_session_id", True, None),
    ("execution_mode", False, "'sync'"),
    ("demands", True, None),
    ("status", False, "'pending'"),
    ("runner_id", True, None),
    ("error", True, None),
    ("created_at", False, None),
    ("claimed_at", True, None),
    ("started_at", True, None),
    ("completed_at", True, None),
    ("timeout_at", True, None),
]

TYPES = {
    peewee.TextField: "TEXT",
    models.StatusField: "TEXT",
    peewee.IntegerField: "INTEGER",
    peewee.AutoField: "INTEGER",
    peewee.FloatField: "REAL",
    peewee.ForeignKeyField: "TEXT",
}


@pytest.fixture
def fresh(path):
    """A database that runqueue has just made."""
    with runqueue.connect(f"sqlite:///{path}"):
        pass
    return path


def test_the_first_seventeen_columns_of_runs_are_the_given_ones_in_order(fresh, sql):
    """SQL written by other people must keep working."""
    rows = sql(fresh, "PRAGMA table_info(runs)")[: len(GIVEN)]
    assert [(name, not required, default) for _, name, _, required, default, _ in rows] == GIVEN
    assert {kind for _, _, kind, *_ in rows} == {"TEXT"}
    assert [name for _, name, *_, key in rows if key] == ["run_id"]


def test_columns_of_ours_come_after_them_and_need_no_value(fresh, sql):
    """An INSERT that names only the given columns makes a normal run."""
    rows = sql(fresh, "PRAGMA table_info(runs)")[len(GIVEN) :]
    assert [row[1] for row in rows] == [
        *("priority", "result", "waiting", "callback_run_id", "attempt", "tells"),
    ]
    assert [(row[2], bool(row[3]), row[4]) for row in rows] == [
        ("INTEGER", True, "0"),
        ("TEXT", False, None),
        ("INTEGER", True, "0"),
        ("TEXT", False, None),
        ("INTEGER", False, None),
        ("INTEGER", False, None),
    ]


@pytest.mark.parametrize(
    ("index", "columns"),
    [
        ("idx_runs_session_id", ["session_id"]),
        ("idx_runs_status", ["status"]),
        ("idx_runs_runner_id", ["runner_id"]),
        ("idx_runs_status_created", ["status", "created_at"]),
    ],
)
def test_the_four_named_indexes_are_there_over_whole_tables(fresh, sql, index, columns):
    """By these names and with exactly these columns."""
    assert [row[2] for row in sql(fresh, f"PRAGMA index_info({index})")] == columns
    listed = {row[1]: row for row in sql(fresh, "PRAGMA index_list(runs)")}
    _, _, unique, _, partial = listed[index]
    assert (unique, partial) == (0, 0)


def test_a_session_has_at_most_one_active_run_by_a_unique_index(fresh, sql):
    """Promise 2 is held by the database, not by our care."""
    listed = {row[1]: row for row in sql(fresh, "PRAGMA index_list(runs)")}
    assert listed["idx_runs_one_active"][2] == 1
    assert [row[2] for row in sql(fresh, "PRAGMA index_info(idx_runs_one_active)")] == [
        "session_id"
    ]


def test_runs_refer_to_sessions_and_go_with_them(fresh, sql):
    """The foreign key of the contract."""
    (row,) = sql(fresh, "PRAGMA foreign_key_list(runs)")
    assert row[2:7] == ("sessions", "session_id", "session_id", "NO ACTION", "CASCADE")


def test_sessions_begin_with_the_columns_of_the_design(fresh, sql):
    """In its order; what we need more comes after them."""
    assert [row[1] for row in sql(fresh, "PRAGMA table_info(sessions)")] == [
        *("session_id", "created_at", "agent_name", "project_dir", "parent_session_id"),
        *("execution_mode", "hostname", "executor_type", "executor_session_id"),
        *("last_resumed_at", "home_dir", "tree_limits"),
    ]
    (row,) = sql(fresh, "PRAGMA foreign_key_list(sessions)")
    assert row[2:7] == ("sessions", "parent_session_id", "session_id", "NO ACTION", "SET NULL")


@pytest.mark.parametrize("model", models.MODELS, ids=lambda model: model.__name__)
def test_a_model_is_its_table_column_by_column(fresh, sql, model):
    """Order, name, type, null, default, key and references."""
    table = model._meta.table_name
    fields = model._meta.sorted_fields
    in_table = [row[1:] for row in sql(fresh, f"PRAGMA table_info({table})")]
    in_model = [
        (
            field.column_name,
            TYPES[type(field)],
            int(not field.null),
            next((part.sql.partition(" ")[2] for part in field.constraints or ()), None),
            int(field.primary_key),
        )
        for field in fields
    ]
    assert in_table == in_model
    references = {
        (row[3], row[2], row[4], row[6]) for row in sql(fresh, f"PRAGMA foreign_key_list({table})")
    }
    assert references == {
        (
            field.column_name,
            field.rel_model._meta.table_name,
            field.rel_field.column_name,
            field.on_delete,
        )
        for field in fields
        if isinstance(field, peewee.ForeignKeyField)
    }


def test_every_table_is_a_model_or_the_history_of_migrations(fresh, sql):
    """Nothing is in the file that the code does not know."""
    tables = {row[0] for row in sql(fresh, "SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert tables == {model._meta.table_name for model in models.MODELS} | {base.HISTORY}


def test_the_file_says_whose_it_is_and_of_which_schema(fresh, sql):
    """`file` and other programs can tell; a newer schema is recognised."""
    assert sql(fresh, "PRAGMA application_id") == [(APPLICATION_ID,)]
    assert sql(fresh, "PRAGMA user_version") == [(schema.VERSION,)]
    assert fresh.read_bytes()[68:72] == b"runq"


def test_the_journal_is_a_write_ahead_log_that_is_synced_at_each_commit(fresh, sql):
    """The first is the file's, the second is ours on every connection."""
    assert sql(fresh, "PRAGMA journal_mode") == [("wal",)]
    with runqueue.connect(f"sqlite:///{fresh}") as queue:
        assert queue.database.execute_sql("PRAGMA synchronous").fetchone() == (2,)
        assert queue.database.execute_sql("PRAGMA foreign_keys").fetchone() == (1,)


def test_foreign_keys_are_on_again_after_the_migration(path):
    """They are off for its time only."""
    with runqueue.connect(f"sqlite:///{path}") as queue:
        assert queue.database.execute_sql("PRAGMA foreign_keys").fetchone() == (1,)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o277])
def test_the_file_and_its_companions_are_closed_to_everybody_else(path, umask):
    """Prompts are private, whatever the umask."""
    before = os.umask(umask)
    try:
        with runqueue.connect(f"sqlite:///{path}") as queue:
            queue.enqueue("private")
            modes = {side: stat.S_IMODE(side.stat().st_mode) for side in path.parent.iterdir()}
    finally:
        os.umask(before)
    assert path in modes
    assert set(modes.values()) == {0o600}


def test_in_a_directory_shared_by_a_group_the_file_is_the_groups(tmp_path):
    """set-group-id and group-writable: runners of other users are meant to use it."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o2770)
    with runqueue.connect(f"sqlite:///{shared / 'queue.db'}"):
        modes = {stat.S_IMODE(side.stat().st_mode) for side in shared.iterdir()}
    assert modes == {0o660}


def test_a_queue_that_was_open_to_the_world_is_closed_when_it_is_opened(fresh):
    """Somebody may have copied it carelessly."""
    fresh.chmod(0o644)
    with runqueue.connect(f"sqlite:///{fresh}"):
        pass
    assert stat.S_IMODE(fresh.stat().st_mode) == 0o640


def test_connecting_again_changes_nothing(fresh, dump):
    """The schema is made once; later connects only look."""
    before = dump(fresh)
    content = fresh.read_bytes()
    with runqueue.connect(f"sqlite:///{fresh}") as queue:
        assert schema.upgrade(queue.store) == []
    assert dump(fresh) == before
    assert fresh.read_bytes() == content


def test_a_database_of_the_callers_own_is_migrated_and_stays_usable(path, sql):
    """`connect` takes the caller's Peewee database too."""
    own = peewee.SqliteDatabase(str(path), pragmas={"foreign_keys": 1})
    try:
        queue = runqueue.connect(own)
        assert queue.enqueue("hello").status == "pending"
        assert own.execute_sql("PRAGMA foreign_keys").fetchone() == (1,)
    finally:
        own.close()
    assert sql(path, "PRAGMA user_version") == [(schema.VERSION,)]


def test_every_migration_is_numbered_without_a_gap():
    """The version is the number of the newest."""
    for kind in ("sqlite", "postgres"):
        folder = Path(schema.__file__).parent / "migrations" / kind
        numbers = sorted(int(one.name[:4]) for one in folder.glob("[0-9]*.py"))
        assert numbers == list(range(1, schema.VERSION + 1))
