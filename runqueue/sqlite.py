"""What is SQLite's own: its URLs and files, its settings, and how its writers take turns."""

from __future__ import annotations

import os
import random
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote, unquote

import peewee

from runqueue import errors, settings

T = TypeVar("T")

APPLICATION_ID: Final = 0x72756E71
"""`runq`, in the SQLite file's header: tells our files from other programs'."""

_PRAGMAS: Final = {
    # WAL with FULL syncs each commit: NORMAL loses acknowledged runs in a power cut.
    "synchronous": "full",
    "foreign_keys": 1,
    "journal_size_limit": 16 * 1024 * 1024,
    # A statement with triggers keeps a journal of its own; in memory it costs a third less.
    "temp_store": "memory",
}


class Database(peewee.SqliteDatabase):
    """SQLite whose writers begin IMMEDIATE and wait for each other fairly.

    A deferred transaction that reads and then writes fails with SQLITE_BUSY at once, whatever
    the timeout. And SQLite's own busy handler sleeps ever longer, so that whoever waits longest
    is served last (p99 of 730 ms among eight busy writers); short random pauses keep it at 10 ms.
    """

    def __init__(self, path: Path, busy_timeout: float) -> None:
        self.path = path
        self.busy_timeout = busy_timeout
        self.renew_turn()
        super().__init__(
            # Never created here: a file that went away must not come back empty and open.
            f"file:{quote(str(path))}?mode=rw",
            uri=True,
            pragmas=_PRAGMAS,
            lock_type="IMMEDIATE",
            timeout=0,
        )

    def _connect(self) -> sqlite3.Connection:
        connection: sqlite3.Connection = self._patiently(super()._connect)  # type: ignore[misc]
        return connection

    def renew_turn(self) -> None:
        """Forget who waits: in the child of a fork they are not there."""
        self._turn = threading.Lock()

    def begin(self, lock_type: str | None = None) -> None:
        # One thread of a process tries at a time: a hundred that try together keep the one
        # that holds the lock from ever getting the interpreter to finish.
        if not self._turn.acquire(timeout=self.busy_timeout):
            raise peewee.OperationalError("database is locked")
        try:
            self._patiently(lambda: super(Database, self).begin(lock_type))
        finally:
            self._turn.release()

    def execute_sql(self, sql: str, params: Sequence[Any] | None = None) -> Any:
        if self.in_transaction():
            return super().execute_sql(sql, params)
        return self._patiently(lambda: super(Database, self).execute_sql(sql, params))

    def _patiently(self, call: Callable[[], T]) -> T:
        began = time.monotonic()
        tries = 0
        while True:
            try:
                return call()
            except (peewee.OperationalError, sqlite3.OperationalError) as error:
                if not _is_busy(error) or time.monotonic() - began >= self.busy_timeout:
                    raise
            tries += 1
            # After some 10 ms the holder is slow, not unlucky: stop burning its processor.
            low, high = (0.00002, 0.0003) if tries < 50 else (0.001, 0.003)
            time.sleep(random.uniform(low, high))


def _is_busy(error: BaseException) -> bool:
    return "database is locked" in str(error) or "database table is locked" in str(error)


def path_of(url: str) -> Path:
    scheme, separator, rest = url.partition("://")
    if not separator:
        # What is no URL may be the password of one.
        is_path = not set(url) & set("@=: ")
        raise errors.ConfigurationError(
            f"{url} is not a database URL; write sqlite:///{url}"
            if is_path
            else "the database URL has no scheme; write sqlite:///PATH"
        )
    if scheme in ("postgresql", "postgres"):
        raise errors.ConfigurationError(
            "this version of runqueue runs on SQLite only; write sqlite:///PATH"
        )
    if scheme != "sqlite":
        raise errors.ConfigurationError(f"unknown database scheme {scheme[:20]!r}; use sqlite://")
    if not rest.startswith("/") or len(rest) < 2:
        raise errors.ConfigurationError(
            f"{without_password(url)} names no file; write sqlite:///PATH"
        )
    if rest == "/:memory:":
        raise errors.ConfigurationError(
            "an in-memory database cannot be shared by processes; name a file"
        )
    if "?" in rest or "#" in rest:
        raise errors.ConfigurationError(
            f"{without_password(url)} has options behind ? or #, which sqlite:// does not take"
        )
    path = unquote(rest[1:])
    if "\0" in path:
        raise errors.ConfigurationError("the database's path holds a NUL character")
    # Absolute: a run gets the URL in its environment, and has another working directory.
    return Path(path).expanduser().absolute()


def without_password(url: str) -> str:
    """Return a database URL fit for a message: without password and options."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    rest = rest.partition("?")[0].partition("#")[0]
    user, at, host = rest.rpartition("@")
    return f"{scheme}{separator}{user.partition(':')[0]}{at}{host}"


def prepare_file(path: Path) -> None:
    """Create the file closed to the world, before SQLite can create it open.

    It must be closed again before SQLite opens it, for closing any handle of a file drops all
    POSIX locks that the process holds on it; therefore a file that exists is never opened here.
    """
    parent = path.parent
    try:
        if not parent.exists() and parent == _default_directory():
            parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = parent.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise errors.ConfigurationError(
                f"the directory {parent} is writable by everybody; a database there is not safe"
            )
        shared = mode & stat.S_ISGID and mode & stat.S_IWGRP
        wanted = 0o660 if shared else 0o600
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, wanted)
        except FileExistsError:
            _check_file(path)
            return
        try:
            os.fchmod(handle, wanted)  # the umask may have taken the group's rights
        finally:
            os.close(handle)
    except FileNotFoundError:
        if path.is_symlink():
            raise errors.ConfigurationError(f"the link {path} leads to no file") from None
        raise errors.ConfigurationError(f"the directory {parent} does not exist") from None
    except (PermissionError, NotADirectoryError, OSError) as error:
        raise errors.ConfigurationError(
            f"the database {path} cannot be created: {error.strerror}"
        ) from None


def _default_directory() -> Path:
    return path_of(settings.default_url({**os.environ, "RUNQUEUE_DB": ""})).parent


def _check_file(path: Path) -> None:
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise errors.ConfigurationError(f"the database {path} is a directory")
    if not stat.S_ISREG(status.st_mode):
        raise errors.ConfigurationError(f"the database {path} is not a regular file")
    if not os.access(path, os.R_OK | os.W_OK):
        raise errors.ConfigurationError(f"the database {path} may not be read and written by you")


def close_to_the_world(path: Path) -> None:
    """Take everybody else's rights on a database that somebody created open."""
    for side in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
        try:
            status = side.stat()
            if status.st_mode & 0o007 and status.st_uid == os.geteuid():
                side.chmod(stat.S_IMODE(status.st_mode) & ~0o007)
        except FileNotFoundError:
            continue
