"""Many processes that start at once agree on one schema, made once."""

from __future__ import annotations

import pytest

from runqueue import schema

CHILD = """
import sys
import runqueue
from runqueue import schema
from runqueue.database import open_store

store = open_store  # loaded before the start
print("ready", flush=True)
sys.stdin.readline()
store = open_store(sys.argv[1], busy_timeout=30)
steps = schema.upgrade(store)
store.close()
with runqueue.connect(sys.argv[1]) as queue:
    queue.enqueue("from " + sys.argv[2])
print(len(steps), flush=True)
"""


@pytest.mark.parametrize("kind", ["no file", "an empty file", "a database to adopt"])
def test_eight_processes_connect_at_once_and_one_of_them_migrates(kind, path, python, given, sql):
    """All succeed, and the migration is applied once."""
    if kind == "an empty file":
        path.touch()
    elif kind == "a database to adopt":
        given("INSERT INTO sessions VALUES ('ses_1', 'a', 'x', '2025-01-01T00:00:00', NULL)")
    children = [python(CHILD, f"sqlite:///{path}", number) for number in range(8)]
    try:
        for child in children:
            assert child.stdout.readline() == "ready\n", child.stderr.read()
        for child in children:
            child.stdin.write("go\n")
            child.stdin.flush()
        ends = [child.communicate(timeout=60) for child in children]
    finally:
        for child in children:
            child.kill()
            child.communicate()
    assert [child.returncode for child in children] == [0] * 8, [error for _, error in ends]
    assert sorted(output.strip() for output, _ in ends) == ["0"] * 7 + [str(schema.VERSION)]
    assert sql(path, "SELECT count(*) FROM runqueue_migrations") == [(schema.VERSION,)]
    assert sql(path, "SELECT count(*) FROM runs") == [(8,)]
    assert sql(path, "PRAGMA integrity_check") == [("ok",)]
