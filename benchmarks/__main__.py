"""The command that measures everything, side by side: `python -m benchmarks`."""

from __future__ import annotations

import importlib
import json
import signal
import sys
from pathlib import Path
from typing import Final

import click

from benchmarks import conditions, tables
from benchmarks.figures import Section
from benchmarks.places import KINDS, Places
from benchmarks.sizes import BY_NAME

MARKS: Final = ("<!-- tables -->", "<!-- end of tables -->")
# By name, for each worker process imports this module, and is to be no larger for it.
SUBJECTS: Final = {
    "limit": "limit",
    "growth": "growth",
    "reading": "reading",
    "pickup": "pickup",
    "contention": "contention",
    "peers": "peers.contest",
    "footprint": "footprint",
    "storage": "storage",
}


@click.command(name="benchmarks", context_settings={"show_default": True})
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(list(SUBJECTS)),
    help="Only this subject; what is kept in the directory of the others stays.",
)
@click.option("--size", type=click.Choice(list(BY_NAME)), default="full", help="How much.")
@click.option("--quick", is_flag=True, help="The same as --size quick.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("build/benchmarks"),
    help="Where results.json, tables.md and the charts are written.",
)
@click.option(
    "--database", type=click.Choice([*KINDS, "both"]), default="both", help="On which database."
)
@click.option(
    "--doc",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Renew the tables between the marks of this Markdown file; growth is in its charts.",
)
def main(
    only: tuple[str, ...], size: str, quick: bool, out: Path, database: str, doc: Path | None
) -> None:
    """Measure runqueue beside its limits and its peers; print tables, write JSON and SVG.

    All of it in full takes about half an hour, on a machine that does nothing else meanwhile.
    """
    # What was made, the server too, is removed also when somebody ends it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sizes = BY_NAME["quick" if quick else size]
    kinds = KINDS if database == "both" else (database,)
    out.mkdir(parents=True, exist_ok=True)
    machine = conditions.machine()
    done: list[Section] = []
    kept = _kept(out) if only or database != "both" else []
    if doc is not None:  # to meet what is wrong with it before all that is measured
        _renewed(doc.read_text("utf-8"), machine, done)
    click.echo(_shown(machine) + "\n")
    with Places() as places:
        for name in only or SUBJECTS:
            subject = importlib.import_module(f"benchmarks.{SUBJECTS[name]}")
            for kind in kinds:
                before = conditions.of(kind, places)
                for section in subject.measure(places, kind, sizes):
                    section.conditions = {**before, "load after": conditions.load()}
                    click.echo(tables.shown(section))
                    done.append(section)
                    _write(out, machine, _together(kept, done))
    if doc is not None:
        every = _together(kept, done)
        doc.write_text(_renewed(doc.read_text("utf-8"), machine, every), encoding="utf-8")
    missed = [bar for section in done for bar in section.bars if not bar.is_met]
    bars = sum(len(section.bars) for section in done)
    click.echo(f"{bars - len(missed)} of {bars} bars are met; results are in {out}")


def _shown(machine: dict[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in machine.items())


def _tables(machine: dict[str, object], sections: list[Section]) -> str:
    return "\n".join([f"{_shown(machine)}\n", *map(tables.shown, sections)])


def _renewed(text: str, machine: dict[str, object], sections: list[Section]) -> str:
    """Return a document with the tables of these sections in place of those that it has."""
    before, _, rest = text.partition(MARKS[0])
    _, mark, after = rest.partition(MARKS[1])
    if not mark:
        raise click.ClickException(f"the document has no {MARKS[0]} and {MARKS[1]}")
    # The tables of the growth have some eighty rows each.
    shown = _tables(machine, [section for section in sections if section.name != "growth"])
    shown = shown.replace("\n## ", "\n### ")
    return f"{before}{MARKS[0]}\n\n{shown}\n{MARKS[1]}{after}"


def _kept(out: Path) -> list[Section]:
    """Return the sections that were measured before; each has its own conditions."""
    if not (out / "results.json").exists():
        return []
    results = json.loads((out / "results.json").read_text("utf-8"))
    return [Section.from_json(section) for section in results["sections"]]


def _together(kept: list[Section], done: list[Section]) -> list[Section]:
    """Return all sections in the order of the subjects, those just measured for the kept ones."""
    latest = {(section.name, section.database): section for section in (*kept, *done)}
    subjects = list(SUBJECTS)
    return sorted(
        latest.values(),
        key=lambda section: (
            subjects.index(section.name.replace("-", "")),
            KINDS.index(section.database),
        ),
    )


def _write(out: Path, machine: dict[str, object], sections: list[Section]) -> None:
    """Write all that there is: a long measurement may be broken off."""
    results = {"machine": machine, "sections": [section.as_json() for section in sections]}
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (out / "tables.md").write_text(_tables(machine, sections), encoding="utf-8")
    for section in sections:
        for name, svg in section.charts.items():
            file = out / f"{section.name}-{section.database}-{name}.svg"
            file.write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
