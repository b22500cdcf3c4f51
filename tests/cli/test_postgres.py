"""The commands on PostgreSQL: the same, and one sentence for every way in which it is not there."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest

from runqueue import schema
from runqueue.engines import postgres as engine
from runqueue.engines import postgres_urls
from tests import postgres
from tests.cli.conftest import Ended

SECRET = "s3cret:/?#[]@!%20 ü"
ESCAPED = "s3cret%3A%2F%3F%23%5B%5D%40%21%2520%20%C3%BC"


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.Server]:
    """A server that asks for passwords."""
    with postgres.Server(listen=True) as server:
        server.execute(f"CREATE ROLE limited LOGIN PASSWORD '{SECRET}'")
        server.execute("CREATE ROLE other LOGIN PASSWORD 'other'")
        yield server


@pytest.fixture
def database(server: postgres.Server) -> Iterator[str]:
    """The name of an empty database."""
    server.create_database("commands")
    yield "commands"
    server.drop_database("commands")


@pytest.fixture
def closed_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as attempt:
        attempt.bind(("127.0.0.1", 0))
        return int(attempt.getsockname()[1])


def tables(server: postgres.Server, database: str) -> list[str]:
    sql = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1"
    return [row[0] for row in server.execute(sql, database)]


def is_one_sentence(ended: Ended) -> bool:
    """Whether the command said one thing on standard error, and no secret."""
    lines = ended.err.splitlines()
    told = len(lines) == 1 and lines[0].startswith("Error: ") and not ended.out
    return told and not any(part in ended.err for part in ("s3cret", "hunter2", "Traceback"))


def test_the_commands_do_on_postgresql_what_they_do_on_sqlite(
    rq: Callable[..., Ended], server: postgres.Server, database: str
) -> None:
    """The URL is all that is different."""
    url = server.url(database)
    assert (
        rq("db", "init", db=url).out
        == f"postgresql://postgres@127.0.0.1:{server.port}/{database}\n"
    )
    run_id = rq("enqueue", "hello", "--tag", "gpu", db=url).out.strip()
    assert rq("list", "-o", "id", db=url).lines == [run_id]
    assert "no runner is alive" in rq("why", run_id[:8], db=url).out
    assert rq("stop", run_id, db=url).out == f"{run_id} stopped\n"
    assert "stopped" in rq("show", run_id, db=url).out
    assert rq("prune", "--older-than", "0", db=url).out == "1 runs pruned\n"
    assert rq("db", "check", db=url).out.endswith("is sound\n")
    assert rq("db", "upgrade", db=url).out.endswith(f"has schema {schema.VERSION}\n")
    assert rq("status", db=url).code == 0


def test_a_password_may_be_percent_encoded_and_is_never_shown(
    rq: Callable[..., Ended], server: postgres.Server, database: str
) -> None:
    """Whatever characters it has."""
    server.execute(f"ALTER DATABASE {database} OWNER TO limited")
    url = f"postgresql://limited:{ESCAPED}@127.0.0.1:{server.port}/{database}"
    made = rq("db", "init", db=url)
    assert made.out == f"postgresql://limited@127.0.0.1:{server.port}/{database}\n"
    assert rq("status", "-o", "json", db=url).code == 0
    assert "s3cret" not in rq("status", "-o", "json", db=url).out


def test_of_several_hosts_the_one_that_is_there_is_used(
    rq: Callable[..., Ended], server: postgres.Server, database: str, closed_port: int
) -> None:
    """In libpq's own form."""
    url = server.url(database).replace("@127", f"@127.0.0.1:{closed_port},127")
    assert rq("db", "init", db=url).code == 0
    assert rq("enqueue", "hello", db=url).code == 0


def test_a_wrong_password_host_database_or_role_is_told_in_one_sentence(
    rq: Callable[..., Ended], server: postgres.Server, database: str, closed_port: int
) -> None:
    """With the code of a bad configuration, or of a database that is away."""
    good = f"postgresql://limited:{ESCAPED}@127.0.0.1:{server.port}/{database}"
    for url, code, words in (
        (good.replace(ESCAPED, "hunter2"), 78, "password authentication failed"),
        (good.replace(f":{ESCAPED}", ""), 78, "no password supplied"),
        (good.replace(database, "absent"), 78, 'database "absent" does not exist'),
        (good.replace("limited", "nobody"), 78, "authentication failed"),
        (good.replace(str(server.port), str(closed_port)), 75, "refused"),
        (good.replace("127.0.0.1", "no.such.host.invalid"), 75, "no.such.host.invalid"),
        (good.replace("127.0.0.1", "hunter2@127.0.0.1"), 78, "percent-encoded"),
        (good.replace(str(server.port), "hunter2"), 78, "percent-encoded"),
        (good + "?such=hunter2", 78, "percent-encoded"),
    ):
        ended = rq("enqueue", "hello", db=url)
        assert (ended.code, is_one_sentence(ended)) == (code, True), (url, ended)
        assert words in ended.err
    assert tables(server, database) == []


def test_a_role_without_rights_makes_nothing(
    rq: Callable[..., Ended], server: postgres.Server, database: str
) -> None:
    """Neither the schema, nor a part of it; and what is there it cannot read."""
    url = f"postgresql://other:other@127.0.0.1:{server.port}/{database}"
    server.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC", database)
    refused = rq("db", "init", db=url)
    assert (refused.code, is_one_sentence(refused)) == (78, True)
    assert tables(server, database) == []
    rq("db", "init", db=server.url(database))
    refused = rq("list", db=url)
    assert (refused.code, is_one_sentence(refused)) == (78, True)
    assert "permission denied" in refused.err


def test_a_database_without_the_schema_is_not_made_by_looking(
    rq: Callable[..., Ended], server: postgres.Server, database: str
) -> None:
    """A typing mistake must not make a second queue."""
    for command in (("list",), ("show", "run_1"), ("status",)):
        refused = rq(*command, db=server.url(database))
        assert (refused.code, is_one_sentence(refused)) == (78, True)
        assert "db init" in refused.err
    assert tables(server, database) == []


def test_a_table_of_another_program_is_left_alone(
    rq: Callable[..., Ended], server: postgres.Server, database: str
) -> None:
    """The database is somebody else's, or needs a schema of its own for us."""
    server.execute("CREATE TABLE runs (id integer)", database)
    refused = rq("db", "init", db=server.url(database))
    assert (refused.code, is_one_sentence(refused)) == (78, True)
    assert tables(server, database) == ["runs"]


def test_a_server_that_is_too_old_is_told(
    rq: Callable[..., Ended],
    server: postgres.Server,
    database: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before anything is made there."""
    monkeypatch.setattr(engine, "OLDEST", 99)
    refused = rq("db", "init", db=server.url(database))
    assert (refused.code, is_one_sentence(refused)) == (78, True)
    assert "needs 99 or newer" in refused.err
    assert tables(server, database) == []


def test_a_database_of_another_encoding_is_refused(
    rq: Callable[..., Ended], server: postgres.Server
) -> None:
    """It could not hold every prompt."""
    server.execute("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    refused = rq("db", "init", db=server.url("latin"))
    assert (refused.code, is_one_sentence(refused)) == (78, True)
    assert "UTF8" in refused.err
    server.drop_database("latin")


def test_without_the_driver_the_extra_is_named(
    rq: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands work on SQLite without it."""
    monkeypatch.setattr(postgres_urls, "psycopg", None)
    refused = rq("list", db="postgresql://localhost/x")
    assert (refused.code, is_one_sentence(refused)) == (78, True)
    assert "pip install 'runqueue[postgres]'" in refused.err


def test_a_backup_of_a_server_is_its_own_programs_work(
    rq: Callable[..., Ended], server: postgres.Server, database: str, tmp_path
) -> None:
    """No file is left that looks like one."""
    rq("db", "init", db=server.url(database))
    refused = rq("db", "backup", str(tmp_path / "copy"), db=server.url(database))
    assert (refused.code, is_one_sentence(refused)) == (78, True)
    assert "pg_dump" in refused.err
    assert not (tmp_path / "copy").exists()
