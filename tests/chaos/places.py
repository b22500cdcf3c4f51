"""Directories for databases: one in memory, and one on a small disk that can be full."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.helpers import wait_until


@contextmanager
def in_memory() -> Iterator[Path]:
    """A directory in memory, if there is one, for what fails by other means than a slow disk."""
    memory = Path("/dev/shm")
    where = memory if os.access(memory, os.W_OK) else None
    with TemporaryDirectory(prefix="runqueue-test-", dir=where) as directory:
        yield Path(directory).resolve()


class Disk:
    """A small disk of its own at a directory."""

    def __init__(self, path: Path, mebibytes: int) -> None:
        self.path = path
        self._mount("tmpfs", f"size={mebibytes}m")

    def _mount(self, source: str, options: str) -> None:
        if shutil.which("mount") is None:
            pytest.skip("there is no mount here")
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, source, self.path],
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            pytest.skip(f"no disk of its own can be mounted here: {done.stderr.strip()}")

    def fill(self) -> None:
        """Take all the room that is left."""
        with (self.path / "filler").open("ab", buffering=0) as filler, suppress(OSError):
            while True:
                filler.write(bytes(4096))
        assert os.statvfs(self.path).f_bavail == 0

    def grow(self, mebibytes: int) -> None:
        """Be larger."""
        self._mount("tmpfs", f"remount,size={mebibytes}m")

    def close_to_writers(self) -> None:
        """Be read-only, for root too."""
        self._mount("tmpfs", "remount,ro")

    def close(self) -> None:
        """Unmount it, once whoever used it has ended."""
        done = []

        def is_unmounted() -> bool:
            done.append(subprocess.run(["umount", self.path], capture_output=True))
            return done[-1].returncode == 0

        wait_until(is_unmounted)


@contextmanager
def small_disk(path: Path, mebibytes: int = 1) -> Iterator[Disk]:
    """Mount a disk of a mebibyte, which takes root; the test is skipped for anybody else."""
    path.mkdir()
    disk = Disk(path, mebibytes)
    try:
        yield disk
    finally:
        disk.close()
