"""A process that has imported everything, and forks programs that are at work at once.

A storm kills faster than an interpreter starts: most victims of a test that started each anew
would die while they import, which is no fault of interest.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import IO, Any, NoReturn

import psutil

from tests.helpers import LONG, ROOT, wait_until


class Child:
    """A program that was started, with what it says in a file."""

    def __init__(self, nursery: Nursery, pid: int, log: Path) -> None:
        self._nursery = nursery
        self._log = log
        self._code: int | None = None
        self._process: psutil.Process | None = None
        self.pid = pid
        with contextlib.suppress(psutil.NoSuchProcess):
            self._process = psutil.Process(pid)

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    @property
    def is_alive(self) -> bool:
        if self._code is None:
            self._code = self._nursery.ask("reap", self.pid)
        return self._code is None

    def send(self, number: int) -> None:
        """Send a signal, unless it has ended; until it is asked for, its pid is nobody else's."""
        if self.is_alive:
            os.kill(self.pid, number)

    def wait(self, timeout: float = LONG) -> int:
        """Return the exit code, negative for a signal; fails when it does not end in time."""
        try:
            wait_until(lambda: not self.is_alive, timeout)
        except AssertionError:
            raise AssertionError(f"it did not end within {timeout} s: {self.log}") from None
        assert self._code is not None
        return self._code

    def kill(self) -> None:
        """End it as nothing can prevent; fails when it had ended by itself."""
        self.send(signal.SIGKILL)
        code = self.wait()
        assert code == -signal.SIGKILL, f"it had ended with {code}: {self.log}"

    def destroy(self) -> None:
        """End it without asking anybody; harmless when it has ended."""
        with contextlib.suppress(psutil.Error):  # which knows a pid that is another's by now
            if self._process is not None:
                self._process.kill()


class Nursery:
    """The parent of programs, which end with it."""

    def __init__(self, place: Path) -> None:
        self._born: list[Child] = []
        self._log = place / "nursery.log"
        self.place = place
        """Where its programs write what they say."""

    def __enter__(self) -> Nursery:
        env = {name: value for name, value in os.environ.items() if name[:9] != "RUNQUEUE_"}
        env |= {"RUNQUEUE_ENV_FILE": os.devnull, "PYTHONPATH": str(ROOT)}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.nursery"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=env,
                start_new_session=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        """End it and its programs; it does that itself, unless it hangs or has failed."""
        orders, answers = self._pipes()
        try:
            with contextlib.suppress(BrokenPipeError):
                orders.close()
            self._process.wait(LONG)
        finally:
            self._process.kill()
            self._process.wait()
            answers.close()
            self.end_all()

    def end_all(self) -> None:
        """End its programs, whatever state they and it are in."""
        for child in self._born:
            child.destroy()
        self._born.clear()

    def start(self, program: str, *arguments: Any) -> Child:
        """Fork a program, a function of `tests.chaos.programs`."""
        log = self.place / f"{len(self._born)}-{program}.log"
        log.touch()  # a program may be killed before it says anything
        pid = self.ask("start", program, list(arguments), str(log))
        self._born.append(Child(self, pid, log))
        return self._born[-1]

    def children(self) -> list[psutil.Process]:
        """Return whatever is alive of its programs, and of what they started."""
        with contextlib.suppress(psutil.NoSuchProcess):
            found = psutil.Process(self._process.pid).children(recursive=True)
            return [one for one in found if one.status() != psutil.STATUS_ZOMBIE]
        return []

    @property
    def logs(self) -> str:
        """What all of them said."""
        return "".join(child.log for child in self._born)

    def ask(self, *order: Any) -> Any:
        """Give an order; return the answer."""
        orders, answers = self._pipes()
        orders.write(json.dumps(order).encode() + b"\n")
        orders.flush()
        ready, _, _ = select.select([answers], [], [], 3 * LONG)
        line = answers.readline() if ready else b""
        assert line, f"the nursery does not answer: {self._log.read_text()}"
        return json.loads(line)

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout


def _serve() -> None:
    """Take orders until there are no more to come, then end whatever is left."""
    from tests.chaos import programs

    alive: set[int] = set()
    try:
        for line in sys.stdin:
            match json.loads(line):
                case ["start", name, arguments, log]:
                    pid = os.fork()
                    if pid == 0:
                        _be(getattr(programs, name), arguments, log)
                    alive.add(pid)
                    print(pid, flush=True)
                case ["reap", pid]:
                    ended, status = os.waitpid(pid, os.WNOHANG)
                    alive.discard(ended)
                    code = os.waitstatus_to_exitcode(status) if ended else None
                    print(json.dumps(code), flush=True)
    finally:
        for pid in alive:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _be(program: Any, arguments: list[Any], log: str) -> NoReturn:
    """Be a program, with its own streams, and end as an interpreter does."""
    code: Any = 1
    try:
        nothing = os.open(os.devnull, os.O_RDONLY)
        said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        for number, file in enumerate((nothing, said, said)):
            os.dup2(file, number)
        program(*arguments)
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:  # noqa: BLE001 - it is told as the interpreter tells it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    _serve()
