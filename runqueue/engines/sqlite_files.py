"""The files of SQLite databases: which one a URL names, made closed to everybody else."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from urllib.parse import unquote

import peewee

from runqueue import errors, settings
from runqueue.engines.base import without_password


def path_of(url: str) -> Path:
    """Return the file of an `sqlite:///` URL. Raises ConfigurationError when it names none."""
    rest = url.partition("://")[2]
    if not rest.startswith("/") or len(rest) < 2:
        raise errors.ConfigurationError(
            f"{without_password(url)} names no file; write sqlite:///PATH"
        )
    if rest == "/:memory:":
        raise errors.ConfigurationError(
            "an in-memory database cannot be shared by processes; name a file"
        )
    if "?" in rest or "#" in rest:
        shown = without_password(url)
        raise errors.ConfigurationError(
            f"{shown} has options behind ? or #, which sqlite:// does not take"
        )
    path = unquote(rest[1:])
    if "\0" in path:
        raise errors.ConfigurationError("the database's path holds a NUL character")
    # Absolute: a run gets the URL in its environment, and has another working directory.
    return Path(path).expanduser().absolute()


def file_of(database: peewee.Database) -> str:
    """Return the file of an open database as SQLite names it; empty for one in memory."""
    ((file,),) = database.execute_sql(
        "SELECT file FROM pragma_database_list WHERE name = 'main'"
    ).fetchall()
    return str(file)


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
