"""Moving a whole queue to another database, of whatever kind.

Three commits make a move, in an order that lets it end anywhere: the target is filled in one
transaction and committed closed to changes; then the source is closed, until when it was as
before, but for those who wanted to write to it meanwhile; then the target is opened. After an
end before the second commit the same move begins anew, and after it, it only opens the target.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any, Final, NamedTuple

from peewee import SQL, fn

from runqueue import reading, retention, statements
from runqueue.database import Statement, Store
from runqueue.engines.base import FILLED_FROM, MOVED_TO, Closing
from runqueue.errors import (
    ConfigurationError,
    IllegalMove,
    RunnerNotFound,
    StorageError,
    WaitTimeout,
)
from runqueue.models import Attempt, Daemon, Event, Output, Row, Run, Runner, Session
from runqueue.states import ACTIVE, Wake
from runqueue.wake import Watch

ORDER: Final[tuple[type[Row], ...]] = (Session, Run, Event, Attempt, Output, Runner, Daemon)
"""Each table after those that its rows refer to."""
TABLES: Final = tuple(model._meta.table_name for model in ORDER)

REPORT_EVERY: Final = 5_000
"""Rows after which progress is told again."""
LOOK_AGAIN: Final = 1.0
"""Seconds after which a wait for active runs asks again and asks new runners to drain."""
DELETED_AT_ONCE: Final = 20_000
"""Rows of one DELETE, all of which SQLite may keep in memory until it ends."""


class Step(NamedTuple):
    """How far a move has come: `drain`, `copy`, `verify`, `commit`, `close`, `open`."""

    name: str
    table: str = ""
    done: int = 0
    total: int = 0


class Copied(NamedTuple):
    """What a table was found to hold, at both ends."""

    table: str
    rows: int
    checksum: str


Report = Callable[[Step], None]


def lost_columns(source: Store) -> list[str]:
    """Return the columns, as `table.column`, which other programs added and a move leaves out."""
    found = []
    with _looking(source):
        for model in ORDER:
            table = model._meta.table_name
            known = {*_columns(model), *source.engine.transfer.own_columns}
            there = [column.name for column in source.database.get_columns(table)]
            found += [f"{table}.{name}" for name in there if name not in known]
    return found


def move(
    source: Store,
    target: Store,
    *,
    patience: float | None = None,
    report: Report = lambda _: None,
) -> list[Copied]:
    """Copy every table to an empty database, and close the one that it was in to changes.

    Returns what was copied: nothing when only the end of an interrupted move was missing. Active
    runs are waited for, with the runners draining, for `patience` seconds.

    Raises IllegalMove when a run is active and there is no patience, WaitTimeout when it was too
    short, ConfigurationError when either database cannot be used for this, and StorageError when
    what was copied is not what is there.
    """
    _refuse_same(source, target)
    if _is_only_to_be_opened(source, target):
        _open_to_changes(target, report)
        return []
    # Before anybody is kept waiting or drained, and once more when nobody can change it.
    _refuse_full(source, target)
    deadline = time.monotonic() + (patience or 0.0)
    while True:
        if patience is not None:
            _drain(source, deadline, report)
        with source.transaction():
            source.engine.transfer.keep_writers_out()
            _refuse_closed(source)
            active = _active(source)
            if active is None:
                token = secrets.token_hex(8)
                copied = _copy(source, target, token, report)
                report(Step("close"))
                _close_to_changes(source, Closing(f"{MOVED_TO}{target.url}", target.url, token))
                break
        if patience is None:
            raise IllegalMove(
                f"run {active.run_id} is {active.status}; let active runs end first, or --wait"
            )
    _open_to_changes(target, report)
    return copied


# --- the two ends


def _refuse_same(source: Store, target: Store) -> None:
    with _looking(source), _looking(target):
        kinds = source.engine.name, target.engine.name
        ids = [store.engine.transfer.identity() for store in (source, target)]
        same = kinds[0] == kinds[1] and ids[0] == ids[1]
    if same:
        raise ConfigurationError(f"{target.url} is the database that is to be moved")


@contextmanager
def _looking(store: Store) -> Iterator[None]:
    """Use the engine itself, and give back a connection that this took."""
    is_taken = store.engine.is_shared and store.database.is_closed()
    with store.translated_errors():
        try:
            yield
        finally:
            if is_taken:
                store.close()


def _closing(store: Store) -> Closing | None:
    with _looking(store):
        return store.engine.transfer.closing()


def _is_only_to_be_opened(source: Store, target: Store) -> bool:
    """Whether a move between the two was interrupted after its second commit."""
    left, arrived = _closing(source), _closing(target)
    return (
        left is not None
        and arrived is not None
        and (left.is_arriving, arrived.is_arriving) == (False, True)
        and left.token == arrived.token
    )


def _refuse_closed(source: Store) -> None:
    closing = _closing(source)
    if closing is not None:
        raise ConfigurationError(f"{source.url} was {closing.sentence}")


def _refuse_full(source: Store, target: Store) -> bool:
    """Return whether the target holds what an interrupted move of the same source left there."""
    _refuse_closed(source)
    closing = _closing(target)
    if closing is not None:
        if closing.is_arriving and closing.place == source.url:
            return True
        raise ConfigurationError(f"{target.url} was {closing.sentence}")
    for model in ORDER:
        key = model._meta.primary_key
        if target.query(model.select(key).limit(1)):
            raise ConfigurationError(
                f"{target.url} is not empty, its table {model._meta.table_name} has rows; "
                "move to a new database"
            )
    return False


def _close_to_changes(store: Store, why: Closing) -> None:
    with store.translated_errors():
        store.engine.transfer.close_to_changes(TABLES, why)
    store.wake(Wake)


def _open_to_changes(target: Store, report: Report) -> None:
    report(Step("open"))
    with target.transaction():
        target.engine.transfer.open_to_changes(TABLES)
        target.wake(Wake)


# --- active runs


def _active(store: Store) -> Run | None:
    found = reading.find(store, status=ACTIVE, limit=1, columns=("run_id", "status"))
    return found[0] if found else None


def _drain(source: Store, deadline: float, report: Report) -> None:
    """Ask all runners to drain, and wait until no run is active."""
    with Watch(source, (Wake.END,)) as watch:
        while True:
            online = Runner.select(Runner.runner_id).where(Runner.state == "online")
            for (runner_id,) in source.query(online):
                try:
                    retention.drain_runner(source, runner_id)
                except RunnerNotFound:
                    continue  # it has ended meanwhile
            active = _active(source)
            if active is None:
                return
            report(Step("drain"))
            left = deadline - time.monotonic()
            if left <= 0:
                raise WaitTimeout(
                    f"run {active.run_id} is still {active.status}; nothing was moved, "
                    "and the runners go on draining"
                )
            watch.wait(min(left, LOOK_AGAIN))


# --- the copy


def _copy(source: Store, target: Store, token: str, report: Report) -> list[Copied]:
    """Fill the target, and commit it closed to changes."""
    with target.transaction():
        target.engine.transfer.keep_writers_out()
        if _refuse_full(source, target):
            target.engine.transfer.open_to_changes(TABLES)
        copied = []
        with target.engine.transfer.in_bulk(TABLES):
            for model in reversed(ORDER):
                _empty(target, model)
            for model in ORDER:
                copied.append(_copy_table(source, target, model, report))
        target.engine.transfer.count_on()
        for one, model in zip(copied, ORDER, strict=True):
            _verify(target, model, one, report)
        why = f"{FILLED_FROM}{source.url} by a move that has not ended; run the same db move again"
        _close_to_changes(target, Closing(why, source.url, token))
        report(Step("commit"))
    return copied


def _empty(target: Store, model: type[Row]) -> None:
    key: Any = model._meta.primary_key
    some = model.select(key).limit(DELETED_AT_ONCE)
    while target.query(some.limit(1)):
        target.query(model.delete().where(key.in_(some)))


def _columns(model: type[Row]) -> dict[str, Any]:
    return {field.column_name: field for field in model._meta.sorted_fields}


def _select(model: type[Row]) -> Statement:
    return Statement(lambda: model.select().order_by(model._meta.primary_key))


def _insert(model: type[Row]) -> Statement:
    def build() -> Any:
        columns = [field.column for field in _columns(model).values()]
        values = tuple(statements.hole("_") for _ in columns)
        # Not a dictionary, whose keys Peewee would sort.
        return model._meta.table.insert([values], columns)

    return Statement(build)


class _Sum:
    """Counts the rows that pass, and sums them up in one checksum."""

    def __init__(self, report: Callable[[int], None]) -> None:
        self._report = report
        self._hash = hashlib.blake2b(digest_size=16)
        self.rows = 0

    def of(
        self, rows: Iterable[tuple[Any, ...]], look: Callable[[str, Any], None] | None = None
    ) -> Generator[tuple[Any, ...], None, None]:
        update = self._hash.update
        for row in rows:
            # What Python shows of texts and numbers tells any two apart.
            text = repr(row)
            if look is not None:
                look(text, row)
            update(text.encode())
            self.rows += 1
            if self.rows % REPORT_EVERY == 0:
                self._report(self.rows)
            yield row
        self._report(self.rows)

    @property
    def checksum(self) -> str:
        return self._hash.hexdigest()


def _copy_table(source: Store, target: Store, model: type[Row], report: Report) -> Copied:
    table = model._meta.table_name
    total = int(source.query(model.select(fn.COUNT(SQL("*"))))[0][0])
    report(Step("copy", table, 0, total))
    select = _select(model).compile(source.database).sql
    insert = _insert(model).compile(target.database).sql
    total_sum = _Sum(lambda done: report(Step("copy", table, done, total)))
    columns = tuple(_columns(model))

    def read() -> Generator[tuple[Any, ...], None, None]:
        # What goes wrong in here is the source's, and what goes wrong around it the target's.
        with source.translated_errors(), closing(source.engine.transfer.rows(select)) as rows:
            yield from rows

    bad = target.engine.transfer.unstorable
    shown = repr(bad)[1:-1]

    def look(text: str, row: tuple[Any, ...]) -> None:
        if shown in text:
            _refuse_unstorable(model, columns, row, bad, target)

    # Closed at once and not by chance: a query that is not read to its end keeps its connection.
    with (
        target.translated_errors(),
        closing(read()) as rows,
        closing(total_sum.of(rows, look if bad else None)) as counted,
    ):
        target.engine.transfer.fill(table, columns, insert, counted)
    return Copied(table, total_sum.rows, total_sum.checksum)


def _refuse_unstorable(
    model: type[Row], columns: tuple[str, ...], row: tuple[Any, ...], bad: str, target: Store
) -> None:
    for name, value in zip(columns, row, strict=True):
        if isinstance(value, str) and bad in value:
            what = "an event of run" if model is Event else model.__name__.lower()
            key = row[columns.index("run_id")] if model is Event else row[0]
            raise StorageError(
                f"{what} {key} has the character {ord(bad):#04x} in its {name}, which "
                f"{target.engine.name} cannot store; take it out and move again"
            )


def _verify(target: Store, model: type[Row], copied: Copied, report: Report) -> None:
    """Read a table back; raise StorageError when it is not what was copied."""
    report(Step("verify", copied.table, 0, copied.rows))
    found = _Sum(lambda done: report(Step("verify", copied.table, done, copied.rows)))
    select = _select(model).compile(target.database).sql
    with target.translated_errors(), closing(target.engine.transfer.rows(select)) as rows:
        for _ in found.of(rows):
            pass
    if found.rows != copied.rows:
        raise StorageError(
            f"{copied.rows} rows of {copied.table} were copied and {found.rows} arrived in "
            f"{target.url}; nothing was moved"
        )
    if found.checksum != copied.checksum:
        raise StorageError(
            f"the rows of {copied.table} that arrived in {target.url} are not those that were "
            "copied; nothing was moved"
        )
