"""Own every process of one run, so that none of them outlives it.

A command can leave processes behind that no process group or session holds together. The kernel
gives such orphans to their nearest ancestor that is a "child subreaper", so each run gets one
process of its own that is nothing else: orphans of the run become its children, and "no children
left" is then the exact answer to "is the run over".

This file is run by path, in isolated mode, by `runqueue.executor`; it is never imported by it.
Arguments: CONTROL_FD STATUS_FD GRACE_SECONDS PSUTIL_FOLDER WORKING_DIRECTORY COMMAND...
(an empty folder or directory means "as it is"). Standard input, output and error are the command's.

On the control pipe a byte asks for a stop, and end of file says that the runner is dead.
On the status pipe one line is written for each of these, in the order in which they happen:
    started PID          the command's process exists
    error STAGE ERRNO    the command could not be started; STAGE is cwd, exec or fork
    stopping             a stop was seen before the command ended
    ended STATUS         the command's exit code, or -N for signal N
    done                 no process of the run is left
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import select
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # Loading `typing` would take a fifth of the time that a run needs to start.
    from typing import Any

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

LEFTOVER_GRACE = 2.0
"""Longest wait, in seconds, for what a command left behind to end after SIGTERM."""

FIRST_PAUSE, LONGEST_PAUSE = 0.02, 0.5
"""Seconds between two looks at the processes while ending them; it doubles from one look on."""


def main(argv: list[str]) -> int:
    """Run the command that `argv` names to its end, and end all that it started."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    restore_locale_variable()
    control, status = take(int(argv[1])), take(int(argv[2]))
    Supervisor(control, status, float(argv[3]), argv[4]).run(argv[5], argv[6:])
    return 0


def take(fd: int) -> int:
    """Move an inherited descriptor to a low number (for select) that the command cannot inherit."""
    low = os.dup(fd)
    os.close(fd)
    return low


def restore_locale_variable() -> None:
    """Undo what Python did to LC_CTYPE at its start (PEP 538): the command gets the given one."""
    try:
        with open("/proc/self/environ", "rb") as file:
            given = file.read().split(b"\0")
    except OSError:
        return
    values = [entry[9:] for entry in given if entry.startswith(b"LC_CTYPE=")]
    if values:
        os.environb[b"LC_CTYPE"] = values[0]
    else:
        os.environb.pop(b"LC_CTYPE", None)


class Supervisor:
    """The processes of one run, from the start of its command until none is left."""

    def __init__(self, control: int, status: int, grace: float, psutil_folder: str) -> None:
        self.control = control
        self.status = status
        self.grace = grace
        self.psutil_folder = psutil_folder
        self.command_pid = 0
        self.command_ended = False
        self.known: set[Any] = set()
        self.libc: Any = None
        self.adopts_orphans = False
        if sys.platform == "linux":
            self.libc = ctypes.CDLL(None, use_errno=True)
            self.adopts_orphans = self.libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
        self.wake, wake_write = os.pipe()
        os.set_blocking(self.wake, False)
        os.set_blocking(wake_write, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)

    def run(self, cwd: str, command: list[str]) -> None:
        """Start the command, wait for its end or for a stop, and end what is left."""
        stopping = self.pause(0, heed_control=True)
        if stopping:
            self.report("stopping")
        elif self.start(cwd, command):
            stopping = self.wait_for_command()
            if stopping:
                self.report("stopping")
                self.end_all(self.grace)
            elif not self.all_gone():
                self.end_all(min(self.grace, LEFTOVER_GRACE))
        self.report("done")

    def report(self, line: str) -> None:
        """Tell the runner; a runner that is dead does not hear it, and that is fine."""
        with contextlib.suppress(OSError):
            os.write(self.status, line.encode() + b"\n")

    def start(self, cwd: str, command: list[str]) -> bool:
        """Fork the command; False when there is no process for it."""
        supervisor_pid = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            self.report(f"error fork {error.errno}")
            return False
        if pid == 0:
            self.become(supervisor_pid, cwd, command)
        self.command_pid = pid
        self.report(f"started {pid}")
        # Only the command may hold its pipes: it is its closing them that the runner has to see.
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.close(null)
        return True

    def become(self, supervisor_pid: int, cwd: str, command: list[str]) -> None:
        """Turn the forked child into the command; report why when that fails. Never returns."""
        stage = "exec"
        try:
            os.setsid()
            for number in signal.valid_signals():
                with contextlib.suppress(OSError, ValueError):
                    signal.signal(number, signal.SIG_DFL)
            if self.libc is not None:
                self.libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
                # The supervisor may have died before the line above took effect.
                if os.getppid() != supervisor_pid:
                    os._exit(127)
            if cwd:
                stage = "cwd"
                os.chdir(cwd)
                stage = "exec"
            os.execvp(command[0], command)  # noqa: S606
        except OSError as error:
            self.report(f"error {stage} {error.errno}")
        except BaseException:  # noqa: BLE001
            self.report(f"error {stage} 0")
        finally:
            os._exit(127)

    def wait_for_command(self) -> bool:
        """Wait for the command's end; True when a stop, or the runner's death, came first."""
        while True:
            asked = self.pause(None, heed_control=True)
            self.reap()
            if self.command_ended:
                return False
            if asked:
                return True

    def pause(self, seconds: float | None, heed_control: bool = False) -> bool:
        """Wait for the end of a child, at most `seconds`; True when the control pipe has news."""
        watched = [self.wake, self.control] if heed_control else [self.wake]
        ready, _, _ = select.select(watched, [], [], seconds)
        if self.wake in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self.wake, 4096)
        return self.control in ready

    def reap(self) -> bool:
        """Collect every child that has ended; True when there is no child left at all."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if pid == 0:
                return False
            if pid == self.command_pid and not self.command_ended:
                self.command_ended = True
                self.report(f"ended {os.waitstatus_to_exitcode(status)}")

    def all_gone(self) -> bool:
        """Whether no process of the run is left."""
        if not self.reap():
            return False
        if self.adopts_orphans:
            return True
        try:
            os.killpg(self.command_pid, 0)
        except ProcessLookupError:
            return not self.processes()
        except PermissionError:
            return False
        return False

    def end_all(self, grace: float) -> None:
        """SIGTERM to every process of the run, SIGKILL after `grace` seconds, until all are gone.

        A process that cannot be killed keeps this from returning: the run is then not stopped.
        """
        deadline = time.monotonic() + grace
        pause = FIRST_PAUSE
        asked: set[Any] = set()
        self.ask_to_end(asked, self.processes())
        while not self.all_gone():
            left = deadline - time.monotonic()
            if left > 0:
                self.pause(min(pause, left))
                # An orphan that was being forked during the last look is asked as well, but not
                # other newcomers: they may be the clean-up of a process that was asked.
                if self.adopts_orphans:
                    self.ask_to_end(asked, self.processes(orphans_only=True))
            else:
                self.kill(self.processes())
                self.pause(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def ask_to_end(self, asked: set[Any], processes: list[Any]) -> None:
        """SIGTERM to those that did not get it yet; SIGCONT lets a paused one act on it."""
        for process in processes:
            if process not in asked:
                self.send(process, signal.SIGTERM)
                self.send(process, signal.SIGCONT)
                asked.add(process)

    def kill(self, processes: list[Any]) -> None:
        """SIGKILL to the processes and, as no fork can slip through that, to their groups.

        Every group of a descendant was made by the run, as the command began a session.
        """
        for process in processes:
            with contextlib.suppress(OSError):
                group = os.getpgid(process.pid)
                if process.is_running() and group != os.getpgrp():
                    os.killpg(group, signal.SIGKILL)
            self.send(process, signal.SIGKILL)

    def send(self, process: Any, number: signal.Signals) -> None:
        """One signal to one process, which may be gone or belong to another user."""
        psutil = self.psutil()
        with contextlib.suppress(psutil.Error, OSError):
            process.send_signal(number)

    def processes(self, orphans_only: bool = False) -> list[Any]:
        """The processes of the run that psutil can see now, or only the supervisor's children.

        Parents come before their children: they get a signal before they can see a child end.
        """
        psutil = self.psutil()
        found: list[Any] = []
        with contextlib.suppress(psutil.Error, OSError):
            found += psutil.Process().children(recursive=not orphans_only)
        if not self.adopts_orphans:
            found += self.strays(psutil)
        return found

    def strays(self, psutil: Any) -> list[Any]:
        """What can be found of the run where orphans are not handed to the supervisor."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if os.getpgid(process.pid) == self.command_pid:
                    self.known.add(process)
                    self.known.update(process.children(recursive=True))
        found = []
        for process in self.known:
            with contextlib.suppress(psutil.Error, OSError):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def psutil(self) -> Any:
        """psutil, loaded only when something has to be ended: that is slower than most starts."""
        if self.psutil_folder and self.psutil_folder not in sys.path:
            sys.path.append(self.psutil_folder)
        return importlib.import_module("psutil")


if __name__ == "__main__":
    sys.exit(main(sys.argv))
