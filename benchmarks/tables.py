"""Sections as text: a Markdown table that can be read as it is."""

from __future__ import annotations

from typing import Any

from benchmarks.figures import Section, Spread


def shown(section: Section) -> str:
    """Return a section's title, conditions, table, notes and bars."""
    lines = [f"## {section.title} ({section.database})", ""]
    lines += [", ".join(f"{key} {value}" for key, value in section.conditions.items()), ""]
    lines += _table([list(section.columns), *([_cell(one) for one in row] for row in section.rows)])
    if section.notes or section.bars:
        lines.append("")
    lines += [f"- {note}" for note in section.notes]
    for bar in section.bars:
        verdict = "met" if bar.is_met else "MISSED"
        lines.append(f"- {verdict}: {bar.what}: {_number(bar.value)}, at most {bar.limit:g}")
    return "\n".join(lines) + "\n"


def _table(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    at = list(enumerate(widths))
    padded = [
        [
            cell.rjust(width) if index else cell.ljust(width)
            for cell, (index, width) in zip(row, at, strict=True)
        ]
        for row in rows
    ]
    rule = ["-" * width if not index else f"{'-' * (width - 1)}:" for index, width in at]
    return [f"| {' | '.join(row)} |" for row in (padded[0], rule, *padded[1:])]


def _cell(value: Any) -> str:
    if isinstance(value, Spread):
        if value.least == value.greatest:
            return _number(value.median)
        inner = f"{_number(value.least)} .. {_number(value.greatest)}"
        return f"{_number(value.median)} ({inner})"
    if value is None:
        return "-"
    return value if isinstance(value, str) else _number(value)


def _number(value: float) -> str:
    """A number with three significant digits, and no fewer than its whole ones."""
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3g}"
