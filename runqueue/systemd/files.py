"""The files of the services: which there are, what they say here, and whose they are now."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

from runqueue.errors import ConfigurationError

PROGRAMS: Final = {"runqueued": "runqueue.cli.daemon", "runqueue-runner": "runqueue.cli.runner"}
SIGNATURE: Final = "# Written by `runqueue systemd install`, sha256 "
"""Begins a file of ours, and tells whether it was changed since."""
DIGITS: Final = 16

HIDDEN: Final = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 - refused, not used
"""Directories that a locked-down service does not see."""
_PLAIN = re.compile(r"[A-Za-z0-9_./+@:=,~-]+")


@dataclass(frozen=True)
class File:
    """A file as it is to be."""

    path: Path
    text: str
    mode: int
    is_settings: bool = False
    """Written once; from then on it is the operator's."""

    @property
    def signed(self) -> str:
        return f"{SIGNATURE}{_digest(self.text)}\n{self.text}"

    def state(self) -> str:
        """Return absent, current, ours (as another version wrote it), changed, or foreign."""
        try:
            found = self.path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return "absent"
        except OSError as error:
            raise ConfigurationError(f"{self.path} cannot be read: {error.strerror}") from None
        if found == self.signed:
            return "current"
        head, _, rest = found.partition("\n")
        if not head.startswith(SIGNATURE):
            return "foreign"
        return "ours" if head.removeprefix(SIGNATURE) == _digest(rest) else "changed"


def for_system(*, checked: bool = True) -> list[File]:
    """Return the files of the services of a machine.

    Raises ConfigurationError, if `checked`, when those could not read this installation.
    """
    commands = {name: _command(name) for name in PROGRAMS}
    if checked:
        _check_is_seen(commands)
    units, settings = Path("/etc/systemd/system"), Path("/etc/runqueue")
    return [
        _file("system/sysusers.conf", Path("/etc/sysusers.d/runqueue.conf"), {}),
        _file("system/tmpfiles.conf", Path("/etc/tmpfiles.d/runqueue.conf"), {}),
        _file("system/runqueued.service", units, commands),
        _file("system/runqueue-runner@.service", units, commands),
        _file("system/runqueue.env", settings, {}, mode=0o640, is_settings=True),
        _file("system/runner.env.example", settings, {}, mode=0o640),
    ]


def for_user() -> list[File]:
    """Return the files of the services of whoever calls."""
    config = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
    state = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser()
    values = {name: _command(name) for name in PROGRAMS}
    values |= {"config": _plain(config / "runqueue"), "state": _plain(state / "runqueue")}
    units, settings = config / "systemd" / "user", config / "runqueue"
    return [
        _file("user/runqueued.service", units, values),
        _file("user/runqueue-runner@.service", units, values),
        _file("user/runqueue.env", settings, values, mode=0o600, is_settings=True),
        _file("user/runner.env.example", settings, values, mode=0o600),
    ]


def _file(
    source: str,
    target: Path,
    values: dict[str, str],
    *,
    mode: int = 0o644,
    is_settings: bool = False,
) -> File:
    folder, _, name = source.partition("/")
    text = (resources.files("runqueue.systemd") / folder / name).read_text(encoding="utf-8")
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    path = target if target.suffix == ".conf" else target / name
    return File(path, text, mode, is_settings)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:DIGITS]


def _command(name: str) -> str:
    """Return how systemd is to start a program of this installation."""
    beside = Path(sys.executable).parent / name
    checkout = Path(__file__).resolve().parents[2] / "bin" / name
    for script in (beside, checkout):
        if script.exists():
            return _plain(script)
    return f"{_plain(Path(sys.executable))} -m {PROGRAMS[name]}"


def _plain(path: Path) -> str:
    """Return a path as it is, which must need no quotes in a unit or in a script's first line."""
    text = str(path.absolute())
    if _PLAIN.fullmatch(text) is None:
        raise ConfigurationError(
            f"the path {text} has characters that a unit would have to quote; install elsewhere"
        )
    return text


def _check_is_seen(commands: dict[str, str]) -> None:
    """Refuse an installation that the services, locked down and not root, could not read."""
    needed = [Path(command.split()[0]) for command in commands.values()]
    needed += [Path(sys.executable).resolve(), Path(sys.prefix), Path(__file__)]
    for path in needed:
        if any(path.is_relative_to(hidden) for hidden in HIDDEN):
            raise ConfigurationError(
                f"the services cannot see {path}; install runqueue for them, for instance with: "
                "python3 -m venv /opt/runqueue && /opt/runqueue/bin/pip install runqueue"
            )
        for parent in path.parents:
            if not parent.stat().st_mode & 0o001:
                raise ConfigurationError(
                    f"the services may not enter {parent}, where {path} is; make it readable, "
                    "or install runqueue in /opt/runqueue"
                )
