"""Against the limit: runqueue beside the same work written by hand for the same schema."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any, Final

import runqueue
from benchmarks.byhand import Contender
from benchmarks.byhand.postgres import ByHand as ByHandOnPostgres
from benchmarks.byhand.sqlite import ByHand as ByHandOnSqlite
from benchmarks.figures import Bar, Section, Spread
from benchmarks.places import Place, Places
from benchmarks.sizes import Sizes

PROMPT: Final = "Summarise what changed in the repository since yesterday. ".ljust(200, ".")
BATCH: Final = 100
BARS: Final = {"one at a time": 1.25, "batches of 100": 1.4}
BY_HAND: Final[dict[str, Callable[[Place], Contender]]] = {
    "sqlite": ByHandOnSqlite,
    "postgres": ByHandOnPostgres,
}


class Ours:
    """The work by runqueue."""

    def __init__(self, place: Place) -> None:
        self._queue = runqueue.connect(place.url)
        self._runner = self._queue.runner("runqueue")
        self._runner.open()

    def enqueue(self, prompt: str) -> None:
        self._queue.enqueue(prompt)

    def claim(self) -> runqueue.Claim:
        claim = self._runner.claim(timeout=0)
        assert claim is not None
        return claim

    def start(self, claim: runqueue.Claim) -> None:
        claim.start()

    def complete(self, claim: runqueue.Claim, result: str) -> None:
        claim.complete(result)

    def enqueue_many(self, prompts: list[str]) -> None:
        self._queue.enqueue_many({"prompt": prompt} for prompt in prompts)

    def claim_many(self, limit: int) -> list[runqueue.Claim]:
        return self._runner.claim_many(limit)

    def finish_many(self, claims: list[runqueue.Claim], result: str) -> None:
        self._runner.finish_many([(claim, result) for claim in claims])

    def close(self) -> None:
        self._runner.close()
        self._queue.close()


class Times:
    """What one contender took, in microseconds a run: by the clock, and of the processor."""

    def __init__(self) -> None:
        self.elapsed: dict[str, list[float]] = defaultdict(list)
        self.computed: dict[str, list[float]] = defaultdict(list)

    def take(self, what: str, runs: int, work: Callable[[], Any]) -> Any:
        began, computed = time.perf_counter(), time.process_time()
        done = work()
        self.elapsed[what].append((time.perf_counter() - began) / runs * 1e6)
        self.computed[what].append((time.process_time() - computed) / runs * 1e6)
        return done


def one_round(contender: Contender, times: Times, sizes: Sizes) -> Iterator[None]:
    """Enqueue and execute the same number of runs in each way; pause after each."""
    number = sizes.operations

    def enqueue() -> None:
        for _ in range(2 * number):
            contender.enqueue(PROMPT)

    def cycle() -> None:
        for _ in range(number):
            claim = contender.claim()
            contender.start(claim)
            contender.complete(claim, "done")

    times.take("enqueue", 2 * number, enqueue)
    yield
    claims = times.take("claim", number, lambda: [contender.claim() for _ in range(number)])
    yield
    for claim in claims:
        contender.start(claim)
        contender.complete(claim, "done")
    times.take("claim, start, complete", number, cycle)
    yield
    for _ in range(sizes.batches):
        times.take("enqueue 100", BATCH, partial(contender.enqueue_many, [PROMPT] * BATCH))
        yield
        claims = times.take("claim 100", BATCH, partial(contender.claim_many, BATCH))
        yield
        times.take("finish 100", BATCH, partial(contender.finish_many, claims, "done"))
        yield


def measure(places: Places, kind: str, sizes: Sizes) -> Iterator[Section]:
    section = Section(
        "limit",
        kind,
        "Against the limit: microseconds a run",
        ("what", "by hand", "runqueue", "ratio", "processor by hand", "processor runqueue"),
    )
    with ExitStack() as stack:
        pair = []
        for make in (BY_HAND[kind], Ours):
            place = stack.enter_context(places.empty(kind))
            runqueue.connect(place.url).close()
            contender = make(place)
            stack.callback(contender.close)
            pair.append((contender, Times()))
        warm = Times()
        for number in range(sizes.rounds + 1):
            # Step by step in turns; whoever comes first meets what the other left to be flushed.
            order = pair if number % 2 else pair[::-1]
            turns = [one_round(one, times if number else warm, sizes) for one, times in order]
            for _ in zip(*turns, strict=True):
                pass
    hand, ours = (times for _, times in pair)
    for what, elapsed in hand.elapsed.items():
        ratios = [b / a for a, b in zip(elapsed, ours.elapsed[what], strict=True)]
        ratio = Spread.of(ratios)
        section.rows.append(
            (
                what,
                Spread.of(elapsed),
                Spread.of(ours.elapsed[what]),
                ratio,
                Spread.of(hand.computed[what]).median,
                Spread.of(ours.computed[what]).median,
            )
        )
        bar = "batches of 100" if what.endswith("100") else "one at a time"
        section.bars.append(Bar(f"{what}, ratio to by hand", ratio.median, BARS[bar]))
    section.notes.append("the ratio is the median of those of the single rounds, in turns")
    yield section
