"""The queue as its callers see it: every verb, on one database."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from datetime import datetime
from types import TracebackType
from typing import Any

import peewee

from runqueue import (
    attempts,
    clock,
    enqueue,
    follow,
    homes,
    moves,
    reading,
    retention,
    schema,
    sweeper,
    trees,
    why,
)
from runqueue.backoff import pauses
from runqueue.database import RAISED, Store, open_store
from runqueue.enqueue import Request
from runqueue.errors import IllegalMove, RunNotFound, RunqueueError, StorageError, WaitTimeout
from runqueue.homes import Moved
from runqueue.models import Event, Run, Session
from runqueue.runner import Runner
from runqueue.settings import BUSY_TIMEOUT, Settings, default_url
from runqueue.states import Actor, Status, Wake
from runqueue.sweeper import Sweep
from runqueue.trees import Tree
from runqueue.wake import Watch
from runqueue.why import Explanation

log = logging.getLogger("runqueue.queue")

LOOK_AGAIN = 5.0
"""Seconds after which `wait` asks even though nothing was seen to change."""


def connect(
    url: str | peewee.Database | None = None,
    *,
    settings: Settings | None = None,
    clock: clock.Clock | None = None,
    busy_timeout: float = BUSY_TIMEOUT,
    create: bool = True,
) -> Queue:
    """Open a queue, creating or upgrading its schema.

    `url` is `sqlite:///PATH` or `postgresql://...`, or your own Peewee database, whose
    transactions the verbs then join; None means $RUNQUEUE_DB, else the default place. `clock` is
    the time that the queue goes by, by default the host's on SQLite and the server's on
    PostgreSQL. `busy_timeout` is how many seconds to wait for other writers. Raises
    ConfigurationError when the database cannot be used, or when it is not there and `create` is
    false.
    """
    target = default_url() if url is None else url
    store = open_store(target, busy_timeout=busy_timeout, create=create)
    with ExitStack() as on_failure:
        on_failure.callback(store.engine.close)
        on_failure.callback(store.close)
        try:
            schema.upgrade(store, create=create)
            store.engine.settle_in()  # not before it is known to be a database of ours
        except RunqueueError as error:
            if store.url in str(error):
                raise
            raise type(error)(f"{store.url}: {error}") from error
        on_failure.pop_all()
    return Queue(store, settings or Settings(), clock or store.engine.clock())


class Queue:
    """A durable queue of runs; may be used by any number of threads and processes."""

    def __init__(self, store: Store, settings: Settings, clock_: clock.Clock) -> None:
        self.store = store
        self.settings = settings
        self._clock = clock_

    @property
    def database(self) -> peewee.Database:
        """The Peewee database: a transaction of yours on it is joined by every verb."""
        return self.store.database

    def now(self) -> str:
        """Return the queue's time, as it is stored."""
        try:
            return clock.to_text(self._clock())
        except RAISED as error:
            self.store.rethrow(error)

    def close(self) -> None:
        """Close this thread's connection; the queue opens a new one when it is used again.

        On PostgreSQL, close those that no thread is using.
        """
        self.store.close()
        self.store.engine.close()

    def __enter__(self) -> Queue:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def enqueue(
        self,
        prompt: str,
        *,
        session_id: str | None = None,
        agent_name: str | None = None,
        project_dir: str | None = None,
        parent_session_id: str | None = None,
        execution_mode: str = "sync",
        demands: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        priority: int = 0,
        run_id: str | None = None,
        retries: int = 0,
        retry_delay: float = 0.0,
        retry_lost: bool = False,
        max_depth: int | None = None,
        max_children: int | None = None,
        max_tree_runs: int | None = None,
    ) -> Run:
        """Add a run that starts a new session, or resumes `session_id`; durable on return.

        `timeout` is in seconds: a run that no runner has claimed by then fails. It defaults to
        300 for a run with demands and to none otherwise. The same `run_id` with the same
        content is accepted again and adds nothing. Raises InvalidRun or SessionNotFound.

        With `retries` a failure that its runner says may be retried, and with `retry_lost` also
        the loss of its runner, is followed by another attempt, `retry_delay` seconds later. The
        last three narrow the limits of its tree, which `Settings` has: how many levels of
        children there may be, how many live children a session, and how many runs in all. A
        run with a parent that would be over one raises InvalidRun, and IllegalMove when its
        parent is being stopped.
        """
        request = enqueue.check(
            prompt,
            session_id=session_id,
            agent_name=agent_name,
            project_dir=project_dir,
            parent_session_id=parent_session_id,
            execution_mode=execution_mode,
            demands=demands,
            timeout=timeout,
            priority=priority,
            run_id=run_id,
            retries=retries,
            retry_delay=retry_delay,
            retry_lost=retry_lost,
            max_depth=max_depth,
            max_children=max_children,
            max_tree_runs=max_tree_runs,
            config=self.settings,
        )
        return self._add([request])[0]

    def enqueue_many(self, requests: Iterable[Mapping[str, Any]]) -> list[Run]:
        """Add many runs in one transaction: all of them, or none.

        Each request is a mapping of the keywords of `enqueue`, `prompt` among them.
        """
        checked = [enqueue.check_mapping(request, self.settings) for request in requests]
        return self._add(checked)

    def _add(self, requests: list[Request]) -> list[Run]:
        return enqueue.add_many(self.store, requests, self.now)

    def get(self, run_id: str) -> Run:
        """Return a run. Raises RunNotFound."""
        run = enqueue.find(self.store, run_id)
        if run is None:
            raise RunNotFound(f"run {run_id[:40]} does not exist")
        return run

    def find(
        self,
        *,
        status: str | Status | Iterable[str] | None = None,
        session_id: str | None = None,
        runner_id: str | None = None,
        agent_name: str | None = None,
        limit: int | None = None,
    ) -> list[Run]:
        """Return the runs that match all that is given, the newest first."""
        return reading.find(
            self.store,
            status=status,
            session_id=session_id,
            runner_id=runner_id,
            agent_name=agent_name,
            limit=limit,
        )

    def session(self, session_id: str) -> Session:
        """Return a session. Raises SessionNotFound."""
        return enqueue.session_of(self.store, session_id)

    def session_status(self, session_id: str) -> str:
        """Return a session's status, derived from its runs; `empty` when it has none."""
        self.session(session_id)
        return reading.session_status(self.store, session_id)

    def timeline(self, run_id: str) -> list[Event]:
        """Return what happened to a run, the oldest first. Raises RunNotFound."""
        return reading.timeline(self.store, self.get(run_id))

    def attempts(self, run_id: str) -> list[Run]:
        """Return all attempts that a run is one of, the oldest first. Raises RunNotFound.

        Of a run that was never retried, only itself.
        """
        self.get(run_id)
        found = (enqueue.find(self.store, one) for one in attempts.chain(self.store, run_id))
        return [run for run in found if run is not None]

    def why(self, run_id: str) -> Explanation:
        """Explain why a run is in its status. Raises RunNotFound."""
        return why.explain(self.store, run_id, now=self.now())

    def wait(self, run_id: str, timeout: float | None = None, *, last_attempt: bool = False) -> Run:
        """Wait until a run has ended and return it.

        With `last_attempt` wait until no other attempt follows, and return the last one, which
        may be another run. Raises RunNotFound, or WaitTimeout after `timeout` seconds; the run
        itself goes on.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        waits = pauses()
        # That another attempt was made is told as work.
        kinds = (Wake.END, Wake.WORK) if last_attempt else (Wake.END,)
        with ExitStack() as stack:
            watch: Watch | None = None
            while True:
                left = math.inf if deadline is None else deadline - time.monotonic()
                try:
                    watch = watch or stack.enter_context(Watch(self.store, kinds))
                    if reading.status(self.store, run_id).is_terminal:
                        one = attempts.of(self.store, run_id) if last_attempt else None
                        if one is None or not (one.next_run_id or one.due_at):
                            return self.get(run_id)
                        if one.next_run_id:
                            run_id = one.next_run_id
                            continue
                    if left > 0:
                        watch.wait(min(left, LOOK_AGAIN))
                    waits = pauses()
                except StorageError as error:
                    # The run does not need us to go on, and the database may be back soon.
                    if not error.retryable or self.database.in_transaction():
                        raise
                    log.warning("the wait for run %s goes on: %s", run_id, error)
                    time.sleep(max(0.0, min(left, next(waits))))
                if left <= 0:
                    raise WaitTimeout(f"run {run_id} had not ended after {timeout:g} s")

    def stop(self, run_id: str, *, reason: str | None = None, actor: Actor = Actor.CALLER) -> Run:
        """Ask for a run to be stopped; one that nobody owns yet is cancelled.

        Asking again is harmless. Of one that has failed and waits for another attempt, none is
        made. Raises RunNotFound, or IllegalMove when it has ended.
        """
        now = self.now()
        try:
            moves.stop_or_cancel(self.store, run_id, now=now, actor=actor, reason=reason)
        except IllegalMove:
            if not follow.give_up(self.store, run_id, now=now, actor=actor):
                raise
        return self.get(run_id)

    def tree(self, one: str) -> Tree:
        """Return the whole tree that a run or a session belongs to, by the id of either.

        Raises RunNotFound or SessionNotFound.
        """
        return trees.of(self.store, one)

    def stop_tree(
        self,
        one: str,
        *,
        below: bool = False,
        reason: str | None = None,
        actor: Actor = Actor.CALLER,
    ) -> list[Run]:
        """Stop every run of the tree that a run or a session belongs to; return those.

        With `below` only those of that session and of what is below it. It is one transaction,
        and no end of a session that is stopped with its parent resumes the parent. Raises
        RunNotFound or SessionNotFound.
        """
        return trees.stop(self.store, one, below=below, now=self.now(), actor=actor, reason=reason)

    def cancel(self, run_id: str, *, reason: str | None = None, actor: Actor = Actor.CALLER) -> Run:
        """End a run that nobody owns yet. Raises RunNotFound, or IllegalMove for any other."""
        moves.make_free(self.store, "cancel", run_id, now=self.now(), actor=actor, detail=reason)
        return self.get(run_id)

    def release(
        self, run_id: str, *, reason: str | None = None, actor: Actor = Actor.OPERATOR
    ) -> Run:
        """Give a claimed run back to be claimed again. Raises RunNotFound or IllegalMove."""
        moves.make_free(self.store, "release", run_id, now=self.now(), actor=actor, detail=reason)
        return self.get(run_id)

    def retry(self, run_id: str, *, actor: Actor = Actor.CALLER) -> Run:
        """Add a new run with the content of one that has ended, in the same session.

        Raises RunNotFound, or IllegalMove for a run that has not ended.
        """
        return enqueue.retry(self.store, run_id, now=self.now(), actor=actor)

    def sweep(self, now: datetime | str | None = None, *, rescues: bool = True) -> Sweep:
        """Do one tick of the daemon: expire, settle, lose and release what is due.

        Without `rescues` runs are only expired.
        """
        if now is None:
            moment = self.now()
        else:
            moment = clock.to_text(clock.from_text(now) if isinstance(now, str) else now)
        return sweeper.sweep(self.store, self.settings, now=moment, rescues=rescues)

    def prune(self, older_than: float) -> int:
        """Delete runs that ended more than `older_than` seconds ago; return how many.

        Sessions that have no runs left go with them.
        """
        return retention.prune(self.store, clock.shift(self.now(), -older_than))

    def delete_session(self, session_id: str, *, force: bool = False) -> int:
        """Delete a session with its runs; return how many runs went.

        Raises SessionNotFound, or IllegalMove when a run is active and `force` is not given;
        with it, the owner learns by its next report that the run is gone, and ends the agent.
        """
        return retention.delete_session(self.store, session_id, force=force)

    def rehome(
        self,
        session_id: str,
        *,
        hostname: str | None = None,
        project_dir: str | None = None,
        executor_type: str | None = None,
        clear: bool = False,
    ) -> Moved:
        """Move the place where a session lives, or clear it; its runs follow, also when retried.

        None leaves a part as it is, "" demands nothing of it. Once cleared, the next start binds
        the session anew, and its executor session id is forgotten. Raises SessionNotFound,
        IllegalMove while a run of the session is active, SessionConflict when another session of
        the new place has its executor session id, or InvalidRun for what is no home.
        """
        return homes.rehome(
            self.store,
            session_id,
            hostname=hostname,
            project_dir=project_dir,
            executor_type=executor_type,
            clear=clear,
            now=self.now(),
        )

    def bind_session(self, session_id: str, executor_session_id: str | None) -> None:
        """Record the agent framework's own id of a session; None forgets it.

        Later runs of the session receive it. Raises SessionNotFound, SessionConflict when it is
        that of another session of the same host and executor type, or while either of the two
        has no home, or InvalidRun for what can be no id.
        """
        homes.bind(self.store, session_id, executor_session_id)

    def runner(
        self,
        runner_id: str | None = None,
        *,
        hostname: str | None = None,
        project_dir: str | None = None,
        executor_type: str | None = None,
        tags: Iterable[str] = (),
        properties: Mapping[str, Any] | None = None,
    ) -> Runner:
        """Return a runner with these capabilities, to be entered as a context.

        `hostname` defaults to this host's. Raises InvalidRun for capabilities that cannot be
        stored; entering raises RunnerConflict when a live runner has the id.
        """
        return Runner(
            self.store,
            self._clock,
            self.settings,
            runner_id=runner_id,
            hostname=hostname,
            project_dir=project_dir,
            executor_type=executor_type,
            tags=tags,
            properties=properties,
        )
