"""The benchmarks' command works from end to end; what it measures is not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import peewee
import pytest

from benchmarks.figures import Bar, Spread, percentile
from benchmarks.filling import FILLERS, FOREIGN, SERVED, Filler, tag
from benchmarks.places import Place
from benchmarks.plot import Line, chart
from runqueue import Queue
from tests.helpers import ROOT, count, execute_sql, ids

SUBJECTS = ["limit", "growth", "reading", "pick-up", "contention", "peers", "footprint", "storage"]
CHARTS = ["contention-{}-throughput", "growth-{}-backlog", "growth-{}-texts"]
DURABLE = {
    "sqlite": "WAL, synchronous=FULL",
    "postgres": "fsync=on, full_page_writes=on, synchronous_commit=on",
}
SVG = "{http://www.w3.org/2000/svg}"


def measure(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", "--size", "tiny", "--out", str(out), *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_every_subject_is_measured_durably_and_shown_with_its_conditions(
    tmp_path: Path, database: str
) -> None:
    done = measure(tmp_path, "--database", database)
    assert done.returncode == 0, done.stdout
    results = json.loads((tmp_path / "results.json").read_text())
    sections = results["sections"]
    assert [section["name"] for section in sections] == SUBJECTS
    for section in sections:
        assert section["database"] == database
        title = f"## {section['title']} ({database})"
        assert title in done.stdout
        assert title in (tmp_path / "tables.md").read_text()
        conditions = section["conditions"]
        assert {"disk", "cores", "load before", "load after"} <= set(conditions)
        assert DURABLE[database] in conditions["durability"]
        assert section["rows"]
        assert {len(row) for row in section["rows"]} == {len(section["columns"])}
        for bar in section["bars"]:
            assert f"{'met' if bar['is_met'] else 'MISSED'}: {bar['what']}" in done.stdout
    assert {"processor", "cores", "Python"} <= set(results["machine"])
    for name in CHARTS:
        root = ElementTree.parse(tmp_path / f"{name.format(database)}.svg").getroot()
        assert root.tag == f"{SVG}svg"
        assert root.findall(f"{SVG}polyline")


def test_the_tables_of_a_document_are_renewed_and_the_rest_stays(tmp_path: Path) -> None:
    doc = tmp_path / "performance.md"
    doc.write_text("before <!-- tables --> old <!-- end of tables --> after", "utf-8")
    done = measure(tmp_path, "--database", "sqlite", "--only", "limit", "--doc", str(doc))
    assert done.returncode == 0, done.stdout
    text = doc.read_text("utf-8")
    assert text.startswith("before <!-- tables -->")
    assert text.endswith("<!-- end of tables --> after")
    assert "\n### Against the limit: microseconds a run (sqlite)" in text
    assert "old" not in text


def test_what_was_measured_of_other_subjects_stays(tmp_path: Path) -> None:
    doc = tmp_path / "performance.md"
    doc.write_text("<!-- tables --><!-- end of tables -->", "utf-8")
    options = ("--database", "sqlite", "--doc", str(doc), "--only")
    assert measure(tmp_path, *options, "storage").returncode == 0
    kept = (tmp_path / "results.json").read_text()
    assert measure(tmp_path, *options, "limit").returncode == 0
    first, second = json.loads((tmp_path / "results.json").read_text())["sections"]
    assert (first["name"], second["name"]) == ("limit", "storage")
    assert [second] == json.loads(kept)["sections"]
    tables = (tmp_path / "tables.md").read_text()
    assert tables.index("## Against the limit") < tables.index("## Storage and pruning")
    assert "\n### Storage and pruning" in doc.read_text("utf-8")


def filler_of(url: str) -> Filler:
    kind = "sqlite" if url.startswith("sqlite") else "postgres"
    filler: Filler = FILLERS[kind](Place(kind, url))
    return filler


@pytest.mark.parametrize(("share", "served", "foreign"), [(0.0, 7, 0), (0.95, 2, 40), (1.0, 0, 9)])
def test_a_backlog_has_the_texts_and_the_share_that_were_asked_for(
    queue: Queue, database_url: str, share: float, served: int, foreign: int
) -> None:
    filler = filler_of(database_url)
    filler.finished(30)
    filler.pending(2_000, share, served, foreign)
    counted = execute_sql(
        queue, "SELECT demands, count(*) FROM runs WHERE status = 'pending' GROUP BY demands"
    )
    of_others = {text: number for text, number in counted if f'["{FOREIGN}' in text}
    ours = {text: number for text, number in counted if f'["{SERVED}' in text}
    assert (len(of_others), len(ours)) == (foreign, served)
    assert sum(of_others.values()) == 2_000 * share
    assert sum(ours.values()) == 2_000 - sum(of_others.values())


def test_a_filled_database_is_one_of_the_queue_and_can_be_emptied(
    queue: Queue, database_url: str
) -> None:
    filler = filler_of(database_url)
    filler.finished(30)
    filler.pending(40, 0.0, 4, 0)
    tags = [tag(SERVED, number) for number in range(4)]
    with queue.runner("worker", tags=tags) as runner:
        claims = runner.claim_many(50)
        assert len(claims) == 40
        assert ids(claims) == sorted(ids(claims), key=lambda each: queue.get(each).created_at)
        assert runner.finish_many([(claim, None) for claim in claims]) == []
    filler.only_finished()
    for table in ("runs", "sessions", "run_events"):
        assert count(queue, table) == 30
    with pytest.raises(peewee.IntegrityError, match="only ever added to"):  # by a trigger again
        execute_sql(queue, "UPDATE run_events SET at = at")


def test_a_peer_that_is_not_installed_is_said_not_to_be(tmp_path: Path) -> None:
    blocked = "raise ImportError('no such peer')\n"
    for name in ("huey", "litequeue", "persistqueue", "dbos"):
        (tmp_path / f"{name}.py").write_text(blocked)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); "
        "from benchmarks.peers.contest import measure; "
        "from benchmarks.places import Places; from benchmarks.sizes import TINY; "
        "from benchmarks.tables import shown\n"
        "if __name__ == '__main__':\n"
        "    with Places() as places:\n"
        "        print(*map(shown, measure(places, 'sqlite', TINY)))\n"
    )
    (tmp_path / "run.py").write_text(code)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "run.py")],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        check=True,
    )
    assert "litequeue: not installed: no such peer" in done.stdout
    assert "not measured" in done.stdout


def test_a_curve_goes_through_its_points_in_proportion() -> None:
    line = Line("<one>", [(1, 10), (10, 100), (100, 1000)])
    root = ElementTree.fromstring(chart("a & b", [line], x_label="x", y_label="y"))
    (curve,) = root.findall(f"{SVG}polyline")
    (x1, y1), (x2, y2), (x3, y3) = [
        tuple(map(float, point.split(","))) for point in curve.attrib["points"].split()
    ]
    assert x1 < x2 < x3
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)
    assert y1 > y2 > y3  # a greater value is higher up, where the picture begins
    assert y1 - y2 == pytest.approx(y2 - y3, abs=0.2)
    assert "<one>" in [text.text for text in root.findall(f"{SVG}text")]


def test_a_spread_keeps_the_median_between_its_ends() -> None:
    assert Spread.of([3.0, 1.0, 10.0]) == Spread(3.0, 1.0, 10.0)


def test_a_percentile_is_a_value_that_was_measured() -> None:
    values = [float(value) for value in range(1, 101)]
    assert percentile(values, 0.5) == 50
    assert percentile(values, 0.99) == 99
    assert percentile([7.0], 0.99) == 7


def test_a_bar_is_met_up_to_its_limit() -> None:
    assert Bar("ratio", 1.25, 1.25).is_met
    assert not Bar("ratio", 1.26, 1.25).is_met
