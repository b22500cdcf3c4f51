"""What PostgreSQL and its driver say, as our errors."""

from __future__ import annotations

from typing import Final

from playhouse.pool import MaxConnectionsExceeded

from runqueue import errors
from runqueue.engines import base

_LOST: Final = "the database server is not to be reached: "
_REFUSAL: Final = "the server refuses the connection: "
_BUSY: Final = "other sessions hold what is needed for too long; try again"

# By SQLSTATE, the longest prefix first. The server's sentence is quoted without its DETAIL, which
# for a refused row is the row, and that holds a prompt.
_BY_STATE: Final[tuple[tuple[str, type[errors.RunqueueError], str], ...]] = (
    ("25006", errors.StorageLost, "the server is read-only; use the URL of the primary"),
    ("42501", errors.ConfigurationError, "the role lacks a right: {primary}"),
    ("57014", errors.StorageBusy, "the server cancelled the statement: {primary}"),
    ("57P", errors.StorageLost, f"{_LOST}{{primary}}"),
    ("53100", errors.StorageFull, "the disk of the server is full; make room, try again"),
    ("53", errors.StorageBusy, "the server has no more room for this now: {primary}"),
    ("55P03", errors.StorageBusy, _BUSY),
    ("55006", errors.StorageBusy, _BUSY),
    ("40", errors.StorageBusy, _BUSY),
    ("08", errors.StorageLost, f"{_LOST}{{primary}}"),
    ("28", errors.ConfigurationError, f"{_REFUSAL}{{primary}}"),
    ("3F", errors.ConfigurationError, "the role lacks a right: {primary}"),
    ("3D", errors.ConfigurationError, f"{_REFUSAL}{{primary}}"),
    ("XX001", errors.StorageDamaged, "the database is damaged: {primary}"),
    ("XX002", errors.StorageDamaged, "the database is damaged: {primary}"),
    ("58", errors.StorageLost, "the disk of the server failed; look at its log"),
    ("22", errors.InvalidRun, "the database refuses it: {primary}"),
    ("23", errors.InvalidRun, "the database refuses it: {primary}"),
    ("54", errors.InvalidRun, "the database refuses it: {primary}"),
)


def _primary(error: BaseException) -> str:
    told: str | None = getattr(getattr(error, "diag", None), "message_primary", None)
    return told or str(error).partition("\n")[0]


def _by_state(state: str, error: BaseException) -> errors.RunqueueError:
    primary = _primary(error)
    constraint = getattr(getattr(error, "diag", None), "constraint_name", "")
    if state == "23505" and constraint == "idx_runs_one_active":
        return base.SessionTaken("another run of the session has become active; try again")
    if state in ("40001", "40P01"):
        return base.Conflict(_BUSY)
    for prefix, kind, sentence in _BY_STATE:
        if state.startswith(prefix):
            return kind(sentence.replace("{primary}", primary))
    return errors.StorageError(f"the database failed: {primary}")


# libpq has no SQLSTATE for a connection that was refused, only what the server said.
_REFUSED: Final = (
    *("authentication failed", "no password supplied", "no pg_hba.conf entry", "does not exist"),
    *("not permitted to log in", "permission denied", "certificate", "SSL was required"),
)


def _by_message(message: str) -> errors.RunqueueError:
    lines = [line.strip() for line in message.splitlines()]
    # Without libpq's question whether the server is there.
    told = "; ".join(line for line in lines if line and not line.endswith("?"))[:400]
    told = told.removeprefix("connection failed: ").removeprefix("connection is bad: ")
    if any(part in message for part in _REFUSED):
        return errors.ConfigurationError(f"{_REFUSAL}{told}; correct the URL, or the server")
    return errors.StorageLost(f"{_LOST}{told}")


def translate(error: BaseException, url: str) -> errors.RunqueueError | None:
    """Return our error for one of the driver's, None for what is none of its own."""
    if isinstance(error, MaxConnectionsExceeded):
        return errors.StorageBusy("all connections of this process are in use; try again")
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    if state is not None:
        if state == base.MOVED_STATE:
            return errors.ConfigurationError(f"{url} was {_primary(error)}")
        return _by_state(state, error)
    if type(error).__module__.partition(".")[0] not in ("psycopg", "psycopg2"):
        return None
    if type(error).__name__ not in ("OperationalError", "InterfaceError", "ConnectionTimeout"):
        return None
    return _by_message(str(error))
