"""A machine on which runqueue is installed, and what tests do there."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import runqueue
from tests.systemd.machine import LONG, Machine, wait_for

ROOT = Path(runqueue.__file__).resolve().parent.parent
PLANTS = Path(__file__).with_name("plants")
LOOKER = Path(__file__).with_name("looker.py").read_text(encoding="utf-8")
VENV = "/opt/runqueue"
DAEMON = "runqueued.service"
DATABASE = "/var/lib/runqueue/runqueue.db"
HIDDEN = ("/home", "/root", "/tmp", "/var/tmp")
"""Where a locked-down service sees nothing."""


def build_wheel(directory: Path, version: str | None = None) -> Path:
    """Build a wheel of this checkout, as of another version if one is given."""
    source = directory / "source"
    shutil.copytree(
        ROOT / "runqueue", source / "runqueue", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    if version is not None:
        (source / "runqueue" / "_version.py").write_text(f'__version__ = "{version}"\n')
    code = "import setuptools.build_meta as b, sys; print(b.build_wheel(sys.argv[1]))"
    built = subprocess.run(
        [sys.executable, "-c", code, str(directory)],
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return directory / built.stdout.split()[-1]


class Box:
    """A machine with an interpreter, runqueue in an environment of its own, and its services."""

    def __init__(self, directory: Path) -> None:
        self._looker: subprocess.Popen[str] | None = None
        self.wheels = directory / "wheels"
        for name in ("old", "new", "machine"):
            (directory / name).mkdir()
        self.wheel = build_wheel(directory / "old")
        self.wheels.mkdir()
        shutil.copy(self.wheel, self.wheels)
        self.wheel_of_next = build_wheel(directory / "new", version="99.0")
        shutil.copy(self.wheel_of_next, self.wheels)
        prefix = Path(sys.base_prefix)
        is_hidden = any(prefix.is_relative_to(hidden) for hidden in HIDDEN)
        self._prefix = "/opt/python" if is_hidden else str(prefix)
        binds = {
            Path(sysconfig.get_paths()["purelib"]): "/opt/packages",
            self.wheels: "/opt/wheels",
            PLANTS: "/opt/plants",
        }
        if is_hidden:
            binds[prefix] = self._prefix
        self.machine = Machine(directory / "machine", binds)
        try:
            self.machine.boot()
            self._make_environment()
            self.before = self.files()
            self.machine.run(f"{VENV}/bin/runqueue", "systemd", "install")
        except BaseException:
            self.machine.close()
            raise

    def _make_environment(self) -> None:
        name = f"python{sys.version_info.major}.{sys.version_info.minor}"
        run = self.machine.run
        if self._prefix != sys.base_prefix:
            # Its own library is where it was built, which a service does not see.
            self.machine.write("/etc/ld.so.conf.d/00-tests.conf", f"{self._prefix}/lib\n")
            run("ldconfig")
        run("mkdir", "-p", f"{VENV}/bin", f"{VENV}/lib/{name}/site-packages")
        run("ln", "-s", f"{self._prefix}/bin/{name}", f"{VENV}/bin/python")
        self.machine.write(f"{VENV}/pyvenv.cfg", f"home = {self._prefix}/bin\n")
        # What runqueue needs is that of the tests; runqueue itself is what was built.
        self.machine.write(f"{VENV}/lib/{name}/site-packages/tests.pth", "/opt/packages\n")
        self.put_in(self.wheel)

    def put_in(self, wheel: Path) -> None:
        """Install this wheel where the services have their programs."""
        self.machine.run(
            *(f"{VENV}/bin/python", "-m", "pip", "install", "--no-deps", "--no-index"),
            *("--force-reinstall", "--no-warn-script-location", f"/opt/wheels/{wheel.name}"),
        )

    def files(self) -> set[str]:
        """Every file and directory where an installation might leave something."""
        places = ("/etc", "/run/systemd/system", "/usr/lib/systemd", "/var/lib")
        found = self.machine.run("find", *places, "-not", "-path", "/var/lib/systemd/*").stdout
        return set(found.splitlines())

    def rq(self, *words: str, user: str | None = None, check: bool = True, stdin: str = "") -> Any:
        """Execute a `runqueue` command; return how it ended."""
        return self.machine.run(f"{VENV}/bin/runqueue", *words, user=user, check=check, stdin=stdin)

    def enqueue(self, prompt: str, *options: str) -> str:
        """Add a run; return its id."""
        return str(self.rq("enqueue", "-", *options, stdin=prompt).stdout.strip())

    def row(self, run_id: str) -> dict[str, Any]:
        """Return a run."""
        shown: dict[str, Any] = json.loads(self.rq("show", run_id, "-o", "json").stdout)
        return shown

    def select(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Execute SQL on the machine's SQLite database, which is quicker than a command."""
        if self._looker is None or self._looker.poll() is not None:
            self.forget_looker()
            self._looker = self.machine.start(f"{VENV}/bin/python", "-c", LOOKER)
        assert self._looker.stdin is not None
        assert self._looker.stdout is not None
        self._looker.stdin.write(json.dumps([DATABASE, sql, parameters]) + "\n")
        self._looker.stdin.flush()
        answer = json.loads(self._looker.stdout.readline())
        assert "error" not in answer, answer["error"]
        return [tuple(row) for row in answer["rows"]]

    def forget_looker(self) -> None:
        """End the process that looks; the next look starts another one."""
        if self._looker is not None:
            self._looker.kill()
            with self._looker:
                self._looker = None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Let nobody else write to the SQLite database meanwhile."""
        self.select("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            self.select("ROLLBACK")

    def status(self, run_id: str) -> str:
        """Return a run's status."""
        rows = self.select("SELECT status FROM runs WHERE run_id = ?", run_id)
        return str(rows[0][0])

    def becomes(self, run_id: str, status: str, timeout: float = LONG) -> None:
        """Wait until a run has this status."""
        wait_for(lambda: self.status(run_id) == status, f"{run_id} is {status}", timeout)

    def drop_in(self, unit: str, *lines: str) -> None:
        """Change a service's unit, until the end of the test."""
        text = "[Service]\n" + "".join(f"{line}\n" for line in lines)
        name = f"/run/systemd/system/{unit}.d/{abs(hash(lines)):x}.conf"
        self.machine.write(name, text)
        self.machine.systemctl("daemon-reload")

    def plant(self, name: str) -> None:
        """Begin a fault in the services that were told to load faults."""
        self.machine.write(f"/run/plants/{name}", "")

    def pull_out(self, name: str) -> None:
        """End a fault."""
        (self.machine.root / "run/plants" / name).unlink(missing_ok=True)

    def set(self, *lines: str, file: str = "runqueue.env") -> None:
        """Write a settings file."""
        path = f"/etc/runqueue/{file}"
        self.machine.write(path, "".join(f"{line}\n" for line in lines), 0o640)
        self.machine.run("chgrp", "runqueue", path)

    def start_runner(self, name: str = "one", *lines: str, command: str = "sh") -> str:
        """Start a runner that executes this command; return its unit."""
        self.set(f"RUNQUEUE_COMMAND={command}", *lines, file=f"runner-{name}.env")
        unit = f"runqueue-runner@{name}.service"
        self.machine.systemctl("start", unit)
        return unit

    def events(self, run_id: str) -> list[tuple[str, str]]:
        """Return what happened to a run: status and actor."""
        return self.select(
            "SELECT status, actor FROM run_events WHERE run_id = ? ORDER BY event_id", run_id
        )

    def told(self, unit: str) -> list[str]:
        """Return what a unit has logged."""
        return [str(entry["MESSAGE"]) for entry in self.machine.journal(f"--unit={unit}")]

    def reset(self) -> None:
        """Bring the machine back to where it was when runqueue had just been installed."""
        machine = self.machine
        self.forget_looker()
        if not machine.pid:
            machine.boot()
        units = (DAEMON, "runqueue-runner@*.service")
        for path in ("run/plants", "etc/credstore"):
            shutil.rmtree(machine.root / path, ignore_errors=True)
        machine.systemctl("thaw", *units, check=False)
        machine.systemctl("kill", "--signal=KILL", *units, check=False)
        machine.systemctl("stop", *units, check=False)
        machine.run(
            *("sh", "-c"),
            "rm -rf /run/systemd/system/runqueue*.d /run/systemd/system/tests-* /etc/runqueue"
            " /etc/systemd/system/runqueue*.d /etc/systemd/system/*.wants/runqueue*"
            " /var/lib/runqueue /var/lib/runqueue-runner",
        )
        machine.systemctl("daemon-reload")
        machine.systemctl("reset-failed")
        self.rq("systemd", "install", "--force")
        machine.forget_journal()
