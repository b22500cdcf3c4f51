"""The tests' own PostgreSQL: it is gone with its process, and keeps what it holds till then."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests import postgres
from tests.helpers import LONG, ROOT, wait_until

psycopg = pytest.importorskip("psycopg")

STARTS = """
import sys
from tests.postgres import shared
print(shared().pid, shared().directory, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def server() -> Iterator[postgres.Server]:
    try:
        with postgres.Server(listen=True) as server:
            yield server
    except postgres.NoPostgres as error:
        pytest.skip(str(error))


def _processes(pid: int) -> list[psutil.Process]:
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def _is_gone(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("is_killed", [True, False], ids=["killed", "ended"])
def test_a_server_is_gone_with_its_process(server: postgres.Server, is_killed: bool) -> None:
    """Every process of it, and its directory: at once, or when the next server is made."""
    argv = [sys.executable, "-c", STARTS]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as child:
        assert child.stdout
        pid, directory = child.stdout.readline().split()
        started = _processes(int(pid))
        if is_killed:
            child.kill()
        child.communicate(timeout=LONG)
    wait_until(lambda: all(_is_gone(process) for process in started))
    if is_killed:
        os.utime(directory, (0, 0))
        with postgres.Server():
            assert server.execute("SELECT 1") == [(1,)], "it has nothing to do with that one"
    assert not Path(directory).exists()


@pytest.mark.parametrize("how", ["fast", "immediate"])
def test_a_restart_keeps_what_was_committed_and_the_address(
    server: postgres.Server, how: str
) -> None:
    """Durability is off, for which the test asks the server to write before it is killed."""
    address = server.url("kept")
    server.create_database("kept")
    server.execute("CREATE TABLE t AS SELECT 1 AS one", "kept")
    server.execute("CHECKPOINT")
    server.restart("fast" if how == "fast" else "immediate")
    assert server.url("kept") == address
    with psycopg.connect(address) as connection:
        assert connection.execute("SELECT one FROM t").fetchall() == [(1,)]
    server.drop_database("kept")


def test_a_wrong_password_is_refused_by_tcp(server: postgres.Server) -> None:
    """And so is none at all."""
    psycopg.connect(server.url()).close()
    for password in ("wrong", ""):
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(server.url(password=password), connect_timeout=5)


def test_a_forked_child_leaves_the_server_alone(server: postgres.Server) -> None:
    """It inherits what ends the server, and has no right to it."""
    code = (
        "import os; from tests.postgres import shared; server = shared()\n"
        "if os.fork() == 0: raise SystemExit\n"
        "assert os.wait()[1] == 0; print(server.execute('SELECT 7'), server.directory.exists())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[(7,)] True\n", "")
