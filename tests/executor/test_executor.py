"""What a run's command gets, what becomes of its output, and that nothing of a run is left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from runqueue import executor
from runqueue.executor import Execution, Outcome

pytestmark = [
    pytest.mark.filterwarnings("error"),
    pytest.mark.skipif(sys.platform != "linux", reason="orphans are adopted on Linux only"),
]

ROOT = Path(executor.__file__).resolve().parent.parent
PATH = os.environ["PATH"]
LONG = 20.0
"""Seconds after which something that should happen is taken not to happen."""


def wait_until(predicate: Callable[[], object], timeout: float = LONG) -> None:
    """Return when the predicate holds; fail when it does not within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not predicate():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def users(token: str) -> list[psutil.Process]:
    """The live processes of a run that have `token` as an argument, without its supervisor."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            arguments = process.cmdline()
            if token in arguments and "-I" not in arguments and not is_gone(process.pid):
                found.append(process)
    return found


def sleeping(token: str) -> int:
    """How many `sleep` processes have begun their sleep of `token` seconds."""
    count = 0
    for process in users(token):
        with contextlib.suppress(psutil.Error):
            count += process.cmdline() == ["sleep", token]
    return count


def is_gone(pid: int) -> bool:
    """Whether the process has ended (a zombie that waits for its parent has)."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return True


def let_go(fifo: Path, line: str) -> None:
    """Write a line to the process that opens the fifo for reading, once it does."""
    opened: list[int] = []

    def has_reader() -> bool:
        with contextlib.suppress(OSError):
            opened.append(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        return bool(opened)

    wait_until(has_reader)
    os.write(opened[0], line.encode())
    os.close(opened[0])


def start(
    *command: str,
    prompt: str = "",
    env: dict[str, str] | None = None,
    cwd: str | None = None,
    stop_grace: float = LONG,
    result_limit: int = executor.RESULT_LIMIT,
    error_limit: int = executor.ERROR_LIMIT,
) -> Execution:
    """An Execution with a minimal environment."""
    return Execution(
        command,
        prompt=prompt,
        env={"PATH": PATH} if env is None else env,
        cwd=cwd,
        stop_grace=stop_grace,
        result_limit=result_limit,
        error_limit=error_limit,
    )


def end_of(execution: Execution) -> Outcome:
    """The outcome, which has to come."""
    outcome = execution.wait(LONG)
    assert outcome is not None, "the run is not over"
    return outcome


def run(*command: str, prompt: str = "", **options: object) -> Outcome:
    """The outcome of a command that ends by itself."""
    return end_of(start(*command, prompt=prompt, **options))  # type: ignore[arg-type]


@pytest.fixture
def token() -> Iterator[str]:
    """A number of seconds for `sleep` that no other process has; nothing may have it at the end."""
    seconds = f"1000.{uuid.uuid4().int % 10**12:012d}"
    yield seconds
    left = users(seconds)
    for process in left:
        process.kill()
    assert not left


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No test may leave a child, a thread of a run or an open descriptor behind."""
    before = len(os.listdir("/proc/self/fd"))
    # The tests' own servers stay for the other tests.
    children = set(psutil.Process().children())
    yield
    wait_until(lambda: not any(t.name.startswith("run-") for t in threading.enumerate()))
    assert set(psutil.Process().children()) <= children
    assert len(os.listdir("/proc/self/fd")) == before


def test_completed_run_has_the_standard_output_as_result() -> None:
    """Exit code 0: the result is what was printed, standard error is no part of it."""
    outcome = run("sh", "-c", "echo one; echo two >&2; printf three")
    assert outcome == Outcome("completed", "one\nthree", None, 0)


def test_completed_run_that_prints_nothing_has_an_empty_result() -> None:
    """An empty result is a result, not None."""
    assert run("true") == Outcome("completed", "", None, 0)


def test_wait_returns_none_before_the_end_and_the_same_outcome_after_it(token: str) -> None:
    """`wait` can be asked again and again."""
    execution = start("sleep", token)
    assert execution.wait(0) is None
    execution.stop()
    assert end_of(execution) is end_of(execution)


def test_failed_run_tells_exit_status_and_the_end_of_standard_error() -> None:
    """The error is one sentence with the stripped tail; the output is no result."""
    outcome = run("sh", "-c", "echo some output; printf '  went\\nwrong \\n' >&2; exit 3")
    assert outcome == Outcome("failed", None, "exit status 3: went\nwrong", 3)


def test_error_keeps_only_the_last_bytes_of_standard_error() -> None:
    """The limit is in bytes, and a character that the cut splits is dropped."""
    outcome = run("sh", "-c", "printf 'beginning äöü' >&2; exit 1", error_limit=5)
    assert outcome.error == "exit status 1: öü"


def test_failed_run_without_standard_error_tells_the_exit_status_only() -> None:
    """No colon without a tail."""
    assert run("sh", "-c", "exit 7").error == "exit status 7"


def test_command_killed_by_a_signal_has_failed_with_its_name() -> None:
    """The status is the negative number of the signal."""
    outcome = run("sh", "-c", "kill -SEGV $$")
    assert outcome == Outcome("failed", None, "killed by SIGSEGV", -signal.SIGSEGV)


def test_large_prompt_comes_back_from_cat_whole() -> None:
    """Writing 1 MiB while reading as much does not deadlock."""
    prompt = "0123456789abcde\n" * (executor.RESULT_LIMIT // 16)
    assert run("cat", prompt=prompt).result == prompt


def test_output_over_the_limit_has_head_and_tail_with_a_marker_between() -> None:
    """The marker is a line that says how many bytes are missing."""
    prompt = "h" * 500 + "x" * 123_456 + "t" * 500
    outcome = run("cat", prompt=prompt, result_limit=1000)
    assert outcome.result == "h" * 500 + "\n[... 123,456 bytes cut ...]\n" + "t" * 500


def test_cut_drops_the_characters_that_it_splits() -> None:
    """Half a character at the cut is counted as cut, not shown as a replacement character."""
    outcome = run("cat", prompt="€" * 100, result_limit=20)
    assert outcome.result == "€€€\n[... 282 bytes cut ...]\n€€€"


def test_output_that_is_not_text_is_made_text() -> None:
    """NUL and bytes that are not UTF-8 become U+FFFD, in the result and in the error."""
    assert run("printf", "a\\000b\\377c").result == "a\ufffdb\ufffdc"
    assert run("sh", "-c", "printf 'a\\000b\\377c' >&2; exit 1").error == (
        "exit status 1: a\ufffdb\ufffdc"
    )


def test_prompt_that_is_never_read_does_not_matter() -> None:
    """Neither a command that ends nor one that closes its input early is held up."""
    prompt = "x" * executor.RESULT_LIMIT
    assert run("echo", "hi", prompt=prompt).result == "hi\n"
    assert run("sh", "-c", "exec <&-; echo hi", prompt=prompt).result == "hi\n"


def test_prompt_with_a_lone_surrogate_is_passed_with_a_replacement() -> None:
    """JSON can carry what UTF-8 cannot; that is no reason for a crash."""
    assert run("cat", prompt="a\ud800b").result == "a?b"


def test_command_that_closes_its_output_is_waited_for(tmp_path: Path) -> None:
    """End of file on the output is not the end of the run."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    execution = start("sh", "-c", 'echo before; exec >&- 2>&-; read line <"$0"; exit 4', str(fifo))
    wait_until(lambda: execution.last_output_at)
    assert execution.wait(0.1) is None
    let_go(fifo, "go\n")
    assert end_of(execution).exit_status == 4


def test_missing_command_has_failed_with_a_sentence_that_names_it() -> None:
    """There is no exit status, as nothing ran."""
    outcome = run("/no/such/command", prompt="secret prompt", env={"KEY": "secret value"})
    assert outcome == Outcome(
        "failed",
        None,
        "the command '/no/such/command' could not be started: No such file or directory",
        None,
    )


def test_command_that_is_not_executable_has_failed(tmp_path: Path) -> None:
    """A file without the permission is named."""
    file = tmp_path / "file"
    file.write_text("text")
    outcome = run(str(file))
    assert outcome.kind == "failed"
    assert outcome.error == f"the command {str(file)!r} could not be started: Permission denied"


def test_missing_working_directory_has_failed_with_a_sentence_that_names_it() -> None:
    """It is not mistaken for a missing command."""
    outcome = run("true", cwd="/no/such/directory")
    assert outcome.kind == "failed"
    assert outcome.error == (
        "the working directory '/no/such/directory' cannot be used: No such file or directory"
    )


def test_environment_that_cannot_be_passed_has_failed_without_showing_it() -> None:
    """A value with a NUL gives an outcome, not an exception, and is not repeated."""
    execution = start("true", env={"KEY": "secret\0value"})
    outcome = end_of(execution)
    assert (outcome.kind, execution.pid) == ("failed", None)
    assert outcome.error is not None
    assert "secret" not in outcome.error
    execution.stop()


def test_command_runs_in_the_working_directory(tmp_path: Path) -> None:
    """A relative command is looked for there too."""
    script = tmp_path / "here"
    script.write_text("#!/bin/sh\npwd -P\n")
    script.chmod(0o755)
    assert run("./here", cwd=str(tmp_path)).result == f"{tmp_path.resolve()}\n"


@pytest.mark.parametrize("extra", [{}, {"LC_CTYPE": "C"}, {"LC_ALL": "C", "PYTHONPATH": "/nope"}])
def test_command_has_exactly_the_given_environment(extra: dict[str, str]) -> None:
    """Python adds LC_CTYPE to its own environment; the command must not see that."""
    given = {"PATH": PATH, "KEY": "a value", **extra}
    result = run("env", env=given).result
    assert result is not None
    assert dict(line.split("=", 1) for line in result.splitlines()) == given


def test_command_has_default_signals_and_only_its_three_pipes() -> None:
    """Neither ignored or blocked signals nor the control pipe reach the command."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        # Without a shell between, which may set the mask itself.
        signals = run("grep", "-E", "Sig(Blk|Ign)", "/proc/self/status").result
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    zeros = "0" * 16
    assert signals == f"SigBlk:\t{zeros}\nSigIgn:\t{zeros}\n"
    # The fourth descriptor is the folder that `ls` reads.
    assert run("ls", "/proc/self/fd").result == "0\n1\n2\n3\n"


def test_last_output_is_noted_from_both_streams(token: str) -> None:
    """There is none before the first byte; standard error counts."""
    silent, loud = start("sleep", token), start("sh", "-c", 'echo x >&2; exec sleep "$0"', token)
    wait_until(lambda: loud.last_output_at is not None)
    assert loud.last_output_at is not None
    assert loud.last_output_at <= time.monotonic()
    assert silent.last_output_at is None
    for execution in (silent, loud):
        execution.stop()
        assert end_of(execution).kind == "stopped"


def test_stop_ends_a_plain_command(token: str) -> None:
    """SIGTERM is enough; stopping again, also after the end, does nothing."""
    execution = start("sleep", token)
    wait_until(lambda: sleeping(token))
    execution.stop()
    execution.stop()
    assert end_of(execution) == Outcome("stopped", None, None, -signal.SIGTERM)
    assert not users(token)
    execution.stop()


def test_stop_at_once_is_heard() -> None:
    """A stop may come before the supervisor has even begun."""
    execution = start("sleep", "1000")
    execution.stop()
    assert end_of(execution).kind == "stopped"


def test_stop_kills_what_ignores_sigterm_after_the_grace(token: str) -> None:
    """Not before the grace is over, and all of it."""
    script = 'trap "" TERM; sleep "$0" & sleep "$0" & echo; wait'
    execution = start("sh", "-c", script, token, stop_grace=0.3)
    wait_until(lambda: execution.last_output_at and sleeping(token) == 2)
    begin = time.monotonic()
    execution.stop()
    assert end_of(execution) == Outcome("stopped", None, None, -signal.SIGKILL)
    assert time.monotonic() - begin >= 0.3
    assert not users(token)


def test_stop_ends_processes_in_other_sessions(token: str) -> None:
    """Also those that are nobody's children any more and have nothing of the environment."""
    script = """
        setsid nohup sh -c 'sleep "$0"; true' "$0" >/dev/null 2>&1 &
        (setsid setsid sleep "$0" >/dev/null 2>&1 &) &
        env -i setsid -f sleep "$0"
        (env -i /bin/sh -c 'cd /; setsid sleep "$1" <&- >&- 2>&- & exit' - "$0" &)
        exec sleep "$0"
    """
    execution = start("sh", "-c", script, token)
    wait_until(lambda: sleeping(token) == 5)
    execution.stop()
    assert end_of(execution).kind == "stopped"
    assert not users(token)


def test_stop_reaches_daemons_that_ignore_sigterm_and_signals_all_at_first(
    token: str, tmp_path: Path
) -> None:
    """A daemon can clean up on SIGTERM, and one that will not end is killed."""
    note = tmp_path / "note"
    script = """
        setsid sh -c 'trap "echo bye >\\"$1\\"; exit" TERM; sleep "$0" & wait' "$0" "$1" &
        setsid sh -c 'trap "" TERM; sleep "$0"; sleep "$0"' "$0" &
        wait
    """
    execution = start("sh", "-c", script, token, str(note), stop_grace=0.5)
    wait_until(lambda: sleeping(token) == 2)
    execution.stop()
    assert end_of(execution).kind == "stopped"
    assert note.read_text() == "bye\n"
    assert not users(token)


def test_command_that_cleans_up_with_other_commands_is_left_to_it(tmp_path: Path) -> None:
    """What a process starts after its SIGTERM is not ended before the grace is over."""
    note, fifo = tmp_path / "note", tmp_path / "fifo"
    os.mkfifo(fifo)
    script = 'trap "cat $1 >$0; exit" TERM; echo; while :; do :; done'
    execution = start("sh", "-c", script, str(note), str(fifo))
    wait_until(lambda: execution.last_output_at)
    execution.stop()
    assert execution.wait(0.3) is None
    let_go(fifo, "clean\n")
    assert end_of(execution).kind == "stopped"
    assert note.read_text() == "clean\n"


def test_paused_process_is_stopped_without_the_grace(token: str) -> None:
    """SIGTERM alone would stay pending."""
    execution = start("sleep", token)
    wait_until(lambda: sleeping(token))
    users(token)[0].suspend()
    execution.stop()
    assert end_of(execution).exit_status == -signal.SIGTERM


def test_command_that_exits_0_on_sigterm_counts_as_stopped() -> None:
    """The exit code of a stopped command says nothing about its work."""
    execution = start("sh", "-c", 'trap "exit 0" TERM; echo; while :; do :; done')
    wait_until(lambda: execution.last_output_at)
    execution.stop()
    assert end_of(execution) == Outcome("stopped", None, None, 0)


def test_processes_left_by_a_completed_command_are_ended_and_the_result_is_kept(
    token: str,
) -> None:
    """Even when they hold the pipes open."""
    script = 'setsid sleep "$0" & (sleep "$0" &) ; echo result'
    assert run("sh", "-c", script, token) == Outcome("completed", "result\n", None, 0)
    assert not users(token)


def test_leftovers_that_ignore_sigterm_are_killed(token: str) -> None:
    """With no more than the grace of a stop."""
    script = 'trap "" TERM; setsid sleep "$0" & echo result'
    begin = time.monotonic()
    assert run("sh", "-c", script, token, stop_grace=0.2).result == "result\n"
    assert time.monotonic() - begin >= 0.2
    assert not users(token)


def test_stop_after_the_end_of_the_command_does_not_change_the_outcome(token: str) -> None:
    """The command had ended by itself while what it left behind is still being ended."""
    script = 'trap "" TERM; setsid sleep "$0" & echo result'
    execution = start("sh", "-c", script, token, stop_grace=1)
    wait_until(lambda: sleeping(token) == len(users(token)) == 1)
    execution.stop()
    assert end_of(execution) == Outcome("completed", "result\n", None, 0)


def test_end_of_the_command_that_comes_with_a_stop_counts_as_its_end(tmp_path: Path) -> None:
    """When the supervisor sees both at once, the command was over before the stop was seen."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    execution = start("sh", "-c", 'echo $$; read line <"$0"', str(fifo))
    wait_until(lambda: execution.last_output_at)
    supervisor = psutil.Process(execution.pid)
    (command,) = supervisor.children()
    supervisor.suspend()
    let_go(fifo, "go\n")
    wait_until(lambda: is_gone(command.pid))
    execution.stop()
    supervisor.resume()
    assert end_of(execution) == Outcome("completed", f"{command.pid}\n", None, 0)


def test_death_of_the_runner_ends_the_processes_of_its_runs(token: str) -> None:
    """kill -9 of a runner: nothing goes on unowned, daemons included."""
    helper = """
import sys
from runqueue.executor import Execution
script = 'setsid -f sleep "$0"; exec sleep "$0"'
runs = [Execution(["sh", "-c", script, sys.argv[1]], prompt="", env={"PATH": sys.argv[2]},
                  cwd=None, stop_grace=20) for _ in range(2)]
print(*[run.pid for run in runs], flush=True)
runs[0].wait()
"""
    with subprocess.Popen(
        [sys.executable, "-c", helper, token, PATH],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as runner:
        assert runner.stdout is not None
        supervisors = [int(word) for word in runner.stdout.readline().split()]
        assert len(supervisors) == 2
        wait_until(lambda: sleeping(token) == 4)
        runner.kill()
    wait_until(lambda: not users(token))
    wait_until(lambda: all(is_gone(pid) for pid in supervisors))


def test_death_of_the_supervisor_is_a_failure_and_ends_the_command(token: str) -> None:
    """The command and its process group do not go on without one."""
    execution = start("sh", "-c", 'sleep "$0" & echo said >&2; wait', token)
    wait_until(lambda: execution.last_output_at and sleeping(token) == 1)
    assert execution.pid is not None
    os.kill(execution.pid, signal.SIGKILL)
    outcome = end_of(execution)
    assert outcome == Outcome(
        "failed",
        None,
        "the supervisor of the run ended before the run (killed by SIGKILL): said",
        None,
    )
    wait_until(lambda: not users(token))


def test_command_does_not_outlive_its_supervisor_when_the_runner_cannot_help(token: str) -> None:
    """The kernel ends the command when its supervisor dies."""
    helper = """
import sys
from runqueue.executor import Execution
run = Execution(["sleep", sys.argv[1]], prompt="", env={"PATH": sys.argv[2]}, cwd=None,
                stop_grace=20)
print(run.pid, flush=True)
run.wait()
"""
    with subprocess.Popen(
        [sys.executable, "-c", helper, token, PATH],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as runner:
        assert runner.stdout is not None
        supervisor = int(runner.stdout.readline())
        wait_until(lambda: sleeping(token))
        psutil.Process(runner.pid).suspend()
        os.kill(supervisor, signal.SIGKILL)
        try:
            wait_until(lambda: not sleeping(token))
        finally:
            runner.kill()


def test_supervisor_outlives_the_signals_of_a_terminal(token: str) -> None:
    """It ignores them, and is in a session of its own."""
    execution = start("sleep", token)
    wait_until(lambda: sleeping(token))
    assert execution.pid is not None
    assert os.getsid(execution.pid) == execution.pid
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(execution.pid, number)
    assert execution.wait(0.1) is None
    execution.stop()
    assert end_of(execution).kind == "stopped"


def test_many_runs_at_once_keep_to_themselves(token: str) -> None:
    """Started from eight threads; stopping one does not touch the others."""
    runs: dict[int, Execution] = {}

    def begin(number: int) -> None:
        script = 'setsid sleep "$0" & cat; echo; wait'
        runs[number] = start("sh", "-c", script, token, prompt=f"run {number}")

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_until(lambda: sleeping(token) == 8)
    for left in range(8, 0, -1):
        assert sleeping(token) == left
        runs[left - 1].stop()
        assert end_of(runs[left - 1]).kind == "stopped"


def test_many_results_at_once_are_not_mixed() -> None:
    """Each run has its own output."""
    runs = [start("cat", prompt=f"run {number} " * 20_000) for number in range(8)]
    for number, execution in enumerate(runs):
        assert end_of(execution).result == f"run {number} " * 20_000
