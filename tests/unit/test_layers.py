"""The architecture, asserted: who may import whom, and who alone may do what.

The picture is `ROWS`: a module imports only from rows above its own, or from its own row where
that makes no cycle. A new module must be drawn here first, or these tests fail.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "runqueue"

ROWS = (
    ("_version", "errors", "signals", "about"),
    (
        *("states", "clock", "ids", "demands", "settings", "incarnation", "bell", "backoff"),
        *("grants", "callback_prompt", "reread", "systemd", "systemd.notify", "findings"),
        "systemd.journal",
    ),
    (
        *("engines", "engines.base", "engines.doorbell", "engines.server_clock"),
        *("engines.postgres_doorbell", "engines.sqlite_doorbell"),
        *("engines.sqlite", "engines.sqlite_files", "engines.sqlite_turns", "engines.sqlite_forks"),
        "engines.sqlite_line",
        *("engines.sqlite_transfer", "engines.postgres_transfer", "engines.postgres_errors"),
        *("engines.postgres", "engines.postgres_pool", "engines.postgres_urls"),
        *("engines.sqlite_health", "engines.postgres_health"),
        *("database", "schema", "models", "statements", "statements_family"),
        *("statements_homes", "statements_check", "listing"),
        *("migrations", "migrations.sqlite", "migrations.sqlite.0001_initial"),
        *("migrations.sqlite.0002_lists", "migrations.postgres.0002_lists"),
        *("migrations.sqlite.0003_families", "migrations.postgres.0003_families"),
        *("migrations.postgres", "migrations.postgres.0001_initial"),
        *("migrations.sqlite.0004_homes", "migrations.postgres.0004_homes"),
    ),
    (
        *("family", "attempts", "callbacks", "follow", "limits"),
        *("moves", "enqueue", "claims", "sweeper", "why", "wake", "reading", "retention"),
        *("moving", "trees", "homes", "silence", "telling", "soundness", "glance"),
    ),
    ("supervise", "executor", "runner", "slots"),
    ("queue",),
    (
        *("daemon", "reporter", "demo", "doctor", "systemd.files", "systemd.install"),
        *("testing.ledger", "testing.places", "testing.crashing", "testing.checking", "testing"),
    ),
    (
        *("cli.logs", "cli.render", "cli.base", "cli.runs", "cli.sessions", "cli.runners"),
        *("cli.admin", "cli.systemd", "cli", "cli.daemon", "cli.runner", "cli.family"),
        *("cli.trees", "cli.doctor", "cli.top"),
    ),
    ("__main__",),
)
FACE = "__init__"
"""`runqueue/__init__.py` names the public modules, but loads them only when they are asked for."""
ALONE = ("supervise", "signals", "about", "_version", "errors", "states", "clock", "systemd.notify")
"""These import nothing of ours."""

TABLES = set(ROWS[2]) - {"engines.doorbell", "engines.postgres_doorbell"}
FENCES = {
    "peewee": TABLES | {"queue", "reading", "moving", "telling"},
    "psycopg": {name for name in ROWS[2] if name.startswith("engines.postgres")},
    "playhouse": TABLES,
    "inotify_simple": {"engines.sqlite_doorbell"},
    "apscheduler": {"daemon"},
    "click": set(ROWS[7]),
    "rich": set(ROWS[7]) | {"demo"},
    "psutil": {"incarnation", "supervise"},
    "logging_journald": {"cli.logs"},
    "pythonjsonlogger": {"cli.logs"},
}
FORBIDDEN = {"pickle", "marshal", "shelve", "yaml", "dill", "cloudpickle"}


def modules() -> dict[str, Path]:
    """Every module of the package, by its name without `runqueue.`."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[-1] == "__init__" and len(parts) > 1:
            parts = parts[:-1]
        found[".".join(parts)] = path
    return found


MODULES = modules()
ROW_OF = {name: row for row, names in enumerate(ROWS) for name in names}


@cache
def tree_of(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text(encoding="utf-8"), str(MODULES[name]))


def imported(name: str) -> set[str]:
    """Every dotted name that a module imports anywhere, also in a function or for types only."""
    found: set[str] = set()
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name} has a relative import in line {node.lineno}"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__"):
            # Python decides at run time what that loads; only a plain name can be judged.
            if node.args and isinstance(node.args[0], ast.Constant):
                found.add(str(node.args[0].value))
            else:
                assert name == FACE, f"{name} imports what only run time knows"
    return found


def ours(name: str) -> set[str]:
    """The modules of ours that a module imports."""
    found = set()
    for dotted in imported(name):
        if dotted.split(".")[0] != "runqueue":
            continue
        parts = dotted.split(".")[1:]
        for length in range(len(parts), 0, -1):
            if (module := ".".join(parts[:length])) in MODULES:
                found.add(module)
                break
        else:
            found.add(FACE)
    return found - {name}


def theirs(name: str) -> set[str]:
    return {dotted.split(".")[0] for dotted in imported(name)}


def _called(node: ast.Call) -> str:
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def calls(name: str) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Call):
            yield _called(node), node


# --- the picture


def test_every_module_is_in_the_picture():
    """Whoever adds a module says where it belongs."""
    assert set(MODULES) - set(ROW_OF) - {FACE} == set()


def test_every_module_of_the_picture_exists():
    """What was removed is removed from the picture too."""
    assert set(ROW_OF) - set(MODULES) == set()


@pytest.mark.parametrize("name", [name for name in MODULES if name != FACE])
def test_a_module_imports_only_from_its_own_row_or_those_above(name):
    """The lower knows the higher by nothing, not even in a function or for types."""
    below = {other for other in ours(name) if ROW_OF.get(other, -1) > ROW_OF[name]}
    assert not below


@pytest.mark.parametrize("name", [name for name in ALONE if name in MODULES])
def test_the_foundations_import_nothing_of_ours(name):
    """`supervise` is run by path, and the others are for everybody."""
    assert not ours(name)


def test_no_import_leads_back_to_where_it_began():
    """There is an order in which all modules can be understood, one after the other."""
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in done:
            for other in sorted(ours(name) - {FACE}):
                visit(other, (*path, name))
            done.add(name)

    for name in MODULES:
        if name != FACE:
            visit(name, ())


def test_nothing_below_the_command_line_uses_the_packages_face():
    """Inside, a name is imported from where it lives; only `demo` and the commands may not care."""
    users = {name for name in MODULES if name != FACE and FACE in ours(name)}
    assert users <= {*ROWS[6], *ROWS[7], "__main__"}


def test_the_packages_face_loads_nothing_but_the_version():
    """Everything else is imported for type checkers only, or when it is asked for."""
    loaded = [
        node.module
        for node in tree_of(FACE).body
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("runqueue")
    ]
    assert loaded == ["runqueue._version"]


# --- other people's packages


@pytest.mark.parametrize("package", FENCES)
def test_a_third_party_package_stays_behind_its_fence(package):
    """Replacing one of them touches the modules named in the picture and no others."""
    users = {name for name in MODULES if package in theirs(name)}
    assert users <= FENCES[package]
    assert users, f"nothing uses {package} any more"


def test_nothing_else_is_imported_than_the_standard_library_and_these():
    """A new dependency is a decision, not an import."""
    import sys

    known = {*sys.stdlib_module_names, "runqueue", *FENCES}
    assert {name: theirs(name) - known for name in MODULES if theirs(name) - known} == {}


@pytest.mark.parametrize("name", MODULES)
def test_nothing_that_runs_what_it_reads_is_used(name):
    """No pickle, no YAML, no eval or exec: what comes from a database is data."""
    assert not theirs(name) & FORBIDDEN
    for called, node in calls(name):
        by_name = isinstance(node.func, ast.Name)
        assert not (by_name and called in ("eval", "exec", "compile")), f"line {node.lineno}"


# --- who assigns a status


def test_only_the_guarded_move_assigns_a_status():
    """`Run.status` is a key of an UPDATE's values in one function of statements.py."""
    found = []
    for name in MODULES:
        for function in ast.walk(tree_of(name)):
            if not isinstance(function, (ast.FunctionDef, ast.Lambda, ast.Module, ast.ClassDef)):
                continue
            found += [
                (name, getattr(function, "name", type(function).__name__))
                for node in _directly_in(function)
                if _assigns_status(node)
            ]
    assert found == [("statements", "_move")]


def _directly_in(function: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a function that are not in a function inside it."""
    to_visit = list(ast.iter_child_nodes(function))
    while to_visit:
        node = to_visit.pop()
        if not isinstance(node, (ast.FunctionDef, ast.Lambda, ast.ClassDef)):
            yield node
            to_visit += ast.iter_child_nodes(node)


def _assigns_status(node: ast.AST) -> bool:
    if isinstance(node, ast.Dict):
        return any(_is_status_of_run(key) for key in node.keys if key is not None)
    if isinstance(node, ast.Assign):
        return any(
            (isinstance(target, ast.Subscript) and _is_status_of_run(target.slice))
            or _is_status_of_run(target)
            for target in node.targets
        )
    if isinstance(node, ast.Call) and _called(node) in ("update", "set_by_id", "bulk_update"):
        return any(keyword.arg == "status" for keyword in node.keywords)
    return False


def _is_status_of_run(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Attribute)
        and node.attr == "status"
        and isinstance(node.value, ast.Name)
        and node.value.id in ("Run", "run", "runs")
    )


def test_the_search_for_status_assignments_finds_each_way_to_write_one():
    """The test above is worth nothing if it sees nothing."""
    for text in (
        "Run.update({Run.status: 'x'})",
        "values[Run.status] = 'x'",
        "run.status = 'x'",
        "Run.update(status='x')",
    ):
        assert any(_assigns_status(node) for node in ast.walk(ast.parse(text))), text


def strings_of(name: str) -> Iterator[str]:
    """Every string of a module that is no docstring, an f-string's fixed parts joined."""
    documentation = {
        id(node.body[0].value)
        for node in ast.walk(tree_of(name))
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in documentation:
                yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(
                part.value if isinstance(part, ast.Constant) else "?" for part in node.values
            )


@pytest.mark.parametrize("name", [name for name in MODULES if not name.startswith("migrations")])
def test_no_sql_that_writes_is_spelled_out_outside_the_migrations(name):
    """Rows are written by statements over the models; a string could forget the guard."""
    writing = re.compile(
        r"\b(UPDATE\s+\w+\s+SET|INSERT\s+INTO|DELETE\s+FROM|REPLACE\s+INTO)\b", re.I
    )
    assert [text for text in strings_of(name) if writing.search(text)] == []


# --- how SQL is executed

EXECUTING = ("execute_sql", "execute", "executemany", "executescript")
PRAGMA_CONSTANTS = {"APPLICATION_ID", "version", "STEP"}
ENGINES = (*(name for name in ROWS[2] if name.startswith("engines.")), "database")


@pytest.mark.parametrize("name", [name for name in MODULES if not name.startswith("migrations")])
def test_no_text_is_put_together_into_sql(name):
    """No f-string, `%`, `+` or `.format` reaches the database, but for PRAGMAs of our constants."""
    for called, node in calls(name):
        if called not in EXECUTING or not node.args:
            continue
        sql = node.args[0]
        if isinstance(sql, ast.JoinedStr):
            assert name == "engines.sqlite", f"line {node.lineno}"
            fixed = [part.value for part in sql.values if isinstance(part, ast.Constant)]
            holes = [part.value for part in sql.values if isinstance(part, ast.FormattedValue)]
            assert str(fixed[0]).startswith("PRAGMA ")
            assert {getattr(hole, "id", "?") for hole in holes} <= PRAGMA_CONSTANTS
        else:
            # A name or attribute is an argument passed on, or a statement compiled by Peewee.
            plain = isinstance(sql, ast.Constant)
            assert plain or name in ENGINES, f"line {node.lineno}"
            assert isinstance(sql, (ast.Constant, ast.Name, ast.Attribute)), f"line {node.lineno}"


def test_the_constants_of_the_pragmas_are_whole_numbers_of_ours():
    """Nothing that came from outside is ever formatted into a PRAGMA; `version` is VERSION."""
    from runqueue import schema
    from runqueue.engines import sqlite

    assert type(sqlite.APPLICATION_ID) is int
    assert type(schema.VERSION) is int


def test_sql_fragments_in_expressions_are_constants_or_literals_of_our_enums():
    """`SQL(...)` takes a constant, or in `literal` and nowhere else a value of `states`."""
    for name in MODULES:
        functions = {
            id(inner): function.name
            for function in ast.walk(tree_of(name))
            if isinstance(function, ast.FunctionDef)
            for inner in ast.walk(function)
        }
        for called, node in calls(name):
            if called == "SQL" and not isinstance(node.args[0], ast.Constant):
                assert (name, functions.get(id(node))) == ("statements", "literal")
            if called == "literal" and name == "statements":
                value = node.args[0]
                known = ("Status", "Actor", "ExecutionMode", "move")
                from_enum = isinstance(value, ast.Name) or _root_of(value) in known
                assert isinstance(value, ast.Constant) or from_enum, f"line {node.lineno}"


def _root_of(node: ast.AST) -> str:
    while isinstance(node, ast.Attribute):
        node = node.value
    return getattr(node, "id", "")


def test_the_database_file_is_opened_by_us_in_one_place_only():
    """Closing any handle of the file drops every POSIX lock that this process holds on it.

    `prepare_file` creates it before SQLite opens it. The supervisor is another process, and the
    commands open only the target of a backup, exclusively as a new file, and the null device.
    """
    found = set()
    for name in MODULES:
        for function in ast.walk(tree_of(name)):
            if isinstance(function, (ast.FunctionDef, ast.Module)):
                found |= {
                    (name, getattr(function, "name", "the module"))
                    for node in _directly_in(function)
                    if isinstance(node, ast.Call) and _opens(node)
                }
    found = {(name, where) for name, where in found if name != "supervise"}
    assert found <= {("engines.sqlite_files", "prepare_file"), *ELSEWHERE}
    assert ("engines.sqlite_files", "prepare_file") in found


ELSEWHERE = {
    ("settings", "read_env_file"),  # a settings file
    ("settings", "load_credential"),  # a service's credential
    ("systemd.files", "_file"),  # a file of the package
    ("systemd.files", "state"),  # a service's file, to see whose it is
    ("systemd.install", "do"),  # a new file, which then takes its name
    ("engines.sqlite_health", "_kind_of_file_system"),  # /proc
    ("engines.sqlite_line", "_opens"),  # the directory, to queue at
    ("incarnation", "_machine"),  # /proc
    ("incarnation", "_began"),  # /proc
    ("cli.base", "run"),  # the null device
    ("cli.admin", "backup"),  # a new file
    ("testing.ledger", "__init__"),  # a test's own file, only appended to
    ("testing.ledger", "read"),
}


def _opens(node: ast.Call) -> bool:
    function = node.func
    if isinstance(function, ast.Name):
        return function.id == "open"
    if not isinstance(function, ast.Attribute):
        return False
    if isinstance(function.value, ast.Name) and function.value.id in ("os", "io"):
        return function.attr in ("open", "fdopen")
    return function.attr in ("read_text", "read_bytes", "write_text", "write_bytes", "touch")


def test_every_other_open_is_of_the_null_device_or_of_a_new_file_or_appends():
    """What the exceptions above rest on."""
    for name in MODULES:
        if name in ("engines.sqlite_files", "supervise"):
            continue
        for node in ast.walk(tree_of(name)):
            if not (isinstance(node, ast.Call) and _opens(node)):
                continue
            text = ast.unparse(node)
            is_read = _called(node) == "read_text"
            harmless = ("os.devnull", "os.O_EXCL", "os.O_APPEND", "os.O_DIRECTORY")
            is_harmless = any(word in text for word in harmless)
            assert is_read or is_harmless, f"{name}: {text}"
