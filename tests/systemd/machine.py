"""A machine with a systemd of its own, made of namespaces: boots in half a second, leaves nothing.

Its disk is this machine's root with everything that is written kept in memory; it stays from one
boot to the next, and goes with the process that made it, however that ends.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).with_name("machine.sh")
TOOLS = ("unshare", "nsenter", "setpriv", "systemctl", "journalctl")
SYSTEMD = Path("/lib/systemd/systemd")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
LONG = 30.0
"""Seconds after which something that should happen is taken not to happen."""


def why_not() -> str | None:
    """Return why no such machine can be made here, None when one can."""
    if os.geteuid() != 0:
        return "a systemd as process 1 of namespaces takes root"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing or not SYSTEMD.exists():
        return f"this machine has no {' and no '.join(missing) or 'systemd'}"
    if _cgroups() is None:
        return "no cgroup2 file system is mounted"
    tried = subprocess.run(
        ["unshare", "--mount", "--pid", "--cgroup", "--uts", "--ipc", "--net", "--fork", "true"],
        capture_output=True,
        check=False,
    )
    return None if tried.returncode == 0 else "no namespaces are to be had here"


def _cgroups() -> Path | None:
    for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(place)
    return None


def wait_for(condition: Callable[[], object], what: str, timeout: float = LONG) -> None:
    """Return when the condition holds; fail when it does not in time."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"it did not happen within {timeout} s: {what}"
        time.sleep(0.02)


class Machine:
    """One machine; `boot` it, use it, and `close` it."""

    def __init__(self, directory: Path, binds: Mapping[Path, str]) -> None:
        self.name = f"runqueue-test-{os.getpid()}"
        self.pid = 0
        self._directory = directory
        self._booted: subprocess.Popen[bytes] | None = None
        self._since = "0"
        cgroups = _cgroups()
        assert cgroups is not None
        self._cgroup = cgroups / self.name
        # The kernel ends it with the thread that started it: the tests' main thread.
        self._holder = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private"]
            + ["sh", str(PROGRAM), "hold", str(directory)]
            + [f"{source}:{target}" for source, target in binds.items()],
            stdin=subprocess.DEVNULL,
        )
        self._disk = Path(f"/proc/{self._holder.pid}/root{directory}")
        wait_for(self._is_held, "the disk of the machine")

    def _is_held(self) -> bool:
        assert self._holder.poll() is None, "the disk of the machine could not be made"
        return (self._disk / "ready").exists()

    @property
    def root(self) -> Path:
        """The machine's root directory, seen from here."""
        return Path(f"/proc/{self.pid}/root") if self.pid else self._disk / "root"

    def boot(self) -> None:
        """Start the machine, and return when its systemd is done with that."""
        assert not self.pid, "it is running"
        self._cgroup.mkdir(exist_ok=True)
        with (self._directory.parent / "boot.log").open("ab") as log:
            self._booted = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "KILL", "sh", "-c"),
                    # In the group first: it is the root of the groups that the machine sees.
                    *(f'echo $$ >{self._cgroup}/cgroup.procs; exec "$@"', "sh"),
                    *("nsenter", "-t", str(self._holder.pid), "-m", "unshare", "--mount", "--pid"),
                    *("--cgroup", "--uts", "--ipc", "--net", "--fork", "--kill-child=SIGKILL"),
                    *("sh", str(PROGRAM), "boot", str(self._directory), self.name),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        children = Path(f"/proc/{self._booted.pid}/task/{self._booted.pid}/children")
        wait_for(lambda: children.read_text().split(), "process 1")
        self.pid = int(children.read_text().split()[0])
        wait_for(self._is_up, "the boot")

    def _is_up(self) -> bool:
        state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        return state in ("running", "degraded")

    def run(
        self,
        *argv: str,
        user: str | None = None,
        check: bool = True,
        timeout: float = 2 * LONG,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Execute a command in the machine, as root or as this user."""
        done = subprocess.run(
            self._within(argv, user, env or {}),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"{argv} exited with {done.returncode}: {done.stderr}")
        return done

    def start(self, *argv: str, user: str | None = None) -> subprocess.Popen[str]:
        """Start a command in the machine, with pipes for its input and output."""
        return subprocess.Popen(
            self._within(argv, user, {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _within(self, argv: Sequence[str], user: str | None, env: Mapping[str, str]) -> list[str]:
        variables = {"PATH": PATH, "HOME": "/root", "TERM": "dumb", "SYSTEMD_PAGER": "cat", **env}
        as_user = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"] if user else []
        return [
            *("nsenter", "-t", str(self.pid), "-a", "env", "-C", "/", "-i"),
            *(f"{name}={value}" for name, value in variables.items()),
            *as_user,
            *argv,
        ]

    def systemctl(self, *words: str, check: bool = True) -> str:
        """Execute systemctl; return what it prints."""
        return self.run("systemctl", *words, check=check).stdout

    def show(self, unit: str, *properties: str) -> list[str]:
        """Return properties of a unit."""
        shown = self.systemctl("show", unit, *(f"--property={name}" for name in properties))
        values = dict(line.partition("=")[::2] for line in shown.splitlines())
        return [values[name] for name in properties]

    def state(self, unit: str) -> str:
        """Return a unit's states, such as active/running."""
        return "/".join(self.show(unit, "ActiveState", "SubState"))

    def journal(self, *words: str) -> list[dict[str, Any]]:
        """Return entries of the journal since it was forgotten, the oldest first."""
        self.run("journalctl", "--sync")
        # Not --after-cursor, which with a filter leaves out the first entry that matches.
        new = ("--output=json", "--all", f"--since=@{self._since}")
        told = self.run("journalctl", *new, *words, check=False).stdout
        return [json.loads(line) for line in told.splitlines() if line.startswith("{")]

    def forget_journal(self) -> None:
        """Let what was told until now be past."""
        self._since = f"{time.time():.6f}"

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file of root's."""
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        target.chmod(mode)

    def processes(self, unit: str) -> list[int]:
        """Return the ids, seen from here, of the processes in a unit's control group."""
        (group,) = self.show(unit, "ControlGroup")
        if not group:
            return []
        listed = self._cgroup / group.lstrip("/")
        found: list[int] = []
        for part in [listed, *listed.rglob("*")] if listed.is_dir() else []:
            if part.is_dir():
                found += map(int, (part / "cgroup.procs").read_text().split())
        return found

    def cut_power(self) -> None:
        """End everything at once, as when the power fails; what was written stays."""
        os.kill(self.pid, signal.SIGKILL)
        self._gone()

    def _gone(self) -> None:
        assert self._booted is not None
        self._booted.wait(LONG)
        wait_for(lambda: not Path(f"/proc/{self.pid}").exists(), "the end of process 1")
        self.pid = 0
        self._booted = None

    def close(self) -> None:
        """Switch the machine off, and forget its disk; harmless when it is off."""
        if self._booted is not None:
            self.cut_power() if self.pid else self._booted.kill()
        self._holder.kill()
        self._holder.wait()
        groups = [self._cgroup, *self._cgroup.rglob("*")] if self._cgroup.exists() else []
        for group in sorted((one for one in groups if one.is_dir()), reverse=True):
            group.rmdir()
