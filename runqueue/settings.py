"""Defaults, limits, and where settings come from: option, then RUNQUEUE_*, then the file.

One KEY=VALUE file serves systemd (`EnvironmentFile=`) and the commands, so that an operator's
`runqueue list` looks at the daemon's database without being told.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from runqueue.errors import ConfigurationError

INTERVAL: Final = 1.0
"""Seconds between two sweeps."""
LEASE: Final = 30.0
"""Seconds without a heartbeat after which a runner is dead."""
BEATS_PER_LEASE: Final = 3
"""A runner beats every LEASE / 3 seconds: two beats may fail before its runs are taken."""
STOP_GRACE: Final = 10.0
"""Seconds between SIGTERM and SIGKILL, and those that the daemon waits for the owner's word."""
STOP_ALLOWANCE: Final = 1.0
"""Seconds that the daemon adds to the grace of a live owner, who kills only when it is over and
must then reap and report; without them every stubborn agent's stop would be only presumed."""
START_DEADLINE: Final = 60.0
"""Seconds after which a claim that was never started goes back to pending."""
DEMANDS_TIMEOUT: Final = 300.0
"""Seconds until timeout_at for a run with demands of its own, when the caller names none."""
KEEP: Final = 30 * 86_400.0
"""Seconds for which finished runs are kept."""
BUSY_TIMEOUT: Final = 10.0
"""Seconds to wait for another writer before StorageBusy."""
MAX_PROMPT: Final = 1_048_576
"""Limit of a prompt in bytes of UTF-8."""
MAX_FIELD: Final = 4_096
"""Limit of any other text that a caller gives, in characters."""
MAX_DEPTH: Final = 5
"""Levels of children below the session that a tree begins with."""
MAX_CHILDREN: Final = 16
"""Children of one session that may be pending or active at the same time."""
MAX_TREE_RUNS: Final = 256
"""Runs of one tree, those that have ended too."""

ENV_FILE: Final = "/etc/runqueue/runqueue.env"
USER_FILE: Final = "runqueue/runqueue.env"
"""Likewise, for one person, in their directory of settings."""
CREDENTIAL: Final = "runqueue-db"
"""The name of the systemd credential that holds the database's URL."""

_LINE = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)


@dataclass(frozen=True)
class Settings:
    """The times, in seconds, that a queue's runners and sweeps go by, and the limits of trees."""

    lease: float = LEASE
    stop_grace: float = STOP_GRACE
    start_deadline: float = START_DEADLINE
    max_prompt: int = MAX_PROMPT
    max_depth: int = MAX_DEPTH
    max_children: int = MAX_CHILDREN
    max_tree_runs: int = MAX_TREE_RUNS


def tree_limits(environ: Mapping[str, str] | None = None) -> dict[str, int]:
    """Return the limits of trees that RUNQUEUE_* sets, by the names that `Settings` has for them.

    Raises ConfigurationError for a value that is no limit.
    """
    environ = os.environ if environ is None else environ
    found = {}
    for name in ("max_depth", "max_children", "max_tree_runs"):
        variable = f"RUNQUEUE_{name.upper()}"
        text = environ.get(variable, "").strip()
        if not text:
            continue
        if not (text.isascii() and text.isdecimal() and len(text) < 10):
            raise ConfigurationError(f"{variable} is {text[:40]!r}, which is not a whole number")
        found[name] = int(text)
    return found


def default_url(environ: MutableMapping[str, str] | None = None) -> str:
    """Return $RUNQUEUE_DB, else the database in this user's state directory."""
    environ = os.environ if environ is None else environ
    if url := environ.get("RUNQUEUE_DB"):
        return url
    state = environ.get("XDG_STATE_HOME") or str(Path("~/.local/state").expanduser())
    return f"sqlite:///{state}/runqueue/runqueue.db"


def load_env_file(environ: MutableMapping[str, str] | None = None) -> None:
    """Set the RUNQUEUE_* names of the settings file that the environment does not hold yet.

    The file is $RUNQUEUE_ENV_FILE, which must then exist, else the first that is there of this
    user's own, ~/.config/runqueue/runqueue.env, and /etc/runqueue/runqueue.env. Raises
    ConfigurationError when it cannot be read or a line is no KEY=VALUE.
    """
    environ = os.environ if environ is None else environ
    for name, value in find_env_file(environ).values.items():
        # An empty one, as in compose files, says nothing.
        if name.startswith("RUNQUEUE_") and not environ.get(name):
            environ[name] = value


class EnvFile(NamedTuple):
    """The settings file that is used."""

    path: Path | None
    """None when there is none."""
    values: dict[str, str]
    closed: tuple[Path, ...]
    """Those that would have come first, and that this user may not read."""


def find_env_file(environ: Mapping[str, str] | None = None) -> EnvFile:
    """Return the file that `load_env_file` loads. Raises ConfigurationError, as that does."""
    environ = os.environ if environ is None else environ
    named = environ.get("RUNQUEUE_ENV_FILE")
    closed: list[Path] = []
    for path in [Path(named)] if named else [user_file(environ), Path(ENV_FILE)]:
        try:
            return EnvFile(path, read_env_file(path), tuple(closed))
        except FileNotFoundError:
            if named:
                raise ConfigurationError(f"the settings file {path} does not exist") from None
        except PermissionError:
            # The service's file may hold a password and be closed to this user, who then names
            # a database of their own.
            if named:
                raise ConfigurationError(f"the settings file {path} may not be read") from None
            closed.append(path)
    return EnvFile(None, {}, tuple(closed))


def user_file(environ: Mapping[str, str]) -> Path:
    """Return where this user's own settings file is, if there is one."""
    return Path(environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / USER_FILE


def read_env_file(path: Path) -> dict[str, str]:
    """Return what a KEY=VALUE file says, as systemd reads it; of two lines the last counts.

    Raises FileNotFoundError and PermissionError, and ConfigurationError for all else that keeps
    it from being read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, PermissionError):
        raise
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigurationError(f"the settings file {path} cannot be read: {reason}") from None
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or line[0] in "#;":
            continue
        match = _LINE.fullmatch(line)
        if match is None or "\0" in line:
            raise ConfigurationError(f"line {number} of {path} is not KEY=VALUE")
        name, value = match[1], match[2].strip()
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        found[name] = value
    return found


def load_credential(environ: MutableMapping[str, str] | None = None) -> None:
    """Set RUNQUEUE_DB to the credential `runqueue-db` of the service, if it has been given one.

    It wins over the variable: what is in a settings file is for everybody who may read that.
    Raises ConfigurationError when it cannot be read.
    """
    environ = os.environ if environ is None else environ
    directory = environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        return
    path = Path(directory) / CREDENTIAL
    try:
        url = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError):
        raise ConfigurationError(f"the credential {CREDENTIAL} cannot be read") from None
    if not url or any(character.isspace() for character in url):
        raise ConfigurationError(f"the credential {CREDENTIAL} is not one line with a URL")
    environ["RUNQUEUE_DB"] = url
