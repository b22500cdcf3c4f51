"""What is not our database is refused with a typed sentence, and left exactly as it is."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import tempfile
from contextlib import closing
from pathlib import Path

import pytest

import runqueue
from runqueue import ConfigurationError, RunqueueError, StorageDamaged, schema

IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


def connect(path: Path) -> None:
    with runqueue.connect(f"sqlite:///{path}"):
        pass


def state_of(directory: Path) -> dict[str, tuple[int, bytes]]:
    """The mode and content of every file of a directory."""
    return {
        one.name: (stat.S_IMODE(one.stat().st_mode), one.read_bytes())
        for one in sorted(directory.iterdir())
        if one.is_file()
    }


def assert_refused(path: Path, kind: type[RunqueueError], match: str | None = None) -> None:
    """The refusal is one short sentence of one line, and changes no file and no mode."""
    before = state_of(path.parent)
    with pytest.raises(kind, match=match) as refusal:
        connect(path)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 300
    assert state_of(path.parent) == before


@pytest.fixture
def used(path) -> Path:
    """A database of ours with a hundred runs in it, closed."""
    with runqueue.connect(f"sqlite:///{path}") as queue:
        queue.enqueue_many([{"prompt": "x" * 1000} for _ in range(100)])
    return path


@pytest.mark.parametrize(
    "content",
    [
        b"# a text file\nwith two lines\n",
        b"xy",
        b"x" * 10_000,
        bytes(range(256)) * 64,
        b"SQLite format 3\0",
        b"SQLite format 3\0" + b"\xff" * 4096,
        b"\0" * 4096,
        b"PK\x03\x04" + b"\0" * 2000,
    ],
)
def test_a_file_that_is_no_database_is_refused_and_not_touched(path, content):
    """A wrong path in the settings must not cost anybody a file."""
    path.write_bytes(content)
    path.chmod(0o644)
    assert_refused(path, ConfigurationError)


@pytest.mark.parametrize("mode", [0o644, 0o666, 0o604])
def test_the_mode_of_a_file_that_is_not_ours_is_not_changed(path, mode):
    """Else one mistyped path, used by root, closes /etc/passwd to everybody."""
    path.write_bytes(b"root:x:0:0:root:/root:/bin/bash\n" * 20)
    path.chmod(mode)
    with pytest.raises(ConfigurationError):
        connect(path)
    assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.parametrize(
    "script",
    [
        "CREATE TABLE albums (id INTEGER PRIMARY KEY)",
        "CREATE TABLE runs (id INTEGER PRIMARY KEY)",
        "CREATE TABLE sessions (id INTEGER PRIMARY KEY)",
        "CREATE TABLE runs (id INTEGER); CREATE TABLE sessions (id INTEGER)",
        "PRAGMA application_id = 1196444487",
        "PRAGMA application_id = 1196444487; CREATE TABLE runs (a); CREATE TABLE sessions (b)",
    ],
)
def test_a_database_of_another_program_is_refused_and_not_changed(path, sql, dump, script):
    """Neither its rows and schema nor its mode."""
    sql(path, script + ";")
    path.chmod(0o644)
    before = dump(path)
    with pytest.raises(ConfigurationError) as refusal:
        connect(path)
    assert "\n" not in str(refusal.value)
    assert dump(path) == before
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_database_of_another_program_keeps_every_byte(path, sql):
    """Not even its journal mode is changed."""
    sql(path, "CREATE TABLE albums (id INTEGER PRIMARY KEY); INSERT INTO albums VALUES (1);")
    assert_refused(path, ConfigurationError, "another program")


def test_a_newer_schema_is_refused_with_the_advice_to_upgrade(used, sql):
    """An old runqueue must not write what it does not understand."""
    sql(used, f"PRAGMA user_version = {schema.VERSION + 1}")
    assert_refused(used, ConfigurationError, f"newer runqueue .*{schema.VERSION + 1}")


def test_a_directory_is_refused(path):
    """One sentence that says what it is."""
    path.mkdir()
    with pytest.raises(ConfigurationError, match="is a directory"):
        connect(path)
    assert list(path.iterdir()) == []


def test_a_device_or_a_pipe_is_refused_without_waiting(path):
    """Opening a pipe would wait for its other end for ever."""
    os.mkfifo(path)
    with pytest.raises(ConfigurationError, match="not a regular file"):
        connect(path)


def test_a_missing_directory_is_named_and_not_made(tmp_path):
    """A typing error in the path must not grow directories."""
    with pytest.raises(ConfigurationError, match=r"directory .*/none does not exist"):
        connect(tmp_path / "none" / "queue.db")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_the_directory_is_refused(path):
    """Not a directory: one sentence."""
    path.write_text("text", encoding="utf-8")
    with pytest.raises(ConfigurationError) as refusal:
        connect(path / "queue.db")
    assert "\n" not in str(refusal.value)


def test_an_empty_file_becomes_a_queue(path, sql):
    """SQLite calls it an empty database, and `mktemp` makes one."""
    path.touch(mode=0o644)
    connect(path)
    assert sql(path, "PRAGMA user_version") == [(schema.VERSION,)]
    assert stat.S_IMODE(path.stat().st_mode) & 0o007 == 0


def test_an_empty_database_becomes_a_queue(path, sql):
    """One that has a header and no tables."""
    sql(path, "CREATE TABLE x (y); DROP TABLE x;")
    connect(path)
    assert sql(path, "PRAGMA user_version") == [(schema.VERSION,)]


@pytest.mark.parametrize("part", [0.1, 0.3, 0.5, 0.9])
def test_a_truncated_database_is_called_damaged_and_not_written_to(used, part):
    """By connect, or by the first look at what is missing; the advice is a backup."""
    whole = used.read_bytes()
    used.write_bytes(whole[: int(len(whole) * part) // 4096 * 4096 + 100])
    cut = used.read_bytes()
    with pytest.raises(RunqueueError) as refusal:
        with runqueue.connect(f"sqlite:///{used}") as queue:
            assert len(queue.find()) == 100
    assert isinstance(refusal.value, (StorageDamaged, ConfigurationError))
    assert "\n" not in str(refusal.value)
    assert used.read_bytes() == cut


@pytest.mark.parametrize("offset", [0, 16, 100])
def test_random_bytes_over_the_first_page_are_a_typed_error(used, offset):
    """Whatever the page says afterwards, it is one of our sentences."""
    whole = bytearray(used.read_bytes())
    whole[offset : offset + 400] = bytes((number * 97 + 13) % 256 for number in range(400))
    used.write_bytes(whole)
    with pytest.raises(RunqueueError) as refusal:
        connect(used)
    assert "\n" not in str(refusal.value)
    assert used.read_bytes() == whole


# --- directories


@pytest.mark.parametrize("exists", [False, True])
def test_a_directory_that_everybody_may_write_is_refused(tmp_path, used, exists):
    """Anybody could put another file in the place of the database."""
    directory = tmp_path / "open"
    directory.mkdir()
    if exists:
        shutil.copy(used, directory / "queue.db")
    directory.chmod(0o777)
    with pytest.raises(ConfigurationError, match="writable by everybody"):
        connect(directory / "queue.db")
    assert (directory / "queue.db").exists() == exists


def test_a_sticky_directory_is_accepted(tmp_path):
    """/tmp: others cannot remove or replace what is not theirs."""
    directory = tmp_path / "sticky"
    directory.mkdir()
    directory.chmod(0o1777)
    connect(directory / "queue.db")


def test_a_link_to_an_open_directory_is_refused_like_the_directory_itself(tmp_path):
    """What counts is where the file really is."""
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path / "open")
    with pytest.raises(ConfigurationError, match="writable by everybody"):
        connect(tmp_path / "link" / "queue.db")
    assert list((tmp_path / "open").iterdir()) == []


def test_a_link_to_a_directory_or_to_a_database_leads_to_one_queue(tmp_path, used):
    """Both names are the same queue, also while the other is open."""
    (tmp_path / "directory").symlink_to(used.parent)
    (tmp_path / "link.db").symlink_to(used)
    with runqueue.connect(f"sqlite:///{used}") as queue:
        run_id = queue.enqueue("by its own name").run_id
        for name in (tmp_path / "directory" / used.name, tmp_path / "link.db"):
            with runqueue.connect(f"sqlite:///{name}") as same:
                assert same.get(run_id).prompt == "by its own name"


def test_a_link_that_leads_nowhere_is_refused_for_what_it_is(tmp_path):
    """The directory does exist: saying otherwise sends the operator to the wrong place."""
    link = tmp_path / "queue.db"
    link.symlink_to(tmp_path / "gone.db")
    with pytest.raises(ConfigurationError) as refusal:
        connect(link)
    assert f"directory {tmp_path} does not exist" not in str(refusal.value)
    assert not (tmp_path / "gone.db").exists()


# --- rights

AS_NOBODY = """
import os, sys
import peewee, playhouse.migrations, runqueue, runqueue.queue, runqueue.schema
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
try:
    with runqueue.connect(sys.argv[1]) as queue:
        queue.enqueue("hello")
except runqueue.RunqueueError as error:
    print(type(error).__name__, error)
else:
    print("accepted")
"""


@pytest.fixture
def place():
    """A directory that any user may enter; pytest's own is closed."""
    directory = Path(tempfile.mkdtemp(prefix="runqueue-test-"))
    directory.chmod(0o755)
    yield directory
    directory.chmod(0o755)
    shutil.rmtree(directory)


@pytest.fixture
def as_nobody(python):
    """Connect and enqueue as a user who owns nothing; return what came of it."""

    def attempt(path: Path) -> str:
        child = python(AS_NOBODY, f"sqlite:///{path}")
        output, error = child.communicate(timeout=60)
        assert child.returncode == 0, error
        assert output.count("\n") == 1
        return output.strip()

    return attempt


def _seal(directory: Path) -> None:
    # Root's directory is closed to nobody as it is; anybody else takes their own rights away.
    if not IS_ROOT:
        directory.chmod(0o555)


def test_a_directory_that_may_not_be_written_is_a_configuration_error(place, as_nobody):
    """No file can be created there."""
    _seal(place)
    assert as_nobody(place / "queue.db").startswith("ConfigurationError the database ")
    assert list(place.iterdir()) == []


def test_a_database_that_may_only_be_read_is_a_configuration_error(place, as_nobody):
    """It cannot even be looked at: reading a write-ahead log writes beside it."""
    path = place / "queue.db"
    connect(path)
    path.chmod(0o444)
    before = path.read_bytes()
    answer = as_nobody(path)
    assert answer.startswith("ConfigurationError ")
    assert "may not be read and written by you" in answer
    assert path.read_bytes() == before
    assert stat.S_IMODE(path.stat().st_mode) == 0o444


def test_a_writable_database_in_a_closed_directory_is_a_typed_error(place, as_nobody):
    """SQLite cannot make its log beside it."""
    path = place / "queue.db"
    connect(path)
    path.chmod(0o666)
    _seal(place)
    kind, _, sentence = as_nobody(path).partition(" ")
    assert kind in ("ConfigurationError", "StorageLost")
    assert sentence


@pytest.mark.skipif(not IS_ROOT, reason="only root can make a directory for another user")
def test_a_user_may_use_a_directory_of_their_own(place, as_nobody):
    """The refusals above are for want of rights, and for nothing else."""
    own = place / "own"
    own.mkdir()
    os.chown(own, 65534, 65534)
    assert as_nobody(own / "queue.db") == "accepted"
    assert stat.S_IMODE((own / "queue.db").stat().st_mode) == 0o600


# --- while others are at work


def test_a_database_that_another_process_holds_is_busy_and_not_broken(used):
    """An exclusive lock lasts longer than we wait: try again, says the error."""
    with closing(sqlite3.connect(used, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(runqueue.StorageBusy) as refusal:
            with runqueue.connect(f"sqlite:///{used}", busy_timeout=0.01) as queue:
                queue.enqueue("hello")
        assert refusal.value.retryable
        other.execute("ROLLBACK")
