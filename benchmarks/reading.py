"""Reading: what lists, counts, explanations and an idle sweep cost with what there is."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any, Final

import runqueue
from benchmarks.figures import Bar, Section, Spread
from benchmarks.filling import FILLERS, FOREIGN, tag
from benchmarks.places import Places
from benchmarks.sizes import Sizes
from runqueue import reading

BAR: Final = 1.5
"""A figure with a long history and backlog, as a multiple of that with a short one."""
SHORT: Final = 100
"""Finished and pending runs each of the short one, which fill a list, too."""
SHOWN: Final = 50
COUNTS: Final = "the counts of status"
WHY: Final = "why a run waits"


def _readers(queue: runqueue.Queue) -> dict[str, Callable[[], Any]]:
    store = queue.store
    newest = partial(reading.find, store, limit=SHOWN, columns=reading.SUMMARY)
    waiting = newest(status="pending")[-1].run_id
    return {
        "a sweep with nothing due": queue.sweep,
        f"the newest {SHOWN} runs": newest,
        f"the newest {SHOWN} that wait": partial(newest, status="pending"),
        f"the newest {SHOWN} that completed": partial(newest, status="completed"),
        f"the newest {SHOWN} of a runner": partial(newest, runner_id="former"),
        f"the newest {SHOWN} sessions": partial(reading.sessions, store, SHOWN),
        "a run by its id": partial(queue.get, waiting),
        WHY: partial(queue.why, waiting),
        COUNTS: lambda: reading.overview(store, now=queue.now()),
    }


def measure(places: Places, kind: str, sizes: Sizes) -> Iterator[Section]:
    """Read the same of two databases in turns: a short history and backlog, and the longest."""
    longest = max(sizes.finished), max(sizes.pending)
    times: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    with ExitStack() as stack:
        both = []
        for finished, pending in ((SHORT, SHORT), longest):
            place = stack.enter_context(places.empty(kind))
            queue = stack.enter_context(runqueue.connect(place.url))
            filler = FILLERS[kind](place)
            filler.finished(finished)
            filler.pending(pending, 1.0, 0, max(1, min(pending, max(sizes.texts)) // 2))
            # What waits is explained by the runners that there are.
            stack.enter_context(queue.runner("alive", tags=[tag(FOREIGN, 0)]))
            both.append(_readers(queue))
        for number in range(sizes.operations + 1):
            for what in both[0]:
                # Whoever comes second finds its code in the processor's caches.
                for side in (0, 1) if number % 2 else (1, 0):
                    began = time.perf_counter()
                    both[side][what]()
                    if number:
                        times[what][side].append((time.perf_counter() - began) * 1e6)
    finished, pending = longest
    section = Section(
        "reading",
        kind,
        "Reading and sweeping: microseconds",
        ("what", f"{SHORT} each", f"{finished:,} finished, {pending:,} pending", "ratio"),
    )
    for what, (short, long) in times.items():
        ratio = Spread.of(long).median / Spread.of(short).median
        section.rows.append((what, Spread.of(short), Spread.of(long), ratio))
        if what not in (COUNTS, WHY):
            section.bars.append(Bar(f"{what}, ratio", ratio, BAR))
    section.notes += [
        "status counts what lives, and up to 100,000 runs of each way to end",
        "why counts the runs that wait for the same and are ahead",
    ]
    yield section
