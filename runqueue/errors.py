"""Every error that runqueue raises.

    RunqueueError
    ├── InvalidRun          the input cannot become a run (or a session, or a runner)
    ├── RunNotFound         no run has this id
    ├── SessionNotFound     no session has this id
    ├── RunnerNotFound      no runner has this id
    ├── StaleClaim          the caller no longer owns the run: stop working, do not retry
    ├── IllegalMove         the run's status does not allow this move
    ├── RunnerConflict      a live runner has this id already, or is still at work
    ├── SessionConflict     another session has this executor session id
    ├── WaitTimeout         the awaited run had not ended in time
    ├── ConfigurationError  the settings, or the database they name, cannot be used
    └── StorageError        the database did not do it
        ├── StorageBusy     another process holds the database: a retry can help
        ├── StorageFull     no space is left
        ├── StorageLost     the database cannot be reached: a retry can help
        └── StorageDamaged  the database's file is damaged: restore a backup

A message is one sentence with the ids it is about, and never holds a prompt or a password.
"""

from __future__ import annotations


class RunqueueError(Exception):
    """Base of all errors raised by runqueue."""

    exit_code = 1
    """What a command exits with when this error ends it."""


class InvalidRun(RunqueueError, ValueError):
    """The input cannot become a run."""

    exit_code = 2


class RunNotFound(RunqueueError, LookupError):
    """No run has this id."""

    exit_code = 3


class SessionNotFound(RunqueueError, LookupError):
    """No session has this id."""

    exit_code = 3


class RunnerNotFound(RunqueueError, LookupError):
    """No runner has this id."""

    exit_code = 3


class StaleClaim(RunqueueError):
    """The caller no longer owns the run; it must stop working on it and not retry."""

    exit_code = 4


class IllegalMove(RunqueueError):
    """The run's status does not allow this move."""

    exit_code = 4


class RunnerConflict(RunqueueError):
    """A live runner has this id already, or is still at work."""

    exit_code = 4


class SessionConflict(RunqueueError):
    """Another session has this executor session id, at the same place."""

    exit_code = 4


class WaitTimeout(RunqueueError, TimeoutError):
    """The awaited run had not ended in time; the run itself goes on."""

    exit_code = 5


class ConfigurationError(RunqueueError):
    """The settings, or the database they name, cannot be used as they are."""

    exit_code = 78


class StorageError(RunqueueError):
    """The database did not do what was asked; nothing was acknowledged."""

    exit_code = 1
    retryable = False
    """Whether the same call may succeed later without anybody's help."""


class StorageBusy(StorageError):
    """Another process held the database for longer than we wait."""

    exit_code = 75
    retryable = True


class StorageFull(StorageError):
    """No space is left for the database."""

    exit_code = 75
    retryable = True


class StorageLost(StorageError):
    """The database cannot be reached."""

    exit_code = 75
    retryable = True


class StorageDamaged(StorageError):
    """The database's file is damaged; restarting does not help, a backup does."""

    exit_code = 78
