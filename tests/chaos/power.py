"""What could be on the disk, had the power gone at some moment of a program's life.

The program's writes and syncs are traced. Of any moment, what was synced by then is on the disk
for certain; of the rest nothing may be there, or some of it, or parts of some. A file that was
removed may still be there until its directory is synced. A name whose file was synced is taken
to be there, as ext4 and XFS have it.
"""

from __future__ import annotations

import os
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

CALLS = "pwrite64,write,fdatasync,fsync,ftruncate,unlink"
OPTIONS = ("-y", "-xx", "-s", "99999999", "-e", f"trace={CALLS}")
"""strace's: names of files beside their numbers, and every byte, in hexadecimal."""
ACK = b"ACK "
"""How what the program says begins that it has acknowledged; its children may say other things."""
SECTOR = 512
"""Bytes that a disk writes whole or not at all."""

Mode = Literal["nothing", "some", "torn"]
MODES: tuple[Mode, ...] = ("nothing", "some", "torn")
"""What of the writes that were not synced is there."""

_HEX = r'"((?:\\x..)*)"'
_LINE = {
    "pwrite": re.compile(rf"pwrite64\(\d+<(.*?)>, {_HEX}, \d+, (\d+)\) += (\d+)"),
    "sync": re.compile(r"f(?:data)?sync\(\d+<(.*?)>\) += 0"),
    "truncate": re.compile(r"ftruncate\(\d+<(.*?)>, (\d+)\) += 0"),
    "unlink": re.compile(rf"unlink\({_HEX}\) += 0"),
    "say": re.compile(rf"write\(1<.*?>, {_HEX}, \d+\) += \d+"),
}
_UNFINISHED = re.compile(r"^(\d+) +(.*) <unfinished \.\.\.>$")
_RESUMED = re.compile(r"^(\d+) +<\.\.\. \w+ resumed>(.*)$")


class Act(NamedTuple):
    """One thing that the program did to its files, or said."""

    kind: str
    path: str = ""
    data: bytes = b""
    offset: int = 0


def acts_of(trace: Path) -> list[Act]:
    """Read what strace has recorded, in the order in which it was done."""
    acts = []
    begun: dict[str, str] = {}
    with trace.open() as lines:
        for line in lines:
            line = line.rstrip("\n")
            # A call during which another thread made one of its own is told in two parts.
            if match := _UNFINISHED.match(line):
                begun[match[1]] = match[2]
                continue
            if match := _RESUMED.match(line):
                line = begun.pop(match[1]) + match[2]
            if act := _act(line):
                acts.append(act)
    return acts


def _act(line: str) -> Act | None:
    found = ((kind, match) for kind, pattern in _LINE.items() if (match := pattern.search(line)))
    kind, match = next(found, ("", None))
    if match is None:
        return None
    if kind == "say":
        said = _bytes(match[1])
        return Act(kind, data=said.removeprefix(ACK)) if said.startswith(ACK) else None
    path = _bytes(match[1]).decode() if match[1].startswith("\\x") else match[1]
    if kind == "pwrite":
        return Act(kind, path, _bytes(match[2])[: int(match[4])], int(match[3]))
    return Act(kind, path, offset=int(match[2]) if kind == "truncate" else 0)


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def _do(content: bytearray, act: Act) -> None:
    end = act.offset + len(act.data)
    content.extend(bytes(max(0, end - len(content))))
    if act.kind == "truncate":
        del content[act.offset :]
    else:
        content[act.offset : end] = act.data


class Disk:
    """The files of one directory, as far as they are on the disk for certain."""

    def __init__(self, directory: Path) -> None:
        self._directory = str(directory)
        self._synced: dict[str, bytearray] = {}
        self._pending: dict[str, list[Act]] = {}
        self._removed: dict[str, bytearray] = {}

    def do(self, act: Act) -> None:
        """Go on by one act."""
        if act.path == self._directory and act.kind == "sync":
            self._removed.clear()
        if os.path.dirname(act.path) != self._directory or act.path.endswith("-shm"):
            return  # the index of the log is made anew after a crash
        if act.kind == "unlink":
            self._pending.pop(act.path, None)
            if (content := self._synced.pop(act.path, None)) is not None:
                self._removed[act.path] = content
        elif act.kind == "sync":
            content = self._synced.setdefault(act.path, bytearray())
            for pending in self._pending.pop(act.path, []):
                _do(content, pending)
            self._removed.pop(act.path, None)
        else:
            self._pending.setdefault(act.path, []).append(act)

    def image(self, mode: Mode, rng: random.Random) -> dict[str, bytes]:
        """Return what may be on the disk now: the content of each file, by its name."""
        files = {path: bytearray(content) for path, content in self._synced.items()}
        for path, content in self._removed.items():
            if path not in files and path not in self._pending and rng.random() < 0.5:
                files[path] = bytearray(content)
        for path, pending in self._pending.items():
            for act in pending:
                if mode == "nothing" or rng.random() < 0.5:
                    continue
                if mode == "torn":
                    act = _torn(act, rng)
                _do(files.setdefault(path, bytearray()), act)
        return {os.path.basename(path): bytes(content) for path, content in files.items()}


def _torn(act: Act, rng: random.Random) -> Act:
    """Return a write of which only the first sectors have reached the disk."""
    if len(act.data) <= SECTOR:
        return act
    return act._replace(data=act.data[: rng.randrange(SECTOR, len(act.data), SECTOR)])


class Image(NamedTuple):
    """What may be on the disk after a power cut, and what had been acknowledged by then."""

    at: str
    files: dict[str, bytes]
    said: list[str]

    def write(self, directory: Path) -> None:
        """Write the files to an empty directory."""
        for name, content in self.files.items():
            (directory / name).write_bytes(content)


def images(acts: list[Act], directory: Path, count: int, rng: random.Random) -> Iterator[Image]:
    """Yield images of the directory at random moments, one of each mode in turn."""
    moments = Counter(sorted(rng.choices(range(1, len(acts) + 1), k=count)))
    disk = Disk(directory)
    said: list[str] = []
    made = 0
    for moment, act in enumerate(acts, 1):
        if act.kind == "say":
            said.append(act.data.decode().strip())
        else:
            disk.do(act)
        for _ in range(moments[moment]):
            mode = MODES[made % len(MODES)]
            made += 1
            at = f"after act {moment} of {len(acts)}, with {mode} of what was not synced"
            yield Image(at, disk.image(mode, rng), list(said))
