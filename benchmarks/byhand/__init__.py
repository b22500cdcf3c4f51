"""The same work written by hand: plain SQL by the plain driver, as a good engineer would.

It leaves out what only a queue for everybody needs: checking what callers ask for, refusing with
a typed error, noticing that the runner was drained, waking those who wait.
"""

from __future__ import annotations

import secrets
from datetime import datetime, timezone
from typing import Any, NamedTuple, Protocol

RUNNER = "by-hand"
PLACE = "bench-host"
TEXTS = [""]
"""The demand texts that the runner serves."""


class Token(NamedTuple):
    """A claimed run, and the proof of its claim."""

    run_id: str
    session_id: str
    claimed_at: str


class Contender(Protocol):
    """Whoever does the work of a queue, one at a time and in batches."""

    def enqueue(self, prompt: str) -> None: ...

    def claim(self) -> Any: ...

    def start(self, claim: Any) -> None: ...

    def complete(self, claim: Any, result: str) -> None: ...

    def enqueue_many(self, prompts: list[str]) -> None: ...

    def claim_many(self, limit: int) -> list[Any]: ...

    def finish_many(self, claims: list[Any], result: str) -> None:
        """Start and complete."""

    def close(self) -> None: ...


def new_id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(6)}"


def now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Lost(Exception):
    """A guarded update met a run that is not the caller's any more."""


def insist(changed: int, expected: int = 1) -> None:
    if changed != expected:
        raise Lost(f"{expected - changed} of {expected} runs were lost")
