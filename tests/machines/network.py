"""Machines of the tests' own: network namespaces, each with a cable to a switch."""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

NETWORK = "10.77"
SWITCH = "switch"

CLOCK = """
import datetime, runpy, sys, time
shift = float(sys.argv[1])
real_time, real_time_ns, real = time.time, time.time_ns, datetime.datetime
time.time = lambda: real_time() + shift
time.time_ns = lambda: real_time_ns() + int(shift * 1e9)

class Same(type):
    def __instancecheck__(cls, other):
        return isinstance(other, real)

class Shifted(real, metaclass=Same):
    __slots__ = ()

    @classmethod
    def now(cls, tz=None):
        return real.fromtimestamp(time.time(), tz)

    @classmethod
    def utcnow(cls):
        return real.now(datetime.timezone.utc).replace(tzinfo=None)

datetime.datetime = Shifted
moment = datetime.datetime.now(datetime.timezone.utc).isoformat()
print(f"the clock on the wall says {moment}", file=sys.stderr, flush=True)
del sys.argv[:2]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
"""Executes a module with a wall clock that is wrong by so many seconds."""


def reason_to_skip() -> str:
    """Return why there can be no machines here, or nothing."""
    if os.geteuid() != 0:
        return "only root can make network namespaces"
    missing = [name for name in ("ip", "nsenter", "unshare") if shutil.which(name) is None]
    if missing:
        return f"{' and '.join(missing)} not installed"
    name = f"rq-{secrets.token_hex(3)}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if tried.returncode != 0:
        return f"the kernel gives no network namespace: {tried.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", name], check=True)
    return ""


class Network:
    """A switch in a namespace of its own, and machines on cables that can be cut."""

    def __init__(self) -> None:
        self._mark = f"rq-{secrets.token_hex(3)}"
        self._made: list[str] = []
        self._numbers: dict[str, int] = {}
        self._libc = ctypes.CDLL(None, use_errno=True)

    def __enter__(self) -> Network:
        try:
            self._make(SWITCH)
            self._within(SWITCH, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Delete every namespace, and with it its cables."""
        while self._made:
            subprocess.run(["ip", "netns", "delete", self._made.pop()], check=False)

    def add(self, name: str) -> str:
        """Add a machine; return its address."""
        number = self._numbers[name] = len(self._numbers) + 1
        self._make(name)
        gate, address = f"{NETWORK}.{number}.1", self.address(name)
        there = self._space(name)
        self._ip(
            SWITCH, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", there
        )
        self._ip(SWITCH, "address", "add", f"{gate}/24", "dev", name)
        self._ip(SWITCH, "link", "set", name, "up")
        self._ip(name, "address", "add", f"{address}/24", "dev", "eth0")
        self._ip(name, "link", "set", "eth0", "up")
        self._ip(name, "route", "add", "default", "via", gate)
        return address

    def address(self, name: str) -> str:
        return f"{NETWORK}.{self._numbers[name]}.2"

    def cut(self, name: str, how: str) -> None:
        """Let no packet through, in either direction.

        Pulled, a machine knows that its cable is gone; else its packets vanish without a word.
        """
        if how == "pulled":
            self._ip(name, "link", "set", "eth0", "down")
        else:
            for direction in ("from", "to"):
                self._ip(SWITCH, "rule", "add", direction, self.address(name), "blackhole")

    def mend(self, name: str, how: str) -> None:
        """Undo a cut."""
        if how == "pulled":
            self._ip(name, "link", "set", "eth0", "up")
            gate = f"{NETWORK}.{self._numbers[name]}.1"
            self._ip(name, "route", "add", "default", "via", gate)
        else:
            for direction in ("from", "to"):
                self._ip(SWITCH, "rule", "delete", direction, self.address(name), "blackhole")

    def prefix(self, name: str, clock: float) -> list[str]:
        """Return the command that executes a module of Python on a machine, under its name."""
        shell = 'hostname "$0" && exec "$@"'
        python = [sys.executable, "-c", CLOCK, str(clock)]
        space = f"--net=/var/run/netns/{self._space(name)}"
        return ["nsenter", space, "unshare", "--uts", "sh", "-c", shell, name, *python]

    @contextlib.contextmanager
    def on(self, name: str) -> Iterator[None]:
        """Have what this thread starts meanwhile be on a machine."""
        with (
            Path("/proc/thread-self/ns/net").open() as here,
            Path(f"/var/run/netns/{self._space(name)}").open() as there,
        ):
            self._enter(there.fileno())
            try:
                yield
            finally:
                self._enter(here.fileno())

    def _enter(self, handle: int) -> None:
        new_network = 0x40000000
        if self._libc.setns(handle, new_network) != 0:
            raise OSError(ctypes.get_errno(), "setns")

    def _space(self, name: str) -> str:
        return f"{self._mark}-{name}"

    def _make(self, name: str) -> None:
        subprocess.run(["ip", "netns", "add", self._space(name)], check=True)
        self._made.append(self._space(name))
        self._ip(name, "link", "set", "lo", "up")

    def _ip(self, name: str, *argv: str) -> None:
        subprocess.run(["ip", "-n", self._space(name), *argv], check=True)

    def _within(self, name: str, *argv: Sequence[str] | str) -> None:
        subprocess.run(["ip", "netns", "exec", self._space(name), *argv], check=True)
