"""Growth: what a claim costs with what has ended, with what waits, and for whom."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Final

import runqueue
from benchmarks.figures import Bar, Section, percentile
from benchmarks.filling import FILLERS, SERVED, tag
from benchmarks.places import Place, Places
from benchmarks.plot import Line, chart
from benchmarks.sizes import Sizes

BAR: Final = 1.5
"""The worst half of the claims, as a multiple of the empty queue's."""
FEW: Final = 50
"""Demand texts up to which the bar holds."""
SHARES: Final = (0.0, 0.95, 1.0)
"""Of the runs that wait, those that the runner cannot serve."""
SLICE: Final = 20
"""Claims in one turn."""


@dataclass(frozen=True)
class Cell:
    finished: int
    pending: int
    share: float
    texts: int

    @property
    def served(self) -> int:
        """How many demand texts the runner serves."""
        return max(1, round(self.texts * (1 - self.share))) if self.share < 1 else 0

    @property
    def foreign(self) -> int:
        return max(1, self.texts - self.served) if self.share > 0 else 0


@dataclass(frozen=True)
class Measured:
    cell: Cell
    half: float
    most: float
    empty: float
    """Half of the empty queue's claims, in turn with these."""

    @property
    def ratio(self) -> float:
        return self.half / self.empty


class Claimer:
    """A runner whose claims are timed, on a queue that is kept as full as it was."""

    def __init__(self, place: Place, name: str, served: int) -> None:
        self._queue = runqueue.connect(place.url)
        self._runner = self._queue.runner(name, tags=[tag(SERVED, n) for n in range(served)])
        self._served = served
        self._next = 0

    def __enter__(self) -> Claimer:
        self._runner.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._runner.close()
        self._queue.close()

    def add(self) -> None:
        """Enqueue a run that the runner can serve; the texts take turns."""
        demands = {"tags": [tag(SERVED, self._next % self._served)]}
        self._queue.enqueue("nothing to do", demands=demands, timeout=1e6)
        self._next += 1

    def claims(self, number: int) -> list[float]:
        """Return how many microseconds each claim took."""
        times = []
        for _ in range(number):
            began = time.perf_counter()
            claim = self._runner.claim(timeout=0)
            times.append((time.perf_counter() - began) * 1e6)
            if claim is not None:
                self._runner.finish_many([(claim, None)])
                self.add()
        return times


def cells(sizes: Sizes, finished: int) -> Iterator[Cell]:
    """Yield the cells of one history; more texts than runs there cannot be."""
    for pending in sizes.pending:
        for share in SHARES:
            for texts in sizes.texts:
                if texts <= pending or texts == min(sizes.texts):
                    yield Cell(finished, pending, share, texts)


def measure(places: Places, kind: str, sizes: Sizes) -> Iterator[Section]:
    section = Section(
        "growth",
        kind,
        "Growth: microseconds a claim",
        ("finished", "pending", "not for it, %", "texts", "p50", "p99", "p50 to the empty queue's"),
    )
    measured: list[Measured] = []
    with ExitStack() as stack:
        place = stack.enter_context(places.empty(kind))
        empty = stack.enter_context(Claimer(place, "at-empty", 1))
        for _ in range(min(sizes.pending)):
            empty.add()
        empty.claims(min(SLICE, sizes.claims))
        for finished in sizes.finished:
            measured += _with(places, kind, sizes, finished, empty)
    for one in measured:
        cell = one.cell
        section.rows.append(
            (
                *(f"{cell.finished:,}", f"{cell.pending:,}", f"{100 * cell.share:.0f}"),
                *(f"{cell.texts:,}", one.half, one.most, one.ratio),
            )
        )
    worst = max((one for one in measured if one.cell.texts <= FEW), key=lambda one: one.ratio)
    section.bars.append(Bar(f"worst p50 with up to {FEW} texts, ratio", worst.ratio, BAR))
    section.notes += [
        "where all is for others the claim asks in vain and commits nothing",
        "the empty queue holds a few runs of one text, and is claimed from in turns with each",
    ]
    section.charts = _charts(kind, measured)
    yield section


def _with(
    places: Places, kind: str, sizes: Sizes, finished: int, empty: Claimer
) -> Iterator[Measured]:
    with places.empty(kind) as place:
        runqueue.connect(place.url).close()
        filler = FILLERS[kind](place)
        filler.finished(finished)
        for cell in cells(sizes, finished):
            filler.pending(cell.pending, cell.share, cell.served, cell.foreign)
            with Claimer(place, "at-full", cell.served) as full:
                if cell.served:  # of a few runs, none may be for it
                    full.add()
                turn = min(SLICE, sizes.claims)
                full.claims(turn)
                times: list[float] = []
                others: list[float] = []
                while len(times) < sizes.claims:
                    times += full.claims(turn)
                    others += empty.claims(turn)
            filler.only_finished()
            half, most = percentile(times, 0.5), percentile(times, 0.99)
            yield Measured(cell, half, most, percentile(others, 0.5))


def _charts(kind: str, measured: list[Measured]) -> dict[str, str]:
    by_cell = {one.cell: one for one in measured}
    histories = sorted({cell.finished for cell in by_cell})
    backlogs = sorted({cell.pending for cell in by_cell})
    texts = sorted({cell.texts for cell in by_cell if cell.pending == backlogs[-1]})
    few = max(number for number in texts if number <= FEW)

    def both(label: str, colour: int, chosen: list[tuple[int, Cell]]) -> list[Line]:
        points = [(x, by_cell[cell]) for x, cell in chosen if cell in by_cell]
        return [
            Line(f"p50, {label}", [(x, one.ratio) for x, one in points], colour),
            Line(
                f"p99, {label}",
                [(x, one.most / one.empty) for x, one in points],
                colour,
                is_dashed=True,
            ),
        ]

    by_backlog: list[Line] = []
    for colour, finished in enumerate(histories):
        chosen = [
            (pending, Cell(finished, pending, 0.95, few if few <= pending else texts[0]))
            for pending in backlogs
        ]
        by_backlog += both(f"{finished:,} ended", colour, chosen)
    by_texts: list[Line] = []
    for colour, share in enumerate(SHARES):
        chosen = [(number, Cell(histories[-1], backlogs[-1], share, number)) for number in texts]
        by_texts += both(f"{100 * share:.0f} % for others", colour, chosen)
    return {
        "backlog": chart(
            f"A claim, 95 % of what waits for others ({kind})",
            by_backlog,
            x_label="runs that wait",
            y_label="times the empty queue's p50",
        ),
        "texts": chart(
            f"A claim, {backlogs[-1]:,} wait and {histories[-1]:,} ended ({kind})",
            by_texts,
            x_label="distinct demand texts",
            y_label="times the empty queue's p50",
        ),
    }
