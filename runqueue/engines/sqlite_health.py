"""Whether an SQLite file and its place are fit for a queue; nothing is changed."""

from __future__ import annotations

import grp
import os
import pwd
import re
import shutil
import sqlite3
import stat
from functools import partial
from pathlib import Path
from typing import Final

import peewee

from runqueue.engines.sqlite_turns import JOURNAL_LIMIT
from runqueue.findings import MIB, Check, Finding, fail, mib, ok, warn

OLDEST: Final = (3, 35, 0)
"""The oldest library that knows RETURNING."""
LONG_LOG: Final = 8 * JOURNAL_LIMIT
LITTLE_ROOM: Final = 1024 * MIB
NO_ROOM: Final = 64 * MIB
MOUNTS: Final = Path("/proc/self/mountinfo")

NETWORK: Final = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "davfs", "lustre", "gpfs"),
        *("glusterfs", "beegfs", "ocfs2", "gfs2", "orangefs", "virtiofs", "vboxsf", "prl_fs"),
        *("fuse.sshfs", "fuse.s3fs", "fuse.rclone", "fuse.glusterfs", "fuse.ceph", "fuse.gcsfuse"),
        *("fuse.juicefs", "fuse.vmhgfs-fuse", "fuse.davfs2"),
    }
)
"""File systems that others change too: another machine does not see the index of the log."""
IN_MEMORY: Final = frozenset({"tmpfs", "ramfs"})


def places(path: Path) -> tuple[Check, ...]:
    """Return the checks of the place of a file, for which it need not be opened."""
    # The log is beside the file itself, and not beside a link to it.
    path = path.resolve()
    return (
        ("file", partial(_rights, path)),
        ("file system", partial(_file_system, path)),
        ("room", partial(_room, path)),
        ("log", partial(_log, path)),
    )


def checks(database: peewee.Database) -> tuple[Check, ...]:
    """Return the checks of an open file."""
    return (("library", _library), ("journal", partial(_journal, database)))


def _rights(path: Path) -> Finding:
    directory = path.parent
    if not os.access(directory, os.W_OK | os.X_OK):
        return fail(
            f"the directory {directory} may not be written by you, and the log is made there",
            "give the directory to the group of all who use the queue, with mode 2770",
        )
    for side in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
        if side.exists() and not os.access(side, os.R_OK | os.W_OK):
            return fail(
                f"{side} belongs to {_owner(side)} and may not be read and written by you",
                f"give it the group of {directory}, and mode 0660",
            )
    mode = path.stat().st_mode
    if mode & 0o007:
        return warn(
            f"{path} may be used by everybody, with its mode {stat.S_IMODE(mode):04o}",
            f"close it, for it holds every prompt: chmod o-rwx {path}",
        )
    where = stat.S_IMODE(directory.stat().st_mode)
    return ok(f"of {_owner(path)}, mode {stat.S_IMODE(mode):04o}, in a directory of {where:04o}")


def _owner(path: Path) -> str:
    status = path.stat()
    names = []
    for number, name_of in (
        (status.st_uid, lambda number: pwd.getpwuid(number).pw_name),
        (status.st_gid, lambda number: grp.getgrgid(number).gr_name),
    ):
        try:
            names.append(name_of(number))
        except KeyError:  # of another machine, or of a container
            names.append(str(number))
    return ":".join(names)


def _file_system(path: Path) -> Finding:
    kind = _kind_of_file_system(path)
    if kind is None:
        return ok("this system does not tell its kind; it must be a local one")
    if kind in NETWORK:
        return fail(
            f"{path} is on {kind}, where processes of two machines damage the file",
            "move the queue to a local disk, or to PostgreSQL: runqueue db move",
        )
    if kind in IN_MEMORY:
        return warn(
            f"{path} is on {kind}, which is gone with the next boot",
            "move the queue to a disk: runqueue db move",
        )
    return ok(f"{kind}, a local one")


def _kind_of_file_system(path: Path) -> str | None:
    """Return the kind of the file system that a path is on; None where nothing tells it."""
    try:
        lines = MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    found, kind = "", None
    for line in lines:
        before, _, after = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), before.split()[4])
        # Of two at one place the later one covers the other.
        if len(point) >= len(found) and path.is_relative_to(point):
            found, kind = point, after.split()[0]
    return kind


def _room(path: Path) -> Finding:
    free = shutil.disk_usage(path.parent).free
    seen = f"{mib(free)} are free beside a file of {mib(path.stat().st_size)}"
    advice = "make room, or let the daemon keep fewer runs: runqueued --keep-runs"
    if free < NO_ROOM:
        return fail(seen, advice)
    return warn(seen, advice) if free < LITTLE_ROOM else ok(seen)


def _log(path: Path) -> Finding:
    try:
        size = Path(f"{path}-wal").stat().st_size
    except FileNotFoundError:
        return ok("there is none at the moment")
    if size > LONG_LOG:
        return warn(
            f"it has {mib(size)}: a program has been reading for long, or no daemon trims it",
            f"end the program that reads, found by: fuser -v {path}",
        )
    return ok(f"it has {mib(size)}")


def _library() -> Finding:
    seen = f"SQLite {sqlite3.sqlite_version}"
    if sqlite3.sqlite_version_info < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        return fail(f"{seen} is too old", f"use a Python that has SQLite {oldest} or newer")
    return ok(seen)


def _journal(database: peewee.Database) -> Finding:
    (mode,) = database.execute_sql("PRAGMA journal_mode").fetchone()
    if mode != "wal":
        return fail(
            f"the journal is {mode}: whoever reads keeps the writers out",
            "with everything stopped: sqlite3 FILE 'PRAGMA journal_mode = wal'",
        )
    return ok("wal")
