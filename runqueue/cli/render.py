"""The only way in which text reaches a terminal.

Prompts, results and ids are written by strangers: a character that could drive the terminal,
forge a row or hide text is shown as its escape instead of being sent.
"""

from __future__ import annotations

import json
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

FORMATS: Final = ("table", "json", "jsonl", "id")

# Controls, format characters (bidirectional, zero-width), surrogates, line separators.
_HIDDEN: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_ESCAPES: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def printable(text: object, *, lines: bool = False) -> str:
    """Return text with everything that does not print made visible.

    With `lines`, line feeds and tabs stay as they are.
    """
    kept = "\n\t" if lines else ""
    return "".join(
        character
        if character in kept or unicodedata.category(character) not in _HIDDEN
        else _escape(character)
        for character in str(text)
    )


def _escape(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    point = ord(character)
    if point < 0x100:
        return f"\\x{point:02x}"
    return f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"


def output_option(command: F) -> F:
    return click.option(
        "-o",
        "--output",
        "output",
        type=click.Choice(FORMATS),
        default="table",
        show_default=True,
        help="How to print rows.",
    )(command)


def echo(text: object, *, err: bool = False) -> None:
    """Print one line, whatever ids and names it quotes."""
    click.echo(printable(text), err=err)


def echo_lines(text: object, *, indent: str = "", err: bool = False) -> None:
    """Print lines of a stranger's; with an indent none of them passes for one of ours."""
    click.echo(printable(text, lines=True).replace("\n", f"\n{indent}"), err=err)


def emit(
    rows: Sequence[Mapping[str, Any]],
    output: str,
    *,
    key: str,
    columns: Sequence[str],
    shown: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
) -> None:
    """Print rows: as a table of `columns`, as JSON, or only their `key`."""
    if output == "json":
        click.echo(to_json(list(rows), indent=2))
    elif output == "jsonl":
        for row in rows:
            click.echo(to_json(row))
    elif output == "id":
        for row in rows:
            click.echo(printable(row[key]))
    elif not rows:
        click.echo("(none)", err=True)
    else:
        table([[shown(row).get(column) for column in columns] for row in rows], columns)


def emit_one(row: Mapping[str, Any], output: str, *, key: str) -> None:
    """Print one row: as names and values, as JSON, or only its `key`."""
    if output == "id":
        click.echo(printable(row[key]))
    elif output in ("json", "jsonl"):
        click.echo(to_json(row, indent=2 if output == "json" else None))
    else:
        width = max(map(len, row))
        for name, value in row.items():
            if value is None or value == "":
                continue
            first, *rest = printable(value, lines=True).split("\n")
            click.echo(f"{name:<{width}}  {first}")
            for line in rest:
                click.echo(f"{'':<{width}}  {line}")


def to_json(value: Any, indent: int | None = None) -> str:
    # ASCII only, so that no control or bidirectional character passes; JSON leaves DEL alone.
    text = json.dumps(value, ensure_ascii=True, indent=indent, default=str)
    return text.replace("\x7f", "\\u007f")


def table(rows: Iterable[Sequence[Any]], columns: Sequence[str]) -> None:
    """Print a table; on a terminal it fits the width, with ids never cut.

    Away from a terminal nothing is cut: whoever reads it may be a script.
    """
    is_shown = sys.stdout.isatty()
    room = shutil.get_terminal_size().columns if is_shown else None
    for number, line in enumerate(aligned(rows, columns, room)):
        click.echo(click.style(line, bold=True) if number == 0 and is_shown else line)


def aligned(
    rows: Iterable[Sequence[Any]], columns: Sequence[str], room: int | None = None
) -> list[str]:
    """Return the lines of a table, the titles first, cut to fit the room but for its ids."""
    from rich.cells import cell_len, set_cell_size

    titles = [column.upper().replace("_", " ") for column in columns]
    lines = [
        titles,
        *(["" if cell is None else printable(cell) for cell in row] for row in rows),
    ]
    widths = [max(cell_len(line[index]) for line in lines) for index in range(len(columns))]
    if room is not None:
        widths = _fitting(widths, columns, room)
    return [
        "  ".join(
            cell + " " * (width - cell_len(cell))
            if cell_len(cell) <= width
            else set_cell_size(cell, width - 1) + "…"
            for cell, width in zip(line, widths, strict=True)
        ).rstrip()
        for line in lines
    ]


def cut(text: object, room: int | None) -> str:
    """Return one line of text that prints and is no wider than the room."""
    from rich.cells import cell_len, set_cell_size

    shown = printable(text)
    if room is None or cell_len(shown) <= room:
        return shown
    return set_cell_size(shown, max(0, room - 1)) + "…" if room > 0 else ""


def _fitting(widths: list[int], columns: Sequence[str], room: int) -> list[int]:
    """Narrow the widest column that may be cut, again and again, until the table fits."""
    widths = list(widths)
    room -= 2 * (len(widths) - 1)
    while sum(widths) > room:
        widest = max(
            (index for index, column in enumerate(columns) if column not in WHOLE),
            key=lambda index: widths[index],
        )
        if widths[widest] <= NARROWEST:
            break
        widths[widest] -= min(sum(widths) - room, widths[widest] - NARROWEST)
    return widths


NARROWEST: Final = 6
WHOLE: Final = frozenset({"run_id", "session_id", "runner_id"})


def age(seconds: float | None) -> str:
    """Return a span of time as people say it: 5s, 3m, 2h, 4d."""
    if seconds is None:
        return ""
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}{unit}"
    return f"{max(0.0, seconds):.0f}s"
