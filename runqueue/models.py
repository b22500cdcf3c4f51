"""The tables, as Peewee models: the one source of column names for every statement.

The models are not bound to a database, for one process may use several; a query is executed by
a `Store`. In your own code bind them for a while: `with queue.database.bind_ctx(MODELS): ...`.
Their constraints, indexes and triggers are made by `runqueue/migrations`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeVar

from peewee import (
    SQL,
    AutoField,
    FloatField,
    ForeignKeyField,
    IntegerField,
    Model,
    TextField,
)

from runqueue import clock
from runqueue import demands as matching
from runqueue.errors import StorageDamaged
from runqueue.states import ACTIVE, LATE, TERMINAL, Actor, Status

M = TypeVar("M", bound="Row")


class StatusField(TextField):
    """A run's status; a value that others wrote and we do not know stays text."""

    def db_value(self, value: Any) -> Any:
        return value.value if isinstance(value, Status) else value

    def python_value(self, value: Any) -> Any:
        return _STATUSES.get(value, value)


_STATUSES: Final = {status.value: status for status in Status}


def seconds_between(earlier: str, later: str) -> float:
    """Return the seconds between two times of rows. Raises StorageDamaged when one is none."""
    try:
        return clock.seconds_between(earlier, later)
    except ValueError as error:  # it passed the CHECK, so no program has written it
        raise StorageDamaged(f"the database is damaged: {error}; restore a backup") from None


class Row(Model):
    """Base of the models."""

    @classmethod
    def from_row(cls: type[M], row: Sequence[Any], columns: Sequence[str] | None = None) -> M:
        """Return an instance filled from a row of the table's columns.

        Filling the data directly costs a hundredth of Peewee's own wrapping of a row, which
        would be twice the price of the claim itself.
        """
        instance = cls(__no_default__=1)
        data = instance.__data__
        data.update(zip(columns or COLUMNS[cls], row, strict=True))
        if "status" in data:
            data["status"] = _STATUSES.get(data["status"], data["status"])
        return instance

    @classmethod
    def from_rows(cls: type[M], rows: Iterable[Sequence[Any]]) -> list[M]:
        return [cls.from_row(row) for row in rows]

    def as_dict(self) -> dict[str, Any]:
        """Return the columns that were read, in the table's order, ready for JSON."""
        fields = self._meta.fields
        return {
            fields[name].column_name: value.value if isinstance(value, Status) else value
            for name, value in self.__data__.items()
        }


class Session(Row):
    """A conversation with an agent, and the place where it lives."""

    session_id = TextField(primary_key=True)
    created_at = TextField()
    agent_name = TextField(null=True)
    project_dir = TextField(null=True)
    """The working directory that its runs inherit."""
    parent_session_id: str | None
    parent_session = ForeignKeyField(
        "self", column_name="parent_session_id", null=True, on_delete="SET NULL", index=False
    )
    execution_mode = TextField(default="sync", constraints=[SQL("DEFAULT 'sync'")])
    hostname = TextField(null=True)
    executor_type = TextField(null=True)
    executor_session_id = TextField(null=True)
    """The agent framework's own id of the conversation."""
    last_resumed_at = TextField(null=True)
    home_dir = TextField(null=True)
    """The project_dir of the runner that holds the session; null when that runner has none."""
    tree_limits = TextField(null=True)
    """JSON of the limits that it and what is below it in its tree were given."""

    class Meta:
        table_name = "sessions"

    def home(self) -> dict[str, str]:
        """Return the demands that lead a run to where the session lives; empty when unbound."""
        home = {
            "hostname": self.hostname,
            "project_dir": self.home_dir,
            "executor_type": self.executor_type,
        }
        return {key: value for key, value in home.items() if value} if self.hostname else {}


class Run(Row):
    """One piece of work that starts or resumes a session."""

    run_id = TextField(primary_key=True)
    session_id: str
    session = ForeignKeyField(
        Session, column_name="session_id", on_delete="CASCADE", backref="runs", index=False
    )
    type = TextField()
    agent_name = TextField(null=True)
    prompt = TextField()
    project_dir = TextField(null=True)
    parent_session_id = TextField(null=True)
    execution_mode = TextField(default="sync", constraints=[SQL("DEFAULT 'sync'")])
    demands = TextField(null=True)
    status = StatusField(default=Status.PENDING, constraints=[SQL("DEFAULT 'pending'")])
    runner_id = TextField(null=True)
    error = TextField(null=True)
    created_at = TextField()
    claimed_at = TextField(null=True)
    started_at = TextField(null=True)
    completed_at = TextField(null=True)
    timeout_at = TextField(null=True)
    priority = IntegerField(default=0, constraints=[SQL("DEFAULT 0")])
    result = TextField(null=True)
    waiting = IntegerField(default=0, constraints=[SQL("DEFAULT 0")])
    """1 while another run of the session must go first; kept by the database's triggers."""
    callback_run_id = TextField(null=True)
    """The run that told the parent of its end; `none` when nobody is to be told of it."""
    attempt = IntegerField(null=True)
    """Which attempt it is, of a run that may be retried or was; the terms are in `run_attempts`."""
    tells = IntegerField(null=True)
    """Of how many children's ends it tells its session; null for a run that is no callback."""

    class Meta:
        table_name = "runs"

    @property
    def is_active(self) -> bool:
        return self.status in ACTIVE

    @property
    def is_terminal(self) -> bool:
        return self.status in TERMINAL


class Runner(Row):
    """A process that claims and executes runs, as it registered itself."""

    runner_id = TextField(primary_key=True)
    incarnation = TextField()
    """Tells a restarted process from the one that had the id before."""
    hostname = TextField(null=True)
    project_dir = TextField(null=True)
    executor_type = TextField(null=True)
    tags = TextField(default="[]", constraints=[SQL("DEFAULT '[]'")])
    properties = TextField(default="{}", constraints=[SQL("DEFAULT '{}'")])
    registered_at = TextField()
    heartbeat_at = TextField()
    state = TextField(default="online", constraints=[SQL("DEFAULT 'online'")])
    lease_until = TextField()
    """Unless it beats again by then the runner is dead; each runner promises it for itself."""

    class Meta:
        table_name = "runners"

    def capabilities(self) -> matching.Capabilities:
        """Return what the runner offers.

        Raises ValueError when somebody wrote tags or properties that are not JSON.
        """
        return matching.Capabilities(
            hostname=self.hostname,
            project_dir=self.project_dir,
            executor_type=self.executor_type,
            tags=frozenset(matching.parse_list(self.tags)),
            properties=matching.parse(self.properties),
        )


class Event(Row):
    """One entry of a run's history; only ever added."""

    event_id = AutoField()
    run = ForeignKeyField(Run, column_name="run_id", on_delete="CASCADE", index=False)
    at = TextField()
    status = StatusField()
    actor = TextField()
    detail = TextField(null=True)

    class Meta:
        table_name = "run_events"

    @property
    def is_late(self) -> bool:
        """Whether it keeps a report that was refused, and enters no status."""
        return self.actor == Actor.RUNNER.value and (self.detail or "").startswith(LATE)

    @property
    def is_note(self) -> bool:
        """Whether it enters no status, but keeps what belongs to the run's history."""
        return self.actor == Actor.QUEUE.value or self.is_late


class Attempt(Row):
    """What is to happen when a run fails, and how it is linked to its other attempts."""

    run = ForeignKeyField(
        Run, column_name="run_id", primary_key=True, on_delete="CASCADE", index=False
    )
    former_run_id = TextField(null=True)
    next_run_id = TextField(null=True)
    retries = IntegerField(default=0, constraints=[SQL("DEFAULT 0")])
    """How many more attempts may follow it without anybody's help."""
    delay = FloatField(default=0.0, constraints=[SQL("DEFAULT 0")])
    """Seconds between its end and the next attempt."""
    on_lost = IntegerField(default=0, constraints=[SQL("DEFAULT 0")])
    """1 when the loss of its runner is an end that may be retried."""
    lost = IntegerField(default=0, constraints=[SQL("DEFAULT 0")])
    """How many runners its former attempts were lost with."""
    due_at = TextField(null=True)
    """When the next attempt is to be made; null when none is waited for."""

    class Meta:
        table_name = "run_attempts"


class Daemon(Row):
    """A process that sweeps: whether one is alive, and the lease it wants runners to keep."""

    daemon_id = TextField(primary_key=True)
    hostname = TextField()
    started_at = TextField()
    tick_at = TextField()
    alive_until = TextField()
    lease = FloatField()

    class Meta:
        table_name = "daemons"


class Output(Row):
    """When the agent of a run was last heard of, as its runner's heartbeats tell."""

    run = ForeignKeyField(
        Run, column_name="run_id", primary_key=True, on_delete="CASCADE", index=False
    )
    output_at = TextField()

    class Meta:
        table_name = "run_output"


MODELS: Final = (Session, Run, Runner, Event, Daemon, Attempt, Output)

COLUMNS: Final[dict[type[Row], tuple[str, ...]]] = {
    model: tuple(field.name for field in model._meta.sorted_fields) for model in MODELS
}
"""Each model's attributes in the order of its table's columns."""
