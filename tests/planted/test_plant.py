"""The script that plants bugs: what it notices, tried on a tree of a few lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.planted.plant import MISSED, ROOT, USELESS, check
from tests.planted.plants import PLANTS, Edit, Plant

TREE = {
    "runqueue/__init__.py": "ANSWER = 42\n",
    "runqueue/cli.py": "",
    "tests/helpers.py": """
from pathlib import Path
import runqueue
ROOT = Path(runqueue.__file__).resolve().parent.parent
""",
    "tests/test_answer.py": """
import subprocess, sys, time
import pytest
import runqueue
def test_answer(): assert runqueue.ANSWER == 42
def test_of_a_process():
    code = "import runqueue; print(runqueue.ANSWER)"
    assert subprocess.check_output([sys.executable, "-c", code]) == b"42\\n"
@pytest.mark.parametrize("answer", [41, 42])
def test_is_no_other(answer): assert answer == 42 or runqueue.ANSWER != answer
def test_nothing(): pass
def test_is_wrong_anyway(): assert False
def test_hangs():
    while runqueue.ANSWER != 42: time.sleep(60)
""",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for name, text in TREE.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def planted(*tests: str, old: str = "42", new: str = "41", more: tuple[Edit, ...] = ()) -> Plant:
    edits = (Edit("runqueue/__init__.py", old, new), *more)
    return Plant("other-answer", "", edits, tuple(f"tests/test_answer.py::{one}" for one in tests))


def test_a_plant_that_is_caught_is_success_and_leaves_the_tree_as_it_was(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a test of the code, and by one whose process imports it."""
    assert check([planted("test_answer", "test_of_a_process")], tree, jobs=1) == 0
    told = capsys.readouterr().out
    assert told.count("other-answer                 caught ") == 2
    assert "1 of 1 caught" in told
    assert {name: (tree / name).read_text() for name in TREE} == TREE


@pytest.mark.parametrize("tests", [("test_nothing",), ("test_answer", "test_is_no_other")], ids=str)
def test_a_plant_that_a_named_test_misses_is_1(
    tree: Path, capsys: pytest.CaptureFixture[str], tests: tuple[str, ...]
) -> None:
    """Also when another one catches it, and when only one parameter does."""
    assert check([planted(*tests)], tree, jobs=1) == MISSED
    assert "NOT CAUGHT: other-answer" in capsys.readouterr().out


@pytest.mark.parametrize("old", ["43", "2"], ids=["gone", "twice"])
def test_a_stale_plant_is_noticed(tree: Path, capsys: pytest.CaptureFixture[str], old: str) -> None:
    """Its text must be there exactly once; nothing is tested before that is known of all."""
    (tree / "runqueue/__init__.py").write_text("ANSWER = 42 + 0 * 2\n")
    assert check([planted("test_answer", old=old)], tree, jobs=1) == USELESS
    assert "the plant other-answer is stale" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("test", "told"),
    [("test_is_wrong_anyway", "without a plant it is"), ("test_that_is_gone", "not found")],
)
def test_what_is_not_green_without_a_plant_proves_nothing(
    tree: Path, capsys: pytest.CaptureFixture[str], test: str, told: str
) -> None:
    """A red test would stay red with any bug, and one that is gone catches none."""
    assert check([planted(test)], tree, jobs=1) == USELESS
    assert told in capsys.readouterr().err


def test_a_plant_that_breaks_the_import_proves_nothing(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every test fails then, whatever it is about."""
    assert check([planted("test_answer", new="1 / 0")], tree, jobs=1) == USELESS
    assert "pytest exited with 4" in capsys.readouterr().out


def test_tests_that_hang_are_ended(
    tree: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug that makes a test wait for ever is not caught by it."""
    monkeypatch.setattr("tests.planted.plant.PATIENCE", 2.0)
    assert check([planted("test_hangs")], tree, jobs=1) == USELESS
    assert "the tests hang" in capsys.readouterr().out


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_every_plant_fits_the_code(plant: Plant) -> None:
    """Whoever changes the code that a bug is planted in changes the plant, too."""
    assert plant.tests
    for edit in plant.edits:
        assert (ROOT / edit.file).read_text(encoding="utf-8").count(edit.old) == 1, edit.file
    for node in plant.tests:
        path, name = node.split("::")
        assert f"def {name.partition('[')[0]}(" in (ROOT / path).read_text(encoding="utf-8")


def test_plants_have_names_of_their_own() -> None:
    """By which one is asked for."""
    assert len({plant.name for plant in PLANTS}) == len(PLANTS)
