"""Figures: what is kept of many measurements, and the tables that they are shown in."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Spread:
    """The median of measurements, with the least and the greatest."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        kept = sorted(values)
        return cls(statistics.median(kept), kept[0], kept[-1])


def percentile(values: Iterable[float], share: float) -> float:
    """Return the smallest of the values that at least this share of them does not exceed."""
    kept = sorted(values)
    return kept[max(0, min(len(kept) - 1, -int(-share * len(kept) // 1) - 1))]


@dataclass(frozen=True)
class Bar:
    """What a figure must not exceed."""

    what: str
    value: float
    limit: float

    @property
    def is_met(self) -> bool:
        return self.value <= self.limit


@dataclass
class Section:
    """One table, with the bars that its figures are held against."""

    name: str
    database: str
    title: str
    columns: Sequence[str]
    rows: list[Sequence[Any]] = field(default_factory=list)
    """Of cells, which are texts, numbers, spreads or None."""
    bars: list[Bar] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    conditions: dict[str, Any] = field(default_factory=dict)
    charts: dict[str, str] = field(default_factory=dict)
    """SVG by name."""

    def as_json(self) -> dict[str, Any]:
        shown = asdict(self)
        del shown["charts"]
        shown["bars"] = [asdict(bar) | {"is_met": bar.is_met} for bar in self.bars]
        return shown

    @classmethod
    def from_json(cls, shown: dict[str, Any]) -> Section:
        """Return a section as it was kept, but for its charts, which are files of their own."""
        rows = [
            [Spread(**one) if isinstance(one, dict) else one for one in row]
            for row in shown["rows"]
        ]
        bars = [Bar(bar["what"], bar["value"], bar["limit"]) for bar in shown["bars"]]
        return cls(**shown | {"rows": rows, "bars": bars})
