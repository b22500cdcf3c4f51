"""Line charts as SVG, with axes that may be logarithmic: as little as the growth curves need."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

WIDTH: Final = 760
HEIGHT: Final = 420
LEFT, RIGHT, TOP, BOTTOM = 70, 210, 46, 56
COLOURS: Final = ("#1b6ca8", "#c8553d", "#3a7d44", "#8a4fa3", "#b0851c", "#4a4a4a")
# A reader's theme may be dark: the chart brings its own ground.
STYLE: Final = (
    "<style>text{font:12px sans-serif;fill:#222}.title{font-size:14px;font-weight:bold}"
    ".grid{stroke:#ddd}.axis{stroke:#444}</style>"
)


@dataclass(frozen=True)
class Line:
    """One curve, by the points that were measured."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    """Which of the colours; curves that belong together share one."""
    is_dashed: bool = False


class _Scale:
    """From values to pixels; a logarithmic one begins at the power of ten below the least."""

    def __init__(self, values: Iterable[float], pixels: tuple[float, float], is_log: bool) -> None:
        kept = [value for value in values if value > 0 or not is_log]
        self._is_log = is_log
        self._pixels = pixels
        if is_log:
            low = math.floor(math.log10(min(kept)))
            high = max(low + 1, math.ceil(math.log10(max(kept))))
            self.ticks = [10.0**power for power in range(low, high + 1)]
        else:
            step = _step(max(kept))
            self.ticks = [step * index for index in range(int(max(kept) / step) + 2)]
        self._low, self._high = self._to(self.ticks[0]), self._to(self.ticks[-1])

    def _to(self, value: float) -> float:
        return math.log10(max(value, 1e-12)) if self._is_log else value

    def __call__(self, value: float) -> float:
        share = (self._to(value) - self._low) / (self._high - self._low)
        return self._pixels[0] + share * (self._pixels[1] - self._pixels[0])


def _step(greatest: float) -> float:
    """A round number of which four to ten reach the greatest value."""
    power = 10.0 ** math.floor(math.log10(greatest or 1))
    return next(power * part for part in (0.1, 0.2, 0.5, 1, 2) if greatest / (power * part) <= 10)


def chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    log_x: bool = True,
    log_y: bool = True,
) -> str:
    """Return the SVG of curves on common axes, with a legend beside them."""
    points = [point for line in lines for point in line.points]
    x = _Scale((point[0] for point in points), (LEFT, WIDTH - RIGHT), log_x)
    y = _Scale((point[1] for point in points), (HEIGHT - BOTTOM, TOP), log_y)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{escape(title)}</title>",
        STYLE,
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text class="title" x="{LEFT}" y="24">{escape(title)}</text>',
    ]
    for tick in x.ticks:
        at = x(tick)
        parts.append(_segment("grid", at, TOP, at, HEIGHT - BOTTOM))
        parts.append(_text(at, HEIGHT - BOTTOM + 18, _short(tick), "middle"))
    for tick in y.ticks:
        at = y(tick)
        parts.append(_segment("grid", LEFT, at, WIDTH - RIGHT, at))
        parts.append(_text(LEFT - 8, at + 4, _short(tick), "end"))
    parts.append(_segment("axis", LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM))
    parts.append(_segment("axis", LEFT, TOP, LEFT, HEIGHT - BOTTOM))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, x_label, "middle"))
    parts.append(
        f'<text transform="translate(18 {(TOP + HEIGHT - BOTTOM) / 2:.0f}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_label)}</text>'
    )
    for index, line in enumerate(lines):
        parts += _curve(line, index, x, y)
    return "\n".join([*parts, "</svg>\n"])


def _curve(line: Line, index: int, x: _Scale, y: _Scale) -> list[str]:
    colour = COLOURS[line.colour % len(COLOURS)]
    dash = ' stroke-dasharray="6 4"' if line.is_dashed else ""
    at = [(x(one), y(other)) for one, other in line.points]
    path = " ".join(f"{one:.1f},{other:.1f}" for one, other in at)
    legend = TOP + 8 + 20 * index
    edge = WIDTH - RIGHT + 16
    return [
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>',
        *(f'<circle cx="{one:.1f}" cy="{other:.1f}" r="3" fill="{colour}"/>' for one, other in at),
        f'<line x1="{edge}" y1="{legend}" x2="{edge + 22}" y2="{legend}" stroke="{colour}" '
        f'stroke-width="2"{dash}/>',
        _text(edge + 28, legend + 4, line.label, "start"),
    ]


def _segment(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"
