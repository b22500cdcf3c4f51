"""The public names are there, are all, and cost nothing to import."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import runqueue

ROOT = Path(__file__).resolve().parents[2]

CONTRACT = {  # design.md, section 6
    *("connect", "Status", "Run", "Session", "RunqueueError", "InvalidRun", "RunNotFound"),
    *("SessionNotFound", "StaleClaim", "IllegalMove", "StorageError"),
}


def python(code: str) -> str:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", runqueue.__all__)
def test_every_public_name_can_be_imported(name):
    """The lazy table of homes names a module that really has it."""
    assert getattr(runqueue, name) is not None


def test_public_names_hold_the_contract_and_every_error():
    """What design.md promises, and what a caller may have to catch."""
    from runqueue import errors

    raised = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.RunqueueError)
    }
    assert CONTRACT | raised <= set(runqueue.__all__)


def test_public_names_are_sorted_without_doubles_and_all_in_dir():
    """`dir(runqueue)` is what an editor completes."""
    assert len(set(runqueue.__all__)) == len(runqueue.__all__)
    assert dir(runqueue) == sorted(runqueue.__all__)


def test_type_checkers_see_the_same_names_as_python():
    """The imports for type checkers, the table of homes and `__all__` name the same things."""
    tree = ast.parse(Path(runqueue.__file__).read_text(encoding="utf-8"))
    checked = {
        (node.module.removeprefix("runqueue."), alias.name)
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    homes = {(module, name) for module, names in runqueue._HOMES.items() for name in names}
    assert checked == homes
    assert {name for _, name in homes} | {"__version__"} == set(runqueue.__all__)


def test_a_name_that_does_not_exist_is_an_attribute_error():
    """A lazy module must fail as any module does."""
    with pytest.raises(AttributeError, match="no attribute 'claim_everything'"):
        runqueue.claim_everything  # noqa: B018


def test_importing_runqueue_imports_neither_peewee_nor_any_other_package():
    """`runqueue --help` and completion do not wait for what they do not need."""
    loaded = python(
        "import sys; before = set(sys.modules); import runqueue; "
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    ).split()
    assert "runqueue" in loaded
    assert set(loaded) <= {*sys.stdlib_module_names, "runqueue"}
    assert not {"sqlite3", "json", "logging", "threading"} & set(loaded)


def test_importing_an_error_or_a_status_does_not_import_peewee():
    """A caller that only catches errors pays nothing for the database."""
    assert (
        python("import sys, runqueue as r; r.Status, r.StaleClaim; print('peewee' in sys.modules)")
        == "False"
    )


def test_star_import_gives_the_public_names_only():
    """No helper leaks out."""
    names = python(
        "before = set(dir()); from runqueue import *; "
        "print(*sorted(set(dir()) - before - {'before'}))"
    )
    assert set(names.split()) | {"__version__"} == set(runqueue.__all__)
