"""Putting the services' files in their places, and taking away exactly those.

What is to be done is a list of steps, so that it can be told before it is done.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from runqueue.errors import ConfigurationError, RunqueueError
from runqueue.systemd.files import File, for_system, for_user

DAEMON: Final = "runqueued.service"
RUNNERS: Final = "runqueue-runner@*.service"
GROUP: Final = "runqueue"
OURS: Final = ("runqueue", "sysusers.d")
"""The names of directories that are removed when nothing is left in them."""


@dataclass(frozen=True)
class Write:
    """Write a file, whole or not at all."""

    file: File

    def __str__(self) -> str:
        return f"write {self.file.path}"

    def do(self) -> None:
        path, mode = self.file.path, self.file.mode
        new = path.with_name(f".{path.name}.new")
        try:
            # One for settings is as closed as they are, until they are given a group.
            path.parent.mkdir(mode=mode | mode >> 2 & 0o111, parents=True, exist_ok=True)
            new.unlink(missing_ok=True)
            with os.fdopen(os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode), "w") as stream:
                os.fchmod(stream.fileno(), mode)  # whatever the umask says
                stream.write(self.file.signed)
            new.replace(path)
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from None


@dataclass(frozen=True)
class Remove:
    """Remove a file."""

    path: Path

    def __str__(self) -> str:
        return f"remove {self.path}"

    def do(self) -> None:
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise ConfigurationError(f"{self.path} cannot be removed: {error.strerror}") from None


@dataclass(frozen=True)
class RemoveDirectory:
    """Remove a directory if nothing is left in it."""

    path: Path

    def __str__(self) -> str:
        return f"remove {self.path}, if it is empty then"

    def do(self) -> None:
        try:
            self.path.rmdir()
        except OSError:  # somebody's files are in it
            return


@dataclass(frozen=True)
class Keep:
    """Leave a file as it is."""

    path: Path
    why: str

    def __str__(self) -> str:
        return f"keep {self.path}, {self.why}"

    def do(self) -> None:
        """It is there."""


@dataclass(frozen=True)
class Run:
    """Execute a command of systemd's."""

    argv: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join(self.argv)

    def do(self) -> None:
        try:
            # However long it takes: runners that are stopped may drain for hours.
            done = subprocess.run(self.argv, capture_output=True, text=True, check=False)
        except OSError as error:
            raise RunqueueError(f"{self} failed: {error}") from None
        if done.returncode:
            said = done.stderr.strip() or f"exit code {done.returncode}"
            raise RunqueueError(f"{self} failed: {said}")


Step: TypeAlias = Write | Remove | RemoveDirectory | Keep | Run


def to_install(*, user: bool, force: bool = False, now: bool = False) -> list[Step]:
    """Return the steps that install the services, or bring them to this version.

    Raises ConfigurationError for a file that somebody changed, unless `force`.
    """
    files = for_user() if user else for_system()
    steps: list[Step] = []
    for file in files:
        state = file.state()
        if file.is_settings and state != "absent":
            steps.append(Keep(file.path, "which is yours"))
        elif state in ("changed", "foreign") and not force:
            raise ConfigurationError(
                f"{file.path} {_whose(state)}; put what differs into a drop-in "
                f"(systemctl edit) and give --force to have the file written anew"
            )
        elif state != "current":
            steps.append(Write(file))
    if not user:
        steps += _made(files)
        # Not by systemd-tmpfiles, which would open again at each boot what somebody has closed.
        new = [step.file.path for step in steps if isinstance(step, Write)]
        steps += [Run(("chgrp", GROUP, str(path))) for path in new if path.parent.name in OURS[:1]]
    if _is_running(user):
        systemctl = _systemctl(user)
        steps.append(Run((*systemctl, "daemon-reload")))
        if now:
            steps.append(Run((*systemctl, "enable", DAEMON)))
            # One that ran already is of another version.
            steps.append(Run((*systemctl, "restart", DAEMON)))
    elif now:
        raise ConfigurationError("--now starts the daemon, and systemd does not run here")
    return steps


def to_uninstall(*, user: bool, force: bool = False) -> list[Step]:
    """Return the steps that stop the services and remove what `to_install` wrote."""
    files = for_user() if user else for_system(checked=False)
    states = {file.path: file.state() for file in files}
    steps: list[Step] = []
    units = _units(user) if _is_running(user) else []
    systemctl = _systemctl(user)
    if units and states[_unit(files).path] != "absent":
        steps.append(Run((*systemctl, "disable", "--now", *units)))
    for file in files:
        state = states[file.path]
        if state in ("current", "ours") or (state != "absent" and force and not file.is_settings):
            steps.append(Remove(file.path))
        elif state != "absent":
            steps.append(Keep(file.path, f"for it {_whose(state)}"))
    if not steps:
        return []
    # Of the directories, those that only we may have needed.
    directories = {file.path.parent: file for file in files if file.path.parent.name in OURS}
    steps += [RemoveDirectory(directory) for directory in directories]
    if units:
        steps.append(Run((*systemctl, "daemon-reload")))
    return steps


def _made(files: Sequence[File]) -> list[Step]:
    """The steps that make users, groups and directories, where systemd's tools are."""
    users, directories = files[0].path, files[1].path
    return [
        Run(argv)
        for argv in (
            ("systemd-sysusers", str(users)),
            ("systemd-tmpfiles", "--create", str(directories)),
        )
        if shutil.which(argv[0])
    ]


def _unit(files: Sequence[File]) -> File:
    return next(file for file in files if file.path.name == DAEMON)


def _whose(state: str) -> str:
    return "was changed by hand" if state == "changed" else "was not written by runqueue"


def _is_running(user: bool) -> bool:
    """Whether there is a systemd that takes orders of this user."""
    if not user:
        return Path("/run/systemd/system").is_dir()
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return runtime is not None and Path(runtime, "systemd").is_dir()


def _systemctl(user: bool) -> tuple[str, ...]:
    return ("systemctl", "--user") if user else ("systemctl",)


def _units(user: bool) -> list[str]:
    """The daemon and every runner that is loaded or enabled."""
    found = {DAEMON}
    for what in ("list-units", "list-unit-files"):
        argv = [*_systemctl(user), what, "--all", "--plain", "--no-legend", "--no-pager", RUNNERS]
        listed = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        names = [line.split()[0] for line in listed.stdout.splitlines() if line.strip()]
        found |= {name for name in names if not name.endswith("@.service")}
    return sorted(found)
