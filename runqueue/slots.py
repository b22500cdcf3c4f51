"""Executing a command for each run, several at once: what a runner process does all day."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Final

from runqueue.about import about
from runqueue.backoff import pauses
from runqueue.claims import Claim
from runqueue.database import Store
from runqueue.errors import IllegalMove, RunNotFound, StaleClaim, StorageError
from runqueue.executor import Execution, Outcome
from runqueue.reread import FILES
from runqueue.runner import LOOK_AGAIN, Runner
from runqueue.systemd.notify import SERVICE

log = logging.getLogger("runqueue.runner")

LAST_WORD: Final = 10.0
"""Seconds for which a runner that was told to end goes on trying to report."""


HANG: Final = 5.0
"""Seconds without anything left to do after which a runner that does not end hangs."""


class Slots:
    """Executes `command` for each run that the runner claims, at most `slots` at once.

    With `patience` it also ends when no heartbeat has succeeded for so many seconds after the
    first that failed, and nothing is at work.
    """

    def __init__(
        self,
        store: Store,
        runner: Runner,
        command: Sequence[str],
        *,
        slots: int,
        stop_grace: float,
        drain: float,
        max_runtime: float | None = None,
        retry_exits: Collection[int] = (),
        patience: float | None = None,
    ) -> None:
        self._store = store
        self._runner = runner
        self._command = list(command)
        self._slots = slots
        self._free = threading.Semaphore(slots)
        self._stop_grace = stop_grace
        self._drain = drain
        self._max_runtime = max_runtime
        self._retry_exits = frozenset(retry_exits)
        self._patience = patience
        self._waits_on = False
        self._lock = threading.Lock()
        self._executions: set[Execution] = set()
        self._threads: set[threading.Thread] = set()
        self._is_shutting_down = False
        self._ended_at: float | None = None
        self._quiet_since: float | None = None

    def shut_down(self) -> None:
        """Claim nothing more, let runs finish for `drain` seconds, then end them.

        A second call ends them at once. May be called from any thread.
        """
        self._runner.drain()
        if self._is_shutting_down or self._drain <= 0:
            self._end_runs()
            return
        self._is_shutting_down = True
        timer = threading.Timer(self._drain, self._end_runs)
        timer.daemon = True
        timer.start()

    @property
    def ends_within(self) -> float:
        """Seconds within which a runner that is told to end has ended its runs and reported."""
        return self._drain + self._stop_grace + LAST_WORD + HANG

    def status(self) -> str:
        """Return what the runner does, in a few words."""
        with self._lock:
            at_work = len(self._threads)
        what = "draining" if self._runner.is_draining else f"{self._slots - at_work} slots free"
        return f"{at_work} runs at work, {what}"

    def hangs(self) -> bool:
        """Whether a runner that was told to end hangs in a call that is never answered.

        To be asked again and again. No agent is at work then, and what is not reported is
        resolved when the lease is over.
        """
        moment = time.monotonic()
        with self._lock:
            if self._executions or (self._threads and self._ended_at is None):
                self._quiet_since = None
                return False
            left = LAST_WORD if self._threads else 0.0
        self._quiet_since = self._quiet_since or moment
        return moment - self._quiet_since > left + HANG

    def serve(self) -> None:
        """Claim and execute until the runner drains and its last run has been reported.

        Whatever ends it early: the runner beats on until its runs have been ended and reported.
        Raises what the heartbeat failed with when the patience for it is over.
        """
        try:
            self._claim_on()
        except BaseException:
            self._runner.drain()
            self._end_runs()
            raise
        finally:
            self._finish()

    def _claim_on(self) -> None:
        waits = pauses()
        while not self._runner.is_draining:
            self._check_patience()
            if not self._free.acquire(timeout=0.5):
                continue
            try:
                claim = self._runner.claim(timeout=LOOK_AGAIN)
                waits = pauses()
            except StorageError as error:
                claim = None
                if not error.retryable:
                    raise
                log.warning("runner %s cannot claim: %s", self._runner.runner_id, error)
                time.sleep(next(waits))
            if claim is None:
                self._free.release()
            else:
                self._begin(claim)

    def _check_patience(self) -> None:
        """Raise what keeps the heartbeat from the database when the patience for it is over.

        Not while runs are at work: those are ended by nothing but their lease, and what has ended
        is still to be reported.
        """
        failure = self._runner.failure
        if self._patience is None or failure is None:
            self._waits_on = False
            return
        if time.monotonic() - failure.since < self._patience:
            return
        with self._lock:
            at_work = len(self._threads)
        if not at_work:
            raise failure.error
        if not self._waits_on:
            self._waits_on = True
            name = self._runner.runner_id
            log.warning("runner %s waits on for its database; runs at work: %d", name, at_work)

    def _begin(self, claim: Claim) -> None:
        thread = threading.Thread(
            target=self._serve_one, args=(claim,), name=f"runqueue-{claim.fence.run_id}"
        )
        with self._lock:
            self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError:  # no thread is to be had
            with self._lock:
                self._threads.discard(thread)
            claim.release()
            raise

    def _finish(self) -> None:
        with self._lock:
            left = len(self._threads)
        if left:
            log.info("runner %s drains; runs at work: %d", self._runner.runner_id, left)
        while True:
            with self._lock:
                thread = next(iter(self._threads), None)
            if thread is None:
                return
            thread.join()

    def _end_runs(self) -> None:
        self._ended_at = time.monotonic()
        with self._lock:
            executions = list(self._executions)
        for execution in executions:
            execution.stop()

    def _serve_one(self, claim: Claim) -> None:
        with about(run_id=claim.fence.run_id, session_id=claim.run.session_id):
            self._serve_it(claim)

    def _serve_it(self, claim: Claim) -> None:
        run_id = claim.fence.run_id
        try:
            self._execute(claim)
        except (StaleClaim, RunNotFound) as refusal:
            log.warning("run %s: report refused: %s", run_id, refusal)
        except StorageError as error:
            # Its runs are resolved when it ends; beating on would keep this one running for ever.
            log.error("run %s: not reported, so the runner ends: %s", run_id, error)
            self._runner.drain()
        except Exception:
            log.exception("run %s: the runner failed", run_id)
            self._insist(claim, lambda: claim.fail("the runner failed; its log says why"))
        finally:
            self._store.close()
            with self._lock:
                self._threads.discard(threading.current_thread())
            self._free.release()

    def _execute(self, claim: Claim) -> None:
        try:
            if self._ended_at is not None:  # and the agent would be ended as soon as it began
                self._insist(claim, claim.release)
                return
            # Before the start: once that is known, nothing that the database does keeps the agent.
            environment = self._environment(claim)
            self._insist(claim, claim.start)
        except IllegalMove:  # a stop came first: there is nothing to end yet
            self._insist(claim, claim.confirm_stop)
            return
        run = claim.run
        log.info("run %s of session %s started", run.run_id, run.session_id)
        began = time.monotonic()
        execution = Execution(
            self._command,
            prompt=run.prompt,
            env=environment,
            cwd=run.project_dir or self._runner.capabilities.project_dir,
            stop_grace=self._stop_grace,
            on_output=claim.note_output,
        )
        outcome, is_overdue = self._follow(claim, execution)
        # Its error may quote the agent, so only the exit status is fit for a log.
        log.info(
            "run %s %s after %.1f s (exit status %s)",
            run.run_id,
            outcome.kind,
            time.monotonic() - began,
            outcome.exit_status,
        )
        self._insist(claim, lambda: self._report(claim, outcome, is_overdue))

    def _follow(self, claim: Claim, execution: Execution) -> tuple[Outcome, bool]:
        """Wait for the end of an execution; return it, and whether it had to be ended for its time.

        What ends by itself before it is asked to is what it was, however late it is seen.
        """
        with self._lock:
            self._executions.add(execution)
        try:
            if self._ended_at is not None:  # ended between the claim and now
                execution.stop()
            claim.on_stop(execution.stop)
            outcome, is_overdue = execution.wait(self._max_runtime), False
            if outcome is None:
                run_id, limit = claim.fence.run_id, self._max_runtime
                log.warning("run %s: ended after its maximum runtime of %g s", run_id, limit)
                execution.stop()
                outcome, is_overdue = execution.wait(), True
        finally:
            with self._lock:
                self._executions.discard(execution)
        assert outcome is not None
        return outcome, is_overdue

    def _report(self, claim: Claim, outcome: Outcome, is_overdue: bool) -> None:
        if outcome.kind == "completed":
            claim.complete(outcome.result)
        elif outcome.kind == "failed":
            claim.fail(
                outcome.error or "the command failed",
                retry=outcome.exit_status in self._retry_exits,
            )
        else:
            try:
                claim.confirm_stop()
            except IllegalMove:  # nobody asked for it but this runner itself
                claim.fail(self._why_ended(is_overdue))

    def _why_ended(self, is_overdue: bool) -> str:
        runner_id = self._runner.runner_id
        if is_overdue:
            return (
                f"runner {runner_id} ended it after the maximum runtime of {self._max_runtime:g} s"
            )
        if self._ended_at is not None:
            return f"runner {runner_id} was shut down before the run had ended"
        return f"runner {runner_id} ended it, having no heartbeat within its lease"

    def _insist(self, claim: Claim, report: Callable[[], None]) -> None:
        claim.insist(report, self._has_time_to_report)

    def _has_time_to_report(self) -> bool:
        return self._ended_at is None or time.monotonic() - self._ended_at < LAST_WORD

    def _environment(self, claim: Claim) -> dict[str, str]:
        run, meant_for_us = claim.run, (*SERVICE, FILES)
        environment = {
            name: value for name, value in os.environ.items() if name not in meant_for_us
        }
        known = {
            "RUNQUEUE_RUN_ID": run.run_id,
            "RUNQUEUE_SESSION_ID": run.session_id,
            "RUNQUEUE_RUN_TYPE": run.type,
            "RUNQUEUE_AGENT_NAME": run.agent_name,
            "RUNQUEUE_DB": self._store.engine.address,
            "RUNQUEUE_EXECUTOR_SESSION_ID": self._executor_session_id(claim),
        }
        for name, value in known.items():
            if value is None:
                environment.pop(name, None)  # a runner may itself be executed by a run
            else:
                environment[name] = value
        return environment

    def _executor_session_id(self, claim: Claim) -> str | None:
        found: list[str | None] = []
        # A resume that does not know it would begin another conversation.
        self._insist(claim, lambda: found.append(claim.executor_session_id))
        return found[-1]
