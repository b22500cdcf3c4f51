"""Empty databases to measure on, of either kind, that sync every commit."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

from tests import postgres

KINDS: Final = ("sqlite", "postgres")
DURABLE: Final = {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on"}
"""The server's own defaults, which its options for tests relax."""
MEMORY: Final = {"shared_buffers": "256MB", "max_wal_size": "2GB"}


@dataclass(frozen=True)
class Place:
    """One empty database."""

    kind: str
    url: str

    @property
    def path(self) -> Path:
        """The file, of an SQLite database."""
        return Path(self.url.removeprefix("sqlite:///"))


class Places:
    """Where databases are made; as a context, for all of them go with it."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._numbers = itertools.count(1)
        self._directory = Path()
        self._server: postgres.Server | None = None

    def __enter__(self) -> Places:
        self._directory = Path(tempfile.mkdtemp(prefix="runqueue-bench-"))
        self._stack.callback(shutil.rmtree, self._directory, ignore_errors=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def directory(self) -> Path:
        return self._directory

    @property
    def server(self) -> postgres.Server:
        """The PostgreSQL server, started when it is first asked for."""
        if self._server is None:
            self._server = self._stack.enter_context(postgres.Server(options=DURABLE | MEMORY))
        return self._server

    @contextmanager
    def empty(self, kind: str) -> Iterator[Place]:
        """Yield an empty database, and remove it afterwards."""
        name = f"bench{next(self._numbers)}"
        if kind == "sqlite":
            directory = self._directory / name
            directory.mkdir()
            try:
                yield Place(kind, f"sqlite:///{directory / 'queue.db'}")
            finally:
                shutil.rmtree(directory, ignore_errors=True)
        else:
            self.server.create_database(name)
            try:
                yield Place(kind, self.server.url(name))
            finally:
                self.server.drop_database(name)
