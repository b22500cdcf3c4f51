"""What docs/testing.md shows is so."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from runqueue import testing
from runqueue.testing import BrokenPromise, CrashPoint, Note, Promise

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
(EXAMPLE,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_example_passes_as_it_stands(tmp_path: Path) -> None:
    """As a program of its own, and as pytest would call it."""
    program = tmp_path / "test_translator.py"
    program.write_text(EXAMPLE, encoding="utf-8")
    runpy.run_path(str(program), run_name="__main__")


def test_the_example_finds_out_a_runner_that_is_wrong(tmp_path: Path) -> None:
    """One that claims two runs and forgets one of them: nothing but the check can see that."""
    program = tmp_path / "test_translator.py"
    loop = "        while claim := runner.claim(timeout=0):\n"
    greedy = "        while claims := runner.claim_many(2):\n            claim = claims[0]\n"
    assert loop in EXAMPLE
    program.write_text(EXAMPLE.replace(loop, greedy), encoding="utf-8")
    with pytest.raises(BrokenPromise) as caught:
        runpy.run_path(str(program), run_name="__main__")
    assert [problem.promise for problem in caught.value.problems] == [Promise.ORPHANS]


def test_the_tables_list_every_point_and_every_promise() -> None:
    """In their order; a new one is not forgotten here."""
    rows = re.findall(r"^\| ([^|]+?) \|", PAGE, re.MULTILINE)
    told = [row for row in rows if row not in ("point", "promise", "---")]
    assert told == [*(f"`{point}`" for point in CrashPoint), *map(str, Promise)]


def test_every_note_and_every_public_name_is_told_of() -> None:
    """But for what only a type checker wants to know."""
    assert [note for note in Note if f"`{note}`" not in PAGE] == []
    untold = {name for name in testing.__all__ if not re.search(rf"\b{name}\b", PAGE)}
    assert untold == {"CrashPoint", "DoomedQueue", "Entry", "Note", "Problem", "Promise"}
