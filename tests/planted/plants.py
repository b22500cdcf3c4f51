"""The bugs to plant, as data: what each is, the text that it changes, and who is to notice."""

from __future__ import annotations

from typing import NamedTuple


class Edit(NamedTuple):
    """One change of a file: a text that it holds exactly once, and what takes its place."""

    file: str
    old: str
    new: str


class Plant(NamedTuple):
    """A bug, and the tests of which each must fail with it."""

    name: str
    what: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]


def plant(name: str, what: str, *edits: tuple[str, str, str], by: tuple[str, ...]) -> Plant:
    changed = tuple(Edit(f"runqueue/{file}", old, new) for file, old, new in edits)
    return Plant(name, what, changed, tuple(f"tests/{node}" for node in by))


PLANTS: tuple[Plant, ...] = (
    # Families
    plant(
        "two-sweeps-tell",
        "whoever comes second tells the parent again",
        (
            "callbacks.py",
            "    runs = Run.from_rows(store.run(statements_family.ENDED, run_ids=listed))",
            "    runs = Run.from_rows(store.run(statements_family.ENDED, run_ids=listed)) or [\n"
            "        Run.from_row(store.run(statements.GET_RUN, key=one)[0]) for one in run_ids\n"
            "    ]",
        ),
        (
            "callbacks.py",
            "    if _mark(store, run_ids, callback_id) != len(run_ids):",
            "    if _mark(store, run_ids, callback_id) > len(run_ids):",
        ),
        by=(
            "contract/test_callbacks.py::test_an_end_that_was_told_of_meanwhile_is_not_told_again",
        ),
    ),
    plant(
        "a-stopped-tree-comes-back",
        "a child that ends by the stop of its tree resumes its parent",
        (
            "trees.py",
            "        store.change(statements_family.SILENCE, session_ids=listed)",
            "        pass",
        ),
        by=("contract/test_trees.py::test_a_stop_of_a_tree_stops_all_of_it",),
    ),
    plant(
        "limits-without-a-lock",
        "two who add the last child at once are both let in",
        (
            "limits.py",
            "        store.run(statements.LOCK_SESSION, session_id=line.root)",
            "        pass",
        ),
        by=(
            "contract/test_trees.py"
            "::test_whoever_comes_while_the_last_child_is_being_added_waits_and_is_refused[postgres]",
        ),
    ),
    plant(
        "losses-not-counted",
        "a run that kills its runners is given to one after the other",
        ("attempts.py", "        one.lost += 1\n", "        one.lost += 0\n"),
        by=(
            "contract/test_attempts.py"
            "::test_a_run_that_took_two_runners_down_is_not_given_to_a_third",
        ),
    ),
    # Durability
    plant(
        "synchronous-normal",
        "a commit is not synced: a power cut takes acknowledged runs",
        ("engines/sqlite_turns.py", '"synchronous": "full"', '"synchronous": "normal"'),
        by=(
            "schema/test_fresh.py"
            "::test_the_journal_is_a_write_ahead_log_that_is_synced_at_each_commit",
            "chaos/test_power_loss.py::test_no_power_cut_loses_what_was_acknowledged",
        ),
    ),
    plant(
        "storage-error-swallowed",
        "a catch-all around the database: what was refused looks done",
        (
            "database.py",
            "        raise ours from (None if",
            "        return\n        raise ours from (None if",
        ),
        by=("cli/test_exit_codes.py::test_a_busy_database_is_75",),
    ),
    plant(
        "deferred-transactions",
        "a transaction that reads before it writes cannot wait for another",
        ("engines/sqlite.py", '= ("IMMEDIATE",)', '= ("DEFERRED",)'),
        by=("contract/test_concurrency.py::test_eight_runners_claim_each_run_once[sqlite]",),
    ),
    plant(
        "foreign-keys-off",
        "SQLite checks no reference unless it is told to",
        ("engines/sqlite_turns.py", '"foreign_keys": 1', '"foreign_keys": 0'),
        by=("planted/test_unnoticed.py::test_every_connection_checks_references",),
    ),
    plant(
        "foreign-key-of-the-shell",
        "without the trigger the stock shell may write a run of no session",
        (
            "migrations/sqlite/0001_initial.py",
            '    "runs_session_insert": f"BEFORE INSERT ON runs {NO_SESSION}",\n',
            "",
        ),
        by=("schema/test_other_writers.py::test_the_insert_of_the_contract_is_refused",),
    ),
    plant(
        "file-open-to-the-world",
        "the mode of the file is left to the umask",
        ("engines/sqlite_files.py", "wanted = 0o660 if shared else 0o600", "wanted = 0o664"),
        ("engines/sqlite_files.py", "if status.st_mode & 0o007 and", "if False and"),
        by=("schema/test_fresh.py::test_the_file_and_its_companions_are_closed_to_everybody_else",),
    ),
    plant(
        "file-opened-beside-sqlite",
        "closing any handle of the file drops the locks that the process holds on it",
        (
            "engines/sqlite.py",
            "            self.database.connection().backup(copy)",
            '            open(self.database.path, "rb").close()\n'
            "            self.database.connection().backup(copy)",
        ),
        by=("unit/test_layers.py::test_the_database_file_is_opened_by_us_in_one_place_only",),
    ),
    # The guard, the fence and what belongs to a move
    plant(
        "move-without-guard",
        "a move is made from whatever status the run has",
        ("statements.py", ".where(_is_still(Run, move.sources), where)", ".where(where)"),
        by=(
            "unit/test_statements.py::test_a_move_is_guarded_by_exactly_its_sources",
            "contract/test_reports.py::test_terminal_is_final_for_everybody",
        ),
    ),
    plant(
        "guard-too-wide",
        "a run that has ended may be failed once more",
        ("states.py", '"fail": _move({_C, _R, _S}', '"fail": _move({_C, _R, _S, Status.COMPLETED}'),
        by=(
            "unit/test_explorer.py::test_no_order_of_moves_leads_to_anything_bad",
            "contract/test_reports.py"
            "::test_each_report_is_accepted_in_exactly_its_sources[sqlite-fail-completed]",
        ),
    ),
    plant(
        "fence-by-runner-alone",
        "an earlier claim by the same runner is taken for the one that it holds now",
        (
            "statements.py",
            'return is_its_own & (Run.claimed_at == hole("claimed_at"))',
            "return is_its_own",
        ),
        by=(
            "unit/test_statements.py"
            "::test_a_move_of_an_owner_is_fenced_by_runner_and_time_of_claim",
            "contract/test_reports.py"
            "::test_an_earlier_claim_of_the_same_runner_is_stale[sqlite-start]",
        ),
    ),
    plant(
        "release-keeps-owner",
        "a run that was given back still names its runner",
        ("statements.py", '{"runner_id": None, "claimed_at": None}', '{"claimed_at": None}'),
        by=(
            "contract/test_reports.py::test_release_clears_the_owner",
            "contract/test_claims.py::test_an_operator_releases_a_claimed_run",
        ),
    ),
    plant(
        "event-after-the-move",
        "a move and what is recorded of it are two transactions",
        (
            "moves.py",
            "        record_many(store, name, run_ids, now=now, actor=Actor.RUNNER",
            "        store.database.commit()\n"
            "        store.database.begin()\n"
            "        record_many(store, name, run_ids, now=now, actor=Actor.RUNNER",
        ),
        by=(
            "planted/test_unnoticed.py"
            "::test_a_report_that_cannot_be_recorded_is_not_made[sqlite-complete]",
        ),
    ),
    plant(
        "two-active-runs-of-a-session",
        "the unique index is not there for whoever writes by hand",
        (
            "migrations/sqlite/0001_initial.py",
            "for name, definition in UNIQUE_INDEXES.items():",
            "for name, definition in ():",
        ),
        by=(
            "contract/test_raw_sql_sessions.py"
            "::test_a_second_active_run_of_a_session_is_refused_by_the_database[sqlite]",
        ),
    ),
    # Claiming
    plant(
        "greedy-claim",
        "IN instead of = ANY(ARRAY(..)): one claim takes all that wait",
        (
            "statements.py",
            "is_picked = (Run.run_id == pick) & _is_online()",
            "pick = Either(Run.run_id == _first_ready(), Run.run_id.in_(_first_unlocked(depth)))\n"
            "    is_picked = pick & _is_online()",
        ),
        by=(
            "planted/test_unnoticed.py"
            "::test_the_rows_of_a_change_are_chosen_once[claim 4 deep-postgres]",
        ),
    ),
    plant(
        "claim-waits-for-others",
        "SKIP LOCKED is left out: claimers queue for one row, and find it taken",
        (
            "statements.py",
            "for_update(NO_KEY, of=(run, session), skip_locked=True)",
            "for_update(NO_KEY, of=(run, session))",
        ),
        by=("planted/test_unnoticed.py::test_a_claim_does_not_wait_for_a_run_that_others_hold",),
    ),
    plant(
        "claim-past-timeout",
        "a run is claimed although its time is over",
        (
            "statements.py",
            '& (run.waiting == SQL("0"))\n'
            '        & ((run.timeout_at > hole("now")) | run.timeout_at.is_null())',
            '& (run.waiting == SQL("0"))',
        ),
        by=("contract/test_sweep.py::test_a_run_is_never_claimed_from_its_timeout_on[sqlite-at]",),
    ),
    plant(
        "claim-without-priority",
        "of two demands the older run goes first, however urgent the other is",
        (
            "statements.py",
            ".order_by(best.priority.desc(), best.created_at, best.run_id)",
            ".order_by(best.created_at, best.run_id)",
        ),
        by=("contract/test_claims.py::test_priority_goes_across_different_demands[sqlite]",),
    ),
    plant(
        "any-tag-will-do",
        "a runner serves a run if it has one of the tags",
        (
            "demands.py",
            "return all(any(_is_equal(one, other)",
            "return any(any(_is_equal(one, other)",
        ),
        by=(
            "contract/test_demands_matching.py"
            "::test_a_runner_does_not_claim_what_it_does_not_satisfy[sqlite-one-tag-of-two]",
        ),
    ),
    plant(
        "session-lock-left-out",
        "the trigger that orders a session does not wait for who else changes it",
        (
            "migrations/postgres/0001_initial.py",
            "PERFORM 1 FROM sessions WHERE session_id = ordered FOR NO KEY UPDATE;",
            "PERFORM 1;",
        ),
        by=(
            "race/test_interleavings.py::test_two_callers_at_once_leave_what_one_after_the_other"
            "_could[postgres-insert by hand | insert by hand]",
        ),
    ),
    plant(
        "stop-without-lock",
        "a run that is claimed between the two looks of a stop is in neither",
        (
            "moves.py",
            " nor pending for the other.\n"
            "        store.lock(statements.LOCK_SESSION_OF_RUN, run_id=run_id)\n",
            "\n",
        ),
        by=("planted/test_unnoticed.py::test_a_stop_misses_no_claim_between_its_two_looks",),
    ),
    plant(
        "session-has-no-home",
        "a resume does not go to where its session lives",
        ("enqueue.py", "matching.merge(session.home(), request.demands)", "request.demands"),
        by=("contract/test_sessions.py::test_a_resume_inherits_its_sessions_home[sqlite]",),
    ),
    plant(
        "same-id-any-content",
        "another run under an id that exists is taken for the one that is there",
        ("enqueue.py", "    if different:\n", "    if False:\n"),
        by=("contract/test_enqueue.py::test_the_same_run_id_with_another_content_is_refused",),
    ),
    # Time
    plant(
        "expires-too-late",
        "the boundary of timeout_at belongs to nobody",
        (
            "statements.py",
            'return _is_pending(Run) & (Run.timeout_at <= hole("now"))',
            'return _is_pending(Run) & (Run.timeout_at < hole("now"))',
        ),
        by=("contract/test_sweep.py::test_a_run_expires_at_exactly_its_timeout[sqlite]",),
    ),
    plant(
        "select-then-update",
        "what the daemon saw pending it fails, whatever became of it meanwhile",
        (
            "sweeper.py",
            "    with store.transaction():\n"
            "        rows = store.run(\n"
            "            statements.EXPIRE,",
            "    from runqueue.models import Run\n"
            "    is_due = (Run.status == 'pending') & (Run.timeout_at <= now)\n"
            "    rows = store.query(Run.select(Run.run_id).where(is_due))\n"
            "    with store.transaction():\n"
            "        ids = [row[0] for row in rows]\n"
            "        values = {Run.status: 'failed', Run.error: error, Run.completed_at: now}\n"
            "        store.query(Run.update(values).where(Run.run_id.in_(ids)))\n"
            "        store.run(\n"
            "            statements.EXPIRE,",
        ),
        by=(
            "race/test_moves.py"
            "::test_two_moves_at_once_are_one_after_the_other[sqlite-pending: claim | expire]",
            "unit/test_layers.py::test_only_the_guarded_move_assigns_a_status",
        ),
    ),
    plant(
        "rescue-by-age",
        "a run is taken from its owner whether or not that one lives",
        (
            "statements.py",
            "return ~_exists(alive) & (_exists(registered) |",
            "return (_exists(registered) |",
        ),
        by=(
            "contract/test_sweep_rescue.py"
            "::test_a_live_runners_run_is_never_taken_however_long_it_takes[sqlite]",
        ),
    ),
    plant(
        "settled-at-once",
        "a stop is presumed before its owner had the time to confirm it",
        (
            "statements.py",
            "lambda run: _is_gone(run) | _is_grace_over(run),",
            "lambda run: run.run_id.is_null(False),",
        ),
        by=("contract/test_sweep_rescue.py::test_a_stop_is_not_settled_within_its_grace[sqlite]",),
    ),
    plant(
        "scheduler-as-it-comes",
        "the scheduler lists every time that was missed, and sleeps by the wall clock",
        (
            "daemon.py",
            'scheduler.add_job(self.tick, Steady(self._interval), id="sweep")',
            'scheduler.add_job(self.tick, "interval", seconds=self._interval)',
        ),
        ("daemon.py", '{"coalesce": True, "max_instances": 1, "misfire_grace_time": None}', "{}"),
        ("daemon.py", "if abs(step) > min(self._interval, 1.0):", "if False:"),
        by=(
            "chaos/test_daemons.py"
            "::test_a_daemon_whose_clock_is_set_goes_on_ticking[an hour back-sqlite]",
        ),
    ),
    # Runners
    plant(
        "take-over-adopts",
        "a restarted runner is the owner of what its predecessor was executing",
        ("runner.py", '        self._give_up(f"runner {self.runner_id} was restarted")\n', ""),
        by=(
            "contract/test_runner_lifecycle.py"
            "::test_a_restarted_runner_takes_over_from_its_dead_process_at_once[sqlite]",
        ),
    ),
    plant(
        "takes-over-the-living",
        "a second process gets the id of one that is at work",
        ("runner.py", "if found.lease_until > now and not", "if False and not"),
        by=(
            "contract/test_runner_lifecycle.py"
            "::test_a_second_process_with_a_live_runners_id_is_refused[sqlite]",
        ),
    ),
    plant(
        "late-result-lost",
        "what a runner reports too late is refused and forgotten",
        (
            "claims.py",
            '            self.keep_late(name, values.get("result", values.get("error")), now)\n',
            "",
        ),
        by=(
            "contract/test_reports.py::test_a_late_report_is_kept"
            "[sqlite-<lambda>-late result of runner worker: a poem]",
        ),
    ),
    plant(
        "lost-claim-forgotten",
        "a claim whose answer was lost stays claimed, and nobody works on it",
        ("runner.py", "if self._lost_at and (found :=", "if False and (found :="),
        by=(
            "contract/test_lost_answers.py::test_a_claim_whose_answer_was_lost_is_found_again[sqlite]",
        ),
    ),
    plant(
        "no-heartbeat-in-drain",
        "a runner that drains is dead before its last run has ended",
        (
            "runner.py",
            "while not self._closed.wait(self._pause(failing)):",
            "while not self._closed.wait(self._pause(failing)) and not self.is_draining:",
        ),
        by=("planted/test_unnoticed.py::test_a_draining_runner_beats_again_and_again",),
    ),
    plant(
        "stops-unheard",
        "an agent goes on although its run was stopped",
        ("runner.py", "status in (None, Status.STOPPING.value)", "status is None"),
        by=("contract/test_stop.py::test_a_stop_calls_the_owner[sqlite-running]",),
    ),
    plant(
        "report-after-the-end",
        "the block of a claim reports once more what its body has reported",
        ("claims.py", "if self.is_over or self._is_reported:", "if self.is_over:"),
        by=(
            "contract/test_transactions.py"
            "::test_a_report_within_a_transaction_is_not_repeated_by_its_with_block[sqlite]",
        ),
    ),
    # Waking
    plant(
        "told-before-the-commit",
        "whoever is woken looks before there is something to see",
        (
            "database.py",
            "store.database.after_commit(partial(store.engine.ring, self._wakes))",
            "store.engine.ring(self._wakes)",
        ),
        by=(
            "contract/test_postgres_wake.py::test_a_change_is_told_when_it_is_committed_and_not_before[postgres]",
        ),
    ),
    plant(
        "nobody-is-woken",
        "a waiting runner finds its run by the slow poll only",
        ("moves.py", "    store.wake(move.wakes if move else (Wake.WORK,))\n", ""),
        by=(
            "contract/test_postgres_wake.py::test_each_move_tells_those_whom_it_concerns[postgres]",
        ),
    ),
    # What is printed and logged
    plant(
        "row-in-the-message",
        "what PostgreSQL says of a refused row is the row, with its prompt",
        (
            "engines/postgres_errors.py",
            '    return told or str(error).partition("\\n")[0]',
            "    return str(error)",
        ),
        by=("planted/test_unnoticed.py::test_no_refusal_of_a_row_shows_the_row[postgres]",),
    ),
    plant(
        "raw-prompts",
        "a prompt drives the terminal of whoever looks at it",
        ("cli/render.py", 'kept = "\\n\\t" if lines else ""', 'return str(text)\n    kept = ""'),
        by=("cli/test_terminal.py::test_a_table_has_as_many_rows_as_there_are_runs",),
    ),
    plant(
        "prompt-in-the-log",
        "the runner tells what it executes",
        (
            "slots.py",
            'of session %s started", run.run_id, run.session_id)',
            'of session %s started", run.run_id, run.prompt)',
        ),
        by=("process/test_logs.py::test_prompts_never_reach_a_log",),
    ),
    plant(
        "password-shown",
        "a message quotes the URL with its password",
        ("engines/base.py", '    user, at, host = rest.rpartition("@")\n', "    return url\n"),
        by=(
            "unit/test_settings.py::test_without_password_keeps_what_tells_databases_apart"
            "[postgresql://user:hunter2@host/db-postgresql://user@host/db]",
        ),
    ),
)
