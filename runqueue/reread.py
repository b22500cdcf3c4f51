"""Reading the settings again that the environment of this process was made from.

systemd reads a service's environment files before it starts the service, and not when that is
to be reloaded. A name whose value is still the file's came from there, and follows the file;
what was set elsewhere stays.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path
from typing import Final

from runqueue.errors import ConfigurationError
from runqueue.settings import ENV_FILE, read_env_file, user_file

FILES: Final = "RUNQUEUE_SERVICE_FILES"
"""Names the files, with colons between them, of which a later one wins."""


class Files:
    """The files that the environment was made from, as they were when it was."""

    def __init__(self, environ: MutableMapping[str, str] | None = None) -> None:
        self._environ = os.environ if environ is None else environ
        self.paths = _paths(self._environ)
        self._readable = [path for path in self.paths if os.access(path, os.R_OK)]
        self._known = self._read()

    def again(self) -> list[str]:
        """Bring the environment to what the files say now; return the names that changed.

        Raises ConfigurationError when a file cannot be read any more, and changes nothing.
        """
        found = self._read()
        changed = []
        for name in sorted({*self._known, *found}):
            before, now = self._known.get(name), found.get(name)
            if now != before and self._environ.get(name) == before:
                changed.append(name)
                if now is None:
                    del self._environ[name]
                else:
                    self._environ[name] = now
        self._known = found
        return changed

    def _read(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for path in self.paths:
            try:
                found.update(read_env_file(path))
            except FileNotFoundError:
                continue
            except PermissionError:
                # One that only root may read was read by systemd, and is again at the next start.
                if path in self._readable:
                    raise ConfigurationError(f"the settings file {path} may not be read") from None
        return found


def _paths(environ: MutableMapping[str, str]) -> list[Path]:
    if named := environ.get(FILES) or environ.get("RUNQUEUE_ENV_FILE"):
        return [Path(part) for part in named.split(":") if part]
    own = user_file(environ)
    # Not Path.exists, which raises where a home may not be entered.
    return [own if os.path.exists(own) else Path(ENV_FILE)]
