"""Start, watch and stop the command of one run.

The runner has many runs at once and must be able to say of each of them "it is over, and nothing
of it is left". It therefore never starts a command itself but a small supervisor (`supervise.py`)
that owns the run's processes, and talks to it over two pipes: closing the control pipe, which the
runner's death does too, ends the run; the status pipe says how it went.
"""

from __future__ import annotations

import codecs
import contextlib
import importlib.util
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

RESULT_LIMIT = 1024 * 1024
"""Most bytes of standard output that are kept as the result."""

ERROR_LIMIT = 4 * 1024
"""Most bytes of the end of standard error that are kept for the error."""

_SUPERVISE = Path(__file__).resolve().with_name("supervise.py")
_CHUNK = 64 * 1024
_LARGEST_PIPE = 1024 * 1024


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    kind: str
    """completed, failed or stopped."""
    result: str | None
    """What a completed run printed, "" when that was nothing; None for the other kinds."""
    error: str | None
    """One sentence and the end of standard error, for a failed run."""
    exit_status: int | None
    """The command's exit code, -N for signal N, None when it was not started or is not known."""


class Execution:
    """One run of a command, which starts when this is made.

    `env` is the complete environment of the command, `cwd` its working directory (None: the
    runner's), `stop_grace` the seconds between SIGTERM and SIGKILL. A command that cannot be
    started gives a failed outcome, not an exception. `on_output` is called, from the thread of the
    run, whenever something arrives on standard output or error.
    """

    last_output_at: float | None
    """time.monotonic() of the last byte seen on standard output or error, None before the first."""
    pid: int | None
    """The supervisor's process, None when even that could not be started."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        prompt: str,
        env: Mapping[str, str],
        cwd: str | None,
        stop_grace: float,
        result_limit: int = RESULT_LIMIT,
        error_limit: int = ERROR_LIMIT,
        on_output: Callable[[], None] | None = None,
    ) -> None:
        self._command = list(command)
        self._cwd = cwd
        self._stdout = _Kept(head=result_limit // 2, tail=result_limit - result_limit // 2)
        self._stderr = _Kept(head=0, tail=error_limit)
        self._lock = threading.Lock()
        self._stop_asked = False
        self._control: int | None = None
        self._outcome: Outcome | None = None
        self._over = threading.Event()
        self.last_output_at = None
        self._on_output = on_output
        self.pid = None
        given = prompt.encode("utf-8", "replace")  # before there is anything to leave behind
        try:
            process, status = self._start_supervisor(env, stop_grace)
        except (OSError, ValueError) as error:
            self._finish(Outcome("failed", None, _start_failure(error), None))
            return
        self.pid = process.pid
        self._start_watching(process, status, given)

    def stop(self) -> None:
        """Ask for the end of every process of the run; `wait` tells when that is done."""
        with self._lock:
            if self._stop_asked or self._control is None:
                return
            self._stop_asked = True
            with contextlib.suppress(OSError):
                os.write(self._control, b"s")

    def wait(self, timeout: float | None = None) -> Outcome | None:
        """The outcome, None when the run is not over within `timeout` seconds."""
        self._over.wait(timeout)
        return self._outcome

    def _start_supervisor(
        self, env: Mapping[str, str], stop_grace: float
    ) -> tuple[subprocess.Popen[bytes], int]:
        """The supervisor's process and the read end of its status pipe."""
        if not self._command:
            raise ValueError("there is no command")
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            # A pipe of Python is not inherited: no other child of the runner may hold the write
            # end of the control pipe, or the runner's death would go unseen.
            control_read, control_write = os.pipe()
            theirs.callback(os.close, control_read)
            ours.callback(os.close, control_write)
            status_read, status_write = os.pipe()
            theirs.callback(os.close, status_write)
            ours.callback(os.close, status_read)
            arguments = [str(control_read), str(status_write), repr(float(stop_grace))]
            arguments += [_psutil_folder(), self._cwd or "", *self._command]
            process = subprocess.Popen(
                [sys.executable, "-I", str(_SUPERVISE), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env=dict(env),
                pass_fds=(control_read, status_write),
                start_new_session=True,
            )
            ours.pop_all()
        self._control = control_write
        return process, status_read

    def _start_watching(self, process: subprocess.Popen[bytes], status: int, prompt: bytes) -> None:
        """Start the thread of the run, or end the run when there can be none."""
        watcher = threading.Thread(
            target=self._watch,
            args=(process, status, prompt),
            name=f"run-{process.pid}",
            daemon=True,
        )
        try:
            watcher.start()
        except RuntimeError:
            # Nobody would watch the run, so it must not go on.
            self._close_control()
            _close(process.stdin, process.stdout, process.stderr)
            os.close(status)
            process.wait()
            raise

    def _watch(self, process: subprocess.Popen[bytes], status: int, prompt: bytes) -> None:
        """The thread of the run: from its start until it is over and nothing of it is open."""
        try:
            outcome = self._follow(process, status, prompt)
        except Exception as error:  # noqa: BLE001
            # Without this a run that cannot be followed (no descriptor left, say) is never over.
            self._close_control()
            process.wait()
            outcome = self._failed(
                f"the runner could not follow the run ({type(error).__name__})", None
            )
        finally:
            self._close_control()
            _close(process.stdin, process.stdout, process.stderr)
            os.close(status)
        self._finish(outcome)

    def _follow(self, process: subprocess.Popen[bytes], status: int, prompt: bytes) -> Outcome:
        """Move the run's data until its supervisor ends, and tell what came of it."""
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        said = bytearray()
        with _Pump() as pump:
            pump.write(process.stdin, prompt)
            pump.read(process.stdout.fileno(), self._noting(self._stdout))
            pump.read(process.stderr.fileno(), self._noting(self._stderr))
            pump.run_until_end_of(status, said.extend)
            supervisor_status = process.wait()
            # Something may still hold the other ends: take what is there, wait for no more.
            pump.drain()
        return self._settle(_Report.parse(said.decode()), supervisor_status)

    def _noting(self, kept: _Kept) -> Callable[[bytes], None]:
        """A reader that keeps the data and notes when it came."""

        def note(data: bytes) -> None:
            self.last_output_at = time.monotonic()
            kept.add(data)
            if self._on_output is not None:
                self._on_output()

        return note

    def _settle(self, report: _Report, supervisor_status: int) -> Outcome:
        """The outcome that the supervisor's report and end amount to."""
        code = report.exit_status
        if not report.done:
            if report.command_pid is not None and code is None:
                # What the command started in its own group does not die with the supervisor.
                with contextlib.suppress(OSError):
                    os.killpg(report.command_pid, signal.SIGKILL)
            end = _describe(supervisor_status)
            return self._failed(f"the supervisor of the run ended before the run ({end})", code)
        if report.stopped:
            return Outcome("stopped", None, None, code)
        if report.error is not None:
            return Outcome("failed", None, self._could_not_start(*report.error), None)
        if code == 0:
            return Outcome("completed", self._stdout.text(), None, 0)
        return self._failed(
            "the command did not report its end" if code is None else _describe(code), code
        )

    def _failed(self, sentence: str, code: int | None) -> Outcome:
        """A failed outcome with the end of standard error, if there is any."""
        tail = self._stderr.tail_text().strip()
        return Outcome("failed", None, f"{sentence}: {tail}" if tail else sentence, code)

    def _could_not_start(self, stage: str, number: int) -> str:
        """The sentence for a command that the supervisor could not start."""
        reason = os.strerror(number) if number else "unknown error"
        if stage == "cwd":
            return f"the working directory {self._cwd!r} cannot be used: {reason}"
        return f"the command {self._command[0]!r} could not be started: {reason}"

    def _finish(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._over.set()

    def _close_control(self) -> None:
        with self._lock:
            if self._control is not None:
                os.close(self._control)
                self._control = None


@dataclass(frozen=True)
class _Report:
    """What a supervisor said on its status pipe (the lines are explained in supervise.py)."""

    command_pid: int | None = None
    exit_status: int | None = None
    error: tuple[str, int] | None = None
    stopped: bool = False
    done: bool = False

    @classmethod
    def parse(cls, text: str) -> _Report:
        said = {words[0]: words[1:] for words in map(str.split, text.splitlines()) if words}
        error = said.get("error")
        return cls(
            command_pid=int(said["started"][0]) if "started" in said else None,
            exit_status=int(said["ended"][0]) if "ended" in said else None,
            error=(error[0], int(error[1])) if error else None,
            stopped="stopping" in said,
            done="done" in said,
        )


class _Kept:
    """The first `head` and the last `tail` bytes of a stream, and how many came in all."""

    def __init__(self, head: int, tail: int) -> None:
        self._head_size, self._tail_size = head, tail
        self._head, self._tail = bytearray(), bytearray()
        self._cut = 0

    def add(self, data: bytes) -> None:
        room = self._head_size - len(self._head)
        self._head += data[:room]
        self._tail += data[room:]
        excess = len(self._tail) - self._tail_size
        if excess > 0:
            del self._tail[:excess]
            self._cut += excess

    def text(self) -> str:
        """All of it, with a marker line at the place where bytes were cut out."""
        if not self._cut:
            return _clean((self._head + self._tail).decode("utf-8", "replace"))
        # An incremental decoder holds back the first part of a character that the cut split.
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        head = decoder.decode(bytes(self._head))
        cut = self._cut + len(decoder.getstate()[0]) + self._split_bytes()
        return f"{_clean(head)}\n[... {cut:,} bytes cut ...]\n{self.tail_text()}"

    def tail_text(self) -> str:
        """The last bytes only."""
        return _clean(self._tail[self._split_bytes() :].decode("utf-8", "replace"))

    def _split_bytes(self) -> int:
        """How many bytes at the start of the tail belong to a character that the cut split."""
        if not self._cut:
            return 0
        count = 0
        for byte in self._tail[:3]:
            if byte & 0xC0 != 0x80:
                break
            count += 1
        return count


class _Pump:
    """Reads and writes several pipes from one thread, none of which can hold up another."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> _Pump:
        return self

    def __exit__(self, *_: object) -> None:
        self._selector.close()

    def write(self, pipe: IO[bytes], data: bytes) -> None:
        """Write `data` as it is taken and close the pipe after it, or when nobody reads it."""
        os.set_blocking(pipe.fileno(), False)
        rest = memoryview(data)

        def ready() -> None:
            nonlocal rest
            try:
                rest = rest[os.write(pipe.fileno(), rest) :]
            except BlockingIOError:
                return
            except OSError:
                rest = rest[:0]
            if not rest:
                self._selector.unregister(pipe)
                pipe.close()

        if data:
            self._selector.register(pipe, selectors.EVENT_WRITE, ready)
        else:
            pipe.close()

    def read(self, fd: int, take: Callable[[bytes], object]) -> None:
        """Hand to `take` what arrives, up to the end of file."""
        os.set_blocking(fd, False)

        def ready() -> int:
            try:
                data = os.read(fd, _CHUNK)
            except BlockingIOError:
                return 0
            except OSError:
                data = b""
            if data:
                take(data)
            else:
                self._selector.unregister(fd)
            return len(data)

        self._selector.register(fd, selectors.EVENT_READ, ready)

    def run_until_end_of(self, fd: int, take: Callable[[bytes], object]) -> None:
        """Move data until the end of file of `fd`, which is read as well."""
        self.read(fd, take)
        while fd in self._selector.get_map():
            for key, _ in self._selector.select():
                key.data()

    def drain(self) -> None:
        """Read what is in the pipes now; bounded, as somebody may still be writing to them."""
        for key in list(self._selector.get_map().values()):
            taken = 0
            while key.events & selectors.EVENT_READ and taken < _LARGEST_PIPE:
                count = key.data()
                if not count:
                    break
                taken += count


def _clean(text: str) -> str:
    """Text without NUL, which neither JSON consumers nor terminals can be trusted with."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _describe(code: int) -> str:
    """An exit code, or -N for signal N, in words."""
    if code >= 0:
        return f"exit status {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _start_failure(error: OSError | ValueError) -> str:
    """Why no supervisor could be started, without repeating any argument or variable."""
    if isinstance(error, OSError):
        return f"the supervisor of the run could not be started: {error.strerror}"
    return "the command could not be started: it or its environment is empty or not valid"


def _psutil_folder() -> str:
    """Where psutil is: isolated mode leaves out PYTHONPATH and the user's own packages."""
    spec = importlib.util.find_spec("psutil")
    return str(Path(spec.origin).parent.parent) if spec and spec.origin else ""


def _close(*pipes: IO[bytes] | None) -> None:
    for pipe in pipes:
        if pipe is not None:
            pipe.close()
